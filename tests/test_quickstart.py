"""docs/quickstart.md, followed to the letter. Its part for a cluster: tests/cluster."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from support.ports import free_ports
from support.walk import ROOT, blocks, follow

PAGE = ROOT / "docs" / "quickstart.md"

SECONDS = 120
"""Bound for one block of commands on a busy machine."""


def test_the_quickstart_without_a_cluster_does_what_it_says() -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    if subprocess.run(["make", "-q", ".venv/.installed"], cwd=ROOT, check=False).returncode:
        pytest.skip("needs the environment that `make test` makes")
    (port,) = free_ports(1)
    given = blocks(PAGE, "Without a cluster")
    assert [block.commands.split()[0] for block in given].count("make") == 2
    follow(given, {"MCP_GPU_HTTP_PORT": str(port)}, port=port, seconds=SECONDS)

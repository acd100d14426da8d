"""A command as a person runs it: a process of its own, at a terminal of 80 columns."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio

from support.cluster import PROGRAM, Cluster

__all__ = ["WIDTH", "Run", "run", "ways"]

WIDTH = 80


@dataclass(frozen=True)
class Run:
    """What the command did."""

    status: int
    shown: str
    said: str

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.shown.splitlines()]

    @property
    def answer(self) -> Mapping[str, Any]:
        """What it printed with --json."""
        found: Mapping[str, Any] = json.loads(self.shown)
        return found


async def run(*arguments: str, stdin: str = "") -> Run:
    """Run the program with these arguments and nothing of ours in the environment."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MCP_GPU_")}
    with anyio.fail_after(120):
        done = await anyio.run_process(
            [*PROGRAM, *arguments],
            input=stdin.encode(),
            check=False,
            env=inherited | {"COLUMNS": str(WIDTH)},
        )
    found = Run(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in found.said
    assert "\x1b" not in found.shown  # colours are for terminals
    return found


def ways(here: Cluster) -> list[list[str]]:
    """How a command may be told where the agents are."""
    agents_file = str(here.fleet_file.with_name("agents.toml"))
    return [["--url", f"{here.gateway.url}/mcp"], ["--agents-file", agents_file]]

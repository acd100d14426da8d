"""`kubectl mcp_gpu`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_gpu.plugin import arguments

SCRIPT = Path(sys.executable).with_name("kubectl-mcp_gpu")


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("status", "status"),
        ("status -n gpu", "status --namespace gpu"),
        ("status -ngpu --context a", "status --namespace=gpu --context a"),
        ("--context a -n=gpu status --json", "status --context a --namespace=gpu --json"),
        ("--kubeconfig=k --namespace gpu status", "status --kubeconfig=k --namespace gpu"),
        ("why train-0 -n ml", "why train-0 -n ml"),
        ("--context a -n ml why train-0", "why --context a -n ml train-0"),
        ("--help", "--help"),
        ("--version", "--version"),
        ("-n", "--namespace"),
        ("", ""),
    ],
)
def test_kubectls_habits(given: str, means: str) -> None:
    assert arguments(given.split()) == means.split()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{SCRIPT.parent}:/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)


def test_the_wheel_has_the_plugin() -> None:
    done = run(str(SCRIPT), "--kubeconfig", "/none", "status")
    assert (done.returncode, done.stdout) == (2, "")
    assert "/none" in done.stderr


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_finds_it() -> None:
    assert str(SCRIPT) in run("kubectl", "plugin", "list").stdout
    done = run("kubectl", "mcp_gpu", "status", "-n", "gpu", "--kubeconfig", "/none")
    assert done.returncode == 2
    assert "/none" in done.stderr
    assert "usage: mcp-gpu" in run("kubectl", "mcp-gpu", "--help").stdout

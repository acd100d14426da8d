"""A gateway runs on laptops: nothing on its way there is Unix's alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.windows import ATTRIBUTES, MODULES
from test_architecture import modules

AS_ON_WINDOWS = Path(__file__).parent / "support" / "windows.py"

NODES_ONLY = (
    "mcp_gpu.agent",
    "mcp_gpu.sources",
    "mcp_gpu.attach",
    "mcp_gpu.demo",
    "mcp_gpu.gpu",
    "mcp_gpu.node",
    "mcp_gpu.recording",
    "mcp_gpu.serving.unixsocket",
)
"""What is loaded where an agent runs. Everything else is a gateway's, or its commands'."""

GUARDED = {
    ("mcp_gpu.sockets", "os.geteuid"),  # for an agent, whose command says that it runs elsewhere
    ("mcp_gpu.gateway", "resource"),  # an ImportError is expected
    ("mcp_gpu.serving.endpoint", "socket.TCP_USER_TIMEOUT"),  # behind hasattr, as the rest is
    ("mcp_gpu.logs", "select.poll"),
    ("transports.command", "os.killpg"),
    ("transports.command", "signal.SIGKILL"),
    ("transports.program", "os.killpg"),
    ("transports.program", "signal.SIGKILL"),
}
"""Uses that never run where the name is absent."""

LOOP_METHODS = {"add_signal_handler", "create_unix_server", "create_unix_connection", "add_reader"}
"""Of asyncio's event loop; Windows' has none of them."""


def portable() -> list[tuple[str, Path]]:
    return [
        (name, path)
        for name, path in modules()
        if not any(name == place or name.startswith(f"{place}.") for place in NODES_ONLY)
    ]


def as_on_windows(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(AS_ON_WINDOWS), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_what_a_gateway_is_made_of_can_be_imported_on_windows() -> None:
    names = [name for name, _ in portable() if not name.endswith("__main__")]
    code = (
        f"import sys; sys.path.insert(0, {str(AS_ON_WINDOWS.parent)!r})\n"
        "import importlib, json, windows\n"
        "windows.install()\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert set(names) <= set(json.loads(done.stdout))


def test_what_a_gateway_is_made_of_uses_nothing_that_is_unix_alone() -> None:
    """Names in functions, which an import does not meet."""
    found = set()
    for module, path in portable():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {(module, alias.name) for alias in node.names if alias.name in MODULES}
            elif isinstance(node, ast.ImportFrom):
                of = ATTRIBUTES.get(node.module or "", frozenset())
                found |= {(module, alias.name) for alias in node.names if alias.name in of}
                if node.module in MODULES:
                    found.add((module, str(node.module)))
            elif isinstance(node, ast.Attribute):
                if node.attr in LOOP_METHODS:
                    found.add((module, node.attr))
                if isinstance(node.value, ast.Name) and node.attr in ATTRIBUTES.get(
                    node.value.id, frozenset()
                ):
                    found.add((module, f"{node.value.id}.{node.attr}"))
    assert found == GUARDED


@pytest.mark.parametrize("command", ["agent", "attach", "demo", "record"])
def test_what_cannot_work_there_says_so_in_a_line(command: str) -> None:
    done = as_on_windows(command)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mcp-gpu {command}: ")
    assert "Linux" in line


def test_help_and_wrong_settings_are_told_there_as_everywhere() -> None:
    assert "usage: mcp-gpu" in as_on_windows("--help").stdout
    assert "--context" in as_on_windows("gateway", "--help").stdout
    assert "no file" in as_on_windows("status", "--kubeconfig", "none").stderr

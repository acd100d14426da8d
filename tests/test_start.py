"""What a start leaves undone: bodies of the SDK's packages, and models that nobody uses."""

from __future__ import annotations

import json
import subprocess
import sys

import anyio

from support.wire import PATIENCE_SECONDS, call, request

THEN = """
import json, sys
from mcp_gpu.__main__ import main
status = main()
from mcp_types import CreateMessageRequest, ListToolsResult
built = [each.__pydantic_complete__ for each in (ListToolsResult, CreateMessageRequest)]
print(json.dumps({"modules": list(sys.modules), "built": built}), file=sys.stderr)
sys.exit(status)
"""
"""The command line of this process, and what is there once it has ended."""

AGENT = ["agent", "--stdio", "--simulate", "demo", "--node-name", "h100-a"]


async def test_an_agent_imports_and_builds_what_it_uses() -> None:
    requests = [request("tools/list", 1), call("get_gpu_inventory", 2)]
    asked = "".join(json.dumps(each) + "\n" for each in requests).encode()
    with anyio.fail_after(PATIENCE_SECONDS):
        done = await anyio.run_process([sys.executable, "-c", THEN, *AGENT], input=asked)
    results = {each["id"]: each["result"] for each in map(json.loads, done.stdout.splitlines())}
    assert "get_gpu_inventory" in [tool["name"] for tool in results[1]["tools"]]
    assert results[2]["structuredContent"]["gpu_count"] == 8
    left = json.loads(done.stderr.splitlines()[-1])
    assert {"mcp.server.lowlevel", "mcp.types", "mcp.client"} <= set(left["modules"])
    unused = {"mcp.client.session", "mcp.client.client", "mcp.server.mcpserver", "cryptography"}
    unused |= {"mcp_gpu.settings.fleet", "mcp_gpu.settings.terminal"}
    assert unused & set(left["modules"]) == set()
    assert left["built"] == [True, False]


def run(code: str) -> str:
    script = f"import sys; from mcp_gpu.postponed import postpone; {code}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_asked_of_a_postponed_package_is_there() -> None:
    """So that an SDK which comes to need its own packages' bodies gets them."""
    ran = "print('mcp.server.mcpserver' in sys.modules, 'mcp.client.session' in sys.modules)"
    printed = run(
        "postpone('mcp', 'mcp.client', 'mcp.server'); import mcp.server.lowlevel;"
        f"{ran}; from mcp.server import MCPServer, Server; from mcp.client import Client;"
        "import mcp; print(mcp.Client is Client, mcp.server.MCPServer is MCPServer);"
        "from mcp import ClientSession, types; print(types is mcp.types);"
        f"print(hasattr(mcp, 'nothing'), hasattr(mcp.server, 'nothing')); {ran}"
    )
    assert printed.splitlines() == ["False False", "True True", "True", "False False", "True True"]


def test_what_cannot_be_postponed_stays_as_it_is() -> None:
    printed = run(
        "import email; before = email.message_from_string; postpone('email', 'email.mime');"
        "postpone('nowhere', 'nowhere.inside', 'this');"
        "import email.mime; print(email.message_from_string is before);"
        "print({'nowhere', 'nowhere.inside', 'this'} & set(sys.modules))"
    )
    assert printed.splitlines() == ["True", "set()"]

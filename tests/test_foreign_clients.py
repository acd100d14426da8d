"""Clients that nobody of this project wrote, against real agents and a real gateway."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from mcp import Client, StdioServerParameters, stdio_client

from support import node
from support.cluster import PROGRAM, Cluster, cluster

FLEET = """
[[nodes]]
name = "h100-a"
profile = "h100"
[[nodes]]
name = "t4-a"
profile = "t4"
"""
NODES = {"h100-a", "t4-a"}

TOOL = "get_gpu_inventory"
HEALTH = "get_gpu_health"
TOPOLOGY = "get_nvlink_topology"
NODE = "describe_gpu_node"
XIDS = "analyze_xid_errors", "explain_xid"
ALLOCATION = "get_pod_gpu_allocation"
PROCESSES = "get_gpu_processes"
TIMELINE = "get_gpu_timeline"
TOOLS = {
    "agent": sorted([ALLOCATION, HEALTH, NODE, PROCESSES, TIMELINE, TOOL, TOPOLOGY, *XIDS]),
    "gateway": sorted(
        [
            ALLOCATION,
            "check_connectivity",
            "explain_failure",
            "get_incident_report",
            HEALTH,
            NODE,
            PROCESSES,
            TIMELINE,
            TOOL,
            TOPOLOGY,
            *XIDS,
        ]
    ),
}
CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": TOOL, "arguments": {}},
}

ERAS = {"legacy": "2025-11-25", "modern": "2026-07-28"}
"""The protocol's eras as MCP Inspector calls them, and the revision spoken in each."""

MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "foreign", "version": "1"},
}

EVENTS = "application/json, text/event-stream"

PATIENCE_SECONDS = 60
"""Bound for a foreign program on a busy machine; MCP Inspector takes 1 s."""


@pytest.fixture(scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path_factory.mktemp("fleet"), FLEET) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as opened:
        yield opened


async def run(*command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A foreign program's whole life, bounded."""
    with anyio.fail_after(PATIENCE_SECONDS):
        return await anyio.run_process(command, check=False, **options)


# MCP Inspector


def place(fleet: Cluster, role: str, way: str) -> tuple[str, ...]:
    """How MCP Inspector is told of the server: a command, or a URL."""
    if way == "http":
        running = fleet.gateway if role == "gateway" else fleet.agents["h100-a"]
        return (f"{running.url}/mcp",)
    if role == "gateway":
        agents_file = fleet.fleet_file.with_name("agents.toml")
        return (*PROGRAM, "gateway", "--stdio", "--agents-file", str(agents_file))
    return (*PROGRAM, "agent", "--stdio", "--simulate", "demo", "--node-name", "h100-a")


@pytest.fixture
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A home for Node programs, where they are installed."""
    node.require(request.config, node.INSPECTOR)
    return tmp_path


async def inspect(home: Path, *arguments: str) -> dict[str, Any]:
    """What MCP Inspector's command line makes of a server."""
    command = [str(node.INSPECTOR), "--cli", *arguments, "--format", "json"]
    done = await run(*command, env=node.environment(home))
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.node
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("way", ["stdio", "http"])
@pytest.mark.parametrize("role", ["agent", "gateway"])
async def test_mcp_inspector_lists_strictly_and_calls(
    role: str, way: str, era: str, fleet: Cluster, home: Path
) -> None:
    server = place(fleet, role, way)
    speaks = ("--protocol-era", era)
    begun = await inspect(home, *server, "--method", "initialize", *speaks)
    assert begun["result"]["protocolVersion"] == ERAS[era]

    listed = await inspect(home, *server, "--method", "tools/list", "--strict", *speaks)
    assert [tool["name"] for tool in listed["result"]["tools"]] == TOOLS[role]
    # Of any severity: only errors make the exit status differ.
    assert "schemaFindings" not in listed

    call = ("--method", "tools/call", "--tool-name", TOOL, "--tool-arg", "detail=summary")
    called = (await inspect(home, *server, *call, *speaks))["result"]
    found = called["structuredContent"]
    answered = {entry["node"] for entry in found["nodes"]} if role == "gateway" else {found["node"]}
    assert answered == (NODES if role == "gateway" else {"h100-a"})
    assert "H100" in called["content"][0]["text"]
    if role == "gateway":
        call = ("--method", "tools/call", "--tool-name", "check_connectivity")
        checked = (await inspect(home, *server, *call, *speaks))["result"]
        assert checked["structuredContent"]["verdict"] == "healthy"


@pytest.mark.node
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("way", ["stdio", "http"])
@pytest.mark.parametrize("role", ["agent", "gateway"])
async def test_mcp_inspector_reads_prompts_and_resources(
    role: str, way: str, era: str, fleet: Cluster, home: Path
) -> None:
    async def ask(method: str, *more: str) -> dict[str, Any]:
        server = place(fleet, role, way)
        done = await inspect(home, *server, "--method", method, *more, "--protocol-era", era)
        found: dict[str, Any] = done["result"]
        return found

    prompts = {each["name"] for each in (await ask("prompts/list"))["prompts"]}
    assert prompts >= {"diagnose-xid-errors", "gpu-health-check", "why-is-my-job-slow"}
    assert ("gpu-triage" in prompts) == (role == "gateway")
    pod = ("--prompt-name", "why-is-my-job-slow", "--prompt-args", "pod=ml/train-0")
    (message,) = (await ask("prompts/get", *pod))["messages"]
    assert "ml/train-0" in message["content"]["text"]

    listed = [each["uri"] for each in (await ask("resources/list"))["resources"]]
    assert listed == ["gpu://fleet" if role == "gateway" else "gpu://node/h100-a"]
    templates = (await ask("resources/templates/list"))["resourceTemplates"]
    assert "xid://{code}" in [each["uriTemplate"] for each in templates]
    for uri in (*listed, "gpu://node/h100-a/gpu/0", "xid://79"):
        first, *_ = (await ask("resources/read", "--uri", uri))["contents"]
        assert (first["uri"], first["mimeType"]) == (uri, "application/json")
        assert json.loads(first["text"])


@pytest.mark.node
async def test_mcp_inspector_sees_a_wrong_argument_as_the_tools_error(
    fleet: Cluster, home: Path
) -> None:
    call = ("--method", "tools/call", "--tool-name", TOOL, "--tool-arg", "detail=everything")
    command = [str(node.INSPECTOR), "--cli", f"{fleet.gateway.url}/mcp", *call, "--format", "json"]
    done = await run(*command, env=node.environment(home))
    assert done.returncode == 5, done.stderr.decode()
    assert "everything" in json.loads(done.stdout)["result"]["content"][0]["text"]


# httpx, which this project does not use


def modern(method: str, number: int = 1, **params: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """A request at 2026-07-28 and the headers it wants."""
    token = params.pop("token", None)
    meta = {**MODERN_META, **({} if token is None else {"progressToken": token})}
    message = {
        "jsonrpc": "2.0",
        "id": number,
        "method": method,
        "params": {**params, "_meta": meta},
    }
    headers = {"Accept": EVENTS, "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method}
    if "name" in params:
        headers["Mcp-Name"] = params["name"]
    return message, headers


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The messages of an event stream, or the only one of a JSON answer."""
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] == "application/json":
        return [answer.json()]
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    return [
        json.loads(line.removeprefix("data:"))
        for line in answer.text.splitlines()
        if line.startswith("data:")
    ]


def nodes_in(result: dict[str, Any]) -> set[str]:
    return {entry["node"] for entry in result["structuredContent"]["nodes"]}


async def test_httpx_shakes_hands_and_calls_over_event_streams(
    fleet: Cluster, client: httpx.AsyncClient
) -> None:
    url = f"{fleet.gateway.url}/mcp"
    hello = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "foreign", "version": "1"},
    }
    client.headers["Accept"] = EVENTS
    answer = await client.post(
        url, json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}
    )
    (begun,) = events(answer)
    assert begun["result"]["protocolVersion"] == "2025-11-25"
    assert "mcp-session-id" not in answer.headers

    client.headers["MCP-Protocol-Version"] = "2025-11-25"
    ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    answer = await client.post(url, json=ready)
    assert (answer.status_code, answer.content) == (202, b"")

    answer = await client.post(url, json={"jsonrpc": "2.0", "id": "a", "method": "tools/list"})
    (listed,) = events(answer)
    assert listed["id"] == "a"
    assert [tool["name"] for tool in listed["result"]["tools"]] == TOOLS["gateway"]

    (called,) = events(await client.post(url, json=CALL))
    assert nodes_in(called["result"]) == NODES


async def test_httpx_calls_statelessly_and_hears_progress(
    fleet: Cluster, client: httpx.AsyncClient
) -> None:
    url = f"{fleet.gateway.url}/mcp"
    for method in ("server/discover", "tools/list"):
        message, headers = modern(method)
        (answer,) = events(await client.post(url, json=message, headers=headers))
        assert answer["result"]["resultType"] == "complete"
    message, headers = modern("tools/call", 7, name=TOOL, arguments={}, token="t")
    *heard, called = events(await client.post(url, json=message, headers=headers))
    assert [event["params"]["progress"] for event in heard] == [1, 2]
    assert {event["params"]["progressToken"] for event in heard} == {"t"}
    assert called["id"] == 7
    assert nodes_in(called["result"]) == NODES


@pytest.mark.parametrize("role", ["agent", "gateway"])
async def test_httpx_without_accept_gets_plain_json_at_once(
    role: str, fleet: Cluster, client: httpx.AsyncClient
) -> None:
    running = fleet.gateway if role == "gateway" else fleet.agents["t4-a"]
    del client.headers["Accept"]
    answer = await client.post(f"{running.url}/mcp", json=CALL)
    assert answer.headers["content-type"] == "application/json"
    assert "T4" in answer.json()["result"]["content"][0]["text"]


async def test_httpx_is_told_that_mcp_is_spoken_with_post(
    fleet: Cluster, client: httpx.AsyncClient
) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "DELETE", "PUT", "PATCH"):
        answer = await client.request(method, f"{fleet.gateway.url}/mcp")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert bool(answer.content) == (method != "HEAD")


async def test_httpx_keeps_its_connection_whatever_is_answered(
    fleet: Cluster, client: httpx.AsyncClient
) -> None:
    url = fleet.gateway.url
    answers = [
        await client.post(f"{url}/mcp", json=CALL),
        await client.post(f"{url}/mcp", content=b"{"),
        await client.get(f"{url}/mcp"),
        await client.get(f"{url}/nothing"),
        await client.get(f"{url}/healthz"),
        await client.post(f"{url}/mcp", json=CALL),
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 405, 404, 200, 200]
    used = {answer.extensions["network_stream"].get_extra_info("client_addr") for answer in answers}
    assert len(used) == 1


# curl

NEEDS_CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@NEEDS_CURL
async def test_the_curl_line_of_the_readme_prints_every_node(fleet: Cluster) -> None:
    body = json.dumps(CALL, separators=(",", ":"))
    line = (
        f"curl -s -X POST http://localhost:{fleet.gateway.port}/mcp "
        f"-H \"Content-Type: application/json\" -d '{body}' | {sys.executable} -m json.tool"
    )
    done = await run("sh", "-c", line, env={"PATH": "/usr/bin:/bin", "NO_PROXY": "*"})
    assert done.returncode == 0, done.stderr.decode()
    assert nodes_in(json.loads(done.stdout)["result"]) == NODES


@NEEDS_CURL
@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2"])
async def test_curl_speaks_any_version_of_http(version: str, fleet: Cluster) -> None:
    command = ["curl", "-sS", version, "--noproxy", "*", f"{fleet.gateway.url}/mcp"]
    command += ["-H", "Content-Type: application/json", "-d", json.dumps(CALL)]
    done = await run(*command)
    assert nodes_in(json.loads(done.stdout)["result"]) == NODES


@NEEDS_CURL
async def test_curl_is_told_that_its_file_is_too_long(fleet: Cluster, tmp_path: Path) -> None:
    """Before it sends it: past 1 MiB curl asks whether it should go on."""
    file = tmp_path / "body"
    file.write_bytes(b" " * 3_000_000)
    command = ["curl", "-sS", "--noproxy", "*", f"{fleet.gateway.url}/mcp", "-w", "%{size_upload}"]
    command += ["-H", "Content-Type: application/json", "--data-binary", f"@{file}"]
    done = await run(*command)
    body, _, uploaded = done.stdout.decode().rpartition("}")
    assert "longer than" in json.loads(body + "}")["error"]["message"]
    assert int(uploaded) < 3_000_000


# A bare socket


def post(body: bytes, *headers: str, version: str = "1.1") -> bytes:
    lines = [
        f"POST /mcp HTTP/{version}",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def talk(port: int, *pieces: bytes) -> bytes:
    """Send the pieces and read until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as stream:
        for piece in pieces:
            stream.sendall(piece)
        found = b""
        while data := stream.recv(65_536):
            found += data
        return found


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_socket_sends_byte_by_byte_and_reads_to_the_end(
    version: str, fleet: Cluster
) -> None:
    raw = post(json.dumps(CALL).encode(), "Connection: close", version=version)
    pieces = [raw[start : start + 1] for start in range(len(raw))]
    answer = await anyio.to_thread.run_sync(talk, fleet.gateway.port, *pieces)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert nodes_in(json.loads(body)["result"]) == NODES


async def test_a_socket_sends_two_requests_before_it_reads_an_answer(fleet: Cluster) -> None:
    one = json.dumps({"jsonrpc": "2.0", "id": "one", "method": "tools/list"}).encode()
    two = json.dumps({"jsonrpc": "2.0", "id": "two", "method": "tools/list"}).encode()
    raw = post(one) + post(two, "Connection: close")
    answer = await anyio.to_thread.run_sync(talk, fleet.gateway.port, raw)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert 0 < answer.index(b'"id":"one"') < answer.index(b'"id":"two"')


# The SDK's own client of programs


@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
async def test_the_sdks_stdio_client_reaches_a_live_agent_through_the_relay(
    mode: Any, fleet: Cluster
) -> None:
    path = fleet.fleet_file.parent / "h100-a" / "agent.sock"
    executable, *arguments = [*PROGRAM, "attach", "--relay-only", "--socket", str(path)]
    relay = StdioServerParameters(command=executable, args=arguments)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with Client(stdio_client(relay), mode=mode) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == TOOLS["agent"]
            result = await client.call_tool(TOOL, {"detail": "full"})
    assert not result.is_error
    assert result.structured_content is not None
    assert result.structured_content["node"] == "h100-a"
    assert len(result.structured_content["gpus"]) == 8

"""The HTTP listener: MCP in both eras, plain JSON, the pages, and what it refuses."""

import gc
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import ListToolsResult, PaginatedRequestParams
from uvicorn.protocols.http.h11_impl import H11Protocol

import mcp_gpu.serving.app
import mcp_gpu.serving.protocol
from mcp_gpu.serving.access.model import AccessPolicy
from mcp_gpu.serving.endpoint import bind
from mcp_gpu.serving.pages import Readiness
from mcp_gpu.serving.server import HttpEndpoint, ListenError, Listening, serve
from support.demo_server import Gate, registry
from support.wire import ERAS, PATIENCE_SECONDS, call, end_of, headers, request, serving
from transports.base import Target
from transports.errors import Denied
from transports.http import HttpTransport
from transports.session import call_tool

CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "echo", "arguments": {"text": "hi"}},
}
EVENTS = "application/json, text/event-stream"


def url(listening: Listening, path: str = "/mcp", host: str = "127.0.0.1") -> str:
    port = listening.http[0][1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"


@asynccontextmanager
async def http(**options: Any) -> AsyncIterator[tuple[Listening, httpx.AsyncClient]]:
    """A server and a client whose library the server does not use."""
    endpoint = HttpEndpoint(port=0, **options.pop("endpoint", {}))
    served = options.pop("served", None) or registry()
    async with (
        serving(served, http=endpoint, **options) as listening,
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
    ):
        yield listening, client


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("mode", ERAS)
async def test_an_sdk_client_lists_and_calls_over_ipv4_and_ipv6(mode: Any, host: str) -> None:
    async with (
        serving(registry(), http=HttpEndpoint(port=0, hosts=("127.0.0.1", "::1"))) as listening,
        httpx2.AsyncClient(trust_env=False) as pool,
        Client(
            streamable_http_client(url(listening, host=host), http_client=pool),
            mode=mode,
            read_timeout_seconds=10,
        ) as client,
    ):
        assert "echo" in {tool.name for tool in (await client.list_tools()).tools}
        heard: list[float] = []

        async def hear(done: float, total: float | None, message: str | None) -> None:
            heard.append(done)

        await client.call_tool("sleep", {"steps": 2}, progress_callback=hear)
        assert heard == [1, 2]


async def test_both_addresses_share_the_free_port_that_was_taken() -> None:
    async with serving(registry(), http=HttpEndpoint(port=0)) as listening:
        (host4, port4), (host6, port6) = listening.http
        assert (host4, host6) == ("127.0.0.1", "::1")
        assert port4 == port6 > 0


def test_listeners_name_their_protocol_so_that_asyncio_turns_nagle_off() -> None:
    for listener in bind(HttpEndpoint(port=0)):
        with listener:
            assert listener.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/html"])
async def test_who_names_no_event_stream_gets_plain_json_without_initialize(
    accept: str | None,
) -> None:
    async with http() as (listening, client):
        del client.headers["accept"]
        sent = {} if accept is None else {"Accept": accept}
        answer = await client.post(url(listening), json=CALL, headers=sent)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    result = answer.json()["result"]
    assert result["content"][0]["text"] == "hi"
    assert result["structuredContent"] == {"title": "hi", "nothing": None}


async def test_who_names_an_event_stream_gets_events_once_there_is_progress() -> None:
    message = call("sleep", steps=3)
    message["params"]["_meta"]["progressToken"] = "t"
    async with http() as (listening, client):
        answer = await client.post(url(listening), json=message, headers=headers(message, EVENTS))
    assert answer.headers["content-type"] == "text/event-stream"
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:6] == "data: "]
    assert [event.get("method") for event in events] == ["notifications/progress"] * 3 + [None]


@pytest.mark.parametrize("depth", [100, 300, 900, 990, 1_500, 100_000])
async def test_arguments_of_any_depth_get_an_answer_that_blames_them(depth: int) -> None:
    nested = "[" * depth + "]" * depth
    body = json.dumps(CALL).replace('"hi"', nested)
    async with http() as (listening, client):
        answer = await client.post(
            url(listening), content=body, headers={"Content-Type": "application/json"}
        )
    text = answer.text
    assert "Traceback" not in text
    assert "internal error" not in text.lower()
    assert "Bad arguments" in text or answer.json()["error"]["code"] in (-32700, -32600, -32602)


async def test_a_call_lists_no_tools_behind_the_callers_back() -> None:
    """Which the SDK does at 2026-07-28 unless it is given the schemas; a list may be a fan-out."""
    served = registry()
    listed: list[Any] = []

    async def count(context: Any, params: Any) -> ListToolsResult:
        listed.append(params)
        return ListToolsResult(tools=[])

    served.server.add_request_handler("tools/list", PaginatedRequestParams, count)
    message = call("echo", text="a")
    async with http(served=served) as (listening, client):
        answer = await client.post(url(listening), json=message, headers=headers(message))
    assert answer.json()["result"]["isError"] is False
    assert listed == []


async def test_discover_proves_the_identity_with_padding_up_to_a_limit() -> None:
    async with http() as (listening, client):
        for wanted, given in [(16_384, 16_384), (10**9, 65_536), (-1, 0), ("x", 0)]:
            message = request("server/discover", meta={"mcp-gpu/pad": wanted})
            answer = await client.post(url(listening), json=message, headers=headers(message))
            meta = answer.json()["result"]["_meta"]
            assert meta["mcp-gpu/identity"]["node"] == "node-1"
            assert len(meta.get("mcp-gpu/pad", "")) == given


@pytest.mark.parametrize("hidden", [False, True], ids=["declared", "chunked"])
async def test_a_body_over_the_limit_is_refused(hidden: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    async with http(endpoint={"body_bytes": 1000}) as (listening, client):
        body = chunks() if hidden else b" " * 2000
        answer = await client.post(
            url(listening), content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 413
        assert "1000 bytes" in answer.json()["error"]["message"]
        assert (await client.post(url(listening), json=CALL)).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("10.1.2.3", 200),
        ("[fd00::7]:8080", 200),
        ("localhost:1", 200),
        ("LOCALHOST", 200),
        ("agents.gpu.svc", 200),
        ("agents.gpu.svc.", 200),
        ("a.nodes.example:80", 200),
        ("nodes.example", 421),
        ("evilnodes.example", 421),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("[::1", 421),
    ],
)
async def test_a_host_is_served_if_it_is_an_address_or_a_known_name(host: str, status: int) -> None:
    allowed = {"allowed_hosts": ("agents.gpu.svc", "*.nodes.example")}
    async with http(endpoint=allowed) as (listening, client):
        answer = await client.post(url(listening), json=CALL, headers={"Host": host})
    assert answer.status_code == status
    if status == 421:
        assert "MCP_GPU_ALLOWED_HOSTS" in answer.json()["error"]["message"]


async def test_a_gateway_that_calls_by_an_unknown_name_learns_of_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve = socket.getaddrinfo

    def loopback(host: Any, *args: Any, **options: Any) -> Any:
        return resolve("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", loopback)
    name = "ip-10-0-123-123.us-gov-west-1.compute.internal"
    async with http() as (listening, _), HttpTransport() as transport:
        target = Target(addresses=(name,), port=listening.http[0][1])
        with pytest.raises(
            Denied, match=rf"421.*{name}.*--allowed-hosts \(MCP_GPU_ALLOWED_HOSTS\)"
        ):
            await call_tool(transport, target, "echo", {}, timeout_seconds=PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("http://127.0.0.1", 200),
        ("http://[::1]:6274", 200),
        ("https://console.example", 200),
        ("https://CONSOLE.example", 200),
        ("https://console.example:444", 403),
        ("https://console.example.evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("http://10.1.2.3", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_a_page_may_call_if_it_is_local_or_known(origin: str, status: int) -> None:
    allowed = {"allowed_origins": ("https://console.example/",)}
    async with http(endpoint=allowed) as (listening, client):
        answer = await client.post(url(listening), json=CALL, headers={"Origin": origin})
    assert answer.status_code == status
    if status == 403:
        assert "MCP_GPU_ALLOWED_ORIGINS" in answer.json()["error"]["message"]


async def test_the_pages_answer_get_alone() -> None:
    async with http() as (listening, client):
        assert (await client.get(url(listening, "/healthz"))).json() == {"status": "healthy"}
        for page in ("/healthz", "/readyz", "/version", "/metrics"):
            answer = await client.get(url(listening, page))
            assert answer.status_code == 200
            for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
                answer = await client.request(method, url(listening, page))
                assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
        for method in ("GET", "DELETE", "PUT"):
            answer = await client.request(method, url(listening))
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        lost = await client.get(url(listening, "/sse"))
        assert lost.status_code == 404
        assert "/mcp" in lost.json()["paths"]


async def test_readiness_is_told_with_its_reasons() -> None:
    state = Readiness(False, {"nvml": "starting"})

    async with http(readiness=lambda: state) as (listening, client):
        answer = await client.get(url(listening, "/readyz"))
        assert answer.status_code == 503
        assert answer.json() == {"status": "not_ready", "nvml": "starting"}
        state = Readiness(True, {"nvml": "library absent"})
        answer = await client.get(url(listening, "/readyz"))
        assert answer.status_code == 200
        assert answer.json() == {"status": "ready", "nvml": "library absent"}


@pytest.mark.parametrize("wants_token", [False, True])
async def test_readiness_has_words_for_those_alone_who_may_call(
    wants_token: bool, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("a-static-token-of-this-test\n")
    access = AccessPolicy(token_file=tmp_path / "tokens" if wants_token else None)
    words = {"message": "cannot reach the API server 192.0.2.1"}
    state = Readiness(False, {"nvml": "failed"}, words)
    async with (
        serving(
            registry(), http=HttpEndpoint(port=0, access=access), readiness=lambda: state
        ) as listening,
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
    ):
        told = (await client.get(url(listening, "/readyz"))).json()
    assert told == {"status": "not_ready", "nvml": "failed"} | ({} if wants_token else words)


async def test_version_is_the_identity_padded_on_request() -> None:
    async with http() as (listening, client):
        plain = (await client.get(url(listening, "/version"))).json()
        assert (plain["name"], plain["node"]) == ("demo", "node-1")
        assert "padding" not in plain
        for query, chars in [("pad=16384", 16_384), ("a=1&pad=99999999999", 65_536)]:
            answer = await client.get(url(listening, f"/version?{query}"))
            assert len(answer.json()["padding"]) == chars
        for query in ("pad=x", "pad=", "pad=-1", "pad=%F0", "pad=٣"):
            assert "padding" not in (await client.get(url(listening, f"/version?{query}"))).json()


async def test_metrics_count_calls() -> None:
    async with http() as (listening, client):
        await client.post(url(listening), json=CALL)
        text = (await client.get(url(listening, "/metrics"))).text
    assert 'mcp_gpu_build_info{name="demo",simulated="false",version="9.9"} 1.0\n' in text
    assert 'mcp_gpu_tool_calls_total{outcome="ok",tool="echo"} 1.0\n' in text
    assert 'mcp_gpu_tool_call_duration_seconds_count{tool="echo"} 1.0\n' in text


async def test_a_taken_port_is_one_clear_error() -> None:
    async with serving(registry(), http=HttpEndpoint(port=0)) as listening:
        port = listening.http[0][1]
        with pytest.raises(ListenError, match=f"port {port} on 127.0.0.1 is taken"):
            await serve(registry(), http=HttpEndpoint(port=port), signals=False)


async def test_an_address_of_another_machine_is_one_clear_error() -> None:
    with pytest.raises(ListenError, match=r"cannot listen on 192\.0\.2\.1"):
        await serve(
            registry(),
            http=HttpEndpoint(hosts=("192.0.2.1",), port=0, access=AccessPolicy(anonymous=True)),
            signals=False,
        )


@pytest.mark.parametrize("accept", ["application/json", EVENTS])
async def test_a_client_that_hangs_up_ends_its_call(accept: str) -> None:
    gate = Gate()
    message = call("wait")
    async with http(served=registry(gate)) as (listening, client):
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                await client.post(url(listening), json=message, headers=headers(message, accept))

            tasks.start_soon(ask)
            await gate.until_entered(1)
            tasks.cancel_scope.cancel()
        await gate.until_cancelled(1)


@pytest.mark.parametrize("accept", ["application/json", EVENTS])
async def test_a_call_in_flight_is_answered_after_the_request_to_stop(accept: str) -> None:
    gate = Gate()
    message = call("wait")
    stop = anyio.Event()
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            anyio.create_task_group() as tasks,
            httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
        ):

            async def run(*, task_status: Any) -> None:
                await serve(
                    registry(gate),
                    http=HttpEndpoint(port=0),
                    stop=stop,
                    signals=False,
                    drain_seconds=15,
                    task_status=task_status,
                )

            listening = await tasks.start(run)

            async def let_go() -> None:
                await gate.until_entered(1)
                stop.set()
                await until_refused(listening)
                gate.open.set()

            tasks.start_soon(let_go)
            answer = await client.post(
                url(listening), json=message, headers=headers(message, accept)
            )
            assert answer.json()["result"]["content"][0]["text"] == "waited"


async def until_refused(listening: Listening) -> None:
    """Wait for the listener to close."""
    while True:
        try:
            async with await anyio.connect_tcp(*listening.http[0]):
                await anyio.lowlevel.checkpoint()
        except OSError:
            return


async def test_a_call_that_never_ends_is_given_up() -> None:
    gate = Gate()
    message = call("wait")
    async with (
        serving(registry(gate), http=HttpEndpoint(port=0), drain_seconds=1) as listening,
        anyio.create_task_group() as tasks,
    ):
        stream = await anyio.connect_tcp(*listening.http[0])

        async def ask() -> None:
            async with stream:
                await stream.send(raw_post(message))
                await end_of(stream)

        tasks.start_soon(ask)
        await gate.until_entered(1)
        tasks.cancel_scope.cancel()
    assert gate.cancelled == 1


async def test_a_subscription_ends_with_its_result_when_the_server_stops() -> None:
    message = request("subscriptions/listen", notifications={"toolsListChanged": True})
    stop = anyio.Event()
    async with (
        http(stop=stop) as (listening, client),
        client.stream(
            "POST", url(listening), json=message, headers=headers(message, EVENTS)
        ) as answer,
    ):
        events: list[Any] = []
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line[6:]))
                stop.set()
    first, last = events
    assert first["method"] == "notifications/subscriptions/acknowledged"
    assert (last["id"], last["result"]["resultType"]) == (1, "complete")


def raw_post(message: dict[str, Any], *, extra: str = "") -> bytes:
    body = json.dumps(message)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers(message).items())
    return (
        f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{head}{extra}"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


@asynccontextmanager
async def raw_connection(**options: Any) -> AsyncIterator[anyio.abc.SocketStream]:
    """A TCP connection to a server of its own."""
    async with (
        serving(registry(), http=HttpEndpoint(port=0), **options) as listening,
        await anyio.connect_tcp(*listening.http[0]) as stream,
    ):
        yield stream


@pytest.mark.parametrize(
    "begun", [b"", b"POST /mcp HTT", b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n"]
)
async def test_a_head_that_does_not_come_is_not_waited_for(
    begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_gpu.serving.protocol, "HEADER_SECONDS", 0.05)
    async with raw_connection() as stream:
        if begun:
            await stream.send(begun)
        assert await end_of(stream) == b""


async def test_a_second_head_that_trickles_in_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mcp_gpu.serving.protocol, "HEADER_SECONDS", 0.2)
    async with raw_connection() as stream:
        await stream.send(raw_post(call("echo", text="first")))
        answered = b""
        while b"first" not in answered:
            answered += await stream.receive()
        await trickle(stream)


async def trickle(stream: anyio.abc.ByteStream) -> None:
    """Send a byte now and then until the other side has had enough."""
    try:
        while True:
            await stream.send(b"P")
            await anyio.sleep(0.02)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_gpu.serving.app, "BODY_SECONDS", 0.05)
    async with raw_connection() as stream:
        await stream.send(raw_post(call("echo", text="a"), extra="Connection: close\r\n")[:-1])
        assert b" 408 " in await end_of(stream)


async def test_a_connection_that_was_reset_is_forgotten_at_once() -> None:
    """uvicorn alone keeps it until its keep-alive time is over."""
    async with serving(registry(), http=HttpEndpoint(port=0)) as listening:
        async with await anyio.connect_tcp(*listening.http[0]) as stream:
            await stream.send(raw_post(call("echo", text="a")))
            assert b" 200 " in await stream.receive()
            raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        while any(isinstance(thing, H11Protocol) for thing in gc.get_objects()):
            gc.collect()
            await anyio.sleep(0.05)


async def test_connections_over_the_limit_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_gpu.serving.protocol, "CONNECTIONS", 1)
    gate = Gate()
    async with (
        serving(registry(gate), http=HttpEndpoint(port=0)) as listening,
        await anyio.connect_tcp(*listening.http[0]) as first,
    ):
        await first.send(raw_post(call("wait")))
        await gate.until_entered(1)
        async with await anyio.connect_tcp(*listening.http[0]) as second:
            assert b" 503 " in await end_of(second)
        gate.open.set()
        assert b" 200 " in await first.receive()


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GARBAGE\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ],
)
async def test_what_is_no_http_gets_a_400(raw: bytes) -> None:
    async with raw_connection() as stream:
        await stream.send(raw + b"\r\n" * 2)
        assert b" 400 " in await end_of(stream)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("accept", ["application/json", EVENTS])
async def test_a_body_that_is_no_message_gets_a_json_rpc_error(body: bytes, accept: str) -> None:
    async with http() as (listening, client):
        answer = await client.post(
            url(listening),
            content=body,
            headers={"Content-Type": "application/json", "Accept": accept},
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] < 0
        assert "Traceback" not in answer.text
        assert (await client.post(url(listening), json=CALL)).status_code == 200

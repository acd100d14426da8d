"""What only HTTP can show: statuses, redirects, addresses, tokens, TLS, pools."""

import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from support.kubeapi.credentials import Authority
from support.peer import Peer, listen, serve_http, speaking, swallowing, until
from transports import exchange, pool
from transports.base import PAD_CHARS, Target
from transports.errors import BadPeer, Broken, Denied, TimedOut, TransportError, Unreachable
from transports.http import HttpSettings, HttpTransport
from transports.session import call_tool

Answer = Callable[[Request], Response | Awaitable[Response]]


def at(port: int, *hosts: str) -> Target:
    return Target(node="peer-1", addresses=hosts or ("127.0.0.1",), port=port)


async def echo(transport: HttpTransport, target: Target) -> None:
    await call_tool(transport, target, "echo", {"text": "x"}, timeout_seconds=20)


async def probe(transport: HttpTransport, target: Target) -> None:
    with anyio.fail_after(20):
        await transport.probe(target)


WAYS = pytest.mark.parametrize("ask", [echo, probe])


@asynccontextmanager
async def answering(answer: Answer, **config: Any) -> AsyncIterator[Target]:
    """A server that answers everything alike."""

    async def endpoint(request: Request) -> Response:
        found = answer(request)
        return found if isinstance(found, Response) else await found

    app = Starlette(routes=[Route("/{path:path}", endpoint, methods=["GET", "POST"])])
    async with serve_http(app, **config) as port:
        yield at(port)


@WAYS
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Denied),
        (403, Denied),
        (404, BadPeer),
        (405, BadPeer),
        (413, BadPeer),
        (202, BadPeer),
        (429, Unreachable),
        (503, Unreachable),
        (500, Broken),
        (502, Broken),
        (504, Broken),
    ],
)
async def test_a_status_of_refusal_keeps_its_meaning(
    ask: Any, status: int, kind: type[TransportError]
) -> None:
    async with (
        answering(lambda request: JSONResponse({"detail": "no"}, status)) as target,
        HttpTransport() as transport,
    ):
        with pytest.raises(kind, match=f"HTTP {status}"):
            await ask(transport, target)


@WAYS
@pytest.mark.parametrize(
    "answer",
    [
        lambda request: Response("<html>login</html>", media_type="text/html"),
        lambda request: Response("", media_type="application/json"),
        lambda request: Response("{", media_type="application/json"),
        lambda request: Response("[" * 50_000, media_type="application/json"),
        lambda request: JSONResponse({"name": "grafana"}),
        lambda request: Response(b"\x1f\x8b", media_type="application/json"),
    ],
    ids=["html", "empty", "cut", "deep", "other", "binary"],
)
async def test_what_is_no_agent_is_a_bad_peer(ask: Any, answer: Answer) -> None:
    async with answering(answer) as target, HttpTransport() as transport:
        with pytest.raises(BadPeer):
            await ask(transport, target)


async def test_an_error_in_json_rpc_is_told_whatever_its_status() -> None:
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32602, "message": "not so"}}
    async with (
        answering(lambda request: JSONResponse(error, 400)) as target,
        HttpTransport() as transport,
    ):
        with pytest.raises(BadPeer, match="error -32602: not so"):
            await echo(transport, target)


def json_rpc(message: str, status: int) -> Response:
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": message}}
    return JSONResponse(error, status)


@WAYS
@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (
            lambda request: json_rpc("add the name", 421),
            Denied,
            "Misdirected Request: add the name",
        ),
        (lambda request: JSONResponse({"detail": "no"}, 403), Denied, '{"detail":"no"}'),
        (
            lambda request: Response("over quota", 429, media_type="text/plain"),
            Unreachable,
            "quota",
        ),
        (lambda request: Response("a\x1b[2J\nb", 502, media_type="text/plain"), Broken, "a [2J b"),
        (lambda request: json_rpc("x" * 9_000, 403), Denied, "x" * 250),
        (lambda request: Response("y" * 99_000, 403, media_type="text/plain"), Denied, "Forbidden"),
        (lambda request: Response("<p>no</p>", 403, media_type="text/html"), Denied, "Forbidden"),
    ],
    ids=["json-rpc", "json", "plain", "controls", "long", "longer", "html"],
)
async def test_a_refusal_is_told_with_its_own_words(
    ask: Any, answer: Answer, kind: type[TransportError], words: str
) -> None:
    async with answering(answer) as target, HttpTransport() as transport:
        with pytest.raises(kind) as caught:
            await ask(transport, target)
    assert str(caught.value).startswith("HTTP 4") or kind is Broken
    assert str(caught.value).endswith(words)
    assert len(str(caught.value)) < 300


@WAYS
async def test_a_refusal_whose_words_do_not_come_keeps_its_meaning(
    ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "REFUSAL_SECONDS", 0.1)

    async def stall(stream: ByteStream) -> None:
        await stream.receive()
        head = b"HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 9\r\n\r\n"
        await stream.send(head)
        with suppress(anyio.EndOfStream):
            await stream.receive()

    async with speaking(stall) as target, HttpTransport() as transport:
        with pytest.raises(Denied, match="HTTP 403 Forbidden"):
            await ask(transport, target)


@WAYS
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(ask: Any, status: int) -> None:
    asked: list[str] = []

    def answer(request: Request) -> Response:
        asked.append(request.url.path)
        return RedirectResponse("/elsewhere", status)

    async with answering(answer) as target, HttpTransport() as transport:
        with pytest.raises(BadPeer, match=f"HTTP {status}.*redirect"):
            await ask(transport, target)
    assert len(asked) == 1


@pytest.mark.parametrize("padding", ["", "x" * (PAD_CHARS - 1), 7])
async def test_a_probe_whose_padding_is_not_whole_is_a_bad_peer(padding: object) -> None:
    document = {**Peer().identity.to_wire(), "padding": padding}
    async with (
        answering(lambda request: JSONResponse(document)) as target,
        HttpTransport() as transport,
    ):
        with pytest.raises(BadPeer, match="padding"):
            await probe(transport, target)


@WAYS
async def test_an_answer_without_end_is_given_up(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_FRAME_BYTES", 100_000)

    async def endless(stream: ByteStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        try:
            while True:
                await stream.send(b" " * 10_000)
        except anyio.BrokenResourceError:
            pass  # they have left, as they should

    async with speaking(endless) as target, HttpTransport() as transport:
        with pytest.raises(BadPeer, match="longer than"):
            await ask(transport, target)


@WAYS
async def test_what_does_not_speak_http_is_a_bad_peer(ask: Any) -> None:
    async def banner(stream: ByteStream) -> None:
        await stream.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        await stream.receive()

    async with speaking(banner) as target, HttpTransport() as transport:
        with pytest.raises(BadPeer, match="does not speak HTTP"):
            await ask(transport, target)


@WAYS
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
    ids=["nothing", "cut", "chunked"],
)
async def test_a_connection_that_closes_in_mid_answer_is_broken(ask: Any, sent: bytes) -> None:
    async def cut(stream: ByteStream) -> None:
        await stream.receive()
        if sent:
            await stream.send(sent)

    async with speaking(cut) as target, HttpTransport() as transport:
        with pytest.raises(Broken, match="closed before the answer was complete"):
            await ask(transport, target)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (b"0\r\n\r\n", "the event stream ended before the answer"),
        (b"", "closed before the answer was complete"),
    ],
    ids=["clean", "cut"],
)
async def test_an_event_stream_that_ends_early_is_not_asked_for_again(
    end: bytes, words: str
) -> None:
    requests: list[bytes] = []
    event = b"id: 1\nretry: 1\ndata:\n\n"

    async def resumable(stream: ByteStream) -> None:
        requests.append(await stream.receive())
        await stream.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n%s" % (len(event), event, end)
        )

    async with speaking(resumable) as target, HttpTransport() as transport:
        with pytest.raises(Broken, match=words):
            await echo(transport, target)
    assert [request[:4] for request in requests] == [b"POST"]


async def test_an_event_stream_that_breaks_is_broken_and_spares_its_siblings() -> None:
    async def cut(stream: ByteStream) -> None:
        await stream.receive()
        await stream.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n5\r\n: hi\n\r\n"
        )

    async with speaking(cut) as target, HttpTransport() as transport:
        with pytest.raises(Broken, match="closed before the answer was complete"):
            await echo(transport, target)


async def test_a_listener_that_swallows_packets_is_unreachable_after_the_connect_timeout() -> None:
    settings = HttpSettings(connect_timeout_seconds=0.2)
    async with swallowing() as port, HttpTransport(settings) as transport:
        words = rf"127\.0\.0\.1:{port}: connect timed out after 0\.2 s"
        for ask in (probe, echo):
            with pytest.raises(Unreachable, match=words):
                await ask(transport, at(port))


async def test_an_address_that_swallows_packets_does_not_hold_up_the_next_one() -> None:
    settings = HttpSettings(connect_timeout_seconds=600)
    async with (
        swallowing() as port,
        serve_http(Peer().app(), "::1", port),
        HttpTransport(settings) as transport,
    ):
        target = at(port, "127.0.0.1", "::1")
        await probe(transport, target)
        await echo(transport, target)
        (agent,) = transport._agents.values()
        assert agent.address == "::1"
        agent.address = "127.0.0.1"  # what worked once and is dead now
        await probe(transport, target)
        await echo(transport, target)


async def test_a_probe_asks_the_next_address_where_the_first_leads_to_somebody_else() -> None:
    async with (
        answering(lambda request: Response("hello", media_type="text/plain")) as other,
        serve_http(Peer("six").app(), "::1", other.port),
        HttpTransport() as transport,
    ):
        target = at(other.port, "127.0.0.1", "::1")
        with anyio.fail_after(20):
            assert (await transport.probe(target)).node == "six"
        await echo(transport, target)


@WAYS
@pytest.mark.parametrize(
    "address",
    ["x\0", "x\n", "é" * 70, "127.0.0.1:80", "256.1.1.1"],
)
async def test_what_is_no_address_is_unreachable_and_named(ask: Any, address: str) -> None:
    async with HttpTransport() as transport:
        with pytest.raises(Unreachable, match=rf"{address[0]}.*:8080: not an address") as caught:
            await ask(transport, at(8080, address))
        assert str(caught.value).isprintable()
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:70000: not an address"):
            await ask(transport, at(70000))


@pytest.mark.parametrize("node", ["\x1b[2J", "n\nn", "\u202e", "\ud800"])
async def test_an_identity_that_cannot_be_printed_is_a_bad_peer(node: str) -> None:
    document = {**Peer(node).identity.to_wire(), "padding": "x" * PAD_CHARS}
    body = json.dumps(document)
    async with (
        answering(lambda request: Response(body, media_type="application/json")) as target,
        HttpTransport() as transport,
    ):
        with pytest.raises(BadPeer, match="'node' is not one word that can be shown"):
            await probe(transport, target)


async def test_the_next_address_is_tried_and_remembered() -> None:
    peer = Peer()
    async with serve_http(peer.app()) as port, HttpTransport() as transport:
        target = at(port, "no-such-name.invalid", "::1", "127.0.0.1")
        await echo(transport, target)
        await probe(transport, target)
        (agent,) = transport._agents.values()
        assert agent.address == "127.0.0.1"
        with pytest.raises(Unreachable) as caught:
            await probe(transport, at(1, "no-such-name.invalid", "::1"))
        assert (
            str(caught.value)
            == "no-such-name.invalid:1: name not found; [::1]:1: connection refused"
        )


async def test_the_address_that_worked_comes_first_from_then_on() -> None:
    with closing(listen("127.0.0.1")) as reserved:
        port = reserved.getsockname()[1]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serve_http(Peer("six").app(), "::1", port))
        transport = await stack.enter_async_context(HttpTransport())
        target = at(port, "127.0.0.1", "::1")
        assert (await transport.probe(target)).node == "six"
        await stack.enter_async_context(serve_http(Peer("four").app(), "127.0.0.1", port))
        assert (await transport.probe(target)).node == "six"
        assert (await transport.probe(at(port, "127.0.0.1"))).node == "four"


async def test_connections_in_use_are_not_closed_for_idling() -> None:
    peer = Peer()
    async with (
        serve_http(peer.app()) as port,
        HttpTransport(HttpSettings(idle_seconds=0.1)) as transport,
        anyio.create_task_group() as tasks,
    ):
        other = Target(node="other", addresses=("127.0.0.1",), port=port)

        async def wait() -> None:
            arguments = {"name": "go"}
            result = await call_tool(transport, at(port), "wait", arguments, timeout_seconds=20)
            assert not result.is_error

        tasks.start_soon(wait)
        await until(lambda: peer.waiting == 1)
        await probe(transport, other)
        await until(lambda: other.key not in transport._agents)
        await call_tool(transport, at(port), "release", {"name": "go"}, timeout_seconds=20)


async def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serve_http(Peer().app()) as port, HttpTransport() as transport:
        await probe(transport, at(port))
        await echo(transport, at(port))


async def test_the_token_goes_with_calls_and_never_with_probes_or_into_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[tuple[str, str | None]] = []

    def answer(request: Request) -> Response:
        seen.append((request.url.path, request.headers.get("authorization")))
        return Response(status_code=401)

    file = tmp_path / "token"
    file.write_text("s3cret-1\n")
    authority = Authority(tmp_path)
    certificate, key = authority.issue("agent", "127.0.0.1")
    trust: dict[str, Any] = {"scheme": "https", "ca_file": str(authority.certificate)}
    async with (
        answering(answer, ssl_certfile=certificate, ssl_keyfile=key) as target,
        HttpTransport(HttpSettings(token_file=str(file), **trust)) as transport,
    ):
        with pytest.raises(Denied):
            await probe(transport, target)
        with pytest.raises(Denied) as caught:
            await echo(transport, target)
        file.write_text("s3cret-two\n")
        with pytest.raises(Denied):
            await echo(transport, target)
        file.unlink()
        with pytest.raises(Denied, match=r"no token to send: .*No such file"):
            await echo(transport, target)
    assert seen == [
        ("/version", None),
        ("/mcp", "Bearer s3cret-1"),
        ("/mcp", "Bearer s3cret-two"),
    ]
    given = HttpSettings(token="s3cret-1", **trust)
    words = [repr(caught.value), repr(transport), repr(given), repr(HttpTransport(given))]
    assert "s3cret" not in " ".join(words) + caplog.text


async def test_one_failed_call_spares_the_others_to_the_same_agent() -> None:
    peer = Peer()
    async with serve_http(peer.app()) as port, HttpTransport() as transport:
        answers: list[str] = []

        async def wait() -> None:
            result = await call_tool(
                transport, at(port), "wait", {"name": "go"}, timeout_seconds=20
            )
            answers.append(str(result.is_error))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            with anyio.fail_after(20):
                while not peer.waiting:
                    await anyio.sleep(0.005)
            with pytest.raises(TimedOut):
                await call_tool(transport, at(port), "wait", {"name": "no"}, timeout_seconds=0.1)
            with pytest.raises(BadPeer):
                await call_tool(transport, at(port), "nope", {}, timeout_seconds=20)
            await call_tool(transport, at(port), "release", {"name": "go"}, timeout_seconds=20)
        assert answers == ["False"]


async def test_connections_are_kept_between_calls_and_closed_when_unused() -> None:
    opened = 0
    closed = anyio.Event()
    answer = json.dumps({**Peer().identity.to_wire(), "padding": "x" * PAD_CHARS}).encode()

    async def keep(stream: ByteStream) -> None:
        nonlocal opened
        opened += 1
        async for _ in stream:
            head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(answer)}\r\n\r\n"
            await stream.send(head.encode() + answer)
        closed.set()

    async with (
        speaking(keep) as target,
        HttpTransport(HttpSettings(idle_seconds=0.3)) as transport,
    ):
        for _ in range(3):
            await probe(transport, target)
        assert opened == 1
        with anyio.fail_after(20):
            await closed.wait()
        await probe(transport, target)
        assert opened == 2


async def test_plain_http_reads_no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> ssl.SSLContext:
        raise AssertionError("a TLS context was built")

    monkeypatch.setattr(ssl, "create_default_context", refuse)
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", refuse)
    async with serve_http(Peer().app()) as port, HttpTransport() as transport:
        await probe(transport, at(port))


async def test_agents_share_one_tls_context(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("agent", "127.0.0.1")
    settings = HttpSettings(scheme="https", ca_file=str(authority.certificate))
    async with (
        serve_http(Peer().app(), ssl_certfile=certificate, ssl_keyfile=key) as port,
        HttpTransport(settings) as trusting,
    ):
        for number in range(2):
            target = Target(node=f"n{number}", addresses=("127.0.0.1",), port=port)
            await probe(trusting, target)
            await echo(trusting, target)
        pools = [agent.pool._pool._ssl_context for agent in trusting._agents.values()]
        assert pools[0] is pools[1]


async def test_a_missing_authority_is_told_on_entering() -> None:
    transport = HttpTransport(HttpSettings(scheme="https", ca_file="/no/ca.pem"))
    with anyio.CancelScope():  # which complains if the one inside is not left
        for _ in range(2):
            with pytest.raises(ValueError, match=r"ca_file '/no/ca\.pem': .*No such file"):
                async with transport:
                    pass


def test_connections_are_given_up_before_the_server_does() -> None:
    assert pool.KEEPALIVE_SECONDS < 75  # uvicorn's timeout_keep_alive in mcp_gpu

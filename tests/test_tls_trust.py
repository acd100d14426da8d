"""TLS as a gateway speaks it: whom it believes, what it calls a failure, and who gets the token."""

import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from support.cluster import PROGRAM, cluster, trusting
from support.kubeapi.credentials import Authority
from support.peer import Peer, serve_http, speaking, swallowing, text_of, until
from transports import http as http_module
from transports.base import Target
from transports.errors import BadPeer, Symptom, TransportError, Unreachable
from transports.http import HttpSettings, HttpTransport
from transports.session import call_tool

NAME = "agents.gpu.svc"
TOKEN = "s3cret-t0ken"

Impostor = Callable[[Path], tuple[Path, Path] | None]
"""Makes a certificate and its key, or none for a server that speaks no TLS."""


def settings(authority: Authority, **options: Any) -> HttpSettings:
    trusted = {"scheme": "https", "ca_file": str(authority.certificate), "server_name": NAME}
    return HttpSettings(**(trusted | options))


def at(port: int, *hosts: str) -> Target:
    return Target(node="peer-1", addresses=hosts or ("127.0.0.1",), port=port)


async def probe(transport: HttpTransport, target: Target) -> None:
    with anyio.fail_after(20):
        await transport.probe(target)


async def echo(transport: HttpTransport, target: Target) -> None:
    result = await call_tool(transport, target, "echo", {"text": "x"}, timeout_seconds=20)
    assert text_of(result) == "x"


WAYS: Any = pytest.mark.parametrize("ask", [probe, echo])

NARROW_BYTES = 500
"""Less than a server's first words in TLS."""

Way = Callable[[HttpTransport, Target], Awaitable[None]]


@asynccontextmanager
async def taking_everything(
    certificate: tuple[Path, Path] | None, heard: list[bytes]
) -> AsyncIterator[Target]:
    """A server that keeps whatever it is sent and answers nothing: after a handshake of TLS, or
    at once."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate is not None:
        context.load_cert_chain(*certificate)

    async def take(stream: ByteStream) -> None:
        try:
            if certificate is not None:
                stream = await TLSStream.wrap(stream, ssl_context=context, server_side=True)
            else:
                heard.append(await stream.receive())
                await stream.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            while True:
                heard.append(await stream.receive())
        except (ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream):
            pass  # they did not believe us

    async with speaking(take) as target:
        yield target


IMPOSTORS: dict[str, tuple[Impostor, Symptom, str]] = {
    "signed by itself": (
        lambda folder: Authority(folder, NAME).alone(NAME, "127.0.0.1"),
        "tls_untrusted",
        "the certificate is not trusted: self-signed certificate",
    ),
    "another authority": (
        lambda folder: Authority(folder, "other").issue("stranger", NAME, "127.0.0.1"),
        "tls_untrusted",
        "the certificate is not trusted: unable to get local issuer certificate",
    ),
    "no TLS": (lambda folder: None, "tls_scheme", "what answers speaks no TLS"),
}


@WAYS
@pytest.mark.parametrize("impostor", IMPOSTORS)
async def test_an_impostor_gets_no_byte_of_the_token(
    impostor: str, ask: Way, tmp_path: Path
) -> None:
    make, symptom, words = IMPOSTORS[impostor]
    authority = Authority(tmp_path)
    (tmp_path / "theirs").mkdir()
    await refused(authority, make(tmp_path / "theirs"), ask, symptom, words)


@WAYS
@pytest.mark.parametrize(
    ("hosts", "days", "symptom", "words"),
    [
        (("other.gpu.svc",), 1.0, "tls_name", f"the certificate is not for {NAME}"),
        # The address that is called does not count where a name is asked for.
        (("127.0.0.1",), 1.0, "tls_name", f"the certificate is not for {NAME}"),
        ((NAME,), -1.0, "tls_expired", "certificate has expired"),
    ],
)
async def test_a_certificate_of_the_right_authority_has_to_fit(
    hosts: tuple[str, ...], days: float, symptom: Symptom, words: str, ask: Way, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    await refused(authority, authority.issue("agent", *hosts, days=days), ask, symptom, words)


async def refused(
    authority: Authority,
    certificate: tuple[Path, Path] | None,
    ask: Way,
    symptom: Symptom,
    words: str,
) -> None:
    """Nobody is believed who serves with that certificate, and he gets no part of the token."""
    heard: list[bytes] = []
    async with (
        taking_everything(certificate, heard) as target,
        HttpTransport(settings(authority, token=TOKEN)) as transport,
    ):
        with pytest.raises(BadPeer) as caught:
            await ask(transport, target)
    assert caught.value.symptom == symptom
    assert caught.value.message == f"127.0.0.1:{target.port}: TLS: {words}"
    if certificate is not None:
        assert heard == []
    else:
        assert b"".join(heard)[:1] == b"\x16"  # a ClientHello
        assert TOKEN.encode() not in b"".join(heard)
        assert b"uthorization" not in b"".join(heard)


async def test_the_name_is_checked_and_sent_where_an_address_is_called(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("agent", NAME)
    asked: list[str | None] = []
    async with https_peer(certificate, key, asked) as port:
        async with HttpTransport(settings(authority)) as transport:
            await probe(transport, at(port))
            await echo(transport, at(port))
            await probe(transport, at(port, "::1", "127.0.0.1"))
        assert set(asked) == {NAME}
        # Who is called by name has to have that name, whatever else is set.
        async with HttpTransport(settings(authority)) as transport:
            with pytest.raises(BadPeer, match="the certificate is not for localhost"):
                await probe(transport, at(port, "localhost"))
        assert asked[-1] == "localhost"
        # And without a name, the address.
        async with HttpTransport(settings(authority, server_name="")) as transport:
            with pytest.raises(BadPeer, match=r"the certificate is not for 127\.0\.0\.1"):
                await probe(transport, at(port))
        assert asked[-1] is None


@pytest.mark.parametrize("named", ["*.agents.gpu.svc", "pod-1.agents.gpu.svc"])
async def test_a_name_called_is_checked_with_wildcards(named: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("agent", named)
    async with https_peer(certificate, key, []) as port:
        chosen = settings(authority, server_name="pod-1.agents.gpu.svc")
        async with HttpTransport(chosen) as transport:
            await echo(transport, at(port))


@asynccontextmanager
async def https_peer(
    certificate: Path, key: Path, asked: list[str | None], peer: Peer | None = None
) -> AsyncIterator[int]:
    """A peer that notes the names that it was called by."""

    def factory(config: Any, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        context = default()
        context.sni_callback = lambda connection, name, _: asked.append(name)
        return context

    async with serve_http(
        (peer or Peer()).app(),
        ssl_certfile=certificate,
        ssl_keyfile=key,
        ssl_context_factory=factory,
    ) as port:
        yield port


async def test_a_handshake_that_is_never_answered_is_told_as_such(tmp_path: Path) -> None:
    async def listen(stream: ByteStream) -> None:
        async for _ in stream:
            pass

    chosen = settings(Authority(tmp_path), connect_timeout_seconds=0.2)
    async with HttpTransport(chosen) as transport:
        async with speaking(listen) as target:
            with pytest.raises(Unreachable) as caught:
                await probe(transport, target)
        words = f"127.0.0.1:{target.port}: no answer in the TLS handshake within 0.2 s"
        assert (caught.value.message, caught.value.symptom) == (words, "silent")
        async with swallowing() as port:
            with pytest.raises(Unreachable, match="connect timed out") as other:
                await probe(transport, at(port))
            assert other.value.symptom == "connect_timeout"


async def test_a_handshake_too_large_for_the_path_is_told_from_a_dead_server(
    tmp_path: Path,
) -> None:
    """As where a link has a smaller MTU than pods believe, and nobody tells them."""

    def narrow(port: int) -> Callable[[ByteStream], Awaitable[None]]:
        async def carry(taken: ByteStream, given: ByteStream) -> None:
            async for chunk in taken:
                if len(chunk) <= NARROW_BYTES:
                    await given.send(chunk)
            await given.send_eof()

        async def relay(near: ByteStream) -> None:
            async with await anyio.connect_tcp("127.0.0.1", port) as far:
                with suppress(anyio.BrokenResourceError):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(carry, near, far)
                        await carry(far, near)
                        tasks.cancel_scope.cancel()

        return relay

    authority = Authority(tmp_path)
    chosen = settings(authority, connect_timeout_seconds=1.0)
    async with (
        cluster(tmp_path, FLEET, authority=authority) as running,
        speaking(narrow(running.agents["a"].port)) as target,
        HttpTransport(chosen) as transport,
    ):
        with pytest.raises(Unreachable, match="a few bytes in the clear are answered") as caught:
            await probe(transport, target)
    assert caught.value.symptom == "large_lost"


async def test_a_connection_cut_in_the_handshake_is_told_as_such(tmp_path: Path) -> None:
    async def cut(stream: ByteStream) -> None:
        await stream.receive()

    async with speaking(cut) as target, HttpTransport(settings(Authority(tmp_path))) as transport:
        with pytest.raises(BadPeer, match="TLS: closed in the handshake") as caught:
            await probe(transport, target)
    assert caught.value.symptom == "tls"


async def test_plain_http_to_an_agent_that_serves_https_is_told_as_such(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with cluster(tmp_path, FLEET, authority=authority) as running, HttpTransport() as plain:
        with pytest.raises(BadPeer, match="This port speaks HTTPS") as caught:
            await probe(plain, at(running.agents["a"].port))
    assert caught.value.symptom == "tls_scheme"


async def test_new_authorities_are_trusted_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And connections that the old ones vouched for are closed, once their calls are answered."""
    monkeypatch.setattr(http_module, "CA_SECONDS", 0.01)
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    trusted = anyio.Path(tmp_path / "trusted.pem")
    await trusted.write_bytes(old.certificate.read_bytes())
    peer = Peer()
    chosen = settings(old, ca_file=str(trusted))
    async with (
        https_peer(*old.issue("one", NAME), [], peer) as first,
        https_peer(*new.issue("two", NAME), []) as second,
        HttpTransport(chosen) as transport,
        anyio.create_task_group() as tasks,
    ):
        for port, works in ((first, True), (second, False)):
            assert await believes(transport, port) is works
        answered = anyio.Event()

        async def wait() -> None:
            arguments = {"name": "go"}
            await call_tool(transport, node_at(first), "wait", arguments, timeout_seconds=20)
            answered.set()

        tasks.start_soon(wait)
        await until(lambda: peer.waiting == 1)
        context = transport._trust.context
        await trusted.write_text("no certificate")
        await until(lambda: "the authorities trusted before stay" in caplog.text)
        assert transport._trust.context is context
        await trusted.write_bytes(new.certificate.read_bytes())
        await until(lambda: transport._trust.context is not context)
        assert await believes(transport, second)
        assert not await believes(transport, first)
        assert len(transport._outdated) == 1
        async with HttpTransport(settings(old)) as other:
            await call_tool(other, at(first), "release", {"name": "go"}, timeout_seconds=20)
        with anyio.fail_after(20):
            await answered.wait()
        await until(lambda: not transport._outdated)
    assert caplog.text.count("the authorities trusted before stay") == 1
    assert [r for r in caplog.records if r.levelno >= logging.ERROR and r.exc_info] == []


def node_at(port: int) -> Target:
    return Target(node=str(port), addresses=("127.0.0.1",), port=port)


async def believes(transport: HttpTransport, port: int) -> bool:
    try:
        await transport.probe(node_at(port))
    except TransportError as error:
        return error.symptom != "tls_untrusted"
    return True


async def test_without_a_file_the_systems_authorities_count(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("agent", "127.0.0.1")
    async with (
        https_peer(certificate, key, []) as port,
        HttpTransport(HttpSettings(scheme="https")) as transport,
    ):
        with pytest.raises(BadPeer, match="the certificate is not trusted"):
            await probe(transport, at(port))


FLEET = """
[[nodes]]
name = "a"
profile = "t4"
"""


async def test_a_gateway_over_https_and_the_commands_that_ask_it(tmp_path: Path) -> None:
    """Each end has a certificate, and a token of its own."""
    authority = Authority(tmp_path)
    for name in ("agent", "client"):
        (tmp_path / name).write_text(f"for-{name}s")
    certificate, key = authority.issue("gateway", "127.0.0.1")
    served = ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    served += ["--token-file", str(tmp_path / "client"), "--agent-token-file"]
    served += [str(tmp_path / "agent")]
    agent_flags = ["--token-file", str(tmp_path / "agent")]
    flags = ["--http-host", "127.0.0.1", *served]
    shown = ["--token-file", str(tmp_path / "client"), "--ca-file", str(authority.certificate)]
    async with cluster(
        tmp_path,
        FLEET,
        *flags,
        agent_flags=agent_flags,
        authority=authority,
        gateway_authority=authority,
    ) as here:
        url = f"{here.gateway.url}/mcp"
        assert url.startswith("https://")
        for command in ("status", "health", "xid", "doctor"):
            code, out, err = await run(command, "--url", url, *shown, "--json")
            assert (code, err) == (0, ""), command
        _, out, _ = await run("doctor", "--url", url, *shown)
        assert "1 over http" in out
        code, _, err = await run("status", "--url", url, *shown[:2])
        assert code == 2
        assert "TLS: the certificate is not trusted" in err
        agents = ["--agents", f"a=127.0.0.1:{here.agents['a'].port}", *trusting(authority)]
        agents += ["--transports", "http"]
        direct = [*agents, "--agent-token-file", str(tmp_path / "agent")]
        assert (await run("status", *direct))[0] == 0
        wrong = [*direct, "--agent-server-name", "other.gpu.svc"]
        code, out, _ = await run("doctor", *wrong)
        assert code == 1
        assert "MCP_GPU_AGENT_SERVER_NAME" in out
        assert "the certificate is not for other.gpu.svc" in out
        for log in (here.gateway.log, here.agents["a"].log):
            assert "for-" not in await anyio.Path(log).read_text()


async def run(*arguments: str) -> tuple[int, str, str]:
    with anyio.fail_after(90):
        ended = await anyio.run_process([*PROGRAM, *arguments], check=False)
    return ended.returncode, ended.stdout.decode(), ended.stderr.decode()


async def test_a_token_leaves_this_machine_over_https_alone(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    shown = ["--token-file", str(tmp_path / "token")]
    code, _, err = await run("status", "--url", "http://192.0.2.1:8080/mcp", *shown)
    assert code == 2
    assert "a token goes over https, or to this machine" in err
    assert TOKEN not in err


async def test_a_token_reaches_this_machine_over_http(tmp_path: Path) -> None:
    """As through `kubectl port-forward`, whose way is TLS of its own."""
    (tmp_path / "token").write_text(TOKEN)
    heard: list[bytes] = []

    async def hear(stream: ByteStream) -> None:
        heard.append(await stream.receive())

    async with speaking(hear) as target:
        code, _, _ = await run(
            "status",
            "--url",
            f"http://localhost:{target.port}/mcp",
            "--token-file",
            str(tmp_path / "token"),
        )
    assert code == 2
    assert f"Bearer {TOKEN}".encode() in b"".join(heard)

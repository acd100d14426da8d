"""TLS served: handshakes, bounds, and certificates that change and end while it runs."""

import _ssl
import ctypes
import json
import logging
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream
from cryptography import x509
from cryptography.hazmat.primitives import serialization

import mcp_gpu.serving.certificate
import mcp_gpu.serving.endpoint
import mcp_gpu.serving.protocol
import mcp_gpu.serving.tls
from mcp_gpu.serving.certificate import Certificate
from mcp_gpu.serving.endpoint import HttpEndpoint, ListenError, TlsFiles
from mcp_gpu.serving.server import Listening, serve
from mcp_gpu.settings.agent import AgentSettings
from mcp_gpu.settings.base import SettingError
from support.cluster import SERVER_NAME, Running, served_with, start_all
from support.demo_server import Gate, registry
from support.kubeapi.credentials import Authority
from support.ports import free_ports
from support.wire import PATIENCE_SECONDS, call, end_of, headers, request, serving

EVENTS = "application/json, text/event-stream"
JSON = {"Content-Type": "application/json"}
HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
DAY = 86_400.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def files(authority: Authority) -> TlsFiles:
    return pair(authority, "agent")


@pytest.fixture(autouse=True)
def nothing_unexpected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever clients do, no traceback is logged, by us or by the event loop."""
    yield
    assert [record for record in caplog.records if record.exc_info] == []
    assert "Traceback" not in caplog.text


def pair(authority: Authority, name: str, **options: Any) -> TlsFiles:
    certificate, key = authority.issue(name, "localhost", "127.0.0.1", **options)
    return TlsFiles(cert_file=certificate, key_file=key)


def trust(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.certificate)


@asynccontextmanager
async def https(
    authority: Authority, files: TlsFiles, served: Any = None, **options: Any
) -> AsyncIterator[tuple[str, httpx.AsyncClient, Listening]]:
    """A server, and a client that trusts it."""
    endpoint = HttpEndpoint(port=0, tls=files)
    async with (
        serving(served or registry(), http=endpoint, **options) as listening,
        httpx.AsyncClient(
            verify=trust(authority), trust_env=False, timeout=PATIENCE_SECONDS
        ) as client,
    ):
        yield f"https://127.0.0.1:{listening.http[0][1]}", client, listening


async def secured(listening: Listening, context: ssl.SSLContext) -> TLSStream:
    stream = await anyio.connect_tcp(*listening.http[0])
    try:
        return await TLSStream.wrap(
            stream, ssl_context=context, hostname="localhost", standard_compatible=False
        )
    except BaseException:
        await stream.aclose()
        raise


def serial(stream: TLSStream) -> int:
    der = stream.extra(anyio.streams.tls.TLSAttribute.peer_certificate_binary)
    return x509.load_der_x509_certificate(der).serial_number


async def serial_now(listening: Listening, context: ssl.SSLContext) -> int:
    async with await secured(listening, context) as stream:
        return serial(stream)


def serial_in(file: Path) -> int:
    return x509.load_pem_x509_certificate(file.read_bytes()).serial_number


async def test_the_pages_and_mcp_are_served_and_the_scheme_is_told(
    authority: Authority, files: TlsFiles
) -> None:
    async with https(authority, files) as (url, client, listening):
        assert str(listening).startswith("https://127.0.0.1:")
        assert (await client.get(f"{url}/healthz")).json() == {"status": "healthy"}
        for accept in ("application/json", EVENTS):
            message = call("echo", text="hi")
            answer = await client.post(f"{url}/mcp", json=message, headers=headers(message, accept))
            assert answer.json()["result"]["content"][0]["text"] == "hi"


@pytest.mark.parametrize(
    ("version", "served"),
    [
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_tls_1_2_and_newer_are_spoken(
    version: ssl.TLSVersion, served: bool, authority: Authority, files: TlsFiles
) -> None:
    context = trust(authority)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    async with https(authority, files) as (_, _, listening):
        if served:
            async with await secured(listening, context) as stream:
                await stream.send(HEAD + b"Connection: close\r\n\r\n")
                assert b" 200 " in await end_of(stream)
        else:
            with pytest.raises(ssl.SSLError):
                await secured(listening, context)


async def test_answers_and_bodies_of_any_size_pass(authority: Authority, files: TlsFiles) -> None:
    """More than any buffer holds, both ways, to a client that reads late."""
    served = registry(answer_bytes=30_000_000)
    message = call("large", chars=9_000_000)
    async with https(authority, files, served) as (url, client, _):
        async with client.stream("POST", f"{url}/mcp", json=message) as answer:
            body = await answer.aread()
        assert b"x" * 9_000_000 in body
        text = "y" * 900_000
        answer = await client.post(f"{url}/mcp", json=call("echo", text=text))
        assert text in answer.text


async def test_a_request_that_trickles_in_byte_by_byte_is_answered(
    authority: Authority, files: TlsFiles
) -> None:
    async with (
        https(authority, files) as (_, _, listening),
        await secured(listening, trust(authority)) as stream,
    ):
        for byte in HEAD + b"Connection: close\r\n\r\n":
            await stream.send(bytes([byte]))
        assert b" 200 " in await end_of(stream)


async def test_a_request_in_the_clear_learns_what_is_spoken_here(
    authority: Authority, files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with https(authority, files) as (url, client, listening):
        quiet = len(caplog.records)
        for _ in range(20):
            async with await anyio.connect_tcp(*listening.http[0]) as stream:
                await stream.send(HEAD + b"\r\n")
                assert await end_of(stream) == mcp_gpu.serving.tls.SPOKE_HTTP
        for noise in (b"\x00" * 99, b"SSH-2.0-x\r\n", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"):
            async with await anyio.connect_tcp(*listening.http[0]) as stream:
                await stream.send(noise)
                await end_of(stream)
        assert (await client.get(f"{url}/healthz")).status_code == 200
        told = caplog.records[quiet:]
    assert [each for each in told if each.name.startswith(("mcp_gpu", "asyncio", "uvicorn"))] == []


@pytest.mark.parametrize(
    ("bound", "begun"),
    [
        ("tls.HANDSHAKE_SECONDS", b""),
        ("tls.HANDSHAKE_SECONDS", b"\x16\x03\x01\x02\x00\x01"),
        ("protocol.HEADER_SECONDS", b""),
        ("protocol.HEADER_SECONDS", HEAD),
    ],
)
async def test_what_does_not_come_is_not_waited_for(
    bound: str,
    begun: bytes,
    authority: Authority,
    files: TlsFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"mcp_gpu.serving.{bound}", 0.05)
    async with https(authority, files) as (_, _, listening):
        if bound.startswith("tls"):
            opened: ByteStream = await anyio.connect_tcp(*listening.http[0])
        else:
            opened = await secured(listening, trust(authority))
        async with opened as stream:
            if begun:
                await stream.send(begun)
            assert await end_of(stream) == b""


async def test_idle_sockets_take_nobody_his_place(
    authority: Authority, files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """More than may await TLS at once: the oldest give way, and who means it gets through."""
    many = mcp_gpu.serving.tls.HANDSHAKES + 100
    async with https(authority, files) as (url, client, listening):
        with ExitStack() as idle:
            held = [
                idle.enter_context(closing(socket.create_connection(listening.http[0])))
                for _ in range(many)
            ]
            assert (await client.get(f"{url}/healthz")).status_code == 200
            for first in held[:100]:
                first.settimeout(PATIENCE_SECONDS)
                assert await anyio.to_thread.run_sync(_end, first) == b""
            assert (await client.get(f"{url}/healthz")).status_code == 200
    assert caplog.text.count("cutting silent connections") == 1


def _end(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1)
    except ConnectionResetError:
        return b""


async def test_connections_over_the_limit_are_turned_away(
    authority: Authority, files: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the others are all in calls, so that none can make room."""
    monkeypatch.setattr(mcp_gpu.serving.protocol, "CONNECTIONS", 1)
    gate = Gate()
    answers: list[httpx.Response] = []
    async with (
        https(authority, files, registry(gate)) as (url, client, listening),
        anyio.create_task_group() as tasks,
    ):

        async def ask() -> None:
            answers.append(await client.post(f"{url}/mcp", json=call("wait")))

        tasks.start_soon(ask)
        await gate.until_entered(1)
        async with await secured(listening, trust(authority)) as second:
            assert b" 503 " in await end_of(second)
        gate.open.set()
    assert answers[0].json()["result"]["content"][0]["text"] == "waited"


GOODBYES = {
    "idle": b"",
    "in a head": b"GET /heal",
    "with a request": HEAD + b"\r\n",
    "in a body": b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{",
}


@pytest.fixture(scope="module")
async def program(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A process of its own: one that turns for ever would take the test with it."""
    folder = tmp_path_factory.mktemp("program")
    authority = Authority(folder)
    (port,) = free_ports(1)
    arguments = ["agent", "--simulate", "demo", "--node-name", "t4-a", "--http-port", str(port)]
    arguments += ["--socket", str(folder / "s"), *served_with(authority)]
    running = Running(arguments, port, folder / "log", authority=authority)
    async with AsyncExitStack() as stack:
        await start_all(stack, [running])
        yield running


@pytest.mark.parametrize("hangs_up", [False, True])
@pytest.mark.parametrize("sent", GOODBYES.values(), ids=GOODBYES)
async def test_a_goodbye_ends_the_connection_and_nothing_else(
    program: Running, sent: bytes, hangs_up: bool
) -> None:
    arriving, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    assert isinstance(program.trust, ssl.SSLContext)
    tls = program.trust.wrap_bio(arriving, leaving, server_hostname=SERVER_NAME)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with await anyio.connect_tcp("127.0.0.1", program.port) as stream:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await stream.send(leaving.read())
                    arriving.write(await stream.receive())
            if sent:
                tls.write(sent)
            with suppress(ssl.SSLWantReadError):
                tls.unwrap()
            await stream.send(leaving.read())
            if hangs_up:
                await stream.send_eof()
            await end_of(stream)
        async with httpx.AsyncClient(
            verify=program.trust, trust_env=False, timeout=PATIENCE_SECONDS
        ) as client:
            assert (await client.get(f"{program.url}/healthz")).status_code == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl, which says goodbye")
async def test_curl_says_goodbye_and_is_not_the_last_client(program: Running) -> None:
    assert program.authority is not None
    curl = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "20"]
    curl += ["--cacert", str(program.authority.certificate), f"{program.url}/healthz"]
    for _ in range(3):
        done = await anyio.run_process(curl)
        assert json.loads(done.stdout) == {"status": "healthy"}


class Updater:
    """A client that asks for new keys, which Python's ssl cannot, and reads no answer."""

    def __init__(self, raw: socket.socket) -> None:
        # The OpenSSL that Python's own ssl is made with.
        self._library = ctypes.CDLL(_ssl.__file__)
        for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
            getattr(self._library, name).restype = ctypes.c_void_p
        method = ctypes.c_void_p(self._library.TLS_client_method())
        context = ctypes.c_void_p(self._library.SSL_CTX_new(method))
        self._tls = ctypes.c_void_p(self._library.SSL_new(context))
        self._library.SSL_set_fd(self._tls, raw.fileno())
        assert self._library.SSL_connect(self._tls) == 1

    def say(self, data: bytes) -> None:
        assert self._library.SSL_write(self._tls, data, len(data)) == len(data)

    def ask(self, count: int) -> int:
        """How often it could be asked before the server had enough."""
        for number in range(count):
            if self._library.SSL_key_update(self._tls, 1) != 1:
                return number
            if self._library.SSL_do_handshake(self._tls) != 1:
                return number
        return count


UPDATES = 20_000
"""Answers to so many fill all the buffers on the way, and several times what may be unread."""


async def test_key_updates_do_not_pile_up_for_a_client_that_reads_nothing(
    authority: Authority, files: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(ctypes.CDLL(_ssl.__file__), "SSL_key_update"):
        pytest.skip("this Python hides the OpenSSL that it was made with")
    monkeypatch.setattr(mcp_gpu.serving.endpoint, "UNSENT_BYTES", 4096)
    async with https(authority, files) as (url, client, listening):
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(listening.http[0])
            updater = await anyio.to_thread.run_sync(Updater, raw)
            await anyio.to_thread.run_sync(updater.say, HEAD + b"\r\n")
            asked = await anyio.to_thread.run_sync(updater.ask, UPDATES)
        assert asked < UPDATES
        assert (await client.get(f"{url}/healthz")).status_code == 200


async def test_a_client_that_hangs_up_ends_its_call(authority: Authority, files: TlsFiles) -> None:
    gate = Gate()
    async with https(authority, files, registry(gate)) as (url, client, _):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.post(f"{url}/mcp", json=call("wait")))
            await gate.until_entered(1)
            tasks.cancel_scope.cancel()
        await gate.until_cancelled(1)


async def test_a_stop_answers_what_is_in_flight_and_waits_for_no_idle_connection(
    authority: Authority, files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    gate, stop = Gate(), anyio.Event()
    answers: list[httpx.Response] = []
    listen = request("subscriptions/listen", notifications={"toolsListChanged": True})
    async with https(authority, files, registry(gate), stop=stop, drain_seconds=60) as (
        url,
        client,
        listening,
    ):

        async def ask() -> None:
            answers.append(await client.post(f"{url}/mcp", json=call("wait")))

        # One that awaits TLS, one that is kept, one that listens and a call.
        async with (
            await anyio.connect_tcp(*listening.http[0]),
            await secured(listening, trust(authority)) as kept,
            client.stream(
                "POST", f"{url}/mcp", json=listen, headers=headers(listen, EVENTS)
            ) as events,
            anyio.create_task_group() as tasks,
        ):
            await kept.send(HEAD + b"\r\n")
            answer = b""
            while b"healthy" not in answer:
                answer += await kept.receive()
            tasks.start_soon(ask)
            await gate.until_entered(1)
            stop.set()
            assert await end_of(kept) == b""
            assert '"complete"' in "".join([line async for line in events.aiter_lines()])
            gate.open.set()
    assert answers[0].json()["result"]["content"][0]["text"] == "waited"
    assert "gave up" not in caplog.text


# Certificates that change.


@pytest.fixture
def volume(tmp_path: Path, authority: Authority) -> tuple[TlsFiles, list[Path]]:
    """A Secret as Kubernetes mounts it: links by way of one that is swapped; and two contents."""
    folders = [tmp_path / "..2026_1", tmp_path / "..2026_2"]
    for folder in folders:
        folder.mkdir()
        made = pair(authority, folder.name)
        made.cert_file.rename(folder / "tls.crt")
        made.key_file.rename(folder / "tls.key")
    (tmp_path / "..data").symlink_to(folders[0].name)
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    return TlsFiles(cert_file=tmp_path / "tls.crt", key_file=tmp_path / "tls.key"), folders


async def test_a_new_certificate_counts_for_new_connections(
    authority: Authority,
    volume: tuple[TlsFiles, list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mcp_gpu.serving.certificate, "CHECK_SECONDS", 0.01)
    files, (old, new) = volume
    context = trust(authority)
    async with (
        https(authority, files) as (_, _, listening),
        await secured(listening, context) as kept,
    ):
        assert serial(kept) == serial_in(old / "tls.crt")
        (tmp_path / "..swap").symlink_to(new.name)
        (tmp_path / "..swap").rename(tmp_path / "..data")
        with anyio.fail_after(PATIENCE_SECONDS):
            while await serial_now(listening, context) != serial_in(new / "tls.crt"):
                await anyio.sleep(0.01)
        await kept.send(HEAD + b"\r\n")
        assert b" 200 " in await kept.receive()


async def test_a_pair_that_does_not_fit_changes_nothing_and_is_told_once(
    authority: Authority, files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    certificate = Certificate(files)
    before = certificate.context
    whole = files.cert_file.read_bytes()
    other = pair(authority, "other")
    for content, words in (
        (whole[: len(whole) // 2], "holds no certificate in PEM"),
        (other.cert_file.read_bytes(), "is not the key of the certificate"),
    ):
        caplog.clear()
        files.cert_file.write_bytes(content)
        for _ in range(3):
            certificate.check()
        assert certificate.context is before
        told = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
        (line,) = told
        assert words in line
        assert line.startswith("the certificate in use stays: ")
    caplog.clear()
    files.key_file.write_bytes(other.key_file.read_bytes())
    certificate.check()
    assert certificate.context is not before
    assert "serving the new certificate" in caplog.text


def test_the_end_of_a_certificate_is_told_before_and_after(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    files = pair(authority, "agent", days=40)
    end = x509.load_pem_x509_certificate(files.cert_file.read_bytes()).not_valid_after_utc
    now = end.timestamp() - 31 * DAY
    certificate = Certificate(files, lambda: now)

    def told() -> list[tuple[str, str]]:
        caplog.clear()
        for _ in range(3):
            certificate.check()
        return [(record.levelname, record.getMessage()) for record in caplog.records]

    assert told() == []
    now = end.timestamp() - 29 * DAY
    ((level, words),) = told()
    assert level == "WARNING"
    assert f"ends on {end:%Y-%m-%d %H:%M} UTC" in words
    now += DAY
    assert [level for level, _ in told()] == ["WARNING"]  # once a day
    now = end.timestamp() + 1
    ((level, words),) = told()
    assert level == "ERROR"
    assert "ended on" in words
    assert told() == []
    caplog.set_level(logging.INFO)
    files.cert_file.write_bytes(pair(authority, "next", days=90).cert_file.read_bytes())
    files.key_file.write_bytes((files.key_file.parent / "next.key").read_bytes())
    assert [level for level, _ in told()] == ["INFO"]


@pytest.mark.parametrize("days", [0.5, 400, 20_000, 200_000])
def test_the_first_of_a_chain_to_end_counts(
    days: float, authority: Authority, tmp_path: Path
) -> None:
    """Past 2049 the date is written in another way."""
    longer, sooner = pair(authority, "a", days=days + 1), pair(authority, "b", days=days)
    chain = longer.cert_file.read_text() + sooner.cert_file.read_text()
    longer.cert_file.write_text(chain)
    ends = x509.load_pem_x509_certificate(sooner.cert_file.read_bytes()).not_valid_after_utc
    assert Certificate(longer)._ends_at == ends.timestamp()


# What is wrong at the start.


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("cert_file", None, "--tls-cert-file: {}: No such file or directory"),
        ("key_file", None, "--tls-key-file: {}: No such file or directory"),
        ("cert_file", b"", "--tls-cert-file: {} holds no certificate in PEM"),
        ("cert_file", b"\xff\x00", "--tls-cert-file: {} holds no certificate in PEM"),
        (
            "cert_file",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "--tls-cert-file: {} holds a certificate that cannot be read",
        ),
        ("key_file", b"secret", "--tls-key-file: {} holds no private key in PEM"),
    ],
)
async def test_files_that_will_not_do_are_one_clear_error(
    file: str, content: bytes | None, words: str, files: TlsFiles
) -> None:
    path: Path = getattr(files, file)
    if content is None:
        await anyio.Path(path).unlink()
    else:
        await anyio.Path(path).write_bytes(content)
    with pytest.raises(ListenError) as caught:
        await serve(registry(), http=HttpEndpoint(port=0, tls=files), signals=False)
    assert str(caught.value) == words.format(path)


async def test_a_key_of_another_certificate_is_one_clear_error(authority: Authority) -> None:
    one, other = pair(authority, "one"), pair(authority, "other")
    mixed = TlsFiles(cert_file=one.cert_file, key_file=other.key_file)
    with pytest.raises(ListenError, match=r"other\.key is not the key of .*one\.crt"):
        await serve(registry(), http=HttpEndpoint(port=0, tls=mixed), signals=False)


async def test_an_encrypted_key_asks_nobody_for_its_password(files: TlsFiles) -> None:
    key = serialization.load_pem_private_key(files.key_file.read_bytes(), None)
    files.key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )
    with pytest.raises(ListenError, match=r"--tls-key-file: .*it is encrypted"):
        await serve(registry(), http=HttpEndpoint(port=0, tls=files), signals=False)


@pytest.mark.parametrize("given", ["tls_cert_file", "tls_key_file"])
def test_one_file_without_the_other_is_one_clear_error(given: str) -> None:
    with pytest.raises(SettingError, match="--tls-cert-file and --tls-key-file need each other"):
        AgentSettings(**{given: Path("/x")}).endpoint()

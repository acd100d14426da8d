"""How each failure looks on the wire: the symptom that a diagnosis goes by."""

from __future__ import annotations

import errno
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from anyio.abc import ByteStream

from support.kubeapi.credentials import write_kubeconfig
from support.kubeapi.streams import Pod, one_pod
from support.peer import Peer, listen, reset, serve_http, speaking
from transports.base import Target, Transport
from transports.command import CommandTransport
from transports.errors import (
    BadPeer,
    Denied,
    Failure,
    Gone,
    Symptom,
    TimedOut,
    TransportError,
    Unreachable,
)
from transports.exchange import none_worked, unreachable
from transports.exec import ExecSettings, ExecTransport
from transports.http import HttpSettings, HttpTransport
from transports.session import call_tool

IN_POD = Target(namespace="gpu", pod="agent-1")


async def symptom(transport: Transport, target: Target) -> Symptom:
    """How a probe fails."""
    with anyio.fail_after(20), pytest.raises(TransportError) as caught:
        async with transport:
            await transport.probe(target)
    return caught.value.symptom


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[Target]:
    """A server that says the same to everybody."""

    async def speak(stream: ByteStream) -> None:
        await stream.receive()
        await stream.send(answer)

    async with speaking(speak) as target:
        yield target


def http_answer(status: str, body: str = "no", kind: str = "text/plain") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return (head + body).encode()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (http_answer("401 Unauthorized"), "unauthorized"),
        (http_answer("403 Forbidden"), "forbidden"),
        (http_answer("421 Misdirected Request"), "forbidden"),
        (http_answer("500 Internal Server Error"), "http_error"),
        (http_answer("503 Service Unavailable"), "http_error"),
        (http_answer("429 Too Many Requests"), "http_error"),
        (http_answer("404 Not Found"), "foreign"),
        (http_answer("400 Bad Request", "This port speaks HTTPS."), "tls_scheme"),
        (http_answer("400 Bad Request", "no"), "foreign"),
        (http_answer("302 Found"), "foreign"),
        (http_answer("200 OK", "<html>", "text/html"), "foreign"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "foreign"),
        (b"", "reset"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", "reset"),
    ],
)
async def test_what_a_server_says(answer: bytes, expected: Symptom) -> None:
    async with answering(answer) as target:
        assert await symptom(HttpTransport(), target) == expected


async def test_a_connection_that_is_reset() -> None:
    async with speaking(reset) as target:
        assert await symptom(HttpTransport(), target) == "reset"


async def test_a_port_where_nobody_listens_refuses() -> None:
    with closing(listen("127.0.0.1")) as gone:
        port = gone.getsockname()[1]
    target = Target(addresses=("127.0.0.1",), port=port)
    assert await symptom(HttpTransport(), target) == "refused"


async def test_a_name_that_nobody_knows() -> None:
    target = Target(addresses=("no-such-name.invalid",))
    assert await symptom(HttpTransport(), target) == "dns"


async def test_tls_where_none_is_spoken() -> None:
    async with serve_http(Peer().app()) as port:
        target = Target(addresses=("127.0.0.1",), port=port)
        assert await symptom(HttpTransport(HttpSettings(scheme="https")), target) == "tls_scheme"


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (OSError(errno.EHOSTUNREACH, "No route to host"), "no_route"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "no_route"),
        (OSError(errno.ETIMEDOUT, "Connection timed out"), "connect_timeout"),
        (OSError(errno.EACCES, "Permission denied"), None),
    ],
)
def test_what_the_system_says_of_a_connection(cause: OSError, expected: Symptom | None) -> None:
    error = httpx2.ConnectError("all failed")
    error.__cause__ = cause
    assert unreachable(error, "10.0.0.1:8080", 1.5).failure.symptom == expected
    timed_out = unreachable(httpx2.ConnectTimeout("late"), "10.0.0.1:8080", 1.5)
    assert timed_out.failure.symptom == "connect_timeout"


def test_of_several_addresses_the_telling_one_counts() -> None:
    no_route = Failure(Unreachable, "[fd00::1]:1: no route", "no_route")
    silent = Failure(Unreachable, "10.0.0.1:1: connect timed out", "connect_timeout")
    stranger = Failure(BadPeer, "not HTTP")
    assert none_worked([no_route, silent]).failure.symptom == "connect_timeout"
    told = none_worked([no_route, silent, stranger]).failure
    assert (told.kind, told.error(IN_POD, "http").symptom) == (BadPeer, "foreign")
    assert none_worked([no_route]).failure.symptom == "no_route"


async def test_a_token_that_cannot_be_read(tmp_path: Path) -> None:
    async with HttpTransport(
        HttpSettings(scheme="https", token_file=str(tmp_path / "none"))
    ) as transport:
        with pytest.raises(Denied) as caught:
            await call_tool(transport, Target(addresses=("::1",)), "x", {}, timeout_seconds=20)
    assert caught.value.symptom == "credentials"


async def test_a_command_that_is_not_there() -> None:
    assert await symptom(CommandTransport(["/no/such/command"]), Target()) == "no_command"


async def test_a_relay_that_finds_no_agent() -> None:
    assert await symptom(CommandTransport(["sh", "-c", "exit 3"]), Target()) == "not_running"


RBAC = 'pods "a" is forbidden: User "u" cannot create resource "pods/exec" in API group ""'
POLICY = "pods \"a\" is forbidden: ValidatingAdmissionPolicy 'x' with binding 'b' denied request"
WEBHOOK = 'admission webhook "exec.example.com" denied the request: not here'
DIALING = "error dialing backend: dial tcp 10.0.0.1:10250: i/o timeout"


def refuse(code: int, reason: str, words: str) -> Callable[[Pod], None]:
    def on(pod: Pod) -> None:
        pod.faults.refuse = (code, reason, words)

    return on


def fail(words: str) -> Callable[[Pod], None]:
    def on(pod: Pod) -> None:
        pod.faults.fail = words

    return on


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (refuse(403, "Forbidden", RBAC), "rbac"),
        (refuse(403, "Forbidden", POLICY), "admission"),
        (refuse(403, "Forbidden", WEBHOOK), "admission"),
        (refuse(401, "Unauthorized", "Unauthorized"), "credentials"),
        (refuse(500, "InternalError", DIALING), "kubelet_unreachable"),
        (fail(DIALING), "kubelet_unreachable"),
        (refuse(404, "NotFound", 'pods "a" not found'), "not_running"),
        (fail('container not found ("agent")'), "not_running"),
        (fail("OCI runtime exec failed: executable file not found in $PATH"), "no_command"),
        (refuse(503, "", ""), "other"),
    ],
)
async def test_what_an_api_server_says(
    fault: Callable[[Pod], None], expected: Symptom, tmp_path: Path
) -> None:
    pod = Pod()
    fault(pod)
    settings = ExecSettings(kubeconfig=str(tmp_path / "kubeconfig"))
    async with one_pod(tmp_path, pod):
        assert await symptom(ExecTransport(settings), IN_POD) == expected


async def test_a_program_that_a_container_lacks(tmp_path: Path) -> None:
    async with one_pod(tmp_path, Pod()):
        kubeconfig = str(tmp_path / "kubeconfig")
        settings = ExecSettings(argv=("sh", "-c", "exit 127"), kubeconfig=kubeconfig)
        assert await symptom(ExecTransport(settings), IN_POD) == "no_command"


async def test_an_api_server_that_is_not_there(tmp_path: Path) -> None:
    with closing(listen("127.0.0.1")) as gone:
        port = gone.getsockname()[1]
    write_kubeconfig(tmp_path / "kubeconfig", f"https://127.0.0.1:{port}")
    settings = ExecSettings(kubeconfig=str(tmp_path / "kubeconfig"))
    assert await symptom(ExecTransport(settings), IN_POD) == "api_unreachable"


async def test_a_stream_that_does_not_open(tmp_path: Path) -> None:
    pod = Pod()
    pod.faults.hold = anyio.Event()
    settings = ExecSettings(kubeconfig=str(tmp_path / "kubeconfig"), open_timeout_seconds=0.2)
    async with one_pod(tmp_path, pod):
        assert await symptom(ExecTransport(settings), IN_POD) == "silent"


@pytest.mark.parametrize(
    ("kind", "named", "expected"),
    [
        (TimedOut, {}, "silent"),
        (Gone, {}, "not_running"),
        (Unreachable, {}, "other"),
        (Unreachable, {"symptom": "refused"}, "refused"),
    ],
)
def test_it_survives_pickling(
    kind: type[TransportError], named: dict[str, Any], expected: Symptom
) -> None:
    error = kind("why", target=IN_POD, transport="http", **named)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.symptom, copy.message) == (kind, expected, "why")
    assert error.symptom == expected

"""The fake API server's port-forward, spoken to as raw frames: what a transport may rely on."""

import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from support.kubeapi.streams import Pod, StreamsServer, one_pod
from support.peer import Peer, listen, serve_http
from transports.channels import CHUNK_BYTES, V4, V5, frames
from transports.kubernetes import KubernetesApi, KubernetesError
from transports.websocket import WebSocket

PATH = "/api/v1/namespaces/gpu/pods/agent-1/portforward"


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    """One whose port 7 echoes and whose port 9 has nobody."""

    async def echo(stream: SocketStream) -> None:
        async with stream:
            host, _ = stream.extra(SocketAttribute.remote_address)
            await stream.send(f"{host}\n".encode())
            async for data in stream:
                await stream.send(data)

    with listen("127.0.0.1") as gone:
        nobody = gone.getsockname()[1]
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, echo)
        port = listener.extra(SocketAttribute.local_port)
        yield Pod(ports={7: port, 9: nobody})
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def forwarded(
    folder: Path, ports: str, path: str = PATH, protocols: Any = (V4,)
) -> AsyncIterator[WebSocket]:
    async with KubernetesApi(str(folder / "kubeconfig")) as api:
        with anyio.fail_after(20):
            socket = await api.websocket(path, [("ports", ports)], protocols)
            try:
                yield socket
            finally:
                await socket.aclose()


@pytest.fixture
async def server(pod: Pod, tmp_path: Path) -> AsyncIterator[StreamsServer]:
    async with one_pod(tmp_path, pod) as found:
        yield found


async def received(socket: WebSocket, channel: int, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        frame = await socket.receive()
        assert frame[0] == channel
        assert len(frame) <= 1 + CHUNK_BYTES
        data += frame[1:]
    return bytes(data)


async def rest(socket: WebSocket, channel: int) -> bytes:
    """What comes on a channel up to the end."""
    data = bytearray()
    while True:
        try:
            frame = await socket.receive()
        except anyio.EndOfStream:
            return bytes(data)
        data += frame[1:] if frame[0] == channel else b""


async def test_each_channel_begins_with_its_port_and_data_goes_both_ways(
    server: StreamsServer, tmp_path: Path
) -> None:
    async with forwarded(tmp_path, "7") as socket:
        assert socket.protocol == V4
        assert [await socket.receive() for _ in range(2)] == [b"\x00\x07\x00", b"\x01\x07\x00"]
        assert await received(socket, 0, 10) == b"127.0.0.1\n"  # as a caller inside the pod
        sent = bytes(range(256)) * 1_000
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                for frame in frames(0, sent):
                    await socket.send(frame)

            tasks.start_soon(send)
            assert await received(socket, 0, len(sent)) == sent


async def test_a_port_where_nobody_listens_is_told_on_its_error_channel(
    server: StreamsServer, tmp_path: Path
) -> None:
    async with forwarded(tmp_path, "9") as socket:
        first = [await socket.receive() for _ in range(2)]
        assert first == [bytes((channel,)) + struct.pack("<H", 9) for channel in (0, 1)]
        words = await socket.receive()
        assert words[0] == 1
        assert words[1:].startswith(b"error forwarding port 9 to pod gpu/agent-1")
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()


async def test_several_ports_have_channels_of_their_own(
    server: StreamsServer, tmp_path: Path
) -> None:
    async with forwarded(tmp_path, "9,7") as socket:
        first = [await socket.receive() for _ in range(4)]
        assert first == [b"\x00\x09\x00", b"\x01\x09\x00", b"\x02\x07\x00", b"\x03\x07\x00"]
        assert (await socket.receive())[:6] == b"\x01error"
        await socket.send(b"\x02hello")
        assert await received(socket, 2, 15) == b"127.0.0.1\nhello"


async def test_http_passes_through(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serve_http(Peer().app()))
        pod = Pod(ports={8080: port})
        await stack.enter_async_context(one_pod(tmp_path, pod))
        socket = await stack.enter_async_context(forwarded(tmp_path, "8080"))
        request = b"GET /version HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"
        await socket.send(b"\x00" + request)
        answer = await rest(socket, 0)
    assert answer.startswith(b"\x90\x1fHTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"ports": ""}, 400, 'HTTP 400 Bad Request: query parameter "port" is required'),
        ({"ports": "http"}, 400, "cannot convert to .*int32"),
        ({"path": PATH.replace("agent-1", "agent-2")}, 404, 'pods "agent-2" not found'),
        ({"protocols": (V5,)}, 403, "HTTP 403 Forbidden"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    change: dict[str, Any], status: int, words: str, server: StreamsServer, tmp_path: Path
) -> None:
    with pytest.raises(KubernetesError, match=words) as caught:
        async with forwarded(tmp_path, **{"ports": "7", **change}):
            pass
    assert caught.value.status == status


@pytest.mark.parametrize("verb", ["get", "create"])
async def test_both_verbs_are_needed(verb: str, server: StreamsServer, tmp_path: Path) -> None:
    server.denied.add((verb, "pods/portforward"))
    words = {
        "get": 'User "tester" cannot get resource "pods/portforward"',
        "create": 'pods "agent-1" is forbidden:$',
    }
    with pytest.raises(KubernetesError, match=words[verb]):
        async with forwarded(tmp_path, "7"):
            pass

"""A kubelet's PodResources service on a real Unix socket, over real HTTP/2, that fails on command.

Messages are written here by hand, field by field, so that reader and writer share nothing;
tests/data/pod_resources holds what the kubelet's own types write.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketStream
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import RequestReceived, StreamReset, WindowUpdated

__all__ = [
    "Kubelet",
    "allocatable_message",
    "claim",
    "listing",
    "plugin",
    "pod",
    "write_checkpoint",
]

LIST = "/v1.PodResourcesLister/List"
ALLOCATABLE = "/v1.PodResourcesLister/GetAllocatableResources"


def _field(number: int, value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def plugin(resource: str, *ids: str) -> bytes:
    """ContainerDevices."""
    return _field(1, resource) + b"".join(_field(2, each) for each in ids)


def claim(
    name: str, namespace: str, device: str, pool: str, driver: str = "gpu.nvidia.com"
) -> bytes:
    """DynamicResource with one ClaimResource."""
    cdi = _field(1, _field(1, f"k8s.gpu.nvidia.com/device={device}"))
    one = cdi + _field(2, driver) + _field(3, pool) + _field(4, device)
    return _field(2, name) + _field(3, namespace) + _field(4, one)


def pod(
    namespace: str,
    name: str,
    *devices: bytes,
    container: str = "main",
    claims: Sequence[bytes] = (),
) -> bytes:
    """PodResources with one container."""
    given = b"".join(_field(2, each) for each in devices)
    given += b"".join(_field(5, each) for each in claims)
    return _field(1, name) + _field(2, namespace) + _field(3, _field(1, container) + given)


def listing(*pods: bytes) -> bytes:
    """ListPodResourcesResponse."""
    return b"".join(_field(1, each) for each in pods)


def allocatable_message(*devices: bytes) -> bytes:
    """AllocatableResourcesResponse."""
    return b"".join(_field(1, each) for each in devices)


def write_checkpoint(
    path: Path,
    entries: Sequence[tuple[str, str, str, Any]],
    registered: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """The kubelet's file, of entries of pod uid, container, resource and ids (by NUMA node)."""
    names = ("PodUID", "ContainerName", "ResourceName", "DeviceIDs")
    devices = [{**dict(zip(names, each, strict=True)), "AllocResp": ""} for each in entries]
    data = {"PodDeviceEntries": devices, "RegisteredDevices": registered or {}}
    path.write_text(json.dumps({"Data": data, "Checksum": 1}))


@dataclass
class Kubelet:
    """What it answers, and how; may be changed while it listens."""

    path: Path
    messages: dict[str, bytes] = field(default_factory=dict)
    """Method to the answer's message."""
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Method to gRPC status and message, instead of an answer."""
    raw: bytes | None = None
    """Sent instead of the framed message."""
    frame_bytes: int = 16_384
    http_status: str = "200"
    headers: Sequence[tuple[bytes, bytes]] = ()
    """More of the answer's."""
    trailers: bool = True
    goaway: bool = False
    reset: bool = False
    hangs_up: bool = False
    silent: bool = False
    garbage: bytes | None = None
    """Sent instead of HTTP/2."""
    calls: list[str] = field(default_factory=list)
    connections: int = 0
    _open: int = 0

    def holding(self, *pods: bytes, could: Sequence[bytes] = ()) -> None:
        self.messages = {LIST: listing(*pods), ALLOCATABLE: allocatable_message(*could)}

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Kubelet]:
        """Listen on a new socket of that name, as a kubelet does that was started."""
        self.path.unlink(missing_ok=True)
        listener = await anyio.create_unix_listener(self.path)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, self._serve)
            try:
                yield self
                with anyio.fail_after(10):
                    while self._open:  # a client that is done closes
                        await anyio.sleep(0.001)
            finally:
                tasks.cancel_scope.cancel()
        await listener.aclose()

    async def _serve(self, stream: SocketStream) -> None:
        self.connections += 1
        self._open += 1
        async with stream:
            try:
                await self._speak(stream)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # the client has what it wanted
            finally:
                self._open -= 1

    async def _speak(self, stream: SocketStream) -> None:
        if self.garbage is not None:
            await stream.send(self.garbage)
            while True:
                await stream.receive()
        http2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        http2.initiate_connection()
        await stream.send(http2.data_to_send())
        rest: dict[int, bytes] = {}
        while True:
            for event in http2.receive_data(await stream.receive()):
                match event:
                    case RequestReceived():
                        assert event.headers is not None
                        headers = dict(event.headers)
                        assert headers["te"] == "trailers"
                        assert headers[":authority"] == "localhost"
                        method = headers[":path"]
                        self.calls.append(method)
                        if self.silent:
                            continue
                        if self.hangs_up:
                            return
                        self._begin(http2, event.stream_id, method, rest)
                    case StreamReset(stream_id=of):
                        rest.pop(of, None)
                    case WindowUpdated():
                        pass  # there may be room now
                    case _:
                        pass
            for of in list(rest):
                await self._go_on(http2, of, rest, stream)
            await stream.send(http2.data_to_send())

    def _begin(self, http2: H2Connection, of: int, method: str, rest: dict[int, bytes]) -> None:
        if self.goaway:
            http2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            return
        if self.reset:
            http2.reset_stream(of, ErrorCodes.INTERNAL_ERROR)
            return
        content = (":status", self.http_status), ("content-type", "application/grpc")
        refused = self.status.get(method)
        if method not in self.messages and refused is None:
            refused = 12, f"unknown method {method}"
        if refused is not None:
            code, words = refused
            status = ("grpc-status", str(code)), ("grpc-message", words)
            http2.send_headers(of, [*content, *status, *self.headers], end_stream=True)
            return
        http2.send_headers(of, [*content, *self.headers])
        message = self.messages[method]
        rest[of] = self.raw if self.raw is not None else _framed(message)

    async def _go_on(
        self, http2: H2Connection, of: int, rest: dict[int, bytes], stream: SocketStream
    ) -> None:
        while rest[of] and (room := min(http2.local_flow_control_window(of), self.frame_bytes)):
            data, rest[of] = rest[of][:room], rest[of][room:]
            http2.send_data(of, data)
            # Each frame alone, as it may come over a socket.
            await stream.send(http2.data_to_send())
        if rest[of]:
            return
        if self.trailers:
            http2.send_headers(of, [("grpc-status", "0"), ("grpc-message", "")], end_stream=True)
        else:
            http2.end_stream(of)
        del rest[of]


def _framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message

"""PortForwardTransport: an agent's HTTP endpoint as `kubectl port-forward` reaches it.

From the API server to the kubelet to the pod's own loopback: no packet takes the pod network, and
nothing is started in the pod. The agent sees a caller on loopback, which says nothing of who it
is: it asks for its token there as anywhere.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import anyio
import httpcore2
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

from transports import channels
from transports.base import Target
from transports.errors import Broken, Failure, TransportError, Unreachable
from transports.http import HttpSettings, HttpTransport
from transports.pods import Grant, PodApi, broken_off
from transports.registry import read_options
from transports.turns import Turns

if TYPE_CHECKING:
    from transports.websocket import WebSocket

__all__ = ["PortForwardSettings", "PortForwardTransport"]

DATA, ERROR = 0, 1
"""The channels of the only port that is forwarded."""

PORT_BYTES = 2
"""What each channel begins with: the port's number."""

FRAMES = 8
"""Frames of an answer held for a reader that is slow; servers put 32 KiB into one. Past them
the far side has to wait."""

REFUSAL_SECONDS = 0.05
"""What a new stream waits for a refusal before anything is sent on it: nothing ever says that the
port has been connected to, and a refusal that meets a request on its way may be lost with it."""

# How containerd, CRI-O, socat and API servers say it; there is no code for it.
_NOT_CONNECTED = re.compile(
    r"failed to connect|could not connect|connection refused|error dialing|unable to do port forw",
    re.IGNORECASE,
)

ENDED = Failure(Unreachable, "the stream closed before anything was sent on it", "reset")


@dataclass(frozen=True, slots=True, kw_only=True)
class PortForwardSettings(HttpSettings):
    """Settings of the port-forward transport: HTTP's, and those of the way there."""

    connect_timeout_seconds: float = 10.0
    """For opening a stream to the pod."""
    write_timeout_seconds: float = 10.0
    """How long the far side may read nothing before a stream counts as dead."""
    max_opening: int = 16
    """Streams opened at the same time, of which one that takes long no longer counts: a cold start
    must not flood an API server."""
    kubeconfig: str = ""
    """A path, or several as in `KUBECONFIG`. Empty: the pod's own credentials, else
    `KUBECONFIG` or `~/.kube/config`."""
    contexts: tuple[str, ...] = ()
    """Contexts of the kubeconfig that targets name as their cluster. Empty: its current one."""


class PortForwardTransport(HttpTransport):
    """Reaches an agent by streamable HTTP through the API server and the kubelet.

    Takes `get` and `create` on `pods/portforward` in the agents' namespace, which is its `grant`.
    Each connection is a WebSocket, kept between calls as HTTP's own are.
    """

    name = "portforward"
    grant = Grant("portforward")
    settings: PortForwardSettings

    def __init__(self, settings: PortForwardSettings | None = None) -> None:
        settings = settings or PortForwardSettings()
        super().__init__(settings)
        self._pods = PodApi(self.grant, settings.kubeconfig, settings.contexts)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make one from settings; the entry point of the registry.

        Raises:
            ValueError: an option is unknown or has no valid value.
        """
        return cls(read_options(PortForwardSettings, options))

    def applies(self, target: Target) -> bool:
        """Whether the target names a pod and its namespace, in a cluster known here."""
        return self._pods.applies(target)

    def _hosts(self, target: Target) -> Sequence[str]:
        # Every agent serves the Host localhost. A certificate names what others call it by.
        named = self.settings.scheme == "https" and not self.settings.server_name
        return target.addresses[:1] if named and target.addresses else ("localhost",)

    def _server_name(self, host: str) -> str:
        return self.settings.server_name or host

    def _network(self, target: Target) -> httpcore2.AsyncNetworkBackend:
        return _Network(self, target)

    async def open(self, target: Target, port: int) -> _Stream:
        """Open a connection to a port of the target's pod.

        Raises:
            TransportError: it cannot be opened. Nothing is left behind, on cancellation neither.
        """
        seconds = self.settings.connect_timeout_seconds
        async with self._turns.one():
            try:
                with anyio.fail_after(seconds):
                    socket = await self._pods.open(
                        target, [("ports", str(port))], (channels.V4,), transport=self.name
                    )
            except TimeoutError:
                failure = Failure(Unreachable, f"not open within {seconds:g} s", "silent")
                raise failure.error(target, self.name) from None
        stream = _Stream(socket, target, self.settings.write_timeout_seconds)
        self._keep_running(stream.run)
        try:
            with anyio.move_on_after(REFUSAL_SECONDS):
                await stream.ended.wait()
                raise (stream.failure or ENDED).error(target, self.name)
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def _entered(self) -> None:
        await super()._entered()
        self._turns = Turns(self.settings.max_opening)

    async def _left(self) -> None:
        await self._pods.aclose()


class _Stream(ByteStream):
    """A connection to a port of a pod, and the task that owns its WebSocket."""

    def __init__(self, socket: WebSocket, target: Target, write_timeout_seconds: float) -> None:
        self._socket = socket
        self._target = target
        self._write_timeout_seconds = write_timeout_seconds
        self._arrived, self._inbox = anyio.create_memory_object_stream[bytes](FRAMES)
        self._rest = b""
        self._answered = False
        self.ended = anyio.Event()
        """Set once nothing more arrives."""
        self.failure: Failure | None = None
        """Why it has ended, where that is known."""
        self._scope = anyio.CancelScope()

    @property
    def readable(self) -> bool:
        """Whether something waits to be read, be it the end."""
        return self.ended.is_set() or bool(
            self._rest or self._inbox.statistics().current_buffer_used
        )

    async def run(self) -> None:
        """Read until the end, and close."""
        try:
            with self._scope, self._arrived:
                await self._read()
        finally:
            self.ended.set()
            await self._socket.aclose()

    async def _read(self) -> None:
        unread = {DATA: PORT_BYTES, ERROR: PORT_BYTES}
        try:
            while self.failure is None:
                channel, data = channels.parse(await self._socket.receive()) or (DATA, b"")
                if head := min(unread.get(channel, 0), len(data)):
                    unread[channel] -= head
                    data = data[head:]
                if channel == ERROR and data:
                    self.failure = self._told(data.decode(errors="replace"))
                elif channel == DATA and data:
                    self._answered = True
                    await self._arrived.send(data)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass  # whoever reads what has arrived comes to the end of it

    def _told(self, words: str) -> Failure:
        """What the error channel says. Before an answer it may be that nobody has heard us."""
        failure = broken_off(words)
        refused = bool(_NOT_CONNECTED.search(words))
        if self._answered or (failure.kind is Unreachable and not refused):
            return Failure(Broken, words)
        if failure.symptom is None and "refused" in words.lower():
            return Failure(failure.kind, words, "refused")
        return failure

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        if not self._rest:
            try:
                self._rest = await self._inbox.receive()
            except anyio.EndOfStream:
                if self.failure is None:
                    raise
                error = self.failure.error(self._target, PortForwardTransport.name)
                raise anyio.BrokenResourceError from error
        data, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return data

    async def send(self, item: bytes) -> None:
        try:
            for frame in channels.frames(DATA, item):
                with anyio.fail_after(self._write_timeout_seconds):
                    await self._socket.send(frame)
        except TimeoutError as error:
            words = f"the far side has read nothing for {self._write_timeout_seconds:g} s"
            self.failure = self.failure or Failure(Broken, words, "silent")
            self._scope.cancel()  # whoever reads is told
            raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        """Nothing: the protocol has no such thing, and HTTP needs none."""

    async def aclose(self) -> None:
        """Let the owner close it: who leaves does not wait for the other side's consent."""
        self._scope.cancel()
        self._inbox.close()


class _Connection(httpcore2.AsyncNetworkStream):
    """A stream as the connection pool takes it, with TLS inside or without."""

    def __init__(self, stream: _Stream, tls: TLSStream | None = None) -> None:
        self._stream = stream
        self._tls = tls
        self._bytes: ByteStream = tls or stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            with anyio.fail_after(timeout):
                return await self._bytes.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except TimeoutError as error:
            raise httpcore2.ReadTimeout from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise httpcore2.ReadError from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            with anyio.fail_after(timeout):
                await self._bytes.send(buffer)
        except TimeoutError as error:
            raise httpcore2.WriteTimeout from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise httpcore2.WriteError from error  # upon which the pool reads why

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            with anyio.fail_after(timeout):
                tls = await TLSStream.wrap(
                    self._stream,
                    ssl_context=ssl_context,
                    hostname=server_hostname,
                    server_side=False,
                    standard_compatible=False,
                )
        except BaseException as error:
            await self.aclose()
            match error:
                case TimeoutError():
                    raise httpcore2.ConnectTimeout from error
                case anyio.BrokenResourceError() | anyio.EndOfStream() | ssl.SSLError():
                    raise httpcore2.ConnectError from error
            raise
        return _Connection(self._stream, tls)

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "is_readable":  # while it waits for a request: whether it has ended
                return self._stream.readable
            case "ssl_object" if self._tls is not None:
                return self._tls.extra(TLSAttribute.ssl_object)
        return None


class _Network(httpcore2.AsyncNetworkBackend):
    """Where a pool gets its connections to one agent from."""

    def __init__(self, transport: PortForwardTransport, target: Target) -> None:
        self._transport = transport
        self._target = target

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            return _Connection(await self._transport.open(self._target, port))
        except TransportError as error:
            raise httpcore2.ConnectError from error

"""One gRPC call after another on a Unix socket, over HTTP/2 as `h2` speaks it: `connected`.

grpcio costs an agent 28 MiB and 150 ms for calls of some kilobytes, and HTTP clients drop the
trailers, in which gRPC says how a call went (docs/adr/0012-the-kubelet-is-asked-over-h2.md).
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import anyio
import anyio.lowlevel

from transports.text import one_line

if TYPE_CHECKING:  # 50 ms and 5 MiB, which only those pay who call
    from h2.connection import H2Connection
    from h2.events import Event

__all__ = ["Connection", "GrpcError", "connected"]

ANSWER_BYTES: Final = 16 * 2**20
"""Longest answer. The kubelet's own limit; 110 pods with a GPU each take 10 KiB."""

WINDOW_BYTES: Final = 2**20
"""What a server may send before it is told to go on."""

READ_BYTES: Final = 65_536

MESSAGE_CHARS: Final = 200


class GrpcError(Exception):
    """A call that failed. The text says why.

    Attributes:
        status: gRPC's code; None where the server gave none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(one_line(message, MESSAGE_CHARS))
        self.status = status


@dataclass(slots=True)
class _Outcome:
    """What has come of one call so far."""

    http_status: str = ""
    grpc_status: str = ""
    grpc_message: str = ""
    data: bytearray = field(default_factory=bytearray)
    ended: bool = False


class Connection:
    """HTTP/2 to one server. One call at a time."""

    def __init__(self, opened: socket.socket, http2: H2Connection) -> None:
        self._socket, self._http2 = opened, http2

    async def call(self, method: str, request: bytes = b"") -> memoryview:
        """The answer's message.

        Args:
            method: such as `/v1.PodResourcesLister/List`.

        Raises:
            GrpcError: the server refused, ended the connection, or does not speak gRPC.
        """
        from h2.exceptions import H2Error

        try:
            outcome = await self._call(method, request)
        except H2Error as error:
            raise GrpcError(f"it does not speak HTTP/2: {error}") from error
        except OSError as error:
            raise GrpcError("it ended the connection before its answer") from error
        return _message(outcome)

    async def _call(self, method: str, request: bytes) -> _Outcome:
        http2 = self._http2
        stream_id = http2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", "mcp-gpu"),
        ]
        http2.send_headers(stream_id, headers)
        http2.send_data(stream_id, _framed(request), end_stream=True)
        await self._flush()
        outcome = _Outcome()
        while not outcome.ended:
            for event in http2.receive_data(await self._receive()):
                self._take(event, stream_id, outcome)
            await self._flush()
        return outcome

    # By hand: with anyio's own stream, data that comes as the call is cancelled is an error in the
    # event loop's log.

    async def _flush(self) -> None:
        left = memoryview(self._http2.data_to_send())
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)

    async def _receive(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
            else:
                if not data:
                    raise ConnectionResetError
                return data

    def _take(self, event: Event, stream_id: int, outcome: _Outcome) -> None:
        from h2 import events

        match event:
            case events.ConnectionTerminated():
                raise GrpcError(f"it is closing its connections ({_code(event.error_code)})")
            case events.ResponseReceived(stream_id=of) | events.TrailersReceived(stream_id=of):
                if of == stream_id:
                    _note(event.headers or (), outcome)
            case events.DataReceived(stream_id=of) if of == stream_id:
                assert event.data is not None
                outcome.data += event.data
                if len(outcome.data) > ANSWER_BYTES:
                    raise GrpcError(f"its answer is longer than {ANSWER_BYTES >> 20} MiB")
                self._http2.acknowledge_received_data(event.flow_controlled_length or 0, of)
            case events.StreamReset(stream_id=of) if of == stream_id:
                raise GrpcError(f"it broke off its answer ({_code(event.error_code)})")
            case events.StreamEnded(stream_id=of) if of == stream_id:
                outcome.ended = True
            case _:
                pass  # settings and pings, which h2 answers, and whatever HTTP/2 has besides


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Connection]:
    """A connection to the server that listens there now.

    Raises:
        GrpcError: nobody does, or may be connected to; or as `Connection.call`.
    """
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.settings import SettingCodes, Settings

    with _connect(path) as opened:
        http2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        chosen = {SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES, SettingCodes.ENABLE_PUSH: 0}
        http2.local_settings = Settings(client=True, initial_values=dict(chosen))
        http2.initiate_connection()
        http2.increment_flow_control_window(WINDOW_BYTES)
        yield Connection(opened, http2)


def _connect(path: Path) -> socket.socket:
    """Connected or not, at once: on one machine there is nothing to wait for."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.setblocking(False)
    try:
        made.connect(str(path))
    except OSError as error:
        made.close()
        full = isinstance(error, BlockingIOError)
        why = "it takes no more connections" if full else error.strerror or str(error)
        raise GrpcError(why) from error
    return made


def _note(headers: object, outcome: _Outcome) -> None:
    assert isinstance(headers, list | tuple)
    for name, raw in headers:
        # Decoded here: h2 would raise an error of Python's at a header that is no UTF-8.
        value = raw.decode(errors="replace")
        match name:
            case b":status":
                outcome.http_status = value
            case b"grpc-status":
                outcome.grpc_status = value
            case b"grpc-message":
                outcome.grpc_message = unquote(value, errors="replace")
            case _:
                pass


def _message(outcome: _Outcome) -> memoryview:
    if outcome.http_status != "200":
        raise GrpcError(f"it does not speak gRPC: HTTP {outcome.http_status or 'without a status'}")
    if outcome.grpc_status != "0":
        code = outcome.grpc_status
        if not (code.isascii() and code.isdecimal()):
            raise GrpcError("its answer has no grpc-status")
        said = outcome.grpc_message or "without a word"
        raise GrpcError(f"it refused: {said} (grpc-status {code[:4]})", int(code[:4]))
    data = outcome.data
    if len(data) < 5 or data[0] or int.from_bytes(data[1:5], "big") != len(data) - 5:
        raise GrpcError("its answer is not one message")
    return memoryview(bytes(data))[5:]


def _framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def _code(code: object) -> str:
    return str(getattr(code, "name", code))

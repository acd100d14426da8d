"""TLS on the server's side: between a TCP connection and the protocol that speaks HTTP over it.

asyncio has one. It holds 256 KiB for each connection, which a thousand idle ones would end a small
pod with, knows no bound on those that never say anything, and waits 30 s for a farewell that
clients with idle connections never say. Here TLS stays in memory, as OpenSSL lets it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["Handshakes", "TlsConnection"]

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
"""How long a client may take to agree on TLS, as for a request's head."""

HANDSHAKES = 512
"""Connections on which TLS is not agreed upon yet. Past it the oldest is cut: a client that means
it takes milliseconds, so the oldest is one that says nothing."""

CHUNK_BYTES = 65_536

REPLY_BYTES = 65_536
"""What TLS may have said by itself to a client that reads nothing, before it is cut: every key
update that a client sends is answered with one, of which honest clients send one in a while."""

_SPOKE_HTTP = b"This port speaks HTTPS.\n"
SPOKE_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%s" % (len(_SPOKE_HTTP), _SPOKE_HTTP)
)
"""In the clear, to who sent a request in the clear."""


class Handshakes:
    """The connections of one server on which TLS is not agreed upon yet, oldest first."""

    def __init__(self) -> None:
        self._open: dict[TlsConnection, None] = {}
        self._silent_until = 0.0

    def begin(self, connection: TlsConnection) -> None:
        self._open[connection] = None
        if len(self._open) > HANDSHAKES:
            self._tell()
            next(iter(self._open)).abort()

    def end(self, connection: TlsConnection) -> None:
        self._open.pop(connection, None)

    def end_all(self) -> None:
        """Wait for none of them."""
        for connection in tuple(self._open):
            connection.abort()

    def _tell(self) -> None:
        """Once a minute: whoever opens too many connections should not fill the log as well."""
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + 60
            logger.warning("cutting silent connections: %d await TLS", HANDSHAKES)


class TlsConnection(asyncio.Transport, asyncio.Protocol):
    """Downwards the protocol of a TCP connection, upwards the transport of another protocol.

    Args:
        make: the protocol above, made once TLS is agreed upon.
    """

    def __init__(
        self, make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext, handshakes: Handshakes
    ) -> None:
        super().__init__({"sslcontext": tls})
        self._make = make
        self._handshakes = handshakes
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.wrap_bio(self._arrived, self._leaving, server_side=True)
        self._above: asyncio.Protocol | None = None
        self._replied_bytes = 0

    # What TCP tells.

    def connection_made(self, transport: Any) -> None:
        self._tcp: asyncio.Transport = transport
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(HANDSHAKE_SECONDS, self.abort)
        self._handshakes.begin(self)

    def data_received(self, data: bytes) -> None:
        if self._tcp.is_closing():
            return
        self._arrived.write(data)
        try:
            if self._above is None and not self._agreed():
                return
            self._read()
        except ssl.SSLWantReadError:
            self._reply()
        except ssl.SSLZeroReturnError:
            self.close()
        except ssl.SSLError as error:
            if error.reason == "HTTP_REQUEST":
                self._tcp.write(SPOKE_HTTP)
            else:
                self._flush()  # the alert that says why
            self._tcp.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settled()
        if self._above is not None:
            self._above.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._above is not None:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        if self._above is not None:
            self._above.resume_writing()

    # What the protocol above asks for.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._tcp.is_closing():
            return
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        self._flush()

    def close(self) -> None:
        """Say goodbye, and wait for no answer to that."""
        if self._tcp.is_closing():
            return
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        self._flush()
        self._tcp.close()

    def abort(self) -> None:
        self._settled()
        self._tcp.abort()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._tcp.set_write_buffer_limits(high, low)

    def is_closing(self) -> bool:
        return self._tcp.is_closing()

    def pause_reading(self) -> None:
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        self._tcp.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        found = super().get_extra_info(name)
        return self._tcp.get_extra_info(name, default) if found is None else found

    def _agreed(self) -> bool:
        """Go on with the handshake; whether it has ended well."""
        self._tls.do_handshake()
        self._flush()
        self._settled()
        self._above = self._make()
        self._above.connection_made(self)
        return not self._tcp.is_closing()

    def _read(self) -> None:
        """Hand over what has arrived until OpenSSL wants more, which it raises."""
        assert self._above is not None
        while not self._tcp.is_closing():
            data = self._tls.read(CHUNK_BYTES)
            if data:
                self._above.data_received(data)
            else:  # the client's goodbye, from now on the answer to every read
                self.close()

    def _reply(self) -> None:
        """Send what TLS itself has to say, since nobody above is held up by that being unread."""
        unread = self._tcp.get_write_buffer_size() > 0
        self._replied_bytes = self._replied_bytes * unread + self._leaving.pending
        self._flush()
        if self._replied_bytes > REPLY_BYTES:
            self.abort()

    def _flush(self) -> None:
        if self._leaving.pending:
            self._tcp.write(self._leaving.read())

    def _settled(self) -> None:
        self._deadline.cancel()
        self._handshakes.end(self)

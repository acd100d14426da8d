"""One conversation over HTTP, as the SDK's client sees it: every failure becomes an answer.

The SDK loses the HTTP status of a refusal, and lets a failed POST cancel everything that
shares its client (python-sdk issue 3560). So what it is given as the network is this: it
notes what went wrong as a `TransportError` and answers with a JSON-RPC "connection closed".
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from socket import gaierror
from typing import cast

import anyio
import httpx2
from mcp.types import CONNECTION_CLOSED, ErrorData, JSONRPCError
from pydantic import ValidationError

from transports.errors import (
    BadPeer,
    Broken,
    Denied,
    Failure,
    Symptom,
    TransportError,
    Unreachable,
    causes,
)
from transports.framing import MAX_FRAME_BYTES
from transports.text import one_line
from transports.tls import CUT, explain

__all__ = [
    "Exchange",
    "NotConnected",
    "Refused",
    "died",
    "none_worked",
    "read_body",
    "read_refusal",
    "refusal",
    "unreachable",
]

REFUSAL_BYTES = 65_536
"""How much of a refusal's body is read, in search of a JSON-RPC error or of a few words."""

REFUSAL_SECONDS = 1.0
"""How long the words of a refusal are waited for. Its status is known without them."""

REFUSAL_CHARS = 250
"""How much of them is quoted: all that our own server says to a Host it does not serve."""

_ERRNO: Mapping[int, Symptom] = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EHOSTUNREACH: "no_route",
    errno.ENETUNREACH: "no_route",
    errno.ETIMEDOUT: "connect_timeout",
}
"""How the system says that no connection came about."""

_CLOSED = JSONRPCError(
    jsonrpc="2.0", id=None, error=ErrorData(code=CONNECTION_CLOSED, message="Connection closed")
)


class Refused(Exception):
    """A failure on its way to where the target is known."""

    def __init__(
        self, kind: type[TransportError], message: str, symptom: Symptom | None = None
    ) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message, symptom)


class NotConnected(Refused):
    """Nothing was sent: the same request may go to another address."""


class Exchange(httpx2.AsyncBaseTransport):
    """The network of one SDK client.

    Args:
        send: sends a request and gives the response with its body unread.
            Raises `Refused` when there is none.
    """

    def __init__(self, send: Callable[[httpx2.Request], Awaitable[httpx2.Response]]) -> None:
        self._send = send
        self.failure: Failure | None = None
        """The first thing that went wrong."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send; see the class. Raises nothing."""
        try:
            return await self._exchange(request)
        except Refused as error:
            self.fail(error.failure)
            # With a status of refusal the SDK takes `id: null` for its own request's.
            return _json(503, _CLOSED.model_dump_json(by_alias=True).encode())

    def fail(self, failure: Failure) -> None:
        """Note what went wrong, unless something has already."""
        self.failure = self.failure or failure

    async def _exchange(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._send(request)
        media_type = _media_type(response)
        if response.status_code == 200 and media_type == "text/event-stream":
            stream = cast("httpx2.AsyncByteStream", response.stream)
            return httpx2.Response(200, headers=response.headers, stream=_Body(stream, self))
        async with aclosing(response):
            if response.status_code == 200 and media_type == "application/json":
                return _json(200, await read_body(response, MAX_FRAME_BYTES))
            if media_type == "application/json" and response.status_code in (400, 404, 500):
                body = await read_body(response, REFUSAL_BYTES)
                if _is_error(body):
                    return _json(response.status_code, body)
                raise refusal(response, body)
            raise refusal(response, await read_refusal(response))


class _Body(httpx2.AsyncByteStream):
    """A response's event stream, which the SDK leaves as soon as it has the answer.

    When it ends before that, the exchange knows why, and `SSEError` keeps the SDK from asking
    for the rest with GET requests for as long as events carry an id: one request is one message.
    """

    def __init__(self, stream: httpx2.AsyncByteStream, exchange: Exchange) -> None:
        self._stream = stream
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = cast("AsyncGenerator[bytes, None]", self._stream.__aiter__())
        async with aclosing(chunks):
            try:
                async for chunk in chunks:
                    yield chunk
            except httpx2.TransportError as error:
                ended = died(error)
            else:
                ended = Refused(Broken, "the event stream ended before the answer")
        self._exchange.fail(ended.failure)
        raise httpx2.SSEError(ended.failure.message)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def read_body(response: httpx2.Response, max_bytes: int) -> bytes:
    """The body as it was sent, which must not be compressed: we ask for no compression.

    Raises:
        Refused: it is longer than allowed, or the connection broke.
    """
    body = bytearray()
    try:
        async with aclosing(response.aiter_raw()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > max_bytes:
                    raise Refused(BadPeer, f"the answer is longer than {max_bytes} bytes")
    except httpx2.TransportError as error:
        raise died(error) from error
    return bytes(body)


async def read_refusal(response: httpx2.Response) -> bytes:
    """The body of a refusal if it comes soon and is short, else nothing."""
    try:
        with anyio.move_on_after(REFUSAL_SECONDS):
            return await read_body(response, REFUSAL_BYTES)
    except Refused:
        pass
    return b""


def refusal(response: httpx2.Response, body: bytes) -> Refused:
    """What an HTTP response that carries no answer means, with what its body says.

    421 is the refusal of our Host header, which a setting of the server may allow.
    429 and 503 say that the request was not carried out: another path may work.
    After any other 5xx, nobody knows.
    """
    status = response.status_code
    text = f"HTTP {status} {response.reason_phrase}".strip()
    if status >= 400 and (words := _words(response, body)):
        text = f"{text}: {words}"
    match status:
        case 401:
            return Refused(Denied, text, "unauthorized")
        case 403 | 421:
            return Refused(Denied, text, "forbidden")
        case 429 | 503:
            return Refused(Unreachable, text, "http_error")
        case _ if status >= 500:
            return Refused(Broken, text, "http_error")
        case 400 if "HTTPS" in text:  # as most servers say it, ours among them
            return Refused(BadPeer, text, "tls_scheme")
        case _ if 300 <= status < 400:
            return Refused(BadPeer, f"{text}: a redirect, which is not followed")
        case 200:
            kind = _media_type(response) or "no content type"
            return Refused(BadPeer, f"answers with {kind}, which is not MCP")
        case _:
            return Refused(BadPeer, text)


def _words(response: httpx2.Response, body: bytes) -> str:
    if _media_type(response) not in ("text/plain", "application/json"):
        return ""
    try:
        text = JSONRPCError.model_validate_json(body, by_name=False).error.message
    except ValidationError:
        text = body.decode(errors="replace")
    return one_line(text, REFUSAL_CHARS)


def none_worked(failures: Sequence[Failure]) -> Refused:
    """What the failures of all addresses of one agent amount to."""
    if not failures:
        return Refused(Unreachable, "no address is known")
    # A server that answers tells most; an address family that is not there, least.
    telling = min(
        failures, key=lambda each: (each.kind is Unreachable, each.symptom in ("no_route", "dns"))
    )
    words = "; ".join(each.message for each in failures)
    return Refused(telling.kind, words, telling.symptom)


def unreachable(
    error: httpx2.TransportError, where: str, timeout_seconds: float, *, securing: str = ""
) -> NotConnected:
    """Why no connection came about.

    Args:
        securing: the server's name, where the connection was there and TLS had begun.
    """
    if isinstance(error, httpx2.ConnectTimeout) and securing:
        words = f"{where}: no answer in the TLS handshake within {timeout_seconds:g} s"
        return NotConnected(Unreachable, words, "silent")
    if isinstance(error, httpx2.ConnectTimeout):
        words = f"{where}: connect timed out after {timeout_seconds:g} s"
        return NotConnected(Unreachable, words, "connect_timeout")
    for cause in causes(error):
        match cause:
            case TransportError():
                return NotConnected(type(cause), cause.message, cause.symptom)
            case ssl.SSLError():
                words, told = explain(cause, securing)
                return NotConnected(BadPeer, f"{where}: TLS: {words}", told)
            case gaierror():
                return NotConnected(Unreachable, f"{where}: name not found", "dns")
            case OSError(strerror=str(text)) if text:
                symptom = _ERRNO.get(cause.errno or 0)
                # The event loop's own text says only that it failed.
                words = text if symptom is None else os.strerror(cause.errno or 0)
                return NotConnected(Unreachable, f"{where}: {words.lower()}", symptom)
    if securing:
        return NotConnected(BadPeer, f"{where}: TLS: {CUT}", "tls")
    return NotConnected(Unreachable, f"{where}: no connection")


def died(error: httpx2.TransportError) -> Refused:
    """What became of a request whose connection existed, or seemed to."""
    for cause in causes(error):
        if isinstance(cause, TransportError):  # the way that the connection took knows more
            kind = Refused if isinstance(cause, Broken) else NotConnected
            return kind(type(cause), cause.message, cause.symptom)
    # One class for two things: the peer left too early, or it does not speak HTTP.
    if isinstance(error, httpx2.RemoteProtocolError) and "without" not in str(error):
        return Refused(BadPeer, "what answers does not speak HTTP")
    return Refused(Broken, "the connection closed before the answer was complete")


def _media_type(response: httpx2.Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def _is_error(body: bytes) -> bool:
    try:
        JSONRPCError.model_validate_json(body, by_name=False)
    except ValidationError:
        return False
    return True


def _json(status: int, body: bytes) -> httpx2.Response:
    return httpx2.Response(status, headers={"content-type": "application/json"}, content=body)

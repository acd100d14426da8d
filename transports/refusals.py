"""What a Kubernetes API server says instead of an answer, as a `KubernetesError`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

from transports.errors import MESSAGE_CHARS
from transports.framing import FrameTooLong
from transports.text import one_line

if TYPE_CHECKING:
    import aiohttp

__all__ = ["NO_CREDENTIALS", "KubernetesError", "mapped", "refusal", "refuse"]

ERROR_BYTES = 65_536
"""How much of a refusal is read; a `Status` is a few hundred bytes."""

ERROR_SECONDS = 2.0
"""How long the words of a refusal are waited for. Its status is known without them."""

NO_CREDENTIALS = "NoCredentials"
"""`KubernetesError.reason` where the server was not even asked."""

_SSL_CONTEXT = re.compile(r" ssl:<[^>]*>")
"""What aiohttp puts into the text of a failed connection, and says nobody anything."""


_SECRET = re.compile(r"//[^/@\s]+@")
"""A name and password in a URL."""


class KubernetesError(Exception):
    """The API server refused, or was not reached.

    Attributes:
        status: the HTTP status; 0 where there was no answer at all.
        reason: Kubernetes' machine-readable reason such as `Forbidden` or `Expired`,
            `NO_CREDENTIALS`, or empty.
    """

    def __init__(self, message: str, *, status: int = 0, reason: str = "") -> None:
        self.message = one_line(message, MESSAGE_CHARS)
        super().__init__(self.message)
        self.status = status
        self.reason = reason


async def refuse(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Read a refusal's `Status` before the WebSocket client drops it."""
    from aiohttp import ClientError

    response = await send(request)
    if response.status < 300:
        return response
    body = bytearray()
    async with response:
        try:
            with anyio.move_on_after(ERROR_SECONDS):
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) >= ERROR_BYTES:
                        break
        except ClientError:
            pass  # what came before it says more than how it broke off
        response.close()
    raise refusal(response.status, response.reason or "", bytes(body))


def refusal(status: int, phrase: str, body: bytes) -> KubernetesError:
    """What an HTTP refusal says, in the words of its Kubernetes `Status` where it has one."""
    message, reason = f"HTTP {status} {phrase}".strip(), ""
    text = body.decode(errors="replace").strip()
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        # A kubelet behind the server says it in plain text; a load balancer in a web page.
        if text and not text.startswith("<"):
            message = f"{message}: {text}"
        document = None
    if isinstance(document, dict) and document.get("kind") == "Status":
        reason = str(document.get("reason") or "")
        message = f"{message}: {document.get('message') or reason}"
    return KubernetesError(message, status=status, reason=reason)


@contextmanager
def mapped(path: str) -> Iterator[None]:
    """What aiohttp raises, as a `KubernetesError` without a status."""
    import aiohttp

    try:
        yield
    except aiohttp.WSServerHandshakeError as error:
        message = f"{path}: HTTP {error.status} without the WebSocket that was asked for"
        raise KubernetesError(message, status=error.status) from error
    except aiohttp.ClientHttpProxyError as error:
        # Its own text holds the proxy's address, password and all.
        message = f"the proxy refused: HTTP {error.status} {error.message}"
        raise KubernetesError(message) from None
    except TimeoutError as error:
        raise KubernetesError(f"the API server did not answer {path} in time") from error
    except (aiohttp.ClientError, OSError, FrameTooLong, UnicodeError) as error:
        text = _SECRET.sub("//", _SSL_CONTEXT.sub("", str(error))) or type(error).__name__
        raise KubernetesError(f"cannot reach the API server: {text}") from error

"""JSON documents of other servers: bounded in size and time, without redirects.

What goes wrong is told without the library's own words, which may quote a header.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import anyio
import httpx2
from pydantic_core import from_json

from mcp_gpu.serving.access.model import Unverifiable
from transports.errors import causes

__all__ = ["Documents"]

SECONDS = 4.0
"""Longest wait for a document, connecting included."""

DOCUMENT_BYTES = 1 << 20
"""Longest one that is read. Key sets and reviews have a few kilobytes."""

CONNECTIONS = 40
"""Most connections to one server: as many as there are questions under way, about tokens and about
rights (`answers`), so that none waits behind others for a connection."""

KEEP_ALIVE_SECONDS = 20.0
"""How long one is kept idle: less than servers keep theirs, so that it is we who close it."""

CLOSE_SECONDS = 2.0
"""How long closing may take; TLS says goodbye."""


class Documents:
    """The documents of one server, over connections that are kept.

    Args:
        server: what it is called in errors.
        proxies: whether it is reached as the environment's proxy variables say.
    """

    def __init__(self, server: str, tls: ssl.SSLContext, *, proxies: bool) -> None:
        self._server = server
        self._users = 0
        self._closing = False
        self._client = httpx2.AsyncClient(
            verify=tls,
            trust_env=proxies,
            timeout=SECONDS,
            limits=httpx2.Limits(max_connections=CONNECTIONS, keepalive_expiry=KEEP_ALIVE_SECONDS),
            # The API server offers its key set as a media type of its own.
            headers={"accept": "application/json, */*", "accept-encoding": "identity"},
        )

    async def ask(
        self, method: str, url: str, *, authorization: str = "", document: Any = None
    ) -> tuple[int, Any]:
        """The status of the answer, and what its body holds if that says success, else None.

        Raises:
            Unverifiable: there is no answer, or none that makes sense.
        """
        headers = {"authorization": authorization} if authorization else {}
        self._users += 1
        try:
            with anyio.fail_after(SECONDS):
                return await self._exchange(method, url, headers, document)
        except (TimeoutError, httpx2.TimeoutException):
            raise Unverifiable(f"{self._server} does not answer within {SECONDS:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
            raise Unverifiable(f"{self._server} cannot be reached: {_words(error)}") from None
        except ValueError:
            raise Unverifiable(f"{self._server} answers with what is no JSON") from None
        finally:
            self._users -= 1
            if self._closing and not self._users:
                await self._close()

    async def aclose(self) -> None:
        """Close the connections, once what is under way has ended."""
        self._closing = True
        if not self._users:
            await self._close()

    async def _close(self) -> None:
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await self._client.aclose()

    async def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], document: Any
    ) -> tuple[int, Any]:
        request = self._client.build_request(method, url, headers=headers, json=document)
        response = await self._client.send(request, stream=True, follow_redirects=False)
        async with aclosing(response):
            if not response.is_success:
                return response.status_code, None
            body = bytearray()
            async with aclosing(response.aiter_raw()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > DOCUMENT_BYTES:
                        raise Unverifiable(
                            f"{self._server} answers with more than {DOCUMENT_BYTES} bytes"
                        )
            return response.status_code, from_json(bytes(body))


def _words(error: Exception) -> str:
    for cause in causes(error):
        match cause:
            case ssl.SSLError():
                return f"TLS: {getattr(cause, 'verify_message', '') or cause.reason or 'failed'}"
            case ConnectionRefusedError():
                return "connection refused"
    return "no connection" if isinstance(error, httpx2.ConnectError) else "the connection broke"

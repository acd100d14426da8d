"""A Kubernetes API server as one kubeconfig context or one pod's ServiceAccount sees it, raw.

Raw JSON documents, the lines of a watch, and WebSockets: the generated models of the client
library cost 25 MiB and half a second to import, and decoding 5,000 pods into them takes 4 s
against 0.3 s. What is hard, credentials of every kind, is the library's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from transports.credentials import Credentials, CredentialsError, in_cluster, load
from transports.framing import LineSplitter
from transports.refusals import NO_CREDENTIALS, KubernetesError, mapped, refuse

if TYPE_CHECKING:
    # 0.25 s and 45 MiB, which only those pay who talk to a cluster.
    import aiohttp

    from transports.websocket import WebSocket

__all__ = ["NO_CREDENTIALS", "KubernetesApi", "KubernetesError", "in_cluster", "shared"]

_Answer = TypeVar("_Answer")

CONNECT_SECONDS = 3.0
"""For name, proxy, TCP and TLS: an API server that takes longer is not there. TCP asks again after
a second. Less than the 5 s that a gateway gives a probe, which can then say why."""

RELOAD_SECONDS = 60.0
"""Age from which credentials are read again where no server answers to them."""

GET_SECONDS = 15.0
"""For one document; a page of 500 pods takes about 0.3 s."""

DOCUMENT_BYTES = 32 << 20
"""Longest document accepted: it takes several times as much memory once it is read, and whoever may
write objects makes lists of them as long as they like."""

CLOSE_SECONDS = 2.0
"""How long closing may take."""

MESSAGE_BYTES = 1 << 20
"""Longest WebSocket message accepted. The kubelet sends at most 32 KiB at a time."""


class KubernetesApi:
    """One API server.

    Entering does no I/O; whoever leaves last closes it. Credentials are loaded at the first
    request, and once more when the server answers 401: tokens expire, and programs that make them
    have to be asked again.

    Args:
        kubeconfig: a path, or several as in `KUBECONFIG`. Empty for the pod's own credentials
            where there are some, else for `KUBECONFIG` or `~/.kube/config`.
        context: a context of the kubeconfig; empty for its current one.
    """

    def __init__(self, kubeconfig: str = "", context: str = "") -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._access: Credentials | None = None
        self._loaded_at = 0.0
        self._loads: asyncio.Task[Credentials] | None = None
        self._loading = anyio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._users = 0

    async def __aenter__(self) -> Self:
        self._users += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._users -= 1
        if self._users:
            return
        if self._loads is not None:
            self._loads.cancel()
            self._loads = None
        session, self._session, self._access = self._session, None, None
        if session is not None:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await session.close()

    async def namespace(self) -> str:
        """The namespace of the credentials: the pod's own, or the context's (`default` if unset).

        Raises:
            KubernetesError: the credentials cannot be loaded.
        """
        access, _ = await self._open()
        return access.namespace

    async def get(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        seconds: float = GET_SECONDS,
        most_bytes: int = DOCUMENT_BYTES,
    ) -> Any:
        """One JSON document.

        Raises:
            KubernetesError: refused, not reached, no JSON, longer than `most_bytes`, or not within
                `seconds`.
        """
        async with self._response(path, params, total_seconds=seconds) as response:
            return await _document(response, path, most_bytes)

    async def tail(
        self, path: str, params: Mapping[str, str], *, last_bytes: int, seconds: float
    ) -> str:
        """The end of a plain text, such as a log: no more of it is kept than `last_bytes`.

        Raises:
            KubernetesError: refused, not reached, or not all of it within `seconds`.
        """
        kept = bytearray()
        async with self._response(path, params, total_seconds=seconds) as response:
            with mapped(path):
                async for piece in response.content.iter_any():
                    kept += piece
                    del kept[:-last_bytes]
        return kept.decode(errors="replace")

    async def post(self, path: str, document: Any, *, seconds: float = GET_SECONDS) -> Any:
        """The JSON document that answers one of ours.

        Raises:
            KubernetesError: as of `get`.
        """
        async with self._response(path, document=document, total_seconds=seconds) as response:
            return await _document(response, path, DOCUMENT_BYTES)

    @asynccontextmanager
    async def lines(
        self, path: str, params: Mapping[str, str], *, silence_seconds: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of an answer that goes on, such as a watch.

        Args:
            silence_seconds: how long the answer may take to begin, and then to go on.

        Raises:
            KubernetesError: on entering: refused or not reached. While the lines are read:
                broken off, or silent for too long. An end in good order just ends them.
        """
        async with (
            self._response(path, params, silence_seconds=silence_seconds) as response,
            aclosing(_lines(response, path)) as found,
        ):
            yield found

    async def websocket(
        self, path: str, params: Sequence[tuple[str, str]], protocols: Sequence[str]
    ) -> WebSocket:
        """Open a WebSocket, which the caller closes; `protocols` in order of preference.

        The caller bounds the opening with a cancel scope. There is no heartbeat: a pong may
        wait behind data, and from servers before 1.36 it says nothing of the kubelet.

        Raises:
            KubernetesError: refused or not reached.
        """
        return await self._authorized(partial(self._connect, path, params, protocols))

    async def _connect(
        self,
        path: str,
        params: Sequence[tuple[str, str]],
        protocols: Sequence[str],
        access: Credentials,
        session: aiohttp.ClientSession,
    ) -> WebSocket:
        from transports.websocket import WebSocket

        with mapped(path):
            opened = await session.ws_connect(
                access.host + path,
                params=params,
                protocols=protocols,
                max_msg_size=MESSAGE_BYTES,
                **_shown(access),
            )
        socket = WebSocket(opened)
        if socket.protocol not in protocols:
            await socket.aclose()
            message = f"{path}: the server speaks none of {', '.join(protocols)}"
            raise KubernetesError(message, status=101)
        return socket

    @asynccontextmanager
    async def _response(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        document: Any = None,
        total_seconds: float | None = None,
        silence_seconds: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        async def send(
            access: Credentials, session: aiohttp.ClientSession
        ) -> aiohttp.ClientResponse:
            from aiohttp import ClientTimeout

            with mapped(path):
                return await session.request(
                    "GET" if document is None else "POST",
                    access.host + path,
                    allow_redirects=False,
                    params=params,
                    json=document,
                    **_shown(access),
                    timeout=ClientTimeout(
                        total=total_seconds,
                        connect=CONNECT_SECONDS,
                        sock_read=silence_seconds,
                    ),
                )

        response = await self._authorized(send)
        try:
            yield response
        finally:
            response.close()  # without reading the rest of a watch

    async def _authorized(
        self, send: Callable[[Credentials, aiohttp.ClientSession], Awaitable[_Answer]]
    ) -> _Answer:
        access, session = await self._open()
        try:
            return await send(access, session)
        except KubernetesError as error:
            if error.status == 0 and anyio.current_time() - self._loaded_at > RELOAD_SECONDS:
                # The server may have moved, or have a certificate of a new authority.
                self._access = None if self._access is access else self._access
            if error.status != 401:
                raise
        return await send(*await self._open(instead_of=access))

    async def _open(
        self, instead_of: Credentials | None = None
    ) -> tuple[Credentials, aiohttp.ClientSession]:
        """The credentials in force, or new ones if those are `instead_of`; and the session."""
        async with self._loading:
            if self._access is None or self._access is instead_of:
                self._access = await self._load()
                self._loaded_at = anyio.current_time()
            if self._session is None:
                self._session = _new_session()
            return self._access, self._session

    async def _load(self) -> Credentials:
        """One load for however many callers wait, which goes on when they have left: a program
        that takes longer than they would wait has done its work when the next one asks."""
        if self._loads is None:
            self._loads = asyncio.create_task(self._load_on_thread())
            self._loads.add_done_callback(self._forget_failure)
        loads = self._loads
        try:
            return await asyncio.shield(loads)
        except CredentialsError as error:
            message = f"no usable Kubernetes credentials: {error}"
            raise KubernetesError(message, reason=NO_CREDENTIALS) from error
        finally:
            if loads.done():
                self._loads = None

    async def _load_on_thread(self) -> Credentials:
        # The import alone blocks for 0.2 s, and there are files to read.
        return await anyio.to_thread.run_sync(
            load, self._kubeconfig, self._context, abandon_on_cancel=True
        )

    def _forget_failure(self, loads: asyncio.Task[Credentials]) -> None:
        """Whoever waits is told; where nobody does, the next caller tries anew."""
        failed = loads.cancelled() or loads.exception() is not None
        if failed and self._loads is loads:
            self._loads = None


_SHARED: RunVar[dict[tuple[str, str], KubernetesApi]] = RunVar("shared")
"""Of this event loop, by kubeconfig and context."""


def shared(kubeconfig: str = "", context: str = "") -> KubernetesApi:
    """The one that all share who ask for it in this event loop: whoever comes second finds the
    credentials loaded, for which a program may have asked a cloud."""
    apis = _SHARED.get({})
    _SHARED.set(apis)
    return apis.setdefault((kubeconfig, context), KubernetesApi(kubeconfig, context))


def _new_session() -> aiohttp.ClientSession:
    import aiohttp

    return aiohttp.ClientSession(
        # Every exec stream holds a connection: the default of 100 would make the next one wait.
        connector=aiohttp.TCPConnector(limit=0),
        middlewares=(refuse,),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _lines(response: aiohttp.ClientResponse, path: str) -> AsyncGenerator[bytes, None]:
    splitter = LineSplitter()
    with mapped(path):
        async for chunk in response.content.iter_any():
            for line in splitter.feed(chunk):
                yield line


async def _document(response: aiohttp.ClientResponse, path: str, most_bytes: int) -> Any:
    body = bytearray()
    with mapped(path):
        async for piece in response.content.iter_any():  # unpacked, where it comes packed
            body += piece
            if len(body) > most_bytes:
                raise KubernetesError(f"{path}: the answer is longer than {most_bytes:,} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise KubernetesError(f"{path}: the answer is not JSON: {error}") from error


def _shown(access: Credentials) -> dict[str, Any]:
    """What every request takes of the credentials, as aiohttp's arguments."""
    return {
        "headers": {"Authorization": access.authorization} if access.authorization else {},
        "proxy": access.proxy,
        "ssl": access.tls,
        "server_hostname": access.server_name,
    }

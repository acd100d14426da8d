"""A Kubernetes API server as one kubeconfig context or one pod's ServiceAccount sees it, raw.

Raw JSON documents, the lines of a watch, and WebSockets: the generated models of the client
library cost 25 MiB and half a second to import, and decoding 5,000 pods into them takes 4 s
against 0.3 s. What is hard, credentials of every kind, is the library's.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import anyio.to_thread

from transports.errors import MESSAGE_CHARS, one_line
from transports.framing import FrameTooLong, LineSplitter

if TYPE_CHECKING:
    # 0.25 s and 45 MiB, which only those pay who talk to a cluster.
    import aiohttp

__all__ = ["KubernetesApi", "KubernetesError", "in_cluster", "refusal"]

_Answer = TypeVar("_Answer")

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where Kubernetes mounts a pod's credentials."""

CONNECT_SECONDS = 5.0
"""For TCP and TLS: an API server that takes longer is not there."""

GET_SECONDS = 15.0
"""For one document; a page of 500 pods takes about 0.3 s."""

LOAD_SECONDS = 30.0
"""For credentials: a kubeconfig may start a program that asks a cloud for them."""

ERROR_BYTES = 65_536
"""How much of a refusal is read; a `Status` is a few hundred bytes."""

CLOSE_SECONDS = 2.0
"""How long a WebSocket's closing waits for the other side."""

MESSAGE_BYTES = 1 << 20
"""Longest WebSocket message accepted. The kubelet sends at most 32 KiB at a time."""


_SSL_CONTEXT = re.compile(r" ssl:<[^>]*>")
"""What aiohttp puts into the text of a failed connection, and says nobody anything."""


class KubernetesError(Exception):
    """The API server refused, or was not reached.

    Attributes:
        status: the HTTP status; 0 where there was no answer at all.
        reason: Kubernetes' machine-readable reason such as `Forbidden` or `Expired`, else empty.
    """

    def __init__(self, message: str, *, status: int = 0, reason: str = "") -> None:
        self.message = one_line(message, MESSAGE_CHARS)
        super().__init__(self.message)
        self.status = status
        self.reason = reason


def in_cluster() -> bool:
    """Whether this process runs in a pod that has been given credentials."""
    token = os.path.join(SERVICE_ACCOUNT, "token")
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and os.path.isfile(token)


@dataclass(frozen=True, slots=True)
class _Access:
    """What every request needs: where the server is and what to show it."""

    host: str
    tls: ssl.SSLContext
    server_name: str | None
    proxy: str | None
    authorization: str | None
    namespace: str

    def __repr__(self) -> str:
        return f"_Access({self.host!r})"  # the default would show the token


class KubernetesApi:
    """One API server.

    Entering does no I/O. Credentials are loaded at the first request, and once more when the
    server answers 401: tokens expire, and programs that make them have to be asked again.

    Args:
        kubeconfig: a path, or several as in `KUBECONFIG`. Empty for the pod's own credentials
            where there are some, else for `KUBECONFIG` or `~/.kube/config`.
        context: a context of the kubeconfig; empty for its current one.
    """

    def __init__(self, kubeconfig: str = "", context: str = "") -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._access: _Access | None = None
        self._loading = anyio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session, self._session, self._access = self._session, None, None
        if session is not None:
            with anyio.CancelScope(shield=True):
                await session.close()

    async def namespace(self) -> str:
        """The namespace of the credentials: the pod's own, or the context's (`default` if unset).

        Raises:
            KubernetesError: the credentials cannot be loaded.
        """
        access, _ = await self._open()
        return access.namespace

    async def get(
        self, path: str, params: Mapping[str, str] | None = None, *, seconds: float = GET_SECONDS
    ) -> Any:
        """One JSON document.

        Raises:
            KubernetesError: refused, not reached, no JSON, or not within `seconds`.
        """
        async with self._response(path, params, total_seconds=seconds) as response:
            with _mapped(path):
                body = await response.read()
        try:
            return json.loads(body)
        except ValueError as error:
            raise KubernetesError(f"{path}: the answer is not JSON: {error}") from error

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

    @asynccontextmanager
    async def websocket(
        self, path: str, params: Sequence[tuple[str, str]], protocols: Sequence[str]
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A WebSocket, whose `protocol` is the one of `protocols` that the server picked.

        The caller bounds the opening with a cancel scope. There is no heartbeat: a pong may
        wait behind data, and from servers before 1.36 it says nothing of the kubelet.

        Raises:
            KubernetesError: on entering: refused or not reached.
        """
        socket = await self._authorized(partial(self._connect, path, params, protocols))
        try:
            yield socket
        finally:
            with anyio.CancelScope(shield=True):
                await socket.close()

    async def _connect(
        self,
        path: str,
        params: Sequence[tuple[str, str]],
        protocols: Sequence[str],
        access: _Access,
        session: aiohttp.ClientSession,
    ) -> aiohttp.ClientWebSocketResponse:
        from aiohttp import ClientWSTimeout

        with _mapped(path):
            return await session.ws_connect(
                access.host + path,
                params=params,
                protocols=protocols,
                headers=_headers(access),
                proxy=access.proxy,
                ssl=access.tls,
                server_hostname=access.server_name,
                timeout=ClientWSTimeout(ws_close=CLOSE_SECONDS),
                max_msg_size=MESSAGE_BYTES,
            )

    @asynccontextmanager
    async def _response(
        self,
        path: str,
        params: Mapping[str, str] | None,
        *,
        total_seconds: float | None = None,
        silence_seconds: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        async def get(access: _Access, session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
            from aiohttp import ClientTimeout

            with _mapped(path):
                return await session.get(
                    access.host + path,
                    allow_redirects=False,
                    params=params,
                    headers=_headers(access),
                    proxy=access.proxy,
                    ssl=access.tls,
                    server_hostname=access.server_name,
                    timeout=ClientTimeout(
                        total=total_seconds,
                        sock_connect=CONNECT_SECONDS,
                        sock_read=silence_seconds,
                    ),
                )

        response = await self._authorized(get)
        try:
            yield response
        finally:
            response.close()  # without reading the rest of a watch

    async def _authorized(
        self, send: Callable[[_Access, aiohttp.ClientSession], Awaitable[_Answer]]
    ) -> _Answer:
        access, session = await self._open()
        try:
            return await send(access, session)
        except KubernetesError as error:
            if error.status != 401:
                raise
        return await send(*await self._open(instead_of=access))

    async def _open(
        self, instead_of: _Access | None = None
    ) -> tuple[_Access, aiohttp.ClientSession]:
        """The credentials in force, or new ones if those are `instead_of`; and the session."""
        async with self._loading:
            if self._access is None or self._access is instead_of:
                self._access = await self._load()
            if self._session is None:
                self._session = _new_session()
            return self._access, self._session

    async def _load(self) -> _Access:
        try:
            with anyio.fail_after(LOAD_SECONDS):
                # On a thread: the import alone blocks for 0.2 s, and there are files to read.
                return await anyio.to_thread.run_sync(
                    _load, self._kubeconfig, self._context, abandon_on_cancel=True
                )
        except TimeoutError:
            raise KubernetesError(f"no credentials within {LOAD_SECONDS:g} s") from None
        # The boundary to the library, which raises what its parsers, ssl and the file system
        # raise on a kubeconfig that is not one.
        except Exception as error:
            text = str(error) or type(error).__name__
            raise KubernetesError(f"no usable Kubernetes credentials: {text}") from error


def _new_session() -> aiohttp.ClientSession:
    import aiohttp

    return aiohttp.ClientSession(
        # Every exec stream holds a connection: the default of 100 would make the next one wait.
        connector=aiohttp.TCPConnector(limit=0),
        middlewares=(_refuse,),
        # As kubectl does: a laptop may reach the API server through HTTPS_PROXY alone.
        trust_env=True,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _refuse(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Read a refusal's `Status` before the WebSocket client drops it."""
    response = await send(request)
    if response.status < 300:
        return response
    async with response:
        body = await response.content.read(ERROR_BYTES)
    raise refusal(response.status, response.reason or "", body)


def refusal(status: int, phrase: str, body: bytes) -> KubernetesError:
    """What an HTTP refusal says, in the words of its Kubernetes `Status` where it has one."""
    message, reason = f"HTTP {status} {phrase}".strip(), ""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if isinstance(document, dict) and document.get("kind") == "Status":
        message = f"{message}: {document.get('message') or document.get('reason')}"
        reason = str(document.get("reason") or "")
    return KubernetesError(message, status=status, reason=reason)


async def _lines(response: aiohttp.ClientResponse, path: str) -> AsyncGenerator[bytes, None]:
    splitter = LineSplitter()
    with _mapped(path):
        async for chunk in response.content.iter_any():
            for line in splitter.feed(chunk):
                yield line


def _headers(access: _Access) -> dict[str, str]:
    return {"Authorization": access.authorization} if access.authorization else {}


@contextmanager
def _mapped(path: str) -> Iterator[None]:
    """What aiohttp raises, as a `KubernetesError` without a status."""
    import aiohttp

    try:
        yield
    except TimeoutError as error:
        raise KubernetesError(f"the API server did not answer {path} in time") from error
    except (aiohttp.ClientError, OSError, FrameTooLong) as error:
        text = _SSL_CONTEXT.sub("", str(error)) or type(error).__name__
        raise KubernetesError(f"cannot reach the API server: {text}") from error


def _load(kubeconfig: str, context: str) -> _Access:
    from kubernetes.aio import config
    from kubernetes.aio.client import Configuration

    found = Configuration()
    namespace = ""
    if not kubeconfig and not context and in_cluster():
        config.load_incluster_config(found, try_refresh_token=False)
        namespace = Path(SERVICE_ACCOUNT, "namespace").read_text(encoding="utf-8").strip()
    else:
        loader = asyncio.run(
            config.load_kube_config(
                kubeconfig or None, context or None, found, persist_config=False
            )
        )
        namespace = loader.current_context["context"].get("namespace", "")
    tls = ssl.create_default_context(cafile=found.ssl_ca_cert, cadata=found.ca_cert_data)
    if found.cert_file:
        tls.load_cert_chain(found.cert_file, keyfile=found.key_file)
    if not found.verify_ssl:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    return _Access(
        host=found.host,
        tls=tls,
        server_name=found.tls_server_name,
        proxy=found.proxy,
        authorization=found.api_key.get("BearerToken"),
        namespace=namespace or "default",
    )

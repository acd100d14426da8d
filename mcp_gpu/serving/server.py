"""One MCP server object on all its listeners at once, from start to a graceful end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from anyio.abc import TaskStatus
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import ListenHandler

from mcp_gpu.serving.endpoint import Ceilings, HttpEndpoint, ListenError, bind
from mcp_gpu.serving.limits import Limits
from mcp_gpu.serving.pages import Pages, Readiness
from mcp_gpu.serving.signals import obeying_signals
from mcp_gpu.serving.stream import Stop
from mcp_gpu.telemetry.calls import Calls
from transports.base import Identity

if TYPE_CHECKING:
    from mcp_gpu.telemetry.metrics.family import Family

__all__ = ["HttpEndpoint", "ListenError", "Listening", "Readiness", "Served", "serve"]

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 4
"""How long calls in flight may still take after the request to stop: with what else there is to
close, the process ends in under 6 s, well inside Kubernetes' grace period of 30."""

DRAIN_MARGIN_SECONDS = 0.5
"""What the listeners get beyond that to say goodbye."""

LAST_RESORT_SECONDS = 1.5
"""How long after that a process whose event loop or exit hangs is ended the hard way."""

OPEN_DOOR = (
    "HTTP beyond loopback, and callers need show no token: give --token-file or "
    "--kubernetes-tokens, or say --allow-anonymous if whoever reaches the port may read every GPU"
)

OPEN_ON_PURPOSE = (
    "NO AUTHENTICATION: whoever reaches port %d of %s reads every GPU; this is what "
    "--allow-anonymous asks for"
)

IN_THE_CLEAR = (
    "port %d of %s speaks plain HTTP: the tokens that callers show cross the network in the clear, "
    "and whoever reads one can call with it. Let HTTPS end here (--tls-cert-file, --tls-key-file), "
    "or let it end at a proxy and nothing but that reach the port"
)


class Served(Protocol):
    """What is served: a `mcp_gpu.registry.Registry`, or a bare server with an identity.

    The server's lifespan is entered once for the streams and twice for HTTP.
    """

    @property
    def server(self) -> Server[Any]: ...

    @property
    def calls(self) -> Calls:
        """The calls of its tools."""

    def identity(self) -> Identity: ...

    def needs(self, method: str, params: Mapping[str, Any]) -> Iterable[str]:
        """The tools whose content a request would be shown: a caller needs the right to each."""

    def rights(
        self, method: str, params: Mapping[str, Any]
    ) -> Iterable[tuple[str, str, str, bool]]:
        """What a request's caller has to be allowed to read in Kubernetes: verb, resource of the
        core group, namespace (empty: all), and whether nothing is told without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where this server can be reached."""

    http: tuple[tuple[str, int], ...] = ()
    """Address and port of each HTTP listener."""
    tls: bool = False
    """Whether it is HTTPS."""
    socket_path: Path | None = None
    stdio: bool = False

    def __str__(self) -> str:
        scheme = "https" if self.tls else "http"
        places = [
            f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/mcp"
            for host, port in self.http
        ]
        if self.socket_path:
            places.append(str(self.socket_path))
        if self.stdio:
            places.append("stdio")
        return ", ".join(places)


Listener = Callable[[Any], Coroutine[Any, Any, None]]
"""Serves, given the server's lifespan state, until the stop; returns when all is answered."""


async def serve(
    served: Served,
    *,
    http: HttpEndpoint | None = None,
    socket_path: Path | None = None,
    stdio: bool = False,
    readiness: Callable[[], Readiness] = lambda: Readiness(True),
    metrics: Callable[[], Iterable[Family]] = tuple,
    stop: anyio.Event | None = None,
    signals: bool = True,
    delay_seconds: float = 0.0,
    drain_seconds: int = DRAIN_SECONDS,
    task_status: TaskStatus[Listening] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set, SIGTERM or SIGINT comes, or the client at stdin ends.

    Args:
        readiness: asked at every `/readyz`; must not block.
        metrics: what `/metrics` tells of the role, asked at every scrape; must not block.
        signals: whether this call owns the process's signals (main thread only). A second one
            ends the process at once.
        delay_seconds: how long new calls are still taken after the request to stop, on every
            listener alike. The end of stdin, whose client has gone, is not waited for.
        drain_seconds: how long calls in flight may take after that.
        task_status: told where the server listens once it does (`await tasks.start(...)`).

    Raises:
        ListenError: a listener could not be opened; nothing was served.
    """
    stopping = Stop(_end_subscriptions(served.server), announced=stop or anyio.Event())
    pages = Pages(
        identity=served.identity,
        calls=served.calls,
        limits=Limits(Ceilings() if http is None else http.ceilings),
        readiness=readiness,
        stop=stopping,
        tells_all=http is not None and not http.access.wants_token,
        metrics=metrics,
    )
    with ExitStack() as opened:
        listeners: list[Listener] = []
        addresses: tuple[tuple[str, int], ...] = ()
        if http is not None:
            listener, addresses = _listen_http(opened, served, http, pages, drain_seconds)
            listeners.append(listener)
        if socket_path is not None:
            listeners.append(_listen_unix(opened, served.server, socket_path, stopping))
        if stdio:
            listeners.append(_listen_stdio(served.server, stopping))
        tls = http is not None and http.tls is not None
        listening = Listening(http=addresses, tls=tls, socket_path=socket_path, stdio=stdio)
        if signals:
            last_seconds = delay_seconds + drain_seconds + LAST_RESORT_SECONDS
            opened.enter_context(obeying_signals(stopping.announced.set, last_seconds))
        async with served.server.lifespan(served.server) as state:
            with anyio.CancelScope() as bound:
                async with anyio.create_task_group() as tasks:
                    for listener in listeners:
                        tasks.start_soon(listener, state)
                    logger.info("listening: %s", listening)
                    task_status.started(listening)
                    await _until_requested(stopping, delay_seconds)
                    bound.deadline = anyio.current_time() + drain_seconds + DRAIN_MARGIN_SECONDS
            if bound.cancelled_caught:
                logger.warning("gave up on calls that took longer than %d s", drain_seconds)


async def _until_requested(stop: Stop, delay_seconds: float) -> None:
    """Wait for the stop, which follows its announcement after the delay."""

    async def follow() -> None:
        await stop.announced.wait()
        await anyio.sleep(delay_seconds)
        stop.requested.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await stop.requested.wait()
        stop.announced.set()
        tasks.cancel_scope.cancel()


# Each listener is imported when it is asked for: uvicorn costs a stdio server 20 ms and 1 MiB that
# it has no use for, and Unix sockets need what Windows lacks.


def _listen_http(
    opened: ExitStack, served: Served, endpoint: HttpEndpoint, pages: Pages, drain_seconds: int
) -> tuple[Listener, tuple[tuple[str, int], ...]]:
    from mcp_gpu.serving.access.gate import Gate
    from mcp_gpu.serving.certificate import Certificate
    from mcp_gpu.serving.http import serve_http

    if endpoint.open_to_all and not endpoint.access.anonymous:
        raise ListenError(OPEN_DOOR)
    gate = Gate(endpoint.access, served.needs, served.rights)
    certificate = None if endpoint.tls is None else Certificate(endpoint.tls)
    sockets = bind(endpoint)
    if endpoint.open_to_all or endpoint.in_the_clear:
        words = OPEN_ON_PURPOSE if endpoint.open_to_all else IN_THE_CLEAR
        logger.warning(words, sockets[0].getsockname()[1], ", ".join(endpoint.hosts))
    for bound in sockets:
        opened.callback(bound.close)
    addresses = tuple(bound.getsockname()[:2] for bound in sockets)

    async def listener(state: Any) -> None:
        await serve_http(
            served.server,
            endpoint,
            sockets,
            gate=gate,
            certificate=certificate,
            pages=replace(pages, certificate=certificate),
            drain_seconds=drain_seconds,
        )

    return listener, addresses


def _listen_unix(opened: ExitStack, server: Server[Any], path: Path, stop: Stop) -> Listener:
    from mcp_gpu.serving import unixsocket

    bound = opened.enter_context(unixsocket.bind(path))

    async def listener(state: Any) -> None:
        await unixsocket.serve_unix_socket(server, bound, lifespan_state=state, stop=stop)

    return listener


def _listen_stdio(server: Server[Any], stop: Stop) -> Listener:
    from mcp_gpu.serving.stdio import serve_stdio

    async def listener(state: Any) -> None:
        await serve_stdio(server, lifespan_state=state, stop=stop)

    return listener


def _end_subscriptions(server: Server[Any]) -> Callable[[], None]:
    entry = server.get_request_handler("subscriptions/listen")
    if entry is not None and isinstance(entry.handler, ListenHandler):
        return entry.handler.close
    return lambda: None

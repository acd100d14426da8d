"""Who wants to know when a resource changes, and the one look for all of them.

At 2026-07-28 a client listens (`subscriptions/listen`); before it subscribes to each resource, and
is told on the channel it came by. Nothing is looked at while nobody wants to know.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import anyio
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourceUpdated
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    SubscriptionFilter,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
)

from mcp_gpu.registry.tool import UnknownResource

if TYPE_CHECKING:
    from mcp_gpu.registry.resource import Found

__all__ = ["Look", "Updates", "connection_of"]

logger = logging.getLogger(__name__)

SUBSCRIPTIONS = 256
"""Open `subscriptions/listen` streams. A client needs one."""

URIS = 100
"""Most resources that one stream or client hears of. Whoever wants more nodes wants the fleet."""

FIRST_LOOK_SECONDS = 2.0
"""How long a subscription waits for the look that later ones are compared with. A resource whose
first look came later is told as changed then: it may have been."""

TELL_SECONDS = 1.0
"""How long a client may take to be told, of those who wait for nothing else."""

NO_WAY = (
    "Over HTTP nothing can be sent at this revision of the protocol but answers: serving keeps no "
    "sessions. Listen with subscriptions/listen (2026-07-28), subscribe over stdio, or read the "
    "resource again."
)

Context = ServerRequestContext[Any, Any]


Look = Callable[[Sequence["Found"]], Awaitable[Mapping[str, Hashable]]]


class Updates:
    """The subscriptions of one server.

    Args:
        look: finds out, for resources, what differs once they have changed, by URI.
        period_seconds: between one look and the next, whoever subscribes meanwhile.
        match: which resource a URI is of.
    """

    def __init__(
        self, look: Look, period_seconds: float, match: Callable[[str], Found | None]
    ) -> None:
        self._look_at, self._period_seconds, self._match = look, period_seconds, match
        self._bus = InMemorySubscriptionBus()
        self._wanted: Counter[str] = Counter()
        self._seen: dict[str, Hashable] = {}
        self._late: set[str] = set()
        """Without a first look when their subscription was acknowledged."""
        self._clients: dict[Connection, set[str]] = {}
        """Of the handshake's era, which each have a channel."""
        self._changed = anyio.Event()
        self.ended = False
        """Whether nobody can subscribe any more: the server stops."""
        self.listen = _Listen(self, self._bus)

    def offered(self, uris: Iterable[str]) -> list[str]:
        """Those of the URIs that can be subscribed to, of the first of them."""
        return [uri for uri in islice(dict.fromkeys(uris), URIS) if self._is_offered(uri)]

    def _is_offered(self, uri: str) -> bool:
        found = self._match(uri)
        if found is None or not found.resource.watched:
            return False
        try:
            found.arguments()
        except UnknownResource:
            return False
        return True

    async def subscribe(self, context: Context, found: Found) -> None:
        """Tell the client of this connection from now on.

        Raises:
            MCPError: it has no channel to be told on, or the resource is not watched.
            UnknownResource: there is no such thing.
        """
        connection = connection_of(context)
        if not connection.has_standalone_channel:
            raise MCPError(INVALID_REQUEST, NO_WAY)
        found.arguments()
        if not found.resource.watched:
            raise MCPError(INVALID_REQUEST, f"{found.resource.name} tells of no changes.")
        if connection not in self._clients:
            self._clients[connection] = set()
            connection.exit_stack.callback(self._forget, connection)
        uris = self._clients[connection]
        if found.uri not in uris:
            if len(uris) >= URIS:
                raise MCPError(INVALID_REQUEST, f"You have subscribed to {URIS} resources already.")
            uris.add(found.uri)
            await self._want([found.uri])

    def unsubscribe(self, context: Context, uri: str) -> None:
        """Tell the client of this connection no more."""
        uris = self._clients.get(connection_of(context), set())
        if uri in uris:
            uris.remove(uri)
            self._leave([uri])

    def _forget(self, connection: Connection) -> None:
        self._leave(self._clients.pop(connection))

    @asynccontextmanager
    async def wanted(self, uris: Sequence[str]) -> AsyncIterator[None]:
        """Look at these meanwhile."""
        try:
            await self._want(uris)
            yield
        finally:
            self._leave(uris)

    async def _want(self, uris: Sequence[str]) -> None:
        self._wanted.update(uris)
        self._notice()
        with anyio.move_on_after(FIRST_LOOK_SECONDS):
            await self._until(lambda: self.ended or all(uri in self._seen for uri in uris))
        self._late.update(uri for uri in uris if uri in self._wanted and uri not in self._seen)

    def _leave(self, uris: Iterable[str]) -> None:
        for uri in uris:
            self._wanted[uri] -= 1
            if self._wanted[uri] <= 0:
                del self._wanted[uri]
                self._seen.pop(uri, None)
                self._late.discard(uri)

    def end(self) -> None:
        """Let no subscription begin any more, nor wait to."""
        self.ended = True
        self._notice()

    async def run(self) -> None:
        """Look while somebody wants to know, until cancelled."""
        while True:
            await self._until(lambda: bool(self._wanted))
            await self._look()
            await anyio.sleep(self._period_seconds)

    async def _look(self) -> None:
        found = [each for uri in self._wanted if (each := self._match(uri)) is not None]
        try:
            now = await self._look_at(found)
        except Exception:  # boundary: one look; the next may go well
            logger.exception("looking for changes of resources failed")
            return
        changed = []
        for uri, value in now.items():
            if uri not in self._wanted:
                continue
            if uri in self._late or self._seen.get(uri, value) != value:
                changed.append(uri)
            self._late.discard(uri)
            self._seen[uri] = value
        self._notice()
        async with anyio.create_task_group() as telling:
            for uri in changed:
                await self._bus.publish(ResourceUpdated(uri))
                for connection, uris in self._clients.items():
                    if uri in uris:
                        telling.start_soon(_tell, connection, uri)

    def _notice(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()


class _Listen(ListenHandler):
    """`subscriptions/listen`, acknowledged for what is told here: no list ever changes."""

    def __init__(self, updates: Updates, bus: InMemorySubscriptionBus) -> None:
        super().__init__(bus, max_subscriptions=SUBSCRIPTIONS)
        self._updates = updates

    async def __call__(
        self, ctx: Context, params: SubscriptionsListenRequestParams
    ) -> SubscriptionsListenResult:
        uris = self._updates.offered(params.notifications.resource_subscriptions or ())
        kept = SubscriptionFilter(resource_subscriptions=uris or None)
        async with self._updates.wanted(uris):
            if self._updates.ended:  # after `close`, which ends only those that have begun
                raise MCPError(INTERNAL_ERROR, "The server is stopping.")
            return await super().__call__(ctx, params.model_copy(update={"notifications": kept}))

    def close(self) -> None:
        self._updates.end()
        super().close()


def connection_of(context: Context) -> Connection:
    """The client's connection, for its channel and its end. The SDK's `Context` is to have it as
    `connection`; what handlers are given today does not."""
    return context.session._connection


async def _tell(connection: Connection, uri: str) -> None:
    with anyio.move_on_after(TELL_SECONDS):
        await connection.send_resource_updated(uri)

"""A small copy of one Kubernetes collection, kept current by a watch.

The list is streamed where the server can (5,000 pods took 0.3 s and 3 MiB that way, 1.5 s and
45 MiB in pages), and listed in pages where it cannot. Then the watch goes on from the last
version seen, over any number of connections; only a version that the server has forgotten makes
it list anew. What has been copied is kept through every outage.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio

from transports.kubernetes import KubernetesApi, KubernetesError
from transports.text import is_name

__all__ = ["Reflector"]

logger = logging.getLogger(__name__)

V = TypeVar("V")

PAGE = 250
"""Objects per page of a list: parsing 500 pods takes 0.15 s, in which nothing else runs."""

WATCH_SECONDS = (240, 300)
"""How long a watch is asked to last, at random between the two: not all gateways come back at
once, and load balancers that cut idle connections after 5 minutes find none."""

SILENCE_SECONDS = 150.0
"""A watch as silent as this is taken for dead and opened again, from the same version: servers
send a bookmark about every minute."""

INITIAL_SECONDS = 8.0
"""For the streamed list. A server whose etcd reports no progress never ends it."""

QUIET_SECONDS = 0.5
"""A watch that went on from an old version and has been quiet for so long has missed nothing.
Servers accept it first, and then say at once what has happened since, or that they forgot."""

FIRST_PAUSE_SECONDS = 1.0
"""Longest pause before the first new attempt; each one after it may be twice as long."""

STEADY_SECONDS = 10.0
"""What lasted this long was no failure to begin with: pauses start small again."""

LIST_ENDS = "k8s.io/initial-events-end"
"""Annotation of the bookmark that ends a streamed list."""

FORBIDDEN = 403

EXPIRED = 410
"""The server has forgotten the version to go on from: as a status, or as an event of a watch."""

INVALID = (400, 422)
"""How servers refuse a streamed list: those before 1.27 and those with the feature off."""


class Reflector(Generic[V]):
    """The objects of one collection, each reduced to what `keep` makes of it.

    Args:
        what: the collection, for the log.
        path: the collection's path; asked anew for every list and watch.
        keep: reduces an object as the server sends it. Called once for each change.
        selector: label selector; empty for all.
        elsewhere: asked when the first list is refused (403): whether `path` now names another
            collection, which is then tried at once.
        told: messages of problems that are in the log, shared by those whom one problem would
            make say the same.
        longest_pause_seconds: between two attempts while none succeeds.
        sleep, jitter, clock: for tests. `jitter(most)` picks a pause of at most `most` seconds.
    """

    def __init__(
        self,
        api: KubernetesApi,
        what: str,
        path: Callable[[], Awaitable[str]],
        keep: Callable[[Mapping[str, Any]], V],
        *,
        selector: str = "",
        elsewhere: Callable[[], bool] = lambda: False,
        told: set[str] | None = None,
        longest_pause_seconds: float = 15.0,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        jitter: Callable[[float], float] = lambda most: random.uniform(0, most),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.items: dict[str, V] = {}
        """By namespace and name, `gpu/agent-1`, or by the name of what is in no namespace."""
        self.changes = 0
        """Grows with every change of `items`."""
        self.lists = 0
        """How often the whole collection has been read."""
        self.as_of: float | None = None
        """Unix seconds at which the server last confirmed `items`; None before the first list."""
        self.problem: KubernetesError | None = None
        """Why the copy is not kept current; None while it is."""
        self.tried = anyio.Event()
        """Set once the first list is complete, or has failed."""
        self._api = api
        self.what = what
        self._path = path
        self._keep = keep
        self._selector = {"labelSelector": selector} if selector else {}
        self._elsewhere = elsewhere
        self._told = set() if told is None else told
        self._longest_pause_seconds = longest_pause_seconds
        self._sleep = sleep
        self._jitter = jitter
        self._clock = clock
        self._version = ""
        """Where the watch goes on from; empty to list anew."""

    async def run(self) -> None:
        """Keep the copy current until cancelled. Raises nothing else, and always pauses between
        two attempts."""
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            began = self._clock()
            try:
                await self._attempt(await self._path())
            except KubernetesError as error:
                if error.status == FORBIDDEN and self.as_of is None and self._elsewhere():
                    continue
                self._fail(error)
            if self._clock() - began >= STEADY_SECONDS:
                pause_seconds = FIRST_PAUSE_SECONDS
            await self._sleep(self._jitter(pause_seconds))
            pause_seconds = min(pause_seconds * 2, self._longest_pause_seconds)

    async def _attempt(self, path: str) -> None:
        """List if need be, then watch until the server ends it."""
        if not self._version:
            try:
                if await self._stream(path):
                    return
            except KubernetesError as error:
                if error.status not in INVALID:
                    raise
            await self._page(path)
        params = self._watching() | {"resourceVersion": self._version}
        heard = False
        began = asyncio.get_running_loop().time()
        async with self._api.lines(path, params, silence_seconds=SILENCE_SECONDS) as lines:
            quiet = asyncio.get_running_loop().call_later(QUIET_SECONDS, self._confirm)
            try:
                async for line in lines:
                    event = _event(line)
                    quiet.cancel()
                    heard = True
                    self._follow(event)
            finally:
                quiet.cancel()
        if not heard and asyncio.get_running_loop().time() - began < QUIET_SECONDS:
            raise KubernetesError("the API server ends each watch at once")

    async def _stream(self, path: str) -> bool:
        """List by a watch that begins with all objects there are, and go on watching.

        Returns:
            False where the server began well and did not come to the list's end.

        Raises:
            KubernetesError: refused, not reached, or broken off.
        """
        params = self._watching() | {
            "sendInitialEvents": "true",
            "resourceVersionMatch": "NotOlderThan",
        }
        listed: dict[str, V] = {}
        complete = False
        with anyio.move_on_after(INITIAL_SECONDS) as scope:
            async with self._api.lines(path, params, silence_seconds=SILENCE_SECONDS) as lines:
                async for line in lines:
                    event = _event(line)
                    if complete:
                        self._follow(event)
                    elif event.ends_list:
                        scope.deadline, complete = math.inf, True
                        self._replace(listed, event.version)
                    else:
                        self._apply(event, listed)
        return complete

    async def _page(self, path: str) -> None:
        """List page by page.

        Raises:
            KubernetesError: refused, not reached, or so slow that the server has forgotten (410).
        """
        listed: dict[str, V] = {}
        params = self._selector | {"limit": str(PAGE)}
        while True:
            document = await self._api.get(path, params)
            with _reading("a list"):
                metadata = document["metadata"]
                for item in document["items"] or ():
                    listed[_key(item["metadata"])] = self._keep(item)
                more, version = metadata.get("continue"), metadata["resourceVersion"]
            if not more:
                self._replace(listed, version)
                return
            params |= {"continue": more}

    def _watching(self) -> dict[str, str]:
        shortest, longest = WATCH_SECONDS
        seconds = shortest + int(self._jitter(longest - shortest))
        return self._selector | {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }

    def _follow(self, event: _Event) -> None:
        self._apply(event, self.items)
        self._version = event.version
        self._confirm()

    def _apply(self, event: _Event, items: dict[str, V]) -> None:
        if event.type in ("ADDED", "MODIFIED"):
            with _reading(f"{self.what} {event.key}"):
                items[event.key] = self._keep(event.object)
        elif event.type == "DELETED":
            items.pop(event.key, None)
        else:
            return  # a bookmark: it has nothing but its version
        self.changes += 1

    def _replace(self, listed: dict[str, V], version: str) -> None:
        self.items = listed
        self.changes += 1
        self.lists += 1
        self._version = version
        self._confirm()

    def _confirm(self) -> None:
        self.as_of = self._clock()
        if self.problem is not None:
            logger.info("watching again", extra={"collection": self.what})
            self._told.discard(self.problem.message)
        self.problem = None
        self.tried.set()

    def _fail(self, error: KubernetesError) -> None:
        if error.status == EXPIRED and self._version:
            logger.info("watch expired, listing anew", extra={"collection": self.what})
            self._version = ""
            return
        if self.problem is not None and self.problem.message != error.message:
            self._told.discard(self.problem.message)
        if error.message not in self._told:
            self._told.add(error.message)
            facts = {"collection": self.what, "problem": error.message}
            logger.warning("cannot watch", extra=facts)
        self.problem = error
        if error.status != EXPIRED:  # a list that took too long is begun again
            self.tried.set()


@dataclass(frozen=True, slots=True)
class _Event:
    """One line of a watch."""

    type: str
    key: str
    """Of the object, among `Reflector.items`; empty in bookmarks."""
    version: str
    ends_list: bool
    object: Mapping[str, Any]


def _event(line: bytes) -> _Event:
    """Read a line of a watch.

    Raises:
        KubernetesError: it is no event, or an event that ends the watch with an error.
    """
    with _reading("an event"):
        document = json.loads(line)
        kind, item = document["type"], document["object"]
        if kind == "ERROR":
            raise KubernetesError(
                f"the API server ended the watch: {item.get('message')}",
                status=int(item.get("code") or 0),
                reason=str(item.get("reason") or ""),
            )
        metadata = item["metadata"]
        return _Event(
            type=kind,
            key=_key(metadata) if "name" in metadata else "",
            version=metadata["resourceVersion"],
            ends_list=(metadata.get("annotations") or {}).get(LIST_ENDS) == "true",
            object=item,
        )


def _key(metadata: Mapping[str, Any]) -> str:
    namespace, name = metadata.get("namespace"), metadata["name"]
    if not all(is_name(each) for each in (namespace or name, name)):
        raise ValueError("a name in it cannot be one")
    return f"{namespace}/{name}" if namespace else str(name)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """What a document of another shape than Kubernetes' raises, as a `KubernetesError`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise KubernetesError(f"{what} cannot be read: {type(error).__name__}: {error}") from error

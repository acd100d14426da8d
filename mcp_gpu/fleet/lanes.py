"""How much may be under way at once, per kind of path."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple, Self

import anyio

__all__ = ["STREAMS_AT_ONCE", "Lanes", "Load", "Place", "is_direct"]

_DIRECT = "http"
"""The one path that costs nobody but the agent; every other opens a stream through the API server
or starts a process."""

STREAMS_AT_ONCE = 16
"""What a stream transport opens at the same time. A probe beyond these would wait in the transport,
where that looks like silence."""

SUSPECTS_SHARE = 8
"""Suspects get one place for so many of everybody's."""


def is_direct(via: str) -> bool:
    """Whether the transport of this name costs nobody but the agent."""
    return via == _DIRECT


class Place:
    """A place in a lane, taken on entering and given back on leaving, or before."""

    def __init__(self, lane: anyio.CapacityLimiter) -> None:
        self._lane = lane
        self._held = False

    def leave(self) -> None:
        """Give it back now: what is left to do is waiting."""
        if self._held:
            self._held = False
            self._lane.release_on_behalf_of(self)

    async def __aenter__(self) -> Self:
        await self._lane.acquire_on_behalf_of(self)
        self._held = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()


class Load(NamedTuple):
    """What is in a path's lanes now."""

    running: int
    waiting: int


class Lanes:
    """Places for one kind of work, such as probes, on each path.

    Streams cost the API server and a process each, so they must not starve HTTP or be starved
    by it. Suspects have lanes of their own, much narrower: an agent that is dead holds its place
    for a whole time-out, and live ones must not queue behind it.

    Args:
        concurrency: places on each path.
        streams: places on each path that is not direct, where those are fewer.
    """

    def __init__(
        self, paths: tuple[str, ...], concurrency: int, *, streams: int | None = None
    ) -> None:
        streams = concurrency if streams is None else min(streams, concurrency)
        narrow = max(concurrency // SUSPECTS_SHARE, 1)
        self._lanes = {
            path: anyio.CapacityLimiter(concurrency if is_direct(path) else streams)
            for path in paths
        }
        self._suspects = {path: anyio.CapacityLimiter(narrow) for path in paths}

    def place(self, path: str, *, suspect: bool = False) -> Place:
        """A place to enter, in its turn."""
        return Place((self._suspects if suspect else self._lanes)[path])

    def load(self) -> dict[str, Load]:
        """By path, suspects included."""
        return {
            path: Load(
                lane.borrowed_tokens + narrow.borrowed_tokens,
                lane.statistics().tasks_waiting + narrow.statistics().tasks_waiting,
            )
            for (path, lane), narrow in zip(
                self._lanes.items(), self._suspects.values(), strict=True
            )
        }

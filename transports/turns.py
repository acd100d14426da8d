"""Turns to open a stream: so many at a time, and each for a moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

__all__ = ["Turns"]

TURN_SECONDS = 1.0
"""How long an opening keeps others from theirs. An agent that is well opens within a tenth; for one
whose kubelet is dead the API server waits many seconds, which must cost those who are well nothing.
"""


class Turns:
    """Whose turn it is, in the order of asking.

    Args:
        most: how many have one at the same time.

    Raises:
        ValueError: nobody ever would.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError("max_opening is less than 1")
        self._most = most
        self._begun: dict[object, float] = {}
        """When each of those who have a turn got it, the oldest first."""
        self._queue = anyio.Lock()
        self._ended = anyio.Event()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for a turn, which ends with the block, or `TURN_SECONDS` later while that goes on.

        The wait has no bound of its own: each of those before is given up after that time.
        """
        mine = object()
        async with self._queue:
            while len(self._begun) >= self._most:
                await self._end_of_one()
            self._begun[mine] = anyio.current_time()
        try:
            yield
        finally:
            self._begun.pop(mine, None)
            self._ended.set()

    async def _end_of_one(self) -> None:
        oldest, begun_at = next(iter(self._begun.items()))
        self._ended = anyio.Event()
        with anyio.CancelScope(deadline=begun_at + TURN_SECONDS):
            await self._ended.wait()
        if not self._ended.is_set():
            del self._begun[oldest]

"""Waiting that does not blame the far side for what this process has not got round to."""

from __future__ import annotations

import heapq
import itertools
import sys
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial

import anyio

__all__ = ["Alarm", "Patience"]

SLICE_SECONDS = 0.016 if sys.platform == "win32" else 0.002
"""How often time is told while anybody waits. Windows wakes a sleeper 64 times a second."""

MOST_PER_SLICE_SECONDS = 0.02 if sys.platform == "win32" else 0.003
"""What one slice may count for, however late it comes: a head start of 150 ms takes at least 50
passes of the event loop. A probe of an agent in this process takes about 30, one over a socket
fewer, and each task moves on by a step in each pass: so where an answer could have been had, a
loop at its limit has seen it before the head start ends. On Windows so small a limit would make
each wait five times as long as asked for, so a head start is fewer passes there."""


@dataclass(order=True, slots=True)
class Alarm:
    """Something to do later."""

    due_seconds: float
    number: int
    action: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        """Never mind. Of no effect once it has gone off."""
        self.action = None


class Patience:
    """A clock that stretches with a busy event loop, and its alarms.

    It stands still while nobody waits, so an idle gateway does not wake for it.
    """

    def __init__(self) -> None:
        self._now_seconds = 0.0
        self._alarms: list[Alarm] = []
        self._numbers = itertools.count()
        self._wanted = anyio.Event()

    def after(self, seconds: float, action: Callable[[], None]) -> Alarm:
        """Do it once `seconds` of patience have passed, in the context of who asks now: what it
        starts is part of the same call. The action must not raise."""
        within = partial(copy_context().run, action)
        alarm = Alarm(self._now_seconds + seconds, next(self._numbers), within)
        heapq.heappush(self._alarms, alarm)
        self._wanted.set()
        return alarm

    async def run(self) -> None:
        """Tell the time, until cancelled."""
        while True:
            if not self._alarms:
                self._wanted = anyio.Event()
                await self._wanted.wait()
            slept_at = anyio.current_time()
            await anyio.sleep(SLICE_SECONDS)
            self._now_seconds += min(anyio.current_time() - slept_at, MOST_PER_SLICE_SECONDS)
            self._go_off()

    def _go_off(self) -> None:
        while self._alarms:
            first = self._alarms[0]
            if first.action is not None and first.due_seconds > self._now_seconds:
                return
            heapq.heappop(self._alarms)
            if first.action is not None:
                first.action()

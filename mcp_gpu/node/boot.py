"""The kernel's present boot: its id, and what the time stamps of its log mean."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Final

_STEP_SECONDS: Final = 1.0
"""Time stamps that are wrong by less are left as they are."""

_DRIFT: Final = 1e-4
"""The clock that stamps the log is no clock that NTP corrects: it goes wrong by seconds a day, so
that after a month one event has two times, the log's and NVML's."""

_TIMES: Final = 64
"""Most that are remembered besides the first."""

_READS: Final = 3
"""In a row that must agree on a later start: one may have been late."""


class Boot:
    """One boot of a kernel.

    Args:
        boot_id: 32 hexadecimal digits, or empty if it could not be read.
        started_at: Unix seconds at which the log's clock was 0.
        clock: Unix time.
    """

    def __init__(
        self, boot_id: str, started_at: float, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.boot_id, self.started_at, self._clock = boot_id, started_at, clock
        # From which stamp on what start makes them true. Replaced as a whole, so that other
        # threads may read.
        self._known: tuple[tuple[int, float], ...] = ((0, started_at),)
        self._later: list[float] = []
        """What the last reads made of the start, each of them later than it is known."""

    @classmethod
    def of_this_machine(cls) -> Boot:
        """The boot that this process runs in."""
        try:
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        except OSError:
            boot_id = ""
        started_at = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
        return cls(boot_id.strip().replace("-", ""), started_at)

    def at(self, microseconds: int) -> float:
        """Unix seconds of a time stamp of the log."""
        return self._start(microseconds) + microseconds / 1e6

    def heard(self, microseconds: int, *, late: float = 0.0) -> None:
        """Learn from a record that has just been written how far the log's clock has drifted.

        Only what comes after it is told differently: the time of an event never changes, or two
        sources that tell of it would be taken for two events. A record is never read before it is
        written, but may be long after, by a process that was held up: an earlier start counts at
        once, a later one when several reads in a row agree.

        Args:
            microseconds: the record's time stamp.
            late: how many seconds ago it may have been written.
        """
        start = self._clock() - microseconds / 1e6
        drift = start - self.started_at
        if abs(drift) > _STEP_SECONDS + _DRIFT * microseconds / 1e6:
            return
        known = self._start(microseconds)
        start = max(start - late, min(start, known))
        wrong = start - known
        if wrong > _STEP_SECONDS:
            self._later.append(start)
            if len(self._later) < _READS:
                return
            start = min(self._later)
        self._later.clear()
        if abs(wrong) > _STEP_SECONDS and microseconds > self._known[-1][0]:
            self._known = (self._known[0], *self._known[1:][1 - _TIMES :], (microseconds, start))

    def _start(self, microseconds: int) -> float:
        known = self._known
        return known[max(0, bisect_right(known, microseconds, key=itemgetter(0)) - 1)][1]

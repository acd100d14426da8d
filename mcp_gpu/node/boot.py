"""The kernel's present boot: its id, and what the time stamps of its log mean."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Final

_STEP_SECONDS: Final = 1.0
"""Time stamps that are wrong by less are left as they are."""

_DRIFT: Final = 1e-4
"""The clock that stamps the log is no clock that NTP corrects: it goes wrong by seconds a day, so
that after a month one event has two times, the log's and NVML's."""

_TIMES: Final = 64


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
        # From which stamp on what start makes them true. Only appended to, so that other threads
        # may read.
        self._since: list[int] = [0]
        self._starts: list[float] = [started_at]

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

    def heard(self, microseconds: int) -> None:
        """Learn from a record that has just been written how far the log's clock has drifted.

        Only what comes after it is told differently: the time of an event never changes, or two
        sources that tell of it would be taken for two events.
        """
        start = self._clock() - microseconds / 1e6
        drift = start - self.started_at
        plausible = abs(drift) <= _STEP_SECONDS + _DRIFT * microseconds / 1e6
        known = self._start(microseconds)
        if plausible and abs(start - known) > _STEP_SECONDS and microseconds > self._since[-1]:
            if len(self._since) >= _TIMES:
                del self._starts[1], self._since[1]
            self._starts.append(start)
            self._since.append(microseconds)

    def _start(self, microseconds: int) -> float:
        return self._starts[max(0, bisect_right(self._since, microseconds) - 1)]

"""What a process holds as time passes, and whether it grows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

from bench.processes import Load

__all__ = ["Holdings", "Trend", "grown", "warm"]

WARM_SHARE = 1 / 3
"""Of a run, at its begin: what fills once is no growth."""

MOST_CORRELATED = 0.99


@dataclass(frozen=True, slots=True)
class Trend:
    """A line through measurements."""

    slope: float
    """In their unit, a second."""
    error: float
    """Its standard error. Measurements that follow each other are alike: by as much as they are
    (lag 1), they count as fewer."""

    @classmethod
    def of(cls, times: Sequence[float], values: Sequence[float]) -> Trend:
        """By least squares. At least three times, not all the same."""
        middle, mean = fmean(times), fmean(values)
        spread = sum((at - middle) ** 2 for at in times)
        products = ((at - middle) * (value - mean) for at, value in zip(times, values, strict=True))
        slope = sum(products) / spread
        rest = [
            value - mean - slope * (at - middle) for at, value in zip(times, values, strict=True)
        ]
        squares = sum(each**2 for each in rest)
        error = math.sqrt(squares / (len(rest) - 2) / spread)
        if squares:
            alike = sum(one * other for one, other in itertools.pairwise(rest)) / squares
            alike = min(max(alike, 0.0), MOST_CORRELATED)
            error *= math.sqrt((1 + alike) / (1 - alike))
        return cls(slope, error)


@dataclass(slots=True)
class Holdings:
    """A process's memory, open files, threads and processor time, looked at now and then."""

    pid: int
    times: list[float] = field(default_factory=list)
    own_kib: list[float] = field(default_factory=list)
    """Anonymous memory, swapped or not: pages of files come and go as the machine likes."""
    loads: list[Load] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    waited_seconds: list[float] = field(default_factory=list)
    """For a processor, so far: its first thread, which in our processes serves."""

    def look(self, now: float) -> None:
        """Raises: OSError, KeyError: the process is gone."""
        load = Load.of_pid(self.pid)
        status = Path(f"/proc/{self.pid}/status").read_text()
        sizes = dict(line.partition(":")[::2] for line in status.splitlines())
        files, threads = (
            sum(1 for _ in Path(f"/proc/{self.pid}/{name}").iterdir()) for name in ("fd", "task")
        )
        waited_ns = int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1])
        self.waited_seconds.append(waited_ns / 1e9)
        self.times.append(now)
        self.own_kib.append(sum(float(sizes[name].split()[0]) for name in ("RssAnon", "VmSwap")))
        self.loads.append(load)
        self.files.append(files)
        self.threads.append(threads)

    @property
    def busy_percent(self) -> float:
        """Of one processor."""
        return self._percent([load.cpu_seconds for load in self.loads])

    @property
    def waited_percent(self) -> float:
        """Of the time, for a processor."""
        return self._percent(self.waited_seconds)

    def _percent(self, seconds: Sequence[float]) -> float:
        return 100 * (seconds[-1] - seconds[0]) / (self.times[-1] - self.times[0])

    def memory(self) -> Trend:
        """Of its own memory once warm, in KiB a second."""
        return warm(self.times, self.own_kib)


def warm(times: Sequence[float], values: Sequence[float]) -> Trend:
    """Of what was measured once warm."""
    first = int(len(times) * WARM_SHARE)
    return Trend.of(times[first:], values[first:])


def grown(counts: Sequence[float]) -> float:
    """By how much the median of the last third is above that of the third before."""
    third = len(counts) // 3
    return median(counts[-third:]) - median(counts[-2 * third : -third])

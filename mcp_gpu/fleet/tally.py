"""How often each path was taken and tried, how that went and how long it took."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import anyio

from mcp_gpu.telemetry.histogram import Histogram
from transports.errors import Reason, TransportError

__all__ = ["OUTCOMES", "Outcome", "Tally"]

Outcome = Literal["ok", "cancelled"] | Reason
"""cancelled: another path was faster, or whoever asked has left."""

OUTCOMES: tuple[Outcome, ...] = ("ok", *get_args(Reason), "cancelled")


class Tally:
    """Of one kind of attempt, such as probes, by path."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, Outcome]] = Counter()
        self.seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        """What those took that went well; how long a failure takes is its time-out's business."""

    @contextmanager
    def attempt(self, path: str, is_late: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """One attempt on a path, to whose end nothing is added.

        Args:
            is_late: whether a cancellation is that of a deadline.
        """
        outcome: Outcome = "broken"
        began = time.perf_counter()
        try:
            yield
            outcome = "ok"
            self.seconds[path].observe(time.perf_counter() - began)
        except TransportError as error:
            outcome = error.reason
            raise
        except anyio.get_cancelled_exc_class():
            outcome = "timeout" if is_late() else "cancelled"
            raise
        finally:
            self.outcomes[path, outcome] += 1

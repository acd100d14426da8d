"""The calls of one server's tools: how many run, and who is told of each one's end."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import anyio

from mcp_gpu.telemetry.histogram import Histogram

__all__ = ["Calls", "Ended", "Outcome", "Running"]

Outcome = Literal[
    "ok", "bad_arguments", "tool_error", "too_large", "internal_error", "cancelled", "refused"
]
"""How a call of a tool ends. `refused` is one of a resource that there is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One call of a tool, over."""

    id: str
    """Names it in the logs."""
    client: str
    """The client's own name and version, which it may make up."""
    tool: str
    arguments: Mapping[str, Any] | None
    """As they were sent, whatever they are."""
    outcome: Outcome
    seconds: float
    answer_bytes: int
    """Text and data together; 0 where there is none."""


@dataclass(slots=True)
class Running:
    """One call under way, which says how it went before it ends."""

    outcome: Outcome
    answer_bytes: int = 0


class Calls:
    """Counts them, and tells of each. An observer must neither block nor raise."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, Outcome]] = Counter()
        """Ended, by tool and outcome."""
        self.running: Counter[str] = Counter()
        """Under way, by tool."""
        self.seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        """What the ended ones took, by tool."""
        self.observers: list[Callable[[Ended], None]] = []

    @contextmanager
    def run(
        self, tool: str, arguments: Mapping[str, Any] | None, *, call_id: str, client: str
    ) -> Iterator[Running]:
        """One call of a tool, from its arguments to its answer."""
        running = Running("internal_error")
        self.running[tool] += 1
        began = time.perf_counter()
        try:
            yield running
        except anyio.get_cancelled_exc_class():
            running.outcome = "cancelled"
            raise
        finally:
            self.running[tool] -= 1
            self.counts[tool, running.outcome] += 1
            seconds = time.perf_counter() - began
            self.seconds[tool].observe(seconds)
            ended = Ended(
                id=call_id,
                client=client,
                tool=tool,
                arguments=arguments,
                outcome=running.outcome,
                seconds=seconds,
                answer_bytes=running.answer_bytes,
            )
            for observe in self.observers:
                observe(ended)

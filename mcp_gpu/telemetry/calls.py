"""The calls of one server's tools: how many run, and who is told of each one's end."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio

from mcp_gpu.telemetry.histogram import Histogram
from mcp_gpu.telemetry.origin import ORIGIN, Origin

__all__ = ["Calls", "Ended", "Outcome", "Refused", "Running", "call_id", "current"]

logger = logging.getLogger(__name__)

Outcome = Literal[
    "ok", "bad_arguments", "tool_error", "too_large", "internal_error", "cancelled", "refused"
]
"""How a call of a tool ends. `refused` is one of a resource that there is not."""

_ID = re.compile(r"[0-9a-f]{8,32}")

_current: ContextVar[Running | None] = ContextVar("call", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One call of a tool, over."""

    id: str
    """Names it in the logs."""
    trace_id: str
    """Of the trace that it is part of, 32 hexadecimal digits; empty where there is none."""
    origin: Origin | None
    """Who called. None where nobody but this process can have."""
    client: str
    """The client's own name and version, which it may make up."""
    tool: str
    arguments: Mapping[str, Any] | None
    """As they were sent, whatever they are."""
    outcome: Outcome
    seconds: float
    answer_bytes: int
    """Text and data together; 0 where there is none."""
    nodes: Mapping[str, bool]
    """The nodes that were asked for it, each to whether it answered. Empty for an agent's call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """One request over HTTP that was turned away."""

    origin: Origin
    status: int
    """Of HTTP."""


@dataclass(slots=True)
class Running:
    """One call under way, which says how it went before it ends."""

    id: str
    trace_id: str = ""
    outcome: Outcome = "internal_error"
    answer_bytes: int = 0
    nodes: dict[str, bool] = field(default_factory=dict)
    """As in `Ended`."""


def current() -> Running | None:
    """The call that the code at hand works for."""
    return _current.get()


def call_id(given: object) -> str:
    """The id that a caller has given its call, where it is one; else a new one. A gateway gives an
    agent its own, so that the logs of both can be searched for it. Anybody may: it proves nothing.
    """
    if isinstance(given, str) and _ID.fullmatch(given):
        return given
    return secrets.token_hex(4)


class Calls:
    """Counts them, and tells of each. An observer must neither block nor raise."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, Outcome]] = Counter()
        """Ended, by tool and outcome."""
        self.running: Counter[str] = Counter()
        """Under way, by tool."""
        self.seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        """What the ended ones took, by tool."""
        self.observers: list[Callable[[Ended], None]] = [_log]
        self.refusals: list[Callable[[Refused], None]] = []
        """Told of each request that was turned away. As observers."""

    def refuse(self, refused: Refused) -> None:
        """A request has been turned away before it was a call."""
        for observe in self.refusals:
            observe(refused)

    @contextmanager
    def run(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None,
        *,
        call_id: str,
        client: str,
        trace_id: str = "",
    ) -> Iterator[Running]:
        """One call of a tool, from its arguments to its answer. It is `current` meanwhile, for
        all tasks that are started for it too."""
        running = Running(call_id, trace_id)
        self.running[tool] += 1
        began = time.perf_counter()
        before = _current.set(running)
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
                trace_id=trace_id,
                origin=ORIGIN.get(),
                client=client,
                tool=tool,
                arguments=arguments,
                outcome=running.outcome,
                seconds=seconds,
                answer_bytes=running.answer_bytes,
                nodes=running.nodes,
            )
            for observe in self.observers:
                observe(ended)
            _current.reset(before)


def _log(ended: Ended) -> None:
    logger.info(
        "call ended",
        extra={
            "tool": ended.tool,
            "outcome": ended.outcome,
            "seconds": round(ended.seconds, 4),
            "bytes": ended.answer_bytes,
        },
    )

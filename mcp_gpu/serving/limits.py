"""How many requests are answered at once, whose turn is next, and who is sent away.

Callers take turns, so that one who sends much waits for himself and not the others for him. Where
no more may wait, the newest request of whoever has the most waiting has to go.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self

import anyio

from mcp_gpu.serving.access.model import Caller
from mcp_gpu.serving.endpoint import Ceilings

__all__ = ["Limits", "Shed", "Visit", "Why", "name_of"]

Why = Literal["rate", "queue", "wait", "subscriptions"]
"""What a request is sent away for: its caller's rate, a full queue, too long a wait in it, or as
many subscriptions as there may be."""

RETRY_SECONDS = 4
"""Those sent away are told to come back after 1 to so many seconds, in turn: not all at once."""

SUBSCRIPTIONS = 256
"""Open `subscriptions/listen` streams. They last, so that they count for themselves."""

SUBSCRIPTIONS_PER_CALLER = 64

CALLERS = 4096
"""Past so many, those are forgotten of whom nothing is under way."""

NETWORK_BITS = 64
"""What an IPv6 caller has to himself, at the least."""


@dataclass(frozen=True, slots=True)
class Shed:
    """A request that is not answered now."""

    why: Why
    message: str
    retry_seconds: int


@dataclass(slots=True, eq=False)
class _Caller:
    name: str
    visits: int = 0
    running: int = 0
    subscriptions: int = 0
    queue: deque[Visit] = field(default_factory=deque)
    due_at: float = 0.0
    """When, at the rate allowed, there is time for another one."""


class Limits:
    """Decides, and counts.

    Args:
        clock: seconds that never go back; the rate's.
    """

    def __init__(self, ceilings: Ceilings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.ceilings = ceilings
        self.running = 0
        """Requests being answered."""
        self.waiting = 0
        """Requests whose turn has not come."""
        self.subscriptions = 0
        """Open ones, which are not among those."""
        self.shed: Counter[Why] = Counter()
        """Requests sent away so far."""
        self._clock = clock
        self._callers: dict[str, _Caller] = {}
        self._queuing: set[_Caller] = set()
        # Those of them who may have one more answered, in the order of their turns.
        self._turns: dict[_Caller, None] = {}

    def admit(self, name: str) -> Visit | Shed:
        """A request of this caller, of which only the head has been read. Close what is given."""
        now = self._clock()
        caller = self._callers.get(name) or self._meet(name, now)
        late_seconds = self._charge(caller, now)
        if late_seconds > 0:
            words = f"More than {self.ceilings.qps:g} requests a second from one caller."
            return self._send_away("rate", words, math.ceil(late_seconds))
        if self._crowded_out_by(caller) is caller:
            return self._no_room()
        caller.visits += 1
        return Visit(self, caller)

    def _meet(self, name: str, now: float) -> _Caller:
        if len(self._callers) >= CALLERS:
            for each in list(self._callers.values()):
                if not each.visits:
                    del self._callers[each.name]
        return self._callers.setdefault(name, _Caller(name, due_at=now))

    def _charge(self, caller: _Caller, now: float) -> float:
        """Count it at the caller's rate. Seconds by which it comes too early, else 0."""
        if not self.ceilings.qps:
            return 0.0
        owed_seconds = max(caller.due_at - now, 0.0)
        early_seconds = owed_seconds - (self.ceilings.burst - 1) / self.ceilings.qps
        if early_seconds > 1e-9:  # what rounding leaves
            return early_seconds
        caller.due_at = now + owed_seconds + 1 / self.ceilings.qps
        return 0.0

    def _crowded_out_by(self, caller: _Caller) -> _Caller | None:
        """Who has to do with one less waiting where this caller would have one more."""
        busy = self.running >= self.ceilings.inflight or self._is_at_most(caller)
        if not busy or self.waiting < self.ceilings.waiting:
            return None
        longest = max(self._queuing, key=lambda each: len(each.queue), default=caller)
        return longest if len(longest.queue) > len(caller.queue) + 1 else caller

    def _is_at_most(self, caller: _Caller) -> bool:
        return caller.running >= self.ceilings.inflight_per_caller

    def _enter(self, visit: Visit) -> Shed | None:
        """Have it answered at once if that may be, else put it in the queue."""
        caller = visit.caller
        if self.running < self.ceilings.inflight and not self._is_at_most(caller):
            self._start(visit)
            return None
        loser = self._crowded_out_by(caller)
        if loser is caller:
            return self._no_room()
        if loser is not None:
            evicted = loser.queue[-1]
            self._unqueue(evicted)
            evicted.called.set()
        self.waiting += 1
        visit.state = "waiting"
        caller.queue.append(visit)
        self._queuing.add(caller)
        if not self._is_at_most(caller):
            self._turns.setdefault(caller)
        return None

    def _start(self, visit: Visit) -> None:
        self.running += 1
        visit.caller.running += 1
        visit.state = "running"
        visit.called.set()

    def _unqueue(self, visit: Visit) -> None:
        caller = visit.caller
        self.waiting -= 1
        visit.state = "none"
        caller.queue.remove(visit)
        if not caller.queue:
            self._queuing.discard(caller)
            self._turns.pop(caller, None)

    def _subscribe(self, visit: Visit) -> Shed | None:
        caller = visit.caller
        if self.subscriptions >= SUBSCRIPTIONS:
            words = f"Too many subscriptions: {SUBSCRIPTIONS} are open."
            return self._send_away("subscriptions", words)
        if caller.subscriptions >= SUBSCRIPTIONS_PER_CALLER:
            words = f"Too many subscriptions of one caller: {SUBSCRIPTIONS_PER_CALLER} are open."
            return self._send_away("subscriptions", words)
        self.subscriptions += 1
        caller.subscriptions += 1
        visit.state = "subscribed"
        return None

    def _leave(self, visit: Visit) -> None:
        caller, state = visit.caller, visit.state
        if state == "waiting":
            self._unqueue(visit)
        elif state == "subscribed":
            self.subscriptions -= 1
            caller.subscriptions -= 1
        elif state == "running":
            self.running -= 1
            caller.running -= 1
            if caller.queue:
                self._turns.setdefault(caller)
            self._call_next()
        visit.state = "none"

    def _call_next(self) -> None:
        while self._turns and self.running < self.ceilings.inflight:
            caller = next(iter(self._turns))
            del self._turns[caller]
            visit = caller.queue[0]
            self._unqueue(visit)
            self._start(visit)
            if caller.queue and not self._is_at_most(caller):
                self._turns[caller] = None

    def _end(self, visit: Visit) -> None:
        caller = visit.caller
        caller.visits -= 1
        if not caller.visits and caller.due_at <= self._clock():
            self._callers.pop(caller.name, None)

    def _no_room(self) -> Shed:
        words = f"Too many requests: {self.running} are being answered and {self.waiting} wait."
        return self._send_away("queue", words)

    def _too_late(self) -> Shed:
        seconds = self.ceilings.wait_seconds
        return self._send_away("wait", f"Too many requests: no turn came within {seconds:g} s.")

    def _send_away(self, why: Why, words: str, retry_seconds: int = 0) -> Shed:
        retry_seconds = retry_seconds or 1 + self.shed.total() % RETRY_SECONDS
        self.shed[why] += 1
        return Shed(why, f"{words} Try again in {retry_seconds} s.", retry_seconds)


class Visit:
    """One request, from its head to its answer. Leave its block when it is over."""

    def __init__(self, limits: Limits, caller: _Caller) -> None:
        self.caller = caller
        self.state: Literal["none", "waiting", "running", "subscribed"] = "none"
        self.called = anyio.Event()
        """Set once its turn has come, or never will."""
        self._limits = limits

    @property
    def waits(self) -> bool:
        """Whether its turn is yet to come."""
        return self.state == "waiting"

    @property
    def is_on(self) -> bool:
        """Whether it may be answered now."""
        return self.state in ("running", "subscribed")

    def enter(self) -> Shed | None:
        """Have it answered, now or, where it then `waits`, in its turn; or why it is not."""
        return self._limits._enter(self)

    async def turn(self) -> Shed | None:
        """Wait for its turn; or why there is none."""
        limits = self._limits
        try:
            with anyio.move_on_after(limits.ceilings.wait_seconds):
                await self.called.wait()
            if self.is_on:
                return None
            return limits._too_late() if self.waits else limits._no_room()
        finally:
            if self.waits:
                limits._leave(self)

    def subscribe(self) -> Shed | None:
        """Count it among the subscriptions instead; or why it may be none."""
        return self._limits._subscribe(self)

    def pass_on(self) -> None:
        """Let another one have its turn: what is left to do is waiting for the client."""
        if self.state == "running":
            self._limits._leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._limits._leave(self)
        self._limits._end(self)


def name_of(caller: Caller | None, address: str) -> str:
    """By what a caller is told from others: whose token it is, else where he is."""
    if caller is not None and caller.kind != "static":  # of which many may have the same
        return f"{caller.kind} {caller.name} {caller.uid}"
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), NETWORK_BITS), strict=False))

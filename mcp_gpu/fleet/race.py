"""One agent's paths against each other: the first that proves itself wins.

RFC 8305 races the addresses of a host so; here it is the ways to one agent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from mcp_gpu.fleet.allowance import Allowance
from mcp_gpu.fleet.lanes import Place
from mcp_gpu.fleet.patience import Patience
from transports.base import Identity, Target, Transport
from transports.errors import TimedOut, TransportError

__all__ = ["Probing", "Race", "Way"]


@dataclass(frozen=True, slots=True)
class Way:
    """A path that works, and whom it leads to."""

    transport: Transport
    identity: Identity


@dataclass(frozen=True, slots=True)
class Probing:
    """How one path is tried in a race."""

    transport: Transport
    head_start_seconds: Callable[[], float]
    """How long it may stay silent before the next path starts; asked when its probe is sent."""
    place: Place
    """Where the probe waits for its turn."""
    cheap: bool
    """It gives its place up once its head start is over, since from then on it only waits."""


class Told(Protocol):
    """Whom a race tells what it has seen."""

    async def prove(self, target: Target, transport: Transport) -> Identity:
        """Ask who answers on this path. Raises TransportError."""

    def failed(self, target: Target, transport: Transport, error: TransportError) -> None:
        """The path does not work."""


@dataclass(slots=True, eq=False)
class _Runner:
    probing: Probing
    sent_at: float = 0.0
    late: bool = False
    """Its head start is over and nothing has come."""
    done: bool = False


class Race:
    """Run once, by one task; any number of others wait for `over`."""

    def __init__(
        self,
        target: Target,
        field: Sequence[Probing],
        told: Told,
        patience: Patience,
        *,
        suspect: bool,
    ) -> None:
        self.target = target
        self.suspect = suspect
        """The agent had failed on every path before."""
        self.winner: Way | None = None
        self.made_at = anyio.current_time()
        self.over = anyio.Event()
        self._waiting: set[Allowance] = set()
        self._queues = True
        """The path whose turn it is to be tried waits for its place."""
        self._field = field
        self._told = told
        self._patience = patience
        self._runners: list[_Runner] = []
        self._scope = anyio.CancelScope()

    @property
    def is_awaited(self) -> bool:
        """Whether anybody wants to know."""
        return bool(self._waiting)

    def join(self, allowance: Allowance) -> None:
        """Somebody wants to know, whose time runs while no path waits for its place."""
        self._waiting.add(allowance)
        if self._queues:
            allowance.rest()
        else:
            allowance.run()

    def leave(self, allowance: Allowance) -> None:
        """Undo `join`."""
        self._waiting.discard(allowance)
        allowance.run()

    def end(self, *, blame: bool) -> None:
        """Nobody wants to know any more.

        Args:
            blame: because the time is over: what was silent until now has failed. Otherwise
                that says nothing of the paths.
        """
        if blame:
            self._blame(self._runners, "no answer in time")
        self._scope.cancel()

    async def run(self) -> None:
        """Try one path after another until one proves itself, at most until all have failed."""
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    for probing in self._field:
                        runner = _Runner(probing)
                        self._runners.append(runner)
                        go_on = anyio.Event()
                        group.start_soon(self._probe, runner, go_on, group)
                        await go_on.wait()
        finally:
            self.over.set()

    async def _probe(self, runner: _Runner, go_on: anyio.Event, group: TaskGroup) -> None:
        probing = runner.probing
        transport = probing.transport
        alarm = None
        try:
            self._queue(True)
            async with probing.place as place:
                self._queue(False)
                runner.sent_at = anyio.current_time()
                late = partial(_late, runner, place, go_on)
                alarm = self._patience.after(probing.head_start_seconds(), late)
                identity = await self._told.prove(self.target, transport)
        except TransportError as error:
            runner.done = True
            self._told.failed(self.target, transport, error)
            go_on.set()
        else:
            runner.done = True
            self.winner = self.winner or Way(transport, identity)
            better = self._runners[: self._runners.index(runner)]
            self._blame(better, f"no answer, while {transport.name} gave one")
            group.cancel_scope.cancel()
        finally:
            if alarm is not None:
                alarm.cancel()

    def _queue(self, queues: bool) -> None:
        """A path begins to wait for its place or has it. No two do at once."""
        self._queues = queues
        for allowance in self._waiting:
            if queues:
                allowance.rest()
            else:
                allowance.run()

    def _blame(self, runners: Sequence[_Runner], text: str) -> None:
        """Those whose head start is over have failed."""
        for runner in runners:
            if runner.late and not runner.done:
                runner.done = True
                waited = anyio.current_time() - runner.sent_at
                transport = runner.probing.transport
                error = TimedOut(
                    f"{text} ({waited:.2g} s after it was asked)",
                    target=self.target,
                    transport=transport.name,
                )
                self._told.failed(self.target, transport, error)


def _late(runner: _Runner, place: Place, go_on: anyio.Event) -> None:
    runner.late = True
    if runner.probing.cheap:
        place.leave()
    go_on.set()

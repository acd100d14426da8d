"""The paths to every agent: what is known of them, and the tasks that find out more.

Whoever needs a path and knows none has the paths raced. A path that fails is not waited for again
while another works; the background looks at it again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import anyio

from mcp_gpu.fleet.allowance import Allowance
from mcp_gpu.fleet.knowledge import Knowledge
from mcp_gpu.fleet.lanes import STREAMS_AT_ONCE, Lanes, Load, is_direct
from mcp_gpu.fleet.paths import PathFailure, PathState
from mcp_gpu.fleet.race import Probing, Race, Way
from mcp_gpu.fleet.reprobe import Reprobe
from transports.base import Target, Transport
from transports.tasks import OwnsTasks

__all__ = ["PathFailure", "PathState", "Reachability", "Way"]

SUSPECT_SECONDS = 1.5
"""How long calls wait for an agent that failed on every path when it was last tried. One that came
back answers sooner (an exec stream was measured at 0.6 s); for one that did not the race goes on
without them."""


class Reachability(OwnsTasks, Knowledge):
    """The paths to every agent. Races and background probes run inside of `async with`.

    Args:
        transports: in order of preference, already entered by the caller.
        head_start_seconds: how long the preferred path may be silent in a race before the next
            one starts.
        probe_timeout_seconds: how long a probe may take on a path, by transport name.
        default_probe_timeout_seconds: for transports not named there. Longer than HTTP's,
            because a stream is opened by starting a process (an exec stream was measured at
            0.6 s, ssh takes seconds).
        ttl_seconds: how long a proof counts. Each call over the path renews it.
        concurrency: probes under way per kind of path, of streams no more than are opened at
            the same time.
        own_node: the node that the gateway runs on, empty where it does not know. The path to
            an agent there crosses no network, and teaches nothing of those that do.
        clock: seconds, for tests.
        jitter: picks a pause of at most so many seconds, for tests.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        *,
        head_start_seconds: float = 0.15,
        probe_timeout_seconds: Mapping[str, float] | None = None,
        default_probe_timeout_seconds: float = 5.0,
        ttl_seconds: float = 300.0,
        concurrency: int = 64,
        own_node: str = "",
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float], float] = lambda most: random.uniform(0, most),
    ) -> None:
        super().__init__(
            transports,
            head_start_seconds=head_start_seconds,
            probe_timeout_seconds=probe_timeout_seconds or {},
            default_probe_timeout_seconds=default_probe_timeout_seconds,
            ttl_seconds=ttl_seconds,
            own_node=own_node,
            clock=clock,
            jitter=jitter,
        )
        names = tuple(each.name for each in self.transports)
        self._lanes = Lanes(names, concurrency, streams=STREAMS_AT_ONCE)
        self._races: dict[str, Race] = {}
        self._reprobe = Reprobe(self, self._lanes, self._is_awaited, clock)

    def asked(self, targets: Collection[Target]) -> None:
        """A question is put to the fleet, which has these agents. Forget all others."""
        self.retain(targets)
        self._reprobe.asked()

    def load(self) -> Mapping[str, Load]:
        """Probes under way and waiting, by path."""
        return self._lanes.load()

    async def find(self, target: Target, but: Collection[str], allowance: Allowance) -> Way | None:
        """Race the agent's paths. Callers that come meanwhile wait for the same race.

        A caller that is cancelled ends nothing for the others. When nobody waits any more the race
        ends, but for one about a suspect, which the next call wants to know of.

        Args:
            but: transport names to leave out of a race that is begun here.
            allowance: the caller's for this agent, which rests while a path waits for its place.

        Returns:
            None when no path works, or none may be tried again yet; `failure` knows why.
        """
        race = self._races.get(target.key) or self._start(target, but)
        if race is None:
            return None
        race.join(allowance)
        try:
            with anyio.CancelScope() as scope:
                if race.suspect:
                    scope.deadline = race.made_at + SUSPECT_SECONDS
                await race.over.wait()
        finally:
            race.leave(allowance)
            if not race.is_awaited and not race.suspect and not race.over.is_set():
                self._races.pop(target.key)
                race.end(blame=allowance.left_seconds <= 0)
        return race.winner

    def _start(self, target: Target, but: Collection[str]) -> Race | None:
        suspect = self.is_suspect(target)
        field = [
            Probing(
                transport,
                partial(self.head_start_seconds, target, transport),
                self._lanes.place(transport.name, suspect=suspect),
                cheap=is_direct(transport.name),
            )
            for transport in self._starters(target)
            if transport.name not in but
        ]
        if not field:
            return None
        self._reprobe.leave(target)
        race = Race(target, field, self, self.patience, suspect=suspect)
        self._races[target.key] = race
        self._tasks.start_soon(self._run, race)
        return race

    def _starters(self, target: Target) -> list[Transport]:
        """Who runs, in this order: what is not known to fail; then what failed some time ago, for
        in the end a true answer is worth more than a spared probe."""
        now = self.now()
        eligible, last_resorts = [], []
        for transport in self.fitting(target):
            failure = self.failure(target, transport)
            if failure is None or failure.retry_at <= now:
                eligible.append(transport)
            elif failure.last_resort_at <= now:
                last_resorts.append(transport)
        eligible.sort(key=lambda transport: self.dead_elsewhere(target, transport))
        return eligible + last_resorts

    def _is_awaited(self, key: str) -> bool:
        """Whether somebody waits for the race. One that nobody waits for may stand for long in
        the suspects' queue, and the background must not wait for it."""
        race = self._races.get(key)
        return race is not None and race.is_awaited

    async def _run(self, race: Race) -> None:
        try:
            await race.run()
        finally:
            if self._races.get(race.target.key) is race:
                del self._races[race.target.key]

    async def _entered(self) -> None:
        self._tasks.start_soon(self.patience.run)
        self._tasks.start_soon(self._reprobe.run)

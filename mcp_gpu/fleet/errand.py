"""Asking one agent one question: over the best path known, then over the others.

Whatever happens to it stays with it: an errand ends with an answer or with the attempts made,
and raises nothing but the cancellation of its caller.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import anyio
from mcp_types import Implementation
from pydantic import BaseModel

from mcp_gpu import __version__
from mcp_gpu.fleet.allowance import Allowance
from mcp_gpu.fleet.lanes import Lanes, Place
from mcp_gpu.fleet.model import Attempt, FailureReason, PassedOver
from mcp_gpu.fleet.question import NodeAnswer, Question, read, too_old, words
from mcp_gpu.fleet.reachability import PathFailure, Reachability, Way
from mcp_gpu.telemetry import tracing
from mcp_gpu.telemetry.calls import current
from transports.base import INSTANCE_META_KEY, Target, Transport
from transports.errors import BadPeer, Broken, TimedOut, TransportError, leaves
from transports.session import call_tool

__all__ = ["Errand"]

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

CLIENT_INFO = Implementation(name="mcp-gpu-gateway", version=__version__)

FIRST_PATH_SHARE = 0.6
"""Part of a node's remaining time that a path may take while another one is left to try: a
proven path that falls silent must leave time to open a stream."""

LEAST_CALL_SECONDS = 0.05
"""A call is given at least this much, so that it fails for what it meets and not for being late."""


class Errand(Generic[M]):
    """One agent to ask, and what has come of it so far."""

    def __init__(
        self, target: Target, question: Question[M], reachability: Reachability, lanes: Lanes
    ) -> None:
        self.target = target
        self.attempts: tuple[Attempt, ...] = ()
        self.answer: NodeAnswer[M] | None = None
        self.skipped = False
        """Nobody needs this agent's answer: it is of a node that was not asked for, or another
        agent of its node has answered."""
        self._question = question
        self._reachability = reachability
        self._lanes = lanes
        self._allowance = Allowance(question.node_deadline_seconds)
        self._settled = False
        """There is an answer, or none is to be had or needed."""
        self._taken: set[str] = set()
        """Paths that are in use for this errand or have failed it."""
        self._broken: list[Attempt] = []
        """Connections that died under the call, before their paths were tried anew."""
        self._others = anyio.Lock(fast_acquire=True)
        self._begun_at = reachability.now()

    @property
    def is_late(self) -> bool:
        """Whether the agent's own time ended it."""
        return self._allowance.scope.cancelled_caught and not self.skipped

    @property
    def _outcome(self) -> str:
        """What came of it, in a word, once it is settled."""
        if self.answer is not None:
            return "ok"
        return self.attempts[0].reason if self.attempts else "not_needed"

    def skip(self) -> None:
        """Give it up, without blame."""
        self.skipped = True
        self._allowance.scope.cancel()

    async def run(self) -> None:
        """Ask, and keep the outcome."""
        with self._allowance.scope:
            try:
                way = self._reachability.known(self.target)
                if way is None:
                    await self._over_others()
                else:
                    await self._hedged(way)
            except Exception as error:  # boundary: a defect met on one node costs that node
                logger.exception("asking %s failed", self.target)
                kind = type(next(leaves(error))).__name__
                self._settle("none", "broken", f"internal error: {kind}; see the log")
        if not self._settled and not self.skipped:
            self.attempts = tuple(self._failures())

    async def _hedged(self, way: Way) -> None:
        """Ask over a proven path. If that is silent for longer than is usual, ask over the others
        as well: the first answer counts.

        Every tool is read-only, so a call may be sent twice. A path that is only slow has not
        failed; but it may be dead, which the background finds out.
        """
        async with anyio.create_task_group() as group:

            async def ask_over_others() -> None:
                await self._over_others()
                if not self._settled:
                    # No other path is left, but perhaps only the connection kept since the proof
                    # has died: once more over a new one, unless the path has failed meanwhile.
                    self._taken.discard(way.transport.name)
                    await self._over_others()
                if self._settled:
                    self._reachability.doubt(self.target, way.transport)
                    group.cancel_scope.cancel()

            def hedge() -> None:
                group.start_soon(ask_over_others)

            await self._over(way, hedge)
            if not self._settled:
                await self._over_others()
            if self._settled:
                group.cancel_scope.cancel()

    async def _over_others(self) -> None:
        """Ask over one path after another that nobody has taken, until one has led to the end."""
        async with self._others:
            while not self._settled:
                way = await self._reachability.find(self.target, self._taken, self._allowance)
                if way is None:
                    return
                if way.transport.name not in self._taken:
                    await self._over(way, None)

    async def _over(self, way: Way, hedge: Callable[[], None] | None) -> None:
        """Ask over one path.

        Args:
            hedge: called when it has been silent for long. None for a path that has proved
                itself just now; any other proof may be out of date by now, or the connection
                kept since then have died, which says little of a new one.
        """
        transport = way.transport
        self._taken.add(transport.name)
        try:
            node = self._reachability.shown(self.target, way.identity.node)
            with tracing.span("attempt", node=node, path=transport.name):
                await self._call(way, hedge)
                tracing.note(outcome=self._outcome)
        except TransportError as error:
            if hedge is not None and isinstance(error, (BadPeer, Broken)):
                if isinstance(error, Broken):
                    text = error.message
                    self._broken.append(Attempt(via=transport.name, reason="broken", message=text))
                self._reachability.outdated(self.target, transport)
                self._taken.discard(transport.name)
            else:
                self._reachability.failed(self.target, transport, error)
        except anyio.get_cancelled_exc_class():
            # By the deadline, or by a caller who left: that says nothing of the path.
            if self._is_over() and not self._settled:
                late = TimedOut("no answer in time", target=self.target, transport=transport.name)
                self._reachability.failed(self.target, transport, late)
            raise

    async def _call(self, way: Way, hedge: Callable[[], None] | None) -> None:
        """Call the tool.

        Raises:
            TransportError: the path failed; `BadPeer` too where the proof is out of date.
        """
        question, transport, identity = self._question, way.transport, way.identity
        node = self._reachability.shown(self.target, identity.node)
        if question.nodes is not None and node not in question.nodes:
            self.skipped = self._settled = True
            return
        listed = identity.tools.get(question.tool)
        if listed is None:
            if hedge is not None:
                raise self._other_peer(transport)
            self._reachability.outdated(self.target, transport)  # it may be updated soon
            self._settle(transport.name, "agent_too_old", too_old(question.tool, identity))
            return
        arguments = {name: value for name, value in question.arguments.items() if name in listed}
        self._allowance.rest()  # the queue is ours
        async with self._lanes.place(transport.name) as place:
            self._allowance.run()
            asked_at = anyio.current_time()
            left = self._allowance.left_seconds
            if self._others_left():
                left *= FIRST_PATH_SHARE
            call = current()
            with (
                self._hedging(transport, place, hedge),
                self._reachability.calls.attempt(transport.name, self._is_over),
            ):
                outcome = await call_tool(
                    transport,
                    self.target,
                    question.tool,
                    arguments,
                    timeout_seconds=max(left, LEAST_CALL_SECONDS),
                    call_id="" if call is None else call.id,
                    client_info=CLIENT_INFO,
                )
                if (outcome.meta or {}).get(INSTANCE_META_KEY) != identity.instance:
                    raise self._other_peer(transport)
        answered_at = anyio.current_time()
        self._reachability.took(transport, question.tool, answered_at - asked_at)
        if outcome.is_error:
            self._settle(transport.name, "tool_error", words(outcome))
        else:
            self.answer = NodeAnswer(
                node=node,
                via=transport.name,
                data=read(outcome, question.result, self.target, transport),
                identity=identity,
                ready=self.target.ready,
                elapsed_seconds=answered_at - self._allowance.begun_at,
                passed_over=self._passed_over(transport),
            )
            self._settled = True
        self._reachability.succeeded(self.target, transport)

    @contextmanager
    def _hedging(
        self, transport: Transport, place: Place, hedge: Callable[[], None] | None
    ) -> Iterator[None]:
        """Have the call hedged if it is silent for long. It then holds up no other call."""
        if hedge is None:
            yield
            return

        def silent() -> None:
            place.leave()
            hedge()

        seconds = self._reachability.hedge_seconds(transport, self._question.tool)
        alarm = self._reachability.patience.after(seconds, silent)
        try:
            yield
        finally:
            alarm.cancel()

    def _is_over(self) -> bool:
        return self._allowance.left_seconds <= 0

    def _others_left(self) -> bool:
        fitting = self._reachability.fitting(self.target)
        return any(each.name not in self._taken for each in fitting)

    def _settle(self, via: str, reason: FailureReason, message: str) -> None:
        self._settled = True
        self.attempts = (Attempt(via=via, reason=reason, message=message),)

    def _other_peer(self, transport: Transport) -> BadPeer:
        text = "another agent answered the call than the probe"
        return BadPeer(text, target=self.target, transport=transport.name)

    def _passed_over(self, taken: Transport) -> tuple[tuple[str, PassedOver], ...]:
        """Each better path, and why it was not taken."""
        found: list[tuple[str, PassedOver]] = []
        for path in self._reachability.state(self.target):
            if path.via == taken.name:
                break
            unproven = path.reason or "untried"
            found.append((path.via, "slow" if path.status in ("in_use", "proven") else unproven))
        return tuple(found)

    def _failures(self) -> Iterator[Attempt]:
        """What is known of each path, where none gave an answer."""
        yield from self._broken
        fitting = self._reachability.fitting(self.target)
        if not fitting:
            known = ", ".join(t.name for t in self._reachability.transports)
            text = f"no path applies to this agent (paths configured: {known})"
            yield Attempt(via="none", reason="unreachable", message=text)
        for transport in fitting:
            failure = self._reachability.failure(self.target, transport)
            if failure is not None:
                message = failure.message
                if failure.at < self._begun_at:
                    message += f" ({self._when(failure)})"
                yield Attempt(via=transport.name, reason=failure.reason, message=message)

    def _when(self, failure: PathFailure) -> str:
        now = self._reachability.now()
        left = failure.last_resort_at - now
        again = f"tried again in {left:.0f} s" if left > 0 else "being tried again"
        return f"{now - failure.at:.0f} s ago; {again}"

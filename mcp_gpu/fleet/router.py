"""Fan one tool call out to every agent and collect answers, failures and the paths taken.

One node never costs another anything: each has its own deadline and ends by itself. A node that
fails is data; only knowing no agents at all is an error.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio
from pydantic import BaseModel

from mcp_gpu.fleet.discovery import Discovery, DiscoveryError, Table
from mcp_gpu.fleet.errand import Errand
from mcp_gpu.fleet.lanes import Lanes, Load
from mcp_gpu.fleet.model import Coverage, FailureReason, NodeFailure
from mcp_gpu.fleet.question import NodeAnswer, Question
from mcp_gpu.fleet.reachability import Reachability
from mcp_gpu.fleet.selection import UnknownNodes, pick
from mcp_gpu.telemetry import tracing
from mcp_gpu.telemetry.calls import current
from transports.base import Target

__all__ = ["FanOut", "NodeAnswer", "Router", "UnknownNodes"]

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

Progress = Callable[[int, int, str], Awaitable[None]]
"""`(done, total, message)`, after each node."""

_TELLING: tuple[FailureReason, ...] = (
    "agent_too_old",
    "tool_error",
    "not_running",
    "denied",
    "bad_response",
    "timeout",
    "broken",
    "unreachable",
)
"""Most telling first: of several failed paths the one that got furthest names the failure."""

DISPUTANTS = 3
"""Agents named that speak for one node."""

_SPOKEN: tuple[FailureReason, ...] = ("agent_too_old", "tool_error")
"""The agent itself has said why: nobody else needs to explain it."""


@dataclass(frozen=True, slots=True)
class FanOut(Generic[M]):
    """What a fan-out found, sorted by node."""

    answers: tuple[NodeAnswer[M], ...]
    failures: tuple[NodeFailure, ...]
    coverage: Coverage


class Router:
    """Asks all agents at once, each over the best path known.

    Args:
        node_deadline_seconds: for one node, all its paths together, from its first attempt.
        call_deadline_seconds: for the whole fan-out.
        concurrency: calls under way per kind of path.
    """

    def __init__(
        self,
        discovery: Discovery,
        reachability: Reachability,
        *,
        node_deadline_seconds: float = 8.0,
        call_deadline_seconds: float = 20.0,
        concurrency: int = 64,
    ) -> None:
        self.discovery = discovery
        self.nodes_answered: Counter[str] = Counter()
        """In all fan-outs, by the path that the answer took."""
        self.nodes_failed: Counter[FailureReason] = Counter()
        self._reachability = reachability
        self._node_deadline_seconds = node_deadline_seconds
        self._call_deadline_seconds = call_deadline_seconds
        self._lanes = Lanes(tuple(t.name for t in reachability.transports), concurrency)

    async def fan_out(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        result: type[M],
        *,
        nodes: Collection[str] | None = None,
        progress: Progress | None = None,
    ) -> FanOut[M]:
        """Call `tool` on every agent, or on those of `nodes`.

        Every tool is read-only, so a call that broke or is slow is sent again over another path.

        Args:
            arguments: an agent is sent those of them that it lists for the tool.
            result: what an agent's structured content is validated against.

        Raises:
            DiscoveryError: no agents are known at all.
            UnknownNodes: `nodes` names some that discovery does not know.
        """
        with tracing.span("fan_out", tool=tool):
            started = time.monotonic()
            fan_out = await self._fan_out(tool, arguments, result, nodes, progress)
            _tell(tool, fan_out, time.monotonic() - started)
            return fan_out

    async def _fan_out(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        result: type[M],
        nodes: Collection[str] | None,
        progress: Progress | None,
    ) -> FanOut[M]:
        table = self.discovery.table()
        if not table.targets and not table.absent:
            raise DiscoveryError(f"{table.source}: {table.problem or 'no agents there'}")
        self._reachability.asked(table.targets)
        wanted = frozenset(nodes) if nodes else None
        question = Question(tool, arguments, result, wanted, self._node_deadline_seconds)
        # Agents that answered last time go first: the dead must not hold up the living.
        picked = sorted(
            pick(table, wanted, self._reachability.node), key=self._reachability.is_suspect
        )
        errands = [Errand(target, question, self._reachability, self._lanes) for target in picked]
        outgoing = [errand for errand in errands if not errand.target.ready]
        done = 0

        async def run(errand: Errand[M]) -> None:
            nonlocal done
            await errand.run()
            if errand.answer is not None:
                self._skip_outdated(errand.answer.node, outgoing)
            done += 1
            if progress is not None:
                outcome = "answered" if errand.answer or errand.skipped else "failed"
                await progress(done, len(errands), f"{self._name(errand.target)} {outcome}")

        with anyio.move_on_after(self._call_deadline_seconds):
            async with anyio.create_task_group() as group:
                for errand in errands:
                    group.start_soon(run, errand)
        fan_out = self._collect(table, errands, wanted)
        self.nodes_answered.update(answer.via for answer in fan_out.answers)
        self.nodes_failed.update(failure.reason for failure in fan_out.failures)
        return fan_out

    def load(self) -> Mapping[str, Load]:
        """Calls under way and waiting, by path."""
        return self._lanes.load()

    def nodes(self) -> Sequence[str]:
        """The names of the nodes that are known now, in order; an agent whose node nobody has
        learned yet goes by its address. Asks nobody."""
        try:
            table = self.discovery.table()
        except DiscoveryError:
            return ()
        known = {self._name(target) for target in table.targets}
        return sorted(known | {absent.node for absent in table.absent})

    def unknown(self, nodes: Collection[str]) -> Collection[str]:
        """Those of the names that cannot be any node's. Asks nobody."""
        try:
            pick(self.discovery.table(), frozenset(nodes), self._reachability.node)
        except DiscoveryError:
            return ()  # nothing is known, and so any may be
        except UnknownNodes as error:
            return error.unknown
        return ()

    def _name(self, target: Target) -> str:
        return self._reachability.node(target) or str(target)

    def _skip_outdated(self, node: str, outgoing: Sequence[Errand[M]]) -> None:
        """Wait no longer for agents that are on their way out of a node that has answered."""
        for other in outgoing:
            if other.answer is None and self._reachability.node(other.target) == node:
                other.skip()

    def _collect(
        self, table: Table, errands: Sequence[Errand[M]], wanted: frozenset[str] | None
    ) -> FanOut[M]:
        answers: dict[str, NodeAnswer[M]] = {}
        claims: dict[str, list[Target]] = {}
        for errand in errands:
            answer = errand.answer
            if answer is None:
                continue
            if answer.ready:
                claims.setdefault(answer.node, []).append(errand.target)
            rival = answers.get(answer.node)
            if rival is None or _rank(answer) > _rank(rival):
                answers[answer.node] = answer
        failures: dict[str, NodeFailure] = {}
        for errand in errands:
            name = self._name(errand.target)
            # A node with one agent that answered has answered, whatever became of another
            # (an update starts the new agent before it ends the old one).
            if errand.answer is None and not errand.skipped and name not in answers:
                failures.setdefault(name, self._failure(name, errand, table))
        for absent in table.absent:
            if absent.node not in answers and (wanted is None or absent.node in wanted):
                failure = NodeFailure(node=absent.node, reason="not_running", message=absent.why)
                failures.setdefault(absent.node, failure)
        for node in (wanted or frozenset()) - answers.keys() - failures.keys():
            failures[node] = NodeFailure(
                node=node,
                reason="unreachable",
                message="no agent said it is on this node; check the name, or see the agents "
                "listed by address among the failures",
            )
        known = {self._name(target) for target in table.targets}
        known |= {absent.node for absent in table.absent}
        coverage = Coverage(
            nodes_known=len(known),
            nodes_asked=len(answers) + len(failures),
            nodes_answered=len(answers),
            discovery=table.source,
            discovery_age_seconds=round(max(time.time() - table.as_of, 0.0), 1),
            discovery_problem="; ".join(filter(None, (table.problem, _disputed(claims)))) or None,
        )
        return FanOut(
            answers=tuple(answers[node] for node in sorted(answers)),
            failures=tuple(failures[node] for node in sorted(failures)),
            coverage=coverage,
        )

    def _failure(self, node: str, errand: Errand[Any], table: Table) -> NodeFailure:
        """Why the node gave no answer: by what its paths said, and by what discovery knows."""
        attempts = errand.attempts
        telling = min(attempts, key=lambda attempt: _TELLING.index(attempt.reason), default=None)
        explanation = table.explanations.get(errand.target.key)
        reason: FailureReason = "timeout" if telling is None else telling.reason
        if telling is not None:
            message = telling.message
        elif errand.is_late:
            message = f"no answer before the node's deadline of {self._node_deadline_seconds:g} s"
        else:
            message = f"no answer before the call's deadline of {self._call_deadline_seconds:g} s"
        if explanation is None or reason in _SPOKEN:
            pass
        elif explanation.stopped:
            reason, message = "not_running", explanation.text
        else:
            message = f"{message}; {explanation.text}"
        return NodeFailure(node=node, reason=reason, message=message, attempts=attempts)


def _disputed(claims: Mapping[str, Sequence[Target]]) -> str:
    """That several agents speak for one node, where nobody but themselves says that they may: a
    stranger's could take the place of the true one. An update's two are of one namespace, and
    Kubernetes says where they run."""
    disputed = [
        node
        for node, targets in sorted(claims.items())
        if len(targets) > 1
        and (len({each.namespace for each in targets}) > 1 or not all(t.node for t in targets))
    ]
    if not disputed:
        return ""
    others = f" and {len(disputed) - 1} more nodes" if len(disputed) > 1 else ""
    who = " and ".join(map(_whereabouts, claims[disputed[0]][:DISPUTANTS]))
    return (
        f"several agents speak for node {disputed[0]}{others}: {who}; the newest is believed. Name "
        "those to ask by --namespace, or each with its node by --agents NODE=ADDRESS"
    )


def _whereabouts(target: Target) -> str:
    if target.pod:
        return f"pod {target.namespace}/{target.pod}"
    return next(iter(target.addresses), str(target))


def _rank(answer: NodeAnswer[Any]) -> tuple[bool, float]:
    return answer.ready, answer.identity.started_at


def _tell(tool: str, fan_out: FanOut[Any], seconds: float) -> None:
    """The log, the trace and the call that this is part of."""
    coverage = fan_out.coverage
    answered, asked = coverage.nodes_answered, coverage.nodes_asked
    tracing.note(
        nodes_asked=asked,
        nodes_answered=answered,
        outcome="ok" if answered == asked else "partial" if answered else "no_answer",
        discovery_age_seconds=coverage.discovery_age_seconds,
    )
    call = current()
    if call is not None:
        for failure in fan_out.failures:
            call.nodes.setdefault(failure.node, False)
        call.nodes.update((answer.node, True) for answer in fan_out.answers)
    logger.info(
        "routing complete",
        extra={
            "tool": tool,
            "nodes": fan_out.coverage.nodes_asked,
            "success": len(fan_out.answers),
            "failed": len(fan_out.failures),
            "by_path": dict(Counter(answer.via for answer in fan_out.answers)),
            "seconds": round(seconds, 4),
        },
    )

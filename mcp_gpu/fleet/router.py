"""Fan one tool call out to every agent and collect answers, failures and the paths taken.

One node never costs another anything: each has its own deadline and catches at its own
boundary. A node that fails is data; only knowing no agents at all is an error.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import anyio
from mcp_types import CallToolResult, Implementation, TextContent
from pydantic import BaseModel, ValidationError

from mcp_gpu import __version__
from mcp_gpu.fleet.discovery import Discovery, Table
from mcp_gpu.fleet.model import Attempt, Coverage, FailureReason, NodeFailure
from mcp_gpu.fleet.reachability import Reachability
from transports.base import Identity, Target, Transport
from transports.errors import BadPeer, TransportError
from transports.session import call_tool

__all__ = ["FanOut", "NodeAnswer", "Router", "UnknownNodes"]

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

Progress = Callable[[int, int, str], Awaitable[None]]
"""`(done, total, message)`, after each node."""

CLIENT_INFO = Implementation(name="mcp-gpu-gateway", version=__version__)

FIRST_PATH_SHARE = 0.6
"""Part of a node's remaining time that a path may take while another one is left to try: a
proven path that falls silent must leave time to open a stream."""

ANSWER_BYTES = 256 * 1024
"""Longest answer of one agent: 16 GPUs with 7 MIG instances each take half of it. One agent gone
wrong must not make the whole fleet's answer too long to give."""

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


class UnknownNodes(Exception):
    """The caller named nodes that nobody knows."""

    def __init__(self, unknown: Collection[str], known: Collection[str]) -> None:
        self.unknown = sorted(unknown)
        self.known = sorted(known)
        super().__init__(f"unknown nodes: {', '.join(self.unknown)}")


@dataclass(frozen=True, slots=True)
class NodeAnswer(Generic[M]):
    """One node's data and how it was had."""

    node: str
    via: str
    data: M
    identity: Identity
    ready: bool
    elapsed_seconds: float


@dataclass(frozen=True, slots=True)
class FanOut(Generic[M]):
    """What a fan-out found, sorted by node."""

    answers: tuple[NodeAnswer[M], ...]
    failures: tuple[NodeFailure, ...]
    coverage: Coverage


@dataclass(slots=True)
class _Errand(Generic[M]):
    """One agent to ask, and what has come of it so far."""

    target: Target
    attempts: list[Attempt] = field(default_factory=list)
    answer: NodeAnswer[M] | None = None
    skipped: bool = False
    """The agent turned out to be on a node that was not asked for."""


class Router:
    """Asks all agents at once, each over the best path known.

    Args:
        node_deadline_seconds: for one node, all its paths together, from its first attempt.
        call_deadline_seconds: for the whole fan-out.
        concurrency: calls in flight per kind of path. Streams cost the API server and a
            process each, so they must not starve or be starved by HTTP.
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
        self._reachability = reachability
        self._node_deadline_seconds = node_deadline_seconds
        self._call_deadline_seconds = call_deadline_seconds
        self._limits = {
            transport.name: anyio.CapacityLimiter(concurrency)
            for transport in reachability.transports
        }

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

        Every tool is read-only, so a call that broke is sent again over another path.

        Args:
            arguments: an agent is sent those of them that it lists for the tool.
            result: what an agent's structured content is validated against.

        Raises:
            DiscoveryError: no agents are known at all.
            UnknownNodes: `nodes` names some that discovery does not know.
        """
        started = time.monotonic()
        table = self.discovery.table()
        self._reachability.retain(table.targets)
        errands = [_Errand[M](target) for target in self._pick(table, nodes)]
        # Agents that answered last time go first: the dead must not hold up the living.
        errands.sort(key=lambda e: self._reachability.is_suspect(e.target))
        ask = _Ask(tool, arguments, result, frozenset(nodes) if nodes else None)
        done = 0

        async def run(errand: _Errand[M]) -> None:
            nonlocal done
            await self._ask(errand, ask)
            done += 1
            if progress is not None:
                outcome = "answered" if errand.answer or errand.skipped else "failed"
                await progress(done, len(errands), f"{self._name(errand.target)} {outcome}")

        with anyio.move_on_after(self._call_deadline_seconds):
            async with anyio.create_task_group() as group:
                for errand in errands:
                    group.start_soon(run, errand)
        fan_out = self._collect(table, errands, ask)
        _log(tool, fan_out, time.monotonic() - started)
        return fan_out

    def _pick(self, table: Table, nodes: Collection[str] | None) -> list[Target]:
        if not nodes:
            return list(table.targets)
        by_node: dict[str, list[Target]] = {}
        for target in table.targets:
            by_node.setdefault(self._reachability.node(target), []).append(target)
        # An agent whose node nobody has learned yet may be on any of them.
        unnamed = by_node.pop("", [])
        unknown = set(nodes) - by_node.keys()
        if unknown and not unnamed:
            raise UnknownNodes(unknown, by_node)
        picked = [target for node in nodes for target in by_node.get(node, [])]
        return picked + (unnamed if unknown else [])

    def _name(self, target: Target) -> str:
        return self._reachability.node(target) or str(target)

    async def _ask(self, errand: _Errand[M], ask: _Ask[M]) -> None:
        target = errand.target
        paths = self._reachability.paths(target)
        if not paths:
            known = ", ".join(t.name for t in self._reachability.transports)
            errand.attempts.append(
                Attempt(
                    via="none",
                    reason="unreachable",
                    message=f"no path applies to this agent (paths configured: {known})",
                )
            )
        with anyio.CancelScope() as scope:
            for position, transport in enumerate(paths):
                async with self._limits[transport.name]:
                    now = anyio.current_time()
                    if position == 0:
                        scope.deadline = now + self._node_deadline_seconds
                    left = scope.deadline - now
                    if position < len(paths) - 1:
                        left *= FIRST_PATH_SHARE
                    if await self._try(errand, ask, transport, left):
                        return
        if errand.answer is None and not errand.skipped:
            self._reachability.exhausted(target)

    async def _try(
        self, errand: _Errand[M], ask: _Ask[M], transport: Transport, timeout_seconds: float
    ) -> bool:
        """Ask over one path. True when no other path needs to be tried."""
        target = errand.target
        started = anyio.current_time()
        try:
            identity = await self._reachability.prove(target, transport)
            if ask.nodes is not None and identity.node not in ask.nodes:
                errand.skipped = True
                return True
            listed = identity.tools.get(ask.tool)
            if listed is None:
                # It may be updated in its place by the next call: that one asks anew.
                self._reachability.failed(target, transport)
                errand.attempts.append(_too_old(transport, ask.tool, identity))
                return True
            spent = anyio.current_time() - started
            outcome = await call_tool(
                transport,
                target,
                ask.tool,
                {name: value for name, value in ask.arguments.items() if name in listed},
                timeout_seconds=max(timeout_seconds - spent, 0.05),
                client_info=CLIENT_INFO,
            )
            data = _read(outcome, ask.result, target, transport)
        except _ToolFailed as error:
            self._reachability.succeeded(target, transport, identity)
            errand.attempts.append(
                Attempt(via=transport.name, reason="tool_error", message=str(error))
            )
            return True
        except TransportError as error:
            self._reachability.failed(target, transport)
            errand.attempts.append(
                Attempt(via=transport.name, reason=error.reason, message=error.message)
            )
            return False
        except anyio.get_cancelled_exc_class():
            self._reachability.failed(target, transport)
            errand.attempts.append(
                Attempt(via=transport.name, reason="timeout", message="no answer in time")
            )
            raise
        self._reachability.succeeded(target, transport, identity)
        errand.answer = NodeAnswer(
            node=identity.node,
            via=transport.name,
            data=data,
            identity=identity,
            ready=target.ready,
            elapsed_seconds=anyio.current_time() - started,
        )
        return True

    def _collect(self, table: Table, errands: list[_Errand[M]], ask: _Ask[M]) -> FanOut[M]:
        answers: dict[str, NodeAnswer[M]] = {}
        for errand in errands:
            answer = errand.answer
            if answer is None:
                continue
            rival = answers.get(answer.node)
            if rival is None or _rank(answer) > _rank(rival):
                answers[answer.node] = answer
        failures: dict[str, NodeFailure] = {}
        for errand in errands:
            name = self._name(errand.target)
            # A node with one agent that answered has answered, whatever became of another
            # (an update starts the new agent before it ends the old one).
            if errand.answer is None and not errand.skipped and name not in answers:
                failures.setdefault(name, _failure(name, errand, self._call_deadline_seconds))
        for node in (ask.nodes or frozenset()) - answers.keys() - failures.keys():
            failures[node] = NodeFailure(
                node=node,
                reason="unreachable",
                message="no agent said it is on this node; check the name, or see the agents "
                "listed by address among the failures",
            )
        coverage = Coverage(
            nodes_known=len({self._name(target) for target in table.targets}),
            nodes_asked=len(answers) + len(failures),
            nodes_answered=len(answers),
            discovery=table.source,
            discovery_age_seconds=round(max(time.time() - table.as_of, 0.0), 1),
            discovery_problem=table.problem,
        )
        return FanOut(
            answers=tuple(answers[node] for node in sorted(answers)),
            failures=tuple(failures[node] for node in sorted(failures)),
            coverage=coverage,
        )


@dataclass(frozen=True, slots=True)
class _Ask(Generic[M]):
    tool: str
    arguments: Mapping[str, Any]
    result: type[M]
    nodes: frozenset[str] | None


class _ToolFailed(Exception):
    """The agent ran the tool and the tool says no."""


def _read(outcome: CallToolResult, result: type[M], target: Target, transport: Transport) -> M:
    if outcome.is_error:
        texts = [block.text for block in outcome.content if isinstance(block, TextContent)]
        raise _ToolFailed(" ".join(texts) or "the agent's tool failed and did not say why")
    try:
        data = result.model_validate(outcome.structured_content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadPeer(
            f"the agent's answer does not fit its schema: {place or 'answer'}: {first['msg']}",
            target=target,
            transport=transport.name,
        ) from error
    size_bytes = len(data.model_dump_json())
    if size_bytes > ANSWER_BYTES:
        raise BadPeer(
            f"the agent's answer is {size_bytes:,} bytes, which no node needs",
            target=target,
            transport=transport.name,
        )
    return data


def _too_old(transport: Transport, tool: str, identity: Identity) -> Attempt:
    return Attempt(
        via=transport.name,
        reason="agent_too_old",
        message=f"agent {identity.version} has no tool {tool}; this gateway is {__version__}: "
        "update the agents",
    )


def _failure(node: str, errand: _Errand[Any], call_deadline_seconds: float) -> NodeFailure:
    if not errand.attempts:
        return NodeFailure(
            node=node,
            reason="timeout",
            message=f"not asked before the call's deadline of {call_deadline_seconds:g} s",
        )
    telling = min(errand.attempts, key=lambda attempt: _TELLING.index(attempt.reason))
    return NodeFailure(
        node=node,
        reason=telling.reason,
        message=telling.message,
        attempts=tuple(errand.attempts),
    )


def _rank(answer: NodeAnswer[Any]) -> tuple[bool, float]:
    return answer.ready, answer.identity.started_at


def _log(tool: str, fan_out: FanOut[Any], seconds: float) -> None:
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

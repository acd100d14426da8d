"""Asking one agent one question: over the best path known, then over the others.

Whatever happens to it stays with it: an errand ends with an answer or with the attempts made,
and raises nothing but the cancellation of its caller.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio
from mcp_types import CallToolResult, Implementation, TextContent
from pydantic import BaseModel, ValidationError

from mcp_gpu import __version__
from mcp_gpu.fleet.model import Attempt, FailureReason
from mcp_gpu.fleet.reachability import Reachability
from transports.base import INSTANCE_META_KEY, Identity, Target, Transport
from transports.errors import BadPeer, Broken, TransportError
from transports.session import call_tool

__all__ = ["Errand", "Lanes", "NodeAnswer", "Question"]

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

CLIENT_INFO = Implementation(name="mcp-gpu-gateway", version=__version__)

FIRST_PATH_SHARE = 0.6
"""Part of a node's remaining time that a path may take while another one is left to try: a
proven path that falls silent must leave time to open a stream."""

LEAST_CALL_SECONDS = 0.05
"""A call is given at least this much, so that it fails for what it meets and not for being late."""

ANSWER_BYTES = 256 * 1024
"""Longest answer of one agent: 16 GPUs with 7 MIG instances each take half of it. One agent gone
wrong must not make the whole fleet's answer too long to give."""


@dataclass(frozen=True, slots=True)
class Question(Generic[M]):
    """What all agents are asked."""

    tool: str
    arguments: Mapping[str, Any]
    """An agent is sent those of them that it lists for the tool."""
    result: type[M]
    nodes: frozenset[str] | None
    """Only agents of these nodes are asked; None for all."""
    node_deadline_seconds: float
    """For all paths of one agent together, from its first attempt."""


@dataclass(frozen=True, slots=True)
class NodeAnswer(Generic[M]):
    """One node's data and how it was had."""

    node: str
    via: str
    data: M
    identity: Identity
    ready: bool
    elapsed_seconds: float


class Lanes:
    """How much may be under way at once, per kind of path.

    Streams cost the API server and a process each, so they must not starve HTTP or be starved
    by it. Probes have a lane beside the calls: a dead path holds its place for a whole time-out,
    and live agents must not queue behind it.
    """

    def __init__(self, paths: tuple[str, ...], concurrency: int) -> None:
        self.probes = {path: anyio.CapacityLimiter(concurrency) for path in paths}
        self.calls = {path: anyio.CapacityLimiter(concurrency) for path in paths}


class Errand(Generic[M]):
    """One agent to ask, and what has come of it so far."""

    def __init__(
        self, target: Target, question: Question[M], reachability: Reachability, lanes: Lanes
    ) -> None:
        self.target = target
        self.attempts: list[Attempt] = []
        self.answer: NodeAnswer[M] | None = None
        self.skipped = False
        """Nobody needs this agent's answer: it is of a node that was not asked for, or another
        agent of its node has answered."""
        self._question = question
        self._reachability = reachability
        self._lanes = lanes
        self._scope = anyio.CancelScope()
        self._started = 0.0

    def skip(self) -> None:
        """Give it up, without blame."""
        self.skipped = True
        self._scope.cancel()

    async def run(self) -> None:
        """Ask, and keep the outcome."""
        with self._scope:
            try:
                await self._over_any_path()
            except Exception as error:  # boundary: a defect met on one node costs that node
                logger.exception("asking %s failed", self.target)
                self._note("none", "broken", f"internal error: {type(error).__name__}; see the log")
        if self.answer is None and not self.skipped:
            self._reachability.exhausted(self.target)

    async def _over_any_path(self) -> None:
        paths = self._reachability.paths(self.target)
        if not paths:
            known = ", ".join(t.name for t in self._reachability.transports)
            text = f"no path applies to this agent (paths configured: {known})"
            self._note("none", "unreachable", text)
        for position, transport in enumerate(paths):
            if await self._over(transport, others_left=position < len(paths) - 1):
                return

    async def _over(self, transport: Transport, *, others_left: bool) -> bool:
        """Ask over one path. True when no other path needs to be tried."""
        try:
            known = self._reachability.proven(self.target, transport)
            if known is not None:
                try:
                    if await self._call(transport, known, others_left, fresh=False):
                        return True
                except (BadPeer, Broken) as error:
                    self._reachability.failed(self.target, transport)
                    if isinstance(error, Broken):
                        self._note(transport.name, error.reason, error.message)
            # Nobody has looked yet; or who is there is not who was there when we looked, or a
            # connection kept since then has died, which says little of a new one.
            async with self._lanes.probes[transport.name]:
                self._start_clock()
                identity = await self._reachability.probe(self.target, transport)
            return await self._call(transport, identity, others_left, fresh=True)
        except TransportError as error:
            self._reachability.failed(self.target, transport)
            self._note(transport.name, error.reason, error.message)
            return False
        except anyio.get_cancelled_exc_class():
            # By the deadline, or by a caller who left: that says nothing of the path.
            if self._scope.deadline <= anyio.current_time():
                self._reachability.failed(self.target, transport)
                self._note(transport.name, "timeout", "no answer in time")
            raise

    async def _call(
        self, transport: Transport, identity: Identity, others_left: bool, *, fresh: bool
    ) -> bool:
        """Call the tool. False when the proof it relied on turned out to be out of date.

        Raises:
            TransportError: the path failed.
        """
        question = self._question
        if question.nodes is not None and identity.node not in question.nodes:
            self.skipped = True
            return True
        listed = identity.tools.get(question.tool)
        if listed is None:
            self._reachability.failed(self.target, transport)  # it may be updated by the next call
            if fresh:
                self._note(transport.name, "agent_too_old", _too_old(question.tool, identity))
            return fresh
        async with self._lanes.calls[transport.name]:
            self._start_clock()
            asked_at = anyio.current_time()
            left = self._scope.deadline - asked_at
            outcome = await call_tool(
                transport,
                self.target,
                question.tool,
                {name: value for name, value in question.arguments.items() if name in listed},
                timeout_seconds=max(
                    left * FIRST_PATH_SHARE if others_left else left, LEAST_CALL_SECONDS
                ),
                client_info=CLIENT_INFO,
            )
        instance = (outcome.meta or {}).get(INSTANCE_META_KEY)
        if instance != identity.instance:
            self._reachability.failed(self.target, transport)
            if fresh:
                raise BadPeer(
                    "another agent answered the call than the probe",
                    target=self.target,
                    transport=transport.name,
                )
            return False
        self._reachability.succeeded(self.target, transport)
        if outcome.is_error:
            self._note(transport.name, "tool_error", _words(outcome))
            return True
        self.answer = NodeAnswer(
            node=identity.node,
            via=transport.name,
            data=_read(outcome, question.result, self.target, transport),
            identity=identity,
            ready=self.target.ready,
            elapsed_seconds=anyio.current_time() - self._started,
        )
        return True

    def _start_clock(self) -> None:
        """The agent's time runs from its first attempt, not from its place in a queue."""
        if not self._started:
            self._started = anyio.current_time()
            self._scope.deadline = self._started + self._question.node_deadline_seconds

    def _note(self, via: str, reason: FailureReason, message: str) -> None:
        self.attempts.append(Attempt(via=via, reason=reason, message=message))


def _words(outcome: CallToolResult) -> str:
    texts = [block.text for block in outcome.content if isinstance(block, TextContent)]
    return " ".join(texts) or "the agent's tool failed and did not say why"


def _read(outcome: CallToolResult, result: type[M], target: Target, transport: Transport) -> M:
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


def _too_old(tool: str, identity: Identity) -> str:
    return (
        f"agent {identity.version} has no tool {tool}; this gateway is {__version__}: "
        "update the agents"
    )

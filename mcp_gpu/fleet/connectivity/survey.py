"""Trying every path to every agent, within bounds, and noting how each answers or fails.

A survey asks; it decides nothing. What calls use stays with `Reachability`, which is only read
here, so that a person who looks changes nothing for those who work.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import anyio

from mcp_gpu.fleet.connectivity.model import NodeSurvey, PathResult, Place, Survey
from mcp_gpu.fleet.discovery import Table
from mcp_gpu.fleet.lanes import STREAMS_AT_ONCE, is_direct
from mcp_gpu.fleet.proof import PROVEN_WITHOUT_TOKEN, mismatch
from mcp_gpu.fleet.selection import pick
from transports.base import PAD_CHARS, Identity, Target, Transport
from transports.errors import TimedOut, TransportError
from transports.http import HttpTransport
from transports.session import discover

__all__ = ["PathKnowledge", "Paths", "Surveyor", "works"]

logger = logging.getLogger(__name__)

SMALL_FLEET = 64
"""Up to so many agents all their paths are tried."""

SAMPLE = 8
"""Agents of a larger fleet of which all are: a fallback that works nowhere must be seen before
it is needed."""

DIRECT_AT_ONCE = 128
"""A thousand dead agents, each silent for a probe and a small one, then take half a minute."""

SMALL_PROBE_SECONDS = 2.0
"""Longest wait for a small answer where a large one has not come. One round trip, or TCP asking
again after a second."""

SURVEY_SECONDS = 40.0
"""Longest time for all agents: less than the minute after which MCP clients give up."""

BETTER_WORKS = (
    f"a better path works, and in a fleet of more than {SMALL_FLEET} agents only those of "
    f"{SAMPLE} are all tried"
)

Progress = Callable[[int, int, str], Awaitable[None]]
"""`(done, total, message)`, after each agent."""


class PathKnowledge(Protocol):
    """What is known of one path to one agent, as `Reachability.state` tells it."""

    @property
    def via(self) -> str: ...
    @property
    def status(self) -> str:
        """in_use, proven, failed, denied or untried."""

    @property
    def message(self) -> str:
        """Of the last failure."""

    @property
    def age_seconds(self) -> float | None: ...


class Paths(Protocol):
    """The paths to all agents and what is known of them: a `Reachability`."""

    @property
    def transports(self) -> Sequence[Transport]:
        """In order of preference."""

    def node(self, target: Target) -> str:
        """The name shown for the agent's node; empty where nobody has learned it yet."""

    def state(self, target: Target) -> Sequence[PathKnowledge]:
        """Those that apply to the agent, in order of preference."""


@dataclass(slots=True, eq=False)
class _Agent:
    """One agent, and what has come of its paths so far."""

    target: Target
    transports: tuple[Transport, ...]
    states: Sequence[PathKnowledge]
    node: str
    results: dict[str, PathResult] = field(default_factory=dict)

    @property
    def in_use(self) -> str:
        return next((each.via for each in self.states if each.status == "in_use"), "")

    @property
    def answers(self) -> bool:
        return any(result.outcome == "ok" for result in self.results.values())


class Surveyor:
    """Tries paths.

    Args:
        paths: transports already entered by the caller, and what is known of them.
        place: where this process runs.
        probe_timeout_seconds: how long a probe may take on a path, by transport name.
        default_probe_timeout_seconds: for transports not named there.
        survey_seconds: for all agents together.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        place: Place,
        probe_timeout_seconds: Mapping[str, float] | None = None,
        default_probe_timeout_seconds: float = 5.0,
        survey_seconds: float = SURVEY_SECONDS,
    ) -> None:
        self._paths = paths
        self._place = place
        self._timeouts = dict(probe_timeout_seconds or {})
        self._default_timeout_seconds = default_probe_timeout_seconds
        self._survey_seconds = survey_seconds
        self._lanes = {
            each.name: anyio.CapacityLimiter(
                DIRECT_AT_ONCE if is_direct(each.name) else STREAMS_AT_ONCE
            )
            for each in paths.transports
        }

    async def survey(
        self,
        table: Table,
        *,
        nodes: Collection[str] | None = None,
        every_path: bool = False,
        progress: Progress | None = None,
    ) -> Survey:
        """Try the paths of all agents, or of those of `nodes`.

        Over HTTP by new connections, which end with it: one that is kept from earlier calls may
        go on working where no new one comes about. Streams that are opened for it close as all do
        that nobody uses.

        Args:
            every_path: all paths of all agents, however many.

        Raises:
            UnknownNodes: `nodes` names some that discovery does not know.
        """
        wanted = frozenset(nodes) if nodes else None
        async with _anew(self._paths.transports) as transports:
            agents = [
                self._agent(each, transports) for each in pick(table, wanted, self._paths.node)
            ]
            await self._try_all(agents, every_path, progress)
        return self._collect(table, agents, wanted)

    async def _try_all(
        self, agents: Sequence[_Agent], every_path: bool, progress: Progress | None
    ) -> None:
        thorough = every_path or len(agents) <= SMALL_FLEET
        sample = set(range(0, len(agents), max(len(agents) // SAMPLE, 1)))
        done = 0

        async def run(agent: _Agent, all_paths: bool) -> None:
            nonlocal done
            await self._try(agent, all_paths)
            done += 1
            if progress is not None:
                said = "answers" if agent.answers else "does not answer"
                await progress(done, len(agents), f"{agent.node or agent.target} {said}")

        with anyio.move_on_after(self._survey_seconds):
            async with anyio.create_task_group() as group:
                for position, agent in enumerate(agents):
                    group.start_soon(run, agent, thorough or position in sample)

    def known(self, table: Table) -> frozenset[str]:
        """All nodes of the table, those included that a survey was not asked about."""
        named = {self._paths.node(target) or str(target) for target in table.targets}
        return frozenset(named | {absent.node for absent in table.absent})

    def _agent(self, target: Target, transports: Sequence[Transport]) -> _Agent:
        fitting = tuple(each for each in transports if each.applies(target))
        return _Agent(target, fitting, self._paths.state(target), self._paths.node(target))

    async def _try(self, agent: _Agent, all_paths: bool) -> None:
        if all_paths:
            async with anyio.create_task_group() as group:
                for transport in agent.transports:
                    group.start_soon(self._note, agent, transport)
            return
        for transport in agent.transports:
            name = transport.name
            if agent.answers and not is_direct(name) and name != agent.in_use:
                agent.results[name] = PathResult(name, "not_tried", BETTER_WORKS)
            else:
                await self._note(agent, transport)

    async def _note(self, agent: _Agent, transport: Transport) -> None:
        async with self._lanes[transport.name]:
            started = anyio.current_time()
            try:
                result = await self._result(agent, transport)
            except TransportError as error:
                seconds = anyio.current_time() - started
                result = PathResult(transport.name, error.symptom, error.message, seconds)
            # The boundary to a transport, which may be a third party's.
            except Exception as error:
                logger.exception("trying %s to %s failed", transport.name, agent.target)
                words = f"internal error: {type(error).__name__}; see the log"
                result = PathResult(transport.name, "other", words)
        agent.results[transport.name] = result

    async def _result(self, agent: _Agent, transport: Transport) -> PathResult:
        """What a path that answers is worth.

        Raises:
            TransportError: it does not answer.
        """
        name, target = transport.name, agent.target
        limit_seconds = self._timeouts.get(name, self._default_timeout_seconds)
        started = anyio.current_time()
        try:
            identity = await _probe(transport, target, limit_seconds)
        except TransportError as error:
            seconds = anyio.current_time() - started
            if error.symptom != "silent" or not await self._answers_small(transport, target):
                raise
            words = f"small answers arrive; one of {PAD_CHARS:,} characters does not"
            return PathResult(name, "large_lost", words, seconds)
        seconds = anyio.current_time() - started
        wrong = mismatch(target, identity)
        if wrong is not None:
            return PathResult(name, "wrong_identity", wrong, seconds)
        agent.node = agent.node or identity.node
        if name in PROVEN_WITHOUT_TOKEN:
            try:
                await discover(transport, target, pad_chars=0, timeout_seconds=limit_seconds)
            except TransportError as error:
                words = f"answers probes but no calls: {error.message}"
                return PathResult(name, error.symptom, words, seconds)
        return PathResult(name, "ok", seconds=seconds)

    async def _answers_small(self, transport: Transport, target: Target) -> bool:
        limit_seconds = self._timeouts.get(transport.name, self._default_timeout_seconds)
        try:
            await _probe(transport, target, min(limit_seconds, SMALL_PROBE_SECONDS), pad_chars=0)
        except TransportError:
            return False
        return True

    def _collect(
        self, table: Table, agents: Sequence[_Agent], wanted: frozenset[str] | None
    ) -> Survey:
        found: dict[str, NodeSurvey] = {}
        for agent in agents:
            explanation = table.explanations.get(agent.target.key)
            each = NodeSurvey(
                node=agent.node or str(agent.target),
                target=agent.target,
                paths=tuple(self._told(agent, transport.name) for transport in agent.transports),
                in_use=agent.in_use,
                why=_why(agent.states),
                explanation="" if explanation is None else explanation.text,
            )
            if wanted is not None and each.node not in wanted:
                continue
            # An update starts a node's new agent before it ends the old one.
            rival = found.get(each.node)
            if rival is None or _rank(each) > _rank(rival):
                found[each.node] = each
        absent = {
            each.node: each.why
            for each in table.absent
            if each.node not in found and (wanted is None or each.node in wanted)
        }
        for node in (wanted or frozenset()) - found.keys() - absent.keys():
            absent[node] = "no agent said it is on this node"
        return Survey(
            place=self._place,
            nodes=tuple(found[node] for node in sorted(found)),
            absent=tuple(sorted(absent.items())),
        )

    def _told(self, agent: _Agent, name: str) -> PathResult:
        late = f"the {self._survey_seconds:g} s that a survey may take were over"
        return agent.results.get(name) or PathResult(name, "not_tried", late)


@asynccontextmanager
async def _anew(transports: Sequence[Transport]) -> AsyncIterator[Sequence[Transport]]:
    """The same, but that HTTP has no connections yet."""
    async with AsyncExitStack() as stack:

        async def anew(transport: Transport) -> Transport:
            # Not those made of it, whose connections are streams through the API server.
            if type(transport) is not HttpTransport:
                return transport
            try:
                return await stack.enter_async_context(HttpTransport(transport.settings))
            except ValueError as error:  # its file of authorities has gone since
                logger.warning("trying %s by the connections it has: %s", transport.name, error)
                return transport

        yield [await anew(each) for each in transports]


async def _probe(
    transport: Transport, target: Target, seconds: float, *, pad_chars: int = PAD_CHARS
) -> Identity:
    try:
        with anyio.fail_after(seconds):
            return await transport.probe(target, pad_chars=pad_chars)
    except TimeoutError:
        words = f"no answer to the probe within {seconds:g} s"
        raise TimedOut(words, target=target, transport=transport.name) from None


def works(node: NodeSurvey) -> bool:
    """Whether any of its paths does."""
    return any(path.outcome == "ok" for path in node.paths)


def _rank(node: NodeSurvey) -> tuple[bool, bool]:
    return works(node), node.target.ready


def _why(states: Sequence[PathKnowledge]) -> str:
    """Why calls take the path that they take, by what is said of the better ones."""
    better: list[str] = []
    for state in states:
        if state.status == "in_use":
            return "; ".join(better) or "the preferred path, and it works"
        better.append(_words(state))
    if all(state.status == "untried" for state in states):
        return "no call has been made yet"
    return "; ".join(better)


def _words(state: PathKnowledge) -> str:
    age = "" if state.age_seconds is None else f" {state.age_seconds:.0f} s ago"
    match state.status:
        case "failed":
            return f"{state.via} failed{age}: {state.message}"
        case "denied":
            return f"{state.via} is denied: {state.message}"
        case "proven":
            return f"{state.via} worked{age}"
        case _:
            return f"{state.via} has not been tried"

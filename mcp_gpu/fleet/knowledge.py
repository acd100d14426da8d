"""What is known of the agents and of the paths to them, and what follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import anyio

from mcp_gpu.fleet.lanes import is_direct
from mcp_gpu.fleet.latency import Latencies
from mcp_gpu.fleet.lessons import Lessons
from mcp_gpu.fleet.paths import PathFailure, Paths, PathState, PathStatus
from mcp_gpu.fleet.patience import Patience
from mcp_gpu.fleet.proof import PROVEN_WITHOUT_TOKEN, prove
from mcp_gpu.fleet.race import Way
from mcp_gpu.fleet.tally import Tally
from mcp_gpu.telemetry import tracing
from transports.base import Identity, Target, Transport
from transports.errors import TransportError

__all__ = ["Knowledge"]

HEAD_START_SHARE = 1 / 3
"""What is left of a head start once the path has been seen dead in this cluster."""

STREAM_HEAD_STARTS = 4.0
"""A path that is not direct is given so many head starts: it opens a stream, which takes 0.1 to
0.6 s, and the next one would open another."""

PROBE_TIMES = 2.0
PROBES_WITHIN_SECONDS = 10.0
"""A head start is so many times what probes that worked within this time have taken, at the least:
agents that are slow because many are asked at once are not overtaken by a stream each."""

HEDGE_LEAST_SECONDS = 0.25
HEDGE_MOST_SECONDS = 2.0
HEDGE_TIMES = 4.0
CALLS_WITHIN_SECONDS = 60.0
"""A call is hedged after so many times the 99th percentile of those within this time. The most is
for a fleet in which one agent takes seconds by itself: that must not keep the others from being
hedged."""


class Knowledge:
    """Earned by probes that prove identity and by calls, kept per agent and path, and expiring.

    For the arguments see `Reachability`.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        *,
        head_start_seconds: float,
        probe_timeout_seconds: Mapping[str, float],
        default_probe_timeout_seconds: float,
        ttl_seconds: float,
        own_node: str,
        clock: Callable[[], float],
        jitter: Callable[[float], float],
    ) -> None:
        self.transports = tuple(transports)
        self.patience = Patience()
        self.probes, self.calls = Tally(), Tally()
        self._head_start_seconds = head_start_seconds
        self._timeouts = probe_timeout_seconds
        self._default_timeout_seconds = default_probe_timeout_seconds
        self._own_node = own_node
        self._clock = clock
        self._paths = Paths(ttl_seconds, clock, jitter)
        self._lessons = Lessons(clock)
        self._latencies = Latencies(clock)
        self._targets: dict[str, Target] = {}
        self._elsewhere: Counter[str] = Counter()
        """Agents on other nodes than our own, by cluster."""
        self._nodes: dict[str, str] = {}

    def now(self) -> float:
        """The time that `PathFailure` speaks of."""
        return self._clock()

    # Who there is.

    def node(self, target: Target) -> str:
        """The name shown for the agent's node: as discovery says, else as its last probe said,
        else empty. Where a gateway speaks for several clusters, with the cluster before it."""
        return self.shown(target, self._bare_node(target))

    def shown(self, target: Target, node: str) -> str:
        """That name for a node that the agent says it is on."""
        return f"{target.cluster}/{node}" if target.cluster and node else node

    def retain(self, targets: Collection[Target]) -> None:
        """These are the agents that discovery knows. Forget all others, and what failed for those
        that were not ready and are now: it was the agent that was not there, and no path of its."""
        for target in targets:
            before = self._targets.get(target.key)
            if before is not None and target.ready and not before.ready:
                self._paths.forgive(target.key)
        self._targets = {target.key: target for target in targets}
        self._paths.retain(self._targets.keys())
        self._nodes = {k: node for k, node in self._nodes.items() if k in self._targets}
        self._elsewhere = Counter(t.cluster for t in targets if self._is_elsewhere(t))

    def fitting(self, target: Target) -> list[Transport]:
        """The transports that apply to the target, best first."""
        return [transport for transport in self.transports if transport.applies(target)]

    # What is known.

    def known(self, target: Target, but: Collection[str] = ()) -> Way | None:
        """The best path that has proved itself, while that still counts.

        Args:
            but: transport names to leave out.
        """
        for transport in self.transports:
            identity = self._paths.identity(target.key, transport.name)
            if identity is not None and transport.name not in but:
                return Way(transport, identity)
        return None

    def failure(self, target: Target, transport: Transport) -> PathFailure | None:
        """Why the path does not work, if it did not when last seen."""
        return self._paths.failure(target.key, transport.name)

    def is_suspect(self, target: Target) -> bool:
        """Whether the last thing heard of the agent was a failure, on every path."""
        if not self._paths.is_known(target.key):
            return False
        return all(self.failure(target, each) is not None for each in self.fitting(target))

    def state(self, target: Target) -> tuple[PathState, ...]:
        """Each path that applies to the agent, best first."""
        way = self.known(target)
        in_use = way.transport.name if way is not None else ""
        return tuple(
            self._paths.state(target.key, each.name, in_use=each.name == in_use)
            for each in self.fitting(target)
        )

    def statuses(self, target: Target) -> dict[str, PathStatus]:
        """Each path that applies to the agent, at a glance: for who asks about a whole fleet."""
        found: dict[str, PathStatus] = {}
        taken = False
        for each in self.fitting(target):
            status = self._paths.status(target.key, each.name, in_use=not taken)
            taken = taken or status == "in_use"
            found[each.name] = status
        return found

    def dead_elsewhere(self, target: Target, transport: Transport) -> bool:
        """Whether the path has lately failed for all agents that are, as this one, on other
        nodes than ours."""
        if not self._is_elsewhere(target):
            return False
        agents = self._elsewhere[target.cluster]
        return self._lessons.dead_elsewhere(target.cluster, transport.name, agents)

    def head_start_seconds(self, target: Target, transport: Transport) -> float:
        """How long the path may be silent in a race before the next one starts."""
        seconds = self._head_start_seconds
        if self._lessons.shown_dead(target.cluster, transport.name):
            seconds *= HEAD_START_SHARE
        if not is_direct(transport.name):
            seconds *= STREAM_HEAD_STARTS
        usual = self._latencies.p99_seconds(
            (target.cluster, transport.name), within_seconds=PROBES_WITHIN_SECONDS
        )
        return max(seconds, PROBE_TIMES * usual)

    def hedge_seconds(self, transport: Transport, tool: str) -> float:
        """How long a call of the tool over a proven path may be silent."""
        usual = self._latencies.p99_seconds(
            (transport.name, tool), within_seconds=CALLS_WITHIN_SECONDS
        )
        return min(max(HEDGE_LEAST_SECONDS, HEDGE_TIMES * usual), HEDGE_MOST_SECONDS)

    # What is learned.

    async def prove(self, target: Target, transport: Transport) -> Identity:
        """Ask now who answers on this path, and remember it.

        Raises:
            TransportError: the path does not work, or leads to somebody else (`BadPeer`).
        """
        limit_seconds = self._timeouts.get(transport.name, self._default_timeout_seconds)
        sent_at = anyio.current_time()
        with (
            tracing.span("probe", agent=str(target), path=transport.name),
            self.probes.attempt(transport.name),
        ):
            identity = await prove(transport, target, limit_seconds, self.patience)
            tracing.note(outcome="ok")
        took_seconds = anyio.current_time() - sent_at
        self._nodes[target.key] = identity.node
        self._paths.prove(target.key, transport.name, identity, took_seconds)
        self._latencies.add((target.cluster, transport.name), took_seconds)
        self._worked(target, transport)
        return identity

    def succeeded(self, target: Target, transport: Transport) -> None:
        """A call went through."""
        self._paths.renew(target.key, transport.name)
        self._worked(target, transport)

    def took(self, transport: Transport, tool: str, seconds: float) -> None:
        """A call of the tool that was answered took so long."""
        self._latencies.add((transport.name, tool), seconds)

    def failed(self, target: Target, transport: Transport, error: TransportError) -> None:
        """The path does not work: nobody waits for it again while another does. Nor for those to
        which the same token would be shown, where that was refused."""
        self._paths.fail(target.key, transport.name, error)
        if error.symptom == "unauthorized" and transport.name in PROVEN_WITHOUT_TOKEN:
            text = f"not tried: {transport.name} refused the same token: {error.message}"
            for other in self.fitting(target):
                if other is not transport and other.name in PROVEN_WITHOUT_TOKEN:
                    same = type(error)(
                        text, target=target, transport=other.name, symptom=error.symptom
                    )
                    self._paths.fail(target.key, other.name, same)
        self._teach(target)

    def outdated(self, target: Target, transport: Transport) -> None:
        """Somebody else answers there by now, or the same agent no longer as it was."""
        self._paths.drop(target.key, transport.name)

    def doubt(self, target: Target, transport: Transport) -> None:
        """Another path answered before it did: see soon whether it works at all."""
        self._paths.doubt(target.key, transport.name)

    def hasten(self, cluster: str, transport: Transport) -> None:
        """The path works again for one: see at once for whom else."""
        for key, target in self._targets.items():
            if target.cluster == cluster:
                self._paths.hasten(key, transport.name)

    def overdue(self) -> list[tuple[Target, Transport]]:
        """Paths to look at in the background, the longest due first: those better than the one in
        use, and that one too where it is doubted. Of an agent that has none it is the preferred
        one alone, since nobody opens streams to the dead."""
        due = []
        for target in self._targets.values():
            if self._paths.is_known(target.key):
                at_path = self._overdue(target)
                if at_path is not None:
                    due.append((at_path[0], target, at_path[1]))
        due.sort(key=lambda each: each[0])
        return [(target, transport) for _, target, transport in due]

    def _overdue(self, target: Target) -> tuple[float, Transport] | None:
        now = self._clock()
        in_use = self.known(target)
        for transport in self.transports:
            if not transport.applies(target):
                continue
            failure = self.failure(target, transport)
            if in_use is not None and transport is in_use.transport:
                doubted = self._paths.is_doubted(target.key, transport.name)
                return (now, transport) if doubted else None
            if failure is not None and failure.retry_at <= now:
                return failure.retry_at, transport
            if failure is None and in_use is not None:
                return now, transport
            if in_use is None:
                return None
        return None

    def _worked(self, target: Target, transport: Transport) -> None:
        elsewhere = self._is_elsewhere(target)
        self._lessons.worked(target.cluster, transport.name, elsewhere=elsewhere)
        self._teach(target)

    def _teach(self, target: Target) -> None:
        """What failed for an agent that answers over another path is a dead path."""
        if self.known(target) is None:
            return
        elsewhere = self._is_elsewhere(target)
        for transport in self.transports:
            failure = self.failure(target, transport)
            if failure is not None:
                self._lessons.failed(
                    target.cluster,
                    transport.name,
                    target.key,
                    failure.reason,
                    failure.at,
                    elsewhere=elsewhere,
                )

    def _is_elsewhere(self, target: Target) -> bool:
        return not self._own_node or self._bare_node(target) != self._own_node

    def _bare_node(self, target: Target) -> str:
        return target.node or self._nodes.get(target.key, "")

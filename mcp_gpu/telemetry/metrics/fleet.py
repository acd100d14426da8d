"""What a gateway tells: its agents, the ways to them, and how asking them goes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Final, get_args

from mcp_gpu.fleet import census
from mcp_gpu.fleet.discovery import DiscoveryError, Table
from mcp_gpu.fleet.model import FailureReason
from mcp_gpu.fleet.paths import PathStatus
from mcp_gpu.fleet.reachability import Reachability
from mcp_gpu.fleet.router import Router
from mcp_gpu.fleet.tally import OUTCOMES
from mcp_gpu.telemetry.metrics.family import Family, Metric
from transports.stream import StreamTransport

__all__ = ["METRICS", "PER_NODE", "families"]

DISCOVERY_UP: Final = Metric(
    "mcp_gpu_discovery_up",
    "gauge",
    "1 while the list of agents is kept current, 0 while something keeps it from that.",
)
DISCOVERY_AGE: Final = Metric(
    "mcp_gpu_discovery_age_seconds",
    "gauge",
    "Since the list of agents was last confirmed. No series while there is none yet.",
)
AGENTS: Final = Metric(
    "mcp_gpu_agents",
    "gauge",
    "Agents that discovery knows: ready, not_ready, and absent for nodes that lack theirs.",
    ("state",),
)
NODES: Final = Metric(
    "mcp_gpu_nodes",
    "gauge",
    "Nodes by the path that the next call takes to them; none: every path has failed; untried: "
    "nobody has asked them for a while; absent: no agent runs there.",
    ("path",),
)
NODE_PATH: Final = Metric(
    "mcp_gpu_node_path_info",
    "info",
    "Always 1: the path in use to each node, with the words of mcp_gpu_nodes. Only with "
    "--node-metrics.",
    ("node", "path"),
)
PATHS: Final = Metric(
    "mcp_gpu_agent_paths",
    "gauge",
    "Paths to agents by state: in_use, proven (works, and a better one is in use), failed and "
    "denied (the breaker is open: nobody waits for it, the background tries it again), untried.",
    ("path", "state"),
)
ANSWERED: Final = Metric(
    "mcp_gpu_node_answers_total",
    "counter",
    "Nodes that answered in fan-outs, by the path that the answer took.",
    ("path",),
)
FAILED: Final = Metric(
    "mcp_gpu_node_failures_total",
    "counter",
    "Nodes that gave no answer in fan-outs, by reason.",
    ("reason",),
)
CALLS: Final = Metric(
    "mcp_gpu_path_calls_total",
    "counter",
    "Calls sent to agents, by path and how they ended; cancelled: another path was faster, or the "
    "client left.",
    ("path", "outcome"),
)
CALL_SECONDS: Final = Metric(
    "mcp_gpu_path_call_duration_seconds",
    "histogram",
    "How long agents took to answer calls, by path. Only calls that were answered.",
    ("path",),
)
PROBES: Final = Metric(
    "mcp_gpu_path_probes_total",
    "counter",
    "Probes of paths, by path and how they ended; cancelled: another path won the race.",
    ("path", "outcome"),
)
PROBE_SECONDS: Final = Metric(
    "mcp_gpu_path_probe_duration_seconds",
    "histogram",
    "How long agents took to answer probes, by path. Only probes that were answered.",
    ("path",),
)
RUNNING: Final = Metric(
    "mcp_gpu_path_attempts_running",
    "gauge",
    "Calls and probes under way that hold a place on a path.",
    ("path", "kind"),
)
WAITING: Final = Metric(
    "mcp_gpu_path_attempts_waiting",
    "gauge",
    "Calls and probes that wait for a place on a path: the queues' depth.",
    ("path", "kind"),
)
STREAMS: Final = Metric(
    "mcp_gpu_path_streams_open",
    "gauge",
    "Warm streams to agents, those being opened included, by path.",
    ("path",),
)

PER_NODE: Final = (NODE_PATH,)
"""One series per node: only for who asks."""

METRICS: Final = (
    DISCOVERY_UP,
    DISCOVERY_AGE,
    AGENTS,
    NODES,
    PATHS,
    ANSWERED,
    FAILED,
    CALLS,
    CALL_SECONDS,
    PROBES,
    PROBE_SECONDS,
    RUNNING,
    WAITING,
    STREAMS,
    *PER_NODE,
)


def families(router: Router, reachability: Reachability, *, per_node: bool) -> Iterator[Family]:
    """Of one gateway, now. Asks nobody."""
    try:
        table = router.discovery.table()
    except DiscoveryError as error:
        table = Table((), 0.0, "", str(error))
    yield DISCOVERY_UP.is_now(float(table.problem is None))
    yield DISCOVERY_AGE.is_now(max(time.time() - table.as_of, 0.0) if table.as_of else None)
    ready = sum(target.ready for target in table.targets)
    states = {"ready": ready, "not_ready": len(table.targets) - ready, "absent": len(table.absent)}
    yield AGENTS.by_label(states)
    yield from _paths(table, reachability, per_node=per_node)
    # All that can be counted is there from the start: the first time is an increase, too.
    names = [each.name for each in reachability.transports]
    yield ANSWERED.by_label({name: router.nodes_answered[name] for name in names})
    yield FAILED.by_label({each: router.nodes_failed[each] for each in get_args(FailureReason)})
    for tally, counted, took in (
        (reachability.calls, CALLS, CALL_SECONDS),
        (reachability.probes, PROBES, PROBE_SECONDS),
    ):
        by_both = {(name, each): tally.outcomes[name, each] for name in names for each in OUTCOMES}
        yield counted.series(by_both)
        yield took.by_label(tally.seconds)
    loads = {"call": router.load(), "probe": reachability.load()}
    queues = {(path, kind): load for kind, each in loads.items() for path, load in each.items()}
    yield RUNNING.series({labels: load.running for labels, load in queues.items()})
    yield WAITING.series({labels: load.waiting for labels, load in queues.items()})
    yield STREAMS.by_label(
        {
            each.name: each.streams
            for each in reachability.transports
            if isinstance(each, StreamTransport)
        }
    )


def _paths(table: Table, reachability: Reachability, *, per_node: bool) -> Iterator[Family]:
    found = census.take(table, reachability)
    names = [each.name for each in reachability.transports]
    nodes = Counter(found.nodes.values())
    words = (census.NO_PATH, census.UNTRIED, census.NO_AGENT)
    yield NODES.by_label({name: nodes[name] for name in (*names, *words)})
    yield PATHS.series(
        {
            (name, state): found.paths[name, state]
            for name in names
            for state in get_args(PathStatus)
        }
    )
    if per_node:
        yield NODE_PATH.series(dict.fromkeys(found.nodes.items(), 1))

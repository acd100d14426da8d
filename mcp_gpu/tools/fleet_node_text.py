"""One node by its agent and by Kubernetes, for a model's or a person's eye: trouble first."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_gpu.tools.fleet_node_model import FleetNodeDescription
from mcp_gpu.tools.node_text import (
    driver_line,
    gpus_line,
    health_lines,
    sight_line,
    uptime,
    xid_lines,
)
from mcp_gpu.tools.spans import clipped, counted
from mcp_gpu.workloads.counts.model import Count, Disagreement
from mcp_gpu.workloads.nodes import ClusterNode

__all__ = ["lines"]

LINE_CHARS = 600
EVENTS = 8
EVENT_CHARS = 240
LABELS = 24
PODS = 12
CONDITIONS = 4

_SOURCES = {
    "nvml": "NVML",
    "pci_bus": "PCI bus",
    "capacity": "capacity",
    "allocatable": "allocatable",
    "resource_slices": "ResourceSlices",
    "gfd_label": "GFD label",
    "expected": "expected",
}


def lines(told: FleetNodeDescription) -> Iterator[str]:
    """The text: disagreements and health before what is only worth knowing."""
    agent = told.agent
    parts = [f"{told.node}: {told.verdict.upper()}"]
    parts.append(gpus_line(agent) if agent is not None else "GPUs unknown")
    parts += [f"via {told.reach.via}"] if told.reach.via else []
    yield "  ".join(parts)
    if told.simulated:
        yield "SIMULATED: no real hardware stands behind the GPUs."
    if told.reach.failure is not None:
        yield clipped(
            f"! The agent has not answered ({told.reach.failure.reason}): "
            f"{told.reach.failure.message}",
            LINE_CHARS,
        )
    elif agent is None:
        yield f"! {told.unavailable['agent']}: its GPUs are unknown, not healthy"
    if agent is not None and agent.message is not None:
        yield clipped(f"! {agent.message}", LINE_CHARS)
    yield f"Counts: {', '.join(map(_count, told.counts))}"
    for each in told.disagreements:
        yield from _disagreement(each)
    if agent is not None:
        yield from health_lines(agent.health)
        yield from xid_lines(agent.xids)
    if told.kubernetes is not None:
        yield from _cluster_node(told.kubernetes)
    yield from _allocated(told)
    yield from _events(told)
    if agent is not None:
        yield driver_line(agent)
        yield from _system(told)
    yield from _reach(told)
    if agent is not None:
        yield sight_line(agent)
    for gap in told.gaps:
        grant = f" (grant: {gap.grant})" if gap.grant else ""
        yield clipped(f"Not read: {gap.what}: {gap.why}{grant}", LINE_CHARS)


def _count(each: Count) -> str:
    number = "unknown" if each.count is None else str(each.count)
    note = f" ({clipped(each.note, 100)})" if each.note else ""
    return f"{_SOURCES[each.source]} {number}{note}"


def _disagreement(each: Disagreement) -> Iterator[str]:
    yield clipped(f"DISAGREE {each.code}: {each.title} ({each.confidence} confidence)", LINE_CHARS)
    yield clipped(f"  why: {each.cause}", LINE_CHARS)
    yield clipped(f"  seen: {'; '.join(each.evidence)}", LINE_CHARS)
    yield clipped(f"  do: {each.fix}", LINE_CHARS)


def _cluster_node(node: ClusterNode) -> Iterator[str]:
    state = {True: "ready", False: "NOT READY", None: "readiness UNKNOWN"}[node.ready]
    parts = [f"Kubernetes: {state}", *(["CORDONED"] if node.cordoned else [])]
    parts += [f"kubelet {node.kubelet}"] if node.kubelet else []
    parts += [f"zone {node.zone}"] if node.zone else []
    parts += [f"group {node.group}"] if node.group else []
    yield clipped(", ".join(parts), LINE_CHARS)
    for condition in [each for each in node.conditions if not each.good][:CONDITIONS]:
        said = f"  ! {condition.type}={condition.status} since {condition.since or 'unknown'}"
        yield clipped(f"{said}: {condition.reason}: {condition.message}", EVENT_CHARS)
    if node.taints:
        yield clipped(f"Taints: {', '.join(node.taints)}", LINE_CHARS)
    if node.labels:
        told = [f"{name}={value}" for name, value in list(node.labels.items())[:LABELS]]
        left = len(node.labels) - len(told) + node.labels_omitted
        more = f" and {left} more" if left else ""
        yield clipped(f"Labels: {', '.join(told)}{more}", 2 * LINE_CHARS)


def _allocated(told: FleetNodeDescription) -> Iterator[str]:
    node, held = told.kubernetes, told.allocated
    if held is None:
        yield f"Allocated: unknown ({told.unavailable['allocated']})"
    else:
        total = node.gpu_allocatable if node is not None else {}
        names = sorted(held.resources.keys() | total.keys())
        each = [
            f"{name} {held.resources.get(name, 0)}"
            + (f" of {total[name]} allocatable" if name in total else "")
            for name in names
        ]
        guess = "GUESS by pods' requests" if held.guess else f"by the kubelet's {held.source}"
        yield clipped(f"Allocated: {', '.join(each) or 'nothing'} ({guess})", LINE_CHARS)
        if held.pods:
            left = len(held.pods) - PODS + held.pods_omitted
            more = f" and {left} more" if left > 0 else ""
            yield clipped(f"  by {', '.join(held.pods[:PODS])}{more}", LINE_CHARS)
    if node is not None and node.capacity:
        each = [f"{name} {amount}" for name, amount in node.capacity.items()]
        yield f"Capacity besides: {', '.join(each)}"


def _events(told: FleetNodeDescription) -> Iterator[str]:
    if told.events is None:
        yield f"Events: unknown ({told.unavailable['events']})"
        return
    if not told.events:
        yield "Events of the last hour: none"
        return
    yield f"Events of the last hour: {counted(len(told.events), 'kind')}"
    for each in told.events[:EVENTS]:
        said = f"  {each.type} {each.reason} x{each.count}, last {each.last} ({each.source})"
        yield clipped(f"{said}: {each.message}", EVENT_CHARS)
    left = len(told.events) - EVENTS
    if left > 0:
        yield f"  {counted(left, 'more kind')} in the structured content"


def _system(told: FleetNodeDescription) -> Iterator[str]:
    agent, node = told.agent, told.kubernetes
    assert agent is not None
    around = agent.surroundings
    kernel = around.kernel or (node.kernel if node is not None else "") or "unknown"
    os = around.os or (node.os if node is not None else "")
    runtime = (node.runtime if node is not None else "") or around.runtime or ""
    parts = [f"Kernel {kernel}", os, runtime, uptime(agent) if agent.booted_at else ""]
    yield ", ".join(part for part in parts if part)


def _reach(told: FleetNodeDescription) -> Iterator[str]:
    reach = told.reach
    if reach.via is not None:
        over = ", ".join(f"{via} ({why})" for via, why in reach.passed_over.items())
        passed = f"; passed over: {over}: check_connectivity says more" if over else ""
        yield f"Reached via {reach.via} in {reach.milliseconds or 0:.0f} ms{passed}"
    elif reach.failure is not None:
        for attempt in reach.failure.attempts:
            said = f"  {attempt.via}: {attempt.reason}: {attempt.message}"
            yield clipped(said, EVENT_CHARS)
        yield "Not reached: check_connectivity says why, and what mends it"

"""`get_gpu_inventory` as a gateway serves it: every node's inventory merged into one answer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TypeVar

from pydantic import Field

from mcp_gpu.fleet.model import NodeFailure
from mcp_gpu.fleet.router import FanOut, NodeAnswer, Router
from mcp_gpu.registry import Answer, Call, Tool
from mcp_gpu.tools.failures import failure_lines
from mcp_gpu.tools.fleet_answer import of_fleet, shared
from mcp_gpu.tools.fleet_arguments import FleetArguments, asked
from mcp_gpu.tools.fleet_model import DriverTotal, FleetInventory, FleetNode, ModelTotal, Totals
from mcp_gpu.tools.inventory import NAME, Detail, NodeInventory, node_lines
from mcp_gpu.tools.pages import page
from mcp_gpu.tools.spans import clipped, counted
from mcp_gpu.tools.ways import ways_line

__all__ = ["FleetInventory", "FleetNode", "GatewayArguments", "gateway_tool", "whole"]

T = TypeVar("T")

NOTE_CHARS = 160
"""Length of one note in a summary; detail full has all of it."""

NOTES_LISTED = 4
"""Attention notes per node in a summary."""

LINES = 10
"""Models or drivers told one by one in the text."""

TOTALS_LISTED = 16
"""Models and driver versions told one by one in the totals: the most frequent ones."""

SUMMARY_TEXT_CHARS = 7_500
"""Room for node lines in a summary: with all that stands around them the text stays under
10,000 characters, what a client shows whole."""

FULL_TEXT_CHARS = 30_000
"""Room for node and GPU lines in detail full."""

ODD_PREFIX = "odd "
"""Marks a cursor inside the outliers, which come first. A blank is in no node name, nor in a
context's before it."""


class GatewayArguments(FleetArguments):
    """What a gateway may be asked about the fleet."""

    detail: Detail = Field(
        default="summary", description="summary: one line per node; full: every field of each GPU."
    )


def gateway_tool(router: Router) -> Tool[GatewayArguments]:
    """The tool as a gateway serves it: all agents asked at once, one answer."""

    async def run(arguments: GatewayArguments, call: Call) -> Answer:
        found = await asked(
            router, NAME, {"detail": arguments.detail}, NodeInventory, arguments, call
        )
        inventory = merge(found, arguments)
        failures = found.failures if arguments.cursor is None else ()
        return Answer("\n".join(_text(inventory, arguments, failures)), inventory)

    return Tool(
        name=NAME,
        title="GPU inventory of the fleet",
        description=(
            "List the NVIDIA GPUs of all nodes: totals by model, driver versions and their skew, "
            "nodes needing attention first, and every node that did not answer with the reason. "
            "Each node says which network path its answer took and how old it is. Start with "
            "detail summary; use nodes and detail full for single GPUs."
        ),
        arguments=GatewayArguments,
        result=FleetInventory,
        run=run,
    )


def whole(found: FanOut[NodeInventory]) -> FleetInventory:
    """All of the fleet at once, for a reader without a context to fill."""
    nodes = _with_outliers(found.answers)
    nodes.sort(key=lambda node: not node.attention)
    return FleetInventory(**shared(found), totals=_totals(nodes), nodes=tuple(nodes))


def merge(found: FanOut[NodeInventory], arguments: GatewayArguments) -> FleetInventory:
    """One page of the fleet, and totals over all of it."""
    everything = whole(found)
    return page(
        everything,
        _after(everything.nodes, arguments.cursor),
        first=arguments.cursor is None,
        limit=arguments.limit,
        detail=arguments.detail,
        shortened=_shortened,
        cursor=lambda node: (ODD_PREFIX if node.attention else "") + node.node,
    )


def _with_outliers(answers: Sequence[NodeAnswer[NodeInventory]]) -> list[FleetNode]:
    """Add to each node's notes what only the comparison with its peers shows."""
    drivers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for answer in answers:
        kind = _kind(answer.data)
        if kind is not None:
            drivers[kind][answer.data.driver_version or "unknown"] += 1
            counts[kind][answer.data.gpu_count or 0] += 1
    nodes: list[FleetNode] = []
    for answer in answers:
        data = answer.data
        notes = list(data.attention)
        kind = _kind(data)
        if kind is not None:
            driver = _majority(drivers[kind])
            if driver is not None and data.driver_version != driver:
                notes.append(f"driver {data.driver_version}; most nodes with {kind}: {driver}")
            count = _majority(counts[kind])
            if count is not None and data.gpu_count != count:
                notes.append(f"{data.gpu_count} GPUs; most nodes with {kind} have {count}")
        nodes.append(of_fleet(FleetNode, answer, attention=tuple(notes)))
    return nodes


def _kind(inventory: NodeInventory) -> str | None:
    """The node's main GPU model, which decides whom it is compared with."""
    return next((model.name for model in inventory.models if model.name), None)


def _majority(counted: Counter[T]) -> T | None:
    """What more than half of at least three nodes agree on; fewer prove nobody wrong."""
    total = sum(counted.values())
    value, count = counted.most_common(1)[0]
    return value if total >= 3 and count * 2 > total and len(counted) > 1 else None


def _after(nodes: Sequence[FleetNode], cursor: str | None) -> list[FleetNode]:
    """Those that no page before has told.

    A cursor is the last node told, so any replica can go on from it. It says in which part
    of the order it stands, since a node may get well or fall ill between two pages.
    """
    if cursor is None:
        return list(nodes)
    if cursor.startswith(ODD_PREFIX):
        last = cursor.removeprefix(ODD_PREFIX)
        return [node for node in nodes if not node.attention or node.node > last]
    return [node for node in nodes if not node.attention and node.node > cursor]


def _shortened(node: FleetNode) -> FleetNode:
    notes = [clipped(note, NOTE_CHARS) for note in node.attention[:NOTES_LISTED]]
    if len(node.attention) > NOTES_LISTED:
        notes[-1] = f"and {len(node.attention) - NOTES_LISTED + 1} more"
    return node.model_copy(update={"attention": tuple(notes)})


def _totals(nodes: Sequence[FleetNode]) -> Totals:
    gpus: Counter[str] = Counter()
    hosts: Counter[str] = Counter()
    sizes: defaultdict[str, set[int | None]] = defaultdict(set)
    for node in nodes:
        names = {model.name or "unknown" for model in node.models}
        hosts.update(names)
        for model in node.models:
            gpus[model.name or "unknown"] += model.count
            sizes[model.name or "unknown"].add(model.memory_total_bytes)
    drivers = Counter(node.driver_version for node in nodes if node.driver_version)
    frequent = sorted(gpus.items(), key=lambda item: (-item[1], item[0]))
    versions = sorted(drivers.items(), key=lambda item: (-item[1], item[0]))
    return Totals(
        gpus=sum(gpus.values()),
        gpus_lost=sum(node.gpus_lost for node in nodes),
        nodes_needing_attention=sum(bool(node.attention) for node in nodes),
        nodes_without_nvml=sum(node.state != "ok" for node in nodes),
        models=tuple(
            ModelTotal(
                name=name,
                gpus=count,
                nodes=hosts[name],
                memory_total_bytes=next(iter(sizes[name])) if len(sizes[name]) == 1 else None,
            )
            for name, count in frequent[:TOTALS_LISTED]
        ),
        models_omitted=max(len(frequent) - TOTALS_LISTED, 0),
        drivers=tuple(
            DriverTotal(driver_version=version, nodes=count)
            for version, count in versions[:TOTALS_LISTED]
        ),
        drivers_omitted=max(len(versions) - TOTALS_LISTED, 0),
    )


def _text(
    inventory: FleetInventory, arguments: GatewayArguments, failures: Sequence[NodeFailure]
) -> list[str]:
    """The answer for a model's or a person's eye. Bounded: every list in it is cut."""
    coverage, totals = inventory.coverage, inventory.totals
    lines = [
        f"{coverage.nodes_answered} of {coverage.nodes_asked} nodes answered, "
        f"{totals.gpus} GPUs" + (f", {totals.gpus_lost} of them lost" if totals.gpus_lost else "")
    ]
    if inventory.simulated:
        lines.append("SIMULATED: no real hardware stands behind some or all of these figures.")
    if coverage.said_of_discovery:
        lines.append(coverage.said_of_discovery)
    lines.extend(
        f"{model.gpus}x {model.name} on {counted(model.nodes)}" for model in totals.models[:LINES]
    )
    if len(totals.drivers) > 1:
        versions = ", ".join(
            f"{driver.driver_version} ({counted(driver.nodes)})"
            for driver in totals.drivers[:LINES]
        )
        lines.append(f"Driver versions differ: {versions}")
    lines.extend(failure_lines(inventory.failures_by_reason, failures))
    if inventory.passed_over:
        lines.append(ways_line(inventory, see="check_connectivity"))
    if totals.nodes_needing_attention:
        count = totals.nodes_needing_attention
        lines.append(f"{counted(count)} out of the ordinary, listed first:")
    budget = FULL_TEXT_CHARS if arguments.detail == "full" else SUMMARY_TEXT_CHARS
    listed = 0
    for node in inventory.nodes:
        block = node_lines(node, via=node.via)
        budget -= sum(len(line) + 1 for line in block)
        if budget < 0 and listed:
            break
        lines.extend(block)
        listed += 1
    unlisted = len(inventory.nodes) - listed
    if unlisted:
        lines.append(f"{counted(unlisted, 'more node')} in the structured content.")
    if inventory.next_cursor is not None:
        lines.append(
            f"{counted(inventory.nodes_omitted, 'more node')}: "
            f'call again with cursor "{inventory.next_cursor}".'
        )
    return lines

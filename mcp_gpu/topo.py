"""`mcp-gpu topo`: how the GPUs of each node are joined, for a person at a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import anyio
from rich.console import Console
from rich.markup import escape

from mcp_gpu.settings.terminal import TopoSettings
from mcp_gpu.terminal import (
    LIMIT,
    all_pages,
    from_agents,
    gateway,
    notes,
    print_block,
    progress_bar,
    standard_output,
)
from mcp_gpu.tools.failures import failure_lines
from mcp_gpu.tools.fleet_topology import GatewayArguments, alike_lines, odd_lines, whole
from mcp_gpu.tools.fleet_topology_model import FleetNodeTopology, FleetTopology
from mcp_gpu.tools.spans import counted
from mcp_gpu.tools.topology_model import NAME, NodeTopology
from mcp_gpu.tools.topology_text import LEGEND, remarks, table

__all__ = ["run"]

ODD: Final = 100
"""Odd nodes shown, each with what is odd."""


def run(settings: TopoSettings) -> int:
    """Print how GPUs are joined. Returns 0 when every node answered and none is odd, else 1."""
    found = anyio.run(_fetch, settings)
    if settings.json_output:
        print(found.model_dump_json(indent=2))
    else:
        with standard_output() as console:
            _render(found, console, every_node=bool(settings.nodes))
    return 1 if found.nodes_odd or found.failures_by_reason else 0


async def _fetch(settings: TopoSettings) -> FleetTopology:
    nodes = settings.nodes or None
    with progress_bar("asking the nodes") as report:
        if settings.url:
            arguments = GatewayArguments(nodes=nodes, detail="full", limit=LIMIT)
            async with gateway(settings, NAME, FleetTopology, report) as ask:
                return await all_pages(ask, arguments)
        return whole(await from_agents(settings, NAME, {"detail": "full"}, NodeTopology, report))


def _render(found: FleetTopology, console: Console, *, every_node: bool) -> None:
    """Print what is odd, the wirings, their matrices, and who did not answer.

    Args:
        every_node: show the matrix of each node; else that of the first of those wired alike.
    """
    coverage = found.coverage
    answered = f"{coverage.nodes_answered} of {counted(coverage.nodes_asked)} answered"
    console.print(f"[bold]{answered}, {counted(found.nodes_odd, 'odd node')}[/]")
    print_block(odd_lines(found.nodes, ODD), console, "yellow")
    print_block(alike_lines(found), console, "")
    shown = found.nodes if every_node else tuple(_examples(found))
    for node in shown:
        _matrix(node, console)
    if any(len(node.matrix) > 1 for node in shown):
        print_block([LEGEND], console, "dim")
    print_block(failure_lines(found.failures_by_reason, found.failures), console, "magenta")
    print_block(notes(found), console, "dim")
    if found.simulated:
        console.print("[magenta]simulated: no real hardware stands behind this[/]")


def _examples(found: FleetTopology) -> Iterator[FleetNodeTopology]:
    """The first node of each wiring, odd ones before others."""
    told: set[str] = set()
    for node in found.nodes:
        if node.shape not in told:
            told.add(node.shape)
            yield node


def _matrix(node: FleetNodeTopology, console: Console) -> None:
    if len(node.matrix) < 2:
        return
    console.print(f"\n[bold]{escape(node.node)}[/]")
    for line in table(node):
        console.print(escape(line), no_wrap=True, overflow="ignore", crop=False)
    for line in remarks(node):
        console.print(escape(line), style="dim")

"""`mcp-gpu health`: what is wrong with the fleet's GPUs, and what to do, for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import anyio
from rich.console import Console
from rich.markup import escape

from mcp_gpu.gpu.health.model import Severity, Verdict
from mcp_gpu.settings.terminal import HealthSettings
from mcp_gpu.terminal import (
    LIMIT,
    SEVERITY_COLOURS,
    all_pages,
    from_agents,
    gateway,
    notes,
    print_block,
    print_rows,
    progress_bar,
    standard_output,
)
from mcp_gpu.tools.failures import failure_lines
from mcp_gpu.tools.fleet_health import GatewayArguments, whole
from mcp_gpu.tools.fleet_health_model import FleetHealth
from mcp_gpu.tools.fleet_health_text import gpus_line, nodes_line, unknown_lines
from mcp_gpu.tools.health_groups import Group, groups
from mcp_gpu.tools.health_model import NAME, NodeHealth
from mcp_gpu.tools.spans import counted

__all__ = ["render", "run"]

GROUPS: Final = 20
"""Kinds of findings shown in full; each takes a few lines."""

GAPS: Final = 5
"""Things shown that were not checked."""

VERDICT_COLOURS: Final[dict[Verdict, str]] = {
    "healthy": "green",
    "degraded": "yellow",
    "failed": "red",
    "unknown": "magenta",
}


def run(settings: HealthSettings) -> int:
    """Print the fleet's health. Returns 0 when all of it is healthy, else 1."""
    found = anyio.run(_fetch, settings)
    if settings.json_output:
        print(found.model_dump_json(indent=2))
    else:
        with standard_output() as console:
            render(found, console, severity=settings.severity)
    return 0 if found.verdict == "healthy" else 1


async def _fetch(settings: HealthSettings) -> FleetHealth:
    nodes = settings.nodes or None
    with progress_bar("asking the nodes") as report:
        if settings.url:
            arguments = GatewayArguments(nodes=nodes, severity=settings.severity, limit=LIMIT)
            async with gateway(settings, NAME, FleetHealth, report) as ask:
                return await all_pages(ask, arguments)
        asked = {"detail": "summary", "severity": settings.severity}
        found = await from_agents(settings, NAME, asked, NodeHealth, report)
        return whole(found, every_node=nodes is not None)


def render(found: FleetHealth, console: Console, *, severity: Severity) -> None:
    """Print the verdict, what is wrong with what to do, and what could not be looked at.

    Args:
        severity: the least severe findings that were asked for.
    """
    colour = VERDICT_COLOURS[found.verdict]
    verdict = found.verdict.upper()
    console.print(f"[bold {colour}]{verdict}[/]  {nodes_line(found)}")
    console.print(f"{'':{len(verdict)}}  {gpus_line(found)}")
    kinds = groups(found.nodes)
    for group in kinds[:GROUPS]:
        _finding(group, console)
    if len(kinds) > GROUPS:
        console.print(f"\n{counted(len(kinds) - GROUPS, 'more kind')} of findings; --json has all")
    print_block(unknown_lines(found.nodes), console, "magenta")
    print_block(failure_lines(found.failures_by_reason, found.failures), console, "magenta")
    print_block(_notes(found, severity), console, "dim")
    if found.simulated:
        console.print("[magenta]simulated: no real hardware stands behind these figures[/]")


def _finding(group: Group, console: Console) -> None:
    first = group.finding
    colour = SEVERITY_COLOURS[first.severity]
    size = f" [dim]({group.size})[/]" if group.size else ""
    title = f"[bold]{escape(group.title)}[/]{size}"
    console.print(f"\n[bold {colour}]{first.severity.upper()}[/]  {title}")
    said = f"{first.source} ({first.code}, {first.confidence} confidence)"
    rows = [
        ("where", f"[{colour}]{escape(group.places)}[/]"),
        *(("seen", escape(seen)) for seen in group.seen),
        ("do", escape(group.do)),
        ("says", f"[dim]{escape(said)}[/]"),
    ]
    print_rows(rows, console)


def _notes(found: FleetHealth, severity: Severity) -> Iterator[str]:
    if found.findings_hidden:
        hidden = counted(found.findings_hidden, "finding")
        yield f"{hidden} less severe than {severity} not shown; --severity info shows them."
    for gap in found.gaps[:GAPS]:
        on = "" if gap.nodes == found.coverage.nodes_answered else f" on {counted(gap.nodes)}"
        yield f"Not checked{on}: {', '.join(gap.what)}: {gap.why}"
    left = len(found.gaps) - GAPS + found.gaps_omitted
    if left > 0:
        yield f"{counted(left, 'more thing')} not checked; --json has all."
    yield from notes(found)

"""`mcp-gpu status`: the fleet's inventory for a person at a terminal."""

from __future__ import annotations

import anyio
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mcp_gpu.settings.terminal import StatusSettings
from mcp_gpu.terminal import LIMIT, all_pages, from_agents, gateway, progress_bar, standard_output
from mcp_gpu.tools.fleet_inventory import FleetInventory, FleetNode, GatewayArguments, whole
from mcp_gpu.tools.inventory import NAME, NodeInventory, describe_models
from mcp_gpu.tools.ways import ways_line

__all__ = ["render", "run"]


def run(settings: StatusSettings) -> int:
    """Print the fleet. Returns 0 when every node answered, 1 when some did not."""
    inventory = anyio.run(_fetch, settings)
    if settings.json_output:
        print(inventory.model_dump_json(indent=2))
    else:
        with standard_output() as console:
            render(inventory, console)
    return 1 if inventory.failures_by_reason else 0


def render(inventory: FleetInventory, console: Console) -> None:
    """Print the fleet as a table, what is out of the ordinary, and who did not answer."""
    totals, coverage = inventory.totals, inventory.coverage
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NODE", "GPUS", "DRIVER", "CUDA", "VIA", "AGE"):
        table.add_column(heading, no_wrap=heading != "GPUS", overflow="fold")
    for node in inventory.nodes:
        table.add_row(*_cells(node))
    for failure in inventory.failures:
        table.add_row(f"[red]{escape(failure.node)}[/]", f"[red]{failure.reason}[/]")
    console.print(table)
    for node in inventory.nodes:
        for note in node.attention:
            console.print(f"[yellow]! {escape(node.node)}: {escape(note)}[/]", soft_wrap=True)
    for failure in inventory.failures:
        text = f"{failure.node}: {failure.reason}: {failure.message}"
        console.print(f"[red]x {escape(text)}[/]", soft_wrap=True)
        for attempt in failure.attempts:
            tried = f"    {attempt.via}: {attempt.reason}: {attempt.message}"
            console.print(f"[dim]{escape(tried)}[/]", soft_wrap=True)
    models = ", ".join(f"{model.gpus}x {model.name}" for model in totals.models)
    lost = f", [red]{totals.gpus_lost} lost[/]" if totals.gpus_lost else ""
    answered = f"{coverage.nodes_answered} of {coverage.nodes_asked} nodes answered"
    console.print(f"\n{answered}: {totals.gpus} GPUs{lost}: {escape(models)}", soft_wrap=True)
    if inventory.passed_over:
        console.print(escape(ways_line(inventory, see="mcp-gpu doctor")), soft_wrap=True)
    if len(totals.drivers) > 1:
        versions = ", ".join(f"{d.driver_version} ({d.nodes})" for d in totals.drivers)
        console.print(f"Driver versions: {versions}", soft_wrap=True)
    if inventory.nodes_omitted or inventory.failures_omitted:
        more = inventory.nodes_omitted + inventory.failures_omitted
        console.print(f"{more} more nodes not shown; name some with --nodes.")
    if coverage.said_of_discovery:
        console.print(f"[yellow]! {escape(coverage.said_of_discovery)}[/]", soft_wrap=True)
    if inventory.simulated:
        console.print("[magenta]simulated: no real hardware stands behind these figures[/]")


def _cells(node: FleetNode) -> tuple[str, ...]:
    name = escape(node.node)
    age = "-" if node.age_seconds is None else f"{node.age_seconds:.0f} s"
    return (
        f"[yellow]{name}[/]" if node.attention else name,
        escape(describe_models(node))
        + (f" [red]({node.gpus_lost} lost)[/]" if node.gpus_lost else ""),
        node.driver_version or "-",
        node.cuda_version or "-",
        node.via,
        age,
    )


async def _fetch(settings: StatusSettings) -> FleetInventory:
    with progress_bar("asking the nodes") as report:
        if settings.url:
            arguments = GatewayArguments(nodes=settings.nodes or None, limit=LIMIT)
            async with gateway(settings, NAME, FleetInventory, report) as ask:
                return await all_pages(ask, arguments)
        return whole(
            await from_agents(settings, NAME, {"detail": "summary"}, NodeInventory, report)
        )

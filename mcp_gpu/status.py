"""`mcp-gpu status`: the fleet's inventory for a person at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from urllib.parse import urlsplit

import anyio
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import CallToolResult, TextContent
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from mcp_gpu.fleet.discovery import DiscoveryError
from mcp_gpu.fleet.router import UnknownNodes
from mcp_gpu.gateway import open_router
from mcp_gpu.settings import SettingError, StatusSettings
from mcp_gpu.tools.fleet_inventory import FleetInventory, FleetNode, GatewayArguments, whole
from mcp_gpu.tools.inventory import NAME, NodeInventory, describe_models
from mcp_gpu.tools.ways import ways_line
from transports.base import Target
from transports.errors import TransportError
from transports.http import HttpTransport
from transports.session import call_tool

__all__ = ["render", "run"]

LIMIT = 500
"""Most nodes in one page."""

PAGES = 1000
"""Most pages to turn: more nodes than there can be in a cluster."""


def run(settings: StatusSettings) -> int:
    """Print the fleet. Returns 0 when every node answered, 1 when some did not."""
    inventory = anyio.run(_fetch, settings)
    if settings.json_output:
        print(inventory.model_dump_json(indent=2))
    else:
        render(inventory, Console())
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
    if coverage.discovery_problem:
        console.print(
            f"[yellow]! discovery, as of {coverage.discovery_age_seconds:.0f} s ago: "
            f"{escape(coverage.discovery_problem)}[/]",
            soft_wrap=True,
        )
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
    with _progress() as bar:
        task = None if bar is None else bar.add_task("asking the nodes", total=None)

        async def report(
            progress: float, total: float | None = None, message: str | None = None
        ) -> None:
            if bar is not None and task is not None:
                bar.update(task, completed=progress, total=total)

        if settings.url:
            return await _from_gateway(settings, report)
        return await _from_agents(settings, report)


def _progress() -> AbstractContextManager[Progress | None]:
    """A bar on standard error while a person watches, nothing otherwise."""
    if not sys.stderr.isatty():
        return nullcontext()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


async def _from_agents(settings: StatusSettings, report: ProgressFnT) -> FleetInventory:
    async def progress(done: int, total: int, message: str) -> None:
        await report(done, total, message)

    async with open_router(settings) as router:
        try:
            found = await router.fan_out(
                NAME,
                {"detail": "summary"},
                NodeInventory,
                nodes=settings.nodes or None,
                progress=progress,
            )
        except DiscoveryError as error:
            raise SettingError(f"no agents are known: {error}") from error
        except UnknownNodes as error:
            known = ", ".join(error.known) or "none"
            raise SettingError(f"{error}; known: {known}") from error
        return whole(found)


async def _from_gateway(settings: StatusSettings, report: ProgressFnT) -> FleetInventory:
    transport, gateway = _way_to(settings)
    async with transport:

        async def ask(arguments: GatewayArguments) -> FleetInventory:
            outcome = await call_tool(
                transport,
                gateway,
                NAME,
                arguments.model_dump(mode="json", exclude_none=True),
                timeout_seconds=settings.timeout_seconds,
                progress=report,
            )
            return _read(settings.url, outcome)

        try:
            return await _all_pages(ask, settings.nodes or None)
        except TransportError as error:
            raise SettingError(f"no answer from {settings.url}: {error}") from error


def _way_to(settings: StatusSettings) -> tuple[HttpTransport, Target]:
    try:
        url = urlsplit(settings.url)
        options = {"scheme": url.scheme, "path": url.path or "/mcp"}
        if settings.token_file is not None:
            options["token_file"] = str(settings.token_file)
        port = url.port or (443 if url.scheme == "https" else 80)
        if not url.hostname:
            raise ValueError("no host in it")
        target = Target(addresses=(url.hostname,), port=port)
        return HttpTransport.from_options(options), target
    except ValueError as error:
        raise SettingError(
            f"--url {settings.url!r}: {error}; it looks like http://127.0.0.1:8080/mcp"
        ) from error


async def _all_pages(
    ask: Callable[[GatewayArguments], Awaitable[FleetInventory]], nodes: tuple[str, ...] | None
) -> FleetInventory:
    first = page = await ask(GatewayArguments(nodes=nodes, limit=LIMIT))
    listed = {node.node: node for node in first.nodes}
    for _ in range(PAGES):
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
        more = GatewayArguments(nodes=nodes, limit=LIMIT, cursor=cursor)
        page = await ask(more)
        listed |= {node.node: node for node in page.nodes}
    update = {"nodes": tuple(listed.values()), "nodes_omitted": page.nodes_omitted}
    return first.model_copy(update=update | {"next_cursor": page.next_cursor})


def _read(url: str, outcome: CallToolResult) -> FleetInventory:
    if outcome.is_error:
        texts = [block.text for block in outcome.content if isinstance(block, TextContent)]
        raise SettingError(f"{url}: {' '.join(texts)}")
    try:
        return FleetInventory.model_validate(outcome.structured_content)
    except ValidationError as error:
        raise SettingError(f"{url} is no gateway of this version") from error

"""`mcp-gpu top`: what the fleet's GPUs do now, again and again, for a person at a terminal."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import anyio
from mcp.shared.dispatcher import ProgressFnT
from pydantic import Field
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mcp_gpu.fleet.model import NodeFailure
from mcp_gpu.gpu.health.model import Verdict
from mcp_gpu.gpu.model import Gpu
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.health import VERDICT_COLOURS
from mcp_gpu.settings.base import SettingError
from mcp_gpu.settings.terminal import TopSettings
from mcp_gpu.terminal import (
    LIMIT,
    agents,
    all_pages,
    explained,
    gateway,
    obey_interrupts,
    progress_bar,
    standard_output,
)
from mcp_gpu.tools import fleet_health, fleet_inventory, health_model, inventory
from mcp_gpu.tools.failures import failure_lines
from mcp_gpu.tools.fleet_health_model import FleetHealth
from mcp_gpu.tools.fleet_inventory import FleetInventory
from mcp_gpu.tools.health_model import VERDICTS, NodeHealth, Verdicts
from mcp_gpu.tools.inventory import NodeInventory
from mcp_gpu.tools.spans import counted
from mcp_gpu.tools.sparkline import sparkline

__all__ = ["Look", "run"]

TREND: Final = 12
"""Looks whose utilisation is drawn."""

TREND_COLUMNS: Final = 90
"""A narrower terminal has no room for them."""

LINES_AROUND: Final = 4
"""Of the screen, that are no GPUs'."""

FAILURES_SHOWN: Final = 3

_GIB: Final = 1 << 30

Ask = Callable[[], Awaitable["Look"]]

Trend = dict[tuple[str, int], deque[float | None]]


class Row(Wire):
    """One GPU now."""

    node: str
    verdict: Verdict
    gpu: Gpu


class Look(Wire):
    """The fleet at one moment."""

    simulated: bool
    nodes_asked: int
    nodes_answered: int
    nodes_omitted: int = Field(description="Nodes that a gateway's page had no room for.")
    gpus_by_verdict: Verdicts
    gpus: tuple[Row, ...] = Field(description="Worst first, then by node and index.")
    failures: tuple[NodeFailure, ...]
    failures_by_reason: dict[str, int]

    @classmethod
    def of(cls, found: FleetInventory, health: FleetHealth) -> Look:
        """What the inventory and the verdicts of the same nodes show."""
        verdicts: dict[tuple[str, int], Verdict] = {
            (node.node, gpu.gpu_index): gpu.verdict for node in health.nodes for gpu in node.gpus
        }
        judged = {node.node for node in health.nodes}
        rows = [
            Row(
                node=node.node,
                # A node tells those of its GPUs that are not healthy.
                verdict=verdicts.get(
                    (node.node, gpu.index), "healthy" if node.node in judged else "unknown"
                ),
                gpu=gpu,
            )
            for node in found.nodes
            for gpu in node.gpus
        ]
        rows.sort(key=lambda row: (VERDICTS.index(row.verdict), row.node, row.gpu.index))
        return cls(
            simulated=found.simulated,
            nodes_asked=found.coverage.nodes_asked,
            nodes_answered=found.coverage.nodes_answered,
            nodes_omitted=found.nodes_omitted,
            gpus_by_verdict=Verdicts.of(row.verdict for row in rows),
            gpus=tuple(rows),
            failures=found.failures,
            failures_by_reason=found.failures_by_reason,
        )


def run(settings: TopSettings) -> int:
    """Show the fleet until Ctrl-C, or once. Returns 1 if it was once and some did not answer."""
    console = Console(highlight=False, emoji=False)
    live = console.is_terminal and not console.is_dumb_terminal
    if settings.once or settings.json_output or not live:
        look = anyio.run(_once, settings)
        if settings.json_output:
            print(look.model_dump_json(indent=2))
        else:
            with standard_output() as shown:
                shown.print(_table(look.gpus, None))
                shown.print(_summary(look))
                for line in failure_lines(look.failures_by_reason, look.failures):
                    shown.print(escape(line), style="magenta")
        return 1 if look.failures_by_reason else 0
    # However it is ended, the terminal gets its screen back.
    obey_interrupts()
    try:
        anyio.run(_watch, settings, console)
    except KeyboardInterrupt:
        pass  # the way to end it
    return 0


async def _once(settings: TopSettings) -> Look:
    with progress_bar("asking the nodes") as report:
        async with _looking(settings, report) as ask:
            return await ask()


async def _watch(settings: TopSettings, console: Console) -> None:
    trend: Trend = defaultdict(lambda: deque(maxlen=TREND))
    async with _looking(settings, _unseen) as ask:
        look = await ask()  # nobody to ask is told in the terminal's own screen
        with Live(console=console, screen=True, auto_refresh=False) as live:
            trouble = ""
            while True:
                due = time.monotonic() + settings.interval_seconds
                for row in look.gpus if not trouble else ():
                    trend[row.node, row.gpu.index].append(row.gpu.utilization_gpu_percent)
                live.update(_screen(look, trend, trouble, settings, console), refresh=True)
                await anyio.sleep(max(due - time.monotonic(), 0))
                try:
                    look, trouble = await ask(), ""
                except SettingError as error:
                    trouble = str(error)


async def _unseen(
    progress: float, total: float | None = None, message: str | None = None
) -> None: ...


@asynccontextmanager
async def _looking(settings: TopSettings, report: ProgressFnT) -> AsyncIterator[Ask]:
    """A way to look, of a gateway or of the agents themselves.

    Raises:
        SettingError: there is nobody to ask.
    """
    nodes = settings.nodes or None
    if settings.url:
        async with (
            gateway(settings, inventory.NAME, FleetInventory, report) as listed,
            gateway(settings, health_model.NAME, FleetHealth, report) as judged,
        ):

            async def ask() -> Look:
                # One page: more GPUs than on any screen, those out of the ordinary first.
                found = await listed(
                    fleet_inventory.GatewayArguments(nodes=nodes, detail="full", limit=LIMIT)
                )
                named = tuple(node.node for node in found.nodes) or None
                arguments = fleet_health.GatewayArguments(nodes=named, limit=LIMIT)
                return Look.of(found, await all_pages(judged, arguments))

            yield ask
        return
    async with agents(settings) as fleet:

        async def ask_agents() -> Look:
            with explained():
                found = await fleet.router.fan_out(
                    inventory.NAME,
                    {"detail": "full"},
                    NodeInventory,
                    nodes=nodes,
                    progress=report,
                )
                health = await fleet.router.fan_out(
                    health_model.NAME,
                    {"detail": "summary", "severity": "warning"},
                    NodeHealth,
                    nodes=nodes,
                )
            return Look.of(
                fleet_inventory.whole(found), fleet_health.whole(health, every_node=True)
            )

        yield ask_agents


def _screen(
    look: Look, trend: Trend, trouble: str, settings: TopSettings, console: Console
) -> Group:
    """As many GPUs as the screen has room for, the worst first."""
    said = failure_lines(look.failures_by_reason, look.failures)[: FAILURES_SHOWN + 1]
    if trouble:
        said = [f"No answer now, the last one is shown: {trouble}", *said]
    room = max(console.height - LINES_AROUND - len(said), 1)
    shown = look.gpus[:room]
    hidden = len(look.gpus) - len(shown)
    more = f"{counted(hidden, 'more GPU')} below" if hidden else ""
    end = f"every {settings.interval_seconds:g} s, Ctrl-C ends"
    parts: list[RenderableType] = [
        Text.from_markup(f"{_summary(look)}  [dim]{time.strftime('%H:%M:%S')}, {end}[/]"),
        *(Text(line, style="magenta") for line in said),
        _table(shown, trend if console.width >= TREND_COLUMNS else None),
        Text(more, style="dim"),
    ]
    for part in parts:
        if isinstance(part, Text):
            part.no_wrap, part.overflow = True, "ellipsis"
    return Group(*parts)


def _summary(look: Look) -> str:
    """One line of markup about all of them."""
    verdicts = ", ".join(
        f"[{VERDICT_COLOURS[verdict]}]{count} {verdict}[/]"
        for verdict in VERDICTS
        if (count := getattr(look.gpus_by_verdict, verdict))
    )
    omitted = f", {counted(look.nodes_omitted, 'more node')} not asked" * bool(look.nodes_omitted)
    simulated = "  [magenta]simulated[/]" if look.simulated else ""
    return (
        f"{look.nodes_answered} of {counted(look.nodes_asked)} answered{omitted}, "
        f"{counted(len(look.gpus), 'GPU')}: {verdicts or 'none'}{simulated}"
    )


def _table(rows: Sequence[Row], trend: Trend | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("NODE", no_wrap=True, overflow="ellipsis")
    table.add_column("GPU", justify="right", no_wrap=True)
    table.add_column("VERDICT", no_wrap=True)
    for heading in ("UTIL", "MEM GiB", "POWER W", "TEMP", "SM/MEM MHz"):
        table.add_column(heading, justify="right", no_wrap=True)
    if trend is not None:
        table.add_column("TREND", no_wrap=True)
    table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        gpu, colour = row.gpu, VERDICT_COLOURS[row.verdict]
        cells = [escape(row.node), str(gpu.index), f"[{colour}]{row.verdict}[/]", *_figures(gpu)]
        if trend is not None:
            values = trend[row.node, gpu.index]
            cells.append(sparkline(list(values), low=0, high=100))
        table.add_row(*cells, f"[yellow]{escape(_remark(gpu))}[/]")
    return table


def _figures(gpu: Gpu) -> tuple[str, ...]:
    """Readings; `-` for what is not known."""
    used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
    limit = gpu.power_limit_enforced_watts
    return (
        _of(gpu.utilization_gpu_percent, "%"),
        f"{_of(used and used / _GIB, digits=1)}/{_of(total and total / _GIB)}",
        f"{_of(gpu.power_draw_watts)}/{_of(limit)}",
        _of(gpu.temperature_celsius, " C"),
        f"{_of(gpu.clock_sm_mhz)}/{_of(gpu.clock_memory_mhz)}",
    )


def _of(value: float | None, unit: str = "", *, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def _remark(gpu: Gpu) -> str:
    if gpu.state != "ok":
        return gpu.state
    return ", ".join(gpu.throttle_reasons or ())

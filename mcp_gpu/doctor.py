"""`mcp-gpu doctor`: which paths lead to which agents, what is broken, and what mends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import anyio
from mcp.shared.dispatcher import ProgressFnT
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from mcp_gpu.fleet.diagnosis.model import Verdict
from mcp_gpu.fleet.discovery import Discovery, DiscoveryError
from mcp_gpu.gateway import Fleet
from mcp_gpu.settings.base import SettingError
from mcp_gpu.settings.terminal import DoctorSettings
from mcp_gpu.terminal import agents, explained, gateway, progress_bar, standard_output
from mcp_gpu.tools.check_connectivity import NAME, ConnectivityArguments
from mcp_gpu.tools.connectivity_report import FleetConnectivity, whole
from mcp_gpu.tools.connectivity_text import Group, groups, headline, healthy_line
from mcp_gpu.tools.spans import counted, spans

__all__ = ["render", "run", "shortfall"]

LIMIT = 500
"""Most nodes that a gateway is asked to list. It looks at all of them again for each page, so no
other page is asked for."""

LOOK_SECONDS = 0.5
"""Pause between two looks at whether the agents are ready."""

GROUPS = 12
"""Kinds of unhealthy nodes shown; each takes a few lines."""

NAMED = 20
"""Nodes without an agent shown."""

CAUSES = 8
"""Causes shown; of one cluster there are rarely more than two."""

NOTES = 12
"""Patterns, causes ruled out and things not read that are shown, of each: some for every cluster
that is looked at."""

COLOURS: dict[Verdict, str] = {
    "healthy": "green",
    "degraded": "yellow",
    "broken": "red",
    "unknown": "magenta",
}


def run(settings: DoctorSettings) -> int:
    """Look, and print what was found. Returns the exit status.

    0 when every node is reached by its preferred path, else 1. With --in-cluster 0 in any case,
    but for --strict, where it is 1 if no path leads to some node, or some was not looked at in
    time, or there is no agent.
    """
    _check(settings)
    if settings.in_cluster:
        return anyio.run(_preflight, settings)
    found = anyio.run(_find, settings)
    _show(found, settings)
    return 0 if found.verdict == "healthy" else 1


def _check(settings: DoctorSettings) -> None:
    if settings.in_cluster:
        if settings.url:
            raise SettingError("--in-cluster and --url given together: give one of them")
        return
    for name in ("strict", "wait_seconds"):
        if name in settings.model_fields_set:
            raise SettingError(f"--{name.replace('_', '-')} goes with --in-cluster only")


async def _find(settings: DoctorSettings) -> FleetConnectivity:
    with progress_bar("trying the paths") as report:
        if settings.url:
            arguments = ConnectivityArguments(
                nodes=settings.nodes or None, every_path=settings.every_path, limit=LIMIT
            )
            async with gateway(settings, NAME, FleetConnectivity, report) as ask:
                return await ask(arguments)
        async with agents(settings) as fleet:
            with explained():
                return await _look(fleet, settings, report)


async def _look(fleet: Fleet, settings: DoctorSettings, report: ProgressFnT) -> FleetConnectivity:
    async def progress(done: int, total: int, message: str) -> None:
        await report(done, total, message)

    found = await fleet.checkup.run(
        nodes=settings.nodes or None, every_path=settings.every_path, progress=progress
    )
    return whole(found)


async def _preflight(settings: DoctorSettings) -> int:
    """Before anybody relies on the gateway: are the agents there, and reached from here?"""
    async with agents(settings) as fleet:
        await _agents_ready(fleet.router.discovery, settings.wait_seconds)
        try:
            with progress_bar("trying the paths") as report, explained():
                found = await _look(fleet, settings, report)
        except SettingError as error:
            _last_line(str(error), settings)
            return 1 if settings.strict else 0
    _show(found, settings)
    problem = shortfall(found)
    if problem:
        _last_line(problem, settings)
        return 1 if settings.strict else 0
    if not settings.json_output:
        asked = found.coverage.nodes_asked
        print(f"pre-flight passed: {counted(asked)} reached, {found.nodes_healthy} the best way")
    return 0


def shortfall(found: FleetConnectivity) -> str:
    """What keeps a pre-flight from passing, in words; empty for nothing."""
    asked, late = found.coverage.nodes_asked, found.nodes_cut_short
    unreached = asked - found.coverage.nodes_answered - late
    problems = [f"no path leads to {unreached} of {counted(asked)}"] if unreached else []
    if late:
        problems.append(f"{counted(late)} {'was' if late == 1 else 'were'} not looked at in time")
    return "; ".join(problems)


async def _agents_ready(discovery: Discovery, seconds: float) -> None:
    """Wait until every node that should have an agent has one that is ready, or time is up."""
    with anyio.move_on_after(seconds):
        while True:
            if _ready(discovery):
                return
            await anyio.sleep(LOOK_SECONDS)  # a table has no event to wait for


def _ready(discovery: Discovery) -> bool:
    try:
        table = discovery.table()
    except DiscoveryError:
        return False
    return bool(table.targets) and not table.absent and all(each.ready for each in table.targets)


def _last_line(problem: str, settings: DoctorSettings) -> None:
    if settings.json_output:
        return
    if settings.strict:
        print(f"pre-flight failed: {problem}")
    else:
        print(f"pre-flight warning: {problem}; with --strict this would fail")


def _show(found: FleetConnectivity, settings: DoctorSettings) -> None:
    if settings.json_output:
        print(found.model_dump_json(indent=2))
    else:
        with standard_output() as console:
            render(found, console)


def render(found: FleetConnectivity, console: Console) -> None:
    """Print a report: the verdict, the paths, the causes with what mends them, the rest."""
    colour = COLOURS[found.verdict]
    console.print(f"[bold {colour}]{found.verdict.upper()}[/]  {escape(headline(found))}")
    place = " ".join(part for part in (found.gateway_pod, found.gateway_node) if part)
    console.print(escape(healthy_line(found) + (f" (seen from {place})" if place else "")))
    if found.coverage.said_of_discovery:
        console.print(f"[yellow]! {escape(found.coverage.said_of_discovery)}[/]")
    console.print()
    console.print(_paths(found))
    for number, cause in enumerate(found.causes[:CAUSES], 1):
        console.print(f"\n[bold]{number}. {escape(cause.title)}[/]")
        nodes = spans(cause.nodes, count=cause.node_count)
        said = f"{cause.confidence} confidence, {counted(cause.node_count)}: {nodes}"
        _indented(console, f"[dim]{escape(said)} ({cause.code})[/]")
        for line in cause.evidence:
            _indented(console, f"seen  {escape(line)}")
        for line in cause.fix:
            shown = f"[cyan]{escape(line)}[/]"
            if line.startswith("#"):
                _indented(console, shown)
            else:  # to be copied: never broken
                console.print(f"   {shown}", soft_wrap=True)
    if len(found.causes) > CAUSES:
        console.print(f"\n{counted(len(found.causes) - CAUSES, 'more cause')}; --json tells all")
    _nodes(groups(found.nodes), found.nodes_omitted, console)
    for line in _notes(found):
        console.print(escape(line))


def _paths(found: FleetConnectivity) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("PATH", no_wrap=True)
    table.add_column("OK", justify="right", no_wrap=True)
    table.add_column("MEDIAN", justify="right", no_wrap=True)
    table.add_column("OTHERWISE")
    for path in found.paths:
        ok = path.outcomes.get("ok", 0)
        others = [f"{n} {outcome}" for outcome, n in path.outcomes.items() if outcome != "ok"]
        taken = "-" if path.median_ms is None else f"{path.median_ms:.0f} ms"
        table.add_row(escape(path.via), str(ok), taken, escape(", ".join(others) or "-"))
    return table


def _nodes(found: Sequence[Group], omitted: int, console: Console) -> None:
    if found:
        console.print("\n[bold]Nodes that the preferred path does not reach[/]")
    for group in found[:GROUPS]:
        size = f"{counted(len(group.nodes))}: " if len(group.nodes) > 1 else ""
        use = f"; {group.use}" if group.use else ""
        name = (
            f"[yellow]{escape(group.names)}[/]"
            if group.answers
            else f"[red]{escape(group.names)}[/]"
        )
        _indented(console, f"{size}{name}: {escape(group.paths + use)}")
        if group.example:
            _indented(console, f"[dim]{escape(group.example)}[/]", by=5)
    left = sum(len(group.nodes) for group in found[GROUPS:]) + omitted
    if left:
        _indented(console, f"{counted(left, 'more node')}; name some with --nodes")


def _notes(found: FleetConnectivity) -> Iterator[str]:
    if found.absent or found.patterns or found.ruled_out or found.unread:
        yield ""
    yield from (f"No agent on {each.node}: {each.why}" for each in found.absent[:NAMED])
    left = len(found.absent[NAMED:]) + found.absent_omitted
    if left:
        yield f"No agent on {counted(left, 'more node')}"
    yield from (f"Pattern: {each}" for each in found.patterns[:NOTES])
    if found.ruled_out:
        yield f"Ruled out: {'; '.join(found.ruled_out[:NOTES])}"
    for each in found.unread[:NOTES]:
        yield f"Not read: {each.what}: {each.why}" + (f"; {each.grant}" if each.grant else "")
    told = (found.patterns, found.ruled_out, found.unread)
    more = sum(max(len(each) - NOTES, 0) for each in told)
    if more:
        yield f"{counted(more, 'more remark')}; --json tells all"


def _indented(console: Console, text: str, *, by: int = 3) -> None:
    console.print(Padding(text, (0, 0, 0, by), expand=False))

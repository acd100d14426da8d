"""`mcp-gpu xid`: what the fleet's Xids mean, or those of a pasted or piped log, for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import anyio
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from mcp_gpu.gpu.actions import grave
from mcp_gpu.gpu.health.model import Severity
from mcp_gpu.gpu.xid.excerpt import Excerpt, read
from mcp_gpu.gpu.xid.present import branch
from mcp_gpu.settings.base import SettingError
from mcp_gpu.settings.terminal import XidSettings
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
from mcp_gpu.tools.explain_xid import FORM, ExplainArguments, heading, of_code, rows, sources
from mcp_gpu.tools.failures import failure_lines
from mcp_gpu.tools.fleet_xids import (
    GatewayArguments,
    asked_of_agents,
    codes_line,
    headline,
    pattern_size,
    whole,
)
from mcp_gpu.tools.fleet_xids_model import FleetXids, Pattern
from mcp_gpu.tools.spans import counted
from mcp_gpu.tools.xids import then
from mcp_gpu.tools.xids_model import NAME, NodeXids

__all__ = ["run"]

STDIN: Final = "-"

DIGITS: Final = 20
"""Read of a code, which has far fewer: int() refuses thousands of them in its own words."""

LINE_BYTES: Final = 65_536
"""A longer line of standard input is taken as several."""

PATTERNS: Final = 20
MISSED: Final = 8
"""Shown one by one."""


def run(settings: XidSettings) -> int:
    """Print what happened, or an explanation. Returns the exit status.

    0 when every node answered, could look, and has no Xid that asks for anything or is critical,
    else 1. With --explain 0 when an Xid was explained, and 1 when there was none or the code is
    unknown.
    """
    if "explain" in settings.model_fields_set:
        return _explain(settings)
    if settings.driver_version:
        raise SettingError("--driver-version goes with --explain only")
    arguments = _arguments(settings)
    found = anyio.run(_fetch, settings, arguments)
    if settings.json_output:
        print(found.model_dump_json(indent=2))
    else:
        with standard_output() as console:
            _render(found, arguments, console)
    return 0 if _quiet(found) else 1


def _quiet(found: FleetXids) -> bool:
    asked_for = any(
        node.action != "NONE" or any(device.severity == "critical" for device in node.devices)
        for node in found.nodes
    )
    return not (asked_for or found.nodes_blind or found.failures_by_reason)


def _arguments(settings: XidSettings) -> GatewayArguments:
    wrong = [code for code in settings.codes if not (code.isascii() and code.isdecimal())]
    if wrong:
        raise SettingError(f"--codes: {wrong[0][:DIGITS]!r} is no number")
    codes = tuple(int(code[:DIGITS]) for code in settings.codes) or None
    nodes = settings.nodes or None
    try:
        return GatewayArguments(nodes=nodes, since=settings.since, codes=codes, limit=LIMIT)
    except ValidationError as error:
        raise _refused(error) from error


def _refused(error: ValidationError) -> SettingError:
    first = error.errors()[0]
    name = str(first["loc"][0])
    flag = {"code": "explain", "driver_version": "driver-version"}.get(name, name)
    message = first["msg"].removeprefix("Value error, ")
    return SettingError(f"--{flag}: {message[:1].lower()}{message[1:]}")


async def _fetch(settings: XidSettings, arguments: GatewayArguments) -> FleetXids:
    with progress_bar("asking the nodes") as report:
        if settings.url:
            async with gateway(settings, NAME, FleetXids, report) as ask:
                return await all_pages(ask, arguments)
        asked = asked_of_agents(arguments)
        found = await from_agents(settings, NAME, asked, NodeXids, report)
        return whole(found, every_node=arguments.nodes is not None)


def _render(found: FleetXids, arguments: GatewayArguments, console: Console) -> None:
    """Print what to do first, what could not be seen, and who did not answer."""
    console.print(f"[bold]{escape(headline(found, arguments.codes))}[/]")
    for pattern in found.patterns[:PATTERNS]:
        _pattern(pattern, console)
    left = len(found.patterns) - PATTERNS + found.patterns_omitted
    if left > 0:
        console.print(f"\n{counted(left, 'more pattern')}; --json has them")
    if found.totals:
        print_block([f"By code: {codes_line(found)}"], console, "")
    missed = [f"! {each.where}: {each.what}" for each in found.missed[:MISSED]]
    print_block(missed, console, "magenta")
    print_block(failure_lines(found.failures_by_reason, found.failures), console, "magenta")
    print_block(notes(found), console, "dim")
    if found.simulated:
        console.print("[magenta]simulated: no real hardware stands behind this[/]")


def _pattern(pattern: Pattern, console: Console) -> None:
    colour = "dim" if pattern.settled else SEVERITY_COLOURS[pattern.severity]
    grave = "SETTLED" if pattern.settled else pattern.severity.upper()
    console.print(f"\n[bold {colour}]{grave}[/]  [bold]{escape(pattern.told)}[/]")
    told = [
        ("where", f"[{colour}]{escape(pattern.where)}[/]"),
        ("seen", escape(pattern_size(pattern))),
        ("means", escape(pattern.explanation + then(pattern.investigate))),
    ]
    if not pattern.settled:
        told.append(("do", f"[bold]{escape(pattern.action)}[/]  {escape(pattern.advice)}"))
    print_rows(told, console)


def _explain(settings: XidSettings) -> int:
    for name in ("since", "codes", "nodes", "url"):
        if name in settings.model_fields_set:
            raise SettingError(f"--{name} goes without --explain")
    excerpt = _excerpt(settings)
    if settings.json_output:
        print(excerpt.model_dump_json(indent=2))
    elif excerpt.explained:
        with standard_output() as console:
            _render_excerpt(excerpt, console)
    else:
        print(f"No Xid in {counted(excerpt.lines, 'line')}: {FORM}.")
    return 0 if any(one.explanation.known for one in excerpt.explained) else 1


def _excerpt(settings: XidSettings) -> Excerpt:
    asked = settings.explain.strip()
    if not asked:
        raise SettingError("--explain: a code, a line of a log, or - for standard input")
    try:
        version = ExplainArguments(driver_version=settings.driver_version or None).driver_version
        if asked.isdecimal():
            code = ExplainArguments(code=int(asked[:DIGITS])).code or 0
            return of_code(code, branch(version))
    except ValidationError as error:
        raise _refused(error) from error
    log = _standard_input() if asked == STDIN else asked.splitlines()
    return read(log, driver_branch=branch(version))


def _standard_input() -> Iterator[str]:
    with open(0, encoding="utf-8", errors="replace", closefd=False) as log:
        while line := log.readline(LINE_BYTES):
            yield line


def _render_excerpt(excerpt: Excerpt, console: Console) -> None:
    """Print what each different Xid means, the grave ones first."""
    if excerpt.lines > 1:
        found = f"{counted(excerpt.xids, 'Xid')} in {counted(excerpt.lines, 'line')}"
        console.print(f"[bold]{found}[/]")
    print_block((f"follows: {chain}" for chain in excerpt.chains), console, "bold")
    for one in excerpt.explained:
        console.print(f"\n[bold {_colour(one.action)}]{escape(heading(one))}[/]")
        print_rows(((label, escape(value)) for label, value in rows(one)), console)
    if excerpt.omitted:
        console.print(f"\n{counted(excerpt.omitted, 'more kind')} of Xids not shown")
    print_block(sources(excerpt), console, "dim")


def _colour(action: str) -> str:
    some: Severity = "info" if action == "NONE" else "warning"
    return SEVERITY_COLOURS["critical" if grave(action) else some]

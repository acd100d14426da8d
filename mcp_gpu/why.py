"""`mcp-gpu why`: why a pod or a Job failed, and what to do first, for a person."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markup import escape

from mcp_gpu.fleet.router import Router
from mcp_gpu.registry import Arguments, ToolError
from mcp_gpu.settings.base import SettingError
from mcp_gpu.settings.terminal import WhySettings
from mcp_gpu.terminal import (
    agents,
    gateway,
    print_block,
    print_rows,
    progress_bar,
    standard_output,
)
from mcp_gpu.tools import incident
from mcp_gpu.tools.explain_failure import NAME, FailureArguments, answer
from mcp_gpu.tools.explain_failure_text import fact_line, gap_line, headline, whose
from mcp_gpu.tools.incident_text import report_text
from mcp_gpu.workloads.failure.model import Explanation
from mcp_gpu.workloads.incident.model import IncidentReport
from mcp_gpu.workloads.reads import Workloads

__all__ = ["run"]

WELL: Final = ("still_running", "succeeded")

A = TypeVar("A", bound=Arguments)
R = TypeVar("R", bound=BaseModel)

_COLOURS: Final = {"true": "yellow", "false": "cyan", "unknown": "magenta"}


def run(settings: WhySettings) -> int:
    """Print why the pod failed. Returns 0 if it has not, else 1."""
    if settings.report:
        return _report(settings)
    arguments = _read(FailureArguments, settings)
    found = anyio.run(_fetch, settings, NAME, arguments, Explanation, answer)
    if settings.json_output:
        print(found.model_dump_json(indent=2))
    else:
        with standard_output() as console:
            _render(found, console)
    return 0 if found.category in WELL else 1


def _report(settings: WhySettings) -> int:
    """Print the report. Returns 0 if nothing went wrong, else 1."""
    arguments = _read(incident.IncidentArguments, settings)
    found = anyio.run(_fetch, settings, incident.NAME, arguments, IncidentReport, incident.answer)
    print(found.model_dump_json(indent=2) if settings.json_output else report_text(found))
    return 1 if found.began else 0


def _read(model: type[A], settings: WhySettings) -> A:
    if not settings.pod:
        raise SettingError("name a pod: mcp-gpu why POD -n NAMESPACE")
    if settings.nodes:
        raise SettingError("--nodes: the pod's own node is asked, and no other")
    cluster = settings.context[0] if len(settings.context) == 1 and settings.url else ""
    try:
        return model.model_validate(
            {"pod": settings.pod, "namespace": settings.pod_namespace, "cluster": cluster}
        )
    except ValidationError as error:
        first = error.errors()[0]
        flag = {"pod": "POD", "namespace": "-n"}.get(str(first["loc"][0]), str(first["loc"][0]))
        raise SettingError(f"{flag}: {first['msg']}") from error


async def _fetch(
    settings: WhySettings,
    tool: str,
    arguments: A,
    result: type[R],
    ask_agents: Callable[[Router, Workloads, A], Awaitable[R]],
) -> R:
    with progress_bar("looking") as report:
        if settings.url:
            async with gateway(settings, tool, result, report) as ask:
                return await ask(arguments)
        async with agents(settings) as fleet:
            try:
                return await ask_agents(fleet.router, fleet.workloads, arguments)
            except ToolError as error:
                raise SettingError(str(error)) from error


def _render(found: Explanation, console: Console) -> None:
    colour = "green" if found.category in WELL else _COLOURS[found.not_your_code]
    console.print(f"[bold {colour}]{escape(headline(found))}[/]")
    if found.simulated:
        console.print("[magenta]simulated: no real hardware stands behind some of this[/]")
    print_rows([("which", escape(line)) for line in whose(found)], console)
    print_rows([("first", f"[bold]{escape(found.first_step)}[/]")], console)
    print_block([fact_line(fact) for fact in found.evidence], console, "")
    others = [f"considered {each.category}: {each.why}" for each in found.alternatives]
    print_block(others, console, "dim")
    print_block([f"! {gap_line(gap)}" for gap in found.gaps], console, "magenta")

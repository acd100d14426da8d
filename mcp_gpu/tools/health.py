"""`get_gpu_health` as an agent serves it: what is wrong with the GPUs of its own node."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from mcp_gpu.gpu.errors import NOT_SUPPORTED
from mcp_gpu.gpu.health.model import READINGS, Evidence, Finding, GpuVerdict, Severity
from mcp_gpu.registry import Answer, Arguments, Call, Tool
from mcp_gpu.tools.health_model import NAME, NodeHealth
from mcp_gpu.tools.health_readings import Readings, Value
from mcp_gpu.tools.inventory import MAX_AGE_SECONDS, STALE_SECONDS, Detail
from mcp_gpu.tools.spans import clipped, counted, numbers

if TYPE_CHECKING:  # a gateway runs where there is no NVML, and shares only the words
    from mcp_gpu.gpu.collector import Collector
    from mcp_gpu.node.sight import Sight
    from mcp_gpu.node.watch import XidWatch

__all__ = ["AgentArguments", "agent_tool", "do_words", "evidence_words", "gpu_lines"]

FRESH_TIMEOUT_SECONDS = 0.5
"""How long to wait for a reading that is overdue. Healthy boards give theirs in some tens of
milliseconds; where NVML is known to hang nobody waits at all. An answer takes under a second."""

EVIDENCE_TOLD = 4
"""Readings behind one finding that the text tells; the structured content has all."""

GAPS_CHARS = 200
"""Room for what was not checked, and for what is not to be seen, in the text of one node."""


class AgentArguments(Arguments):
    """What an agent may be asked about its node."""

    detail: Detail = Field(
        default="summary", description="full: also every GPU's verdict and health readings."
    )
    severity: Severity = Field(
        default="info", description="Least severe findings to tell; the rest are counted."
    )


def agent_tool(
    node: str,
    collector: Collector,
    watch: XidWatch,
    sight: Callable[[], Sight],
    *,
    expected_gpus: int | None = None,
) -> Tool[AgentArguments]:
    """The tool over one node.

    Args:
        sight: what the agent can look at now.
        expected_gpus: how many GPUs the node should have, where somebody has said so.
    """
    from mcp_gpu.gpu.health.assess import assess

    async def run(arguments: AgentArguments, call: Call) -> Answer:
        snapshot = collector.snapshot
        if snapshot.waiting is None:
            snapshot = await collector.fresh(
                max_age_seconds=MAX_AGE_SECONDS, timeout_seconds=FRESH_TIMEOUT_SECONDS
            )
        assessment = assess(
            snapshot,
            collector.past(),
            bursts=watch.log.bursts(boot_id=watch.boot_id),
            expected_gpus=expected_gpus,
        )
        health = NodeHealth.of(
            node,
            snapshot,
            assessment,
            sight(),
            detail=arguments.detail,
            severity=arguments.severity,
        )
        return Answer("\n".join(_lines(health, arguments)), health)

    return Tool(
        name=NAME,
        title="GPU health of this node",
        description=(
            "Say what is wrong with this node's NVIDIA GPUs: a verdict for the node and each GPU "
            "(failed, degraded, unknown, healthy), and findings worst first, each with the "
            "readings behind it, what to do by NVIDIA's name and in words, and how sure it is. "
            "What could not be checked is named, and is never healthy."
        ),
        arguments=AgentArguments,
        result=NodeHealth,
        run=run,
    )


def _lines(health: NodeHealth, arguments: AgentArguments) -> Iterator[str]:
    """One node as text: the verdict, its findings, and what could not be looked at."""
    count = health.gpus_by_verdict.count
    parts = [
        f"{health.node}: {health.verdict.upper()}",
        f"{counted(count, 'GPU')}: {health.gpus_by_verdict}" if count else "no GPUs known",
    ]
    if health.driver_version:
        parts.append(f"driver {health.driver_version}")
    if health.age_seconds is not None:
        parts.append(f"read {health.age_seconds:.0f} s ago")
    if health.rates_over_seconds is not None:
        parts.append(f"rates over {health.rates_over_seconds:.0f} s")
    yield "  ".join(parts)
    if health.message is not None and not health.findings:
        yield f"! {health.message}"
    for finding in health.findings:
        yield from _finding(finding)
    if health.findings_hidden:
        yield (
            f"{counted(health.findings_hidden, 'finding')} less severe than "
            f'{arguments.severity} not told: ask with severity "info".'
        )
    yield from _gaps(health)
    if arguments.detail == "full":
        yield from gpu_lines(health)
    if health.simulated:
        yield "SIMULATED: no real hardware stands behind these figures."


def _finding(finding: Finding) -> Iterator[str]:
    first = f"{finding.severity.upper()} {_where(finding.gpu_index)} {finding.code}"
    if finding.severity == "info":  # one line is enough for what is only worth knowing
        yield f"{first}: {finding.title} {do_words(finding.action, finding.advice)}"
        return
    yield f"{first}: {finding.title} ({finding.confidence} confidence: {finding.source})"
    if finding.evidence:
        yield f"  seen: {evidence_words(finding.evidence)}"
    yield f"  do: {do_words(finding.action, finding.advice)}"


def do_words(action: str, advice: str) -> str:
    """`RESET_GPU: Drain the pods ...`."""
    return advice if action == "NONE" else f"{action}: {advice}"


def _where(gpu_index: int | None) -> str:
    return "node" if gpu_index is None else f"GPU {gpu_index}"


def evidence_words(evidence: Sequence[Evidence], most: int = EVIDENCE_TOLD) -> str:
    """`temperature_celsius 91 C (slows down at 87), ...`."""
    told = [_reading(each) for each in evidence[:most]]
    more = len(evidence) - len(told)
    return ", ".join(told) + (f" and {more} more" if more > 0 else "")


def _reading(evidence: Evidence) -> str:
    value = evidence.value
    shown = f"{value:.4g}" if isinstance(value, float) else "unknown" if value is None else value
    notes = [evidence.note] if evidence.note else []
    if evidence.age_seconds is not None and evidence.age_seconds > STALE_SECONDS:
        notes.append(f"{evidence.age_seconds:.0f} s old")
    said = f"{evidence.reading} {shown} {evidence.unit}".rstrip()
    return f"{said} ({'; '.join(notes)})" if notes else said


def _gaps(health: NodeHealth) -> Iterator[str]:
    checks: defaultdict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for each in health.not_checked:
        checks[each.reason, each.gpus].append(each.check)
    every = health.gpus_by_verdict.count
    if checks:
        told = [
            f"{', '.join(names)}{_on(gpus, every)}: {reason}"
            # What cannot be read at all comes first, and last what boards do not have: nothing is
            # missing there.
            for (reason, gpus), names in sorted(
                checks.items(),
                key=lambda each: (each[0][0] == NOT_SUPPORTED, READINGS not in each[1]),
            )
        ]
        yield clipped(f"Not checked: {'; '.join(told)}", GAPS_CHARS)
    if health.unseen:
        told = [f"{name} ({why})" for name, why in health.unseen.items()]
        yield clipped(f"Xids may be missing: {', '.join(told)}", GAPS_CHARS)


def _on(gpus: tuple[int, ...], every: int) -> str:
    return f" on GPU {numbers(gpus)}" if gpus and len(gpus) < every else ""


def gpu_lines(health: NodeHealth) -> Iterator[str]:
    """Every GPU with its verdict and what its readings tell."""
    readings = {each.gpu_index: each for each in health.readings}
    for gpu in health.gpus:
        yield from _gpu(gpu, readings.get(gpu.gpu_index))


def _gpu(gpu: GpuVerdict, readings: Readings | None) -> Iterator[str]:
    """What is not nought of its readings: the other figures say nothing by being read out."""
    place = f"{gpu.pci_bus_id or 'bus id unknown'}  {gpu.uuid or 'UUID unknown'}"
    yield f"  GPU {gpu.gpu_index}  {gpu.verdict.upper()}  {gpu.name or '?'}  {place}"
    if readings is None:
        return
    told = [f"{name} {_figure(value)}" for name, value in readings.values.items() if value]
    nought = len(readings.values) - len(told)
    parts = [", ".join(told)] if told else []
    parts.append(f"{counted(nought, 'reading')} 0 or false, {len(readings.unavailable)} not there")
    links = Counter[Value]()
    for each in readings.links:
        links[each.values.get("state", "unknown")] += len(each.links)
    parts += [f"{counted(count, 'NVLink')} {state}" for state, count in links.items()]
    yield f"    {'; '.join(parts)}"


def _figure(value: Value) -> str:
    return "true" if value is True else f"{value:g}" if isinstance(value, float) else str(value)

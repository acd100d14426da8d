"""An explanation of a failure for a model's or a person's eye: verdict, evidence, first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from mcp_gpu.tools.spans import clipped, counted, numbers
from mcp_gpu.workloads.failure.model import Explanation, Fact
from mcp_gpu.workloads.reads import Gap

__all__ = ["fact_line", "gap_line", "headline", "lines", "whose", "within_text"]

TEXT_CHARS: Final = 4_000
"""The text is never longer."""

LINE_CHARS: Final = 420
EVIDENCE_TOLD: Final = 10
GAPS_TOLD: Final = 6
ALTERNATIVES_TOLD: Final = 4

_CODE: Final = {
    "true": "not your code",
    "false": "your code",
    "unknown": "whether your code is not known",
}


def headline(found: Explanation) -> str:
    """`GPU_HARDWARE, not your code (high confidence): The GPU that it held failed: ...`"""
    if found.category in ("still_running", "succeeded"):
        return f"{found.category.upper()}: {found.says}"
    whose_fault = _CODE[found.not_your_code]
    return f"{found.category.upper()}, {whose_fault} ({found.confidence} confidence): {found.says}"


def whose(found: Explanation) -> Iterator[str]:
    """Whom it is about, and when."""
    name = f"{found.namespace}/{found.pod}" if found.pod else f"namespace {found.namespace}"
    parts = [f"pod {name}" if found.pod else name]
    parts += [f"of {found.owner}"] if found.owner else []
    parts += [f"on {found.node}"] if found.node else []
    parts += [f"container {found.container}"] if found.container else []
    parts += ["which is gone"] if found.gone and found.pod else []
    yield ", ".join(parts)
    when = [f"started {found.since}"] if found.since else []
    when += [f"died {found.died}"] if found.died else []
    if when:
        yield ", ".join(when)
    if found.gpus:
        yield f"held {_gpus(found)} ({found.gpus_source})"


def _gpus(found: Explanation) -> str:
    known = {each.gpu_index for each in found.gpus if each.gpu_index is not None}
    named = [f"GPU {numbers(known)}"] if known else []
    named += [each.uuid or each.mig for each in found.gpus if each.gpu_index is None]
    return ", ".join(named)


def lines(found: Explanation) -> Iterator[str]:
    """All of it, the most important first; the first step is always within the text."""
    yield headline(found)
    if found.simulated:
        yield "SIMULATED: no real hardware stands behind this."
    yield from whose(found)
    yield f"First: {found.first_step}"
    if found.evidence:
        yield "Evidence:"
    yield from (f"  {fact_line(fact)}" for fact in found.evidence[:EVIDENCE_TOLD])
    left = len(found.evidence) - EVIDENCE_TOLD + found.evidence_omitted
    if left > 0:
        yield f"  and {counted(left, 'more fact')} in the structured content"
    if found.alternatives:
        yield "Considered:"
    for other in found.alternatives[:ALTERNATIVES_TOLD]:
        yield f"  {other.category}: {other.why}"
    if found.gaps:
        yield "Could not be read:"
    yield from (f"  {gap_line(gap)}" for gap in found.gaps[:GAPS_TOLD])
    if len(found.gaps) > GAPS_TOLD:
        yield f"  and {counted(len(found.gaps) - GAPS_TOLD, 'more gap')} in the structured content"


def fact_line(fact: Fact) -> str:
    """`2026-11-26T10:02:11Z status of pod: Evicted: ...`"""
    at = f"{fact.at} " if fact.at else ""
    return f"{at}{fact.source}: {fact.text}"


def gap_line(gap: Gap) -> str:
    """`events of train: forbidden; grant: list events in train`"""
    grant = f"; grant: {gap.grant}" if gap.grant else ""
    return f"{gap.what}: {gap.why}{grant}"


def within_text(told: Iterable[str]) -> str:
    """As many of the lines as fit."""
    kept: list[str] = []
    room = TEXT_CHARS - 60  # for the line that says so
    for line in told:
        short = clipped(line, LINE_CHARS)
        room -= len(short) + 1
        if room < 0:
            kept.append("The rest is in the structured content.")
            break
        kept.append(short)
    return "\n".join(kept)

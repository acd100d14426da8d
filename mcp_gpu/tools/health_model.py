"""What `get_gpu_health` answers of one node, on the wire."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Final, Self

from pydantic import Field

from mcp_gpu.gpu.health.model import (
    READINGS,
    SEVERITIES,
    Assessment,
    Finding,
    GpuVerdict,
    Severity,
    Verdict,
)
from mcp_gpu.gpu.model import Snapshot, Waiting
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.node.sight import Sight
from mcp_gpu.tools.health_readings import Readings
from mcp_gpu.tools.inventory import Detail, reading_age, trouble

__all__ = [
    "NAME",
    "VERDICTS",
    "NodeHealth",
    "NotChecked",
    "Verdicts",
    "worst",
]

NAME: Final = "get_gpu_health"

VERDICTS: Final[tuple[Verdict, ...]] = ("failed", "degraded", "unknown", "healthy")
"""Worst first. What could not be looked at is no reason to overlook what was seen."""

FINDINGS_LISTED: Final = 100
"""Findings told of one node: a gateway takes no answer of more than 256 KiB, least of all from
the node that is worst."""

SENSES: Final = frozenset({"nvml_events", "kernel_log"})
"""What shows Xids of this boot. The other senses of an agent bear on no verdict."""


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The one verdict of many; of none it is unknown."""
    return min(verdicts, key=VERDICTS.index, default="unknown")


class Verdicts(Wire):
    """How many have which verdict."""

    failed: int
    degraded: int
    unknown: int = Field(description="Could not be looked at. Not healthy.")
    healthy: int

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> Self:
        """Count them."""
        counted = Counter(verdicts)
        return cls(**{verdict: counted[verdict] for verdict in VERDICTS})

    @classmethod
    def total(cls, counts: Iterable[Verdicts]) -> Self:
        """Add them up."""
        every = tuple(counts)
        return cls(**{name: sum(getattr(each, name) for each in every) for name in VERDICTS})

    def __str__(self) -> str:
        """`1 failed, 7 healthy`."""
        counts = ((getattr(self, verdict), verdict) for verdict in VERDICTS)
        return ", ".join(f"{count} {verdict}" for count, verdict in counts if count) or "none"

    @property
    def count(self) -> int:
        """All of them."""
        return self.failed + self.degraded + self.unknown + self.healthy


class NotChecked(Wire):
    """A check that could not be made."""

    check: str
    reason: str
    gpus: tuple[int, ...] = Field(description="Indices of the GPUs; empty: the node as a whole.")


class NodeHealth(Wire):
    """What is wrong with one node's GPUs."""

    node: str
    verdict: Verdict = Field(description="unknown: could not look; it is not healthy.")
    message: str | None = Field(description="Why GPUs cannot be read, and what to do.")
    simulated: bool = Field(description="True: no real hardware stands behind this.")
    driver_version: str | None
    gpus_by_verdict: Verdicts = Field(description="All GPUs, whatever is listed.")
    findings: tuple[Finding, ...] = Field(
        description="Worst first, of at least the severity asked for."
    )
    findings_omitted: int = Field(
        description="Left out for room, the least severe of them: of a gateway's summary ask with "
        "nodes and detail full."
    )
    findings_hidden: int = Field(description="Less severe ones.")
    gpus: tuple[GpuVerdict, ...] = Field(
        description="Those that are not healthy; with detail full all."
    )
    readings: tuple[Readings, ...] = Field(
        default=(), description="With detail full: every GPU's health readings."
    )
    not_checked: tuple[NotChecked, ...]
    unseen: dict[str, str] = Field(
        description="Sources of Xids that the agent cannot look at, to the reason: some may be "
        "missing."
    )
    rates_over_seconds: float | None = Field(
        description="What rates are measured over; null: not enough history yet."
    )
    age_seconds: float | None = Field(
        description="Age of the readings; null if there are none or the clock was set back."
    )
    waiting: Waiting | None = Field(description="An NVML call that does not return.")

    @classmethod
    def of(
        cls,
        node: str,
        snapshot: Snapshot,
        assessment: Assessment,
        sight: Sight,
        *,
        detail: Detail,
        severity: Severity,
    ) -> Self:
        """Make the answer of one node."""
        told = SEVERITIES[: SEVERITIES.index(severity) + 1]
        findings = tuple(each for each in assessment.findings if each.severity in told)
        full = detail == "full"
        return cls(
            node=node,
            verdict=assessment.verdict,
            message=trouble(snapshot),
            simulated=snapshot.simulated,
            driver_version=snapshot.driver_version,
            gpus_by_verdict=Verdicts.of(gpu.verdict for gpu in assessment.gpus),
            findings=findings[:FINDINGS_LISTED],
            findings_omitted=max(len(findings) - FINDINGS_LISTED, 0),
            findings_hidden=len(assessment.findings) - len(findings),
            gpus=tuple(gpu for gpu in assessment.gpus if full or gpu.verdict != "healthy"),
            readings=tuple(map(Readings.of, snapshot.vitals)) if full else (),
            not_checked=tuple(_not_checked(assessment)),
            unseen={
                sense.name: sense.why
                for sense in sight.senses
                if sense.name in SENSES and not sense.works
            },
            rates_over_seconds=assessment.rates_over_seconds,
            age_seconds=reading_age(snapshot.fast_at),
            waiting=snapshot.waiting,
        )


def _is_told(assessment: Assessment, gpu: GpuVerdict, check: str) -> bool:
    """Whether a GPU that cannot be read at all is told already: as a finding of its own, or as
    what NVML as a whole refuses."""
    return check == READINGS and (gpu.verdict == "failed" or "gpus" in assessment.not_checked)


def _not_checked(assessment: Assessment) -> Iterator[NotChecked]:
    """Of the node, then of its GPUs, where what several of them share is told once. What a
    finding tells is no gap."""
    for check, reason in assessment.not_checked.items():
        yield NotChecked(check=check, reason=reason, gpus=())
    gpus: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for gpu in assessment.gpus:
        for check, reason in gpu.not_checked.items():
            if not _is_told(assessment, gpu, check):
                gpus[check, reason].append(gpu.gpu_index)
    for (check, reason), indices in gpus.items():
        yield NotChecked(check=check, reason=reason, gpus=tuple(indices))

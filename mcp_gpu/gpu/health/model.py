"""What a health check says: `Finding` with its `Evidence`, and a verdict per GPU and node."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from mcp_gpu.gpu.wire import Wire

Severity = Literal["critical", "warning", "info"]

SEVERITIES: Final[tuple[Severity, ...]] = ("critical", "warning", "info")
"""Worst first."""

Verdict = Literal["healthy", "degraded", "failed", "unknown"]
"""failed: something critical; degraded: a warning; unknown: what matters could not be looked at,
and nothing worse was seen; healthy: looked at, and nothing above info."""

READINGS: Final = "readings"
"""The check that stands for all of a GPU that cannot be read; of a node, that they are recent."""

Confidence = Literal["high", "medium", "low"]
"""high: the driver's or the hardware's own word; medium: a rule over readings that has known
exceptions; low: a hint."""


class Evidence(Wire):
    """One reading behind a finding."""

    reading: str = Field(description="Name of the reading.")
    value: str | int | float | bool | None
    unit: str = ""
    age_seconds: float | None = Field(default=None, description="Null: not a reading of one time.")
    note: str = Field(default="", description="What it is compared with.")


class Finding(Wire):
    """One thing that is wrong, or worth knowing."""

    code: str = Field(description="Stable name of the kind of finding.")
    severity: Severity
    gpu_index: int | None = Field(description="Null: the node as a whole.")
    title: str = Field(description="One sentence.")
    evidence: tuple[Evidence, ...]
    action: str = Field(description="NVIDIA's name for what to do, such as RESET_GPU.")
    advice: str = Field(description="What to do, in words.")
    confidence: Confidence
    source: str = Field(description="Whose conclusion it is.")
    includes: tuple[str, ...] = Field(
        default=(), description="Codes of the findings that this one explains and is told for."
    )


class GpuVerdict(Wire):
    """One GPU's verdict."""

    gpu_index: int
    uuid: str | None
    pci_bus_id: str | None
    name: str | None
    verdict: Verdict
    findings: tuple[str, ...] = Field(description="Codes of this GPU's findings, worst first.")
    not_checked: dict[str, str] = Field(description="Check to the reason why it could not be made.")


class Assessment(Wire):
    """One node's health."""

    verdict: Verdict
    findings: tuple[Finding, ...] = Field(description="Worst first.")
    gpus: tuple[GpuVerdict, ...]
    not_checked: dict[str, str] = Field(
        description="Check of the node as a whole to the reason why it could not be made."
    )
    rates_over_seconds: float | None = Field(
        description="What rates are measured over; null: not enough history yet."
    )

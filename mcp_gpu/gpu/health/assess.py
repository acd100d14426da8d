"""From readings to a verdict: `assess`, the one door of this package."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from mcp_gpu.gpu.errors import Code
from mcp_gpu.gpu.health import driver, memory, modes, nvlink, pcie, presence, thermal
from mcp_gpu.gpu.health.driver import Site
from mcp_gpu.gpu.health.look import MIG_ACTIVE, Look, Unread, Window
from mcp_gpu.gpu.health.model import (
    READINGS,
    Assessment,
    Finding,
    GpuVerdict,
    Severity,
    Verdict,
)
from mcp_gpu.gpu.health.stories import importance, told
from mcp_gpu.gpu.health.xids import xids
from mcp_gpu.gpu.history import Past
from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.xid.model import Burst

GPU_CHECKS: Final[dict[str, Callable[[Look], Iterator[Finding]]]] = {
    "recovery_action": presence.recovery_action,
    "ecc": memory.ecc,
    "sram_threshold": memory.sram_threshold,
    "row_remap": memory.row_remap,
    "row_remap_spares": memory.row_remap_spares,
    "retired_pages": memory.retired_pages,
    "repair": memory.repair,
    "unrepairable_memory": memory.unrepairable,
    "temperature": thermal.temperature,
    "memory_temperature": thermal.memory_temperature,
    "slowdown": thermal.slowdown,
    "pcie_width": pcie.width,
    "pcie_generation": pcie.generation,
    "pcie_replays": pcie.replays,
    "pcie_errors": pcie.errors,
    "nvlink": nvlink.links_up,
    "nvlink_errors": nvlink.link_errors,
    "fabric": nvlink.fabric,
    "mig_mode": modes.mig_mode,
    "ecc_mode": modes.ecc_mode,
}
"""Name of the check in `not_checked` to the rule."""

NODE_CHECKS: Final[dict[str, Callable[[Site], Iterator[Finding]]]] = {
    "gpus": driver.nvml,
    READINGS: driver.answering,
    "gpu_count": driver.count,
    "persistence": driver.persistence,
}

WORDS: Final = frozenset({"recovery_action", "ecc", "row_remap", "temperature"})
"""Of these at least one must have been made for a GPU to be called healthy: they are the hardware's
and the driver's own word. Every board has some of them: a GeForce its temperature and, with a
recent driver, the recovery action; a vGPU guest its ECC counters."""

ESSENTIAL: Final = WORDS | {"nvlink", "fabric"}
"""A GPU is unknown where one of these is refused for a passing reason, and may tell something
bad once it answers. Lasting reasons are the board's or the driver's nature and the check is
merely not made."""

MEMORY_WORDS: Final = frozenset({"ecc", "row_remap"})
"""MIG hides both. A GPU whose memory nobody can see is not healthy by its temperature: then the
driver's own word is needed, which old drivers do not give."""

_VERDICTS: Final[dict[Severity, Verdict]] = {
    "critical": "failed",
    "warning": "degraded",
    "info": "healthy",
}

T = TypeVar("T", Look, Site)

_PASSING: Final = frozenset({"timeout", "gpu_lost"})
_NO_SUCH_QUESTION: Final = f"error({int(Code.INVALID_ARGUMENT)})"
"""Some boards answer so where others say not_supported, and will again."""


def assess(
    now: Snapshot,
    past: Past,
    *,
    bursts: Sequence[Burst] = (),
    expected_gpus: int | None = None,
    clock: Callable[[], float] = time.time,
) -> Assessment:
    """What is wrong with a node, from what is known of it. Reads nothing itself.

    Args:
        past: earlier readings, for rates.
        bursts: Xids of this boot.
        expected_gpus: how many GPUs the node should have; by default the most seen so far.
        clock: Unix time, for the ages of readings.
    """
    at = clock()
    window = Window(now, past)
    looks = [Look(now, position, window, at) for position in range(len(now.gpus))]
    site = Site(now, looks, bursts, expected_gpus, at, window.period_seconds)
    findings, not_checked = _checked(NODE_CHECKS, site)
    findings += xids(now, bursts, at)
    missing: dict[int, dict[str, str]] = {}
    for look in looks:
        found, missing[look.index] = _judged(look)
        findings += found
    findings = sorted(
        (
            one
            for index in {finding.gpu_index for finding in findings}
            for one in told(finding for finding in findings if finding.gpu_index == index)
        ),
        key=importance,
    )
    stale = READINGS in not_checked
    gpus = tuple(_verdict(look, findings, missing[look.index], stale=stale) for look in looks)
    return Assessment(
        verdict=_worst(
            [gpu.verdict for gpu in gpus]
            + [_of(one) for one in findings]
            + ["unknown" if "gpus" in not_checked or stale else "healthy"]
        ),
        findings=tuple(findings),
        gpus=gpus,
        not_checked=not_checked,
        rates_over_seconds=window.seconds,
    )


def _checked(
    checks: dict[str, Callable[[T], Iterator[Finding]]], subject: T
) -> tuple[list[Finding], dict[str, str]]:
    findings, not_checked = [], {}
    for name, check in checks.items():
        try:
            for finding in check(subject):
                findings.append(finding)  # noqa: PERF402  What came before an Unread counts.
        except Unread as unread:
            not_checked[name] = unread.reason
    return findings, not_checked


def _judged(look: Look) -> tuple[list[Finding], dict[str, str]]:
    """A GPU's own findings, and what could not be checked."""
    if look.gpu.state == "ok":
        return _checked(GPU_CHECKS, look)
    # Nothing of it can be read, or little that can be relied on: one reason, not one per check.
    findings: list[Finding] = []
    if look.snapshot.failure is None:
        findings += presence.state(look)
        if look.get("recovery_action") is not None:
            findings += presence.recovery_action(look)
    return findings, {READINGS: look.gpu.error or look.gpu.state}


def _verdict(
    look: Look, findings: Sequence[Finding], not_checked: dict[str, str], *, stale: bool
) -> GpuVerdict:
    own = [finding for finding in findings if finding.gpu_index == look.index]
    return GpuVerdict(
        gpu_index=look.index,
        uuid=look.gpu.uuid,
        pci_bus_id=look.gpu.pci_bus_id,
        name=look.gpu.name,
        verdict=_worst(
            [_of(one) for one in own]
            + ["unknown" if stale or not _looked_at(look, not_checked) else "healthy"]
        ),
        findings=tuple(finding.code for finding in own),
        not_checked=not_checked,
    )


def _looked_at(look: Look, not_checked: dict[str, str]) -> bool:
    """Whether enough of a GPU was checked to call it healthy."""
    if look.gpu.state != "ok":
        return False
    refused = [not_checked[name] for name in ESSENTIAL if name in not_checked]
    if any(_may_pass(reason) for reason in refused):
        return False
    if all(not_checked.get(name) == MIG_ACTIVE for name in MEMORY_WORDS):
        return "recovery_action" not in not_checked
    return any(name not in not_checked for name in WORDS)


def _may_pass(reason: str) -> bool:
    error = reason.startswith("error(") and reason != _NO_SUCH_QUESTION
    return error or reason in _PASSING


def _of(finding: Finding) -> Verdict:
    return _VERDICTS[finding.severity]


def _worst(verdicts: list[Verdict]) -> Verdict:
    order: tuple[Verdict, ...] = ("failed", "degraded", "unknown", "healthy")
    return min(verdicts, key=order.index)

"""Rules on a node as a whole: NVML, whether it answers, how many GPUs it counts, persistence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mcp_gpu.gpu.actions import advice
from mcp_gpu.gpu.errors import Code as Nvml
from mcp_gpu.gpu.health.codes import CODES
from mcp_gpu.gpu.health.look import Look, Unread
from mcp_gpu.gpu.health.model import Evidence, Finding, Severity
from mcp_gpu.gpu.health.xids import bursts_on
from mcp_gpu.gpu.model import Failure, Snapshot, Waiting
from mcp_gpu.gpu.xid.model import Burst

SLOW_CALL_SECONDS: Final = 5.0
"""A warning from here on: nobody who asks may hear `healthy` while the driver hangs. The slowest
healthy calls, first handles without persistence mode, take 1 to 3 s."""

HANG_SECONDS: Final = 45.0
"""After this the driver itself gives up on its firmware and writes Xid 119."""

GSP_XIDS: Final = frozenset({119, 120})

GSP_XID_SECONDS: Final = 600.0
"""How long before a hang began an Xid of the firmware may belong to it. UNVERIFIED."""

STALE_SECONDS: Final = 90.0
"""Readings older than this, and than four periods of slow readings, are stale."""

_STALE_PERIODS: Final = 4


@dataclass(frozen=True, slots=True)
class Site:
    """A node as its rules see it."""

    snapshot: Snapshot
    looks: Sequence[Look]
    bursts: Sequence[Burst]
    expected_gpus: int | None
    at: float
    period_seconds: float | None
    """Of slow readings, where there have been two."""

    @property
    def expected(self) -> tuple[int, str]:
        """How many GPUs there should be, and who says so."""
        if self.expected_gpus is not None:
            return self.expected_gpus, "as configured"
        return self.snapshot.gpu_count_expected or 0, "the most seen so far"

    @property
    def stale_seconds(self) -> float | None:
        """The age of readings that are too old to judge by, or None."""
        taken = self.snapshot.fast_at
        if self.snapshot.state != "ok" or taken is None:
            return None
        age = self.at - taken
        limit = max(STALE_SECONDS, _STALE_PERIODS * (self.period_seconds or 0))
        return age if age > limit else None


def nvml(site: Site) -> Iterator[Finding]:
    """Whether NVML can be used. Raises: Unread: no GPU can be seen."""
    snapshot = site.snapshot
    if snapshot.failure is not None:
        yield _failure(site, snapshot.failure)
        raise Unread(snapshot.failure.name)
    if snapshot.state == "starting":
        raise Unread("NVML has not been read yet")
    if not snapshot.gpus:
        raise Unread("NVML counts no GPU")


def _failure(site: Site, failure: Failure) -> Finding:
    evidence = (
        Evidence(reading="nvml", value=failure.name, unit=f"code {failure.code}",
                 note=failure.message),
    )  # fmt: skip
    if failure.code in {Nvml.LIBRARY_NOT_FOUND, Nvml.DRIVER_NOT_LOADED}:
        return _absent(site, failure, evidence)
    if failure.code == Nvml.LIB_RM_VERSION_MISMATCH:
        title = "The driver's library and its kernel module are of different versions."
        return CODES["driver_mismatch"].finding(None, title, evidence, advice=failure.message)
    if failure.code == Nvml.NO_PERMISSION:
        title = "This agent may not open the NVIDIA driver."
        return CODES["nvml_no_permission"].finding(None, title, evidence, advice=failure.message)
    if failure.code in {Nvml.OPERATING_SYSTEM, Nvml.UNKNOWN}:
        return CODES["nvml_failing"].finding(
            None,
            "NVML does not start: this agent's container has lost its devices, or the driver is "
            "broken.",
            evidence,
            severity="warning",
            action="CHECK_ACCESS",
            advice=failure.message,
            confidence="medium",
        )
    action = {
        Nvml.INSUFFICIENT_POWER: "CHECK_SEATING",
        Nvml.IRQ_ISSUE: "CHECK_SEATING",
        Nvml.CORRUPTED_INFOROM: "RUN_FIELD_DIAG",
    }.get(Nvml(failure.code) if failure.code in set(Nvml) else Nvml.UNKNOWN)
    return CODES["nvml_failing"].finding(
        None, f"NVML does not start: {failure.name}.", evidence, action=action, confidence="medium"
    )


def _absent(site: Site, failure: Failure, evidence: tuple[Evidence, ...]) -> Finding:
    """No driver: how bad that is depends on whether there are GPUs for one."""
    expected, why = site.expected
    title = "There is no NVIDIA driver here, or it is not ready"
    if not expected:
        return CODES["nvml_absent"].finding(
            None, f"{title}.", evidence, severity="info", action="NONE", advice=failure.message
        )
    configured = site.expected_gpus is not None
    # Without a library it may be this agent's container alone that has no driver.
    certain = configured and failure.code == Nvml.DRIVER_NOT_LOADED
    return CODES["nvml_absent"].finding(
        None,
        f"{title}, and {expected} GPU(s) should be here.",
        (*evidence, Evidence(reading="gpu_count", value=None, note=f"expected {expected}, {why}")),
        severity="critical" if configured else "warning",
        advice=failure.message,
        confidence="high" if certain else "medium",
    )


def answering(site: Site) -> Iterator[Finding]:
    """Whether the driver answers, and how old what it last said is."""
    waiting, stale = site.snapshot.waiting, site.stale_seconds
    if waiting is not None:
        yield _waiting(site, waiting)
    elif stale is not None:
        yield CODES["readings_stale"].finding(
            None,
            f"The readings of this node are {stale:.0f} s old, and no call explains it.",
            (Evidence(reading="fast_at", value=round(stale), unit="s old"),),
            advice="Look at this agent's log and load: its reading thread is late or has ended.",
            confidence="medium",
        )
    if stale is not None:
        raise Unread(f"the last are {stale:.0f} s old")


def _waiting(site: Site, waiting: Waiting) -> Finding:
    evidence = [
        Evidence(
            reading="waiting", value=round(waiting.seconds, 1), unit="s",
            note=f"in {waiting.call}",
        )
    ]  # fmt: skip
    began = site.at - waiting.seconds
    firmware = [
        burst
        for burst in bursts_on(site.bursts, site.looks, waiting.gpu_index)
        if burst.first.code in GSP_XIDS and burst.last_at >= began - GSP_XID_SECONDS
    ]
    if firmware:
        evidence += [
            Evidence(
                reading="xid",
                value=burst.first.code,
                age_seconds=round(max(0.0, site.at - burst.last_at), 1),
                note=f"on {burst.first.bus_id}" if burst.first.bus_id else "",
            )
            for burst in firmware
        ]
        known = any(
            look.index == waiting.gpu_index and look.gpu.pci_bus_id is not None
            for look in site.looks
        )
        return CODES["gsp_timeout"].finding(
            waiting.gpu_index,
            f"The GPU's firmware has stopped: {waiting.message}.",
            tuple(evidence),
            advice=None
            if known
            else "It is not known which GPU is waited for: take the one that the Xid names, with "
            f"its bus id for --id. {advice('RESET_GPU')}",
            confidence="high" if known else "medium",
        )
    severity: Severity = "info"
    if waiting.seconds >= SLOW_CALL_SECONDS:
        severity = "critical" if waiting.seconds >= HANG_SECONDS else "warning"
    return CODES["nvml_not_answering"].finding(
        waiting.gpu_index,
        f"{waiting.message}.",
        tuple(evidence),
        severity=severity,
        action=None if severity == "critical" else "NONE",
        advice="Look for Xid 119, 120 or 79 in the kernel log. A call that is blocked in the "
        "driver cannot be ended: if it stays, drain the node and reboot it."
        if severity != "info"
        else "Nothing to do now: look again in some seconds.",
        confidence="medium",
    )


def count(site: Site) -> Iterator[Finding]:
    """How many GPUs there are, less those that are told of as lost."""
    counted = site.snapshot.gpu_count
    if counted is None:
        return  # NVML cannot be used, which is told.
    expected, why = site.expected
    told = sum(1 for gpu in site.snapshot.gpus if gpu.state == "lost" and gpu.index >= counted)
    missing = expected - counted - told
    if missing > 0:
        yield CODES["gpu_count_low"].finding(
            None,
            f"{missing} GPU(s) are missing: NVML counts {counted} of {expected}.",
            (Evidence(reading="gpu_count", value=counted, note=f"expected {expected}, {why}"),),
            confidence="medium",
        )


def persistence(site: Site) -> Iterator[Finding]:
    """One finding for the node, not one per GPU."""
    read = [look for look in site.looks if look.get("persistence_mode") is not None]
    if not read:
        if unread := [look for look in site.looks if look.gpu.state == "ok"]:
            raise Unread(unread[0].reason("persistence_mode"))
        return
    off = [look.index for look in read if not look.get("persistence_mode")]
    if off:
        yield CODES["persistence_off"].finding(
            None,
            f"Persistence mode is off on {len(off)} of {len(read)} GPUs.",
            (
                Evidence(
                    reading="persistence_mode", value=False,
                    age_seconds=read[0].age("persistence_mode"),
                    note=f"GPU {', '.join(map(str, off))}",
                ),
            ),
            advice="Run nvidia-persistenced on the node if starts of programs should be quick.",
        )  # fmt: skip

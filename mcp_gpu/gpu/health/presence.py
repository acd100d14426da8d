"""Rules on a GPU as a whole: the driver's own verdict, lost, unreadable, not ours to open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mcp_gpu.gpu.actions import recovery, recovery_severity
from mcp_gpu.gpu.errors import Code as Nvml
from mcp_gpu.gpu.health.codes import CODES
from mcp_gpu.gpu.health.look import Look
from mcp_gpu.gpu.health.model import Evidence, Finding

_RESET_REQUIRED: Final = f"error({int(Nvml.RESET_REQUIRED)})"

_UNREADABLE: Final = {
    "timeout": "RESET_GPU",
    f"error({int(Nvml.INSUFFICIENT_POWER)})": "CHECK_SEATING",
    f"error({int(Nvml.IRQ_ISSUE)})": "CHECK_SEATING",
    f"error({int(Nvml.CORRUPTED_INFOROM)})": "RUN_FIELD_DIAG",
}
"""What a GPU that gives no answer needs, by the reason; else a reboot."""


def recovery_action(look: Look) -> Iterator[Finding]:
    """The driver's word. Leads all others."""
    asked = look.read("recovery_action")
    if asked == "none":
        return
    action = recovery(asked)
    yield CODES["recovery_action"].finding(
        look.index,
        f"The driver asks for a recovery of GPU {look.index}: {asked.replace('_', ' ')}.",
        (look.evidence("recovery_action"),),
        severity=recovery_severity(action),
        action=action,
    )


def state(look: Look) -> Iterator[Finding]:
    """Whether the GPU can be read at all."""
    gpu = look.gpu
    reasons = set(gpu.unavailable.values())
    evidence = (
        Evidence(
            reading="state", value=gpu.state, age_seconds=look.age("temperature_celsius"),
            note=gpu.error or "",
        ),
    )  # fmt: skip
    if gpu.state == "lost":
        yield CODES["gpu_lost"].finding(
            look.index, f"GPU {look.index} has fallen off the bus.", evidence
        )
    elif _RESET_REQUIRED in reasons:
        yield CODES["reset_required"].finding(
            look.index, f"GPU {look.index} must be reset before it can be used.", evidence
        )
    elif gpu.state == "unreadable" and "no_permission" in reasons:
        yield CODES["gpu_no_permission"].finding(
            look.index, f"This agent may not open GPU {look.index}.", evidence
        )
    elif gpu.state == "unreadable":
        actions = (_UNREADABLE[reason] for reason in sorted(reasons) if reason in _UNREADABLE)
        yield CODES["gpu_unreadable"].finding(
            look.index,
            f"The driver counts GPU {look.index} and gives no answer for it.",
            evidence,
            action=next(actions, None),
            confidence="medium",
        )

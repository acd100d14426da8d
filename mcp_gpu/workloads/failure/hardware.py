"""What the node's GPUs went through in the window, and which of it was the pod's own affair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from mcp_gpu.gpu.actions import advice
from mcp_gpu.gpu.actions import weight as heaviness
from mcp_gpu.gpu.health.model import Confidence, Finding, GpuVerdict
from mcp_gpu.gpu.xid.catalogue import entry
from mcp_gpu.gpu.xid.report import DeviceXids, XidGroup
from mcp_gpu.workloads.failure.model import Category, Cause, Fact, HeldGpu, Truth, Weight
from mcp_gpu.workloads.failure.scene import Scene

__all__ = ["REPEATING", "Sight", "grave", "hardware", "of_peer"]

FRESH_SECONDS: Final = 900.0
"""A finding has no time of its own, but for now: so long after a death it may be its cause."""

NEAR_SECONDS: Final = 120.0
"""An error that ends its own program at once has ended it where no more lies between."""

REPEATING: Final = (13, 31)
"""Errors of programs, which on one GPU again and again may be the GPU's."""

_OF_XID: Final[dict[Category, frozenset[int]]] = {
    "gpu_hardware": frozenset({54, 79, 109, 110, 167}),
    "gpu_memory_error": frozenset({48, 57, 58, 64, 94, 95, 140, 156, 157, 171, 172}),
    "nvlink": frozenset({74, 121, 136, *range(144, 151), 155, 159, 173}),
    "driver": frozenset({46, 61, 62, 78, 119, 120, 143, 151, 158, 169}),
    "your_code": frozenset(
        {8, 11, 13, 25, 31, 32, 39, 40, 41, 43, 68, 69, 70, 71, 75, 76, 77, 80, 137}
    ),
}
"""What an Xid says of a program that died with it, by NVIDIA's catalogue. 45, 63, 92 and 154 come
with others and say nothing alone."""

_CERTAIN: Final = frozenset({13, 31, 43, 137})
"""Those of programs for which NVIDIA names the program first."""

_CONTAINED: Final = 94
"""It ends the one program that met it, and nothing else."""

_UNCONTAINED: Final = 95

_RISING: Final = frozenset({"ecc_uncorrected_rising", "gpu_lost", "driver_mismatch"})
"""Findings that cannot be older than a pod which ran there a while ago, or that no program can
start beside. Others may be chronic."""

_DISPUTED: Final = frozenset({109})
"""NVIDIA resets the GPU for it; its device plugin takes it for the program's."""

_OF_FINDING: Final[dict[str, Category]] = {
    "gpu_lost": "gpu_hardware",
    "gpu_unreadable": "gpu_hardware",
    "reset_required": "gpu_hardware",
    "recovery_action": "gpu_hardware",
    "pcie_errors": "gpu_hardware",
    "ecc_uncorrected_rising": "gpu_memory_error",
    "sram_threshold_exceeded": "gpu_memory_error",
    "row_remap_failure": "gpu_memory_error",
    "row_remap_pending": "gpu_memory_error",
    "memory_unrepairable": "gpu_memory_error",
    "nvlink_down": "nvlink",
    "nvlink_errors": "nvlink",
    "nvlink_recovery_failed": "nvlink",
    "fabric_failed": "nvlink",
    "fabric_not_ready": "nvlink",
    "fabric_unhealthy": "nvlink",
    "driver_mismatch": "driver",
    "nvml_absent": "driver",
    "nvml_failing": "driver",
    "nvml_not_answering": "driver",
    "gsp_timeout": "driver",
}

_GENERIC: Final = frozenset({"recovery_action", "reset_required"})
"""What asks for a repair without saying of what."""

_SAYS: Final[dict[Category, str]] = {
    "gpu_hardware": "The GPU that it held failed",
    "gpu_memory_error": "The memory of the GPU that it held lost data",
    "nvlink": "NVLink, or the fabric, of the GPU that it held failed",
    "driver": "The NVIDIA driver or its firmware failed on the GPU that it held",
    "your_code": "The program did on its GPU what it may not",
}


@dataclass(frozen=True, slots=True)
class Sight:
    """What the node's agent tells."""

    node: str
    at: float
    """When it was asked, in Unix seconds."""
    groups: tuple[XidGroup, ...] = ()
    """Of the window's beginning and later."""
    earlier: tuple[XidGroup, ...] = ()
    """Of codes in `REPEATING`, of the day before as well."""
    devices: tuple[DeviceXids, ...] = ()
    findings: tuple[Finding, ...] = ()
    gpus: tuple[GpuVerdict, ...] = ()
    sees_xids: bool = False
    """It answered, and could look; otherwise no Xids means nothing."""
    sees_health: bool = False
    simulated: bool = False

    @property
    def indices(self) -> dict[str, int]:
        """GPUs' indices by uuid."""
        known = {each.uuid: each.gpu_index for each in self.devices if each.gpu_index is not None}
        known |= {each.uuid: each.gpu_index for each in self.gpus}
        return {uuid: index for uuid, index in known.items() if uuid is not None}


def hardware(scene: Scene, sight: Sight, held: Sequence[HeldGpu]) -> Iterator[Cause]:
    """What happened on its GPUs, then on others', which is not blamed.

    Args:
        held: the pod's GPUs; empty where nobody says which.
    """
    own = {each.gpu_index for each in held if each.gpu_index is not None}
    known = bool(held) and all(each.gpu_index is not None for each in held)
    groups = [each for each in sight.groups if _in_window(scene, each)]
    roots = [each for each in groups if each.state != "follows"] or groups
    for group in sorted(roots, key=_heaviness, reverse=True):
        category = _category(group)
        if category is None:
            continue
        if group.gpu_index in own or (group.gpu_index is None and len(held) > 1):
            parted = any(
                each.gpu_index == group.gpu_index and (each.shared or each.mig) for each in held
            )
            yield _own(scene, sight, group, category, parted=parted)
        else:
            yield _other(sight, group, category, known)
    for finding in sorted(sight.findings, key=lambda each: each.code in _GENERIC):
        category = _OF_FINDING.get(finding.code)
        if category is None or finding.severity == "info":
            continue
        mine = finding.gpu_index in own
        if mine or (finding.gpu_index is None and category == "driver"):
            yield _found(scene, sight, finding, category)
        elif finding.severity == "critical":
            yield _found_elsewhere(sight, finding, category, known)


def of_peer(peer: Scene, sight: Sight, held: Sequence[HeldGpu]) -> Iterator[Cause]:
    """What befell the GPUs of another pod of the Job, for which the one explained has waited."""
    for cause in hardware(peer, sight, held):
        if cause.weight is Weight.HARDWARE and cause.not_your_code == "true":
            says = f"It waited for pod {peer.name} on {peer.node_name}: {cause.says}"
            yield cause.but(confidence="medium", says=says)


def _heaviness(group: XidGroup) -> int:
    """By what it asked for then: what has been done since takes nothing from it."""
    known = None if group.kind == "sxid" else entry(group.code)
    return max(heaviness(group.action), 0 if known is None else heaviness(known.action))


def grave(group: XidGroup) -> bool:
    """Whether it was critical then, which `severity` says of now."""
    known = None if group.kind == "sxid" else entry(group.code)
    return group.severity == "critical" or (known is not None and known.severity == "critical")


def _in_window(scene: Scene, group: XidGroup) -> bool:
    begin, end = scene.window
    return _seconds(group.first) <= end and _seconds(group.last) >= begin


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()


def _category(group: XidGroup) -> Category | None:
    if group.kind == "sxid":
        return "nvlink"
    for category, codes in _OF_XID.items():
        if group.code in codes:
            # Many of the links' errors ask for nothing, which the line's registers decide.
            harmless = category == "nvlink" and group.bucket == "IGNORE"
            return None if harmless else category
    return None


def _told(group: XidGroup) -> str:
    noun = "SXid" if group.kind == "sxid" else "Xid"
    times = f" x{group.count}" if group.count > 1 else ""
    return f"{noun} {group.code}{times} on {group.device}: {group.name}: {group.explanation}"


def _xid_fact(sight: Sight, group: XidGroup) -> Fact:
    return Fact.of(f"Xids, agent of {sight.node}", _told(group), _seconds(group.first))


def _own(scene: Scene, sight: Sight, group: XidGroup, category: Category, *, parted: bool) -> Cause:
    """
    Args:
        parted: others share the GPU, or hold other instances of it.
    """
    noun = "SXid" if group.kind == "sxid" else "Xid"
    named = f"{noun} {group.code} on {group.device}"
    if category == "your_code":
        return _programs(scene, sight, group, named, parted=parted)
    weight, facts = Weight.HARDWARE, [_xid_fact(sight, group)]
    contained = group.kind != "sxid" and group.code == _CONTAINED
    confidence: Confidence = "high" if contained or grave(group) else "medium"
    truth: Truth = "true"
    if group.code in _DISPUTED or group.gpu_index is None:
        confidence, truth = "low", "unknown"
    if contained and _survived(scene, group):
        facts.append(_survived_fact(scene, sight, group, named))
        weight, confidence, truth = Weight.SEEN, "low", "unknown"
    if parted and category == "gpu_memory_error" and group.code != _UNCONTAINED:
        facts.append(_parted_fact(group))
        weight, confidence, truth = Weight.SEEN, "low", "unknown"
    return Cause(
        weight,
        category,
        truth,
        confidence,
        f"{_SAYS[category]}: {named}, {group.name}.",
        _step(sight, group),
        tuple(facts),
    )


def _survived(scene: Scene, group: XidGroup) -> bool:
    """Whether the program lived on for long after it."""
    return scene.died is not None and scene.died - _seconds(group.last) > NEAR_SECONDS


def _survived_fact(scene: Scene, sight: Sight, group: XidGroup, named: str) -> Fact:
    minutes = round(((scene.died or 0.0) - _seconds(group.last)) / 60)
    text = f"{named} came {minutes} min before the death, and ends its own program at once"
    return Fact.of(f"Xids, agent of {sight.node}", text, _seconds(group.last))


def _parted_fact(group: XidGroup) -> Fact:
    text = f"others have a part of {group.device}: it may be another's program"
    return Fact.of("allocation", text)


def _step(sight: Sight, group: XidGroup) -> str:
    if group.state == "settled":
        return (
            "Run it again: the GPU has been reset since, or its node rebooted. If it comes back, "
            "have the board looked at."
        )
    return f"{group.action}: {advice(group.action, group.gpu_index)}"


def _programs(scene: Scene, sight: Sight, group: XidGroup, named: str, *, parted: bool) -> Cause:
    """An error of a program: its own, unless other pods have met it on the same GPU, too."""
    facts = [_xid_fact(sight, group)]
    began = scene.pod_began
    before = [
        each
        for each in sight.earlier
        if (each.code, each.gpu_index) == (group.code, group.gpu_index)
        and began is not None
        and _seconds(each.first) < began
    ]
    if group.code in REPEATING and before:
        at = _seconds(before[0].first)
        text = f"Xid {group.code} on {group.device} before this pod came: of another pod"
        facts.append(Fact.of(f"Xids, agent of {sight.node}", text, at))
        return Cause(
            Weight.HARDWARE, "gpu_hardware", "unknown", "low",
            f"{named} is a program's error, but other pods have met it on the same GPU.",
            "Run the same program on another GPU; if it works there, drain this one and run the "
            "DCGM diagnostic (dcgmi diag -r 3), then NVIDIA's field diagnostic.",
            tuple(facts),
        )  # fmt: skip
    certain = group.code in _CERTAIN and not parted
    if parted:
        facts.append(_parted_fact(group))
    survived = group.code in _CERTAIN and _survived(scene, group)
    if survived:
        facts.append(_survived_fact(scene, sight, group, named))
    return Cause(
        Weight.HINT if survived else Weight.OWN_XID, "your_code", "false" if certain else "unknown",
        "high" if certain else "low",
        f"{_SAYS['your_code']}: {named}, {group.name}.",
        "Run it under compute-sanitizer, or with CUDA_LAUNCH_BLOCKING=1, to find the kernel; the "
        "GPU is well and needs nothing.",
        tuple(facts),
    )  # fmt: skip


def _other(sight: Sight, group: XidGroup, category: Category, known: bool) -> Cause:
    """An error on a GPU that is not the pod's, or not known to be."""
    fact = _xid_fact(sight, group)
    noun = "SXid" if group.kind == "sxid" else "Xid"
    named = f"{noun} {group.code} on {group.device}"
    return _hint(category, named, fact, known)


def _hint(category: Category, named: str, fact: Fact, known: bool) -> Cause:
    """
    Args:
        known: it is known which GPUs the pod held.
    """
    said = (
        f"{named}: this pod did not hold that GPU, and it is not blamed"
        if known
        else f"{named}: whether this pod held that GPU is not known"
    )
    note = fact.model_copy(update={"text": f"{fact.text} ({said.partition(': ')[2]})"})
    truth: Truth = "false" if known else "unknown"
    return Cause(Weight.HINT, category, truth, "low", said, "", (note,))


def _found(scene: Scene, sight: Sight, finding: Finding, category: Category) -> Cause:
    recent = scene.died is None or sight.at - scene.died <= FRESH_SECONDS
    grave = finding.severity == "critical"
    late = "" if recent else ", long after the death: it proves nothing"
    fact = Fact.of(
        f"health, agent of {sight.node}", f"{finding.code}: {finding.title} (seen now{late})",
        sight.at,
    )  # fmt: skip
    driver = category == "driver"
    says = f"{_SAYS[category]}: {finding.title}"
    if driver:
        says = f"The NVIDIA driver of its node is out of order: {finding.title}"
    return Cause(
        Weight.SEEN if recent and grave else Weight.HINT,
        category,
        "true" if recent and grave and finding.code in _RISING else "unknown",
        "medium" if finding.code in _RISING else "low",
        says,
        f"{finding.action}: {finding.advice}",
        (fact,),
    )


def _found_elsewhere(sight: Sight, finding: Finding, category: Category, known: bool) -> Cause:
    fact = Fact.of(
        f"health, agent of {sight.node}", f"{finding.code}: {finding.title} (seen now)", sight.at
    )
    where = "the node" if finding.gpu_index is None else f"GPU {finding.gpu_index}"
    return _hint(category, f"{finding.code} on {where}", fact, known)

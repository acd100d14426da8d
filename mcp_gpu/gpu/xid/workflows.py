"""What NVIDIA's workflows make of an Xid in its company, where the code alone does not decide.

The workflows are the resolution buckets of NVIDIA's Xid catalogue (WORKFLOW_XID_13, _31, _45, _48,
WORKFLOW_NVLINK_ERR, XID_154, XID_154_EVAL, XID_137_FLOW), in this project's words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mcp_gpu.gpu.health.model import Severity
from mcp_gpu.gpu.xid.catalogue import entry
from mcp_gpu.gpu.xid.explain import decode
from mcp_gpu.gpu.xid.incidents import (
    CLEANUP,
    CLOSE_SECONDS,
    NVLINK,
    PAGE_FAULT,
    RECOVERY,
    Incident,
    Scene,
)

__all__ = ["Ruling", "pattern", "rule"]

RUNS: Final = 3
"""Runs that fail on one and the same GPU, of some eight, before the GPU is suspected."""

APART_SECONDS: Final = 1800.0
"""Runs that end sooner after each other are one program that is restarted and fails again, on the
GPU that it is given again: Kubernetes waits up to five minutes. UNVERIFIED."""

GRAPHICS_EXCEPTION: Final = 13
NVLINK_BEFORE_5: Final = 74
DOUBLE_BIT: Final = 48
REMAPPED, REMAP_FAILED = 63, 64
DRAM, SRAM = 171, 172

SUSPECT: Final = (
    "run the same on another GPU first; if the error stays with this GPU, test it with DCGM's EUD, "
    "and with a field diagnosis if that passes"
)
"""What the workflows of 13 and 31 come to."""

UNREAD_LINE: Final = "What its line says decides, and "

_UNUSED: Final = (
    "The catalogue lists it as unused on today's boards, and its bucket is the same for all such "
    "codes: follow the driver's recovery action."
)


@dataclass(frozen=True, slots=True)
class Ruling:
    """What to do about an Xid, and what in its company makes it so."""

    action: str
    note: str = ""
    severity: Severity | None = None
    """Where that is clearer than by the action; None: it is not."""


def rule(incident: Incident, scene: Scene) -> Ruling:
    """What to do about one incident by itself; what follows from it has a ruling of its own."""
    if incident.cause is not None:
        return _following(incident, incident.cause)
    ruling = _alone(incident)
    fabric = _fabric(incident, scene)
    return replace(ruling, note=f"{ruling.note} {fabric}".strip())


def pattern(here: Sequence[Incident], scene: Scene, *, gpu_count: int) -> str:
    """What all incidents of one code on one GPU show together; empty: nothing."""
    first = here[0]
    if first.kind == "xid" and first.code == GRAPHICS_EXCEPTION:
        return _units(here, scene)
    if first.kind == "xid" and first.code == PAGE_FAULT:
        return _spread(here, scene, gpu_count)
    return ""


def _alone(incident: Incident) -> Ruling:
    action = incident.explanation.action
    if incident.kind == "sxid":
        return Ruling(action)
    if incident.code in _ALONE:
        return _ALONE[incident.code](incident)
    said = entry(incident.code)
    if said is not None and said.unused:
        return Ruling("NONE", _UNUSED)
    left_to_154 = incident.explanation.bucket == "XID_154_EVAL" or incident.unread
    if left_to_154 or incident.code == NVLINK_BEFORE_5:
        return _evaluated(incident)
    return Ruling(action)


def _following(incident: Incident, cause: Incident) -> Ruling:
    where = "" if cause.bus_id == incident.bus_id else f" on {cause.bus_id}"
    if incident.swept:
        return Ruling("NONE", "The GPU was off the bus (Xid 79) by then: a consequence.")
    if incident.explanation.caused_by is not None:
        note = f"The driver names Xid {incident.explanation.caused_by} as its cause."
    else:
        note = f"Goes with Xid {cause.code}{where}."
    if incident.code == RECOVERY:
        return _recovery(incident)
    if incident.code == CLEANUP or incident.explanation.bucket == "XID_154_EVAL":
        return Ruling("NONE", note)
    if incident.unread:
        return _unread(incident, note)
    return Ruling(incident.explanation.action, note)


def _unread(incident: Incident, note: str) -> Ruling:
    """What the code alone asks for, which is often more than its line would."""
    why = "no log told it" if incident.unlogged else "it could not be read"
    return Ruling(incident.explanation.action, f"{note} {UNREAD_LINE}{why}.", "warning")


def _cleanup(incident: Incident) -> Ruling:
    named = incident.explanation.caused_by
    if named is not None:
        note = f"The driver names Xid {named} as its cause, which no source has told."
        return Ruling("NONE", note)
    alone = f"No other Xid on this GPU in the {CLOSE_SECONDS:.0f} s before"
    if incident.unlogged:
        alone += " that the driver's events tell; no log was read, and 79 and 119 come in it alone"
    return Ruling(
        "NONE",
        f"{alone}. An application that was killed leaves the same line. NVIDIA asks to restart the "
        "fabric manager only if it comes alone again and again on a node with NVSwitches.",
        "info",
    )


def _double_bit(incident: Incident) -> Ruling:
    company = {other.code for other in incident.followers}
    remap = sorted(company & {REMAPPED, REMAP_FAILED})
    if remap:
        notes = [f"With {' and '.join(map(str, remap))}: the GPU is drained before it is reset."]
    elif incident.unlogged:
        notes = ["No row remapping (63, 64) was seen with it, and no log was read."]
    else:
        notes = ["No row remapping (63, 64) came with it: a reset is enough."]
    if REMAP_FAILED in company:
        notes.append("Row remapping failed (64): if it does so after the reset, contact support.")
    if DRAM in company:
        notes.append("In DRAM (171).")
    if SRAM in company:
        notes.append("In SRAM (172): with sram_threshold_exceeded, a field diagnosis.")
    return Ruling("DRAIN_AND_RESET" if remap else "RESET_GPU", " ".join(notes))


def _evaluated(incident: Incident) -> Ruling:
    """What the driver itself says decides, if it says anything."""
    for other in incident.followers:
        if other.asked is not None:
            return Ruling(other.asked, "The Xid 154 that came with it decides what to do.")
    note = "No Xid 154 that decides came with it."
    if incident.unread:
        return _unread(incident, note)
    return Ruling(incident.explanation.action, note)


def _recovery(incident: Incident) -> Ruling:
    if incident.asked is None:
        return Ruling("NONE", "What it asks for is not in its line, or not known here.")
    if incident.asked == "NONE":
        return Ruling("NONE", "The driver asks for nothing any more.")
    if incident.cause is None:
        return Ruling(incident.asked, "No Xid before it is known: the driver's word stands alone.")
    return Ruling(incident.asked, f"It says what Xid {incident.cause.code} asks for.")


_ALONE: Final[Mapping[int, Callable[[Incident], Ruling]]] = {
    CLEANUP: _cleanup,
    DOUBLE_BIT: _double_bit,
    RECOVERY: _recovery,
}


def _units(here: Sequence[Incident], scene: Scene) -> str:
    """Xid 13: one unit of the GPU again and again, or a program wherever it runs?"""
    gpus = _gpus(here, scene)
    if gpus > 1:
        return f"On {gpus} GPUs of this node: look at the application."
    units = [found for texts in _runs(here) if (found := set(map(_unit, texts)) - {""})]
    every = set[str]().union(*units)
    if len(every) > 1:
        return f"{len(every)} different units: look at the application."
    if len(units) >= RUNS:
        return f"{every.pop()} in each of {len(units)} runs, long after each other: {SUSPECT}."
    return "Too few separate runs to suspect the unit: look at the application."


def _unit(text: str) -> str:
    """`GPC 1 TPC 2`: which of its SMs does not matter."""
    said = decode(GRAPHICS_EXCEPTION, text)
    return " ".join(said.unit.split()[:4]) if said else ""


def _spread(here: Sequence[Incident], scene: Scene, gpu_count: int) -> str:
    """Xid 31: one GPU again and again, or a program on whichever GPU it gets?"""
    gpus = _gpus(here, scene)
    if gpus > 1:
        return f"On {gpus} GPUs of this node: look at the application."
    runs = len(_runs(here))
    if runs < RUNS:
        return "Too few separate runs to suspect the GPU: look at the application."
    if gpu_count == 1:
        return f"{runs} runs, and no other GPU here to compare with: look at the application first."
    return (
        f"{runs} runs, long after each other, on this GPU and none elsewhere on this node: "
        f"{SUSPECT}."
    )


def _gpus(here: Sequence[Incident], scene: Scene) -> int:
    """How many GPUs have had the same code in the same boots."""
    return len({bus_id for incident in here for bus_id in scene.devices(incident)})


def _runs(here: Sequence[Incident]) -> list[list[str]]:
    """The texts of each separate run of a program, as far as they were kept.

    One process is one run, however long it lasts, and so are restarts soon after each other.
    """
    runs: list[list[str]] = []
    seen: set[int | None] = set()
    last: float | None = None
    samples = (sample for incident in here for sample in incident.burst.samples)
    for sample in sorted(samples, key=lambda sample: sample.at):
        soon = last is not None and sample.at - last < APART_SECONDS
        if not runs or not (soon or sample.pid in seen):
            runs.append([])
        runs[-1].append(sample.text)
        seen.add(sample.pid)
        last = sample.at
    return runs


def _fabric(incident: Incident, scene: Scene) -> str:
    """What the other ends of the links said at about the same time."""
    notes = []
    if incident.kind == "sxid":
        gpus = scene.beside(incident, "xid", NVLINK)
        if gpus:
            notes.append(f"At about the same time as {_named(gpus)}: look at those links.")
    elif incident.code in NVLINK:
        switches = scene.beside(incident, "sxid")
        if switches:
            notes.append(f"At about the same time as {_named(switches)}: look at that switch.")
        peers = scene.beside(incident, "xid", NVLINK)
        if peers:
            notes.append(f"At about the same time as {_named(peers)}: look at both ends.")
    return " ".join(notes)


def _named(others: Sequence[Incident]) -> str:
    """Such as `Xid 149 on 0000:53:00`, and how many more devices."""
    first = others[0]
    more = len({other.bus_id for other in others}) - 1
    noun = "Xid" if first.kind == "xid" else "SXid"
    return f"{noun} {first.code} on {first.bus_id or 'a device not named'}" + (
        f" and {more} more" if more else ""
    )

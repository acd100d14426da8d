"""One node as its agent sees it, for a model's or a person's eye."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_gpu.tools.health import do_words, evidence_words
from mcp_gpu.tools.node_model import NodeDescription, NodeVerdict, RecentXids
from mcp_gpu.tools.spans import clipped, counted, numbers

__all__ = ["agent_lines", "driver_line", "gpus_line", "health_lines", "sight_line", "xid_lines"]

LINE_CHARS = 400
MISSED_TOLD = 2


def agent_lines(told: NodeDescription) -> Iterator[str]:
    """All of it."""
    yield f"{told.node}: {told.health.verdict.upper()}  {gpus_line(told)}"
    if told.simulated:
        yield "SIMULATED: no real hardware stands behind this."
    if told.message is not None:
        yield f"! {told.message}"
    yield driver_line(told)
    yield kernel_line(told)
    yield bus_line(told)
    yield from health_lines(told.health)
    yield from xid_lines(told.xids)
    yield sight_line(told)


def gpus_line(told: NodeDescription) -> str:
    """`8x NVIDIA H100 80GB HBM3, MIG on GPU 0-1: 7x 1g.10gb`."""
    if not told.gpus:
        return "no GPUs" if told.state == "ok" else f"GPUs unknown (NVML {told.state})"
    models = " + ".join(f"{count}x {name}" for name, count in told.models.items())
    cut = [gpu.index for gpu in told.gpus if gpu.mig]
    if not cut:
        return models
    profiles: dict[str, int] = {}
    for gpu in told.gpus:
        for profile, count in (gpu.mig_profiles or {}).items():
            profiles[profile] = profiles.get(profile, 0) + count
    shape = ", ".join(f"{count}x {profile}" for profile, count in sorted(profiles.items()))
    unlisted = any(gpu.mig and gpu.mig_profiles is None for gpu in told.gpus)
    none = "instances not all to be listed" if unlisted else "no instances"
    return f"{models}, MIG on GPU {numbers(cut)}: {shape or none}"


def driver_line(told: NodeDescription) -> str:
    """`Driver 580.105.08 (module 580.105.08, library 580.105.08), CUDA 13.0`."""
    around = told.surroundings
    module = around.module_version or _why(told, "module_version")
    library = around.library_version or _why(told, "library_version")
    cuda = f", CUDA {told.cuda_version}" if told.cuda_version else ""
    return f"Driver {told.driver_version or 'unknown'} (module {module}; library {library}){cuda}"


def kernel_line(told: NodeDescription) -> str:
    """`Kernel 6.8.0, Ubuntu 24.04; up 3.2 days since 2026-11-26T00:10:00Z`."""
    around = told.surroundings
    parts = [f"Kernel {around.kernel or _why(told, 'kernel')}"]
    parts += [around.os] if around.os else []
    parts += [f"container runtime {around.runtime}"] if around.runtime else []
    up = f"; {uptime(told)}" if told.booted_at else ""
    return ", ".join(parts) + up


def uptime(told: NodeDescription) -> str:
    """`up 3.2 days since 2026-11-26T00:10:00Z`."""
    seconds = told.uptime_seconds
    if seconds is None:
        return f"started {told.booted_at}, by a clock that was set back since"
    days = f"{seconds / 86_400:.1f} days" if seconds >= 86_400 else f"{seconds / 3600:.1f} hours"
    return f"up {days} since {told.booted_at}"


def bus_line(told: NodeDescription) -> str:
    """`PCI bus: 8 NVIDIA GPUs (NVML counts 8)`."""
    bus = told.surroundings.bus
    nvml = "cannot be asked" if told.gpu_count is None else f"counts {told.gpu_count}"
    if bus.gpus is None:
        return f"PCI bus: not seen ({bus.why}); NVML {nvml}"
    silent = [gpu.address for gpu in bus.gpus if gpu.answers is False]
    passed_on = [gpu.address for gpu in bus.gpus if gpu.passed_on]
    notes = [f"NVML {nvml}"]
    notes += [f"fallen off: {', '.join(silent)}"] if silent else []
    notes += [f"for virtual machines: {', '.join(passed_on)}"] if passed_on else []
    return f"PCI bus: {counted(len(bus.gpus), 'NVIDIA GPU')} ({'; '.join(notes)})"


def health_lines(health: NodeVerdict) -> Iterator[str]:
    """The verdict and the worst findings."""
    yield f"Health: {health.verdict.upper()} ({health.gpus_by_verdict})"
    for finding in health.findings:
        where = "node" if finding.gpu_index is None else f"GPU {finding.gpu_index}"
        title = f"  {finding.severity.upper()} {where} {finding.code}: {finding.title}"
        yield clipped(title, LINE_CHARS)
        if finding.evidence:
            yield clipped(f"    seen: {evidence_words(finding.evidence, 3)}", LINE_CHARS)
        yield clipped(f"    do: {do_words(finding.action, finding.advice)}", LINE_CHARS)
    if health.findings_omitted:
        yield f"  {counted(health.findings_omitted, 'more finding')}: get_gpu_health tells them"
    if health.not_checked:
        yield f"  {counted(health.not_checked, 'check')} not made: get_gpu_health says why"


def xid_lines(xids: RecentXids) -> Iterator[str]:
    """What came lately, and whether some may be missing."""
    if xids.blind and not xids.xids:
        yield f"Xids since {xids.since}: UNKNOWN, no source of them can be read"
    else:
        count = counted(xids.xids, "Xid") if xids.xids else "no Xids"
        yield f"Xids since {xids.since}: {count}"
    for each in xids.groups:
        kind = "SXid" if each.kind == "sxid" else "Xid"
        said = f"  {each.severity.upper()} {each.device} {kind} {each.code} x{each.count}"
        state = "" if each.state == "open" else f" ({each.state})"
        yield clipped(f"{said}, last {each.last}{state}: {each.name}: {each.action}", LINE_CHARS)
    if xids.groups_omitted:
        yield f"  {counted(xids.groups_omitted, 'more group')}: analyze_xid_errors tells them"
    for missed in xids.missed[:MISSED_TOLD]:
        yield clipped(f"  ! {missed}", LINE_CHARS)


def sight_line(told: NodeDescription) -> str:
    """What the agent may see, and what not, with the reasons."""
    senses = told.sight.senses
    sees = ", ".join(sense.name for sense in senses if sense.works)
    blind = "; ".join(f"{sense.name} ({sense.why})" for sense in senses if not sense.works)
    line = f"The agent (uid {told.sight.uid}) sees {sees or 'nothing'}"
    return f"{line}; not {blind}" if blind else line


def _why(told: NodeDescription, name: str) -> str:
    return f"unknown: {told.surroundings.unavailable.get(name, 'not told')}"

"""Holds a node's processes against its GPUs' memory and what its pods were given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from mcp_gpu.gpu.errors import NOT_SUPPORTED
from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.gpu.privileges import PROCESSES
from mcp_gpu.gpu.processes import DRIVER_DEFECT, UTILIZATION, GpuProcess, GpuProcesses
from mcp_gpu.gpu.wire import NOT_REPORTED
from mcp_gpu.node.holdings import Holder, Holdings
from mcp_gpu.node.occupants import Occupancy
from mcp_gpu.node.process_pods import PodProcess
from mcp_gpu.tools.allocation import SeenProcess, SeenProcesses, pods_of, strays
from mcp_gpu.tools.inventory import reading_age, trouble
from mcp_gpu.tools.processes_model import GpuUse, NodeProcesses, ProcessRow, State
from mcp_gpu.tools.processes_text import process_count
from mcp_gpu.tools.spans import numbers

__all__ = ["account", "seen_processes"]

UNACCOUNTED_BYTES: Final = 512 << 20
"""Memory beyond what processes hold that is brought to attention. Readings are not all of one
moment, and the driver keeps some MiB for itself: the bound is this project's choice."""

UNLISTED: Final = 16
"""Pids told that are in no list."""

OTHER_NAMESPACE: Final = "pid_namespace"
"""Reason for what a pid would tell, where pids are of another namespace."""

UNREAD: Final = "processes have not been read yet"

OF_NONE: Final = {"pod_uid": "of_no_pod", "container_id": "of_no_container"}
"""Reasons that are knowledge."""

NOT_HELD: Final = "no_holder_known"

_VIRTUAL: Final = frozenset({"host_vgpu", "host_vsga"})
"""Modes in which virtual machines hold memory."""


def account(
    node: str, snapshot: Snapshot, occupancy: Occupancy, holdings: Holdings | None, *, limit: int
) -> NodeProcesses:
    """The answer of one node.

    Args:
        holdings: which pods hold which GPUs; None where nobody says.
        limit: most processes to list.
    """
    found = (
        {}
        if occupancy.processes is None
        else {gpu.gpu_index: gpu for gpu in occupancy.processes.gpus}
    )
    outside = _strays(snapshot, occupancy, holdings)
    rows = [
        _row(found[gpu.index], process, gpu, occupancy, holdings, outside)
        for gpu in snapshot.gpus
        if gpu.index in found
        for process in found[gpu.index].processes
    ]
    uses = tuple(_use(gpu, found.get(gpu.index), occupancy) for gpu in snapshot.gpus)
    attention = tuple(_attention(uses, found, rows, occupancy))
    told = sorted(rows, key=_order)[:limit]
    unavailable: dict[str, str] = {}
    if occupancy.processes is None:
        unavailable["processes"] = unavailable["age_seconds"] = UNREAD
    elif occupancy.blind:
        unavailable["processes"] = f"{occupancy.blind}; takes {PROCESSES}"
    known = not occupancy.blind and any(use.processes is not None for use in uses)
    if not known:
        unavailable.setdefault("processes", "they cannot be read on any GPU")
        unavailable["processes_count"] = unavailable["processes"]
    if outside is None:
        unavailable["strays"] = _why_no_strays(snapshot, occupancy, holdings)
    return NodeProcesses(
        node=node,
        state=_state(snapshot, uses, attention, occupancy),
        message=trouble(snapshot),
        simulated=snapshot.simulated,
        host_processes=not occupancy.blind,
        attention=attention,
        gpus=uses,
        processes_count=len({row.pid for row in rows}) if known else None,
        processes=tuple(told),
        processes_omitted=len(rows) - len(told),
        strays=None if outside is None else len({pid for pid, _ in outside}),
        age_seconds=None
        if occupancy.processes is None
        else reading_age(occupancy.processes.read_at),
        waiting=snapshot.waiting,
        unavailable=unavailable,
    )


def seen_processes(snapshot: Snapshot, occupancy: Occupancy) -> SeenProcesses:
    """The processes of which it is known whether they are of a pod, and of which."""
    if occupancy.processes is None:
        return SeenProcesses((), UNREAD)
    if occupancy.blind:
        return SeenProcesses((), f"{occupancy.blind}; takes {PROCESSES}")
    uuids = {gpu.index: gpu.uuid for gpu in snapshot.gpus}
    seen: list[SeenProcess] = []
    unknown = 0
    for gpu in occupancy.processes.gpus:
        for process in gpu.processes:
            whose = occupancy.whose.get(process.pid)
            if whose is None or whose.podless is None:
                unknown += 1
                continue
            seen.append(
                SeenProcess(
                    process.pid, gpu.gpu_index, uuids.get(gpu.gpu_index),
                    whose.command or "", process.memory_bytes, whose.pod_uid,
                )
            )  # fmt: skip
    partly = [gpu.gpu_index for gpu in occupancy.processes.gpus if not gpu.complete]
    why = [f"not on GPU {numbers(partly)}"] if partly else []
    if unknown:
        why.append(f"whose {process_count(unknown)} are is not known")
    return SeenProcesses(tuple(seen), "; ".join(why))


def _strays(
    snapshot: Snapshot, occupancy: Occupancy, holdings: Holdings | None
) -> set[tuple[int, int]] | None:
    """Pid and GPU of each process outside of any allocation; None: not known."""
    if _why_no_strays(snapshot, occupancy, holdings) or holdings is None:
        return None
    seen = seen_processes(snapshot, occupancy)
    found = strays(seen, holdings, pods_of(holdings.holders))
    return {(stray.pid, stray.gpu_index) for stray in found}


def _why_no_strays(snapshot: Snapshot, occupancy: Occupancy, holdings: Holdings | None) -> str:
    """Why it is not known what is outside of any allocation; empty: it is."""
    if occupancy.processes is None:
        return UNREAD
    if occupancy.blind:
        return OTHER_NAMESPACE
    if holdings is None or holdings.source == "none":
        why = "" if holdings is None else holdings.why
        return why or "which pods hold which GPUs is not known"
    if snapshot.simulated and not any(holder.devices for holder in holdings.holders):
        # A kubelet that runs beside a simulated node has given its GPUs to nobody.
        return "no pod holds simulated GPUs"
    return ""


def _row(
    found: GpuProcesses,
    process: GpuProcess,
    gpu: Gpu,
    occupancy: Occupancy,
    holdings: Holdings | None,
    outside: set[tuple[int, int]] | None,
) -> ProcessRow:
    unavailable: dict[str, str] = {}
    if process.memory_bytes is None:
        unavailable["memory_bytes"] = NOT_SUPPORTED
    return ProcessRow(
        gpu_index=gpu.index,
        mig_uuid=process.mig_uuid,
        pid=process.pid,
        kinds=process.kinds,
        memory_bytes=process.memory_bytes,
        **_shares(found, process, occupancy, unavailable),
        **_whose(process, occupancy, unavailable),
        **_pod(process, gpu, occupancy, holdings, unavailable),
        stray=_stray(process, gpu, occupancy, outside, unavailable),
        unavailable=unavailable,
    )


def _shares(
    found: GpuProcesses, process: GpuProcess, occupancy: Occupancy, unavailable: dict[str, str]
) -> dict[str, int | None]:
    names = ("sm_percent", "memory_percent", "encoder_percent", "decoder_percent")
    used = process.utilization
    if used is None or occupancy.blind:
        # Drivers have been seen that list processes by pids of the caller's namespace and take
        # samples by those of the host's (Project-HAMi/HAMi-core#112).
        reason = found.unavailable.get(UTILIZATION, OTHER_NAMESPACE)
        unavailable |= dict.fromkeys(names, reason)
        return dict.fromkeys(names)
    return {name: getattr(used, name) for name in names}


def _whose(
    process: GpuProcess, occupancy: Occupancy, unavailable: dict[str, str]
) -> dict[str, Any]:
    whose = _of(process, occupancy)
    told = {
        "command": whose.command,
        "user_id": whose.user_id,
        "started_at": whose.started_at,
        "pod_uid": whose.pod_uid,
        "container_id": whose.container_id,
    }
    for name, value in told.items():
        if value is None:
            none = OF_NONE.get(name) if whose.podless is not None else None
            unavailable[name] = none or whose.why or NOT_SUPPORTED
    return told


def _of(process: GpuProcess, occupancy: Occupancy) -> PodProcess:
    return occupancy.whose.get(process.pid) or PodProcess(
        process.pid, why=OTHER_NAMESPACE if occupancy.blind else NOT_REPORTED
    )


def _pod(
    process: GpuProcess,
    gpu: Gpu,
    occupancy: Occupancy,
    holdings: Holdings | None,
    unavailable: dict[str, str],
) -> dict[str, str | None]:
    """Names of the pod and, where one alone of its containers holds the GPU, of that."""
    uid = _of(process, occupancy).pod_uid
    holders = (
        []
        if holdings is None or uid is None
        else [holder for holder in holdings.holders if holder.pod_uid == uid]
    )
    containers = {holder.container for holder in holders if _holds(holder, gpu)}
    told = {
        "namespace": next((holder.namespace for holder in holders if holder.namespace), None),
        "pod": next((holder.pod for holder in holders if holder.pod), None),
        "container": containers.pop() if len(containers) == 1 else None,
    }
    for name, value in told.items():
        if value is None:
            unavailable[name] = NOT_HELD if uid is not None else unavailable["pod_uid"]
    return told


def _holds(holder: Holder, gpu: Gpu) -> bool:
    return any(device.gpu_index == gpu.index for device in holder.devices)


def _stray(
    process: GpuProcess,
    gpu: Gpu,
    occupancy: Occupancy,
    outside: set[tuple[int, int]] | None,
    unavailable: dict[str, str],
) -> bool | None:
    whose = _of(process, occupancy)
    if outside is None:
        unavailable["stray"] = "see strays of the node"
    elif (process.pid, gpu.index) in outside:
        return True
    elif whose.podless is not None:
        return False
    else:
        unavailable["stray"] = whose.why or NOT_HELD
    return None


def _use(gpu: Gpu, found: GpuProcesses | None, occupancy: Occupancy) -> GpuUse:
    unavailable = {
        name: gpu.unavailable.get(reading, NOT_REPORTED)
        for name, reading in (
            ("uuid", "uuid"),
            ("name", "name"),
            ("memory_total_bytes", "memory_total_bytes"),
            ("memory_used_bytes", "memory_used_bytes"),
            ("utilization_percent", "utilization_gpu_percent"),
        )
        if getattr(gpu, reading) is None
    }
    lists = dict(found.unavailable) if found else {}
    count: int | None = None
    if found is None:
        unavailable["processes"] = "not_read"
    elif occupancy.blind:
        unavailable["processes"] = OTHER_NAMESPACE
    elif not found.complete:
        unavailable["processes"] = _first_reason(lists)
    else:
        count = len({process.pid for process in found.processes})
    unavailable |= {f"{name}_processes": reason for name, reason in lists.items()
                    if name != UTILIZATION and reason != NOT_SUPPORTED}  # fmt: skip
    unaccounted = None if found is None else found.unaccounted_bytes
    if unaccounted is not None and gpu.virtualization_mode in _VIRTUAL:
        unaccounted, unavailable["unaccounted_memory_bytes"] = None, "held_by_virtual_machines"
    elif unaccounted is None:
        unavailable["unaccounted_memory_bytes"] = _why_unaccounted(gpu, found)
    return GpuUse(
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        memory_total_bytes=gpu.memory_total_bytes,
        memory_used_bytes=gpu.memory_used_bytes,
        utilization_percent=gpu.utilization_gpu_percent,
        processes=count,
        unaccounted_memory_bytes=unaccounted,
        unlisted_pids=() if found is None else found.unlisted[:UNLISTED],
        unavailable=unavailable,
    )


def _first_reason(lists: Mapping[str, str]) -> str:
    reasons = (
        reason for name, reason in lists.items() if name != UTILIZATION and reason != NOT_SUPPORTED
    )
    return next(reasons, NOT_REPORTED)


def _why_unaccounted(gpu: Gpu, found: GpuProcesses | None) -> str:
    if found is None:
        return "not_read"
    if gpu.mig_mode_current:
        return "mig_active"
    if not found.complete:
        return _first_reason(found.unavailable)
    if found.memory_used_bytes is None:
        used = gpu.unavailable.get("memory_used_bytes")
        return used or gpu.unavailable.get("memory_reserved_bytes", NOT_REPORTED)
    return NOT_SUPPORTED  # NVML does not tell the memory of a process.


def _attention(
    uses: Iterable[GpuUse],
    found: Mapping[int, GpuProcesses],
    rows: Iterable[ProcessRow],
    occupancy: Occupancy,
) -> Iterator[str]:
    loose = {row.pid for row in rows if row.stray}
    if loose:
        gpus = numbers({row.gpu_index for row in rows if row.stray})
        are = "process is" if len(loose) == 1 else "processes are"
        yield f"GPU {gpus}: {len(loose)} {are} on a GPU that nobody gave them"
    held = [
        use for use in uses
        if use.unaccounted_memory_bytes is not None
        and use.unaccounted_memory_bytes >= UNACCOUNTED_BYTES
    ]  # fmt: skip
    if held and occupancy.blind:
        size = sum(use.unaccounted_memory_bytes or 0 for use in held)
        yield (
            f"GPU {numbers([use.index for use in held])}: {_gib(size)} GiB held by processes that "
            "cannot be seen, or leaked"
        )
    elif held:
        for use in held:
            yield (
                f"GPU {use.index}: {_gib(use.unaccounted_memory_bytes or 0)} GiB are held by no "
                "process of this node: leaked by a program that ended badly, or held by a client "
                "of the driver that NVML does not list. If it stays once the GPU's pods are gone, "
                "the GPU needs a reset."
            )
    askew = [index for index, each in found.items() if DRIVER_DEFECT in each.unavailable.values()]
    if askew:
        yield (
            "drivers 535.43 to 535.86 list wrong processes: they are not told; 535.104.05 and "
            "later are right"
        )


def _state(
    snapshot: Snapshot, uses: Iterable[GpuUse], attention: tuple[str, ...], occupancy: Occupancy
) -> State:
    if snapshot.state != "ok" or occupancy.blind or occupancy.processes is None:
        return "unknown"
    if attention:
        return "attention"
    counts = [use.processes for use in uses]
    if None in counts:
        return "unknown"
    return "busy" if any(counts) else "idle"


def _order(row: ProcessRow) -> tuple[bool, bool, int, int, int]:
    """What is out of the ordinary first, then what holds most."""
    memory = -1 if row.memory_bytes is None else row.memory_bytes
    return not row.stray, row.command is not None, -memory, row.pid, row.gpu_index


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f}"

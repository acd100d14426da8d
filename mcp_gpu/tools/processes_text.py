"""The processes of one node as text: what is out of the ordinary, then the largest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from mcp_gpu.tools.processes_model import NodeProcesses, ProcessRow
from mcp_gpu.tools.spans import counted, numbers
from transports.text import quoted

__all__ = ["node_lines", "process_count", "process_lines", "unread_lines"]

COMMAND_CHARS: Final = 80
NAME_CHARS: Final = 120


def process_count(count: int) -> str:
    """`1 process`, `2 processes`."""
    return "1 process" if count == 1 else f"{count} processes"


def node_lines(told: NodeProcesses) -> Iterator[str]:
    """The whole node."""
    yield f"{told.node}: {headline(told)}"
    if told.simulated:
        yield "SIMULATED: no real hardware stands behind this, and the processes are invented."
    if told.message is not None:
        yield f"! {told.message}"
    if not told.host_processes:
        yield f"! processes unknown: {told.unavailable['processes']}; an empty list means nothing"
    yield from (f"! {text}" for text in told.attention)
    yield from unread_lines(told)
    yield from process_lines(told.processes)
    if told.processes_omitted:
        yield f"{counted(told.processes_omitted, 'more row')} of processes: ask with a higher limit"


def headline(told: NodeProcesses) -> str:
    """`3 processes on GPU 0-2 of 8  read 1 s ago`."""
    parts = [_count(told)]
    if told.age_seconds is not None:
        parts.append(f"read {told.age_seconds:.0f} s ago")
    return "  ".join(parts)


def _count(told: NodeProcesses) -> str:
    if not told.gpus:
        return "no GPUs known"
    every = counted(len(told.gpus), "GPU")
    if told.processes_count is None:
        return f"processes UNKNOWN on {every}"
    on = [gpu.index for gpu in told.gpus if gpu.processes]
    if not on:
        return f"no processes on {every}"
    return f"{process_count(told.processes_count)} on GPU {numbers(on)} of {len(told.gpus)}"


def unread_lines(told: NodeProcesses) -> Iterator[str]:
    """GPUs of whose processes nothing is known, by reason."""
    if not told.host_processes:
        return
    reasons: defaultdict[str, list[int]] = defaultdict(list)
    for gpu in told.gpus:
        if gpu.processes is None:
            reasons[gpu.unavailable["processes"]].append(gpu.index)
    for reason, gpus in reasons.items():
        yield f"! GPU {numbers(gpus)}: processes unknown: {reason}"


def process_lines(rows: Sequence[ProcessRow]) -> Iterator[str]:
    """A line for each process, whatever number of GPUs it is on."""
    alike: defaultdict[int, list[ProcessRow]] = defaultdict(list)
    for row in rows:
        alike[row.pid].append(row)
    for here in alike.values():
        yield _process(here)


def _process(here: Sequence[ProcessRow]) -> str:
    first = here[0]
    loose = [row.gpu_index for row in here if row.stray]
    parts = [f"  {'STRAY on ' if loose else ''}GPU {numbers({row.gpu_index for row in here})}"]
    parts.append(f"pid {first.pid}")
    if first.command is not None:
        parts.append(quoted(first.command, COMMAND_CHARS))
    kinds = {kind for row in here for kind in row.kinds} - {"compute"}
    parts += sorted(kinds)
    parts.append(_memory(here))
    shares = [row.sm_percent for row in here if row.sm_percent is not None]
    if shares:
        low, high = min(shares), max(shares)
        parts.append(f"{low} % busy" if low == high else f"{low}-{high} % busy")
    parts.append(_whose(first))
    return "  ".join(parts)


def _memory(here: Iterable[ProcessRow]) -> str:
    known = [row.memory_bytes for row in here if row.memory_bytes is not None]
    return f"{sum(known) / 2**30:.1f} GiB" if known else "memory unknown"


def _whose(row: ProcessRow) -> str:
    if row.pod is not None:
        container = f" ({row.container})" if row.container else ""
        return f"pod {row.namespace}/{row.pod}{container}"[:NAME_CHARS]
    if row.pod_uid is not None:
        return f"pod uid {row.pod_uid}"
    if row.container_id is not None:
        return f"container {row.container_id[:12]} of no pod"
    if row.unavailable.get("pod_uid") == "of_no_pod":
        return "the node's own"
    return f"whose is unknown: {row.unavailable.get('pod_uid', '')}"[:NAME_CHARS]

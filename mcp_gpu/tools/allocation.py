"""`get_pod_gpu_allocation` as an agent serves it: which pods hold which GPUs of its own node."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import anyio.to_thread
from pydantic import BaseModel, Field

from mcp_gpu.gpu.xid.report import utc
from mcp_gpu.node.holdings import Holder, Holdings
from mcp_gpu.registry import Answer, Arguments, Call, Tool
from mcp_gpu.tools.allocation_account import accounted, holds, totals
from mcp_gpu.tools.allocation_model import (
    NAME,
    AgentAllocation,
    ContainerAllocation,
    HeldClaim,
    PastHolder,
    PodAllocation,
    Stray,
)
from mcp_gpu.tools.allocation_text import node_lines
from mcp_gpu.tools.inventory import FRESH_TIMEOUT_SECONDS, MAX_AGE_SECONDS, reading_age, trouble
from mcp_gpu.tools.spans import counted
from mcp_gpu.tools.xids import within

if TYPE_CHECKING:  # a gateway runs where there is no NVML, and shares only the models
    from mcp_gpu.gpu.collector import Collector
    from mcp_gpu.gpu.recorder.recorder import Recorder
    from mcp_gpu.gpu.recorder.tenants import Tenant
    from mcp_gpu.node.holdings import Holding

__all__ = ["AgentArguments", "Processes", "SeenProcess", "SeenProcesses", "agent_tool"]

M = TypeVar("M", bound=BaseModel)

TEXT_CHARS: Final = 8_000
LINE_CHARS: Final = 600

PODS_BYTES: Final = 120_000
"""Room for pods: a gateway takes no answer of more than 256 KiB."""

PAST_BYTES: Final = 60_000
"""Room for those that held GPUs before."""

STRAYS: Final = 50
"""Told one by one."""

UNRESOLVED: Final = "which GPU it is stands in the driver's ResourceSlice, which a gateway reads"

NO_PROCESSES: Final = "those of a simulated node are of no pod that a kubelet knows"

KubernetesName = Annotated[str, Field(max_length=253)]


@dataclass(frozen=True, slots=True)
class SeenProcess:
    """A process on a GPU, and whose it is."""

    pid: int
    gpu_index: int
    gpu_uuid: str | None
    command: str
    memory_bytes: int | None
    pod_uid: str | None
    """None: of no pod."""


@dataclass(frozen=True, slots=True)
class SeenProcesses:
    """All of a node's."""

    processes: tuple[SeenProcess, ...]
    why: str = ""
    """Why they may not be all, or not be told by pod; empty if they are."""


Processes = Callable[[], Awaitable[SeenProcesses]]


class AgentArguments(Arguments):
    """What an agent may be asked about its node."""

    namespace: KubernetesName | None = Field(
        default=None, description="Only pods of this namespace."
    )
    pod: KubernetesName | None = Field(default=None, description="Only pods of this name.")
    past: bool = Field(
        default=False,
        description="Also who held them before and does no longer, as far as it is remembered.",
    )


def agent_tool(
    node: str,
    collector: Collector,
    attribution: Holding,
    *,
    processes: Processes | None,
    recorder: Recorder | None = None,
) -> Tool[AgentArguments]:
    """The tool over one node.

    Args:
        attribution: who holds what.
        processes: what runs on the GPUs; None where nobody looks.
        recorder: remembers who held them; None where nobody does.
    """
    from mcp_gpu.tools.allocation_gpus import gpus

    async def run(arguments: AgentArguments, call: Call) -> Answer:
        holdings = await attribution.holdings()
        snapshot = collector.snapshot
        if snapshot.waiting is None:
            snapshot = await collector.fresh(
                max_age_seconds=MAX_AGE_SECONDS, timeout_seconds=FRESH_TIMEOUT_SECONDS
            )
        pods = pods_of(holdings.holders)
        counted = accounted(
            gpus(snapshot, collector.past()),
            pods,
            why=holdings.why if holdings.source == "none" else "",
        )
        seen = SeenProcesses((), NO_PROCESSES) if processes is None else await processes()
        asked = [pod for pod in pods if _is_asked_for(pod, arguments)]
        told = tuple(_fitting(asked, PODS_BYTES))
        narrow = arguments.namespace is not None or arguments.pod is not None
        loose = tuple(strays(seen, holdings, pods))
        past, left = await _past(recorder, arguments, holdings)
        allocation = AgentAllocation(
            node=node,
            simulated=snapshot.simulated,
            message=trouble(snapshot),
            source=holdings.source,
            why=holdings.why,
            totals=totals(counted, pods=len(pods), strays=len(loose)),
            pods=told,
            pods_omitted=len(asked) - len(told),
            # Which GPU a claim is may come out at the gateway only.
            gpus=tuple(
                gpu
                for gpu in counted
                if not narrow or any(_unsure(pod) or holds(pod, gpu) for pod in asked)
            ),
            strays=() if narrow else loose[:STRAYS],
            allocatable=holdings.allocatable,
            age_seconds=reading_age(snapshot.fast_at),
            holders_age_seconds=holdings.age_seconds,
            unavailable=_unavailable(seen, holdings),
            past=past,
            past_omitted=left,
        )
        return Answer("\n".join(within(_lines(allocation), TEXT_CHARS, LINE_CHARS)), allocation)

    return Tool(
        name=NAME,
        title="GPUs of this node's pods",
        description=(
            "Say which pods and containers of this node hold which of its NVIDIA GPUs and MIG "
            "instances, as the kubelet has allocated them, with what each GPU does now; which "
            "allocations are idle, which GPUs are free, and which processes are on a GPU outside "
            "of any allocation."
        ),
        arguments=AgentArguments,
        result=AgentAllocation,
        run=run,
    )


def _lines(allocation: AgentAllocation) -> Iterator[str]:
    yield from node_lines(allocation)
    for each in allocation.past:
        whose = f"{each.namespace}/{each.pod}" if each.pod else f"pod of uid {each.pod_uid}"
        gpu = f"GPU {'?' if each.gpu_index is None else each.gpu_index}"
        held = f"{gpu} {each.mig}".strip()
        yield f"  before: {whose} {each.container}: {held}, {each.since} to {each.until}"
    if allocation.past_omitted:
        yield f"{counted(allocation.past_omitted, 'more holder')} before"


def pods_of(holders: Sequence[Holder]) -> tuple[PodAllocation, ...]:
    """The containers by their pods, in order of names."""
    pods: dict[tuple[str, str, str], list[Holder]] = {}
    for holder in holders:
        uid = holder.pod_uid if not holder.pod else None
        pods.setdefault((holder.namespace, holder.pod, uid or ""), []).append(holder)
    return tuple(
        PodAllocation(
            namespace=namespace,
            pod=pod,
            pod_uid=next((each.pod_uid for each in containers if each.pod_uid), None),
            containers=tuple(
                ContainerAllocation(
                    container=each.container,
                    devices=each.devices,
                    claims=tuple(
                        HeldClaim(**claim.model_dump(), why=UNRESOLVED) for claim in each.claims
                    ),
                )
                for each in containers
            ),
        )
        for (namespace, pod, _), containers in sorted(pods.items())
    )


def strays(seen: SeenProcesses, holdings: Holdings, pods: Sequence[PodAllocation]) -> list[Stray]:
    """Processes on GPUs that nobody was given, or somebody else was.

    A process of a pod is told only where the uids of all that hold its GPU are known.
    """
    if holdings.source == "none":
        return []
    unsure = any(_unsure(pod) for pod in pods)
    found: list[Stray] = []
    for process in seen.processes:
        holders = [
            pod
            for pod in pods
            if any(
                device.gpu_index == process.gpu_index
                for container in pod.containers
                for device in container.devices
            )
        ]
        uids = {pod.pod_uid for pod in holders}
        if process.pod_uid is not None and (unsure or process.pod_uid in uids or None in uids):
            continue
        found.append(
            Stray(
                pid=process.pid,
                gpu_index=process.gpu_index,
                gpu_uuid=process.gpu_uuid,
                command=process.command,
                memory_bytes=process.memory_bytes,
                pod_uid=process.pod_uid,
            )
        )
    return found


def _unsure(pod: PodAllocation) -> bool:
    return any(container.claims for container in pod.containers)


def _is_asked_for(pod: PodAllocation | Tenant, arguments: AgentArguments) -> bool:
    if arguments.namespace is not None and pod.namespace != arguments.namespace:
        return False
    return arguments.pod is None or pod.pod == arguments.pod


async def _past(
    recorder: Recorder | None, arguments: AgentArguments, holdings: Holdings
) -> tuple[tuple[PastHolder, ...], int]:
    """Who held GPUs and does no longer, the latest first, and how many there is no room for."""
    if recorder is None or not arguments.past:
        return (), 0
    now = {
        (each.pod_uid or f"{each.namespace}/{each.pod}", each.container, device.id)
        for each in holdings.holders
        for device in each.devices
    }
    # On another thread: whoever packs the recorder's file holds its lock for some time.
    known = await anyio.to_thread.run_sync(recorder.tenants, 0.0, time.time())
    found = [
        each
        for each in sorted(known, key=lambda each: -each.until)
        if _is_asked_for(each, arguments)
        and (each.pod_uid or f"{each.namespace}/{each.pod}", each.container, each.device) not in now
    ]
    told = tuple(_fitting(map(_past_holder, found), PAST_BYTES))
    return told, len(found) - len(told)


def _past_holder(tenant: Tenant) -> PastHolder:
    fields = tenant._asdict()
    del fields["device"]
    return PastHolder(**{**fields, "since": utc(tenant.since), "until": utc(tenant.until)})


def _fitting(found: Iterable[M], room: int) -> Iterator[M]:
    """As many from the first on as there is room for, in bytes."""
    for each in found:
        room -= len(each.model_dump_json())
        if room < 0:
            return
        yield each


def _unavailable(seen: SeenProcesses, holdings: Holdings) -> dict[str, str]:
    unavailable: dict[str, str] = {}
    if holdings.source == "none":
        unavailable["pods"] = holdings.why
        unavailable["allocatable"] = holdings.why
        unavailable["holders_age_seconds"] = holdings.why
        unavailable["strays"] = holdings.why
    if seen.why:
        unavailable["strays"] = f"processes cannot be seen: {seen.why}"
    return unavailable

"""What the agent of a pod's node tells of the pod's GPUs: which it held, their Xids and health."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import anyio

from mcp_gpu.gpu.model import Gpu
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.gpu.xid.report import utc
from mcp_gpu.node.device_ids import Devices
from mcp_gpu.tools.allocation_model import PastHolder
from mcp_gpu.tools.health_model import NAME as HEALTH
from mcp_gpu.tools.health_model import NodeHealth
from mcp_gpu.tools.inventory import NAME as INVENTORY
from mcp_gpu.tools.inventory import NodeInventory
from mcp_gpu.tools.moments import moment
from mcp_gpu.tools.node_agent import NodeAgent
from mcp_gpu.tools.xids_model import NAME as XIDS
from mcp_gpu.tools.xids_model import NodeXids
from mcp_gpu.workloads.documents import word
from mcp_gpu.workloads.failure import gpus
from mcp_gpu.workloads.failure.hardware import REPEATING, Sight, of_peer
from mcp_gpu.workloads.failure.model import Cause, HeldGpu
from mcp_gpu.workloads.failure.scene import Scene
from mcp_gpu.workloads.reads import Reads
from transports.text import visible

__all__ = [
    "ALLOCATION", "GROUPS", "WARNINGS", "WITH_PAST", "Holders", "Looked", "look", "look_at_peers",
]  # fmt: skip

ALLOCATION: Final = "get_pod_gpu_allocation"

WITH_PAST: Final = {"past": True}
"""What is asked of its allocation."""

WARNINGS: Final = {"detail": "full", "severity": "warning"}
"""What is asked of its health."""

GROUPS: Final = 200
"""Groups of Xids asked for: as many as an agent tells."""

PEERS: Final = 16
"""Other pods of a Job whose GPUs are looked at."""

EARLIER_SECONDS: Final = 86_400.0
"""How far back errors of programs on the same GPU are looked for."""


class _Device(Wire):
    gpu_uuid: str | None = None
    gpu_index: int | None = None
    mig_uuid: str | None = None
    mig_profile: str | None = None
    replica: int | None = None


class _Container(Wire):
    devices: tuple[_Device, ...] = ()
    claims: tuple[_Device, ...] = ()
    """Which an agent knows by name alone."""


class HoldingPod(Wire):
    namespace: str
    pod: str
    pod_uid: str | None = None
    containers: tuple[_Container, ...]


class Holders(Wire):
    """What is needed of an agent's answer to who holds its GPUs."""

    pods: tuple[HoldingPod, ...]
    past: tuple[PastHolder, ...] = ()
    source: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Looked:
    """What the agent tells."""

    sight: Sight | None
    """None: it was not asked, or told nothing."""
    held: tuple[HeldGpu, ...]
    source: str
    """Who says which GPUs the pod held, or why nobody does."""


async def look(agent: NodeAgent, scene: Scene, reads: Reads) -> Looked:
    """Ask the agent of the pod's node. What it does not tell is a gap of `reads`."""
    if not scene.uses_gpus:
        return Looked(None, (), "it asks for no GPU")
    if not scene.node_name:
        return Looked(None, (), "it was never on a node, as far as is known")
    xids, health, allocation = await _told(agent, scene)
    for missed in () if xids is None else xids.missed:
        reads.miss(f"Xids of {scene.node_name}", missed)
    sight = None
    if xids is not None or health is not None:
        sight = Sight(
            node=scene.node_name,
            at=scene.now,
            groups=() if xids is None else xids.groups,
            earlier=await _earlier(agent, scene, xids),
            devices=() if xids is None else xids.devices,
            findings=() if health is None else health.findings,
            gpus=() if health is None else health.gpus,
            sees_xids=xids is not None and not xids.blind,
            sees_health=health is not None,
            simulated=any(each is not None and each.simulated for each in (xids, health)),
        )
    held, source = await _held(agent, scene, sight, allocation)
    if not held:
        reads.miss(f"GPUs of pod {scene.namespace}/{scene.name}", source)
    return Looked(sight, held, source)


async def _told(
    agent: NodeAgent, scene: Scene
) -> tuple[NodeXids | None, NodeHealth | None, Holders | None]:
    """Asked side by side: each question to a silent agent takes as long as an agent is given."""
    begin, _ = scene.window
    asked = {"since": utc(begin), "limit": GROUPS}
    node = scene.node_name
    xids: NodeXids | None = None
    health: NodeHealth | None = None
    allocation: Holders | None = None

    async def ask_xids() -> None:
        nonlocal xids
        xids = await agent.ask(XIDS, asked, NodeXids, f"Xids of {node}")

    async def ask_health() -> None:
        nonlocal health
        health = await agent.ask(HEALTH, WARNINGS, NodeHealth, f"GPU health of {node}")

    async def ask_allocation() -> None:
        nonlocal allocation
        allocation = await agent.ask(ALLOCATION, WITH_PAST, Holders)

    async with anyio.create_task_group() as tasks:
        for ask in (ask_xids, ask_health, ask_allocation):
            tasks.start_soon(ask)
    return xids, health, allocation


async def look_at_peers(
    agent_of: Callable[[str], NodeAgent], scene: Scene, reads: Reads
) -> tuple[Cause, ...]:
    """What befell the GPUs of the other pods of a Job, where one of them may have been the first
    to fall silent."""
    found: list[Cause] = []

    async def ask(peer: Scene) -> None:
        looked = await look(agent_of(peer.node_name), peer, reads)
        if looked.sight is not None:
            found.extend(of_peer(peer, looked.sight, looked.held))

    async with anyio.create_task_group() as tasks:
        for pod in scene.peers[:PEERS]:
            peer = scene.of_peer(pod)
            if peer.node_name:
                tasks.start_soon(ask, peer)
    if len(scene.peers) > PEERS:
        what = f"GPUs of {scene.owner_said}"
        reads.miss(what, f"only those of {PEERS + 1} of its pods are looked at")
    return tuple(sorted(found, key=lambda cause: (cause.facts[0].at or "", cause.says)))


async def _earlier(agent: NodeAgent, scene: Scene, xids: NodeXids | None) -> tuple[Any, ...]:
    """Errors of programs in the day before, where one has ended this pod, maybe."""
    if xids is None or not any(each.code in REPEATING for each in xids.groups):
        return ()
    since = utc((scene.pod_began or scene.window[0]) - EARLIER_SECONDS)
    asked = {"since": since, "codes": list(REPEATING), "limit": GROUPS}
    found = await agent.ask(XIDS, asked, NodeXids, f"earlier Xids of {scene.node_name}")
    return () if found is None else found.groups


async def _held(
    agent: NodeAgent, scene: Scene, sight: Sight | None, allocation: Holders | None
) -> tuple[tuple[HeldGpu, ...], str]:
    """The pod's GPUs, by who knows best, and who that is; or why nobody does."""
    indices = {} if sight is None else sight.indices
    claimed = gpus.told_by_claims(scene.claims, scene.slices)
    told = _of_agent(allocation, scene)
    if told:  # which knows claims by name alone
        return gpus.indexed((*told, *claimed), indices), "the kubelet, asked by the node's agent"
    if remembered := _remembered(allocation, scene):
        source = "the node's agent, which remembers what the kubelet said"
        return gpus.indexed(remembered, indices), source
    ids = gpus.told_by_status(scene.pod)
    if ids and (found := await _identified(agent, ids)):
        return gpus.indexed(found, indices), "the pod's allocatedResourcesStatus"
    if claimed:
        return gpus.indexed(claimed, indices), "ResourceClaims and ResourceSlices"
    if noted := gpus.told_by_annotations(scene.pod):
        found = tuple(
            each.model_copy(update={"shared": True}) for each in await _identified(agent, noted)
        )
        return gpus.indexed(found, indices), "the pod's annotations, which its owner may write"
    if sight is not None and (whole := gpus.all_of_node(scene, sight.gpus)):
        return whole, "the pod asked for as many GPUs as its node has"
    return (), _unknown(scene, allocation)


async def _identified(agent: NodeAgent, ids: Sequence[str]) -> tuple[HeldGpu, ...]:
    """What a device plugin's ids mean, as far as the node's agent tells."""
    known: Sequence[Gpu] = ()
    if not all(each.startswith("GPU-") for each in ids):
        inventory = await agent.ask(INVENTORY, {}, NodeInventory)
        known = () if inventory is None else inventory.gpus
    devices = Devices(known)
    held: dict[HeldGpu, None] = {}
    for each in map(devices.find, ids):
        mig = "" if each.mig is None else each.mig.profile or ""
        gpu = HeldGpu(
            gpu_index=None if each.gpu is None else each.gpu.index,
            uuid=visible(each.gpu_uuid) if each.gpu_uuid else None,
            mig=visible(mig or each.mig_uuid or ""),
            shared=each.replica is not None,
        )
        if _says_which(gpu):
            held[gpu] = None
    return tuple(held)


def _says_which(gpu: HeldGpu) -> bool:
    return gpu.gpu_index is not None or gpu.uuid is not None or gpu.mig.startswith("MIG-")


def _unknown(scene: Scene, allocation: Holders | None) -> str:
    """Why nobody says which GPUs it held."""
    if scene.gone:
        return "the pod is gone, and the kubelet forgets what it held"
    if word(scene.pod, "status", "phase") == "Pending":
        return "it has not begun, and so holds none"
    if allocation is None:
        return "the node's agent did not tell, and the pod's own documents do not say"
    if allocation.why:
        return f"{allocation.why}; and the pod's own documents do not say"
    if word(scene.pod, "status", "phase") in ("Succeeded", "Failed"):
        return (
            "the kubelet forgets what a pod held once it has ended, and the pod's own documents do "
            "not say"
        )
    return "the kubelet tells of none for it, and the pod's own documents do not say"


def _of_agent(allocation: Holders | None, scene: Scene) -> tuple[HeldGpu, ...]:
    if allocation is None or scene.absent:
        return ()
    uid = word(scene.pod, "metadata", "uid")
    others = {
        device.gpu_uuid
        for pod in allocation.pods
        if not _is_it(pod, scene, uid)
        for container in pod.containers
        for device in (*container.devices, *container.claims)
        if device.gpu_uuid
    }
    held = (
        HeldGpu(
            gpu_index=device.gpu_index,
            uuid=device.gpu_uuid,
            mig=device.mig_profile or device.mig_uuid or "",
            # Instances of one GPU have memory of their own.
            shared=device.replica is not None
            or (device.gpu_uuid in others and not (device.mig_uuid or device.mig_profile)),
        )
        for pod in allocation.pods
        if _is_it(pod, scene, uid)
        for container in pod.containers
        for device in container.devices
    )
    return tuple(dict.fromkeys(each for each in held if _says_which(each)))


def _remembered(allocation: Holders | None, scene: Scene) -> tuple[HeldGpu, ...]:
    """What the kubelet said before it forgot the pod."""
    if allocation is None:
        return ()
    begin, end = scene.window
    of_events = [each.uid for each in scene.of_pod if each.name == scene.name and each.uid]
    uid = word(scene.pod, "metadata", "uid") or next(reversed(of_events), "")
    found = (
        HeldGpu(gpu_index=each.gpu_index, uuid=each.gpu_uuid, mig=each.mig, shared=each.shared)
        for each in allocation.past
        if (
            each.pod_uid == uid
            if each.pod_uid and uid
            else (each.namespace, each.pod) == (scene.namespace, scene.name)
            and (moment(each.since) or end) <= end
            and (moment(each.until) or begin) >= begin
        )
    )
    return tuple(dict.fromkeys(found))


def _is_it(pod: HoldingPod, scene: Scene, uid: str) -> bool:
    """By its uid where that is told: a checkpoint of the kubelet's knows no names, and a pod of the
    same name may have come after it."""
    if pod.pod_uid:
        return pod.pod_uid == uid
    return (pod.namespace, pod.pod) == (scene.namespace, scene.name)

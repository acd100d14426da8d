"""Which pods hold which GPUs of this node, as the kubelet says: `Attribution`, `Holdings`."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal, Protocol

import anyio
from pydantic import Field

from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.recorder.tenants import Tenant
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.node.aside import Aside, Blocked
from mcp_gpu.node.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from mcp_gpu.node.device_ids import Devices, is_gpu_resource, profile_of
from mcp_gpu.node.pod_resources import Allocation, PodResources, PodResourcesError
from transports.text import visible

__all__ = ["NOT_YET", "Attribution", "Claim", "Device", "Holder", "Holding", "Holdings"]

ANSWER_SECONDS: Final = 2.0
"""Longest wait of a caller. The kubelet answers from memory in milliseconds."""

CACHE_SECONDS: Final = 5.0
"""The kubelet takes 100 calls a second of all its clients together, 10 of them at once."""

CHECKPOINT_SECONDS: Final = 0.4
"""Longest wait for the file; with the service's, less than a caller waits."""

KEPT_SECONDS: Final = 60.0
"""How long what the kubelet said is told on while it does not answer, as when it restarts."""

WATCH_SECONDS: Final = 10.0
"""Between two looks for whoever remembers: a pod that lived for less may be missed."""

ALARM_SECONDS: Final = 1.0
"""How soon after an alarm the next look begins. A kubelet takes about as long to notice that a
program has ended, and to forget what its pod held."""

NOT_YET: Final = "the kubelet has started and does not know its pods yet"

DRA_DRIVER: Final = "gpu.nvidia.com"

Source = Literal["pod_resources", "checkpoint", "simulated", "none"]


class Device(Wire):
    """One device of a device plugin that a container holds, joined to the node's GPUs."""

    id: str = Field(description="As the device plugin calls it.")
    resource: str = Field(description="Such as nvidia.com/gpu or nvidia.com/mig-1g.10gb.")
    gpu_uuid: str | None = Field(description="Of the GPU, or of a MIG instance's parent.")
    gpu_index: int | None
    mig_uuid: str | None
    mig_profile: str | None = Field(description="Such as 1g.10gb; null: a whole GPU.")
    replica: int | None = Field(description="Of a GPU that is shared; null: not shared.")
    why: str = Field(default="", description="Why the id fits no GPU; empty if it does.")


class Claim(Wire):
    """One device of a ResourceClaim that a container holds, as the kubelet tells it."""

    namespace: str
    name: str
    driver: str
    pool: str
    device: str
    cdi_ids: tuple[str, ...]


class Holder(Wire):
    """A container and what it holds of the node's GPUs."""

    namespace: str = Field(description="Empty where only the pod's uid is known.")
    pod: str = Field(description="Name; empty where only the uid is known.")
    pod_uid: str | None
    container: str
    devices: tuple[Device, ...]
    claims: tuple[Claim, ...]


class Holdings(Wire):
    """All of a node's."""

    source: Source
    why: str = Field(description="What is missing, and why; empty: nothing is.")
    holders: tuple[Holder, ...] = ()
    allocatable: dict[str, int] = Field(
        default_factory=dict, description="Resource to how many devices pods can be given."
    )
    age_seconds: float | None = None

    @property
    def held(self) -> tuple[Device, ...]:
        """All devices, of all holders."""
        return tuple(device for holder in self.holders for device in holder.devices)


@dataclass(frozen=True, slots=True)
class _Told:
    """What was heard last, before it is joined to the GPUs."""

    source: Source
    why: str
    at: float = 0.0
    allocation: Allocation = field(default_factory=lambda: Allocation((), ()))
    checkpoint: Checkpoint = field(default_factory=lambda: Checkpoint((), {}))
    stale: bool = False
    """Whether it is told on from before."""


class Holding(Protocol):
    """What tells who holds a node's GPUs: its kubelet, or a simulated node."""

    async def holdings(self) -> Holdings:
        """As far as it is known. Bounded; never raises."""

    async def follow(self) -> None:
        """Have what may be forgotten told, for ever or as long as there is need."""


class Attribution:
    """Asks the kubelet for whoever wants to know, at most every few seconds.

    Args:
        snapshot: what is known of the GPUs now.
        pod_resources: the kubelet's service.
        checkpoint: the kubelet's file, for where the service cannot be asked, and for the pods'
            uids, which it does not tell.
        pod: name of the agent's own pod; empty outside of one.
        told: is handed all that hold something, each time the kubelet has said so.
        alarms: is another one once a GPU has failed: whoever holds it may not hold it for long.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        pod_resources: PodResources,
        checkpoint: Path,
        *,
        pod: str = "",
        told: Callable[[tuple[Tenant, ...]], None] | None = None,
        alarms: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell, self._alarms = told, alarms
        self._snapshot, self._clock = snapshot, clock
        self._pod_resources, self._checkpoint, self._pod = pod_resources, checkpoint, pod
        self._told = _Told("none", "the kubelet has not been asked yet")
        self._asked_at = -float("inf")
        self._asking = anyio.Lock()
        self._aside = Aside("checkpoint")

    @property
    def last(self) -> Holdings:
        """As it was heard last, joined to the GPUs of now. Does no I/O."""
        told = self._told
        devices = Devices(self._snapshot().gpus)
        if told.source == "pod_resources":
            uids = _uids(told.checkpoint)
            holders = list(_holders_of_pods(told.allocation, devices, uids))
            could = Counter[str]()
            for each in told.allocation.allocatable:
                could[each.resource] += len(each.ids)
        else:
            holders = list(_holders_of_checkpoint(told.checkpoint, devices))
            could = Counter(told.checkpoint.registered)
        return Holdings(
            source=told.source,
            why=told.why,
            holders=tuple(holders),
            allocatable={name: could[name] for name in sorted(could) if is_gpu_resource(name)},
            age_seconds=None if told.source == "none" else round(self._clock() - told.at, 1),
        )

    async def holdings(self) -> Holdings:
        """As the kubelet has it, at most a few seconds ago. Never raises; what is not known, and
        why, is in the answer. Takes two seconds at most."""
        with anyio.move_on_after(ANSWER_SECONDS):
            async with self._asking:
                if self._clock() - self._asked_at >= CACHE_SECONDS:
                    await self._look()
        return self.last

    async def follow(self) -> None:
        """Ask for ever, and at once when a GPU has failed, so that what the kubelet forgets has
        been told."""
        while True:
            alarms = self._alarms()
            async with self._asking:
                await self._look()
            with anyio.move_on_after(WATCH_SECONDS):
                await anyio.sleep(ALARM_SECONDS)
                while self._alarms() == alarms:  # noqa: ASYNC110 - other threads tell of them
                    await anyio.sleep(ALARM_SECONDS)

    async def _look(self) -> None:
        self._told = await self._ask()
        self._asked_at = self._clock()
        if self._tell is not None and not self._told.stale:
            self._tell(tuple(_tenants(self.last.holders)))

    async def _ask(self) -> _Told:
        now = self._clock()
        try:
            checkpoint, amiss = await self._read(), ""
        except CheckpointError as error:
            checkpoint, amiss = Checkpoint((), {}), str(error)
        try:
            allocation = await self._pod_resources.allocation()
        except PodResourcesError as error:
            why = str(error)
        else:
            if self._knows_its_pods(allocation, checkpoint):
                return _Told("pod_resources", allocation.why, now, allocation, checkpoint)
            why = NOT_YET
        before = self._told
        if before.source == "pod_resources" and now - before.at <= KEPT_SECONDS:
            # Who gives devices away is the kubelet: while it is not there, nobody does.
            return replace(before, why=why, stale=True)
        if not amiss:
            return _Told("checkpoint", why, now, checkpoint=checkpoint)
        return _Told("none", f"{why}; {amiss}", stale=True)

    def _knows_its_pods(self, allocation: Allocation, checkpoint: Checkpoint) -> bool:
        """A kubelet that has started lists no pods, or static ones alone, until the API server has
        told it of the others: for a second, or as long as that cannot be reached."""
        if self._pod:
            return any(pod.name == self._pod for pod in allocation.pods)
        return bool(allocation.pods) or not checkpoint.entries

    async def _read(self) -> Checkpoint:
        try:
            return await self._aside.run(
                partial(read_checkpoint, self._checkpoint), CHECKPOINT_SECONDS
            )
        except Blocked as error:
            late = f"{self._checkpoint}: not read within {CHECKPOINT_SECONDS:g} s: its disk hangs"
            raise CheckpointError(late) from error


def _tenants(holders: Iterable[Holder]) -> Iterator[Tenant]:
    """What a device plugin has given. Which GPU a claim is stands in Kubernetes' own objects."""
    for holder in holders:
        for device in holder.devices:
            if device.gpu_uuid is not None or device.gpu_index is not None:
                yield Tenant(
                    namespace=holder.namespace,
                    pod=holder.pod,
                    pod_uid=holder.pod_uid,
                    container=holder.container,
                    device=device.id,
                    gpu_uuid=device.gpu_uuid,
                    gpu_index=device.gpu_index,
                    mig=device.mig_profile or device.mig_uuid or "",
                    shared=device.replica is not None,
                )


def _holders_of_pods(
    allocation: Allocation, devices: Devices, uids: Mapping[tuple[str, str], str]
) -> Iterator[Holder]:
    for pod in allocation.pods:
        for container in pod.containers:
            held = [
                (given.resource, each)
                for given in container.devices
                if is_gpu_resource(given.resource)
                for each in given.ids
            ]
            claims = tuple(
                Claim(
                    namespace=visible(each.namespace),
                    name=visible(each.claim),
                    driver=each.driver,
                    pool=visible(each.pool),
                    device=visible(each.device),
                    cdi_ids=tuple(map(visible, each.cdi_ids)),
                )
                for each in container.claimed
                if each.driver == DRA_DRIVER
            )
            if held or claims:
                yield Holder(
                    namespace=visible(pod.namespace),
                    pod=visible(pod.name),
                    pod_uid=next((uids[each] for each in held if each in uids), None),
                    container=visible(container.name),
                    devices=_in_order(_device(devices, *each) for each in held),
                    claims=claims,
                )


def _holders_of_checkpoint(checkpoint: Checkpoint, devices: Devices) -> Iterator[Holder]:
    held: defaultdict[tuple[str, str], list[Device]] = defaultdict(list)
    for entry in checkpoint.entries:
        if is_gpu_resource(entry.resource):
            held[entry.pod_uid, entry.container] += (
                _device(devices, entry.resource, each) for each in entry.ids
            )
    for (uid, container), each in held.items():
        yield Holder(
            namespace="",
            pod="",
            pod_uid=visible(uid),
            container=visible(container),
            devices=_in_order(each),
            claims=(),
        )


def _in_order(devices: Iterable[Device]) -> tuple[Device, ...]:
    """The kubelet tells them in another order each time."""
    return tuple(sorted(devices, key=lambda each: (each.resource, each.gpu_index or 0, each.id)))


def _uids(checkpoint: Checkpoint) -> dict[tuple[str, str], str]:
    """The pod of each device, by resource and id: the kubelet gives one to one container at a time.
    Where the file names two, one of them is over, and the device tells nothing."""
    uids: dict[tuple[str, str], str] = {}
    doubtful: set[tuple[str, str]] = set()
    for entry in checkpoint.entries:
        for each in entry.ids:
            key, uid = (entry.resource, each), visible(entry.pod_uid)
            if uids.setdefault(key, uid) != uid:
                doubtful.add(key)
    return {key: uid for key, uid in uids.items() if key not in doubtful}


def _device(devices: Devices, resource: str, device_id: str) -> Device:
    device_id = visible(device_id)
    found = devices.find(device_id)
    profile = (found.mig.profile if found.mig else None) or profile_of(resource)
    return Device(
        id=device_id,
        resource=visible(resource),
        gpu_uuid=found.gpu_uuid,
        gpu_index=found.gpu.index if found.gpu else None,
        mig_uuid=found.mig_uuid,
        mig_profile=profile,
        replica=found.replica,
        why=found.why,
    )

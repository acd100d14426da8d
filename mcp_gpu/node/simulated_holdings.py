"""Who holds the GPUs of a simulated node: pods made up from its processes, and said to be so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.node.holdings import Device, Holder, Holdings

if TYPE_CHECKING:  # 20 ms and 3 MiB that an agent on hardware need not pay
    from mcp_gpu.gpu.simulator import Node
    from mcp_gpu.gpu.simulator.processes import Process

__all__ = ["NAMESPACE", "SimulatedHoldings"]

NAMESPACE: Final = "simulated"
"""Of all pods that are made up."""

WHOLE: Final = "nvidia.com/gpu"
MIG: Final = "nvidia.com/mig-"


class SimulatedHoldings:
    """As `Attribution`: the pod of a simulated process holds the GPUs that its processes are on."""

    def __init__(self, node: Node, snapshot: Callable[[], Snapshot]) -> None:
        self._node, self._snapshot = node, snapshot

    async def holdings(self) -> Holdings:
        """As `Attribution.holdings`."""
        gpus = {gpu.index: gpu for gpu in self._snapshot().gpus}
        pods: dict[str, dict[str, Device]] = {}
        for process in self._node.processes:
            gpu = gpus.get(process.gpu)
            if process.pod_uid is not None and gpu is not None:
                device = _device(gpu, process)
                pods.setdefault(str(process.pod_uid), {})[device.id] = device
        return Holdings(
            source="simulated",
            why="",
            holders=tuple(
                Holder(
                    namespace=NAMESPACE,
                    pod=f"job-{uid[:8]}",
                    pod_uid=uid,
                    container="main",
                    devices=tuple(devices.values()),
                    claims=(),
                )
                for uid, devices in sorted(pods.items())
            ),
            allocatable=dict(Counter(_resources(gpus.values()))),
            age_seconds=0.0,
        )

    async def follow(self) -> None:
        """As `Attribution.follow`: there is nothing that would be forgotten."""


def _resources(gpus: Iterable[Gpu]) -> Iterator[str]:
    for gpu in gpus:
        if gpu.mig_devices:
            yield from (f"{MIG}{mig.profile}" for mig in gpu.mig_devices)
        else:
            yield WHOLE


def _device(gpu: Gpu, process: Process) -> Device:
    place = process.mig
    mig = gpu.mig_devices[place] if place is not None and place < len(gpu.mig_devices) else None
    uuid = gpu.uuid if mig is None else mig.uuid
    profile = None if mig is None else mig.profile
    return Device(
        id=uuid or str(gpu.index),
        resource=WHOLE if profile is None else f"{MIG}{profile}",
        gpu_uuid=gpu.uuid,
        gpu_index=gpu.index,
        mig_uuid=None if mig is None else mig.uuid,
        mig_profile=profile,
        replica=None,
    )

"""Allocations made by hand, and agents in this process that answer with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from mcp_gpu.gpu.history import Past
from mcp_gpu.gpu.simulator import Node, snapshot
from mcp_gpu.node.device_ids import Devices
from mcp_gpu.node.holdings import Claim, Device, Holder
from mcp_gpu.registry import Arguments
from mcp_gpu.tools.allocation import AgentArguments, pods_of
from mcp_gpu.tools.allocation_account import accounted, holds, totals
from mcp_gpu.tools.allocation_gpus import gpus
from mcp_gpu.tools.allocation_model import NodeAllocation, Stray
from support.fleet import Agent

__all__ = ["AllocationAgent", "claim", "holder", "uuid"]

_UUIDS: dict[str, list[str]] = {}


def _node(name: str, load: float = 0.9) -> Node:
    return Node(name, "h100", gpus=4, load=load)


def uuid(node: str, index: int) -> str:
    """Of a GPU of a node."""
    if node not in _UUIDS:
        _UUIDS[node] = [gpu.uuid or "" for gpu in snapshot(_node(node)).gpus]
    return _UUIDS[node][index]


def holder(pod: str, node: str, *indices: int, claims: Sequence[Claim] = ()) -> Holder:
    """A container of the pod `namespace/name` that holds these GPUs of the node."""
    namespace, _, name = pod.partition("/")
    devices = Devices(snapshot(_node(node)).gpus)
    return Holder(
        namespace=namespace,
        pod=name,
        pod_uid=None,
        container="main",
        devices=tuple(
            Device(
                id=(device_id := uuid(node, index)),
                resource="nvidia.com/gpu",
                gpu_uuid=device_id,
                gpu_index=devices.find(device_id).gpu.index,  # type: ignore[union-attr]
                mig_uuid=None,
                mig_profile=None,
                replica=None,
            )
            for index in indices
        ),
        claims=tuple(claims),
    )


def claim(name: str, namespace: str, node: str, device: str) -> Claim:
    """What the kubelet tells of a claim."""
    return Claim(
        namespace=namespace,
        name=name,
        driver="gpu.nvidia.com",
        pool=node,
        device=device,
        cdi_ids=(),
    )


class AllocationAgent(Agent):
    """An agent of a node with four GPUs, 90 % busy but for what `load` says."""

    def __init__(
        self,
        node: str,
        *holders: Holder,
        why: str = "",
        load: float = 0.9,
        strays: Sequence[Stray] = (),
        **changes: Any,
    ) -> None:
        self.pods = pods_of(holders)
        seen = gpus(snapshot(_node(node, load)), Past())
        self.gpus = accounted(seen, self.pods, why=why)
        self.why, self.strays = why, tuple(strays)
        settings = {
            "tool": "get_pod_gpu_allocation",
            "arguments": AgentArguments,
            "result": NodeAllocation,
            "data": Stray(
                pid=1, gpu_index=0, gpu_uuid=None, command="", memory_bytes=None, pod_uid=None
            ),
        }
        super().__init__(node, **(settings | changes))

    def answer(self, arguments: Arguments) -> BaseModel:
        assert isinstance(arguments, AgentArguments)
        pods = tuple(
            pod
            for pod in self.pods
            if arguments.namespace in (None, pod.namespace) and arguments.pod in (None, pod.pod)
        )
        narrow = arguments.namespace is not None or arguments.pod is not None
        return NodeAllocation(
            node=self.node,
            simulated=True,
            message=None,
            source="none" if self.why else "pod_resources",
            why=self.why,
            totals=totals(self.gpus, pods=len(self.pods), strays=len(self.strays)),
            pods=pods,
            pods_omitted=0,
            gpus=tuple(
                gpu for gpu in self.gpus if not narrow or any(holds(pod, gpu) for pod in pods)
            ),
            strays=() if narrow else self.strays,
            allocatable={},
            age_seconds=1.0,
            holders_age_seconds=1.0,
            unavailable={},
        )

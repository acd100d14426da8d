"""An agent's answer as one of those who count a node's GPUs."""

from __future__ import annotations

from mcp_gpu.gpu.pci import address
from mcp_gpu.tools.node_model import NodeDescription, NodeGpu
from mcp_gpu.workloads.counts.model import Board, Driver

__all__ = ["driver"]

_FOR_MACHINES = ("host_vgpu", "host_vsga")
"""Modes of virtualisation in which a GPU's parts are given to virtual machines."""


def driver(told: NodeDescription) -> Driver:
    """What it says of NVML."""
    return Driver(
        count=told.gpu_count,
        boards=tuple(map(_board, told.gpus)) if told.gpu_count is not None else (),
        most=told.gpu_count_most,
        wanted=told.gpu_count_wanted,
        instances_known=not any(gpu.mig and gpu.mig_profiles is None for gpu in told.gpus),
        for_machines=any(gpu.virtualization in _FOR_MACHINES for gpu in told.gpus),
        why="" if told.gpu_count is not None else told.message or "it has not been read yet",
    )


def _board(gpu: NodeGpu) -> Board:
    return Board(
        index=gpu.index,
        uuid=gpu.uuid,
        address=None if gpu.pci_bus_id is None else address(gpu.pci_bus_id),
        lost=gpu.state == "lost",
        sound=None if gpu.verdict == "unknown" else gpu.verdict != "failed",
        mig=bool(gpu.mig),
        profiles=gpu.mig_profiles or {},
    )

"""The PCI bus of a simulated node: its kernel sees what its driver may not."""

from __future__ import annotations

from mcp_gpu.gpu.pci import PciBus, PciGpu, address
from mcp_gpu.gpu.simulator.board import Gpu
from mcp_gpu.gpu.simulator.faults import GPU_IS_LOST, Fault, Lost, Vanished
from mcp_gpu.gpu.simulator.node import Node

__all__ = ["driver_loaded", "pci_bus"]


def driver_loaded(node: Node) -> bool:
    """Whether the kernel module is there now."""
    if node.on_call is not None:
        node.on_call()
    return not any(fault.kind == "driver_not_loaded" for fault in node.faults)


def pci_bus(node: Node) -> PciBus:
    """The GPUs on it now. One that has fallen off stays listed and answers nothing, until the
    machine has been started again without it."""
    driver = "nvidia" if driver_loaded(node) else None
    gpus = [_on_bus(node, gpu, driver) for gpu in node.gpus]
    return PciBus(gpus=tuple(gpu for gpu in gpus if gpu is not None), why="")


def _on_bus(node: Node, gpu: Gpu, driver: str | None) -> PciGpu | None:
    faults = [fault for fault in node.faults if fault.concerns(gpu.index)]
    if any(isinstance(fault, Vanished) and not fault.on_bus for fault in faults):
        return None
    pci = gpu.at_rest("nvmlDeviceGetPciInfo_v3")
    return PciGpu(
        address=address(pci["busId"]),
        device_id=f"{pci['pciDeviceId'] >> 16:04x}",
        driver=driver,
        answers=not any(map(_is_off, faults)),
    )


def _is_off(fault: Fault) -> bool:
    """Whether NVML's refusal means that the board is off the bus."""
    return isinstance(fault, Lost) or getattr(fault, "return_code", 0) == GPU_IS_LOST

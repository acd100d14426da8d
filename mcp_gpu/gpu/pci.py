"""GPUs as a node's PCI bus has them, whatever driver they have: `PciGpu`, `PciBus`."""

from __future__ import annotations

from pydantic import Field

from mcp_gpu.gpu.wire import Wire

__all__ = ["PciBus", "PciGpu", "address"]

_PASSED_ON = ("vfio", "pci-stub", "pciback")
"""In the names of drivers that hand a device to a virtual machine."""


class PciGpu(Wire):
    """One NVIDIA GPU on the bus."""

    address: str = Field(description="Such as 0000:53:00.0.")
    device_id: str = Field(description="Hexadecimal, such as 2330; empty: not readable.")
    driver: str | None = Field(description="Kernel driver bound to it; null: none is.")
    answers: bool | None = Field(
        description="False: its configuration reads as all ones, as of a device that fell off "
        "the bus; null: not looked at."
    )

    @property
    def passed_on(self) -> bool:
        """Whether it is held for a virtual machine, so that this node's NVML has no part in it."""
        return self.driver is not None and any(word in self.driver for word in _PASSED_ON)


class PciBus(Wire):
    """The NVIDIA GPUs on a node's bus."""

    gpus: tuple[PciGpu, ...] | None = Field(description="By address; null: the bus is not seen.")
    why: str = Field(description="Why it is not seen; empty if it is.")


def address(nvml: str) -> str:
    """As the kernel writes what NVML calls `00000000:53:00.0`."""
    domain, _, rest = nvml.lower().partition(":")
    return f"{domain[-4:]}:{rest}"

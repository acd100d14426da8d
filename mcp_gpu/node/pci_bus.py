"""The node's PCI bus as its kernel has it, which every container sees: `look`.

NVML counts what the driver has started. The bus has what is plugged in: a GPU without a driver, one
held for a virtual machine, one that has fallen off and is still listed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from mcp_gpu.gpu.pci import PciBus, PciGpu

__all__ = ["DEVICES", "look"]

DEVICES: Final = Path("/sys/bus/pci/devices")

_NVIDIA: Final = "0x10de"

_GPU: Final = ("0x0300", "0x0302")
"""PCI classes of GPUs: VGA and 3D controllers. An NVSwitch is a bridge, a sound device another."""

_GONE: Final = b"\xff\xff\xff\xff"
"""What the root port answers for a device that does not."""

_READ_BYTES: Final = 64
_GPUS: Final = 64
"""Most that are told of one node."""


def look(devices: Path = DEVICES) -> PciBus:
    """Look at the bus. Never raises. May block for as long as a dead device's slot takes.

    What a GPU shares itself into for virtual machines (SR-IOV's virtual functions) is no GPU.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(devices))
    except OSError as error:
        return PciBus(gpus=None, why=f"{devices}: {error.strerror}")
    gpus = [
        _gpu(devices / name, name)
        for name in names
        if _text(devices / name / "vendor") == _NVIDIA
        and _text(devices / name / "class").startswith(_GPU)
        and not os.path.lexists(devices / name / "physfn")
    ]
    return PciBus(gpus=tuple(gpus[:_GPUS]), why="")


def _gpu(path: Path, name: str) -> PciGpu:
    gpu = PciGpu(
        address=name,
        device_id=_text(path / "device").removeprefix("0x"),
        driver=_bound(path),
        answers=None,
    )
    # A virtual machine's is left alone: to read it may wake it.
    return gpu if gpu.passed_on else gpu.model_copy(update={"answers": _answers(path)})


def _bound(path: Path) -> str | None:
    try:
        return os.path.basename(os.readlink(path / "driver"))
    except OSError:
        return None


def _answers(path: Path) -> bool | None:
    """Whether its configuration is more than ones. The kernel's own word for its vendor is of the
    time when it was found."""
    try:
        with (path / "config").open("rb", buffering=0) as file:
            first = file.read(len(_GONE))
    except OSError:
        return None
    return first != _GONE if first is not None and len(first) == len(_GONE) else None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_READ_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""

"""What the GPUs of a node stand in: its kernel, system, container runtime, driver and PCI bus."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import Field

from mcp_gpu.gpu.pci import PciBus
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.node import pci_bus as bus_of_node
from mcp_gpu.node.gpu_access import library_version, module_version, read
from transports.text import visible

if TYPE_CHECKING:
    from mcp_gpu.gpu.simulator import Node

__all__ = ["Surroundings", "look", "simulated"]

NO_MODULE: Final = "no nvidia kernel module is loaded"

_RUNTIMES: Final = {
    "containerd": "/io.containerd.",
    "cri-o": "/containers/storage/",
    "docker": "/docker/overlay2/",
}
"""Each with the folder that it keeps containers' layers in."""

_NAME: Final = re.compile(r'^PRETTY_NAME="?([^"\n]{1,100})"?$', re.MULTILINE)


NAMES: Final = ("kernel", "os", "runtime", "module_version", "library_version")


class Surroundings(Wire):
    """A null has its reason in `unavailable`."""

    kernel: str | None = Field(description="Release of the node's kernel.")
    os: str | None
    runtime: str | None = Field(description="What runs the agent's container.")
    module_version: str | None = Field(description="Of the driver's kernel module.")
    library_version: str | None = Field(
        description="Of the driver that the NVML library in use is of."
    )
    bus: PciBus
    unavailable: dict[str, str]

    @classmethod
    def unseen(cls, why: str) -> Surroundings:
        """Of a node where nothing could be looked at."""
        nothing = dict.fromkeys(NAMES)
        return cls(**nothing, bus=PciBus(gpus=None, why=why), unavailable=dict.fromkeys(NAMES, why))


def look(root: Path = Path("/")) -> Surroundings:
    """Look around. Never raises. May block, as reading the bus may.

    Args:
        root: where /etc, /proc and /sys are.
    """
    unavailable: dict[str, str] = {}

    def known(name: str, value: str | None, why: str) -> str | None:
        if not value:
            unavailable[name] = why
            return None
        return visible(value)

    place, module = _layers(root), module_version(root)
    runtime = next((name for name, folder in _RUNTIMES.items() if folder in place), None)
    system = _NAME.search(read(root / "etc/os-release")) if not place else None
    return Surroundings(
        kernel=known("kernel", os.uname().release, "not told"),
        os=known(
            "os",
            system[1] if system else None,
            "the agent's container shows its own system, not the node's" if place else "not told",
        ),
        runtime=known(
            "runtime",
            runtime,
            "not to be told from the container" if place else "the agent runs in no container",
        ),
        module_version=known(
            "module_version", module, NO_MODULE if module is None else "the module does not tell"
        ),
        library_version=known(
            "library_version", library_version(root), "no NVML library is in use"
        ),
        bus=bus_of_node.look(root / bus_of_node.DEVICES.relative_to("/")),
        unavailable=unavailable,
    )


def simulated(node: Node) -> Surroundings:
    """Those of a simulated node: this machine's tell nothing of it."""
    from mcp_gpu.gpu.simulator import driver_loaded, pci_bus

    loaded = driver_loaded(node)
    unavailable = dict.fromkeys(("kernel", "os", "runtime"), "the node is simulated")
    if not loaded:
        unavailable["module_version"] = NO_MODULE
    return Surroundings(
        kernel=None,
        os=None,
        runtime=None,
        module_version=node.driver if loaded else None,
        library_version=node.driver,
        bus=pci_bus(node),
        unavailable=unavailable,
    )


def _layers(root: Path) -> str:
    """How the root of this process is mounted where it is a container's; else empty."""
    for line in read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[4:5] == ["/"]:
            return after if after.startswith("overlay ") else ""
    return ""

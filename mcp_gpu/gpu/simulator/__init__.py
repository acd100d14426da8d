"""A libnvidia-ml.so.1 in Python below the real binding: fleets of GPUs and their faults.

`install(node)` makes pynvml talk to a simulated machine instead of a driver. One machine at a
time per process, for every thread in it. docs/simulator.md shows fleet files and faults.
"""

from mcp_gpu.gpu.simulator.binding import install, installed, uninstall
from mcp_gpu.gpu.simulator.bus import driver_loaded, pci_bus
from mcp_gpu.gpu.simulator.fleet import Fleet, FleetError, default_fleet, load_fleet
from mcp_gpu.gpu.simulator.node import Node
from mcp_gpu.gpu.simulator.profiles import ProfileError, load_profile, shipped_profiles
from mcp_gpu.gpu.simulator.snapshots import snapshot, snapshots

__all__ = [
    "Fleet",
    "FleetError",
    "Node",
    "ProfileError",
    "default_fleet",
    "driver_loaded",
    "install",
    "installed",
    "load_fleet",
    "load_profile",
    "pci_bus",
    "shipped_profiles",
    "snapshot",
    "snapshots",
    "uninstall",
]

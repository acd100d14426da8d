"""Which Xids are asked for, and on which GPUs they may be: `View` and `Device`."""

from __future__ import annotations

from dataclasses import dataclass

from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.xid.incidents import Incident
from mcp_gpu.gpu.xid.line import bus_id

__all__ = ["Device", "View", "devices"]


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU that Xids may be of."""

    index: int
    uuid: str | None
    name: str | None
    recovery_action: str | None = None
    """What the driver asks for now; None where it cannot be read."""
    read_at: float = 0.0
    """When that was read, Unix seconds."""


def devices(snapshot: Snapshot, *, fresh_since: float) -> dict[str, Device]:
    """The GPUs by bus id, as `XidEvent` has it.

    Args:
        fresh_since: Unix seconds; what the driver asked for before is not told.
    """
    read_at = snapshot.slow_at or 0.0
    fresh = read_at >= fresh_since
    return {
        bus_id(gpu.pci_bus_id): Device(
            gpu.index, gpu.uuid, gpu.name, gpu.recovery_action if fresh else None, read_at
        )
        for gpu in snapshot.gpus
        if gpu.pci_bus_id is not None
    }


@dataclass(frozen=True, slots=True)
class View:
    """Which Xids are asked for. Those left out may still be the cause of others."""

    since: float | None = None
    """Unix seconds. A burst that reaches into this time is told whole."""
    boot_id: str = ""
    """The present boot; empty where it is not known."""
    this_boot: bool = False
    """Leave out former boots."""
    codes: frozenset[int] = frozenset()
    """Only these; empty: all."""

    def shows(self, incident: Incident) -> bool:
        """Whether it is within the time asked for."""
        if self.this_boot and self.former(incident):
            return False
        return self.since is None or incident.until >= self.since

    def former(self, incident: Incident) -> bool:
        """Whether it is of another boot than the present one."""
        return bool(self.boot_id and incident.boot_id) and incident.boot_id != self.boot_id

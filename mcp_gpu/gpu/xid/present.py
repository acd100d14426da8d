"""What is known of a node now, by which its Xids are judged: `Present` and `Device`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.gpu.xid.line import bus_id
from mcp_gpu.gpu.xid.model import OFF_THE_BUS, Burst

__all__ = ["Device", "Present", "branch"]

FRESH_SECONDS: Final = 120.0
"""What the driver asks for counts no longer than this after it was read: by then a GPU may have
been reset, or a driver that hangs may have been saying the same for hours."""

_CLEAN: Final = ("row_remap_pending", "row_remap_failure", "ecc_uncorrected_volatile")


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
    answered_at: float | None = None
    """When the GPU last answered; None: it does not."""
    clean_at: float | None = None
    """When its memory was last read and had no uncorrected error and no row to be replaced."""
    row_waits: bool = False
    """A row of its memory waits for a reset to be replaced: there was none since."""


@dataclass(frozen=True, slots=True)
class Present:
    """A node as it is now; by default one of which nothing is known."""

    at: float = 0.0
    """Unix seconds."""
    devices: Mapping[str, Device] = field(default_factory=dict)
    """Its GPUs by bus id, as `XidEvent` has it."""
    driver_branch: int | None = None
    boot_id: str = ""
    """The present boot; empty where it is not known."""

    @classmethod
    def of(
        cls, snapshot: Snapshot, bursts: Sequence[Burst], *, at: float, boot_id: str = ""
    ) -> Self:
        """What a snapshot tells, and the Xids of its node of where a lost GPU was."""
        named = [(bus_id(gpu.pci_bus_id or ""), gpu) for gpu in snapshot.gpus]
        devices = {place: _device(snapshot, gpu, at) for place, gpu in named if place}
        present = cls(at, devices, branch(snapshot.driver_version), boot_id)
        # A GPU that was off the bus before anybody read it has told no address: the kernel has.
        lost = [
            gpu
            for place, gpu in named
            if not place and gpu.state != "ok" and "no_permission" not in gpu.unavailable.values()
        ]
        fallen = {
            each.first.bus_id
            for each in bursts
            if (each.first.kind, each.first.code) == ("xid", OFF_THE_BUS)
            and each.first.bus_id
            and each.first.bus_id not in devices
            and not present.former(each.first.boot_id)
        }
        if len(lost) != 1 or len(fallen) != 1:
            return present
        return replace(present, devices={**devices, fallen.pop(): _device(snapshot, lost[0], at)})

    def former(self, boot_id: str) -> bool:
        """Whether something of that boot was before the present one."""
        return bool(self.boot_id and boot_id) and boot_id != self.boot_id


def branch(driver_version: str | None) -> int | None:
    """The branch of a driver's version: 580 of `580.105.08`; None where that is none."""
    first = (driver_version or "").partition(".")[0]
    return int(first) if first.isdecimal() else None


def _device(snapshot: Snapshot, gpu: Gpu, at: float) -> Device:
    fast_at, slow_at = snapshot.fast_at, snapshot.slow_at
    fresh = fast_at is not None and fast_at >= at - FRESH_SECONDS
    answers = fresh and gpu.state == "ok" and snapshot.waiting is None
    clean = all(getattr(gpu, name) is not None and not getattr(gpu, name) for name in _CLEAN)
    asks = gpu.recovery_action
    return Device(
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        # That nothing is asked for counts of a GPU that works.
        recovery_action=asks if fresh and (answers or asks != "none") else None,
        read_at=fast_at or 0.0,
        answered_at=fast_at if answers else None,
        # A GPU that is cut by MIG keeps no counters of its memory: some drivers answer 0.
        row_waits=bool(gpu.row_remap_pending),
        clean_at=slow_at if answers and clean and not gpu.mig_mode_current else None,
    )

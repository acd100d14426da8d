"""What was read before: the snapshots that a rate or an increase is measured against.

A new initialisation of NVML says nothing of the driver: it may have been loaded anew in between,
with every counter back at 0. Where a GPU is lost NVML is initialised ever again, and the others
would never have a past. So it is shown for each GPU that its counters ran on (`ran_on`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.gpu.vitals import Vitals

WINDOW: Final = 20
"""Slow readings kept: ten minutes at the default period."""

PEAK: Final = 2.0
"""No GPU draws more than this many times its highest power limit over a second or more: limits
are kept to on the average of some tens of milliseconds. Generous. UNVERIFIED."""

_COUNTERS: Final = ("pcie_replays", "pcie_recoveries", "slowed_by_power_cap_seconds")
"""Of `Vitals`. Those that grow on healthy boards, too: one that is lower was set back."""


@dataclass(frozen=True, slots=True)
class Past:
    """Earlier readings whose counters can be compared with those of now.

    All are as of one generation: GPUs are where they are now, and those of a former generation
    whose counters may have been set back in between have no readings there.
    """

    first: Snapshot | None = None
    """The earliest that can be compared."""
    recent: tuple[Snapshot, ...] = ()
    """The last `WINDOW` with slow readings of their own, oldest first; the newest may be what is
    compared with them."""


class History:
    """Collects them. One thread adds, any thread takes."""

    def __init__(self) -> None:
        self._recent: deque[Snapshot] = deque(maxlen=WINDOW)
        self._past = Past()

    def add(self, snapshot: Snapshot) -> None:
        """Take a snapshot with slow readings that no former one had."""
        former = self._past
        if former.first is not None and snapshot.generation != former.first.generation:
            former = _carried(former, snapshot)
            self._recent = deque(former.recent, maxlen=WINDOW)
        self._recent.append(snapshot)
        # In one assignment: who takes it meanwhile never gets parts of two generations.
        self._past = Past(former.first or snapshot, tuple(self._recent))

    def forget(self) -> None:
        """The driver has gone: what comes after it begins at 0."""
        self._recent.clear()
        self._past = Past()

    def of(self, generation: int) -> Past:
        """What there is now of this generation; of any other, nothing is known."""
        past = self._past
        same = past.first is not None and past.first.generation == generation
        return past if same else Past()


def _carried(past: Past, now: Snapshot) -> Past:
    """The past of a former generation as one of the present, of those GPUs that ran on."""
    last = past.recent[-1]
    former = {gpu.uuid: position for position, gpu in enumerate(last.gpus) if gpu.uuid}
    places = {
        position: former[gpu.uuid]
        for position, gpu in enumerate(now.gpus)
        if gpu.uuid in former and ran_on(last, former[gpu.uuid], now, position)
    }
    if past.first is None or not places:
        return Past()
    gpus = [Gpu(index=position, state="unreadable") for position in range(len(now.gpus))]
    vitals = [Vitals(index=position) for position in range(len(now.gpus))]

    def moved(snapshot: Snapshot) -> Snapshot:
        then, those = list(gpus), list(vitals)
        for position, before in places.items():
            if before < min(len(snapshot.gpus), len(snapshot.vitals)):
                then[position] = snapshot.gpus[before]
                those[position] = snapshot.vitals[before]
        return snapshot.model_copy(
            update={"generation": now.generation, "gpus": tuple(then), "vitals": tuple(those)}
        )

    return Past(moved(past.first), tuple(map(moved, past.recent)))


def ran_on(last: Snapshot, before: int, now: Snapshot, position: int) -> bool:
    """Whether a GPU's counters surely ran on from `last` to `now`.

    Energy is counted since the driver was loaded (nvml.h): one that has used more than it could
    since `last` has been counting for longer than that. Without persistence mode the driver lets
    go of an idle GPU between two initialisations, and counts anew without having been loaded.
    What the kernel tells of the module (/sys/module/nvidia) shows neither: its times are those of
    the first look at a file, and a GPU is reset or let go of while the module stays.
    """
    if before >= len(last.vitals) or position >= len(now.vitals):
        return False
    then, gpu = last.gpus[before], now.gpus[position]
    if not (then.persistence_mode and gpu.persistence_mode):
        return False
    if last.driver_version != now.driver_version or last.slow_at is None or now.fast_at is None:
        return False
    limit, used = gpu.power_limit_max_watts, gpu.energy_joules
    if limit is None or used is None or then.energy_joules is None:
        return False
    since_last = now.fast_at - last.slow_at
    # A clock that was set back shows nothing.
    if since_last < 0 or used < then.energy_joules or used <= PEAK * limit * since_last:
        return False
    counted = [
        (getattr(last.vitals[before], name), getattr(now.vitals[position], name))
        for name in _COUNTERS
    ]
    return all(old is None or (new is not None and new >= old) for old, new in counted)

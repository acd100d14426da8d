"""Reads a whole node through `Nvml` and keeps what it has read: the state behind a `Snapshot`.

One thread's affair, like `Nvml`. GPUs are read one by one: one that is lost, blocks or refuses
never hides the others, and keeps the identity it was last known by.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mcp_gpu.gpu.errors import (
    NOT_SUPPORTED,
    Code,
    GpuLost,
    GpuUnreadable,
    NvmlUnavailable,
    gpu_error,
)
from mcp_gpu.gpu.fields import FAST, SLOW, STATIC
from mcp_gpu.gpu.gpm import NOT_READ, Gpm
from mcp_gpu.gpu.links import Links
from mcp_gpu.gpu.meter import Meters
from mcp_gpu.gpu.model import READINGS, Gpu, GpuState, MigDevice, Snapshot
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.processes import KINDS, GpuProcesses, Processes, ProcessLists
from mcp_gpu.gpu.readings import Readings, read_group, read_mig_devices, read_system
from mcp_gpu.gpu.table import Group, Missing
from mcp_gpu.gpu.vital_fields import VITALS
from mcp_gpu.gpu.vitals import VITALS_READINGS, Vitals
from mcp_gpu.gpu.wires import Wires

log = logging.getLogger(__name__)

_UNTIL_REOPENED = frozenset({Code.GPU_IS_LOST, Code.TIMEOUT})
"""A GPU with such a trouble is left alone within its generation. A call that blocks makes all
GPUs wait: one is spent on it per attempt to reopen, which come ever more rarely."""


_GONE = "gpu_lost"
"""The reason for every null of a GPU that is not counted any more."""


@dataclass(slots=True)
class _Seen:
    """What is known of one GPU in this generation."""

    handle: Any = None
    static: Readings | None = None
    slow: Readings = field(default_factory=Readings)
    fast: Readings = field(default_factory=Readings)
    links: Links = field(default_factory=Links)
    processes: ProcessLists = field(default_factory=ProcessLists)
    vital_readings: Readings = field(default_factory=Readings)
    vitals: Vitals | None = None
    """Of `vital_readings`. Kept while they are the same: snapshots that are remembered share it."""
    instances: frozenset[int] = frozenset()
    """Ids of its MIG instances."""
    meters: Meters = field(default_factory=Meters)
    gpm: dict[int | None, Gpm | Missing] = field(default_factory=dict)
    """As last asked for, by MIG instance; None is the whole GPU."""
    trouble: GpuUnreadable | None = None

    def activity(self, instance: int | None) -> tuple[Gpm | None, str]:
        """What is known of the GPU or of an instance of it, or why it is not."""
        found = self.gpm.get(instance)
        if isinstance(found, Gpm):
            return found, ""
        reason = found.reason if found is not None else self.meters.refused or NOT_READ
        hidden = instance is None and reason == NOT_SUPPORTED and bool(self.instances)
        return None, "mig_active" if hidden else reason


class Reader:
    """Args:
    clock: Unix time, for `Snapshot.static_at` and its siblings.
    ticks: seconds of a clock that is never set, for the time between two samples.
    """

    def __init__(
        self,
        nvml: Nvml,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nvml = nvml
        self._clock, self._ticks = clock, ticks
        self._wires = Wires()
        self._gpus: list[_Seen] = []
        self._identities: list[dict[str, Any]] = []
        """Static values by index, as last known in any generation."""
        self._vanished: list[dict[str, Any]] = []
        self._snapshot = Snapshot()

    @property
    def impaired(self) -> bool:
        """Whether a new generation could bring a GPU back. Not one that we may not open: a
        container that is given some of a node's GPUs is no fault."""
        troubles = (seen.trouble for seen in self._gpus if seen.trouble)
        return bool(self._vanished) or any(t.code != Code.NO_PERMISSION for t in troubles)

    def open(self) -> None:
        """Initialise NVML, count the GPUs and read what does not change: a new generation.

        Raises:
            NvmlUnavailable
        """
        self._nvml.open()
        try:
            system = read_system(self._nvml)
            count = self._nvml.count()
            self._gpus = [_Seen() for _ in range(count)]
            self._wires = Wires()
            for index in range(count):
                self._identify(index)
        except NvmlUnavailable:
            self._nvml.close()
            raise
        before = self._snapshot
        self._remember()
        self._snapshot = Snapshot(
            state="ok",
            # Until they are read: should that fail, the last ones known are still shown.
            gpus=before.gpus,
            vitals=before.vitals,
            slow_at=before.slow_at,
            fast_at=before.fast_at,
            gpu_count=count,
            gpu_count_expected=max(count, before.gpu_count_expected or 0),
            static_at=self._clock(),
            generation=before.generation + 1,
            simulated=self._nvml.simulated,
            missing_symbols=self._nvml.missing_symbols,
            unavailable=system.unavailable,
            **system.values,
        )

    def close(self) -> None:
        """Shut NVML down; what was read stays."""
        for seen in self._gpus:
            seen.meters.free()
        self._nvml.close()

    def read_slow(self) -> None:
        """Links, modes, counters, verdicts and vitals of every GPU; tries again for missing
        handles.

        Raises:
            NvmlUnavailable
        """
        at = self._clock()
        for index, seen in enumerate(self._gpus):
            if _incomplete(seen):
                self._identify(index)
            if seen.trouble is None:
                self._read_slow(index, seen)
        self._snapshot = self._snapshot.model_copy(update={"slow_at": at})

    def read_fast(self) -> Snapshot:
        """What moves all the time, of every GPU.

        Raises:
            NvmlUnavailable
        """
        at = self._clock()
        for index, seen in enumerate(self._gpus):
            if seen.trouble is None:
                self._read_fast(index, seen, at)
        self._snapshot = self._snapshot.model_copy(
            update={
                "fast_at": at,
                "gpus": self._models(),
                "vitals": self._vitals(),
                "missing_symbols": self._nvml.missing_symbols,
            }
        )
        return self._snapshot

    def read_rest(self) -> Snapshot:
        """What is worth reading only when somebody asks: what lies between the last two samples
        of each GPU, and how the GPUs are joined.

        Raises:
            NvmlUnavailable
        """
        for index, seen in enumerate(self._gpus):
            if seen.trouble is None:
                try:
                    seen.gpm = seen.meters.read()
                except GpuUnreadable as error:
                    self._trouble(index, seen, error)
        answering = [
            (index, seen.handle, seen.vitals)
            for index, seen in enumerate(self._gpus)
            if seen.trouble is None
        ]
        wiring = self._wires.read(self._nvml, answering)
        self._snapshot = self._snapshot.model_copy(
            update={"gpus": self._models(), "vitals": self._vitals(), "wiring": wiring}
        )
        return self._snapshot

    def read_processes(self) -> Processes:
        """The processes on every GPU, beside the memory that the last fast readings told.

        Raises:
            NvmlUnavailable
        """
        at = self._clock()
        gpus = tuple(self._read_processes(*each) for each in enumerate(self._gpus))
        return Processes(gpus, at)

    def failed(self, error: NvmlUnavailable) -> Snapshot:
        """NVML as a whole refused: of the last GPUs known nothing but the identity stays true."""
        expected = self._snapshot.gpu_count_expected
        self._snapshot = Snapshot(
            state=error.state,
            failure=error.failure,
            gpus=tuple(_unreadable(gpu, error) for gpu in self._snapshot.gpus),
            vitals=tuple(_no_vitals(gpu.index, error.reason) for gpu in self._snapshot.gpus),
            gpu_count_expected=expected,
            static_at=self._snapshot.static_at,
            generation=self._snapshot.generation,
            simulated=self._nvml.simulated,
        )
        return self._snapshot

    def _identify(self, index: int) -> None:
        seen = self._gpus[index]
        try:
            seen.handle = self._nvml.handle(index)
            static = read_group(self._nvml, index, seen.handle, STATIC, Gpu, mig=False)
            _demand_a_value(static)
            seen.static, seen.trouble = static, None
        except GpuUnreadable as error:
            self._trouble(index, seen, error)

    def _trouble(self, index: int, seen: _Seen, error: GpuUnreadable) -> None:
        if seen.trouble is None or seen.trouble.code != error.code:
            log.warning("GPU %d: %s", index, error)
        seen.trouble = error

    def _remember(self) -> None:
        """Carry identities over from the last generation, for GPUs that do not answer now."""
        answering = {seen.static.values.get("uuid") for seen in self._gpus if seen.static}
        former = {
            index: identity
            for index, identity in enumerate(self._identities)
            if identity and identity.get("uuid") not in answering
        }
        if len(self._gpus) < len(self._identities):
            # The numbering has moved: whose index this was is no longer known.
            self._vanished += [one for one in former.values() if one not in self._vanished]
            former = {}
        self._vanished = [one for one in self._vanished if one.get("uuid") not in answering]
        self._identities = [
            seen.static.values if seen.static else former.get(index, {})
            for index, seen in enumerate(self._gpus)
        ]

    def _read_slow(self, index: int, seen: _Seen) -> None:
        try:
            slow = self._read(index, seen, SLOW)
            mig = bool(slow.values.get("mig_mode_current"))
            if mig:
                read_mig_devices(self._nvml, index, seen.handle, slow)
            seen.instances = _instances(slow.values.get("mig_devices", ()))
            vitals = read_group(self._nvml, index, seen.handle, VITALS, Vitals, mig=mig)
            seen.links.read(self._nvml, index, seen.handle, slow, vitals)
            slow.reset_required |= vitals.reset_required
            seen.slow = slow
            if seen.vitals is None or seen.vital_readings != vitals:
                seen.vital_readings = vitals
                seen.vitals = Vitals(index=index, unavailable=vitals.unavailable, **vitals.values)
        except GpuUnreadable as error:
            self._trouble(index, seen, error)

    def _read_fast(self, index: int, seen: _Seen, at: float) -> None:
        try:
            fast = self._read(index, seen, FAST)
            _demand_a_value(fast)
            seen.fast = fast
            seen.meters.sample(self._nvml, index, seen.handle, seen.instances, self._ticks(), at)
        except GpuUnreadable as error:
            self._trouble(index, seen, error)

    def _read_processes(self, index: int, seen: _Seen) -> GpuProcesses:
        if seen.trouble is None:
            # Before R510 what the driver reserves is not told, and counts as used.
            reserve_is_told = "memory_reserved_bytes" in seen.fast.values
            try:
                return seen.processes.read(
                    self._nvml,
                    index,
                    seen.handle,
                    driver=self._snapshot.driver_version,
                    mig=bool(seen.slow.values.get("mig_mode_current")),
                    memory_used_bytes=(
                        seen.fast.values.get("memory_used_bytes") if reserve_is_told else None
                    ),
                )
            except GpuUnreadable as error:
                self._trouble(index, seen, error)
        assert seen.trouble is not None
        return GpuProcesses(index, (), dict.fromkeys(KINDS, seen.trouble.reason))

    def _read(self, index: int, seen: _Seen, group: Group) -> Readings:
        mig = bool(seen.slow.values.get("mig_mode_current"))
        return read_group(self._nvml, index, seen.handle, group, Gpu, mig=mig)

    def _models(self) -> tuple[Gpu, ...]:
        counted = [self._model(index, seen) for index, seen in enumerate(self._gpus)]
        gone = [
            _without_readings(
                len(counted) + position, "lost", _GONE, identity,
                "NVML does not count this GPU any more: drain the node and power-cycle it.",
            )
            for position, identity in enumerate(self._gone)
        ]  # fmt: skip
        return (*counted, *gone)

    @property
    def _gone(self) -> list[dict[str, Any]]:
        """Those that vanished, unless one that is counted and has no name may be one of them."""
        return self._vanished if all(self._identities) else []

    def _vitals(self) -> tuple[Vitals, ...]:
        """Of the same GPUs as `_models`."""
        counted = [
            _no_vitals(index, seen.trouble.reason)
            if seen.trouble is not None
            else seen.vitals or Vitals(index=index)
            for index, seen in enumerate(self._gpus)
        ]
        gone = range(len(counted), len(counted) + len(self._gone))
        return (*counted, *(_no_vitals(index, _GONE) for index in gone))

    def _model(self, index: int, seen: _Seen) -> Gpu:
        if seen.static:
            self._identities[index] = seen.static.values
        if seen.trouble is not None:
            state: GpuState = "lost" if isinstance(seen.trouble, GpuLost) else "unreadable"
            return _without_readings(
                index, state, seen.trouble.reason, self._identities[index], str(seen.trouble)
            )
        parts = [part for part in (seen.static, seen.slow, seen.fast) if part is not None]
        reset = any(part.reset_required for part in parts)
        unavailable = {k: v for part in parts for k, v in part.unavailable.items()}
        values = {k: v for part in parts for k, v in part.values.items()}
        values["gpm"], reason = seen.activity(None)
        if reason:
            unavailable["gpm"] = reason
        if seen.gpm and seen.instances:
            values["mig_devices"] = tuple(
                _measured(device, *seen.activity(device.gpu_instance_id))
                for device in values["mig_devices"]
            )
        return Gpu(
            index=index,
            state="unreadable" if reset else "ok",
            error=gpu_error(Code.RESET_REQUIRED) if reset else None,
            unavailable=unavailable,
            **values,
        )


def _instances(devices: tuple[MigDevice, ...]) -> frozenset[int]:
    ids = (device.gpu_instance_id for device in devices)
    return frozenset(each for each in ids if each is not None)


def _measured(device: MigDevice, gpm: Gpm | None, reason: str) -> MigDevice:
    rest = {name: why for name, why in device.unavailable.items() if name != "gpm"}
    unavailable = rest if gpm is not None else {**rest, "gpm": reason}
    return device.model_copy(update={"gpm": gpm, "unavailable": unavailable})


def _incomplete(seen: _Seen) -> bool:
    """Whether to identify the GPU again: it has no identity, or one with passing gaps."""
    if seen.trouble is not None:
        return seen.static is None and seen.trouble.code not in _UNTIL_REOPENED
    return seen.static is None or seen.static.trouble is not None


def _demand_a_value(readings: Readings) -> None:
    """Raises: GpuUnreadable: everything was refused, and not as what a board merely lacks."""
    if not readings.values and readings.trouble is not None:
        raise GpuUnreadable(readings.trouble.code, readings.trouble.call)


def _unreadable(gpu: Gpu, error: NvmlUnavailable) -> Gpu:
    """What is still true of a GPU once NVML is gone."""
    identity = {name: getattr(gpu, name) for name in STATIC.fields}
    known = {name: value for name, value in identity.items() if value is not None}
    return _without_readings(gpu.index, "unreadable", error.reason, known, error.failure.message)


def _without_readings(
    index: int, state: GpuState, reason: str, identity: dict[str, Any], error: str
) -> Gpu:
    missing = {name: reason for name in READINGS if name not in identity}
    return Gpu(index=index, state=state, error=error, unavailable=missing, **identity)


def _no_vitals(index: int, reason: str) -> Vitals:
    return Vitals(index=index, unavailable=dict.fromkeys((*VITALS_READINGS, "links"), reason))

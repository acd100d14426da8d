"""The processes on each GPU as NVML lists them: pids, memory and a share of the GPU's time.

Whose they are is for others to find out. Pids are of the namespace that the driver answers for:
open kernel modules translate them into the caller's and leave out the others without a word,
others tell the host's. From outside the host's namespace an empty list means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from mcp_gpu.gpu.errors import NOT_SUPPORTED, Code, NvmlError
from mcp_gpu.gpu.table import Missing, text

if TYPE_CHECKING:  # a gateway runs where there is no NVML, and shares only the words
    from mcp_gpu.gpu.nvml import Nvml

__all__ = [
    "DRIVER_DEFECT",
    "KINDS",
    "UTILIZATION",
    "GpuProcess",
    "GpuProcesses",
    "Kind",
    "ProcessLists",
    "Processes",
    "Utilization",
    "has_wide_rows",
]

Kind = Literal["compute", "graphics", "mps"]

KINDS: Final[dict[Kind, str]] = {
    "compute": "nvmlDeviceGetComputeRunningProcesses_v3",
    "graphics": "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "mps": "nvmlDeviceGetMPSComputeRunningProcesses_v3",
}
"""What NVML lists, and by which function: a process may be in several lists."""

UTILIZATION: Final = "utilization"
INSTANCES: Final = "instances"

DRIVER_DEFECT: Final = "driver_defect"
"""Reason for lists that this driver gets wrong: 535.43 to 535.86 write rows with one field more
than the caller's struct has, so that all but the first are read askew (gpustat, nvitop)."""

_DEFECT: Final = ((535, 43), (535, 98))
"""First branch and release with it, and first without."""

_ATTEMPTS: Final = 3
"""A list may grow between the call for its size and the one for its rows, each time."""

_PERCENT: Final = 100
"""Samples above it have been seen of processes that had ended: they are no share of anything."""


class Utilization(NamedTuple):
    """Percent of the GPU's time over the last samples that the driver keeps, some seconds."""

    sm_percent: int = 0
    memory_percent: int = 0
    encoder_percent: int = 0
    decoder_percent: int = 0


class GpuProcess(NamedTuple):
    """One process on one GPU, or on one of its MIG instances."""

    pid: int
    kinds: tuple[Kind, ...]
    memory_bytes: int | None
    """None where NVML says that it cannot tell."""
    mig_uuid: str | None = None
    utilization: Utilization | None = None
    """None: not told. A process that is not among the samples was idle."""


@dataclass(frozen=True, slots=True)
class GpuProcesses:
    """Those of one GPU."""

    gpu_index: int
    processes: tuple[GpuProcess, ...] = ()
    unavailable: dict[str, str] = field(default_factory=dict)
    """A kind of processes, `utilization` or `instances` (of MIG) to why it could not be read."""
    memory_used_bytes: int | None = None
    """At the same time, without what the driver reserves. None: not known, or cut by MIG."""
    unlisted: tuple[int, ...] = ()
    """Pids that used the GPU lately and are in no list: they have ended, or are of another pid
    namespace."""

    @property
    def complete(self) -> bool:
        """Whether every list could be read that there is."""
        return all(
            reason == NOT_SUPPORTED
            for name, reason in self.unavailable.items()
            if name != UTILIZATION
        )

    @property
    def unaccounted_bytes(self) -> int | None:
        """Memory in use beyond what these processes hold; None where that cannot be told."""
        held = [process.memory_bytes for process in self.processes]
        if not self.complete or self.memory_used_bytes is None:
            return None
        known = [memory for memory in held if memory is not None]
        if len(known) < len(held):
            return None
        return max(self.memory_used_bytes - sum(known), 0)


class Processes(NamedTuple):
    """Those of all GPUs."""

    gpus: tuple[GpuProcesses, ...]
    read_at: float
    """Unix time before the first of them was read."""


def has_wide_rows(driver: str | None) -> bool:
    """Whether this driver writes more than the struct holds, so that its lists are not to be
    trusted."""
    found = re.match(r"(\d+)\.(\d+)", driver or "")
    first, past = _DEFECT
    return found is not None and first <= (int(found[1]), int(found[2])) < past


class ProcessLists:
    """Reads the processes of one GPU for one generation of NVML."""

    def __init__(self) -> None:
        self._sampled_at = 0
        """Of the newest sample seen, in microseconds of the driver's clock."""

    def read(
        self,
        nvml: Nvml,
        gpu_index: int,
        handle: Any,
        *,
        driver: str | None,
        mig: bool,
        memory_used_bytes: int | None,
    ) -> GpuProcesses:
        """All lists of the GPU, or those of each of its MIG instances.

        Raises:
            NvmlUnavailable, GpuUnreadable
        """
        if has_wide_rows(driver):
            refused = dict.fromkeys((*KINDS, UTILIZATION), DRIVER_DEFECT)
            return GpuProcesses(gpu_index, (), refused, None if mig else memory_used_bytes)
        unavailable: dict[str, str] = {}
        rows = _Rows()
        if mig:
            for instance, uuid in _instances(nvml, gpu_index, handle, unavailable):
                _read_lists(nvml, gpu_index, instance, uuid, rows, unavailable)
        if not mig or INSTANCES in unavailable:
            # Of a GPU that is cut, to those alone who may see all its instances.
            _read_lists(nvml, gpu_index, handle, None, rows, unavailable)
        samples: dict[int, Utilization] | None = None
        if mig:
            unavailable[UTILIZATION] = "mig_active"
        else:
            samples = self._samples(nvml, gpu_index, handle, unavailable)
        return GpuProcesses(
            gpu_index,
            tuple(rows.processes(samples)),
            unavailable,
            None if mig else memory_used_bytes,
            tuple(sorted(set(samples or ()) - rows.pids)),
        )

    def _samples(
        self, nvml: Nvml, gpu_index: int, handle: Any, unavailable: dict[str, str]
    ) -> dict[int, Utilization] | None:
        """By pid, since the last look. That there is none means that all of them were idle."""
        call = "nvmlDeviceGetProcessUtilization"
        try:
            samples = _patiently(nvml, call, gpu_index, handle, self._sampled_at)
        except NvmlError as error:
            # The binding raises SUCCESS where there is nothing to tell.
            if error.code in {0, Code.NOT_FOUND}:
                return {}
            error.raise_beyond_field()
            unavailable[UTILIZATION] = error.reason
            return None
        found: dict[int, Utilization] = {}
        for sample in sorted(samples, key=lambda sample: int(sample.timeStamp)):
            self._sampled_at = max(self._sampled_at, int(sample.timeStamp))
            shares = (sample.smUtil, sample.memUtil, sample.encUtil, sample.decUtil)
            if max(shares) <= _PERCENT and sample.pid:
                found[int(sample.pid)] = Utilization(*map(int, shares))
        return found


class _Rows:
    """Rows of several lists, drawn together by process."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int, int], GpuProcess] = {}

    @property
    def pids(self) -> set[int]:
        return {pid for pid, *_ in self._found}

    def add(self, row: Any, kind: Kind, mig_uuid: str | None) -> None:
        key = (int(row.pid), int(row.gpuInstanceId), int(row.computeInstanceId))
        memory = None if row.usedGpuMemory is None else int(row.usedGpuMemory)
        before = self._found.get(key)
        if before is None:
            self._found[key] = GpuProcess(key[0], (kind,), memory, mig_uuid)
            return
        # The same memory is told in each list that a process is in.
        told = [each for each in (before.memory_bytes, memory) if each is not None]
        kinds = before.kinds if kind in before.kinds else (*before.kinds, kind)
        uuid = before.mig_uuid or mig_uuid
        self._found[key] = GpuProcess(key[0], kinds, max(told, default=None), uuid)

    def processes(self, samples: dict[int, Utilization] | None) -> Iterator[GpuProcess]:
        for process in self._found.values():
            used = None if samples is None else samples.get(process.pid, Utilization())
            yield GpuProcess(
                process.pid, process.kinds, process.memory_bytes, process.mig_uuid, used
            )


def _read_lists(
    nvml: Nvml,
    gpu_index: int,
    handle: Any,
    mig_uuid: str | None,
    rows: _Rows,
    unavailable: dict[str, str],
) -> None:
    for kind, call in KINDS.items():
        try:
            for row in _patiently(nvml, call, gpu_index, handle):
                rows.add(row, kind, mig_uuid)
        except NvmlError as error:
            error.raise_beyond_field()
            unavailable.setdefault(kind, error.reason)


def _patiently(nvml: Nvml, call: str, gpu_index: int, *args: Any) -> list[Any]:
    """A list that may grow while it is read.

    Raises:
        NvmlError
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return list(nvml.call(call, gpu_index, *args))
        except NvmlError as error:
            if error.code != Code.INSUFFICIENT_SIZE or attempt == _ATTEMPTS:
                raise
    raise AssertionError


def _instances(
    nvml: Nvml, gpu_index: int, handle: Any, unavailable: dict[str, str]
) -> Iterator[tuple[Any, str | None]]:
    """Handles of a GPU's MIG devices with their UUIDs; those that refuse leave a reason."""
    try:
        count = int(nvml.call("nvmlDeviceGetMaxMigDeviceCount", gpu_index, handle))
    except NvmlError as error:
        error.raise_beyond_field()
        unavailable[INSTANCES] = error.reason
        return
    for number in range(count):
        try:
            mig = nvml.call("nvmlDeviceGetMigDeviceHandleByIndex", gpu_index, handle, number)
        except NvmlError as error:
            error.raise_beyond_field()
            if error.code != Code.NOT_FOUND:  # which is a hole in the numbering
                unavailable[INSTANCES] = error.reason
            continue
        yield mig, _uuid(nvml, gpu_index, mig)


def _uuid(nvml: Nvml, gpu_index: int, mig: Any) -> str | None:
    try:
        uuid = text(nvml.call("nvmlDeviceGetUUID", gpu_index, mig))
    except NvmlError as error:
        error.raise_beyond_field()
        return None
    return None if isinstance(uuid, Missing) else uuid

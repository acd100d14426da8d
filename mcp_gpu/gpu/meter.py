"""Takes the samples that `Gpm` is computed from: one for every fast reading, the last two kept.

Taking one is a single call. What lies between two takes another and some arithmetic, and is
computed when somebody asks (`Meter.read`), so that a node nobody asks pays for the samples alone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from typing import Any, Final, NamedTuple

from mcp_gpu.gpu.errors import LASTING, NOT_SUPPORTED, Code, NvmlError
from mcp_gpu.gpu.gpm import FIRST_SAMPLE, METRICS, Gpm
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.table import Missing
from mcp_gpu.gpu.xid.report import utc

APART_SECONDS: Final = 0.5
"""Samples closer to each other are not taken: NVIDIA's own tools leave 100 ms between two, and
means over less than half a second jump about."""

_MIB: Final = 1 << 20


class _Sample(NamedTuple):
    ticks: float
    at: float
    memory: Any


class Meter:
    """The last two samples of one GPU, or of one MIG instance of it.

    Args:
        instance: the GPU instance's id; None: the whole GPU.
    """

    def __init__(
        self, nvml: Nvml, gpu_index: int, handle: Any, instance: int | None = None
    ) -> None:
        self._nvml, self._gpu_index, self._handle = nvml, gpu_index, handle
        self._instance = instance
        self._taken: deque[_Sample] = deque()
        self._spare: list[Any] = []
        self._refused = ""
        """The reason of the last refusal; a lasting one is not asked again."""

    def sample(self, ticks: float, at: float) -> None:
        """Take one, unless the last is too young or the board cannot.

        Args:
            ticks: seconds of a clock that is never set.
            at: Unix time.

        Raises:
            NvmlUnavailable, GpuUnreadable
        """
        if self._refused in LASTING or (
            self._taken and ticks - self._taken[-1].ticks < APART_SECONDS
        ):
            return
        if len(self._taken) == 2:
            self._spare.append(self._taken.popleft().memory)
        try:
            if not self._spare:
                self._spare.append(self._nvml.call("nvmlGpmSampleAlloc", None))
            self._take(self._spare[-1])
        except NvmlError as error:
            error.raise_beyond_field()
            self._refused = error.reason
            return
        self._refused = ""
        self._taken.append(_Sample(ticks, at, self._spare.pop()))

    def _take(self, memory: Any) -> None:
        gpu = self._gpu_index, self._handle
        if self._instance is None:
            self._nvml.call("nvmlGpmSampleGet", *gpu, memory)
        else:
            self._nvml.call("nvmlGpmMigSampleGet", *gpu, self._instance, memory)

    def read(self) -> Gpm | Missing:
        """What lies between the two samples, or why that is not known.

        Raises:
            NvmlUnavailable, GpuUnreadable
        """
        if len(self._taken) < 2:
            return Missing(self._refused or FIRST_SAMPLE)
        older, newer = self._taken
        try:
            answers = self._nvml.gpm_metrics(
                self._gpu_index, older.memory, newer.memory, list(METRICS.values())
            )
        except NvmlError as error:
            error.raise_beyond_field()
            return Missing(error.reason)
        values: dict[str, float | int] = {}
        unavailable: dict[str, str] = {}
        for name, answer in zip(METRICS, answers, strict=True):
            if isinstance(answer, NvmlError):
                unavailable[name] = answer.reason
            elif not math.isfinite(answer):
                unavailable[name] = f"error({Code.NO_DATA})"
            else:
                values[name] = (
                    round(answer, 2) if name.endswith("_percent") else round(answer * _MIB)
                )
        seconds = round(newer.ticks - older.ticks, 3)
        return Gpm(seconds=seconds, measured_at=utc(newer.at), unavailable=unavailable, **values)

    def free(self) -> None:
        """Give the memory back. Never raises."""
        for memory in (*self._spare, *(sample.memory for sample in self._taken)):
            try:
                self._nvml.call("nvmlGpmSampleFree", None, memory)
            except NvmlError:
                pass  # The library is gone or never had it: there is nothing left to give back.
        self._spare.clear()
        self._taken.clear()


class Meters:
    """Those of one GPU and its MIG instances, within one generation."""

    def __init__(self) -> None:
        self._meters: dict[int | None, Meter] = {}
        self.refused = ""
        """Why there are no samples at all."""

    def sample(
        self, nvml: Nvml, gpu_index: int, handle: Any, instances: Collection[int],
        ticks: float, at: float,
    ) -> None:  # fmt: skip
        """Take a sample of the GPU and of each of these instances.

        Raises:
            NvmlUnavailable, GpuUnreadable
        """
        if self.refused in LASTING:
            return
        whole = self._meters.get(None)
        if whole is not None and not instances and len(self._meters) == 1:
            whole.sample(ticks, at)
            return
        if not self._meters and (reason := _why_not(nvml, gpu_index, handle)):
            self.refused = reason
            return
        self.refused = ""
        wanted = (None, *instances)
        for instance in self._meters.keys() - set(wanted):
            self._meters.pop(instance).free()
        for instance in wanted:
            if instance not in self._meters:
                self._meters[instance] = Meter(nvml, gpu_index, handle, instance)
            self._meters[instance].sample(ticks, at)

    def read(self) -> dict[int | None, Gpm | Missing]:
        """By instance; None is the whole GPU.

        Raises:
            NvmlUnavailable, GpuUnreadable
        """
        if not self._meters:
            return {None: Missing(self.refused or FIRST_SAMPLE)}
        return {instance: meter.read() for instance, meter in self._meters.items()}

    def free(self) -> None:
        """Give all memory back. Never raises."""
        for meter in self._meters.values():
            meter.free()
        self._meters.clear()


def _why_not(nvml: Nvml, gpu_index: int, handle: Any) -> str:
    """The reason why the board has no GPM; empty: it has."""
    try:
        support = nvml.call("nvmlGpmQueryDeviceSupport", gpu_index, handle)
    except NvmlError as error:
        error.raise_beyond_field()
        return error.reason
    return "" if support.isSupportedDevice else NOT_SUPPORTED

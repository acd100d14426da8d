"""Reads the groups of fields.py through `Nvml`: for each field a value or a reason."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Final

from mcp_gpu.gpu.errors import DRIVER_TOO_OLD, NOT_SUPPORTED, Code, NvmlError
from mcp_gpu.gpu.fields import LINKS, MIG, MIG_HIDES, SYSTEM, FieldValue, Group, Missing, Reading
from mcp_gpu.gpu.model import MigDevice
from mcp_gpu.gpu.nvml import Nvml

log = logging.getLogger(__name__)

MAX_LINKS: Final = 36
"""NVML_NVLINK_MAX_LINKS, an upper bound for boards that do not tell their number of links."""


@dataclass(slots=True)
class Readings:
    """What was read together: a value or a reason for each field."""

    values: dict[str, Any] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    reset_required: bool = False
    """Some call said that the GPU must be reset first."""

    def put(self, name: str, answer: Any, *, mig: bool) -> None:
        """Take a field's value, or the reason in a `Missing`."""
        if not isinstance(answer, Missing):
            self.values[name] = answer
            self.unavailable.pop(name, None)
        elif mig and answer.reason == NOT_SUPPORTED and name in MIG_HIDES:
            self.unavailable[name] = "mig_active"
        else:
            self.unavailable[name] = answer.reason


def read_system(nvml: Nvml) -> Readings:
    """Versions of driver, NVML and CUDA, and whether confidential computing is on.

    Raises:
        NvmlUnavailable: the driver is gone.
    """
    readings = Readings()
    for reading in SYSTEM:
        _read_one(nvml, None, (), reading, readings, mig=False)
    return readings


def read_group(nvml: Nvml, gpu_index: int, handle: Any, group: Group, *, mig: bool) -> Readings:
    """Every field of a group.

    Args:
        mig: whether MIG was on at the last look; the group's own answer wins over it.

    Raises:
        NvmlUnavailable, GpuLost
    """
    readings = Readings()
    for reading in group.readings:
        _read_one(nvml, gpu_index, (handle,), reading, readings, mig=mig)
        mig = readings.values.get("mig_mode_current", mig)
    if group.field_values:
        _read_field_values(nvml, gpu_index, handle, group.field_values, readings)
    if "nvlink_count" in group.fields:
        _read_links(nvml, gpu_index, handle, readings)
    return readings


def read_mig_devices(nvml: Nvml, gpu_index: int, handle: Any) -> tuple[MigDevice, ...]:
    """The MIG devices of a GPU that this process may see.

    Raises:
        NvmlUnavailable, GpuLost
    """
    devices = []
    for index in range(_mig_device_count(nvml, gpu_index, handle)):
        try:
            mig = nvml.call("nvmlDeviceGetMigDeviceHandleByIndex", gpu_index, handle, index)
        except NvmlError as error:
            error.raise_beyond_field()
            continue  # NOT_FOUND: a hole in the numbering.
        readings = Readings()
        for reading in MIG:
            _read_one(nvml, gpu_index, (mig,), reading, readings, mig=False)
        devices.append(MigDevice(index=index, **readings.values))
    return tuple(devices)


def _mig_device_count(nvml: Nvml, gpu_index: int, handle: Any) -> int:
    try:
        return int(nvml.call("nvmlDeviceGetMaxMigDeviceCount", gpu_index, handle))
    except NvmlError as error:
        error.raise_beyond_field()
        return 0


def _read_one(
    nvml: Nvml, gpu_index: int | None, handle: tuple[Any, ...], reading: Reading, into: Readings,
    *, mig: bool,
) -> None:  # fmt: skip
    for name in reading.fields:
        # An earlier reading has served the field, or was refused for another cause than age.
        if name in into.values or into.unavailable.get(name, DRIVER_TOO_OLD) != DRIVER_TOO_OLD:
            return
    try:
        answers = _answer(nvml, gpu_index, handle, reading)
    except NvmlError as error:
        error.raise_beyond_field()
        into.reset_required |= error.code == Code.RESET_REQUIRED
        answers = (Missing(error.reason),) * len(reading.fields)
    for name, answer in zip(reading.fields, answers, strict=True):
        into.put(name, answer, mig=mig)


def _answer(
    nvml: Nvml, gpu_index: int | None, handle: tuple[Any, ...], reading: Reading
) -> tuple[Any, ...]:
    if reading.structs:
        answer = nvml.fill(reading.call, reading.structs, gpu_index, *handle)
    else:
        answer = nvml.call(reading.call, gpu_index, *handle, *reading.args)
    try:
        converted = reading.convert(answer)
    except Exception as error:
        # Boundary: an answer that no board has given so far costs one field, not the snapshot.
        log.debug("%s answered %r: %r", reading.call, answer, error)
        raise NvmlError(Code.BINDING_DEFECT, reading.call) from error
    return converted if len(reading.fields) > 1 else (converted,)


def _read_field_values(
    nvml: Nvml, gpu_index: int, handle: Any, wanted: tuple[FieldValue, ...], into: Readings
) -> None:
    ids = [(value.id, value.scope) for value in wanted]
    try:
        answers = nvml.field_values(gpu_index, handle, ids)
    except NvmlError as error:
        error.raise_beyond_field()
        into.unavailable.update((value.field, error.reason) for value in wanted)
        return
    for value, answer in zip(wanted, answers, strict=True):
        if not isinstance(answer, NvmlError):
            into.values[value.field] = value.convert(answer)
            continue
        answer.raise_beyond_field()
        # An id that this binding's header defines is invalid only to an older driver.
        old = answer.code == Code.INVALID_ARGUMENT
        into.unavailable[value.field] = DRIVER_TOO_OLD if old else answer.reason


def _read_links(nvml: Nvml, gpu_index: int, handle: Any, into: Readings) -> None:
    active = 0
    for link in range(into.values.get("nvlink_count", MAX_LINKS)):
        try:
            active += nvml.call("nvmlDeviceGetNvLinkState", gpu_index, handle, link) == 1
        except NvmlError as error:
            error.raise_beyond_field()
            if link == 0:
                into.unavailable[LINKS] = error.reason
                return
            # INVALID_ARGUMENT or NOT_SUPPORTED past the last link: the end, not an error.
            break
    into.values[LINKS] = active

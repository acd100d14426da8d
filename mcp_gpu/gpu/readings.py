"""Reads the entries of a table through `Nvml`: for each field a value or a reason."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from mcp_gpu.gpu.errors import DRIVER_TOO_OLD, LASTING, NOT_SUPPORTED, Code, NvmlError
from mcp_gpu.gpu.fields import MIG, MIG_DEVICES, MIG_HIDES, SYSTEM
from mcp_gpu.gpu.gpm import NOT_READ
from mcp_gpu.gpu.model import MigDevice
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.table import FieldValue, Group, Missing, Reading
from mcp_gpu.gpu.vital_fields import MIG_HIDES_VITALS

log = logging.getLogger(__name__)

_FIELD_VALUES: Final = "nvmlDeviceGetFieldValues"

_FIELD_BATCH: Final = 128
"""Field values asked for in one call. NVIDIA names no limit."""

_MIG_HIDES: Final = MIG_HIDES | MIG_HIDES_VITALS


@dataclass(slots=True)
class Readings:
    """What was read together: a value or a reason for each field."""

    values: dict[str, Any] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    reset_required: bool = False
    """Some call said that the GPU must be reset first."""
    trouble: NvmlError | None = None
    """The first refusal that was not for a lasting reason: asked again, the call may answer."""

    def refuse(self, names: tuple[str, ...], error: NvmlError, *, mig: bool) -> None:
        """Take one refusal for all these fields.

        Raises:
            NvmlUnavailable, GpuUnreadable: it was not about the fields alone.
        """
        error.raise_beyond_field()
        self.reset_required |= error.code == Code.RESET_REQUIRED
        if error.reason not in LASTING:
            self.trouble = self.trouble or error
        for name in names:
            self.put(name, Missing(error.reason), mig=mig)

    def check(self, model: type[BaseModel]) -> None:
        """Give up the values that do not fit the model: one odd answer costs one field."""
        try:
            model(index=0, **self.values)
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                name = str(problem["loc"][0])
                log.warning("%s: %r is refused: %s", name, problem["input"], problem["msg"])
                self.values.pop(name, None)
                self.unavailable[name] = f"error({Code.BINDING_DEFECT})"

    def put(self, name: str, answer: Any, *, mig: bool) -> None:
        """Take a field's value, or the reason in a `Missing`."""
        if not isinstance(answer, Missing):
            self.values[name] = answer
            self.unavailable.pop(name, None)
        elif mig and answer.reason == NOT_SUPPORTED and name in _MIG_HIDES:
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
        read_one(nvml, None, (), reading, readings, mig=False)
    return readings


def read_group(
    nvml: Nvml, gpu_index: int, handle: Any, group: Group, model: type[BaseModel], *, mig: bool
) -> Readings:
    """Every field of a group, as `model` takes them.

    Args:
        mig: whether MIG was on at the last look; the group's own answer wins over it.

    Raises:
        NvmlUnavailable, GpuUnreadable
    """
    readings = Readings()
    if group.field_values:
        wanted = [(value, value.scope, readings) for value in group.field_values]
        read_field_values(nvml, gpu_index, handle, wanted, mig=mig)
    for reading in group.readings:
        read_one(nvml, gpu_index, (handle,), reading, readings, mig=mig)
        mig = readings.values.get("mig_mode_current", mig)
    readings.check(model)
    return readings


def read_mig_devices(nvml: Nvml, gpu_index: int, handle: Any, into: Readings) -> None:
    """The MIG devices of a GPU as `mig_devices`, with a reason where they may not be all.

    Raises:
        NvmlUnavailable, GpuUnreadable
    """
    devices = []
    try:
        count = int(nvml.call("nvmlDeviceGetMaxMigDeviceCount", gpu_index, handle))
    except NvmlError as error:
        into.refuse((MIG_DEVICES,), error, mig=False)
        return
    for index in range(count):
        try:
            mig = nvml.call("nvmlDeviceGetMigDeviceHandleByIndex", gpu_index, handle, index)
        except NvmlError as error:
            if error.code != Code.NOT_FOUND:  # which is a hole in the numbering
                into.refuse((MIG_DEVICES,), error, mig=False)
            continue
        readings = Readings()
        for reading in MIG:
            read_one(nvml, gpu_index, (mig,), reading, readings, mig=False)
        readings.check(MigDevice)
        unavailable = {"gpm": NOT_READ, **readings.unavailable}
        devices.append(MigDevice(index=index, unavailable=unavailable, **readings.values))
    into.values[MIG_DEVICES] = tuple(devices)


def read_one(
    nvml: Nvml, gpu_index: int | None, handle: tuple[Any, ...], reading: Reading, into: Readings,
    *, mig: bool,
) -> None:  # fmt: skip
    """One getter, unless its fields are served already.

    Raises:
        NvmlUnavailable, GpuUnreadable
    """
    for name in reading.fields:
        # An earlier entry has served the field, or was refused for another cause than age.
        if name in into.values or into.unavailable.get(name, DRIVER_TOO_OLD) != DRIVER_TOO_OLD:
            return
    try:
        answers = _answer(nvml, gpu_index, handle, reading)
    except NvmlError as error:
        into.refuse(reading.fields, error, mig=mig)
        return
    for name, answer in zip(reading.fields, answers, strict=True):
        into.put(name, answer, mig=mig)


def _answer(
    nvml: Nvml, gpu_index: int | None, handle: tuple[Any, ...], reading: Reading
) -> tuple[Any, ...]:
    if reading.structs:
        answer = nvml.fill(reading.call, reading.structs, gpu_index, *handle)
    else:
        answer = nvml.call(reading.call, gpu_index, *handle, *reading.args)
    converted = _converted(reading.call, reading.convert, answer)
    return converted if len(reading.fields) > 1 else (converted,)


def _converted(call: str, convert: Callable[[Any], Any], answer: Any) -> Any:
    try:
        return convert(answer)
    except Exception as error:
        # Boundary: an answer that no board has given so far costs one field, not the snapshot.
        log.debug("%s answered %r: %r", call, answer, error)
        raise NvmlError(Code.BINDING_DEFECT, call) from error


def read_field_values(
    nvml: Nvml, gpu_index: int, handle: Any, wanted: Sequence[tuple[FieldValue, int, Readings]],
    *, mig: bool,
) -> None:  # fmt: skip
    """Field values, each with its scope and where its answer goes, in as few calls as can be.

    Raises:
        NvmlUnavailable, GpuUnreadable
    """
    for start in range(0, len(wanted), _FIELD_BATCH):
        batch = wanted[start : start + _FIELD_BATCH]
        try:
            answers = nvml.field_values(
                gpu_index, handle, [(value.id, scope) for value, scope, _ in batch]
            )
        except NvmlError as error:
            for value, _, into in batch:
                into.refuse((value.field,), error, mig=mig)
            continue
        for (value, _, into), answer in zip(batch, answers, strict=True):
            _take(value, answer, into, mig=mig)


def _take(value: FieldValue, answer: float | NvmlError, into: Readings, *, mig: bool) -> None:
    if isinstance(answer, NvmlError):
        if answer.code == Code.INVALID_ARGUMENT:
            into.unavailable[value.field] = value.invalid
        else:
            into.refuse((value.field,), answer, mig=mig)
        return
    try:
        into.put(value.field, _converted(_FIELD_VALUES, value.convert, answer), mig=mig)
    except NvmlError as error:
        into.refuse((value.field,), error, mig=mig)

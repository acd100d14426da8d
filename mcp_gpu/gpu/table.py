"""What a table of readings is made of: entries that name a call, its fields and a conversion.

fields.py has the table of `Gpu`, vital_fields.py those of `Vitals` and `Link`; readings.py reads
them. Where two entries give one field, the later serves drivers that lack the earlier; field
values, many in one call, come before getters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ctypes import Structure
from dataclasses import dataclass
from typing import Any

from mcp_gpu.gpu.errors import NOT_SUPPORTED, Code
from transports.text import visible


@dataclass(frozen=True, slots=True)
class Missing:
    """In place of a value: the call answered, and this field was not in the answer."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reading:
    """One getter. `convert` makes of its answer one value, or a tuple for several `fields`."""

    call: str
    fields: tuple[str, ...]
    convert: Callable[[Any], Any]
    args: tuple[int, ...] = ()
    structs: tuple[str, ...] = ()
    """For a getter that fills a struct: its versions, newest first."""


@dataclass(frozen=True, slots=True)
class FieldValue:
    """One value of nvmlDeviceGetFieldValues, which reads many in one call."""

    id: int
    field: str
    convert: Callable[[Any], Any]
    scope: int = 0
    invalid: str = f"error({Code.INVALID_ARGUMENT})"
    """What INVALID_ARGUMENT means here. To every driver since R470 the older ids are valid."""


@dataclass(frozen=True, slots=True)
class Group:
    """What is read together."""

    name: str
    readings: tuple[Reading, ...]
    field_values: tuple[FieldValue, ...] = ()

    @property
    def fields(self) -> frozenset[str]:
        """Every field of the model that this group fills."""
        named = {field for reading in self.readings for field in reading.fields}
        return frozenset(named | {value.field for value in self.field_values})


def raw_bytes(struct: Structure, name: str) -> bytes:
    """A field's bytes. The binding's own attribute decodes strictly as UTF-8 and may raise."""
    field = getattr(type(struct), name)
    return bytes(struct)[field.offset : field.offset + field.size]


def text(value: bytes) -> str | Missing:
    """A C string. Boards without the datum answer an empty one or "N/A"."""
    decoded = visible(value.split(b"\0", 1)[0].decode(errors="replace").strip())
    return Missing(NOT_SUPPORTED) if decoded in {"", "N/A"} else decoded


def same(value: Any) -> Any:
    return value


def named(names: Mapping[int, str]) -> Callable[[int], str]:
    # A number newer than this table is still an answer.
    return lambda value: names.get(value, f"unknown({value})")


def one(call: str, field: str, convert: Callable[[Any], Any] = same, *args: int) -> Reading:
    return Reading("nvmlDevice" + call, (field,), convert, args)

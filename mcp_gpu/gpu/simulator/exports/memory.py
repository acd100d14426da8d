"""Writing answers where C callers want them: numbers, text and structs behind pointers."""

from __future__ import annotations

import ctypes as c
from collections.abc import Mapping
from typing import Any

import pynvml

from mcp_gpu.gpu.simulator.library import Refused

U32, U64, I32, PTR = c.c_uint, c.c_ulonglong, c.c_int, c.c_void_p

NO_INSTANCE = 0xFFFFFFFF
"""GPU and compute instance id of what is not in a MIG instance."""


def put(pointer: int | None, kind: Any, value: Any) -> None:
    if not pointer:
        raise Refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    kind.from_address(pointer).value = value


def put_text(pointer: int, size: int, value: str) -> None:
    data = value.encode(errors="surrogateescape") + b"\0"
    if size < len(data):
        raise Refused(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
    c.memmove(pointer, data, len(data))


def fill(struct: Any, values: Mapping[str, Any]) -> None:
    """Write a struct's fields by name: numbers, text, and bytes as hexadecimal text."""
    for name, value in values.items():
        field = getattr(type(struct), name)
        if isinstance(value, str):
            data = value.encode(errors="surrogateescape")[: field.size]
            c.memmove(c.addressof(struct) + field.offset, data.ljust(field.size, b"\0"), field.size)
        elif isinstance(value, list):
            data = bytes(value)
            c.memmove(c.addressof(struct) + field.offset, data, min(field.size, len(data)))
        elif field.size == 1:
            # c_char, which would want bytes of length one.
            c.memmove(c.addressof(struct) + field.offset, bytes([value]), 1)
        else:
            setattr(struct, name, value)

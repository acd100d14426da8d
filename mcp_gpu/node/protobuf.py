"""As much of protobuf's wire format as reading a few known messages takes: `fields`.

The library and its generated code cost 8 MiB and a compiler; the format has four kinds of values.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["ProtobufError", "fields", "text"]

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5

_MOST_BITS = 63
"""Shift of a varint's tenth byte, the last."""


class ProtobufError(ValueError):
    """The bytes are no message."""


def fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The strings, bytes and messages within a message, each with its field's number.

    Numbers are passed over: none of those that are read here has any.

    Raises:
        ProtobufError: the bytes are no message.
    """
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if not number:
            raise ProtobufError("a field has the number 0")
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _LEN:
            size, at = _varint(message, at)
            if size > end - at:
                raise ProtobufError("a field is longer than its message")
            yield number, message[at : at + size]
            at += size
        elif kind in (_I64, _I32):
            at += 8 if kind == _I64 else 4
            if at > end:
                raise ProtobufError("a number is cut off")
        else:
            raise ProtobufError(f"a field is of kind {kind}")


def text(value: memoryview) -> str:
    """A string.

    Raises:
        ProtobufError: it is no UTF-8.
    """
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise ProtobufError("a string is no UTF-8") from error


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, _MOST_BITS + 1, 7):
        if at >= len(message):
            raise ProtobufError("a number is cut off")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ProtobufError("a number is too long")

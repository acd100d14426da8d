"""One file of systemd's journal, read only: `JournalFile` gives the kernel's messages in it.

Follows the published Journal File Format (systemd.io/JOURNAL_FILE_FORMAT), regular and compact.
Only what leads to the kernel's messages is looked at: field `_TRANSPORT` → its value `kernel` →
the entries that have it. That field is journald's own word; `SYSLOG_IDENTIFIER=kernel` anybody can
write. Nothing is mapped into memory: a file that shrinks under a mapping ends the process.

A journal is written to while it is read, and may be torn. Whatever a file says, reading it ends:
every chain that is followed must lead on in one direction.
"""

from __future__ import annotations

import lzma
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

HEADER_BYTES: Final = 208
"""What every version's header has."""

_SIGNATURE: Final = b"LPKSHHRH"
_COMPACT: Final = 16
_KNOWN: Final = 1 | 2 | 4 | 8 | _COMPACT
"""Incompatible flags: compression with XZ, LZ4 and ZSTD, keyed hashes, compact."""

_ARCHIVED: Final = 2

_DATA, _FIELD, _ENTRY, _ENTRY_ARRAY = 1, 2, 3, 6
_FLAG_XZ: Final = 1
_COMPRESSED: Final = 7

_BLOCK_BYTES: Final = 4_096
_BLOCKS: Final = 256
"""Of the file kept while it is read: 1 MiB."""

_PAYLOAD_BYTES: Final = 4_096
"""Read of a value; the kernel's lines are at most 1 KiB."""

_PACKED_BYTES: Final = 65_536
"""Most of a compressed value that is unpacked."""

_MAX_ITEMS: Final = 1_024
"""Fields of one entry; journald's own limit."""

_MAX_OTHER: Final = 4_096

_MAX_OBJECTS: Final = 1 << 20
"""Buckets and fields looked at to find one."""


class JournalDamaged(Exception):
    """The file is not what it should be, or ends too soon; the text says where."""


@dataclass(frozen=True, slots=True)
class Header:
    """The part of a file's header that is used."""

    archived: bool
    file_id: str
    boot_id: str
    """Of the last entry."""
    field_table: tuple[int, int]
    """Offset and bytes of the hash table of fields."""
    first_at: float
    """Unix seconds of the first entry, whoever wrote it; 0: there is none."""
    last_at: float
    last_sequence: int


@dataclass(frozen=True, slots=True)
class KernelMessage:
    """One message of the kernel. Times in microseconds."""

    text: str
    boot_id: str
    realtime: int
    """When journald took it, of the Unix epoch."""
    monotonic: int
    """The same, of the boot's clock."""
    source_monotonic: int | None
    """When the kernel wrote it, of its log's clock."""


@dataclass(slots=True)
class Place:
    """How far the kernel's entries have been read."""

    data: int = 0
    """Offset of the value that leads to them; 0: not found yet."""
    read: int = 0
    """Entries that are done."""
    array: int = 0
    """Offset of the array of entries that is being read; 0: none yet."""
    item: int = 0
    """Entries of that array that are done."""


class JournalFile:
    """One open file.

    Raises:
        OSError: when constructed: it cannot be opened.
        JournalDamaged: from every method.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        self._blocks: dict[int, bytes] = {}
        self._compact = False
        self.unreadable = 0
        """Messages that are compressed as only libraries beyond Python's own can read."""
        self._other: set[int] = set()
        """Offsets of values known to be no message."""

    def close(self) -> None:
        """Close it. Nothing may be asked afterwards."""
        os.close(self._fd)

    def header(self) -> Header:
        """The header as it is now."""
        self._blocks.clear()
        raw = self._bytes(0, HEADER_BYTES)
        if raw[:8] != _SIGNATURE:
            raise JournalDamaged("no journal file")
        flags = _u32(raw, 12)
        if flags & ~_KNOWN:
            raise JournalDamaged(f"written by a newer systemd (flags {flags:#x})")
        self._compact = bool(flags & _COMPACT)
        return Header(
            archived=raw[16] == _ARCHIVED,
            file_id=raw[24:40].hex(),
            boot_id=raw[56:72].hex(),
            field_table=(_u64(raw, 120), _u64(raw, 128)),
            first_at=_u64(raw, 184) / 1e6,
            last_at=_u64(raw, 192) / 1e6,
            last_sequence=_u64(raw, 160),
        )

    def count(self, header: Header, place: Place) -> int:
        """How many messages of the kernel the file has."""
        place.data = place.data or self._kernel(header)
        return _u64(self._object(place.data, _DATA, 64), 56) if place.data else 0

    def skip(self, place: Place, count: int) -> int:
        """Pass over so many messages. Returns when the last of them was taken."""
        last = 0
        for offset in islice(self._entries(place), count):
            last = offset
        return _u64(self._object(last, _ENTRY, 64), 24)

    def messages(
        self, place: Place, *, limit: int, wanted: Callable[[str], bool]
    ) -> Iterator[KernelMessage]:
        """Those of the next `limit` messages of the kernel whose text is wanted; moves `place`
        on. `count` comes first."""
        if not place.data:
            return
        for offset in islice(self._entries(place), limit):
            try:
                raw = self._object(offset, _ENTRY, 64)
                items = self._items(offset, _u64(raw, 8))
                text = self._text(items)
                if text is None or not wanted(text):
                    continue
                source = self._source_time(items)
            except JournalDamaged:
                self.unreadable += 1
                continue
            yield KernelMessage(
                text=text,
                boot_id=raw[40:56].hex(),
                realtime=_u64(raw, 24),
                monotonic=_u64(raw, 32),
                source_monotonic=source,
            )

    # --- the way to the kernel's entries ----------------------------------------------------

    def _kernel(self, header: Header) -> int:
        """Offset of the value `_TRANSPORT=kernel`; 0: there is none."""
        field = self._field(header, b"_TRANSPORT")
        data = _u64(self._object(field, _FIELD, 40), 32) if field else 0
        before = 0
        while data and (not before or data < before):
            if self._payload(data, 32) == b"_TRANSPORT=kernel":
                return data
            # A new value is put at the head of the list: it leads to ever older ones.
            before, data = data, _u64(self._object(data, _DATA, 64), 32)
        return 0

    def _field(self, header: Header, name: bytes) -> int:
        table, size = header.field_table
        looked = 0
        for bucket in range(table, table + size - 15, 16):
            field, before = _u64(self._bytes(bucket, 8), 0), 0
            while field > before and looked <= _MAX_OBJECTS:
                raw = self._object(field, _FIELD, 40)
                if self._bytes(field + 40, min(len(name) + 1, _u64(raw, 8) - 40)) == name:
                    return field
                # A new one is put at the tail.
                before, field = field, _u64(raw, 24)
                looked += 1
            looked += 1
            if looked > _MAX_OBJECTS:
                raise JournalDamaged("more fields than there can be")
        return 0

    def _entries(self, place: Place) -> Iterator[int]:
        """Offsets of the entries from `place` on."""
        raw = self._object(place.data, _DATA, 64)
        total = _u64(raw, 56)
        if total and not place.read:
            place.read = 1
            yield _u64(raw, 40)
        width = 4 if self._compact else 8
        place.array = place.array or _u64(raw, 48)
        while place.read < total and place.array:
            head = self._object(place.array, _ENTRY_ARRAY, 24)
            room = (_u64(head, 8) - 24) // width
            while place.item < room and place.read < total:
                item = self._bytes(place.array + 24 + place.item * width, width)
                offset = int.from_bytes(item, "little")
                if not offset:
                    return  # Being written.
                place.item, place.read = place.item + 1, place.read + 1
                yield offset
            if place.item < room:
                return
            following = _u64(head, 16)
            if following <= place.array:
                if following:
                    raise JournalDamaged("a chain that leads back")
                return
            place.array, place.item = following, 0

    # --- what an entry says -----------------------------------------------------------------

    def _text(self, items: list[int]) -> str | None:
        """The message among these fields; None: there is none that can be read."""
        # What was new to the file was put right before the entry: mostly its message.
        for item in sorted(items, reverse=True):
            if item in self._other:
                continue
            payload = self._payload(item, _PAYLOAD_BYTES)
            if payload is None:
                self.unreadable += 1
                return None
            if payload.startswith(b"MESSAGE="):
                return payload[8:].decode("utf-8", "replace")
            if not payload.startswith(b"_SOURCE_") and len(self._other) < _MAX_OTHER:
                self._other.add(item)
        return None

    def _source_time(self, items: list[int]) -> int | None:
        name = b"_SOURCE_MONOTONIC_TIMESTAMP="
        for item in items:
            payload = self._payload(item, 64)
            if payload and payload.startswith(name) and payload[len(name) :].isdigit():
                return int(payload[len(name) :])
        return None

    def _items(self, offset: int, size: int) -> list[int]:
        """Offsets of an entry's fields."""
        width = 4 if self._compact else 16
        count = (size - 64) // width
        if not 0 < count <= _MAX_ITEMS:
            raise JournalDamaged(f"an entry of {size} bytes at {offset}")
        raw = self._bytes(offset + 64, count * width)
        if self._compact:
            return list(struct.unpack(f"<{count}I", raw))
        return list(struct.unpack(f"<{2 * count}Q", raw)[::2])

    def _payload(self, offset: int, most: int) -> bytes | None:
        """The beginning of a value, `NAME=...`; None: compressed beyond reading."""
        raw = self._object(offset, _DATA, 64)
        start = 72 if self._compact else 64
        size = _u64(raw, 8) - start
        if not raw[1] & _COMPRESSED:
            return self._bytes(offset + start, min(size, most))
        if not raw[1] & _FLAG_XZ or size > _PACKED_BYTES:
            return None
        try:
            packed = self._bytes(offset + start, size)
            return lzma.LZMADecompressor(memlimit=64 << 20).decompress(packed, max_length=most)
        except lzma.LZMAError:
            return None

    # --- bytes ------------------------------------------------------------------------------

    def _object(self, offset: int, kind: int, size: int) -> bytes:
        """The beginning of the object there."""
        raw = self._bytes(offset, size)
        if raw[0] != kind or offset % 8 or _u64(raw, 8) < size:
            raise JournalDamaged(f"no object of type {kind} at {offset}")
        return raw

    def _bytes(self, offset: int, size: int) -> bytes:
        if size < 0 or offset >= 1 << 62:
            raise JournalDamaged(f"{size} bytes at {offset}")
        first = offset // _BLOCK_BYTES
        inside = offset - first * _BLOCK_BYTES
        raw = self._block(first)[inside : inside + size]
        while len(raw) < size:
            first += 1
            more = self._block(first)[: size - len(raw)]
            if not more:
                raise JournalDamaged(f"ends before {offset + size}")
            raw += more
        return raw

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            try:
                block = os.pread(self._fd, _BLOCK_BYTES, number * _BLOCK_BYTES)
            except OSError as error:
                raise JournalDamaged(str(error)) from error
            if len(self._blocks) >= _BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[number] = block
        return block


def _u32(raw: bytes, offset: int) -> int:
    return int.from_bytes(raw[offset : offset + 4], "little")


def _u64(raw: bytes, offset: int) -> int:
    return int.from_bytes(raw[offset : offset + 8], "little")

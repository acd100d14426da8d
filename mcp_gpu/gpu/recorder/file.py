"""The recorder's file: `File`, written whole and by renaming, so that what is there is complete.

A line that names the format and its version, then JSON and arrays of the machine's own byte order,
packed by zlib, whose checksum finds damage.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

__all__ = ["File", "Unusable"]

log = logging.getLogger(__name__)

NAME: Final = "timeline"
_BEGINS: Final = f"mcp-gpu timeline 1 {sys.byteorder}\n".encode()

MAX_BYTES: Final = 64 << 20
"""Nothing larger is read, nor unpacked to more: 64 GPUs for 72 hours take less."""

_LEVEL: Final = 1
"""Of packing: most is alike, and the processor's time is the node's."""

_LEFT_SECONDS: Final = 600.0
"""A half-written file older than this is nobody's any more."""


class Unusable(Exception):
    """A file is damaged, of another version or about something else. The text says which."""


class File:
    """Args: folder: where it is; made if it is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        """The file itself."""
        return self.folder / NAME

    def load(self) -> tuple[dict[str, Any], list[memoryview]] | None:
        """What was saved last: its description, and the arrays in order; None: nothing.

        Raises:
            Unusable: the file cannot be made sense of.
            OSError: it cannot be read.
        """
        try:
            with self.path.open("rb") as opened:
                packed = opened.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        if not packed.startswith(_BEGINS):
            raise Unusable("not a timeline of this version")
        unpacking = zlib.decompressobj()
        try:
            data = unpacking.decompress(packed[len(_BEGINS) :], MAX_BYTES)
            if not unpacking.eof or unpacking.unused_data:
                raise Unusable("cut short, or too long")
            begin = data.find(b"\n") + 1
            described = json.loads(data[:begin])
            # Views: to cut the rest off again and again would copy all of it for each array.
            rest, arrays = memoryview(data)[begin:], []
            for size in described["sizes"]:
                if not isinstance(size, int) or not 0 <= size <= len(rest):
                    raise Unusable("arrays of sizes that cannot be")
                arrays.append(rest[:size])
                rest = rest[size:]
        except (zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
            raise Unusable(f"damaged ({type(error).__name__})") from error
        return described, arrays

    def save(self, described: dict[str, Any], arrays: Sequence[bytes]) -> None:
        """Put this in the place of what was there.

        Raises:
            OSError: it cannot be written; then what was there still is.
        """
        head = json.dumps(described | {"sizes": list(map(len, arrays))}).encode()
        packed = zlib.compress(b"\n".join((head, b"".join(arrays))), _LEVEL)
        self.folder.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(prefix=f".{NAME}-", dir=self.folder)
        try:
            with open(number, "wb") as opened:
                opened.write(_BEGINS)
                opened.write(packed)
                opened.flush()
                os.fsync(number)
            os.replace(name, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise

    def put_aside(self, why: str) -> None:
        """Let an unusable file be, under another name, for whoever wants to look at it. The one
        put aside before is gone."""
        aside = self.path.with_name(f"{NAME}.unusable")
        try:
            os.replace(self.path, aside)
            log.warning("timeline %s: %s; put aside as %s", self.path, why, aside.name)
        except OSError as error:
            log.warning("timeline %s: %s; it could not be put aside: %s", self.path, why, error)

    def sweep(self) -> None:
        """Take away what processes that were killed while they wrote have left."""
        with suppress(OSError):
            for left in self.folder.glob(f".{NAME}-*"):
                with suppress(OSError):
                    if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                        left.unlink()

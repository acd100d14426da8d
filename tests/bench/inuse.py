"""`python -P inuse.py FILE SECONDS ARGUMENTS`: mcp-gpu, and how much of its memory is in use.

That is written into FILE every so many seconds, each time after a look for garbage. What a process
was once given it keeps: the arenas of Python and the heap of the C library stay as large as they
had to be in the fullest moment. What is in use grows by what leaks, however little that is.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from mcp_gpu.__main__ import main

__all__ = ["InUse", "program", "read"]


@dataclass(frozen=True, slots=True)
class InUse:
    """One look."""

    at: float
    """By `time.monotonic()`, which all processes of a machine share on Linux."""
    blocks: int
    """Of up to 512 bytes, from Python's own allocator."""
    heap_bytes: int
    """Of all that is larger and all that is not Python's, from the C library's (mallinfo2)."""


def program(file: Path, seconds: float) -> Sequence[str]:
    """What `mcp-gpu` is replaced with."""
    file.touch()
    return (sys.executable, "-P", __file__, str(file), str(seconds))


def read(file: Path) -> list[InUse]:
    """The looks so far."""
    return [InUse(*json.loads(line)) for line in file.read_text().splitlines()]


class _Mallinfo2(ctypes.Structure):
    """As malloc.h of the GNU C library 2.33 and later has it."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def _look_again_and_again(file: Path, seconds: float) -> None:
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    with file.open("w", buffering=1) as lines:
        while True:
            time.sleep(seconds)
            gc.collect()
            told = mallinfo2()
            now = InUse(time.monotonic(), sys.getallocatedblocks(), told.uordblks + told.hblkhd)
            print(json.dumps(astuple(now)), file=lines)


def _main() -> None:
    _, file, seconds, *arguments = sys.argv
    sys.argv = ["mcp-gpu", *arguments]
    looking = Path(file), float(seconds)
    threading.Thread(target=_look_again_and_again, args=looking, daemon=True).start()
    sys.exit(main())


if __name__ == "__main__":
    _main()

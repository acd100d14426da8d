"""Files that are read while calls wait, from file systems that may not answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from mcp_gpu.serving.access.model import Unverifiable

__all__ = ["Reader"]

SECONDS = 2.0
"""Longest wait for a file."""

T = TypeVar("T")


class Reader:
    """Reads in a thread, one thing at a time, and leaves a thread that is held to itself: the dead
    file system behind it costs that thread and nobody's call.

    Args:
        what: is read, for errors.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._turn = anyio.Lock()
        self._held = False

    async def read(self, read: Callable[[], T]) -> T:
        """What `read` gives, or raises.

        Raises:
            Unverifiable: not in time, or an earlier one goes on still.
        """

        def alone() -> T:
            self._held = True
            try:
                return read()
            finally:
                self._held = False

        try:
            with anyio.fail_after(SECONDS):
                async with self._turn:
                    if not self._held:
                        return await anyio.to_thread.run_sync(alone, abandon_on_cancel=True)
        except TimeoutError:
            pass
        raise Unverifiable(f"{self._what}: not read within {SECONDS:g} s")

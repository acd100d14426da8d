"""Calls that may block for ever, each on a daemon thread, and so many at once at most: `Aside`.

A file on a disk that hangs, a dead device's slot and a process in the kernel's hands all keep
whoever reads them, and nothing can end that thread. Those of an executor are joined at exit, and
begun anew for each call that is given up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import anyio
from anyio.from_thread import run_sync
from anyio.lowlevel import current_token

__all__ = ["Aside", "Blocked"]

T = TypeVar("T")


class Blocked(Exception):
    """A call has not ended in time, or as many as may be are still going on."""


class Aside:
    """Args:
    name: of the threads.
    most: threads at once, those left behind among them.
    """

    def __init__(self, name: str, *, most: int = 1) -> None:
        self._name = name
        self._free = threading.Semaphore(most)

    async def run(self, call: Callable[[], T], seconds: float) -> T:
        """What `call` gives, or raises.

        Raises:
            Blocked: not in time. The thread is left behind, and free once the call ends after all.
        """
        if not self._free.acquire(blocking=False):
            raise Blocked
        ended, token = anyio.Event(), current_token()
        given: list[T] = []
        raised: list[Exception] = []

        def work() -> None:
            try:
                given.append(call())
            except Exception as error:  # is the caller's
                raised.append(error)
            finally:
                self._free.release()
                # Else that loop has ended; nobody waits there any more.
                with suppress(RuntimeError):
                    run_sync(ended.set, token=token)

        try:
            threading.Thread(target=work, name=self._name, daemon=True).start()
        except RuntimeError as error:  # no more threads are to be had
            self._free.release()
            raise Blocked from error
        with anyio.move_on_after(seconds):
            await ended.wait()
        if raised:
            raise raised[0]
        if not given:
            raise Blocked
        return given[0]

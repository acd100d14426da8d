"""SIGTERM and SIGINT to a process that serves: it ends, whatever its event loop is at."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

__all__ = ["obeying_signals"]

logger = logging.getLogger(__name__)

FORCED: Final = 1
"""Exit status of a process that was ended the hard way."""

OBEYED: Final = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def obeying_signals(announce: Callable[[], None], last_seconds: float) -> Iterator[None]:
    """The first signal has `announce` called in the event loop; a second one ends the process at
    once. One that is still there `last_seconds` after the first, as its loop is blocked or its exit
    waits for a thread that hangs (a resolver, a library), is ended as well: what a signal asked for
    must happen.

    A thread obeys, which hears of a signal from Python's own handler in C. The event loop may be
    blocked. So may the main thread, where a handler in Python would run: it waits for the call that
    the thread is in, and a call that begins just then is not interrupted (5 of 1,000 processes that
    were told to end right before they blocked never did).
    """
    loop = asyncio.get_running_loop()

    def begin_to_stop(number: int) -> None:
        logger.info("%s: stopping", signal.Signals(number).name)
        announce()

    def begin(number: int) -> None:
        with suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(begin_to_stop, number)

    heard, told = socket.socketpair()
    told.setblocking(False)
    former_fd = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    former = {number: signal.signal(number, _only_told) for number in OBEYED}
    threading.Thread(
        target=_obey, args=[heard, begin, last_seconds], name="signals", daemon=True
    ).start()
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(former_fd)
        told.close()


def _only_told(number: int, frame: FrameType | None) -> None:
    """Without a handler a signal is not told of."""


def _obey(heard: socket.socket, begin: Callable[[int], None], last_seconds: float) -> None:
    with heard:
        number = _next(heard)
        if number is None:
            return  # the server has ended unasked
        end = time.monotonic() + last_seconds
        begin(number)
        heard.settimeout(last_seconds)
        with suppress(TimeoutError):
            if _next(heard) is not None:
                os._exit(FORCED)
    time.sleep(max(end - time.monotonic(), 0.0))
    os.write(2, b"mcp-gpu: still here after the time to stop; ending at once\n")
    os._exit(FORCED)


def _next(heard: socket.socket) -> int | None:
    """The next signal to obey; None: nobody tells of any more.

    Raises:
        TimeoutError: none came in the socket's time.
    """
    while told := heard.recv(1):
        if told[0] in OBEYED:
            return told[0]
    return None

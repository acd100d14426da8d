"""The kernel log of a simulated machine: records as /dev/kmsg gives them, through a pipe."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

RING = 16_384
"""Records kept, as many as fit a kernel's usual ring of 1 or 2 MiB."""

UPTIME_SECONDS = 30 * 86_400.0
"""How long ago the simulated machine was booted; nothing can be older."""

_CHECK_SECONDS = 1.0
"""How often a feeder with nothing to tell looks whether its reader is still there."""

_PRIORITY = 3  # err, facility kern: what the driver's errors are


class KernelLog:
    """A ring of records with numbers, which any number of readers follow from its beginning.

    Args:
        boot_id: of the simulated machine, 32 hexadecimal digits.
        clock: Unix time.
    """

    def __init__(self, boot_id: str, *, clock: Callable[[], float] = time.time) -> None:
        self.boot_id, self._clock = boot_id, clock
        self.started_at = clock() - UPTIME_SECONDS
        self._ring: deque[tuple[int, bytes]] = deque(maxlen=RING)
        self._next = 0
        self._changed = threading.Condition()

    def write(self, message: str, *, seconds_ago: float = 0.0) -> None:
        """Add one record."""
        microseconds = round((self._clock() - seconds_ago - self.started_at) * 1e6)
        with self._changed:
            record = f"{_PRIORITY},{self._next},{max(0, microseconds)},-;{message}\n"
            self._ring.append((self._next, record.encode()))
            self._next += 1
            self._changed.notify_all()

    def open(self) -> int:
        """The reading end of a pipe with all records there are, and then those that come. A reader
        that is slower than the ring misses what was overwritten."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        threading.Thread(target=self._feed, args=[writing], name="kmsg", daemon=True).start()
        return reading

    def _feed(self, writing: int) -> None:
        number = 0
        reader = select.poll()
        reader.register(writing, 0)
        try:
            while not reader.poll(0):
                with self._changed:
                    if number >= self._next:
                        self._changed.wait(_CHECK_SECONDS)
                        continue
                    first = self._ring[0][0]
                    number, record = self._ring[max(0, number - first)]
                number += 1
                os.write(writing, record)
        except BrokenPipeError:
            pass  # The reader has gone in between.
        finally:
            os.close(writing)

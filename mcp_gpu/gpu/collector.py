"""The daemon thread that owns every NVML call of the process and publishes snapshots.

An NVML call can block for minutes and nothing can interrupt it, so nobody waits for the thread:
readers take the last `Snapshot`, which says how old it is and, while a call is blocked, which.
A daemon thread, because the interpreter joins every other kind when it exits.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import anyio

from mcp_gpu.gpu.errors import NvmlUnavailable
from mcp_gpu.gpu.events import XidEvents
from mcp_gpu.gpu.history import History, Past
from mcp_gpu.gpu.model import Snapshot, Waiting
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.processes import Processes
from mcp_gpu.gpu.reader import Reader

log = logging.getLogger(__name__)

WAITING_SECONDS: Final = 2.0
"""A call in progress for longer is named in `Snapshot.waiting`. The slowest healthy ones, a
first handle without persistence mode, take 1 to 3 s."""

RETRY_SECONDS: Final = 5.0
RETRY_MAX_SECONDS: Final = 300.0
"""Between attempts to initialise NVML, doubling: where there is no driver one may come later,
and a lost GPU comes back only by a reset or a reboot."""


class Collector:
    """Reads a node's GPUs for ever.

    Args:
        nvml: what to read; by default the NVML of this machine.
        fast_seconds: between readings of utilisation, power, temperature, clocks and memory.
        slow_seconds: between readings of links, modes, error counters and verdicts.
        retry_seconds: the first pause after NVML refused or a GPU was lost.
        events: the driver's Xids, listened to while NVML is open.
        told: takes every snapshot on this thread, and has to return at once.
        clock: Unix time, for the snapshot's own times.
    """

    def __init__(
        self,
        nvml: Nvml | None = None,
        *,
        events: XidEvents | None = None,
        fast_seconds: float = 2.0,
        slow_seconds: float = 30.0,
        retry_seconds: float = RETRY_SECONDS,
        told: Callable[[Snapshot], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.nvml = nvml or Nvml()
        self._reader = Reader(self.nvml, clock=clock)
        self._events, self._told = events, told
        self._fast_seconds, self._slow_seconds = fast_seconds, slow_seconds
        self._retry_seconds = self._pause = retry_seconds
        self._snapshot = Snapshot(simulated=self.nvml.simulated)
        self._history = History()
        self._read_at = -float("inf")
        """When the readings of the last snapshot were begun, on time.monotonic()."""
        self._wanted = self._read_at
        """The earliest that the next readings may be begun to satisfy everyone who asked."""
        self._processes: Processes | None = None
        self._processes_at = self._processes_wanted = self._read_at
        """As the two above, of the processes, which are read for those alone who ask."""
        self._open = False
        self._complete_at = self._complete_wanted = self._read_at
        """As the two above, for what is read on demand alone."""
        self._slow_due = self._fast_due = self._open_due = -float("inf")
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)
        self._stopping = False
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, anyio.Event]] = []

    def start(self) -> None:
        """Start reading. Once."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end after the call it is in. Returns at once; see `join`."""
        self._stopping = True
        self._wake.set()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the stopped thread; False if a call still holds it. Not for an event loop."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    @property
    def snapshot(self) -> Snapshot:
        """What is known now. Never blocks."""
        calling = self.nvml.calling
        if calling is not None:
            seconds = time.monotonic() - calling.since
            if seconds >= WAITING_SECONDS:
                waiting = Waiting(seconds=seconds, call=calling.call, gpu_index=calling.gpu_index)
                return self._snapshot.model_copy(update={"waiting": waiting})
        return self._snapshot

    def past(self) -> Past:
        """Earlier snapshots that the present one can be compared with, one per slow reading.
        Never blocks."""
        return self._history.of(self._snapshot.generation)

    async def first(self, timeout_seconds: float) -> Snapshot:
        """The snapshot once the first attempt has ended; `starting` if it has not by then."""
        with anyio.move_on_after(timeout_seconds):
            await self._until(lambda: self._snapshot.state != "starting")
        return self.snapshot

    async def fresh(self, max_age_seconds: float, timeout_seconds: float) -> Snapshot:
        """A snapshot whose fast readings are no older than that, or what there is at the deadline.

        Where NVML is absent or failing there is nothing to hurry: the last state is the answer.
        """
        oldest = time.monotonic() - max_age_seconds
        self._wanted = max(self._wanted, oldest)
        with anyio.move_on_after(timeout_seconds):
            await self._until(
                lambda: self._read_at >= oldest or self._snapshot.state in {"absent", "failing"}
            )
        return self.snapshot

    async def complete(self, max_age_seconds: float, timeout_seconds: float) -> Snapshot:
        """As `fresh`, with what is read only when somebody asks: `Gpu.gpm` and `wiring`."""
        oldest = time.monotonic() - max_age_seconds
        self._wanted = max(self._wanted, oldest)
        self._complete_wanted = max(self._complete_wanted, oldest)
        with anyio.move_on_after(timeout_seconds):
            await self._until(
                lambda: self._complete_at >= oldest or self._snapshot.state in {"absent", "failing"}
            )
        return self.snapshot

    async def processes(self, max_age_seconds: float, timeout_seconds: float) -> Processes | None:
        """The processes on the GPUs, no older than that or the last ones that were read; None where
        there are none of the driver as it is now.

        Nobody waits where a call already hangs, nor where NVML is absent or failing.
        """
        oldest = time.monotonic() - max_age_seconds
        self._processes_wanted = max(self._processes_wanted, oldest)
        if self.snapshot.waiting is None:
            with anyio.move_on_after(timeout_seconds):
                await self._until(
                    lambda: (
                        self._processes_at >= oldest
                        or self._snapshot.state in {"absent", "failing"}
                    )
                )
        return self._processes

    async def _until(self, enough: Callable[[], bool]) -> None:
        """Ask the thread for a turn after each publication until it is enough."""
        loop = asyncio.get_running_loop()
        while True:
            # Enrolled before looking: what is published in between wakes us, too.
            waiter = (loop, anyio.Event())
            with self._lock:
                self._waiters.append(waiter)
            try:
                if enough():
                    return
                self._wake.set()
                await waiter[1].wait()
            finally:
                with self._lock:
                    self._waiters = [other for other in self._waiters if other is not waiter]

    def _publish(self, snapshot: Snapshot) -> None:
        if (snapshot.state, snapshot.failure) != (self._snapshot.state, self._snapshot.failure):
            why = f": {snapshot.failure.message}" if snapshot.failure else ""
            log.info("NVML is %s%s", snapshot.state, why)
        self._snapshot = snapshot
        if self._told is not None:
            try:
                self._told(snapshot)
            except Exception:
                # Boundary: whoever listens is no reason for GPUs not to be read.
                log.exception("telling of a snapshot")
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for loop, event in waiters:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:
                pass  # That loop has been closed; nobody waits there any more.

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                due = self._turn()
            except Exception:
                # Boundary: a defect of ours must not end the only thread that reads.
                log.exception("reading NVML")
                due = time.monotonic() + self._back_off()
            self._wake.wait(max(0.0, due - time.monotonic()))
        self._shut()

    def _turn(self) -> float:
        """Do what is due. Returns when to come again."""
        now = time.monotonic()
        try:
            if now >= self._open_due and (not self._open or self._reader.impaired):
                self._reopen()
            if self._open:
                self._read()
                if self._events is not None:
                    self._events.ensure()
        except NvmlUnavailable as error:
            self._shut()
            self._open_due = time.monotonic() + self._back_off()
            self._history.forget()
            self._processes = None  # Without a driver there are none.
            self._publish(self._reader.failed(error))
        return min(self._fast_due, self._slow_due) if self._open else self._open_due

    def _reopen(self) -> None:
        """A new generation: handles of the former one are void."""
        self._shut()
        self._reader.open()
        self._open = True
        self._slow_due = self._fast_due = self._complete_at = -float("inf")
        if self._reader.impaired:
            self._open_due = time.monotonic() + self._back_off()

    def _read(self) -> None:
        impaired = self._reader.impaired
        now = time.monotonic()
        slow = now >= self._slow_due
        if slow:
            self._reader.read_slow()
            self._slow_due = now + self._slow_seconds
        processes = self._processes_at < self._processes_wanted
        if slow or processes or now >= self._fast_due or self._read_at < self._wanted:
            begun = time.monotonic()
            self._fast_due = begun + self._fast_seconds
            snapshot = self._reader.read_fast()
            self._read_at = begun
            if processes:
                # Beside the memory that was just read: what one tells is held against the other.
                self._processes, self._processes_at = self._reader.read_processes(), begun
            if not self._reader.impaired:
                # Only now: a GPU may give its name and block on its readings.
                self._pause = self._retry_seconds
            elif not impaired:
                self._open_due = time.monotonic() + self._back_off()
            if slow:
                self._history.add(snapshot)
            self._publish(snapshot)
        if self._complete_at < self._complete_wanted:
            begun = time.monotonic()
            snapshot = self._reader.read_rest()
            self._complete_at = begun
            self._publish(snapshot)

    def _shut(self) -> None:
        if self._open:
            self._open = False
            if self._events is not None:
                self._events.release()
            self._reader.close()

    def _back_off(self) -> float:
        pause = self._pause
        self._pause = min(2 * pause, max(RETRY_MAX_SECONDS, self._retry_seconds))
        return pause

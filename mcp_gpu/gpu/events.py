"""Xids as NVML tells of them while they happen: `XidEvents`, on a daemon thread of its own.

They need no privilege, and are not all: NVML never tells of 79, 119 and 120 (NVIDIA/DCGM#162),
nor of what happened before. Only Xids are asked for; NVML's other events are readings that the
collector takes anyway.

NVML counts its initialisations, and what it knows of a driver ends with the last shutdown. So the
thread has a reference of its own, which keeps its event set valid whatever the collector does, and
lets go of it when the collector begins a new generation. A thread that is stuck in the driver is
left behind with its reference, and another takes its place.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from mcp_gpu.gpu.errors import Code, NvmlError, NvmlUnavailable
from mcp_gpu.gpu.nvml import Nvml, address
from mcp_gpu.gpu.table import raw_bytes
from mcp_gpu.gpu.xid.model import SourceState, XidEvent

log = logging.getLogger(__name__)

WAIT_MILLISECONDS: Final = 1_000
"""One wait for an event, which nothing can interrupt."""

LET_GO_SECONDS: Final = 3.0
"""Longest that the collector waits for the thread to let go of NVML."""

STUCK_SECONDS: Final = 30.0
"""A call of the thread that takes longer will not come back soon."""

MAX_STUCK: Final = 3
"""Threads left behind in the driver at a time; each holds a stack and a reference."""

_RETRY_SECONDS: Final = 1.0
_AGAIN_SECONDS: Final = 60.0
"""Between attempts where NVML refuses, from the first to the second, doubling; GPUs that refuse
are asked again after the second."""

_XID: Final = 0x8
"""nvmlEventTypeXidCriticalError."""

_UNKNOWN_XID: Final = 999


class XidEvents:
    """Listens while NVML is open. `ensure` and `release` are the collector's, on its thread.

    Args:
        deliver: takes each Xid, on the listening thread.
        boot_id: of the present boot, for the events.
        library_path: as for `Nvml`.
        clock: Unix time.
    """

    def __init__(
        self,
        deliver: Callable[[XidEvent], None],
        *,
        boot_id: str = "",
        library_path: str | None = None,
        wait_milliseconds: int = WAIT_MILLISECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.deliver, self.boot_id, self.library_path = deliver, boot_id, library_path
        self.wait_milliseconds, self.clock = wait_milliseconds, clock
        self._listener: _Listener | None = None
        self._stuck: list[_Listener] = []

    def ensure(self) -> None:
        """Let somebody listen, now that NVML is open. Called again and again; returns at once."""
        listener = self._listener
        if listener is not None and listener.alive and listener.calling_seconds < STUCK_SECONDS:
            return
        if listener is not None:
            self._leave(listener)
        self._stuck = [one for one in self._stuck if one.alive]
        if len(self._stuck) < MAX_STUCK:
            self._listener = _Listener(self)
            self._listener.start()

    def release(self) -> None:
        """Let nobody hold NVML any more, as far as that can be had in `LET_GO_SECONDS`."""
        if self._listener is not None:
            self._listener.stop()
            if not self._listener.join(LET_GO_SECONDS):
                self._leave(self._listener)
            self._listener = None

    @property
    def state(self) -> SourceState:
        """What can be seen now."""
        listener = self._listener
        seconds = 0.0 if listener is None else listener.calling_seconds
        stuck = seconds >= max(LET_GO_SECONDS, 2 * self.wait_milliseconds / 1000)
        live, message = False, "NVML is not open"
        if listener is not None:
            live, message = listener.since is not None and not stuck, listener.message
            if stuck:
                message = f"NVML events: a call has not returned for {seconds:.0f} s"
        elif self._stuck:
            message = f"NVML events: {len(self._stuck)} threads are stuck in the driver"
        return SourceState(
            source="nvml",
            live=live,
            message=message,
            covers_since=listener.since if listener is not None and live else None,
            lost_records=0,
        )

    def _leave(self, listener: _Listener) -> None:
        listener.stop()
        if listener.alive:
            log.warning("NVML events: a thread is stuck in the driver and left behind")
            self._stuck.append(listener)
        if self._listener is listener:
            self._listener = None


class _Listener:
    """One thread with its reference to NVML and its event set."""

    def __init__(self, owner: XidEvents) -> None:
        self._owner = owner
        self._nvml = Nvml(library_path=owner.library_path)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nvml-events", daemon=True)
        self._pause = _RETRY_SECONDS
        """Before the next attempt."""
        self.since: float | None = None
        """Unix seconds since which some GPU is listened to; None: none is."""
        self.message = "NVML events not registered yet"

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def calling_seconds(self) -> float:
        """How long the call in progress has taken."""
        calling = self._nvml.calling
        return 0.0 if calling is None else time.monotonic() - calling.since

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def join(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self.alive

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._nvml.open()
                try:
                    self._listen()
                finally:
                    # Not Nvml.close, which spares the collector a shutdown that might block.
                    self._nvml.call("nvmlShutdown", None)
            except NvmlError as error:
                self._become(None, f"NVML events: {error}")
            except Exception:
                # Boundary: a defect of ours must not end the thread.
                log.exception("NVML events")
            self._stopping.wait(self._pause)
            self._pause = min(2 * self._pause, _AGAIN_SECONDS)

    def _listen(self) -> None:
        """Raises: NvmlError: this event set is of no use any more."""
        event_set = self._nvml.call("nvmlEventSetCreate", None)
        try:
            buses: dict[int, str] = {}
            ask_again = 0.0
            while not self._stopping.is_set():
                if time.monotonic() >= ask_again:
                    refused = self._register(event_set, buses)
                    ask_again = time.monotonic() + _AGAIN_SECONDS if refused else float("inf")
                    self._registered(buses, refused)
                if not buses:
                    # Waiting for nothing would return at once, or never.
                    self._stopping.wait(max(0.0, ask_again - time.monotonic()))
                    continue
                event = self._nvml.next_event(event_set, self._owner.wait_milliseconds)
                self._pause = _RETRY_SECONDS  # It listens: what may fail next is another matter.
                if event is not None and event.kind == _XID:
                    self._deliver(event.data, buses.get(event.device, ""))
        finally:
            self.since = None
            with suppress(NvmlError):  # What ended it says more.
                self._nvml.call("nvmlEventSetFree", None, event_set)

    def _register(self, event_set: Any, buses: dict[int, str]) -> list[str]:
        """Register every GPU that is not yet in `buses`. Returns why some could not be."""
        refused = []
        for index in range(self._nvml.count()):
            try:
                handle = self._nvml.handle(index)
                if address(handle) in buses:
                    continue
                types = self._nvml.call("nvmlDeviceGetSupportedEventTypes", index, handle)
                # Of a type that it does not support, a GPU registers nothing at all.
                if not types & _XID:
                    raise NvmlError(Code.NOT_SUPPORTED, "nvmlDeviceRegisterEvents")
                info = self._nvml.call("nvmlDeviceGetPciInfo_v3", index, handle)
                self._nvml.call("nvmlDeviceRegisterEvents", index, handle, _XID, event_set)
                buses[address(handle)] = _bus_id(raw_bytes(info, "busId"))
            except NvmlUnavailable:
                raise
            except NvmlError as error:
                refused.append(f"GPU {index} ({error.reason})")
        return refused

    def _registered(self, buses: dict[int, str], refused: list[str]) -> None:
        since = (self.since or self._owner.clock()) if buses else None
        self._become(since, f"NVML events: not of {', '.join(refused)}" if refused else "")

    def _become(self, since: float | None, message: str) -> None:
        if message != self.message:
            log.info("%s", message or "NVML events: listening")
        self.since, self.message = since, message

    def _deliver(self, code: int, bus_id: str) -> None:
        text = "the driver did not tell its number" if code == _UNKNOWN_XID else ""
        owner = self._owner
        owner.deliver(
            XidEvent(code, owner.clock(), "nvml", bus_id=bus_id, boot_id=owner.boot_id, text=text)
        )


def _bus_id(value: bytes) -> str:
    """As the kernel's lines have it: "0000:53:00" for NVML's "00000000:53:00.0"."""
    text = value.split(b"\0", 1)[0].decode("ascii", "replace").lower()
    domain, _, rest = text.partition(":")
    return f"{domain.lstrip('0'):0>4}:{rest.partition('.')[0]}"

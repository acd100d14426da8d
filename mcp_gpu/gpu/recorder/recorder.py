"""A node's last hours in bounded memory: `Recorder`, fed by the collector, on a thread of its own.

The collector's thread only lays each snapshot down; what is made of it is this thread's, and all
that a disk may hold up another's. Both are daemons, as the collector's is.

Readings lie on an axis that runs as time does, however the node's clock is set: Unix time plus what
the clock has been set back by since. A clock that is set moves no reading, and times are told by
the clock as it is now.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from mcp_gpu.gpu.health.model import GpuVerdict, Verdict
from mcp_gpu.gpu.history import ran_on
from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.recorder.events import Event, EventLog, changes
from mcp_gpu.gpu.recorder.file import File, Unusable
from mcp_gpu.gpu.recorder.metrics import METRICS
from mcp_gpu.gpu.recorder.moment import moment
from mcp_gpu.gpu.recorder.ring import Cells
from mcp_gpu.gpu.recorder.tenants import Tenant, Tenants
from mcp_gpu.gpu.recorder.track import Track

__all__ = ["MAX_HOURS", "Recorded", "Recorder"]

log = logging.getLogger(__name__)

MAX_HOURS: Final = 72.0
"""With 8 GPUs it takes 3.5 MiB for 24 hours and 8 for these."""

MAX_GPUS: Final = 64
"""Of more, those that were not read for longest are forgotten."""

FED: Final = 64
"""Snapshots that wait to be taken; more are passed over, the oldest first."""

SAVE_SECONDS: Final = 60.0
"""Between two writes of the file."""

LOAD_SECONDS: Final = 10.0
"""Longest wait for the file before recording begins without it. `FED` snapshots wait meanwhile."""

HELD_SECONDS: Final = 15.0
"""A disk that has taken so long is said to hang; the largest file takes a second or two."""

HOLD: Final = 2.5
"""A reading is true until the next, for as many times the period of reading."""

SET_SECONDS: Final = 2.0
"""A clock that is off by more against the machine's own was set; less is slewed."""

Judge = Callable[[Snapshot], Iterable[GpuVerdict]]


def steady() -> float:
    """Seconds that no setting of the clock moves. They pass while the machine is suspended, where
    the system has such a clock."""
    boot: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


class Recorded(NamedTuple):
    """A GPU that there are readings of."""

    uuid: str
    gpu_index: int
    """Where it was last."""
    name: str | None
    read_at: float | None
    """When it last gave readings, Unix seconds."""


class Recorder:
    """Args:
    node: whose GPUs; a file about another node is put aside.
    simulated: whether they are; a file about others is put aside, too.
    hours: how far back, at most `MAX_HOURS`.
    fast_seconds: the collector's period.
    file: where it outlives this process; None: nowhere.
    judge: the verdicts on a snapshot with slow readings of its own.
    clock: Unix time.
    """

    def __init__(
        self,
        node: str = "",
        *,
        simulated: bool = False,
        hours: float = 24.0,
        fast_seconds: float = 2.0,
        file: File | None = None,
        judge: Judge | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.hours = hours
        self._about = {"node": node, "simulated": simulated, "metrics": list(METRICS)}
        self._file, self._judge, self._clock = file, judge, clock
        self._hold = HOLD * fast_seconds
        self._lock = threading.Lock()
        self._tracks: dict[str, Track] = {}
        self._events = EventLog()
        self._tenants = Tenants()
        self._ahead = 0.0
        """What the axis is ahead of Unix time."""
        self._last: float | None = None
        """The latest moment taken, on the axis."""
        self._steady: float | None = None
        """When that was, by `steady`."""
        self._before = Snapshot()
        self._driver: str | None = None
        self._slow: Snapshot | None = None
        """The last one with slow readings of its own."""
        self._verdicts: dict[str, Verdict] = {}
        self._fed: deque[tuple[Snapshot, float]] = deque(maxlen=FED)
        self._seen: deque[tuple[tuple[Tenant, ...], float]] = deque(maxlen=FED)
        self._wake = threading.Event()
        self._stopping = False
        self.save_failures = 0
        """Writes of the file that failed."""
        self._failing = ""
        """Why the last write failed."""
        self._at_disk: float | None = None
        """Since when the disk has been at work, by the machine's own clock; None: it is not."""
        self._loaded, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._disk = threading.Thread(target=self._keep, name="timeline", daemon=True)

    def start(self) -> None:
        """Load what was saved, and record. Once."""
        if self._file is None:
            self._loaded.set()
        else:
            self._disk.start()
        self._thread.start()

    def stop(self) -> None:
        """Let the threads save and end. Returns at once; see `join`."""
        self._stopping = True
        self._loaded.set()  # it is not waited for any more
        self._wake.set()
        self._ending.set()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the stopped threads; False if a disk still holds one. Not for an event loop."""
        until = time.monotonic() + timeout_seconds
        for thread in (self._thread, self._disk):
            if thread.ident is not None:  # else never started
                thread.join(max(0.0, until - time.monotonic()))
        return not (self._thread.is_alive() or self._disk.is_alive())

    @property
    def unsaved(self) -> str:
        """Why what is recorded now will not outlive this process, though it should; empty: it
        will, or is not to."""
        since = self._at_disk
        if self._file is not None and since is not None:
            held = time.monotonic() - since
            if held >= HELD_SECONDS:
                return f"{self._file.path}: its disk has not answered for {held:.0f} s"
        return self._failing and f"not saved to {self._failing}"

    def feed(self, snapshot: Snapshot) -> None:
        """Take note of a snapshot. Never blocks and does next to nothing."""
        self._fed.append((snapshot, steady()))
        self._wake.set()

    def held(self, tenants: tuple[Tenant, ...]) -> None:
        """Take note of all that hold a GPU now. Never blocks and does next to nothing."""
        self._seen.append((tenants, self._clock()))
        self._wake.set()

    def tenants(self, since: float, until: float) -> tuple[Tenant, ...]:
        """Who held GPUs in a stretch of Unix time."""
        with self._lock:
            ahead = self._ahead
            oldest = (until + ahead if self._last is None else self._last) - self.hours * 3600
            found = tuple(self._tenants.between(max(since + ahead, oldest), until + ahead))
        return tuple(
            each._replace(since=each.since - ahead, until=each.until - ahead) for each in found
        )

    def gpus(self) -> tuple[Recorded, ...]:
        """Those that there are readings of, by index."""
        with self._lock:
            found = [
                Recorded(each.uuid, each.index, each.name, self._told(each.read_at))
                for each in self._tracks.values()
            ]
        return tuple(sorted(found, key=lambda each: (each.gpu_index, each.uuid)))

    def series(self, uuid: str, metric: str, since: float, until: float) -> Cells:
        """What one GPU's metric was in a stretch of Unix time, as fine as it is kept.

        Raises:
            KeyError: no such GPU.
        """
        with self._lock:
            now = until + self._ahead if self._last is None else self._last
            oldest = now - self.hours * 3600
            begin = max(since + self._ahead, oldest)
            end = max(min(until + self._ahead, now), begin)
            cells = self._tracks[uuid].cells(metric, begin, end, now)
            return cells._replace(start=cells.start - self._ahead)

    def events(self, since: float, until: float) -> tuple[Event, ...]:
        """What happened in a stretch of Unix time, oldest first."""
        with self._lock:
            ahead = self._ahead
            found = tuple(self._events.between(since + ahead, until + ahead))
        return tuple(
            each._replace(at=each.at - ahead, last_at=each.last_at - ahead) for each in found
        )

    def take(self, snapshot: Snapshot, now: float) -> None:
        """Record a snapshot. The thread's own affair.

        Args:
            now: seconds by a clock that nobody sets.
        """
        unix = self._clock() if snapshot.fast_at is None else snapshot.fast_at
        with self._lock:
            at = self._moment(unix, now)
            self._note(snapshot, at)
            fast = snapshot.fast_at is not None and snapshot.fast_at != self._before.fast_at
            if snapshot.failure is None and fast:
                self._read(snapshot, at)
            self._before = snapshot
        # Outside of the lock: it takes milliseconds, and whoever asks does not wait for it.
        if self._slow is snapshot and self._judge is not None:
            self._judged(self._judge(snapshot), at)

    def save(self) -> None:
        """Write the file, if there is to be one. A disk that refuses is told once."""
        if self._file is None or self._last is None:
            return
        with self._lock:
            tracks = list(self._tracks.values())
            described: dict[str, Any] = self._about | {
                "ahead": self._ahead,
                "last": self._last,
                "driver": self._driver,
                "events": self._events.packed(),
                "tenants": self._tenants.packed(),
                "gpus": [track.described() for track in tracks],
            }
            arrays = [data for track in tracks for ring in track.rings for data in ring.packed()]
        try:
            self._file.save(described, arrays)
        except OSError as error:
            self.save_failures += 1
            why = f"{self._file.path}: {type(error).__name__}: {error.strerror or error}"
            if why != self._failing:
                log.warning("timeline not saved to %s", why)
            self._failing = why
        else:
            if self._failing:
                log.info("timeline saved again to %s", self._file.path)
            self._failing = ""

    def load(self) -> None:
        """Begin with what was saved last. What cannot be used is put aside, with a warning."""
        if self._file is None:
            return
        self._file.sweep()
        try:
            found = self._file.load()
            if found is not None:
                self._restore(*found)
        except Unusable as error:
            self._file.put_aside(str(error))
        except OSError as error:
            log.warning("timeline not read from %s: %s", self._file.path, error.strerror or error)

    def _run(self) -> None:
        if not self._loaded.wait(LOAD_SECONDS):
            log.warning("timeline not read within %g s: recording without it", LOAD_SECONDS)
        while not self._stopping:
            self._wake.wait()
            self._wake.clear()
            self._guarded(self._drain)
        self._guarded(self._drain)

    def _keep(self) -> None:
        """The other thread's: nothing else waits for the disk."""
        self._timed(self.load)
        self._loaded.set()
        while not self._ending.wait(SAVE_SECONDS):
            self._timed(self.save)
        self._thread.join()  # it takes what was fed last
        self._timed(self.save)

    def _timed(self, act: Callable[[], None]) -> None:
        self._at_disk = time.monotonic()
        self._guarded(act)
        self._at_disk = None

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            # Boundary: a defect of ours must not end the recording.
            log.exception("recording")

    def _drain(self) -> None:
        while self._fed:
            self.take(*self._fed.popleft())
        while self._seen:
            tenants, unix = self._seen.popleft()
            with self._lock:
                self._tenants.note(tenants, unix + self._ahead)

    def _moment(self, unix: float, now: float) -> float:
        """Where on the axis a moment lies; the axis never goes back."""
        at = unix + self._ahead
        if self._last is not None:
            passed = None if self._steady is None else now - self._steady
            if passed is not None and abs(at - self._last - passed) > SET_SECONDS:
                by = at - self._last - passed
                self._ahead -= by
                at -= by
                way = "forward" if by > 0 else "back"
                self._events.add(Event(at, "clock", f"the clock was set {way} by {abs(by):.0f} s"))
            elif passed is None and at < self._last:
                # A file from a clock that was ahead: how long it is since then nobody knows.
                self._ahead += self._last - at
            at = max(at, self._last)
        self._last, self._steady = at, now
        return at

    def _note(self, snapshot: Snapshot, at: float) -> None:
        for event in changes(self._before, snapshot, at):
            self._events.add(event)
        driver = snapshot.driver_version
        if driver is not None:
            if self._driver not in (None, driver):
                self._events.add(Event(at, "driver", f"driver {driver}, {self._driver} before"))
            self._driver = driver

    def _read(self, snapshot: Snapshot, at: float) -> None:
        for gpu in snapshot.gpus:
            if gpu.uuid is None or gpu.state == "lost":
                continue
            track = self._tracks.get(gpu.uuid)
            if track is None:
                track = self._tracks[gpu.uuid] = Track(gpu.uuid, self.hours, self._hold)
                self._bound()
            track.read(at, gpu)
        former = self._slow
        if snapshot.slow_at is None or (former and former.slow_at == snapshot.slow_at):
            return
        places = {gpu.uuid: place for place, gpu in enumerate(former.gpus)} if former else {}
        for place, (gpu, vitals) in enumerate(zip(snapshot.gpus, snapshot.vitals, strict=False)):
            track = self._tracks.get(gpu.uuid or "")
            if track is None:
                continue
            before = places.get(gpu.uuid)
            if former is None or before is None or not _goes_on(former, before, snapshot, place):
                track.begin_anew()
            if gpu.state != "lost":
                track.count(at, vitals)
        self._slow = snapshot

    def _judged(self, verdicts: Iterable[GpuVerdict], at: float) -> None:
        with self._lock:
            for each in verdicts:
                if each.uuid is None:
                    continue
                before = self._verdicts.get(each.uuid)
                self._verdicts[each.uuid] = each.verdict
                if before is not None and before != each.verdict:
                    why = f" ({', '.join(each.findings)})" if each.findings else ""
                    text = f"{each.verdict}{why}, {before} before"
                    self._events.add(Event(at, "verdict", text, each.uuid, each.gpu_index))

    def _bound(self) -> None:
        while len(self._tracks) > MAX_GPUS:
            oldest = min(self._tracks.values(), key=lambda track: track.read_at or 0.0)
            del self._tracks[oldest.uuid]
            self._verdicts.pop(oldest.uuid, None)

    def _told(self, at: float | None) -> float | None:
        return None if at is None else at - self._ahead

    def _restore(self, described: dict[str, Any], arrays: list[memoryview]) -> None:
        """Raises: Unusable: it is about something else, or makes no sense."""
        try:
            other = [name for name, own in self._about.items() if described[name] != own]
            if other:
                raise Unusable(f"of another {other[0]}")
            left = iter(arrays)
            kept = described["gpus"][:MAX_GPUS]
            tracks = [Track.restored(each, left, self.hours, self._hold) for each in kept]
            events = [Event.read(each) for each in described["events"]]
            tenants = [Tenant.read(each) for each in described["tenants"]]
            ahead, last = float(described["ahead"]), moment(described["last"])
            moment(last - ahead)  # as a clock showed it
            driver = described["driver"]
        except (KeyError, TypeError, ValueError, OverflowError, StopIteration) as error:
            raise Unusable(f"damaged ({type(error).__name__})") from error
        with self._lock:
            if self._last is not None:
                raise Unusable("read too late: recording had begun")
            self._tracks = {track.uuid: track for track in tracks}
            self._events.restore(events)
            self._tenants.restore(tenants)
            self._ahead, self._last = ahead, last
            self._driver = None if driver is None else str(driver)


def _goes_on(former: Snapshot, before: int, now: Snapshot, place: int) -> bool:
    """Whether a GPU's counters can be compared with what they were."""
    return former.generation == now.generation or ran_on(former, before, now, place)

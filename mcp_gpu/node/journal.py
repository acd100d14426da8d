"""systemd's journal: the Xids of former boots, and of this one what the kernel's ring has lost.

Read by a thread of its own, a daemon like all that may wait for a disk: nobody waits for it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mcp_gpu.gpu.privileges import JOURNAL, ROOT
from mcp_gpu.gpu.xid.line import parse
from mcp_gpu.gpu.xid.model import SourceState, XidEvent
from mcp_gpu.node.boot import Boot
from mcp_gpu.node.journal_file import (
    Header,
    JournalDamaged,
    JournalFile,
    KernelMessage,
    Place,
)
from mcp_gpu.node.lines import XidLines

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 5.0

PAST_SECONDS: Final = 7 * 86_400.0
"""How far back the first look goes."""

PAST_MESSAGES: Final = 200_000
"""How many messages of the kernel the first look reads, the newest ones: some seconds of one
core, taken in slices."""

_SLICE: Final = 500
"""Messages read at once."""

_PAUSE_SECONDS: Final = 0.02
"""Between slices: the interpreter is for those who answer."""

_FILES: Final = 512
"""Looked at, the newest ones; twice as many are remembered."""

_LATE_SECONDS: Final = 60.0
"""journald runs by then; what the kernel wrote earlier is taken late and in one go."""

WHY_CHARS: Final = 300
"""Longest message about files that cannot be read."""

_MACHINE: Final = re.compile(r"[0-9a-f]{32}")

_FILE: Final = re.compile(r"system(@.*)?\.journal~?")
"""With a tilde: what journald found unclean, as after a power cut, and set aside."""


@dataclass(slots=True)
class _Known:
    """What is remembered of a file, by its id: rotation renames it."""

    place: Place = field(default_factory=Place)
    lines: XidLines = field(default_factory=lambda: XidLines("journal"))
    begun: bool = False
    sequence: int = -1
    """Last entry of the file when it had been read to its end."""
    settled: bool = False
    """Whether it was read once more since: journald counts an entry before it can be found."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    path: Path
    header: Header


class Journal:
    """Follows the journal files of one machine.

    Args:
        paths: folders such as /var/log/journal; those that are not there are passed over.
        boot: the present one.
        deliver: takes each Xid, in the journal's thread.
        kernel_log_read: whether the kernel log is read as well. Then both must tell the same time
            of an event of this boot, that of the log's own stamp; else journald's is the better.
        clock: Unix time.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        *,
        boot: Boot,
        deliver: Callable[[XidEvent], None],
        kernel_log_read: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._paths = tuple(paths)
        self._boot, self._deliver, self._kernel_log_read = boot, deliver, kernel_log_read
        self._since = clock() - PAST_SECONDS
        self._known: dict[str, _Known] = {}
        self._done: set[Path] = set()
        """Files that will not change any more, or are of another machine."""
        self._damaged: dict[Path, str] = {}
        self._budget: int | None = PAST_MESSAGES
        """What the first look may still read; None once it is over."""
        self._passed_over = 0.0
        """Unix seconds of the newest message that it had no time for."""
        self._covers_since: float | None = None
        self._unreadable = 0
        self._message = "journal not looked at yet"
        self._live = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    @property
    def state(self) -> SourceState:
        """What can be seen now."""
        return SourceState(
            source="journal",
            live=self._live,
            message=self._message,
            covers_since=self._covers_since if self._live else None,
            lost_records=self._unreadable,
        )

    def start(self) -> None:
        """Start following. Once."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end after the slice it is in. Returns at once."""
        self._stop.set()

    def _run(self) -> None:
        while True:
            try:
                for _ in self.scan():
                    if self._stop.wait(_PAUSE_SECONDS):
                        return
            except Exception:
                # Boundary: a defect of ours must not end the thread.
                log.exception("reading the journal")
            if self._stop.wait(POLL_SECONDS):
                return

    def scan(self) -> Iterator[None]:
        """Read what is new in all files, yielding after each slice. Never raises."""
        refused: list[str] = []
        files = self._files(refused)
        self._damaged = {path: why for path, why in self._damaged.items() if path in files}
        self._done &= set(files)
        begins = []
        for one in self._candidates(files, refused):
            try:
                yield from self._read(one)
            except (OSError, JournalDamaged) as error:
                self._damage(one.path, error)
                continue
            self._damaged.pop(one.path, None)
            begins.append(one.header.first_at or time.time())
        if self._budget is not None and begins:
            self._covers_since = max(min(begins), self._since, self._passed_over)
            self._budget = None
        live = any(path not in self._damaged for path in files)
        self._become(live, self._some(len(files)) if live else self._why(refused))

    def _read(self, one: _Candidate) -> Iterator[None]:
        """Raises: OSError, JournalDamaged"""
        known = self._known.setdefault(one.header.file_id, _Known())
        same = known.sequence == one.header.last_sequence
        if same and known.settled:
            return
        with closing(JournalFile(one.path)) as file:
            try:
                count = file.count(file.header(), known.place)
                if not known.begun:
                    self._begin(file, known.place, count)
                    known.begun = True
                while True:
                    before = known.place.read
                    for message in file.messages(known.place, limit=_SLICE, wanted=_is_xid):
                        if message.realtime >= self._since * 1e6:
                            self._tell(known.lines, message)
                    yield
                    if known.place.read - before < _SLICE:
                        break
            finally:
                self._unreadable += file.unreadable
        known.sequence, known.settled = one.header.last_sequence, same
        if one.header.archived:
            self._done.add(one.path)

    def _begin(self, file: JournalFile, place: Place, count: int) -> None:
        """Pass over what the first look has no time for."""
        if self._budget is None:
            return
        if count > self._budget:
            passed_over = file.skip(place, count - self._budget) / 1e6
            self._passed_over = max(self._passed_over, passed_over)
        self._budget -= min(count, self._budget)

    def _tell(self, lines: XidLines, message: KernelMessage) -> None:
        at, source = message.realtime / 1e6, message.source_monotonic
        if source is not None:
            if message.boot_id == self._boot.boot_id and self._kernel_log_read():
                at = self._boot.at(source)
            elif source < _LATE_SECONDS * 1e6:
                at -= max(0, message.monotonic - source) / 1e6
        event = lines.event(message.text, at, message.boot_id)
        if event is not None:
            self._deliver(event)

    # --- the files --------------------------------------------------------------------------

    def _files(self, refused: list[str]) -> list[Path]:
        """The system's journal files; users' have nothing of the kernel."""
        files: list[os.DirEntry[str]] = []
        for path in self._paths:
            try:
                with os.scandir(path) as folders:
                    machines = [one.path for one in folders if _MACHINE.fullmatch(one.name)]
                for machine in machines:
                    with os.scandir(machine) as entries:
                        files += [one for one in entries if _FILE.fullmatch(one.name)]
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                refused.append(f"{path}: {error.strerror}")
        # The one that is written to must not be left out for many that never change.
        return [Path(one.path) for one in sorted(files, key=_changed_at, reverse=True)[:_FILES]]

    def _candidates(self, files: list[Path], refused: list[str]) -> list[_Candidate]:
        """Those that may hold something new, the newest first."""
        found: dict[str, _Candidate] = {}
        for path in files:
            if path in self._done:
                continue
            try:
                with closing(JournalFile(path)) as file:
                    header = file.header()
            except FileNotFoundError:
                continue  # Just vacuumed or renamed; the next look finds it again.
            except (OSError, JournalDamaged) as error:
                self._damage(path, error)
                if isinstance(error, OSError):
                    refused.append(f"{path}: {error.strerror}")
                continue
            if header.archived and header.last_at < self._since:
                self._done.add(path)
            else:
                # By its id: a folder may be mounted twice.
                found.setdefault(header.file_id, _Candidate(path, header))
        ours = {
            one.path.parent.name
            for one in found.values()
            if one.header.boot_id == self._boot.boot_id
        }
        if len(self._known) > 2 * _FILES:
            self._known = {key: known for key, known in self._known.items() if key in found}
        kept = []
        for one in found.values():
            if ours and one.path.parent.name not in ours:
                # An image's or another machine's, whose GPUs are not these.
                self._done.add(one.path)
            else:
                kept.append(one)
        return sorted(kept, key=lambda one: one.header.last_at, reverse=True)

    def _damage(self, path: Path, error: OSError | JournalDamaged) -> None:
        why = (error.strerror or "cannot be read") if isinstance(error, OSError) else str(error)
        if self._damaged.get(path) != why:
            log.warning("journal file %s: %s", path, why)
        self._damaged[path] = why

    def _become(self, live: bool, message: str) -> None:
        if message != self._message:
            log.info("%s", message or "journal: reading")
        self._live, self._message = live, message

    def _some(self, files: int) -> str:
        """That some files cannot be read, though others can. Their paths differ by node and are
        in the log."""
        if not self._damaged:
            return ""
        whys = "; ".join(dict.fromkeys(self._damaged.values()))
        return f"{len(self._damaged)} of {files} journal files cannot be read: {whys}"[:WHY_CHARS]

    def _why(self, refused: list[str]) -> str:
        former = "former boots are not seen"
        if refused:
            return (
                f"journal not readable: {former}: {refused[0]} for uid {os.getuid()}; run as "
                f"{ROOT} or in the group systemd-journal"
            )
        if self._damaged:
            path, damage = next(iter(self._damaged.items()))
            return f"journal not readable: {former}: {path}: {damage}"
        if not self._paths:
            return f"no journal to read: {former}"
        places = ", ".join(map(str, self._paths))
        return f"no journal in {places}: {former}; mount {JOURNAL}"


def _changed_at(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:
        return 0.0


def _is_xid(text: str) -> bool:
    return parse(text) is not None

"""The audit log: one line of JSON for each call of a tool, and for each caller turned away.

Lines are written by a thread of their own, so a disk that is slow or full holds up no call. Calls
go on without it: what could not be written is counted, told once in the log, and told in the audit
log itself as soon as it can be written again.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import stat
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, Self

from mcp_gpu.telemetry.calls import Calls, Ended, Refused
from mcp_gpu.telemetry.origin import Origin

__all__ = ["STDERR", "AuditError", "AuditLog"]

logger = logging.getLogger(__name__)

STDERR = "-"
"""Instead of a file: standard error, where the other logs go."""

LINES_WAITING = 10_000
"""Lines that may wait for the disk. More are lost: memory is not a disk."""

REFUSALS_PER_SECOND = 20
"""Of callers turned away so many are told a line each: whoever may not call must not fill the disk
by asking. The rest are counted in the next line."""

VALUE_CHARS = 200
"""How much is kept of a text among the arguments: logs are pasted into some."""

ARGUMENTS = 20
"""How many arguments are kept. No tool takes so many."""

ARGUMENTS_CHARS = 2_000
"""Where they are longer together, as JSON, each is cut to `VALUE_CHARS` of it."""

NODES = 100
"""Nodes named in a line; all are counted."""

END_SECONDS = 1.0
"""How long the end waits for the last lines to be written."""

HIDDEN = "[hidden]"

_SECRET = re.compile(r"(?i)\bbearer\s+\S+|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*")
"""What no tool asks for, and a model may paste all the same: tokens."""


class Told(Protocol):
    """Who tells of its calls: a `mcp_gpu.registry.Registry`."""

    @property
    def calls(self) -> Calls: ...

    @property
    def takes(self) -> Mapping[str, tuple[str, ...]]:
        """The argument names of each tool."""


class AuditError(Exception):
    """The log cannot be opened. The text says why."""


class AuditLog:
    """Lines in a file that is made with mode 0600, is appended to, and may be moved away or
    truncated at any time: a moved one is made anew with the next line.

    Args:
        path: the file, or `STDERR`.

    Raises:
        AuditError: the file cannot be opened, or is this process's standard output.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._takes: Mapping[str, tuple[str, ...]] = {}
        self._lines: queue.Queue[bytes | None] = queue.Queue(LINES_WAITING)
        self._lost = 0
        self._silenced = 0
        self._second = 0
        self._refusals = 0
        self._told = False
        """That lines are being lost has been said."""
        self._torn = False
        """The last line was written in part."""
        self._descriptor = -1
        try:
            self._reopen()
        except OSError as error:
            raise AuditError(f"{path}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            return  # the disk hangs, and would hold up the exit
        self._thread.join(END_SECONDS)
        if not self._thread.is_alive() and self._path != STDERR and self._descriptor >= 0:
            os.close(self._descriptor)

    def hear(self, server: Told) -> None:
        """Write of its calls from now on."""
        self._takes = server.takes
        server.calls.observers.append(self._ended)
        server.calls.refusals.append(self._refused)

    def _ended(self, call: Ended) -> None:
        nodes = sorted(call.nodes)
        self._put(
            {
                "event": "call",
                **_whence(call.origin),
                "client": call.client,
                "tool": call.tool,
                "arguments": self._arguments(call),
                "nodes_asked": len(nodes),
                "nodes_answered": sum(call.nodes.values()),
                "nodes": nodes[:NODES],
                "outcome": call.outcome,
                "seconds": round(call.seconds, 4),
                "call": call.id,
                "trace": call.trace_id,
            }
        )

    def _refused(self, refused: Refused) -> None:
        second = int(monotonic())
        if second != self._second:
            self._second, self._refusals = second, 0
        self._refusals += 1
        if self._refusals > REFUSALS_PER_SECOND:
            self._silenced += 1
            return
        origin = refused.origin
        line = {"event": "refused", **_whence(origin), "asked": origin.asked[:VALUE_CHARS]}
        self._put({**line, "status": refused.status, "more_refused": self._silenced})
        self._silenced = 0

    def _put(self, line: Mapping[str, Any]) -> None:
        try:
            self._lines.put_nowait(_encoded(line))
        except queue.Full:
            self._lose("it is written too slowly")

    def _arguments(self, call: Ended) -> Mapping[str, Any]:
        takes = self._takes.get(call.tool, ())
        # What the tool does not take is kept without its value: nobody knows what that is.
        told = {
            name[:VALUE_CHARS]: _bounded(value) if name in takes else HIDDEN
            for name, value in islice((call.arguments or {}).items(), ARGUMENTS)
        }
        if len(json.dumps(told)) <= ARGUMENTS_CHARS:
            return told
        return {name: _cut(json.dumps(value)) for name, value in told.items()}

    # On the thread.

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._reopen()
                if self._lost:
                    self._write(_encoded({"event": "lost", "lines": self._lost}))
                    logger.warning("the audit log is written again; %d lines are lost", self._lost)
                    self._lost, self._told = 0, False
                self._write(line)
            except OSError as error:
                self._lose(error.strerror or type(error).__name__)

    def _write(self, line: bytes) -> None:
        rest = memoryview(b"\n" + line if self._torn else line)
        while rest:
            written = os.write(self._descriptor, rest)
            rest = rest[written:]
            self._torn = bool(rest)

    def _lose(self, why: str) -> None:
        self._lost += 1
        if not self._told:
            self._told = True
            logger.error("the audit log cannot be written, and calls go on without it: %s", why)

    def _reopen(self) -> None:
        """Open the file, unless the one that is open still lies there. Raises OSError."""
        if self._path == STDERR:
            self._descriptor = 2
            return
        if self._descriptor >= 0:
            try:
                if os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
                    return
            except FileNotFoundError:
                pass
            os.close(self._descriptor)
            self._descriptor = -1
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
        opened = os.open(self._path, flags, 0o600)
        if _is_stdout(opened):
            os.close(opened)
            raise OSError(0, "is standard output, which belongs to the protocol; give - for stderr")
        self._descriptor = opened


def _whence(origin: Origin | None) -> dict[str, str]:
    """Who asks. Only what was checked counts as a name."""
    if origin is None:
        return {"listener": "", "peer": "", "token": "", "subject": ""}
    return {
        "listener": origin.listener,
        "peer": origin.peer,
        "token": origin.token,
        "subject": origin.subject,
    }


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return _cut(_SECRET.sub(HIDDEN, value))
    if isinstance(value, list):
        return [_bounded(each) for each in value]
    if isinstance(value, dict):
        return {_cut(key): _bounded(each) for key, each in value.items()}
    return value


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_CHARS else text[:VALUE_CHARS] + "\u2026"


def _encoded(line: Mapping[str, Any]) -> bytes:
    """A line, with its time. In ASCII alone: what is odd in a text acts on nobody's terminal."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, **line}).encode() + b"\n"


def _is_stdout(descriptor: int) -> bool:
    """Whether it is where the protocol goes: a pipe or a terminal that standard output is, too."""
    opened = os.fstat(descriptor)
    if stat.S_ISREG(opened.st_mode):
        return False
    try:
        return os.path.samestat(opened, os.fstat(1))
    except OSError:
        return False  # it is closed

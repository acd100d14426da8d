"""Logs go to standard error, as text or as JSON; standard output belongs to the protocol."""

from __future__ import annotations

import json
import logging
import os
import select
import stat
import sys
from datetime import UTC, datetime
from typing import Any, Final

from mcp_gpu.telemetry.calls import current
from transports.text import is_name, visible

__all__ = ["configure"]

PIPE_BYTES: Final = 4096
"""What a pipe takes at once, once it can be written to."""

PATIENCE_MS: Final = 200
"""How long a line waits for whoever reads the pipe, which then is given up until it reads on."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a trace in lines that are set in: none feigns another record."""
        record.message, record.asctime = record.getMessage(), self.formatTime(record)
        facts = "".join(f" {key}={_value(value)}" for key, value in _extra(record).items())
        trace = self.formatException(record.exc_info).splitlines() if record.exc_info else ()
        return "\n  ".join(map(visible, (self.formatMessage(record) + facts, *trace)))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Pipe(logging.Handler):
    """Writes to a pipe, and loses lines where nobody reads them.

    Whoever begins a program may have its standard error in a pipe and never read it: after some
    hundred calls it is full, and a write would hold up everything, for ever.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)
        self._lost = 0
        self._torn = False
        """Whether the last line lacks its end."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if self._lost and self._write(self.format(_lost(self._lost))):
                self._lost = 0
            if self._lost or not self._write(line):
                self._lost += 1
        except Exception:
            self.handleError(record)

    def _write(self, line: str) -> bool:
        data = f"{line}\n".encode(errors="backslashreplace")
        if self._torn:
            data = b"\n" + data
        for begin in range(0, len(data), PIPE_BYTES):
            if not self._room.poll(0 if self._lost else PATIENCE_MS):
                self._torn = self._torn or begin > 0
                return False
            os.write(self._descriptor, data[begin : begin + PIPE_BYTES])
            self._torn = False
        return True


def _lost(lines: int) -> logging.LogRecord:
    words = "lines of this log were lost: %d, as nobody read standard error"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, words, (lines,), None)


def _handler() -> logging.Handler:
    try:
        descriptor = sys.stderr.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError, AttributeError):  # there is none, or nothing of the system's
        return logging.StreamHandler(sys.stderr)
    if hasattr(select, "poll") and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return _Pipe(descriptor)
    return logging.StreamHandler(sys.stderr)


def configure(level: str, form: str) -> None:
    """Send the program's logs to standard error. The libraries are heard from warnings up."""
    handler = _handler()
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for ours in ("mcp_gpu", "transports"):
        logging.getLogger(ours).setLevel(level.upper())


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """What the line says beside its message; last, which call it was written for."""
    extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    call = current()
    if call is not None:
        extra["call"] = call.id
        if call.trace_id:
            extra["trace"] = call.trace_id
    return extra


def _value(value: object) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    text = str(value)
    return text if is_name(text) and '"' not in text else json.dumps(text)

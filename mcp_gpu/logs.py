"""Logs go to standard error, as text or as JSON; standard output belongs to the protocol."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from mcp_gpu.telemetry.calls import current
from transports.text import is_name, visible

__all__ = ["configure"]

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


def configure(level: str, form: str) -> None:
    """Send the program's logs to standard error. The libraries are heard from warnings up."""
    handler = logging.StreamHandler(sys.stderr)
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

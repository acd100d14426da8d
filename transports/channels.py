"""Frames of Kubernetes' streaming protocols v4 and v5: several streams on one WebSocket.

Each binary message is one byte that names the channel, and what is on it. v5 adds a way to end
one channel, and with it a program's standard input, without ending all of them. No I/O.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CHUNK_BYTES",
    "CLOSE",
    "ERROR",
    "PROTOCOLS",
    "STDERR",
    "STDIN",
    "STDOUT",
    "V4",
    "V5",
    "Exit",
    "closing",
    "frames",
    "parse",
    "read_exit",
]

V4 = "v4.channel.k8s.io"
V5 = "v5.channel.k8s.io"

PROTOCOLS = (V5, V4)
"""Both are offered: servers before 1.30 answer 403 where v5 is offered alone."""

STDIN, STDOUT, STDERR = 0, 1, 2
ERROR = 3
"""Where the server says how the program ended, or why it never began: one `Status` in JSON."""
CLOSE = 255
"""v5: the end of the channel that the next byte names."""

CHUNK_BYTES = 32 * 1024
"""Put into one frame. What servers send themselves, and far below what any refuses."""


def frames(channel: int, data: bytes) -> Iterator[bytes]:
    """The frames that carry the data; none for no data."""
    prefix = bytes((channel,))
    for start in range(0, len(data), CHUNK_BYTES):
        yield prefix + data[start : start + CHUNK_BYTES]


def closing(channel: int) -> bytes:
    """The frame that ends one channel. v5 only: v4 ignores it."""
    return bytes((CLOSE, channel))


def parse(frame: bytes) -> tuple[int, bytes] | None:
    """The channel and what came on it; None for a frame that says nothing.

    Servers greet with an empty message on a channel.
    """
    return (frame[0], frame[1:]) if len(frame) > 1 else None


@dataclass(frozen=True, slots=True)
class Exit:
    """How a program ended, or why there was none."""

    code: int | None
    """Its exit status; None where it was not run, or not to its end."""
    message: str = ""
    """The server's words, if it was no success."""


def read_exit(data: bytes) -> Exit:
    """What the error channel says. Takes anything: what is no `Status` is quoted as it is."""
    text = data.decode(errors="replace")
    try:
        status = json.loads(text)
    except (ValueError, RecursionError):
        return Exit(None, text)
    if not isinstance(status, dict):
        return Exit(None, text)
    if status.get("status") == "Success":
        return Exit(0)
    message = status.get("message") or status.get("reason") or text
    return Exit(_exit_code(status.get("details")), str(message))


def _exit_code(details: Any) -> int | None:
    causes = details.get("causes") if isinstance(details, dict) else None
    for cause in causes if isinstance(causes, list) else ():
        if isinstance(cause, dict) and cause.get("reason") == "ExitCode":
            try:
                return int(str(cause.get("message")))
            except ValueError:
                return None
    return None

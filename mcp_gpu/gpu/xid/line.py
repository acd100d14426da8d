"""From a line of the kernel log to an Xid: `parse`, which hostile lines neither break nor slow."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from mcp_gpu.gpu.xid.model import Kind

TEXT_LIMIT: Final = 1024
"""Characters kept of what a line says: the kernel's own records are not longer."""

_LOOKED_AT = 2048
"""Characters read from the first that may be an Xid on."""

_MARK = "Xid ("
_OFF_THE_BUS_MARK = "fallen off the bus"

# NVRM: Xid (PCI:0000:53:00 GPU-I:01 GPU-CI:00): 43, pid=1234, name=python, Ch 00000008
_XID = re.compile(
    r"Xid \((?:PCI:)?([^)\s]{0,32})(?: [^)\n]{0,64})?\): ([0-9]{1,9})(?![0-9A-Za-z_])(.*)"
)
_WHO = re.compile(r", pid=(?:'?([0-9]{1,10})'?|[^,]{0,64}),(?: name=([^,]{0,64})(?:,|$))?(.*)")
_CAUSE = re.compile(r"caused by previous Xid ([0-9]{1,6})(?![0-9])")

# NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.
_OFF_THE_BUS = re.compile(
    r"NVRM: GPU (?:at )?(?:PCI:)?([0-9A-Fa-f:.]{5,20}?):? ((?:GPU )?has fallen off the bus.*)"
)

_BUS_ID = re.compile(
    r"(?:([0-9A-Fa-f]{1,8}):)?([0-9A-Fa-f]{2}):([0-9A-Fa-f]{2})(?:\.[0-7])?", re.ASCII
)

_LARGEST_PID = 4_194_304
"""The kernel's PID_MAX_LIMIT."""


@dataclass(frozen=True, slots=True)
class ParsedLine:
    """What a line says of an Xid. Its time and source are for whoever read it to know."""

    kind: Kind
    code: int
    bus_id: str
    """As in `XidEvent`: "0000:53:00". Empty: none in the line, or none that can be one."""
    pid: int | None
    process: str | None
    text: str
    """What comes after code, pid and name; at most `TEXT_LIMIT` printable characters."""
    caused_by: int | None
    """The Xid that a newer driver names as the cause of this one (45)."""


def parse(text: str) -> ParsedLine | None:
    """The Xid that a line tells of, or None. Never raises.

    A bare kernel message, one with any prefix (dmesg, syslog, journal) and a record of /dev/kmsg
    are all taken. A line that was cut off before the end of its code tells of none.
    """
    start = text.find(_MARK)
    if start < 0:
        return _off_the_bus(text) if _OFF_THE_BUS_MARK in text else None
    found = _XID.search(text, start, start + _LOOKED_AT)
    if found is None:
        return None
    where, code, rest = found.groups()
    pid = process = None
    if rest.startswith(", pid="):
        who = _WHO.match(rest)
        if who is None:
            rest = ""  # cut within the pid: half of one is another process's
        else:
            digits, process, rest = who.groups()
            if digits is not None and 0 < int(digits) <= _LARGEST_PID:
                pid = int(digits)
            process = None if process is None or process == "<unknown>" else _tidy(process)
    rest = _tidy(rest)
    cause = _CAUSE.search(rest) if "caused by" in rest else None
    return ParsedLine(
        kind="sxid" if text[found.start() - 1 : found.start()] == "S" else "xid",
        code=int(code),
        bus_id=bus_id(where),
        pid=pid,
        process=process,
        text=rest,
        caused_by=int(cause[1]) if cause else None,
    )


@lru_cache(maxsize=256)
def bus_id(told: str) -> str:
    """A PCI address in any spelling as "0000:53:00"; empty if it is none.

    NVML says 00000000:53:00.0, the kernel log PCI:0000:53:00, lspci 53:00.0.
    """
    found = _BUS_ID.fullmatch(told.removeprefix("PCI:"))
    if found is None:
        return ""
    domain, bus, device = found.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}".lower()


def _off_the_bus(text: str) -> ParsedLine | None:
    """The driver's other way to say 79, which may come with that Xid or instead of it."""
    end = text.find(_OFF_THE_BUS_MARK)
    found = _OFF_THE_BUS.search(text, max(0, end - 64), end + _LOOKED_AT)
    if found is None:
        return None
    where, said = found.groups()
    return ParsedLine("xid", 79, bus_id(where), None, None, _tidy(said), None)


def _tidy(text: str) -> str:
    """Without what only separates, bounded, and with nothing that would act on a terminal."""
    text = text[:TEXT_LIMIT].strip(" ,\r\n\0")
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)

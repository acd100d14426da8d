"""From a line of the kernel log to an Xid: `parse`, which hostile lines neither break nor slow."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from mcp_gpu.gpu.xid.model import Kind
from transports.text import visible

TEXT_LIMIT: Final = 1024
"""Characters kept of what a line says: the kernel's own records are not longer."""

_LOOKED_AT = 2048
"""Characters read from the first that may be an Xid on."""

_MARK = "Xid ("
_OFF_THE_BUS_MARK = "fallen off the bus"

# NVRM: Xid (PCI:0000:53:00 GPU-I:01 GPU-CI:00): 43, pid=1234, name=python, Ch 00000008
_XID = re.compile(
    r"Xid \((?:PCI:)?([^)\s]{0,32})(?: [^)\n]{0,64})?\): ([0-9]{1,9})(?![0-9A-Za-z_])"
    # A pid without its comma was cut: half of one is another process's.
    r"(?:, pid=(?:'?([0-9]{1,10})'?,|[^,\n]{0,64}(?:,|$))(?: name=([^,\n]{0,64})(?:,|$))?)?"
    r"(.*)",
    re.MULTILINE,
)
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
    are all taken; of several lines, the first that tells of one. A line that was cut off before its
    code tells of none; one cut within the code's digits cannot be told from a whole one.
    """
    start = text.find(_MARK)
    if start < 0:
        return _off_the_bus(text) if _OFF_THE_BUS_MARK in text else None
    found = _XID.search(text, start, start + _LOOKED_AT)
    if found is None:
        return None
    where, code, pid, process, said = found.groups()
    at = found.start()
    said = _tidy(said)
    return ParsedLine(
        "sxid" if at and text[at - 1] == "S" else "xid",
        int(code),
        bus_id(where),
        _pid(pid) if pid else None,
        _tidy(process) if process and process != "<unknown>" else None,
        said,
        caused_by(said),
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


def caused_by(text: str) -> int | None:
    """The Xid that a newer driver names in a line as the cause of another, mostly of a 45."""
    found = _CAUSE.search(text) if "caused by" in text else None
    return int(found[1]) if found else None


def _pid(digits: str) -> int | None:
    pid = int(digits)
    return pid if 0 < pid <= _LARGEST_PID else None


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
    return visible(text[:TEXT_LIMIT].strip(" ,\r\n\0"))

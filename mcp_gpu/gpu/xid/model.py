"""An Xid as it was seen: `XidEvent`, many alike as a `Burst`, and what each source could see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from pydantic import Field

from mcp_gpu.gpu.wire import Wire

Source = Literal["nvml", "kernel_log", "journal"]
"""nvml: the driver's event set, live only, and never 79, 119 or 120; kernel_log: the kernel's
ring, this boot as far as it goes back; journal: journald's files, former boots too."""

OFF_THE_BUS: Final = 79
"""The Xid of a GPU that does not answer on the PCIe bus any more."""

Kind = Literal["xid", "sxid"]
"""sxid: an NVSwitch's."""


@dataclass(frozen=True, slots=True)
class XidEvent:
    """One Xid, from one source."""

    code: int
    at: float
    """Unix seconds."""
    source: Source
    kind: Kind = "xid"
    bus_id: str = ""
    """Domain, bus and device in lower case, without function: "0000:53:00". Empty: not told."""
    boot_id: str = ""
    """The kernel's id of the boot, 32 hexadecimal digits. Empty: not known."""
    pid: int | None = None
    process: str | None = None
    text: str = ""
    """What the line says after code, pid and process name."""
    raw: str = ""
    """The whole line; empty where there was none (nvml)."""


@dataclass(frozen=True, slots=True)
class Burst:
    """Xids of one code on one GPU in one boot that followed each other closely."""

    first: XidEvent
    last_at: float
    """Unix seconds."""
    count: int
    sources: tuple[Source, ...]
    """Who has seen them."""
    samples: tuple[XidEvent, ...]
    """Some of them, with texts that differ; `first` among them."""


class SourceState(Wire):
    """What one source of Xids can see."""

    source: Source
    live: bool = Field(description="Whether it is being read.")
    place: str = Field(
        default="",
        description="Of the kernel log how it is read: from /dev/kmsg, or by syslog(2), which is "
        "asked every few seconds and cannot count what it lost.",
    )
    message: str = Field(
        description="Why not, or what is missing from it, and what would mend it; else empty."
    )
    covers_since: float | None = Field(
        description="Unix seconds from which on nothing is missing, but for lost_records."
    )
    lost_records: int = Field(
        description="Records that could not be read: overwritten before, damaged or compressed."
    )

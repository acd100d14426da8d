"""What an analysis of Xids says: groups of them, chains of cause and effect, what to do first."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from mcp_gpu.gpu.health.model import Severity
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.gpu.xid.model import Kind, Source
from transports.text import visible

__all__ = [
    "FLOOD",
    "Analysis",
    "Chain",
    "CodeTotal",
    "DeviceXids",
    "XidGroup",
    "shown",
    "utc",
]

FLOOD: Final = 1000
"""So many of one code, or in one chain, stand after everything else unless they are critical."""

State = Literal["open", "follows", "settled"]


_LAST: Final = 253_402_300_799.0
"""The end of the year 9999."""


def utc(at: float) -> str:
    """A time in Unix seconds as text: `2026-11-26T10:02:11Z`; one that cannot be is cut."""
    bounded = min(max(at, 0.0), _LAST)
    return datetime.fromtimestamp(bounded, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: str) -> str:
    datetime.fromisoformat(text)  # or a ValueError
    return text


Time = Annotated[
    str,
    Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"),
    AfterValidator(_time),
]
"""As `utc` has it: times of many nodes are compared and counted with."""


def shown(line: str, most: int) -> str:
    """A line of a log, cut, and with nothing that would act on a terminal."""
    return visible(line.strip()[:most])


class XidGroup(Wire):
    """All Xids of one code on one device."""

    device: str = Field(description="Such as GPU 3, or NVSwitch 0000:c1:00.")
    gpu_index: int | None
    pci_bus_id: str = Field(description="Empty: not told.")
    kind: Kind = Field(description="sxid: an NVSwitch's.")
    code: int
    name: str
    count: int
    bursts: int = Field(description="In how many bursts they came.")
    first: Time = Field(description="Time in UTC, as is `last`.")
    last: Time
    severity: Severity
    state: State = Field(
        description="follows: each is a consequence of another Xid; settled: a reset or a reboot "
        "has come since."
    )
    bucket: str = Field(description="NVIDIA's resolution bucket, as its catalogue spells it.")
    action: str = Field(description="NVIDIA's action in this company of Xids.")
    investigate: str = Field(description="NVIDIA's bucket for what to look into afterwards.")
    explanation: str
    decoded: tuple[str, ...] = Field(description="What the registers in the line say.")
    disagreements: tuple[str, ...] = Field(description="Where other authorities see it otherwise.")
    processes: tuple[str, ...]
    sources: tuple[Source, ...]
    samples: tuple[str, ...] = Field(description="Some of the lines.")


class Chain(Wire):
    """An Xid and what followed from it; the same chain on one device told once."""

    kind: Kind
    codes: tuple[int, ...] = Field(min_length=1, description="The cause first.")
    told: str = Field(description="Such as: 48 at 2026-11-26T10:02:11Z -> 63 -> 45 x12.")
    times: int = Field(description="How often this chain came.")
    xids: int
    first: Time
    last: Time
    severity: Severity
    action: str
    advice: str
    investigate: str = Field(description="NVIDIA's bucket for what to look into afterwards.")
    settled: str = Field(description="Why nothing is left to do; empty if something may be.")
    explanation: str


class DeviceXids(Wire):
    """What to do first about one device."""

    device: str
    gpu_index: int | None
    uuid: str | None
    name: str | None
    pci_bus_id: str
    action: str = Field(
        description="What the driver itself asks for, or else the heaviest that is not settled."
    )
    advice: str
    severity: Severity
    driver_action: str | None = Field(
        description="What the driver itself asks for now; null where it cannot be read."
    )
    note: str
    xids: int
    chains: tuple[Chain, ...] = Field(description="What is to be done first comes first.")
    chains_omitted: int


class CodeTotal(Wire):
    """How often one code came, on how many devices."""

    kind: Kind
    code: int
    name: str
    count: int
    devices: int


class Analysis(Wire):
    """The Xids of one node. The rare and heavy stand before floods, consequences after causes."""

    xids: int = Field(description="All of them, whatever is listed.")
    devices: tuple[DeviceXids, ...] = Field(description="What to do first, heaviest first.")
    devices_omitted: int
    groups: tuple[XidGroup, ...] = Field(description="The rare and heavy first, floods last.")
    groups_omitted: int
    totals: tuple[CodeTotal, ...] = Field(description="In the order of groups.")
    totals_omitted: int

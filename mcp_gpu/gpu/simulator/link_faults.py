"""What can be wrong with a simulated board's PCIe link, NVLinks and fabric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from mcp_gpu.gpu.simulator.changes import Added, BoardFault

_PCIE_ERRORS = {
    "recoveries": "169",
    "correctable": "173",
    "naks_received": "174",
    "receiver": "175",
    "bad_tlp": "176",
    "naks_sent": "177",
    "bad_dllp": "178",
    "nonfatal": "179",
    "fatal": "180",
    "unsupported_requests": "181",
    "lcrc": "182",
}

_LINK_ERRORS = {
    "replay": "161",
    "recovery": "162",
    "crc": "163",
    "malformed_packet": "206",
    "buffer_overrun": "207",
    "receive": "208",
    "receive_remote": "209",
    "receive_general": "210",
    "local_integrity": "211",
    "transmit_discards": "212",
    "recoveries_successful": "213",
    "recoveries_failed": "214",
    "effective": "219",
    "symbol": "221",
}
"""The first three count on NVLink 1 to 4, the others on NVLink 5."""

_MAX_LINKS = 36

Links = tuple[Annotated[int, Field(ge=0, lt=_MAX_LINKS)], ...]


class PcieLink(BoardFault):
    """A link that was trained to fewer lanes or to a lower generation."""

    kind: Literal["pcie_link"]
    width: PositiveInt | None = None
    generation: PositiveInt | None = None

    def answers(self) -> Mapping[str, Any]:
        told = {
            "nvmlDeviceGetCurrPcieLinkWidth": self.width,
            "nvmlDeviceGetCurrPcieLinkGeneration": self.generation,
        }
        return {call: value for call, value in told.items() if value is not None}


class PcieReplays(BoardFault):
    """Packets that had to be sent again over PCIe."""

    kind: Literal["pcie_replays"]
    count: NonNegativeInt = 0
    per_second: NonNegativeFloat = 1.0

    def answers(self) -> Mapping[str, Any]:
        added = Added(self.count, self.per_second)
        return {"nvmlDeviceGetPcieReplayCounter": added, "fields": {"94": added}}


class PcieErrors(BoardFault):
    """PCIe errors of one kind."""

    kind: Literal["pcie_errors"]
    error: Literal[
        "recoveries",
        "correctable",
        "naks_received",
        "receiver",
        "bad_tlp",
        "naks_sent",
        "bad_dllp",
        "nonfatal",
        "fatal",
        "unsupported_requests",
        "lcrc",
    ] = "correctable"
    count: NonNegativeInt = 0
    per_second: NonNegativeFloat = 1.0

    def answers(self) -> Mapping[str, Any]:
        return {"fields": {_PCIE_ERRORS[self.error]: Added(self.count, self.per_second)}}


class NvlinkDown(BoardFault):
    """NVLinks that are not up."""

    kind: Literal["nvlink_down"]
    links: Links = (0,)
    state: Literal["inactive", "sleep", "active_traffic_disabled"] = "inactive"

    def answers(self) -> Mapping[str, Any]:
        code = {"inactive": 0, "sleep": 2, "active_traffic_disabled": 3}[self.state]
        return {
            "nvmlDeviceGetNvLinkState": {str(link): code for link in self.links},
            "fields": {f"165,{link}": code for link in self.links},
        }


class NvlinkErrors(BoardFault):
    """NVLink errors of one kind, on every link or on some."""

    kind: Literal["nvlink_errors"]
    error: Literal[
        "replay",
        "recovery",
        "crc",
        "malformed_packet",
        "buffer_overrun",
        "receive",
        "receive_remote",
        "receive_general",
        "local_integrity",
        "transmit_discards",
        "recoveries_successful",
        "recoveries_failed",
        "effective",
        "symbol",
    ]
    links: Links | None = None
    count: NonNegativeInt = 0
    per_second: NonNegativeFloat = 1.0

    def answers(self) -> Mapping[str, Any]:
        added = Added(self.count, self.per_second)
        return {"fields": _by_link(_LINK_ERRORS[self.error], self.links, added)}


class NvlinkBer(BoardFault):
    """A bit error rate of NVLink 5: `mantissa` times ten to the minus `exponent`."""

    kind: Literal["nvlink_ber"]
    rate: Literal["effective", "symbol"] = "effective"
    mantissa: Annotated[int, Field(ge=0, le=15)] = 1
    exponent: Annotated[int, Field(ge=0, le=255)] = 9
    links: Links | None = None

    def answers(self) -> Mapping[str, Any]:
        packed = self.mantissa << 8 | self.exponent
        field = {"effective": "220", "symbol": "222"}[self.rate]
        return {"fields": _by_link(field, self.links, packed)}


def _by_link(field: str, links: Links | None, change: Any) -> dict[str, Any]:
    return {field: change} if links is None else {f"{field},{link}": change for link in links}


class Fabric(BoardFault):
    """What the GPU says of its registration with the NVLink fabric."""

    kind: Literal["fabric"]
    state: Literal["not_started", "in_progress", "completed"] | None = None
    status: NonNegativeInt | None = None
    """A return code; 0 is success."""
    health: Literal["healthy", "unhealthy", "limited_capacity"] | None = None

    def answers(self) -> Mapping[str, Any]:
        told = {
            "state": {"not_started": 1, "in_progress": 2, "completed": 3, None: None}[self.state],
            "status": self.status,
            "healthSummary": {"healthy": 1, "unhealthy": 2, "limited_capacity": 3, None: None}[
                self.health
            ],
        }
        return {
            "nvmlDeviceGetGpuFabricInfoV": {k: v for k, v in told.items() if v is not None},
        }


LinkFault = PcieLink | PcieReplays | PcieErrors | NvlinkDown | NvlinkErrors | NvlinkBer | Fabric

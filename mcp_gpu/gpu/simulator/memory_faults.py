"""What can be wrong with a simulated board's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt

from mcp_gpu.gpu.simulator.changes import Added, Ask, Bits, BoardFault

_DRAM, _SRAM = 2, 7


class Ecc(BoardFault):
    """Memory errors since the driver was loaded, and at least as many over the board's life."""

    kind: Literal["ecc"]
    location: Literal["dram", "sram"] = "dram"
    uncorrected: NonNegativeInt = 1
    corrected: NonNegativeInt = 0
    uncorrected_lifetime: NonNegativeInt | None = None
    corrected_lifetime: NonNegativeInt | None = None

    def answers(self) -> Mapping[str, Any]:
        unc, cor = self.uncorrected, self.corrected
        unc_life = unc if self.uncorrected_lifetime is None else self.uncorrected_lifetime
        cor_life = cor if self.corrected_lifetime is None else self.corrected_lifetime
        counts = {"0,0": cor, "0,1": cor_life, "1,0": unc, "1,1": unc_life}
        totals = {key: Added(count) for key, count in counts.items()}
        place = _SRAM if self.location == "sram" else _DRAM
        answers: dict[str, Any] = {
            "nvmlDeviceGetTotalEccErrors": totals,
            "nvmlDeviceGetMemoryErrorCounter": {
                f"{key},{place}": added for key, added in totals.items()
            },
        }
        if self.location == "sram":
            answers["nvmlDeviceGetSramEccErrorStatus"] = {
                "volatileCor": Added(cor),
                "aggregateCor": Added(cor_life),
                "volatileUncSecDed": Added(unc),
                "aggregateUncSecDed": Added(unc_life),
                "aggregateUncBucketL2": Added(unc_life),
            }
        return answers


class SramThreshold(BoardFault):
    """So many uncorrected errors of SRAM that NVIDIA's threshold for an RMA is exceeded."""

    kind: Literal["sram_threshold"]

    def answers(self) -> Mapping[str, Any]:
        return {"nvmlDeviceGetSramEccErrorStatus": {"bThresholdExceeded": 1}}


class RowRemap(BoardFault):
    """Rows of memory that are, or cannot be, replaced by spare ones."""

    kind: Literal["row_remap"]
    pending: bool = True
    failure: bool = False
    uncorrected: NonNegativeInt = 1
    corrected: NonNegativeInt = 0

    def answers(self) -> Mapping[str, Any]:
        rows = [
            Added(self.corrected),
            Added(self.uncorrected),
            Bits(int(self.pending)),
            Bits(int(self.failure)),
        ]
        return {
            "nvmlDeviceGetRemappedRows": {str(n): row for n, row in enumerate(rows)},
            "fields": {str(142 + n): row for n, row in enumerate(rows)},
        }


class RemapExhausted(BoardFault):
    """Banks that have few or no spare rows left."""

    kind: Literal["remap_exhausted"]
    banks: PositiveInt = 1
    left: Literal["low", "none"] = "none"

    def answers(self) -> Mapping[str, Any]:
        return {
            "nvmlDeviceGetRowRemapperHistogram": {
                "max": Added(-self.banks),
                self.left: Added(self.banks),
            }
        }


class RetiredPages(BoardFault):
    """Pages taken out of use, on boards before Ampere."""

    kind: Literal["retired_pages"]
    uncorrected: NonNegativeInt = 1
    corrected: NonNegativeInt = 0
    pending: bool = False

    def answers(self) -> Mapping[str, Any]:
        return {
            "nvmlDeviceGetRetiredPages": {
                "0": _Pages(self.corrected),
                "1": _Pages(self.uncorrected),
            },
            "nvmlDeviceGetRetiredPagesPendingStatus": Bits(int(self.pending)),
            "fields": {
                "29": Added(self.corrected),
                "30": Added(self.uncorrected),
                "31": Bits(int(self.pending)),
            },
        }


@dataclass(frozen=True, slots=True)
class _Pages:
    count: int

    def __call__(self, answer: Any, seconds: float, ask: Ask) -> Any:
        return [*answer, *(0x1000 * (1 + number) for number in range(self.count))]


class RepairPending(BoardFault):
    """Memory channels or TPCs that the next reset repairs."""

    kind: Literal["repair_pending"]
    channel: bool = True
    tpc: bool = False

    def answers(self) -> Mapping[str, Any]:
        return {
            "nvmlDeviceGetRepairStatus": {
                "bChannelRepairPending": int(self.channel),
                "bTpcRepairPending": int(self.tpc),
            }
        }


class UnrepairableMemory(BoardFault):
    """Memory that no reset repairs."""

    kind: Literal["unrepairable_memory"]

    def answers(self) -> Mapping[str, Any]:
        return {"nvmlDeviceGetUnrepairableMemoryFlag_v1": {"unrepairableMemory": 1}}


MemoryFault = (
    Ecc
    | SramThreshold
    | RowRemap
    | RemapExhausted
    | RetiredPages
    | RepairPending
    | UnrepairableMemory
)

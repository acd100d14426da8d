"""What can be wrong with a simulated board's place among its peers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt

from mcp_gpu.gpu.simulator.changes import Ask, BoardFault

_SAME_NODE, _ACROSS = 40, 50

_CAPABILITIES = {"read": 0, "write": 1, "nvlink": 2, "atomics": 3}

_STATUS = {
    "chipset_not_supported": 1,
    "gpu_not_supported": 2,
    "topology_not_supported": 3,
    "disabled": 4,
    "not_supported": 5,
}


class NumaSide(BoardFault):
    """A board that hangs on the other CPU of two; seen from the next initialisation on."""

    kind: Literal["numa_side"]
    node: NonNegativeInt = 1
    cpus: Annotated[str, Field(pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$")] = "48-95,144-191"

    def answers(self) -> Mapping[str, Any]:
        return {
            "nvmlDeviceGetMemoryAffinity": str(self.node),
            "nvmlDeviceGetCpuAffinityWithinScope": self.cpus,
            "nvmlDeviceGetTopologyCommonAncestor": _to_the_other_side,
        }


def _to_the_other_side(answer: int, seconds: float, ask: Ask) -> int:
    return _SAME_NODE if answer == _ACROSS else _ACROSS


class PeerAccess(BoardFault):
    """No peer access to one other GPU, or to all; seen from the next initialisation on."""

    kind: Literal["peer_access"]
    peer: NonNegativeInt | None = None
    capabilities: tuple[Literal["read", "write", "nvlink", "atomics"], ...] = ("read", "write")
    status: Literal[
        "chipset_not_supported",
        "gpu_not_supported",
        "topology_not_supported",
        "disabled",
        "not_supported",
    ] = "topology_not_supported"

    def answers(self) -> Mapping[str, Any]:
        before = "" if self.peer is None else f"{self.peer},"
        code = _STATUS[self.status]
        told = {f"{before}{_CAPABILITIES[name]}": code for name in self.capabilities}
        return {"nvmlDeviceGetP2PStatus": told}


PairFault = NumaSide | PeerAccess

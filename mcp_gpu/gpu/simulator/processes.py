"""Processes on simulated GPUs: those of a fleet file, and one on each GPU that works by itself.

Their pids are invented: no /proc knows them. What it would tell stands beside each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from mcp_gpu.gpu.processes import KINDS, Kind
from mcp_gpu.gpu.simulator.changes import Added, BoardFault, FaultModel

__all__ = ["HiddenProcesses", "LeakedMemory", "Process", "ProcessFault", "Work"]

_FIRST_PID = 20_000

_CALLS = {call: kind for kind, call in KINDS.items()}
UTILIZATION = "nvmlDeviceGetProcessUtilization"


class Process(BaseModel):
    """A program on a simulated GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: NonNegativeInt
    pid: PositiveInt
    kind: Kind = "compute"
    memory_mib: NonNegativeInt | None = None
    """None: NVML does not tell it."""
    utilization: Annotated[int, Field(ge=0, le=100)] = 0
    mig: NonNegativeInt | None = None
    """Position among the GPU's MIG devices."""
    name: Annotated[str, Field(min_length=1, max_length=64)] = "python3"
    user_id: NonNegativeInt = 0
    pod_uid: UUID | None = None
    container_id: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @property
    def memory_bytes(self) -> int | None:
        """What NVML tells."""
        return None if self.memory_mib is None else self.memory_mib << 20


@dataclass(frozen=True, slots=True)
class Work:
    """The processes of one GPU at one moment, as NVML answers about them."""

    processes: tuple[Process, ...]

    def concerns(self, call: str) -> bool:
        """Whether the call is about processes."""
        return call in _CALLS or call == UTILIZATION

    def answer(self, call: str, mig: int | None) -> list[tuple[int | None, ...]]:
        """Rows of a list, or samples: of the whole GPU or of one of its MIG devices."""
        if call == UTILIZATION:
            return [(p.pid, p.utilization, p.utilization // 2, 0, 0) for p in self.processes
                    if p.utilization]  # fmt: skip
        instance = () if mig is None else (7 + mig, 0)
        return [
            (process.pid, process.memory_bytes, *instance)
            for process in self.processes
            if process.kind == _CALLS[call] and process.mig == mig
        ]

    def memory_bytes(self, mig: int | None = None) -> int:
        """What they hold together; of a whole GPU those of its MIG devices too."""
        held = {
            process.pid: process.memory_bytes or 0
            for process in self.processes
            if mig is None or process.mig == mig
        }
        return sum(held.values())


def default_process(node_seed: str, gpu_index: int, memory_bytes: int, utilization: int) -> Process:
    """What works on a GPU under load: one program of a pod that has a process on each GPU."""
    digest = hashlib.sha256(f"{node_seed}/job".encode()).digest()
    return Process(
        gpu=gpu_index,
        pid=_FIRST_PID + int.from_bytes(digest[:2], "big") // 4 + gpu_index,
        memory_mib=memory_bytes >> 20,
        utilization=utilization,
        user_id=1000,
        pod_uid=UUID(bytes=digest[:16], version=4),
        container_id=hashlib.sha256(digest).hexdigest(),
    )


class HiddenProcesses(FaultModel):
    """The agent stands in a pid namespace of its own: the driver leaves all processes out."""

    kind: Literal["hidden_processes"]

    def answers(self) -> Mapping[str, Any]:
        return {call: [] for call in (*_CALLS, UTILIZATION)}


class LeakedMemory(BoardFault):
    """Memory that no process holds any more and that did not come back."""

    kind: Literal["leaked_memory"]
    mib: PositiveInt = 8192

    def answers(self) -> Mapping[str, Any]:
        leaked = self.mib << 20
        return {"nvmlDeviceGetMemoryInfo_v2": {"used": Added(leaked), "free": Added(-leaked)}}


ProcessFault = HiddenProcesses | LeakedMemory

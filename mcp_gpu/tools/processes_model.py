"""What `get_gpu_processes` answers of one node, on the wire."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from mcp_gpu.gpu.model import Waiting
from mcp_gpu.gpu.processes import Kind
from mcp_gpu.gpu.wire import Wire

__all__ = ["NAME", "STATES", "GpuUse", "NodeProcesses", "ProcessRow", "State"]

NAME: Final = "get_gpu_processes"

State = Literal["attention", "unknown", "busy", "idle"]

STATES: Final[tuple[State, ...]] = ("attention", "unknown", "busy", "idle")
"""What asks for a look first."""


class ProcessRow(Wire):
    """One process on one GPU. A null has its reason in `unavailable`, but that of `mig_uuid`."""

    gpu_index: int
    mig_uuid: str | None = Field(description="Of the MIG instance it is on; null: on none.")
    pid: int = Field(description="On the node.")
    kinds: tuple[Kind, ...]
    command: str | None = Field(description="The program's name; arguments are never told.")
    memory_bytes: int | None
    sm_percent: int | None = Field(description="Of the GPU's time, over the last seconds.")
    memory_percent: int | None
    encoder_percent: int | None
    decoder_percent: int | None
    user_id: int | None
    started_at: float | None = Field(description="Unix seconds.")
    pod_uid: str | None
    container_id: str | None
    namespace: str | None
    pod: str | None
    container: str | None
    stray: bool | None = Field(
        description="Whether it is on a GPU that its pod does not hold, or of no pod at all."
    )
    unavailable: dict[str, str]


class GpuUse(Wire):
    """One GPU and what is on it. A null has its reason in `unavailable`."""

    index: int
    uuid: str | None
    name: str | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None = Field(description="Without what the driver reserves.")
    utilization_percent: int | None
    processes: int | None = Field(description="All of them, whatever is listed.")
    unaccounted_memory_bytes: int | None = Field(
        description="Used beyond what the processes that can be seen hold."
    )
    unlisted_pids: tuple[int, ...] = Field(
        description="Used the GPU lately and are in no list: ended, or of another pid namespace."
    )
    unavailable: dict[str, str]


class NodeProcesses(Wire):
    """The processes on one node's GPUs."""

    node: str
    state: State = Field(
        description="unknown: processes cannot be seen, or not all: an empty list means nothing."
    )
    message: str | None = Field(description="Why GPUs cannot be read, and what to do.")
    simulated: bool = Field(
        description="True: no real hardware stands behind this, and the processes are invented."
    )
    host_processes: bool = Field(
        description="Whether the node's processes can be seen. False: an empty list means nothing."
    )
    attention: tuple[str, ...] = Field(description="What is out of the ordinary on this node.")
    gpus: tuple[GpuUse, ...]
    processes_count: int | None = Field(
        description="All of them, each once however many GPUs it is on; null: not known."
    )
    processes: tuple[ProcessRow, ...] = Field(
        description="Outside of any allocation first, then those of whom least is known, then by "
        "memory."
    )
    processes_omitted: int = Field(description="Left out for room.")
    strays: int | None = Field(description="All of them; null: not known.")
    age_seconds: float | None = Field(description="Age of the list; null if there is none.")
    waiting: Waiting | None = Field(description="An NVML call that does not return.")
    unavailable: dict[str, str]

"""`get_gpu_inventory`: which GPUs are there, on an agent's own node or over the whole fleet.

This module holds what both roles share: the models on the wire and the agent's answer.
`fleet_inventory` merges.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.registry import Answer, Arguments, Call, Tool

if TYPE_CHECKING:  # a gateway runs where there is no NVML, and shares only the models
    from mcp_gpu.gpu.collector import Collector

__all__ = [
    "Detail",
    "GpuModel",
    "NodeInventory",
    "agent_tool",
    "node_lines",
    "reading_age",
    "trouble",
]

NAME = "get_gpu_inventory"

Detail = Literal["summary", "full"]

MAX_AGE_SECONDS = 5.0
"""Older readings are taken anew before answering: two and a half times the collector's fast
period, so that a healthy agent never waits."""

FRESH_TIMEOUT_SECONDS = 2.0
"""How long to wait for the new reading. Then the last one is told with its age: a driver that
hangs must not take the answer with it."""


STALE_SECONDS = 30.0
"""Readings older than this are brought to attention: far above the fast period, below the 45 s
that a driver blocks when its firmware does not answer."""

_CLOCK_STEP_SECONDS = 1.0
"""What the system's clock may be slewed back between a reading and its answer."""

_RESETS = frozenset({"gpu_reset", "drain_and_reset", "bus_reset"})
_RESET_ADVICE = " (first stop its pods and what monitors it, this agent included)"

MODELS = 16
"""Kinds of GPUs in one node."""

Name = Annotated[str, StringConstraints(max_length=200)]
"""A name or version. Those of all nodes stand in every answer of a gateway, however bad."""


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True)


class GpuModel(_Wire):
    """GPUs of one kind on a node."""

    name: Name | None = Field(description="Board name; null where the GPU could not be asked.")
    count: int
    memory_total_bytes: int | None = Field(description="Of one GPU.")


class NodeInventory(_Wire):
    """One node's GPUs."""

    node: str
    state: Literal["starting", "ok", "absent", "failing"] = Field(
        description="Of NVML. absent: no NVIDIA driver or library; failing: it refuses; "
        "ok: read `attention` for single GPUs."
    )
    message: str | None = Field(description="Why `state` is not ok, and what to do.")
    simulated: bool = Field(description="True: no real hardware stands behind these figures.")
    driver_version: Name | None
    nvml_version: Name | None
    cuda_version: Name | None = Field(description="Newest CUDA that the driver supports.")
    gpu_count: int | None = Field(description="As NVML counts now; null if it cannot be asked.")
    gpu_count_expected: int | None = Field(description="Most counted since the agent started.")
    gpus_lost: int = Field(description="Lost or unreadable; not those that the agent may not open.")
    models: tuple[GpuModel, ...] = Field(max_length=MODELS)
    attention: tuple[str, ...] = Field(description="What is out of the ordinary on this node.")
    age_seconds: float | None = Field(
        description="Age of the readings; null if there are none or the clock was set back."
    )
    gpus: tuple[Gpu, ...] = Field(
        default=(), description="With detail full. A null field has its reason in `unavailable`."
    )

    @classmethod
    def of(cls, node: str, snapshot: Snapshot, detail: Detail) -> Self:
        """Make the answer of one node from its latest snapshot."""
        return cls(
            node=node,
            state=snapshot.state,
            message=trouble(snapshot),
            simulated=snapshot.simulated,
            driver_version=snapshot.driver_version,
            nvml_version=snapshot.nvml_version,
            cuda_version=snapshot.cuda_version,
            gpu_count=snapshot.gpu_count,
            gpu_count_expected=snapshot.gpu_count_expected,
            gpus_lost=sum(_is_lost(gpu) for gpu in snapshot.gpus),
            models=_models(snapshot.gpus),
            attention=tuple(_attention(snapshot)),
            age_seconds=reading_age(snapshot.fast_at),
            gpus=snapshot.gpus if detail == "full" else (),
        )


class AgentArguments(Arguments):
    """What an agent may be asked about its node."""

    detail: Detail = Field(default="full", description="summary leaves out the single GPUs.")


def agent_tool(node: str, collector: Collector) -> Tool[AgentArguments]:
    """The tool as an agent serves it: the GPUs of its own node."""

    async def run(arguments: AgentArguments, call: Call) -> Answer:
        read = collector.complete if arguments.detail == "full" else collector.fresh
        snapshot = await read(
            max_age_seconds=MAX_AGE_SECONDS, timeout_seconds=FRESH_TIMEOUT_SECONDS
        )
        inventory = NodeInventory.of(node, snapshot, arguments.detail)
        lines = node_lines(inventory, via=None)
        if inventory.simulated:
            lines.append("SIMULATED: no real hardware stands behind these figures.")
        return Answer("\n".join(lines), inventory)

    return Tool(
        name=NAME,
        title="GPU inventory of this node",
        description=(
            "List this node's NVIDIA GPUs: model, identity, PCI and NVLink attachment, memory, "
            "MIG, limits, clocks, driver and CUDA versions, what its units do (gpm, Hopper and "
            "later), and what is out of the ordinary. "
            "A field that cannot be read is null with the reason, never zero."
        ),
        arguments=AgentArguments,
        result=NodeInventory,
        run=run,
    )


def node_lines(inventory: NodeInventory, *, via: str | None) -> list[str]:
    """One node as text: a headline, then a line for each GPU that was asked for."""
    parts = [f"{inventory.node}:", describe_models(inventory)]
    if inventory.driver_version:
        parts.append(f"driver {inventory.driver_version}")
    if inventory.cuda_version:
        parts.append(f"CUDA {inventory.cuda_version}")
    if via is not None:
        parts.append(f"via {via}")
    if inventory.age_seconds is not None:
        parts.append(f"read {inventory.age_seconds:.0f} s ago")
    lines = [_fields(parts)]
    lines.extend(f"  ! {text}" for text in inventory.attention)
    lines.extend(_gpu_line(gpu) for gpu in inventory.gpus)
    return lines


def describe_models(inventory: NodeInventory) -> str:
    """Such as `8x NVIDIA H100 80GB HBM3`, or what stands in the way of knowing."""
    if not inventory.models:
        return "no GPUs" if inventory.state == "ok" else f"GPUs unknown (NVML {inventory.state})"
    counts = Counter[str]()
    for model in inventory.models:  # a GPU that is lost is of another memory, which nobody knows
        counts[model.name or "unknown"] += model.count
    models = " + ".join(f"{count}x {name}" for name, count in counts.items())
    return models if inventory.state == "ok" else f"{models} before (NVML {inventory.state})"


def _gpu_line(gpu: Gpu) -> str:
    if gpu.state != "ok":
        lost = (f"GPU {gpu.index}", gpu.state.upper(), gpu.uuid or "", gpu.pci_bus_id or "")
        return f"  {_fields(lost)}"
    parts = [f"GPU {gpu.index}", gpu.name or "?", gpu.uuid or "?", gpu.pci_bus_id or "?"]
    if gpu.memory_total_bytes is not None:
        used = "?" if gpu.memory_used_bytes is None else _gib(gpu.memory_used_bytes)
        parts.append(f"{used}/{_gib(gpu.memory_total_bytes)} GiB")
    if gpu.temperature_celsius is not None:
        parts.append(f"{gpu.temperature_celsius} C")
    if gpu.power_draw_watts is not None:
        parts.append(f"{gpu.power_draw_watts:.0f} W")
    if gpu.utilization_gpu_percent is not None:
        parts.append(f"{gpu.utilization_gpu_percent} % busy")
    if gpu.gpm is not None and gpu.gpm.sm_activity_percent is not None:
        parts.append(f"SM {gpu.gpm.sm_activity_percent:.0f} % active")
    if gpu.mig_devices:
        shape = Counter(device.profile or "?" for device in gpu.mig_devices)
        parts.append("MIG " + ", ".join(f"{n}x {profile}" for profile, n in sorted(shape.items())))
    return f"  {_fields(parts)}"


def _fields(parts: Iterable[str]) -> str:
    """One line of them, two blanks between each and the next, as in none of them."""
    return "  ".join(" ".join(part.split()) for part in parts)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.0f}"


def _models(gpus: tuple[Gpu, ...]) -> tuple[GpuModel, ...]:
    kinds = Counter((gpu.name, gpu.memory_total_bytes) for gpu in gpus)
    return tuple(
        GpuModel(name=name, count=count, memory_total_bytes=size)
        for (name, size), count in sorted(
            kinds.items(), key=lambda kind: (-kind[1], kind[0][0] or "", kind[0][1] or 0)
        )
    )


def _attention(snapshot: Snapshot) -> list[str]:
    notes: list[str] = []
    message = trouble(snapshot)
    if message is not None:
        notes.append(message)
    counted, expected = snapshot.gpu_count, snapshot.gpu_count_expected
    if counted is not None and expected is not None and counted < expected:
        notes.append(f"{counted} GPUs where {expected} were seen before")
    if snapshot.failure is None:  # which is the trouble of each of them
        for gpu in snapshot.gpus:
            notes.extend(f"GPU {gpu.index} {text}" for text in _gpu_attention(gpu))
    return notes


def _is_lost(gpu: Gpu) -> bool:
    # A container that is given some of a node's GPUs has lost none.
    return gpu.state != "ok" and set(gpu.unavailable.values()) != {"no_permission"}


def _gpu_attention(gpu: Gpu) -> list[str]:
    notes: list[str] = []
    if gpu.state != "ok":
        notes.append(f"{gpu.state} ({gpu.pci_bus_id or 'bus id unknown'}): {gpu.error}")
    if gpu.recovery_action not in (None, "none"):
        advice = _RESET_ADVICE if gpu.recovery_action in _RESETS else ""
        notes.append(f"driver asks for {gpu.recovery_action}{advice}")
    if gpu.row_remap_failure:
        notes.append("row remapping failed")
    if gpu.row_remap_pending:
        notes.append("row remapping pending until a reset")
    if "mig_devices" in gpu.unavailable:
        notes.append(f"MIG devices cannot all be listed: {gpu.unavailable['mig_devices']}")
    if gpu.throttle_reasons:
        notes.append(f"slowed by {', '.join(gpu.throttle_reasons)}")
    if gpu.mig_mode_pending is not None and gpu.mig_mode_pending != gpu.mig_mode_current:
        notes.append("MIG mode change pending until a reset")
    if gpu.ecc_mode_pending is not None and gpu.ecc_mode_pending != gpu.ecc_mode_current:
        notes.append("ECC mode change pending until a reboot")
    return notes


def trouble(snapshot: Snapshot) -> str | None:
    """Why this node's GPUs cannot be read, or not now; None if they can."""
    parts: list[str] = []
    if snapshot.waiting is not None:
        parts.append(snapshot.waiting.message)
    if snapshot.failure is not None:
        parts.append(f"NVML {snapshot.failure.message}")
    elif snapshot.state == "starting" and not parts:
        parts.append("the agent has not read NVML yet; ask again in a moment")
    age = reading_age(snapshot.fast_at)
    if age is not None and age > STALE_SECONDS:
        parts.append(f"readings are {age:.0f} s old")
    return "; ".join(parts) or None


def reading_age(read_at: float | None) -> float | None:
    """Seconds since then; None if nothing was read or the clock was set back."""
    age = None if read_at is None else time.time() - read_at
    # Readings from the future say only that the clock was set back, not how old they are.
    return None if age is None or age < -_CLOCK_STEP_SECONDS else round(max(age, 0.0), 1)

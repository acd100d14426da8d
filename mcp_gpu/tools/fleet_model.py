"""What `get_gpu_inventory` of a gateway answers, on the wire."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from mcp_gpu.fleet.model import Coverage, NodeFailure
from mcp_gpu.tools.inventory import NodeInventory

__all__ = ["DriverTotal", "FleetInventory", "FleetNode", "ModelTotal", "Totals"]


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True)


class FleetNode(NodeInventory):
    """One node's inventory and how it was had."""

    via: str = Field(description="Path the answer took: http, command, ...")


class ModelTotal(_Wire):
    """GPUs of one model over all nodes that answered."""

    name: str
    gpus: int
    nodes: int
    memory_total_bytes: int | None = Field(description="Of one GPU; null where boards differ.")


class DriverTotal(_Wire):
    """How many nodes run a driver version."""

    driver_version: str
    nodes: int


class Totals(_Wire):
    """Over all nodes that answered, whatever page is shown."""

    gpus: int
    gpus_lost: int = Field(description="Lost or unreadable, as far as nodes told.")
    nodes_needing_attention: int
    nodes_without_nvml: int
    models: tuple[ModelTotal, ...] = Field(description="Most frequent first.")
    models_omitted: int
    drivers: tuple[DriverTotal, ...] = Field(description="More than one: driver skew.")
    drivers_omitted: int


class FleetInventory(_Wire):
    """The GPUs of the fleet. Nodes needing attention come first, then by name."""

    simulated: bool = Field(description="True: some of this comes from simulated hardware.")
    coverage: Coverage
    totals: Totals
    ways: dict[str, int] = Field(description="Path to how many answers came over it.")
    passed_over: dict[str, dict[str, int]] = Field(
        description="Better path to why it was not taken, to how many answers."
    )
    nodes: tuple[FleetNode, ...]
    next_cursor: str | None = Field(description="Pass as `cursor` for more nodes; null: no more.")
    nodes_omitted: int = Field(description="Nodes that answered and are on later pages.")
    failures: tuple[NodeFailure, ...]
    failures_omitted: int
    failures_by_reason: dict[str, int]

"""What `get_gpu_inventory` of a gateway answers, on the wire."""

from __future__ import annotations

from pydantic import Field

from mcp_gpu.gpu.wire import Wire
from mcp_gpu.tools.fleet_answer import FleetAnswer
from mcp_gpu.tools.inventory import NodeInventory

__all__ = ["DriverTotal", "FleetInventory", "FleetNode", "ModelTotal", "Totals"]


class FleetNode(NodeInventory):
    """One node's inventory and how it was had."""

    via: str = Field(description="Path the answer took: http, command, ...")


class ModelTotal(Wire):
    """GPUs of one model over all nodes that answered."""

    name: str
    gpus: int
    nodes: int
    memory_total_bytes: int | None = Field(description="Of one GPU; null where boards differ.")


class DriverTotal(Wire):
    """How many nodes run a driver version."""

    driver_version: str
    nodes: int


class Totals(Wire):
    """Over all nodes that answered, whatever page is shown."""

    gpus: int
    gpus_lost: int = Field(description="Lost or unreadable, as far as nodes told.")
    nodes_needing_attention: int
    nodes_without_nvml: int
    models: tuple[ModelTotal, ...] = Field(description="Most frequent first.")
    models_omitted: int
    drivers: tuple[DriverTotal, ...] = Field(description="More than one: driver skew.")
    drivers_omitted: int


class FleetInventory(FleetAnswer):
    """The GPUs of the fleet. Nodes needing attention come first, then by name."""

    totals: Totals
    nodes: tuple[FleetNode, ...]

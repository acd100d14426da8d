"""What of a node's health makes it another one: what those who subscribe are told of."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcp_gpu.tools.health_model import NodeHealth

__all__ = ["HEALTH", "state"]

HEALTH = "get_gpu_health"


def state(health: NodeHealth) -> Hashable:
    """Its verdict, the verdicts of its GPUs and its findings; no reading, which differ always."""
    return (
        health.verdict,
        str(health.gpus_by_verdict),
        frozenset((each.code, each.severity, each.gpu_index) for each in health.findings),
    )

"""Nodes' health made by hand, and agents in this process that answer with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from mcp_gpu.gpu.health.model import Assessment, Evidence, Finding, GpuVerdict, Severity
from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.node.boot import Boot
from mcp_gpu.node.sight import Sight
from mcp_gpu.node.watch import XidWatch
from mcp_gpu.registry import Arguments
from mcp_gpu.tools.health import AgentArguments
from mcp_gpu.tools.health_model import NodeHealth, worst
from support.fleet import H100, Agent

VERDICT = {"critical": "failed", "warning": "degraded", "info": "healthy"}

BLIND = Sight(uid=0, driver_version=None, senses=(), missing_symbols=())
"""An agent whose senses all work: there are none."""


def blind() -> XidWatch:
    """A watch that nothing has told of any Xid."""
    return XidWatch(lambda: os.memfd_create("nothing"), boot=Boot("0" * 32, 0.0))


def finding(
    code: str, severity: Severity = "critical", gpu: int | None = 0, **changes: Any
) -> Finding:
    fields: dict[str, Any] = {
        "code": code,
        "severity": severity,
        "gpu_index": gpu,
        "title": f"The GPU has {code}.",
        "evidence": (Evidence(reading="errors", value=3, note="0 before"),),
        "action": "RESET_GPU",
        "advice": "Stop its pods and reset the GPU.",
        "confidence": "high",
        "source": "NVIDIA driver",
    }
    return Finding(**(fields | changes))


def assessment(*findings: Finding, gpus: int = 8, **changes: Any) -> Assessment:
    """Of a node where these were found, and nothing else."""

    def verdict(gpu: int) -> GpuVerdict:
        own = [each for each in findings if each.gpu_index == gpu]
        return GpuVerdict(
            gpu_index=gpu,
            uuid=f"GPU-{gpu}",
            pci_bus_id=f"00000000:{gpu + 1:02}:00.0",
            name=H100,
            verdict=worst([*(VERDICT[each.severity] for each in own), "healthy"]),  # type: ignore[misc]
            findings=tuple(each.code for each in own),
            not_checked={},
        )

    fields: dict[str, Any] = {
        "verdict": worst([*(VERDICT[each.severity] for each in findings), "healthy"]),  # type: ignore[misc]
        "findings": findings,
        "gpus": tuple(map(verdict, range(gpus))),
        "not_checked": {},
        "rates_over_seconds": 300.0,
    }
    return Assessment(**(fields | changes))


class HealthAgent(Agent):
    """An agent that answers with an assessment as a real one does."""

    def __init__(self, node: str, found: Assessment, sight: Sight = BLIND, **changes: Any) -> None:
        self.found, self.sight = found, sight
        self.snapshot = Snapshot(state="ok", driver_version="580.105.08", simulated=True)
        settings = {
            "tool": "get_gpu_health",
            "arguments": AgentArguments,
            "result": NodeHealth,
            "data": Snapshot(),
        }
        super().__init__(node, **(settings | changes))

    def answer(self, arguments: Arguments) -> BaseModel:
        assert isinstance(arguments, AgentArguments)
        return NodeHealth.of(
            self.node,
            self.snapshot,
            self.found,
            self.sight,
            detail=arguments.detail,
            severity=arguments.severity,
        )


def fleet(count: int, sick: Sequence[tuple[int, Finding]] = ()) -> dict[str, Agent]:
    """Agents of healthy nodes but for these findings, by number of node."""
    names = [f"node-{number:04}" for number in range(count)]
    return {
        name: HealthAgent(name, assessment(*(each for at, each in sick if at == number)))
        for number, name in enumerate(names)
    }

"""How much of a model's context the answers take, in characters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bench.figures import Section
from bench.processes import ask_http
from bench.scale import gateway_over
from mcp_gpu.registry import Call, ToolError
from mcp_gpu.tools.fleet_inventory import GatewayArguments
from support.cluster import Cluster
from support.fleet import Agent, inventory
from support.wire import call, request
from transports.base import Target
from transports.memory import MemoryTransport

__all__ = ["LISTED_CHARS", "answers", "summaries"]

LISTED_CHARS = {"agent": 35_000, "gateway": 55_000}
"""Longest `tools/list`: clients put it into a model's context before the first question."""

TEXT_CHARS = 10_000
STRUCTURED_CHARS = 40_000

DRIVERS = 5
"""Driver versions in a fleet in the middle of an update that went wrong."""


async def answers(cluster: Cluster, node: str) -> Section:
    """What every client reads first, and one node in full."""
    section = Section("characters of an answer")
    agent, gateway = cluster.agents[node].port, cluster.gateway.port
    for name, port in (("agent", agent), ("gateway", gateway)):
        tools = ask_http(port, request("tools/list"))["tools"]
        section.add(f"tools/list of the {name}", len(_compact(tools)), "chars", LISTED_CHARS[name])
    full = ask_http(agent, call("get_gpu_inventory", detail="full"))
    section.add("8 GPUs in full, text", len(full["content"][0]["text"]), "chars")
    section.add("8 GPUs in full, structured", len(_compact(full["structuredContent"])), "chars")
    return section


async def summaries(agents: Sequence[Agent]) -> Section:
    """A large fleet in summary, first as it is and then with all of it in trouble."""
    section = Section(f"characters of a summary of {len(agents):,} nodes")
    await _summary(section, "all well", agents)
    for number, agent in enumerate(agents):
        _trouble(agent, number)
    await _summary(section, "all in trouble", agents)
    return section


async def _summary(section: Section, state: str, agents: Sequence[Agent]) -> None:
    async with MemoryTransport({agent.node: agent.server for agent in agents}) as transport:
        targets = [Target(node=agent.node) for agent in agents]
        async with gateway_over(targets, [transport]) as tool:
            answer = await tool.run(GatewayArguments(), Call())
    structured = answer.data.model_dump_json(by_alias=True)
    section.add(f"{state}, text", len(answer.text), "chars", TEXT_CHARS)
    section.add(f"{state}, structured", len(structured), "chars", STRUCTURED_CHARS)


def _trouble(agent: Agent, number: int) -> None:
    """Every node has much to tell, drivers differ, and every third fails with a long message."""
    notes = tuple(f"GPU {index} lost (00000000:{index:02}:00.0): {'x' * 200}" for index in range(8))
    agent.data = inventory(
        agent.node, attention=notes, gpus_lost=8, driver_version=f"580.{number % DRIVERS}"
    )
    agent.error = ToolError("y" * 1000) if number % 3 == 0 else None


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)

"""The resources of an agent: its node, its GPUs, and what Xids mean."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from mcp_gpu.registry import Answer, Call, Surface, Tool

if TYPE_CHECKING:
    from mcp_gpu.gpu.collector import Collector
    from mcp_gpu.registry.prompt import Prompt
    from mcp_gpu.registry.resource import Found, Resource
    from mcp_gpu.tools.inventory import NodeInventory

__all__ = ["surface"]

PERIOD_SECONDS: Final = 1.0
"""Between looks at the agent's own health, which reads nothing and takes some milliseconds."""


def surface(node: str, collector: Collector, health: Callable[[], Tool[Any]]) -> Surface:
    """What an agent shows beside its tools.

    Args:
        health: makes the tool that judges the node.
    """

    def prompts() -> Sequence[Prompt[Any]]:
        from mcp_gpu.prompts.roles import agent_prompts

        return agent_prompts()

    return Surface(
        prompts=prompts,
        resources=partial(_resources, node, collector),
        look=partial(_look, health),
        period_seconds=PERIOD_SECONDS,
    )


async def _look(health: Callable[[], Tool[Any]], found: Sequence[Found]) -> Mapping[str, Hashable]:
    from mcp_gpu.resources.state import state

    tool = health()
    answer = await tool.run(tool.arguments(), Call())
    seen = state(answer.data)  # type: ignore[arg-type]
    return {each.uri: seen for each in found}


def _resources(node: str, collector: Collector) -> Sequence[Resource]:
    from mcp_gpu.registry.completion import Completer
    from mcp_gpu.registry.resource import Resource
    from mcp_gpu.resources.gpus import INVENTORY, index_of, only
    from mcp_gpu.resources.state import HEALTH
    from mcp_gpu.resources.xids import xid_resource

    place = f"gpu://node/{quote(node, safe='')}"

    def gpu_arguments(variables: Mapping[str, str]) -> Mapping[str, Any]:
        index_of(variables["gpu"])
        return {"detail": "full"}

    def narrowed(answer: Answer, variables: Mapping[str, str]) -> Answer:
        inventory: NodeInventory = answer.data  # type: ignore[assignment]
        gpus = only(inventory, index_of(variables["gpu"]))
        return replace(answer, data=inventory.model_copy(update={"gpus": gpus}))

    async def indices(given: Mapping[str, str]) -> Iterable[str]:
        return [str(gpu.index) for gpu in collector.snapshot.gpus]

    return (
        Resource(
            uri=place,
            name="node",
            title="GPU health of this node",
            description="The node's verdict, its findings with what to do, and what could not be "
            "checked: the answer of get_gpu_health. Subscribe to hear when it changes.",
            tool=HEALTH,
            arguments=lambda variables: {},
            watched=True,
        ),
        Resource(
            uri=f"{place}/gpu/{{gpu}}",
            name="gpu",
            title="One GPU of this node",
            description="Every field of one GPU by its index, from get_gpu_inventory.",
            tool=INVENTORY,
            arguments=gpu_arguments,
            narrowed=narrowed,
            completes={"gpu": Completer(indices, INVENTORY)},
        ),
        xid_resource(),
    )

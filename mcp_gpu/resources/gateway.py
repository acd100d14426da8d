"""The resources of a gateway: the fleet, its nodes and GPUs, and what Xids mean."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio

from mcp_gpu.registry import Answer, Surface, UnknownResource

if TYPE_CHECKING:
    from mcp_gpu.fleet.router import Router
    from mcp_gpu.registry.completion import Completer
    from mcp_gpu.registry.prompt import Prompt
    from mcp_gpu.registry.resource import Found, Resource
    from mcp_gpu.tools.fleet_model import FleetInventory

__all__ = ["PERIOD_SECONDS", "surface"]

PERIOD_SECONDS: Final = 30.0
"""Between one look at the nodes and the next, for all who subscribe together. One over 1,000
nodes takes a second and a half of processor time."""

INDICES_SECONDS: Final = 2.0
"""How long to wait for a node to say how many GPUs it has, while somebody types an index."""

NODES_TOLD: Final = 10
"""Names of nodes told in an error; completion tells more."""

TOLD_CHARS: Final = 80
"""Length of one of them."""

GONE: Final = "gone"
"""What is seen of a node that nobody knows any more, and of a fleet without agents."""

NODE: Final = "node"


def surface(router: Router, *, period_seconds: float = PERIOD_SECONDS) -> Surface:
    """What a gateway shows beside its tools."""

    def prompts() -> Sequence[Prompt[Any]]:
        from mcp_gpu.prompts.roles import gateway_prompts

        return gateway_prompts({NODE: _nodes(router)})

    return Surface(
        prompts=prompts,
        resources=partial(_resources, router),
        look=partial(_look, router),
        period_seconds=period_seconds,
    )


def _nodes(router: Router) -> Completer:
    from mcp_gpu.registry.completion import Completer

    async def names(given: Mapping[str, str]) -> Iterable[str]:
        return router.nodes()

    return Completer(names, "get_gpu_inventory")


async def _look(router: Router, found: Sequence[Found]) -> Mapping[str, Hashable]:
    """One fan-out, over all nodes where somebody has subscribed to the fleet."""
    from mcp_gpu.fleet.discovery import DiscoveryError
    from mcp_gpu.resources.state import HEALTH, state
    from mcp_gpu.tools.health_model import NodeHealth

    nodes = {each.uri: each.variables.get(NODE) for each in found}
    named = {node for node in nodes.values() if node is not None}
    asked = named.difference(router.unknown(named))
    seen: dict[str, Hashable] = {}
    if None in nodes.values() or asked:
        try:
            answered = await router.fan_out(
                HEALTH,
                {"detail": "summary", "severity": "info"},
                NodeHealth,
                nodes=None if None in nodes.values() else asked,
            )
        except DiscoveryError:
            pass  # nobody is known, and so they are all gone
        else:
            seen |= {each.node: state(each.data) for each in answered.answers}
            seen |= {each.node: each.reason for each in answered.failures}
    fleet = frozenset(seen.items()) or GONE
    return {uri: fleet if node is None else seen.get(node, GONE) for uri, node in nodes.items()}


def _resources(router: Router) -> Sequence[Resource]:
    from mcp_gpu.registry.completion import Completer
    from mcp_gpu.registry.resource import Resource
    from mcp_gpu.resources.gpus import INVENTORY, index_of, only
    from mcp_gpu.resources.state import HEALTH
    from mcp_gpu.resources.xids import xid_resource

    def node_arguments(variables: Mapping[str, str]) -> Mapping[str, Any]:
        return {"nodes": [_known(router, variables[NODE])], "severity": "info"}

    def gpu_arguments(variables: Mapping[str, str]) -> Mapping[str, Any]:
        index_of(variables["gpu"])
        return {"nodes": [_known(router, variables[NODE])], "detail": "full"}

    def narrowed(answer: Answer, variables: Mapping[str, str]) -> Answer:
        inventory: FleetInventory = answer.data  # type: ignore[assignment]
        index = index_of(variables["gpu"])
        nodes = tuple(
            node.model_copy(update={"gpus": only(node, index)}) for node in inventory.nodes
        )
        return replace(answer, data=inventory.model_copy(update={"nodes": nodes}))

    async def indices(given: Mapping[str, str]) -> Iterable[str]:
        return await _indices(router, given.get(NODE, ""))

    nodes = _nodes(router)
    return (
        Resource(
            uri="gpu://fleet",
            name="fleet",
            title="GPU health of the fleet",
            description="The fleet's verdict, sick nodes and GPUs with findings worst first, and "
            "the nodes that did not answer: the answer of get_gpu_health. Subscribe to hear when "
            "it changes.",
            tool=HEALTH,
            arguments=lambda variables: {},
            watched=True,
        ),
        Resource(
            uri="gpu://node/{node}",
            name="node",
            title="GPU health of one node",
            description="One node's verdict, findings with what to do, and what could not be "
            "checked: the answer of get_gpu_health. Subscribe to hear when it changes.",
            tool=HEALTH,
            arguments=node_arguments,
            watched=True,
            completes={NODE: nodes},
        ),
        Resource(
            uri="gpu://node/{node}/gpu/{gpu}",
            name="gpu",
            title="One GPU",
            description="Every field of one GPU by its node and index, from get_gpu_inventory.",
            tool=INVENTORY,
            arguments=gpu_arguments,
            narrowed=narrowed,
            completes={NODE: nodes, "gpu": Completer(indices, INVENTORY)},
        ),
        xid_resource(),
    )


def _known(router: Router, node: str) -> str:
    """The node, unless it cannot be any that is known."""
    from mcp_gpu.tools.spans import clipped
    from transports.text import quoted

    if router.unknown([node]):
        names = router.nodes()
        known = ", ".join(clipped(name, TOLD_CHARS) for name in names[:NODES_TOLD]) or "none"
        more = len(names) - NODES_TOLD
        raise UnknownResource(
            f"Unknown node: {quoted(node, TOLD_CHARS)}. Known: {known}"
            + (f" and {more} more" if more > 0 else "")
            + ". A slash in a name is written %2F."
        )
    return node


async def _indices(router: Router, node: str) -> Iterable[str]:
    """Of the node's GPUs, as it counts them now; none where it does not say."""
    from mcp_gpu.fleet.discovery import DiscoveryError
    from mcp_gpu.fleet.selection import UnknownNodes
    from mcp_gpu.resources.gpus import INVENTORY
    from mcp_gpu.tools.inventory import NodeInventory

    if node:
        with anyio.move_on_after(INDICES_SECONDS):
            try:
                found = await router.fan_out(
                    INVENTORY, {"detail": "full"}, NodeInventory, nodes=[node]
                )
            except (DiscoveryError, UnknownNodes):
                return ()
            return [str(gpu.index) for each in found.answers for gpu in each.data.gpus]
    return ()

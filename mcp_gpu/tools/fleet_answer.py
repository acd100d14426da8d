"""What every answer about a fleet holds beside its nodes: `FleetAnswer`, and how one is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, Field

from mcp_gpu.fleet.model import Coverage, NodeFailure
from mcp_gpu.fleet.router import FanOut, NodeAnswer
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.registry import ToolError
from mcp_gpu.tools.failures import by_reason
from mcp_gpu.tools.ways import passed_over, ways

__all__ = ["FleetAnswer", "Place", "begin", "of_fleet", "shared"]

N = TypeVar("N", bound=BaseModel)

Place = tuple[int, str]
"""Where a node stands in the order: the rank of what it is sorted by, and its name."""


class FleetAnswer(Wire):
    """What a gateway tells beside the nodes themselves."""

    simulated: bool = Field(description="True: some of this comes from simulated hardware.")
    coverage: Coverage
    ways: dict[str, int] = Field(description="Path to how many answers came over it.")
    passed_over: dict[str, dict[str, int]] = Field(
        description="Better path to why it was not taken, to how many answers."
    )
    next_cursor: str | None = Field(description="Pass as `cursor` for more nodes; null: no more.")
    nodes_omitted: int = Field(description="Nodes to list that are on later pages.")
    failures: tuple[NodeFailure, ...] = Field(description="Nodes that did not answer.")
    failures_omitted: int
    failures_by_reason: dict[str, int]


def shared(found: FanOut[Any]) -> dict[str, Any]:
    """The fields of a `FleetAnswer` about all nodes at once."""
    return {
        "simulated": any(answer.data.simulated for answer in found.answers),
        "coverage": found.coverage,
        "ways": ways(found.answers),
        "passed_over": passed_over(found.answers),
        "next_cursor": None,
        "nodes_omitted": 0,
        "failures": found.failures,
        "failures_omitted": 0,
        "failures_by_reason": by_reason(found.failures),
    }


def of_fleet(model: type[N], answer: NodeAnswer[Any], **more: object) -> N:
    """An agent's answer as one node of the fleet's. It was validated when it came in: the agent's
    objects are kept as they are."""
    data = answer.data
    fields = {name: getattr(data, name) for name in type(data).model_fields}
    return model.model_construct(**fields | {"node": answer.node, "via": answer.via} | more)


def begin(cursor: str | None, ranks: Mapping[str, int], *, tool: str) -> Place | None:
    """The place that a cursor names: the last node told, after the word that decides where it
    stood, so that any replica can go on from there.

    Args:
        ranks: of the words that nodes are sorted by.

    Raises:
        ToolError: it is no cursor of this tool.
    """
    if cursor is None:
        return None
    word, _, node = cursor.partition(" ")
    if word not in ranks or not node:
        raise ToolError(f'"cursor" of {tool} must be the next_cursor of a page before.')
    return ranks[word], node

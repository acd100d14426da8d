"""What every tool about a fleet may be asked, and what it says when nobody can be asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field

from mcp_gpu.fleet.discovery import DiscoveryError
from mcp_gpu.fleet.router import FanOut, Router
from mcp_gpu.fleet.selection import UnknownNodes
from mcp_gpu.registry import Arguments, Call, ToolError
from mcp_gpu.tools.spans import clipped
from transports.text import quoted

__all__ = ["FleetArguments", "NodeName", "asked", "asking"]

R = TypeVar("R", bound=BaseModel)

NODES_NAMED = 1000
"""Most nodes that one call may name."""

NAME_CHARS = 512
"""Longest name of a node: Kubernetes' take 253, and a context's stands before them."""

CURSOR_CHARS = 600
"""A node's name and where it stands in the order."""

NODES_TOLD = 10
"""Names told one by one in an error."""

TOLD_CHARS = 80
"""Length of one of them."""

NodeName = Annotated[str, Field(max_length=NAME_CHARS)]


class FleetArguments(Arguments):
    """Which nodes, and how many of them at a time."""

    nodes: tuple[NodeName, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=NODES_NAMED,
        description="Only these nodes; default all.",
    )
    node: NodeName | None = Field(
        default=None, min_length=1, description="The same for one node, as other tools name theirs."
    )
    limit: int = Field(default=50, ge=1, le=500, description="Most nodes to list.")
    cursor: str | None = Field(
        default=None,
        max_length=CURSOR_CHARS,
        description="next_cursor of the page before, with the same arguments.",
    )

    @property
    def only(self) -> tuple[str, ...] | None:
        """The nodes that are asked for, by whichever argument; None: all."""
        if self.node is None:
            return self.nodes
        return tuple(dict.fromkeys((self.node, *(self.nodes or ()))))


@contextmanager
def asking() -> Iterator[None]:
    """Tell the model why nobody can be asked.

    Raises:
        ToolError: no agents are known, or not those that it named.
    """
    try:
        yield
    except DiscoveryError as error:
        raise ToolError(f"No agents are known: {error}") from error
    except UnknownNodes as error:
        raise ToolError(_unknown(error)) from error


async def asked(
    router: Router,
    tool: str,
    told: Mapping[str, Any],
    result: type[R],
    arguments: FleetArguments,
    call: Call,
) -> FanOut[R]:
    """What the nodes that are asked for answer to a tool.

    Args:
        told: the agents' arguments.

    Raises:
        ToolError: as `asking`.
    """
    with asking():
        return await router.fan_out(
            tool, told, result, nodes=arguments.only, progress=call.progress
        )


def _unknown(error: UnknownNodes) -> str:
    unknown = ", ".join(quoted(name, TOLD_CHARS) for name in error.unknown[:NODES_TOLD])
    known = ", ".join(clipped(name, TOLD_CHARS) for name in error.known[:NODES_TOLD])
    more = len(error.known) - NODES_TOLD
    return (
        f"Unknown nodes: {unknown}. Known: {known or 'none'}"
        + (f" and {more} more" if more > 0 else "")
        + "."
    )

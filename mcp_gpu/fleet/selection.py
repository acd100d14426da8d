"""Which agents a caller means who names nodes."""

from __future__ import annotations

from collections.abc import Callable, Collection

from mcp_gpu.fleet.discovery import Table
from transports.base import Target

__all__ = ["UnknownNodes", "pick"]


class UnknownNodes(Exception):
    """The caller named nodes that nobody knows."""

    def __init__(self, unknown: Collection[str], known: Collection[str]) -> None:
        self.unknown = sorted(unknown)
        self.known = sorted(known)
        super().__init__(f"unknown nodes: {', '.join(self.unknown)}")


def pick(
    table: Table, nodes: frozenset[str] | None, node_of: Callable[[Target], str]
) -> list[Target]:
    """The agents of these nodes; None for all.

    Args:
        node_of: an agent's node, empty where nobody has learned it yet. Such an agent may be
            on any, so it is picked where a node is wanted that nobody is known to be on.

    Raises:
        UnknownNodes: some are named that cannot be any agent's.
    """
    if nodes is None:
        return list(table.targets)
    by_node: dict[str, list[Target]] = {}
    for target in table.targets:
        by_node.setdefault(node_of(target), []).append(target)
    unnamed = by_node.pop("", [])
    known = by_node.keys() | {absent.node for absent in table.absent}
    unknown = nodes - known
    if unknown and not unnamed:
        raise UnknownNodes(unknown, known)
    picked = [target for node in sorted(nodes) for target in by_node.get(node, [])]
    return picked + (unnamed if unknown else [])

"""One GPU out of a node's inventory, and the indices that there are."""

from __future__ import annotations

from collections.abc import Collection

from mcp_gpu.gpu.model import Gpu
from mcp_gpu.registry import UnknownResource
from mcp_gpu.tools.inventory import NodeInventory
from mcp_gpu.tools.spans import numbers
from transports.text import quoted

__all__ = ["INVENTORY", "index_of", "only"]

INVENTORY = "get_gpu_inventory"

TOLD_CHARS = 40
"""How much of an unknown index is repeated."""

INDEX_CHARS = 3
"""Longest index that is looked at."""


def index_of(text: str) -> int:
    """The index that stands in a URI.

    Raises:
        UnknownResource: it is none.
    """
    decimal = text.isascii() and text.isdecimal() and len(text) <= INDEX_CHARS
    if not decimal or str(int(text)) != text:
        raise UnknownResource(
            f"Unknown GPU: {quoted(text, TOLD_CHARS)}. Known: the index of a GPU, from 0"
        )
    return int(text)


def only(inventory: NodeInventory, index: int) -> tuple[Gpu, ...]:
    """The GPU of this index; none where NVML does not say which there are, as the inventory tells.

    Raises:
        UnknownResource: the node has none.
    """
    found = tuple(gpu for gpu in inventory.gpus if gpu.index == index)
    if not found and inventory.state == "ok":
        known = _known(inventory.gpus)
        raise UnknownResource(f"Unknown GPU: {index}. Known on {inventory.node}: {known}")
    return found


def _known(gpus: Collection[Gpu]) -> str:
    return f"GPU {numbers({gpu.index for gpu in gpus})}" if gpus else "none"

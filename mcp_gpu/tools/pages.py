"""One page of an answer about a fleet, with what the next one begins from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from mcp_gpu.tools.failures import LISTED, brief
from mcp_gpu.tools.fleet_answer import FleetAnswer
from mcp_gpu.tools.inventory import Detail
from mcp_gpu.tools.spans import clipped

__all__ = ["page", "short"]

PAGE_BYTES: Final[dict[Detail, int]] = {"summary": 20_000, "full": 200_000}
"""Room for the nodes of one page; the cursor goes on from there. With the failures beside them a
summary of any fleet in any state stays under 40,000 characters. Full is 50,000 tokens: far below
what clients refuse and more than most want."""

TEXT_CHARS: Final = 400
"""Length of any text about one node in a summary; detail full has all of it."""


A = TypeVar("A", bound=FleetAnswer)
N = TypeVar("N", bound=BaseModel)


def short(told: N, most: int = TEXT_CHARS) -> N:
    """The same with every text cut to so many characters, however deep in it."""
    return told.model_copy(
        update={name: _short(getattr(told, name), most) for name in type(told).model_fields}
    )


def _short(value: Any, most: int) -> Any:
    if isinstance(value, str):
        return clipped(value, most)
    if isinstance(value, BaseModel):
        return short(value, most)
    if isinstance(value, tuple):
        return tuple(_short(each, most) for each in value)
    if isinstance(value, dict):
        return {_short(name, most): _short(each, most) for name, each in value.items()}
    return value


def page(
    everything: A,
    rest: Sequence[N],
    *,
    first: bool,
    limit: int,
    detail: Detail,
    shortened: Callable[[N], N],
    cursor: Callable[[N], str],
) -> A:
    """As many nodes as an answer holds.

    Args:
        rest: nodes that no page before has told.
        first: whether this is the first page, which names who did not answer.
        limit: most nodes to tell.
        shortened: a node as a summary tells it; its texts are cut here.
        cursor: names a node's place in the order.
    """
    summary = detail == "summary"
    told: list[N] = []
    size_bytes = 0
    for node in rest[:limit]:
        shown = short(shortened(node)) if summary else node
        size_bytes += len(json.dumps(shown.model_dump(mode="json")))
        if told and size_bytes > PAGE_BYTES[detail]:
            break
        told.append(shown)
    omitted = len(rest) - len(told)
    listed = everything.failures[:LISTED] if first else ()
    return everything.model_copy(
        update={
            "nodes": tuple(told),
            "next_cursor": cursor(told[-1]) if omitted and told else None,
            "nodes_omitted": omitted,
            "failures": tuple(map(brief, listed)) if summary else listed,
            "failures_omitted": len(everything.failures) - len(listed),
        }
    )

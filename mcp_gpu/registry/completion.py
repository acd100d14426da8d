"""What a client may offer while an argument of a prompt or a part of a URI is being typed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from mcp_types import Completion

__all__ = ["Completer", "complete"]

VALUES = 100
"""Most values told at once (MCP, completion); how many there are is told beside them."""


@dataclass(frozen=True, slots=True)
class Completer:
    """Where the values of one argument come from."""

    values: Callable[[Mapping[str, str]], Awaitable[Iterable[str]]]
    """All of them in the order to offer them, given the other arguments. Bounded in time, and
    raises nothing: who knows none gives none."""
    tool: str | None = None
    """The tool whose content they are; None: they tell nothing of any machine."""


async def complete(completer: Completer | None, typed: str, given: Mapping[str, str]) -> Completion:
    """The values that begin with what was typed."""
    if completer is None:
        return Completion(values=[], total=0, has_more=False)
    found = [value for value in await completer.values(given) if value.startswith(typed)]
    return Completion(values=found[:VALUES], total=len(found), has_more=len(found) > VALUES)

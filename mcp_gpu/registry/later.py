"""Tools that are made at their first call, so that a start pays for none of them.

A tool's models, its schemas and what it answers with cost milliseconds each, and clients list all
tools where they call few. What `tools/list` shows is kept in a file, which
`make test ARGS=--update-golden` writes from the tools and every test run compares with them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mcp_types import ListToolsResult
from mcp_types import Tool as ListedTool

from mcp_gpu.registry.tool import Tool
from transports.text import quoted

__all__ = ["Later", "Makers", "UnknownTools", "from_listing"]

NAME_CHARS = 100
"""How much of an unknown tool's name is repeated."""

Makers = Mapping[str, Callable[[], Tool[Any]]]
"""By name, what makes a tool: the place to import its module."""


class Later:
    """One tool, of which only what is listed is there from the start."""

    def __init__(self, listed: ListedTool, make: Callable[[], Tool[Any]]) -> None:
        self.listed = listed
        self._make = make

    @classmethod
    def made(cls, tool: Tool[Any]) -> Later:
        """Of a tool that is there already."""
        return cls(tool.listed(), lambda: tool)

    @cached_property
    def tool(self) -> Tool[Any]:
        """The tool itself, made when it is first asked for."""
        return self._make()


class UnknownTools(Exception):
    """Tools are to be left out that there are not. The text names them, and those there are."""


def from_listing(path: Path, makers: Makers, without: Collection[str] = ()) -> list[Later]:
    """The tools that a file lists.

    Args:
        without: names of those to leave out.

    Raises:
        KeyError: it lists one that nothing makes.
        ValueError: something is made that it does not list.
        UnknownTools: it does not list one that is to be left out.
    """
    listing = ListToolsResult.model_validate_json(path.read_bytes())
    names = {each.name for each in listing.tools}
    if unlisted := makers.keys() - names:
        raise ValueError(f"{path.name} does not list {', '.join(sorted(unlisted))}")
    if unknown := sorted(set(without) - names):
        told = ", ".join(quoted(each, NAME_CHARS) for each in unknown)
        raise UnknownTools(f"no such tool: {told}. Known: {', '.join(sorted(names))}")
    return [Later(each, makers[each.name]) for each in listing.tools if each.name not in without]

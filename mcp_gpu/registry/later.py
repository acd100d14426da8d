"""Tools that are made at their first call, so that a start pays for none of them.

A tool's models, its schemas and what it answers with cost milliseconds each, and clients list all
tools where they call few. What `tools/list` shows is kept in a file, which
`make test ARGS=--update-golden` writes from the tools and every test run compares with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mcp_types import ListToolsResult
from mcp_types import Tool as ListedTool

from mcp_gpu.registry.tool import Tool

__all__ = ["Later", "Makers", "from_listing"]

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


def from_listing(path: Path, makers: Makers) -> list[Later]:
    """The tools that a file lists.

    Raises:
        KeyError: it lists one that nothing makes.
        ValueError: something is made that it does not list.
    """
    listing = ListToolsResult.model_validate_json(path.read_bytes())
    if unlisted := makers.keys() - {each.name for each in listing.tools}:
        raise ValueError(f"{path.name} does not list {', '.join(sorted(unlisted))}")
    return [Later(each, makers[each.name]) for each in listing.tools]

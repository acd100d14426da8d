"""The agent of one node, asked several tools for one answer: `NodeAgent`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import anyio
from pydantic import BaseModel

from mcp_gpu.fleet.discovery import DiscoveryError
from mcp_gpu.fleet.router import Router
from mcp_gpu.fleet.selection import UnknownNodes
from mcp_gpu.workloads.reads import Reads

__all__ = ["NodeAgent"]

M = TypeVar("M", bound=BaseModel)


class NodeAgent:
    """Questions of one call. What was asked for before is not asked again.

    Args:
        node: its name in the fleet.
        reads: what the agent does not tell is a gap there.
    """

    def __init__(self, router: Router, node: str, reads: Reads) -> None:
        self._router, self._node, self._reads = router, node, reads
        self._told: dict[str, tuple[BaseModel | None, str]] = {}
        self._locks: dict[str, anyio.Lock] = {}

    @property
    def known(self) -> bool:
        """Whether there is such an agent, as far as it was asked."""
        return any(why != self._nobody for _, why in self._told.values())

    @property
    def _nobody(self) -> str:
        return f"there is no agent on {self._node}"

    async def ask(
        self, tool: str, arguments: Mapping[str, Any], result: type[M], what: str = ""
    ) -> M | None:
        """Its answer; None where there is none, which is a gap if `what` names it."""
        key = json.dumps([tool, arguments], sort_keys=True)
        async with self._locks.setdefault(key, anyio.Lock()):
            if key not in self._told:
                self._told[key] = await self._ask(tool, arguments, result)
        found, why = self._told[key]
        if found is None and what:
            self._reads.miss(what, why)
        assert found is None or isinstance(found, result)
        return found

    async def _ask(
        self, tool: str, arguments: Mapping[str, Any], result: type[M]
    ) -> tuple[M | None, str]:
        """The answer, or None and why there is none."""
        try:
            found = await self._router.fan_out(tool, arguments, result, nodes=(self._node,))
        except DiscoveryError as error:
            return None, f"no agents are known: {error}"
        except UnknownNodes:
            return None, self._nobody
        for answer in found.answers:
            return answer.data, ""
        for failure in found.failures:
            return None, f"{failure.reason}: {failure.message}"
        return None, "no answer"

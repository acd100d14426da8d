"""One tool: what is listed of it, what it may be asked, and what it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import anyio
from mcp_types import Tool as ListedTool
from mcp_types import ToolAnnotations
from pydantic import BaseModel

from mcp_gpu.registry.arguments import Arguments
from mcp_gpu.registry.schema import compact, outline

__all__ = ["Answer", "Call", "Right", "Tool", "ToolError", "UnknownResource"]

PROGRESS_SECONDS = 1.0
"""How long a tool waits for a client to take a progress notification, which it may well lose."""

A = TypeVar("A", bound=Arguments)


class ToolError(Exception):
    """The tool can't answer, and the text says why and what to do. The model reads it."""


class UnknownResource(Exception):
    """There is none at this URI. The text says what there is."""


class Right(NamedTuple):
    """A right in Kubernetes that a caller has to have to be told what the tool reads there: the
    server's own account may read more than the caller."""

    verb: str
    resource: str
    """Of the core group, with its subresource: pods, pods/log."""
    namespace: str
    """Empty: in all."""
    needed: bool = True
    """False: without it the tool tells less."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool returns: the same facts twice, for the model's eye and for programs."""

    text: str
    data: BaseModel


async def _unheard(done: float, total: float | None, message: str | None) -> None:
    """Progress of a call whose caller can't hear it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool: who asks, and a way to tell them how far it is."""

    id: str = ""
    """Names it in logs, and in what a caller is told of a fault inside."""
    caller: str = "unknown"
    """The client's own name and version, which it may make up: for logs alone."""
    report: Callable[[float, float | None, str | None], Awaitable[None]] = _unheard
    withheld: frozenset[str] = frozenset()
    """Resources of Kubernetes that the caller may not read, of those that are not `needed`."""

    async def progress(
        self, done: float, total: float | None = None, message: str | None = None
    ) -> None:
        """Tell a caller who asked for it. Gives up on one who does not listen."""
        with anyio.move_on_after(PROGRESS_SECONDS):
            await self.report(done, total, message)


def _none(arguments: Arguments) -> Sequence[Right]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Tool(Generic[A]):
    """One tool. `run` raises `ToolError` for what the model should read."""

    name: str
    title: str
    description: str
    arguments: type[A]
    result: type[BaseModel]
    run: Callable[[A, Call], Awaitable[Answer]]
    rights: Callable[[A], Sequence[Right]] = _none
    """What the caller has to be allowed to read in Kubernetes, where callers' rights are asked."""

    def listed(self) -> ListedTool:
        """How `tools/list` shows it."""
        return ListedTool(
            name=self.name,
            title=self.title,
            description=self.description,
            input_schema=compact(self.arguments, "validation"),
            output_schema=outline(self.result),
            annotations=ToolAnnotations(
                title=self.title,
                read_only_hint=True,
                destructive_hint=False,
                idempotent_hint=True,
                open_world_hint=False,
            ),
        )

"""One prompt: a way to go about a question, written for the tools that the server has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    GetPromptResult,
    ListPromptsResult,
    PromptArgument,
    PromptMessage,
    TextContent,
)
from mcp_types import Prompt as ListedPrompt

from mcp_gpu.registry.arguments import Arguments, BadArguments, read
from mcp_gpu.registry.completion import Completer
from transports.text import quoted

__all__ = ["Prompt", "Prompts"]

NAME_CHARS = 100
"""How much of an unknown prompt's name is repeated."""

A = TypeVar("A", bound=Arguments)


@dataclass(frozen=True, kw_only=True)
class Prompt(Generic[A]):
    """One prompt. Its arguments are text, as MCP has them."""

    name: str
    title: str
    description: str
    arguments: type[A]
    write: Callable[[A, Set[str]], str]
    """The text, given the arguments and the names of the tools to send the reader to."""
    completes: Mapping[str, Completer] = field(default_factory=dict)
    """By argument."""

    def listed(self) -> ListedPrompt:
        """How `prompts/list` shows it."""
        return ListedPrompt(
            name=self.name,
            title=self.title,
            description=self.description,
            arguments=[
                PromptArgument(
                    name=name, description=given.description, required=given.is_required()
                )
                for name, given in self.arguments.model_fields.items()
            ],
        )


class Prompts:
    """The prompts of one server.

    Args:
        tools: the names of the server's tools.
    """

    def __init__(self, prompts: Sequence[Prompt[Any]], tools: Set[str]) -> None:
        self._prompts = {prompt.name: prompt for prompt in prompts}
        self._tools = tools
        self.listing = ListPromptsResult(prompts=[prompt.listed() for prompt in prompts])

    def named(self, name: str) -> Prompt[Any]:
        """The prompt of this name.

        Raises:
            MCPError: there is none.
        """
        if name not in self._prompts:
            known = ", ".join(self._prompts)
            unknown = quoted(name, NAME_CHARS)
            raise MCPError(INVALID_PARAMS, f"Unknown prompt: {unknown}. Known: {known}")
        return self._prompts[name]

    def written(self, name: str, raw: Mapping[str, str] | None) -> GetPromptResult:
        """The prompt with these arguments.

        Raises:
            MCPError: there is no such prompt, or the arguments don't fit it.
        """
        prompt = self.named(name)
        try:
            arguments = read(prompt.arguments, raw, of=name)
        except BadArguments as error:
            raise MCPError(INVALID_PARAMS, str(error)) from None
        text = prompt.write(arguments, self._tools)
        return GetPromptResult(
            description=prompt.description,
            messages=[PromptMessage(role="user", content=TextContent(text=text))],
        )

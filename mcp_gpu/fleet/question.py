"""What all agents are asked, and what one of them answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mcp_types import CallToolResult, TextContent
from pydantic import BaseModel, ValidationError

from mcp_gpu import __version__
from mcp_gpu.fleet.model import PassedOver
from transports.base import Identity, Target, Transport
from transports.errors import BadPeer
from transports.text import one_line, visible

__all__ = ["NodeAnswer", "Question", "plain", "read", "too_old", "words"]

M = TypeVar("M", bound=BaseModel)

ANSWER_BYTES = 256 * 1024
"""Longest answer of one agent: 16 GPUs with 7 MIG instances each take half of it. One agent gone
wrong must not make the whole fleet's answer too long to give."""

TEXT_CHARS = 2_000
"""Longest text in it: whole explanations take some hundred."""

PLACE_CHARS = 200
"""Longest name of a field that is not as it should be: its parts may be the agent's words."""


@dataclass(frozen=True, slots=True)
class Question(Generic[M]):
    """What all agents are asked."""

    tool: str
    arguments: Mapping[str, Any]
    """An agent is sent those of them that it lists for the tool."""
    result: type[M]
    nodes: frozenset[str] | None
    """Only agents of these nodes are asked; None for all."""
    node_deadline_seconds: float
    """For all paths of one agent together, from its first attempt."""


@dataclass(frozen=True, slots=True)
class NodeAnswer(Generic[M]):
    """One node's data and how it was had."""

    node: str
    """As shown: with its cluster where there are several."""
    via: str
    data: M
    identity: Identity
    ready: bool
    elapsed_seconds: float
    passed_over: tuple[tuple[str, PassedOver], ...]
    """Paths better than `via`, and why each was not taken."""


def words(outcome: CallToolResult) -> str:
    """What a tool that failed says."""
    texts = [block.text for block in outcome.content if isinstance(block, TextContent)]
    return one_line(" ".join(texts), TEXT_CHARS) or "the agent's tool failed and did not say why"


def plain(data: Any, most: int | None = None) -> Any:
    """What came as JSON, with nothing in its texts that would act on a terminal or feign a line.

    Args:
        most: characters of one text; the rest is cut.

    Raises:
        ValueError: a number in it is none that JSON has, though parsers take it.
    """
    if isinstance(data, str):
        return visible(data if most is None or len(data) <= most else data[: most - 1] + "\u2026")
    if isinstance(data, float) and not math.isfinite(data):
        raise ValueError(f"{data} is no number of JSON's")
    if isinstance(data, dict):
        return {plain(name, most): plain(value, most) for name, value in data.items()}
    if isinstance(data, list):
        return [plain(item, most) for item in data]
    return data


def read(outcome: CallToolResult, result: type[M], target: Target, transport: Transport) -> M:
    """The data of an answer. Whatever the agent says, its texts are short and can be printed.

    Raises:
        BadPeer: it is not what was asked for, or far too long.
    """
    try:
        said = plain(outcome.structured_content, TEXT_CHARS)
    except ValueError as error:
        raise BadPeer(
            f"the agent's answer: {error}", target=target, transport=transport.name
        ) from error
    try:
        data = result.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:PLACE_CHARS]
        raise BadPeer(
            f"the agent's answer does not fit its schema: {place or 'answer'}: {first['msg']}",
            target=target,
            transport=transport.name,
        ) from error
    size_bytes = len(data.model_dump_json())
    if size_bytes > ANSWER_BYTES:
        raise BadPeer(
            f"the agent's answer is {size_bytes:,} bytes, which no node needs",
            target=target,
            transport=transport.name,
        )
    return data


def too_old(tool: str, identity: Identity) -> str:
    """What to say of an agent that does not have the tool."""
    return (
        f"agent {identity.version} has no tool {tool}; this gateway is {__version__}: "
        "update the agents"
    )

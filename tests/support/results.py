"""What a tool's result holds."""

from __future__ import annotations

from typing import Any

from mcp_types import CallToolResult

__all__ = ["data", "text"]


def text(result: CallToolResult) -> str:
    """Its one text."""
    (block,) = result.content
    assert block.type == "text"
    return block.text


def data(result: CallToolResult) -> dict[str, Any]:
    """Its structured content; it is no error."""
    assert not result.is_error, text(result)
    assert result.structured_content is not None
    return result.structured_content

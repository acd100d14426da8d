"""The whole of what each tool promises to answer, of which `tools/list` shows an outline."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from mcp_types import Tool as ListedTool

__all__ = ["FOLDER", "check", "promised"]

FOLDER = Path(__file__).parent.parent / "golden" / "schemas"
"""One file a role; tests/test_listing.py compares them with the tools."""


@cache
def promised(role: str, tool: str) -> dict[str, Any]:
    """The JSON Schema of what a role's tool answers."""
    schemas = json.loads((FOLDER / f"{role}.json").read_text(encoding="utf-8"))
    schema: dict[str, Any] = schemas[tool]
    return schema


def check(role: str, tool: ListedTool, answer: Any) -> None:
    """An answer's structured content fits what is listed of the tool, and the whole schema."""
    assert tool.output_schema is not None
    for schema in (tool.output_schema, promised(role, tool.name)):
        jsonschema.validate(answer, schema, cls=jsonschema.Draft202012Validator)

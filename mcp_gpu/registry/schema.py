"""JSON Schemas of pydantic models the way a model's context likes them: small and closed."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import BaseModel

__all__ = ["compact"]

_NAMED = ("properties", "$defs", "patternProperties")
"""Keywords whose keys are names of the author's, so that a field called `title` survives."""

_LITERAL = ("default", "const", "enum", "examples")
"""Keywords whose values are data, not schemas."""


@cache
def compact(model: type[BaseModel], mode: Literal["validation", "serialization"]) -> dict[str, Any]:
    """The model's schema without the titles that pydantic derives from names."""
    schema: dict[str, Any] = _untitled(model.model_json_schema(mode=mode))
    return schema


def _untitled(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_untitled(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "title" and isinstance(value, str):
            continue
        if key in _NAMED:
            kept[key] = {name: _untitled(inner) for name, inner in value.items()}
        elif key in _LITERAL:
            kept[key] = value
        else:
            kept[key] = _untitled(value)
    return kept

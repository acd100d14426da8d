"""JSON Schemas of pydantic models the way a model's context likes them: small and closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel

__all__ = ["compact", "outline"]

_NAMED = ("properties", "$defs", "patternProperties")
"""Keywords whose keys are names of the author's, so that a field called `title` survives."""

_LITERAL = ("default", "const", "enum", "examples")
"""Keywords whose values are data, not schemas."""

_DEFINITIONS = "#/$defs/"


@cache
def compact(model: type[BaseModel], mode: Literal["validation", "serialization"]) -> dict[str, Any]:
    """The model's schema without the titles that pydantic derives from names."""
    schema: dict[str, Any] = _untitled(model.model_json_schema(mode=mode))
    return schema


def outline(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of an answer's own fields; of the objects in them, what each is and its names.

    It accepts all that the whole schema accepts. Clients put what is listed into a model's context,
    where the whole of all tools takes more room than any answer.
    """
    schema = dict(compact(model, "serialization"))
    definitions = schema.pop("$defs", {})
    outlined: dict[str, Any] = _outlined(schema, definitions)
    return outlined


def _untitled(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    kept = dict(schema)
    if isinstance(kept.get("title"), str):
        del kept["title"]
    return _with_inner(kept, _untitled)


def _outlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    if not isinstance(schema, dict):
        return schema
    if "$ref" not in schema:
        return _with_inner(schema, lambda inner: _outlined(inner, definitions))
    beside = {key: value for key, value in schema.items() if key != "$ref"}
    whole = definitions[schema["$ref"].removeprefix(_DEFINITIONS)] | beside
    if whole.get("type") != "object":
        return _outlined(whole, definitions)
    told = whole.get("description", "").partition("\n")[0]
    names = ", ".join(whole.get("properties", ()))  # without a type each, clients would complain
    parts = [told, f"Fields: {names}." if names else ""]
    return {"type": "object", "description": " ".join(filter(None, parts))}


def _with_inner(schema: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """A schema with each that stands directly in it changed."""
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _LITERAL:
            kept[key] = value
        elif key in _NAMED:
            kept[key] = {name: change(inner) for name, inner in value.items()}
        elif isinstance(value, list):
            kept[key] = [change(inner) for inner in value]
        else:
            kept[key] = change(value)
    return kept

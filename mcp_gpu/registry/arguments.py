"""What tools and prompts may be asked: strict arguments, and one error that says what is wrong.

The SDK drops unknown arguments in silence and answers wrong ones with pydantic's prose and URLs.
A model that misspelt an argument must hear so, or it takes the answer for what it asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

__all__ = ["Arguments", "BadArguments", "read"]

PROBLEMS_TOLD = 5
"""Problems named in one error: more would teach the model nothing."""

INPUT_CHARS_TOLD = 60
"""How much of a wrong value is quoted back."""


class Arguments(BaseModel):
    """Base of the arguments of every tool and prompt. Unknown names are refused and nothing is
    coerced: `"5"` is no integer and `1` is no boolean."""

    model_config = ConfigDict(frozen=True, extra="forbid")


A = TypeVar("A", bound=Arguments)


class BadArguments(Exception):
    """The arguments don't fit. The text is for the model."""


def read(model: type[A], raw: Mapping[str, Any] | None, *, of: str) -> A:
    """Validate what came over the wire against the declared types.

    Args:
        of: the tool or the prompt, for errors.

    Raises:
        BadArguments: an argument is unknown, missing or of a wrong value.
    """
    try:
        # As JSON, because pydantic is strict about JSON types there and would be strict about
        # Python types (a list is no tuple, a string no enum) otherwise.
        return model.model_validate_json(json.dumps(raw or {}), strict=True)
    except ValidationError as error:
        raise BadArguments(_explain(error, model, of)) from None
    except RecursionError:
        raise BadArguments(f"Bad arguments for {of}: nested too deeply.") from None


def _explain(error: ValidationError, model: type[BaseModel], of: str) -> str:
    details = _independent(error.errors(include_url=False, include_context=False))
    problems = [_problem(detail) for detail in details[:PROBLEMS_TOLD]]
    if len(details) > PROBLEMS_TOLD:
        problems.append(f"and {len(details) - PROBLEMS_TOLD} more problems")
    allowed = ", ".join(name for name in model.model_fields) or "no arguments"
    return f"Bad arguments for {of}: {'; '.join(problems)}. Allowed: {allowed}."


def _independent(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without lists that are too short only for the items in them that were refused."""
    places = [detail["loc"] for detail in details]

    def follows(detail: ErrorDetails) -> bool:
        place = detail["loc"]
        return detail["type"] == "too_short" and any(
            len(other) > len(place) and other[: len(place)] == place for other in places
        )

    return [detail for detail in details if not follows(detail)]


def _problem(detail: ErrorDetails) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown argument {_quoted(name)}"
        case "missing":
            return f"missing argument {_quoted(name)}"
        case "json_invalid":
            return "a value is not valid text or JSON"
        case "too_short" | "string_too_short":
            return f"{_quoted(name)} must not be empty"
    message = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{_quoted(name)} {message}, got {_quoted(detail['input'])}"


def _quoted(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= INPUT_CHARS_TOLD else f"{text[:INPUT_CHARS_TOLD]}..."

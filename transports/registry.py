"""Transports by name, from the entry-point group `mcp_gpu.transports`: anybody's, ours too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from transports.base import Transport

__all__ = ["GROUP", "known", "load", "read_options"]

GROUP = "mcp_gpu.transports"
"""Each entry point is a callable that takes a mapping of options and gives a `Transport`."""

_Settings = TypeVar("_Settings")


def known() -> tuple[str, ...]:
    """The names of all installed transports."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def load(name: str, options: Mapping[str, Any] | None = None) -> Transport:
    """Make the transport of that name.

    Raises:
        ValueError: no transport has the name, more than one has, it refuses the options,
            or its package is broken. The message says which, in a line.
    """
    found = tuple(entry_points(group=GROUP, name=name))
    if not found:
        raise ValueError(f"unknown transport {name!r}; known: {', '.join(known())}")
    if len(found) > 1:
        owners = " and ".join(_owner(entry) for entry in found)
        raise ValueError(f"transport {name!r} is registered twice, by {owners}")
    try:
        factory = found[0].load()
    # The boundary to a third party's package, whose import can fail in any way.
    except Exception as error:
        raise _broken(found[0], error) from error
    try:
        transport = factory(options or {})
    except ValueError as error:
        raise ValueError(f"transport {name!r}: {error}") from error
    # The same boundary: its code.
    except Exception as error:
        raise _broken(found[0], error) from error
    if not isinstance(transport, Transport):
        raise _broken(found[0], TypeError(f"made a {type(transport).__name__}, not a Transport"))
    return transport


def read_options(settings: type[_Settings], options: Mapping[str, Any]) -> _Settings:
    """Fill a dataclass of settings from a mapping, as a settings file gives it.

    Raises:
        ValueError: an option is unknown or has no valid value. Values are never quoted:
            one may be a secret.
    """
    names = [field.name for field in fields(settings)]  # type: ignore[arg-type]
    if unknown := sorted(set(options) - set(names)):
        raise ValueError(f"unknown option {unknown[0]!r}; known: {', '.join(names)}")
    try:
        return TypeAdapter(settings).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        words = first["msg"].removeprefix("Value error, ")
        where = f"option {first['loc'][0]!r}: " if first["loc"] else ""
        raise ValueError(f"{where}{words}") from None


def _owner(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _broken(entry: EntryPoint, error: Exception) -> ValueError:
    return ValueError(
        f"transport {entry.name!r} of {_owner(entry)} is broken: {type(error).__name__}: {error}"
    )

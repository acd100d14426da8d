"""Kubernetes' documents read without trusting their shape: what is not as expected is absent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

__all__ = ["Document", "is_path_part", "moment", "number", "part", "parts", "trim", "word"]

Document = Mapping[str, Any]
"""An object as the API server gives it, or the items of a list below `items`."""

NAME: Final = re.compile(r"(?!\.\.?$)[A-Za-z0-9._:-]{1,253}")


ANNOTATION_CHARS: Final = 4_096
"""Of those that are kept."""

_OF_CONTAINERS: Final = (
    "args", "command", "env", "envFrom", "lifecycle", "livenessProbe", "readinessProbe",
    "startupProbe", "volumeMounts",
)  # fmt: skip
"""What nobody here looks at, however long its owner makes it."""


def is_path_part(name: str) -> bool:
    """Whether Kubernetes could call something so: it cannot lead a path elsewhere."""
    return NAME.fullmatch(name) is not None


def _at(document: object, path: tuple[str, ...]) -> object:
    for step in path:
        document = document.get(step) if isinstance(document, Mapping) else None
    return document


def part(document: object, *path: str) -> Document:
    """The object there; empty where there is none."""
    found = _at(document, path)
    return found if isinstance(found, Mapping) else {}


def parts(document: object, *path: str) -> tuple[Document, ...]:
    """The objects of the list there."""
    return tuple(each for each in _list(document, path) if isinstance(each, Mapping))


def word(document: object, *path: str) -> str:
    """The text there; empty where there is none."""
    found = _at(document, path)
    return found if isinstance(found, str) else ""


def number(document: object, *path: str) -> int:
    """The whole number there, or in a text there; 0 where there is none."""
    found = _at(document, path)
    if isinstance(found, str) and found.isascii() and found.isdecimal():
        return int(found[:18])
    return found if isinstance(found, int) else 0


def moment(document: object, *path: str) -> float | None:
    """The time there, in Unix seconds; None where there is none."""
    try:
        at = datetime.fromisoformat(word(document, *path))
    except ValueError:
        return None
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def trim(document: Document) -> None:
    """Drop from an object of the API server's what nobody here looks at and most of it may be."""
    _drop(part(document, "metadata"), "managedFields")
    annotations = part(document, "metadata", "annotations")
    _drop(annotations, *(key for key, text in annotations.items() if not _is_short(text)))
    for spec in (part(document, "spec"), part(document, "spec", "template", "spec")):
        _drop(spec, "volumes")
        for kind in ("containers", "initContainers", "ephemeralContainers"):
            for container in parts(spec, kind):
                _drop(container, *_OF_CONTAINERS)


def _is_short(text: object) -> bool:
    return isinstance(text, str) and len(text) <= ANNOTATION_CHARS


def _drop(document: Document, *keys: str) -> None:
    if isinstance(document, dict):
        for key in keys:
            document.pop(key, None)


def _list(document: object, path: tuple[str, ...]) -> Sequence[object]:
    found = _at(document, path)
    return found if isinstance(found, list | tuple) else ()

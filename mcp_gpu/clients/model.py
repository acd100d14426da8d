"""What is written for a client, and what all formats of its file can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

__all__ = [
    "Change",
    "ClientError",
    "Entry",
    "Format",
    "Item",
    "Local",
    "Place",
    "Remote",
    "Scope",
    "merged",
]

Scope = Literal["user", "project"]

OWNED: Final = {"type", "command", "args", "url", "bearer_token_env_var"}
"""Keys of an entry that are written here; all others are the user's."""


class ClientError(Exception):
    """A client's file cannot be read or changed. The text says which and why."""


@dataclass(frozen=True, slots=True)
class Local:
    """A program that the client starts and talks to over its standard streams."""

    command: str
    arguments: Sequence[str]


@dataclass(frozen=True, slots=True)
class Remote:
    """A server that the client calls over HTTP."""

    url: str
    token_variable: str = ""
    """Names what holds the bearer token; the token itself is never written."""


@dataclass(frozen=True, slots=True)
class Item:
    """The element of a list whose `key` is `value`."""

    key: str
    value: str


Place = tuple[str | Item, ...]
"""Where something lies in a document, from its root."""

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """One place of a document and what is to be there; None for nothing."""

    path: Place
    value: Entry | None


class Format(Protocol):
    """A way to write documents, edited in place: what is not changed keeps every character."""

    def read(self, text: str) -> dict[str, Any]:
        """The document's data; empty where the text is blank.

        Raises:
            ClientError: the text is malformed; says where.
        """
        ...

    def put(self, text: str, path: Place, value: Entry) -> str:
        """The text with the value there, and with as little else changed as can be.

        Raises:
            ClientError: the text is malformed, or the place cannot be edited.
        """
        ...

    def take(self, text: str, path: Place) -> str:
        """The text without what is there, if anything is.

        Raises:
            ClientError: the text is malformed, or the place cannot be edited.
        """
        ...


def merged(old: object, new: Mapping[str, Any]) -> Entry:
    """The new entry with what the user has added to the old one."""
    if not isinstance(old, dict):
        return dict(new)
    entry = {key: value for key, value in old.items() if key not in OWNED | {"headers"}}
    headers = old.get("headers")
    kept = {}
    if isinstance(headers, dict) and "url" in new:
        kept = {key: value for key, value in headers.items() if key != "Authorization"}
    entry |= new
    if kept or "headers" in new:
        entry["headers"] = kept | dict(new.get("headers", {}))
    return entry

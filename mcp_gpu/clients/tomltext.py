"""TOML edited in place: the tables of one server, as Codex itself writes them."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mcp_gpu.clients.model import ClientError, Entry, Place

__all__ = ["Toml"]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class _Statement:
    """A table's header, or a key with its value, which may take several lines."""

    start: int
    end: int
    """Without a comment behind it, and without the line's end."""
    header: bool
    path: tuple[str, ...]
    value: int = 0
    """Where the value begins."""


class Toml:
    """TOML as a client reads it."""

    def read(self, text: str) -> dict[str, Any]:
        """As `Format`."""
        try:
            return tomllib.loads(text.replace("\r\n", "\n"))
        except tomllib.TOMLDecodeError as error:
            raise ClientError(str(error)[:1].lower() + str(error)[1:]) from None

    def put(self, text: str, path: Place, value: Entry) -> str:
        """As `Format`."""
        old, names = self._at(text, path)
        newline = "\r\n" if "\r\n" in text else "\n"
        if old is None:
            new = _appended(text, names, value, newline)
        else:
            new = _changed(text, names, old, value, newline)
        return self._checked(text, new, names, value)

    def take(self, text: str, path: Place) -> str:
        """As `Format`."""
        old, names = self._at(text, path)
        return text if old is None else self._checked(text, _removed(text, names), names, None)

    def _at(self, text: str, path: Place) -> tuple[Entry | None, tuple[str, ...]]:
        names = tuple(part for part in path if isinstance(part, str))
        data: Any = self.read(text)
        for depth, name in enumerate(names):
            data = data.get(name)
            if data is None:
                return None, names
            if not isinstance(data, dict):
                raise ClientError(f"{'.'.join(names[: depth + 1])} is no table")
        return data, names

    def _checked(self, text: str, new: str, names: tuple[str, ...], value: Entry | None) -> str:
        """The new text, if its data is the old one's with this value, which is the last word on
        what was written by hand here."""
        wanted = self.read(text)
        place = wanted
        for name in names[:-1]:
            place = place.setdefault(name, {})
        if value is None:
            del place[names[-1]]
        else:
            place[names[-1]] = value
        try:
            found = self.read(new)
        except ClientError:
            found = {}
        if _filled(found) != _filled(wanted):
            table = ".".join(names)
            raise ClientError(
                f"its servers are not written as tables of their own, such as [{table}]; they are"
                " left as they are"
            )
        return new


def _filled(data: dict[str, Any]) -> dict[str, Any]:
    """Without tables that are empty, which the last server leaves or not."""
    return {key: value for key, value in data.items() if value != {}}


def _appended(text: str, names: Sequence[str], value: Entry, newline: str) -> str:
    lines = [f"[{'.'.join(map(_key, names))}]"]
    lines += [f"{_key(key)} = {_value(each)}" for key, each in value.items()]
    if text.strip():
        lines.insert(0, "")
    start = newline if text and not text.endswith("\n") else ""
    return text + start + newline.join(lines) + newline


def _changed(text: str, names: tuple[str, ...], old: Entry, value: Entry, newline: str) -> str:
    own = _own(text, names)
    for statement in reversed(own):
        if statement.header or len(statement.path) > 1:
            continue
        (key,) = statement.path
        if key not in value:
            text = text[: _line(text, statement.start)] + text[_next_line(text, statement.end) :]
        elif old[key] != value[key]:
            text = text[: statement.value] + _value(value[key]) + text[statement.end :]
    added = [f"{_key(key)} = {_value(each)}" for key, each in value.items() if key not in old]
    if not (own and added):
        return text
    header = _next_line(text, own[0].end)
    before = text[:header] if text[:header].endswith("\n") else text[:header] + newline
    return before + newline.join(added) + newline + text[header:]


def _removed(text: str, names: tuple[str, ...]) -> str:
    cuts: list[tuple[int, int]] = []
    ours = False
    for statement in _statements(text):
        if statement.header:
            ours = statement.path[: len(names)] == names
            if ours:
                cuts.append((statement.start, _next_line(text, statement.end)))
        elif ours:
            cuts[-1] = (cuts[-1][0], _next_line(text, statement.end))
    for start, end in reversed(cuts):
        before = text[: _line(text, start)]
        if before.endswith(("\n\n", "\n\r\n")):
            before = before[: -2 if before.endswith("\r\n") else -1]
        text = before + text[end:]
    return text


def _own(text: str, names: tuple[str, ...]) -> list[_Statement]:
    """The header of a table and the keys right below it."""
    found: list[_Statement] = []
    for statement in _statements(text):
        if statement.header and found:
            break
        if found or (statement.header and statement.path == names):
            found.append(statement)
    return found


def _statements(text: str) -> Iterator[_Statement]:
    """All there are in a text that is known to be TOML."""
    at = 0
    while True:
        blank = _BLANK.match(text, at)
        assert blank is not None
        at = blank.end()
        if at == len(text):
            return
        if text[at] == "#":
            at = _next_line(text, at)
        elif text[at] == "[":
            end = _until(text, at, "\n#")
            yield _Statement(at, end, header=True, path=_path(text[at:end].strip("[] \t")))
            at = _next_line(text, end)
        else:
            key = text[at : _until(text, at, "=")]
            equals = text.index("=", at + len(key))
            blank = _BLANK.match(text, equals + 1)
            assert blank is not None
            end = _until(text, blank.end(), "\n#")
            yield _Statement(at, end, header=False, path=_path(key), value=blank.end())
            at = _next_line(text, end)


def _until(text: str, at: int, ends: str) -> int:
    """Where one of these is, outside of strings and brackets; without the blanks before it."""
    depth, start = 0, at
    while at < len(text):
        character = text[at]
        if depth == 0 and character in ends:
            break
        if character in "\"'":
            string = _STRING.match(text, at)
            assert string is not None
            at = string.end()
            continue
        if character == "#":
            at = _next_line(text, at)
            continue
        depth += (character in "[{") - (character in "]}")
        at += 1
    return start + len(text[start:at].rstrip())


def _path(key: str) -> tuple[str, ...]:
    data, found = tomllib.loads(f"{key} = 1"), []
    while isinstance(data, dict):
        ((name, data),) = data.items()
        found.append(name)
    return tuple(found)


def _line(text: str, at: int) -> int:
    return text.rfind("\n", 0, at) + 1


def _next_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end + 1


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, str):
        # Of what JSON leaves as it is, TOML wants one more escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return f"[{', '.join(map(_value, value))}]"

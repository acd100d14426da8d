"""JSON edited in place, with comments and trailing commas where the client knows those."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from mcp_gpu.clients.model import ClientError, Entry, Item, Place

__all__ = ["Json"]

DEPTH: Final = 200
"""Deepest nesting that is read; clients' files have ten levels."""

_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null")
_COMMENT = re.compile(r"//[^\r\n]*|/\*.*?\*/", re.DOTALL)


@dataclass(slots=True)
class _Value:
    """A value and where it lies; of an object or a list also what is in it."""

    start: int
    end: int
    data: Any
    children: list[_Child] = field(default_factory=list)
    tail: int = 0
    """Where the last thing before the closing bracket ends, a comment included."""

    def child(self, part: str | Item) -> _Child | None:
        """The member or element that a path names.

        Raises:
            ClientError: it lies in something that cannot have it, or is there twice.
        """
        wanted = dict if isinstance(part, str) else list
        if not isinstance(self.data, wanted):
            what = "an object" if wanted is dict else "a list"
            where = part if isinstance(part, str) else f"what has {part.key} {part.value!r}"
            raise ClientError(f"{where!r} should lie in {what}, which is none")
        found = [child for child in self.children if child.is_at(part)]
        if len(found) > 1:
            raise ClientError(f"{part if isinstance(part, str) else part.value!r} is there twice")
        return found[0] if found else None


@dataclass(slots=True)
class _Child:
    before: int
    """Where the last thing before it ends: a bracket, a comma or a comment."""
    start: int
    key: str | None
    value: _Value
    comma: int | None = None
    """Where the comma after it is."""

    def is_at(self, part: str | Item) -> bool:
        if isinstance(part, str):
            return self.key == part
        data = self.value.data
        return isinstance(data, dict) and data.get(part.key) == part.value

    @property
    def end(self) -> int:
        return self.value.end


class _Reader:
    def __init__(self, text: str, *, comments: bool) -> None:
        self._text = text
        self._comments = comments
        self._at = 0
        self._last = 0
        """Where the last token or comment ends."""

    def whole(self) -> _Value:
        self._skip()
        root = self._value(0)
        self._skip()
        if self._at < len(self._text):
            raise self._wrong("there is more than one value")
        return root

    def _value(self, depth: int) -> _Value:
        if depth > DEPTH:
            raise self._wrong("nested too deeply")
        start, first = self._at, self._text[self._at : self._at + 1]
        if first in ("{", "["):
            return self._container(depth)
        if first == '"':
            data: Any = self._string()
        elif plain := _PLAIN.match(self._text, start):
            self._take(len(plain[0]))
            data = json.loads(plain[0])
        else:
            raise self._wrong("a value is missing" if first else "it ends too early")
        return _Value(start, self._at, data)

    def _container(self, depth: int) -> _Value:
        mapping = self._text[self._at] == "{"
        close = "}" if mapping else "]"
        found = _Value(self._at, 0, {} if mapping else [])
        self._take(1)
        while True:
            before = self._skip()
            if self._here(close):
                if found.children and found.children[-1].comma is not None and not self._comments:
                    raise self._wrong("a comma before the closing bracket")
                break
            if found.children and found.children[-1].comma is None:
                raise self._wrong("a comma is missing")
            found.children.append(self._child(before, depth, mapping=mapping))
        found.tail = self._last
        self._take(1)
        found.end = self._at
        if mapping:
            found.data = {child.key: child.value.data for child in found.children}
        else:
            found.data = [child.value.data for child in found.children]
        return found

    def _child(self, before: int, depth: int, *, mapping: bool) -> _Child:
        start, key = self._at, None
        if mapping:
            if not self._here('"'):
                raise self._wrong("a key in double quotes is missing")
            key = self._string()
            self._skip()
            if not self._here(":"):
                raise self._wrong("a colon is missing")
            self._take(1)
            self._skip()
        child = _Child(before, start, key, self._value(depth + 1))
        self._skip()
        if self._here(","):
            child.comma = self._at
            self._take(1)
        return child

    def _string(self) -> str:
        try:
            data, self._at = _DECODER.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            self._at = error.pos
            raise self._wrong(error.msg[:1].lower() + error.msg[1:]) from None
        self._last = self._at
        assert isinstance(data, str)
        return data

    def _skip(self) -> int:
        """Pass over blanks and comments; returns where the last thing that is not blank ends."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            assert blank is not None
            self._at = blank.end()
            comment = _COMMENT.match(self._text, self._at)
            if comment is None:
                return self._last
            if not self._comments:
                raise self._wrong("a comment, which this client does not read")
            self._at = self._last = comment.end()

    def _here(self, character: str) -> bool:
        return self._text.startswith(character, self._at)

    def _take(self, characters: int) -> None:
        self._at = self._last = self._at + characters

    def _wrong(self, why: str) -> ClientError:
        before = self._text[: self._at]
        line, column = before.count("\n") + 1, self._at - (before.rfind("\n") + 1) + 1
        return ClientError(f"line {line}, column {column}: {why}")


class Json:
    """JSON as a client reads it."""

    def __init__(self, *, comments: bool) -> None:
        self._comments = comments

    def read(self, text: str) -> dict[str, Any]:
        """As `Format`."""
        if not text.strip():
            return {}
        data = self._whole(text).data
        if not isinstance(data, dict):
            raise ClientError("it is no JSON object")
        return data

    def put(self, text: str, path: Place, value: Entry) -> str:
        """As `Format`."""
        if not text.strip():
            return _written(_nested(path, value), unit="  ", newline="\n") + "\n"
        place = self._whole(text)
        for depth, part in enumerate(path):
            child = place.child(part)
            if child is None:
                return _inserted(text, place, part, _nested(path[depth + 1 :], value))
            place = child.value
        return self._changed(text, path, place, value)

    def take(self, text: str, path: Place) -> str:
        """As `Format`."""
        if not text.strip():
            return text
        place = self._whole(text)
        for part in path[:-1]:
            child = place.child(part)
            if child is None:
                return text
            place = child.value
        child = place.child(path[-1])
        return text if child is None else _removed(text, place, place.children.index(child))

    def _whole(self, text: str) -> _Value:
        return _Reader(text, comments=self._comments).whole()

    def _changed(self, text: str, path: Place, place: _Value, value: Any) -> str:
        """With another value: member by member, so that what stays is not written anew."""
        if place.data == value:
            return text
        if not (isinstance(place.data, dict) and isinstance(value, dict)):
            written = _at_its_place(text, place, value)
            return text[: place.start] + written + text[place.end :]
        for key in place.data.keys() - value.keys():
            text = self.take(text, (*path, key))
        for key, wanted in value.items():
            text = self.put(text, (*path, key), wanted)
        return text


def _nested(path: Place, value: Any) -> Any:
    for part in reversed(path):
        value = {part: value} if isinstance(part, str) else [value]
    return value


def _inserted(text: str, place: _Value, part: str | Item, value: Any) -> str:
    key = f"{json.dumps(part, ensure_ascii=False)}: " if isinstance(part, str) else ""
    newline = _newline(text)
    close = _indent(text, place.start)
    children = place.children
    own_lines = newline in text[place.tail : place.end]
    if own_lines or (not children and (newline in text or not text[: place.start].strip())):
        indent = close + _unit(text)
        if children and _begins_line(text, children[-1].start):
            indent = _indent(text, children[-1].start)
        lead = newline + indent
        body = key + _written(value, unit=_unit(text), newline=lead)
        end = "" if own_lines else newline + close
    else:
        body = key + json.dumps(value, ensure_ascii=False)
        lead, end = (" " if children else ""), ""
    if not children:
        return _spliced(text, [(place.tail, place.tail, lead + body + end)])
    last = children[-1]
    if last.comma is not None:
        return _spliced(text, [(place.tail, place.tail, f"{lead}{body},{end}")])
    return _spliced(text, [(last.end, last.end, ","), (place.tail, place.tail, lead + body + end)])


def _removed(text: str, place: _Value, index: int) -> str:
    child = place.children[index]
    end = child.end if child.comma is None else child.comma + 1
    cuts = [(child.before, end, "")]
    if index == 0 and len(place.children) > 1 and "\n" not in text[child.before : child.start]:
        blank = _BLANK.match(text, end)
        assert blank is not None
        cuts = [(child.start, blank.end(), "")]
    elif index and child.comma is None:
        comma = place.children[index - 1].comma
        assert comma is not None
        cuts.insert(0, (comma, comma + 1, ""))
    if len(place.children) == 1 and not text[place.start + 1 : child.before].strip():
        rest = text[end : place.end - 1]
        if not rest.strip():
            cuts = [(place.start + 1, place.end - 1, "")]
    return _spliced(text, cuts)


def _spliced(text: str, cuts: Iterable[tuple[int, int, str]]) -> str:
    parts, at = [], 0
    for start, end, new in cuts:
        parts += [text[at:start], new]
        at = max(at, end)
    return "".join(parts) + text[at:]


def _at_its_place(text: str, place: _Value, value: Any) -> str:
    newline = _newline(text)
    if newline not in text[place.start : place.end]:
        return json.dumps(value, ensure_ascii=False)
    return _written(value, unit=_unit(text), newline=newline + _indent(text, place.start))


def _written(value: Any, *, unit: str, newline: str) -> str:
    """Over several lines, all but the first of which begin with what `newline` ends with."""
    return json.dumps(value, ensure_ascii=False, indent=unit).replace("\n", newline)


def _newline(text: str) -> str:
    first = text.find("\n")
    return "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"


def _unit(text: str) -> str:
    """What one level is set in by: as the first line that is."""
    found = re.search(r"^([ \t]+)[^\s*]", text, re.MULTILINE)
    return found[1] if found else "  "


def _indent(text: str, at: int) -> str:
    """What the line begins with in which something lies."""
    line = text.rfind("\n", 0, at) + 1
    found = re.compile(r"[ \t]*").match(text, line, at)
    assert found is not None
    return found[0]


def _begins_line(text: str, at: int) -> bool:
    return not text[text.rfind("\n", 0, at) + 1 : at].strip()

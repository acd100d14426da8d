"""Text that strangers wrote, made harmless to show: `visible`, `quoted`, `one_line`.

What a GPU, a kernel log, a pod or an agent calls itself ends up before a person's terminal or in a
model's context. It must not move the cursor, reorder what stands beside it, hide anything or feign
a line; what it says is for the reader to judge.
"""

from __future__ import annotations

import json
import re

__all__ = ["is_name", "is_visible", "one_line", "quoted", "visible"]

_HIDDEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff]"
)
"""What Python takes for printable and nobody sees (Unicode's Default_Ignorable_Code_Point, and the
blank of Braille): fillers and the variation selectors, in which whole messages can be hidden."""


def is_visible(text: str) -> bool:
    """Whether all of it can be shown as it is."""
    return text.isprintable() and (text.isascii() or not _HIDDEN.search(text))


def visible(text: str) -> str:
    """The text with a question mark for each character that acts or hides: control characters (C0,
    C1, line breaks), what changes the direction of writing, what has no width, tags."""
    if is_visible(text):
        return text
    return "".join(letter if is_visible(letter) else "?" for letter in text)


def is_name(text: str) -> bool:
    """Whether it can be the name of something: one word, which can be shown."""
    return bool(text) and is_visible(text) and " " not in text


def quoted(text: str, max_chars: int) -> str:
    """The text in quotation marks, those inside it escaped: it shows where it begins and ends."""
    inner = json.dumps(visible(text), ensure_ascii=False)[1:-1]
    if len(inner) > max_chars:
        inner = inner[: max_chars - 1].rstrip("\\") + "\u2026"
    return f'"{inner}"'


def one_line(text: str, max_chars: int) -> str:
    """Text of several lines as one."""
    return " ".join("".join(c if is_visible(c) else " " for c in text).split())[:max_chars]

"""A page of the documentation as a reader has it: its headings, and what its links lead to."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

__all__ = ["anchors", "links", "prose"]

FENCE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n.*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its fenced blocks, in which a # begins a comment and brackets are code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What may follow the # of a link to it: headings as GitHub writes them, of which the second
    that is spelt alike has a number, and names that it sets itself."""
    text = prose(page)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    seen: Counter[str] = Counter()
    found = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in plain:
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def links(page: Path) -> list[str]:
    """What it links to, and the pictures that it shows."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    found = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    found += re.findall(r"^\[[^]]+\]:\s*(\S+)", text, re.MULTILINE)
    found += re.findall(r'(?:src|href|srcset)="([^"]+)"', text)
    return found

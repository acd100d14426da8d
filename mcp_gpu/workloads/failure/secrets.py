"""Strangers' words without what looks like a password or a token: `without_secrets`."""

from __future__ import annotations

import re
from typing import Final

from transports.text import one_line

__all__ = ["SCANNED_CHARS", "safe_line", "without_secrets"]

SCANNED_CHARS: Final = 4_096
"""Looked at of one text."""

_SECRETS: Final = re.compile(
    r"(?<![\w-])(?P<name>"
    r"(?=[\w-]*?(?:token|passw(?:or)?d|secret|api_?-?key|authorization|credential))[\w-]++)"
    r"(?P<is>(?:\\?[\"'])?\s*+(?:[=:]{1,2}+>?)\s*+)"
    r"(?:(?P<quote>\\?[\"'])(?:(?!(?P=quote))(?:\\{3}[\"']|\\.|.))*+(?P=quote)?"
    r"|(?:(?:bearer|basic|digest|negotiate|token)\s++)?[^\s\"',;]+)"
    r"|(?P<user>//)[^/@\s]++@"
    r"|\b(?:hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA|ey[JK][\w-]{8,1024}+\.)"
    r"[\w.-]{8,}",
    re.IGNORECASE | re.DOTALL,
)
"""Its time is proportional to the text, whatever that is: a name is looked at from its first letter
alone, and nothing that has been taken is given back."""


def safe_line(text: str, most: int) -> str:
    """The text on one line, cut, and without them."""
    return one_line(without_secrets(text[:SCANNED_CHARS]), most)


def without_secrets(text: str) -> str:
    """The text with asterisks for what looks like a password or a token."""

    def hidden(found: re.Match[str]) -> str:
        if found["name"]:
            quote = found["quote"] or ""
            return f"{found['name']}{found['is']}{quote}***{quote}"
        return "//***@" if found["user"] else "***"

    return _SECRETS.sub(hidden, text)

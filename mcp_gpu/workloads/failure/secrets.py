"""Strangers' words without what looks like a password or a token: `without_secrets`."""

from __future__ import annotations

import re
from typing import Final

from transports.text import one_line

__all__ = ["SCANNED_CHARS", "safe_line", "without_secrets"]

SCANNED_CHARS: Final = 4_096
"""Looked at of one text."""

_NAMED: Final = (
    r"(?<![\w-])(?=[\w-]*?(?:token|passw(?:or)?d|passphrase|pwd|secret|credential|authorization"
    r"|cookie|(?:api|access|account|private)[_-]?key))[\w-]++"
    r"(?:(?:\\?[\"'])?\s*+[=:]{1,2}+>?\s*+|\\?[\"']\s*+,\s*+(?=\\?[\"']))"
)
"""`password: `, `"token": `, `'secret', `."""

_ASSIGNED: Final = r"(?<![\w-])(?=[\w-]*?(?:pass|sig|signature|session|auth)=)[\w-]++="
"""Words that only an equals sign makes a name: there is a backward pass, and a CUDA session."""

_BEFORE_A_BLANK: Final = (
    r"(?<![\w-])(?:--?(?=[\w-]*?(?:token|passw(?:or)?d|passphrase|pwd|secret|credentials?|key)"
    r"(?![\w-]))[\w-]++"
    r"|(?-i:(?=[A-Z0-9_]*?(?:TOKEN|PASSWORD|PASSWD|PWD|SECRET|CREDENTIALS|_KEY)(?![\w-]))"
    r"[A-Z0-9_]++))\s++"
    r"(?!-|(?:and|are|argument|cannot|environment|expects?|for|from|has|in|invalid|is|missing|must"
    r"|needs?|not|or|required|requires|to|variable|was)(?![\w-]))"
)
"""`--password `, `AWS_SECRET_ACCESS_KEY `, unless a sentence about it goes on."""

_SECRETS: Final = re.compile(
    rf"(?P<head>{_NAMED}|{_ASSIGNED}|{_BEFORE_A_BLANK})"
    r"(?:(?P<quote>\\?[\"'])(?:(?!(?P=quote))(?:\\{3}[\"']|\\.|.))*+(?P=quote)?"
    r"|-----begin [\w ]{0,40}private key.*+"
    r"|(?:(?:bearer|basic|digest|negotiate|token)\s++)?[^\s\"',;]+)"
    r"|(?P<pem>-----begin [\w ]{0,40}private key-----).*+"
    r"|(?P<short>\b(?:mysql|mysqldump|mysqladmin|mariadb|sshpass)\s(?:[^\n]{0,200}?\s)?-p\s{0,4})\S+"
    r"|(?P<scheme>\b(?:bearer|basic)\s++)(?=[a-z.~+/_-]*+[\d=])[\w.~+/=-]{8,}"
    r"|(?P<user>//)(?:[^/@\s]++|[^/@\s:]++:[^@\s]{1,256}+)@"
    r"|\b(?:hf_|sk-|gh[oprsu]_|github_pat_|glpat-|nvapi-|AIza|xox[abeprs]-|AKIA|ASIA"
    r"|ey[JK][\w-]{8,1024}+\.)[\w.-]{8,}",
    re.IGNORECASE | re.DOTALL,
)
"""Its time is proportional to the text, whatever that is: a name is looked at from its first letter
alone, what has been taken is not given back, and all else has a bound."""


def safe_line(text: str, most: int) -> str:
    """The text on one line, cut, and without them."""
    return one_line(without_secrets(text[:SCANNED_CHARS]), most)


def without_secrets(text: str) -> str:
    """The text with asterisks for what looks like a password or a token. What is without them
    stays as it is."""

    def hidden(found: re.Match[str]) -> str:
        if found["user"]:
            return "//***@"
        quote = found["quote"] or ""
        kept = found["head"] or found["pem"] or found["short"] or found["scheme"] or ""
        return f"{kept}{quote}***{quote}"

    return _SECRETS.sub(hidden, text)

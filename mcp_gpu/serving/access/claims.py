"""What a JSON Web Token says of itself, before anybody has checked it.

Only ever a reason to refuse, never one to believe: it spares the network tokens that cannot be
good, and says whose keys to look among.
"""

from __future__ import annotations

import time
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import from_json

__all__ = ["LEEWAY_SECONDS", "expiry", "plausible", "strings"]

LEEWAY_SECONDS = 30.0
"""How far the issuer's clock may be off."""


def plausible(token: str, audiences: Iterable[str]) -> Mapping[str, Any] | None:
    """The claims of a JWT that is meant for one of these audiences and not over; else None."""
    header, _, rest = token.partition(".")
    payload, _, signature = rest.partition(".")
    if not (header and payload and signature) or "." in signature:
        return None
    try:
        claims = from_json(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError:
        return None
    if not isinstance(claims, dict) or expiry(claims) + LEEWAY_SECONDS <= time.time():
        return None
    return claims if strings(claims.get("aud")) & set(audiences) else None


def expiry(claims: Mapping[str, Any]) -> float:
    """When it ends, in Unix seconds; 0 where it does not say so."""
    found = claims.get("exp")
    try:
        return float(found) if isinstance(found, int | float) else 0.0
    except OverflowError:
        return 0.0


def strings(claim: object) -> set[str]:
    """A claim that is one string or a list of some."""
    if isinstance(claim, str):
        return {claim}
    if not isinstance(claim, list):
        return set()
    return {each for each in claim if isinstance(each, str)}

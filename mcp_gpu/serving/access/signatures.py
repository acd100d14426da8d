"""Public keys as an issuer publishes them (JWKS), and what they have signed.

The only module that knows PyJWT, whose exceptions quote what they were given: none leaves here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import jwt

from mcp_gpu.serving.access.claims import LEEWAY_SECONDS

__all__ = ["Key", "key_id", "read_keys", "signed"]

logger = logging.getLogger(__name__)

ALGORITHMS = {
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
}
"""Those with a private and a public key. With a shared one, who can check can also sign."""

MOST_KEYS = 100
"""Of a set no more than these are looked at."""

Key = jwt.PyJWK
"""A public key, bound to its own algorithm."""


def read_keys(document: object) -> Mapping[str, Key]:
    """The keys of a set that can check signatures, by id; '' is that of a key without one.

    Raises:
        ValueError: there is none.
    """
    entries = document.get("keys") if isinstance(document, dict) else None
    keys: dict[str, Key] = {}
    for entry in entries[:MOST_KEYS] if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        try:
            key = Key(entry)
        except Exception as error:  # boundary, as below: one odd key must not hide the others
            logger.info("passed over a public key: %s", type(error).__name__)
            continue
        identifier = key.key_id or ""
        if key.algorithm_name in ALGORITHMS and isinstance(identifier, str):
            keys[identifier] = key
    if not keys:
        raise ValueError("no key that can check signatures")
    return keys


def key_id(token: str) -> str | None:
    """Which key a token says it was signed with, '' where it does not; None for no JWT."""
    try:
        found = jwt.get_unverified_header(token).get("kid", "")
    except Exception:  # boundary: a stranger's token makes parsers raise what they like
        return None
    return found if isinstance(found, str) else None


def signed(
    token: str, key: Key, *, issuer: str, audiences: Iterable[str]
) -> Mapping[str, Any] | None:
    """The claims of a token that this key has signed, and that counts here and now; else None."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,  # and with it the algorithm, whatever the token says
            issuer=issuer,
            audience=list(audiences),
            leeway=LEEWAY_SECONDS,
            options={
                "require": ["exp", "iss", "aud", "sub"],
                "enforce_minimum_key_length": True,
            },
        )
    except Exception as error:  # boundary, as above
        logger.debug("refused a signed token: %s", type(error).__name__)
        return None
    return claims

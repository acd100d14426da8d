"""An issuer's public keys, kept and renewed, and the tokens that they prove."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import anyio

from mcp_gpu.serving.access.claims import plausible
from mcp_gpu.serving.access.model import Unverifiable
from mcp_gpu.serving.access.signatures import Key, key_id, read_keys, signed

__all__ = ["IssuerKeys", "Published"]

logger = logging.getLogger(__name__)

FRESH_SECONDS = 600.0
"""Age at which keys are read anew: one that the issuer has withdrawn counts no longer than this,
while the issuer answers."""

USABLE_SECONDS = 86_400.0
"""Age up to which they are used while it does not."""

PAUSE_SECONDS = 5.0
"""Shortest time between two attempts: tokens that name unknown keys must not become a flood."""

FETCH_SECONDS = 8.0
"""Longest time for one, which may be several requests."""


@dataclass(frozen=True, slots=True)
class Published:
    """What an issuer says of itself."""

    issuer: str
    key_set: Any
    """The JWKS document."""


class IssuerKeys:
    """The keys of one issuer, read when first needed.

    Args:
        fetch: reads them. Raises `Unverifiable`.
    """

    def __init__(
        self, fetch: Callable[[], Awaitable[Published]], audiences: tuple[str, ...]
    ) -> None:
        self._fetch = fetch
        self._audiences = audiences
        self._issuer = ""
        self._keys: Mapping[str, Key] = {}
        self._read_at = 0.0
        self._readings = 0
        self._next_at = 0.0
        self._failure: str | None = None
        self._reading = anyio.Lock()

    async def claims(self, token: str, issuer: str = "") -> Mapping[str, Any] | None:
        """The claims of a token that the issuer has signed for one of the audiences.

        Args:
            issuer: what the token has to say of its issuer before keys are read for it.

        Raises:
            Unverifiable: the key that it names cannot be had now.
        """
        said = plausible(token, self._audiences)
        if said is None or (issuer and said.get("iss") != issuer):
            return None
        identifier = key_id(token)
        if identifier is None:
            return None
        readings = self._readings
        await self._renew(identifier)
        if monotonic() - self._read_at >= USABLE_SECONDS:
            self._keys = {}
        key = self._key(identifier)
        if key is not None:
            return signed(token, key, issuer=self._issuer, audiences=self._audiences)
        if self._failure is not None:
            raise Unverifiable(self._failure)
        if self._readings == readings:
            # Anybody can have the keys read by naming an unknown one; that must not be why a good
            # token, whose key was published since, is said to be bad.
            raise Unverifiable("its key was not published when the keys were last read, just now")
        return None

    def _key(self, identifier: str) -> Key | None:
        if not identifier and len(self._keys) == 1:
            (key,) = self._keys.values()  # the token names none, and there is but one
            return key
        return self._keys.get(identifier)

    async def _renew(self, identifier: str) -> None:
        """Read the keys if this one is not among them or they are old, and it is time to."""
        if not self._due(identifier):
            return
        if self._key(identifier) is not None and self._reading.locked():
            return  # somebody is at it, and nobody has to wait
        async with self._reading:
            if self._due(identifier):
                await self._read()

    def _due(self, identifier: str) -> bool:
        now = monotonic()
        old = now - self._read_at >= FRESH_SECONDS
        return now >= self._next_at and (old or self._key(identifier) is None)

    async def _read(self) -> None:
        failure: str | None = None
        self._readings += 1
        try:
            with anyio.fail_after(FETCH_SECONDS):
                published = await self._fetch()
            self._keys = read_keys(published.key_set)
            self._issuer, self._read_at = published.issuer, monotonic()
        except Unverifiable as error:
            failure = str(error)
        except TimeoutError:
            failure = f"not read within {FETCH_SECONDS:g} s"
        except ValueError as error:
            failure = f"the issuer's key set has {error}"
        if failure is not None and failure != self._failure:
            logger.warning("public keys of tokens: %s", failure)
        self._failure = failure
        self._next_at = monotonic() + PAUSE_SECONDS

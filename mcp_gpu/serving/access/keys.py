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

FRESH_SECONDS = 300.0
"""Age at which a caller has keys read anew, and is answered by the old ones meanwhile."""

STALE_SECONDS = 600.0
"""Age at which he waits for that: one that the issuer has withdrawn counts no longer than this,
while the issuer answers."""

USABLE_SECONDS = 86_400.0
"""Age up to which they are used while it does not."""

PAUSE_SECONDS = 5.0
"""Shortest time between two readings: tokens that name unknown keys must not become a flood."""

FETCH_SECONDS = 8.0
"""Longest time for one, which may be several requests."""

WAIT_SECONDS = 8.0
"""Longest time that a caller waits for one: the rest of the pause, and what it then takes."""

WAITING = 64
"""Most callers who wait out a pause. It takes no good token to be one, only to name a key."""


@dataclass(frozen=True, slots=True)
class Published:
    """What an issuer says of itself."""

    issuer: str
    key_set: Any
    """The JWKS document."""


class IssuerKeys:
    """The keys of one issuer, read when first needed, by `keep`.

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
        self._next_at = 0.0
        self._failure: str | None = None
        """Why the last reading gave none."""
        self._begun = self._ended = 0
        """Readings so far."""
        self._wanted = anyio.Event()
        self._end = anyio.Event()
        self._waiting = 0

    async def keep(self) -> None:
        """Read the keys when callers want it, for as long as there may be any."""
        while True:
            await self._wanted.wait()
            await anyio.sleep(self._pause())
            self._wanted = anyio.Event()
            self._begun += 1
            await self._read()
            self._ended = self._begun
            self._end.set()
            self._end = anyio.Event()

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
        if self._age() >= USABLE_SECONDS:
            self._keys = {}
        if self._lacks(identifier):
            await self._wait_for(identifier)
        elif self._age() >= FRESH_SECONDS and not self._pause():
            self._want()
        key = self._key(identifier)
        if key is not None:
            return signed(token, key, issuer=self._issuer, audiences=self._audiences)
        if self._failure is not None:
            raise Unverifiable(self._failure)
        return None

    def _key(self, identifier: str) -> Key | None:
        if not identifier and len(self._keys) == 1:
            (key,) = self._keys.values()  # the token names none, and there is but one
            return key
        return self._keys.get(identifier)

    def _age(self) -> float:
        return monotonic() - self._read_at

    def _pause(self) -> float:
        return max(0.0, self._next_at - monotonic())

    def _lacks(self, identifier: str) -> bool:
        """Whether this key is not known, or known from too long ago to count without a try."""
        old = self._failure is None and self._age() >= STALE_SECONDS
        return old or self._key(identifier) is None

    def _want(self) -> None:
        if self._ended == self._begun:  # else one is under way
            self._wanted.set()

    async def _wait_for(self, identifier: str) -> None:
        """Wait for this key, until a reading has ended that began after now: one that began before
        may have missed it."""
        if self._pause() and self._failure is None and self._waiting >= WAITING:
            raise Unverifiable("too many tokens name keys that are not known")
        before = self._begun
        self._waiting += 1
        try:
            with anyio.move_on_after(WAIT_SECONDS) as patience:
                while self._lacks(identifier) and self._ended <= before:
                    if self._failure is not None and self._pause():
                        return
                    self._want()
                    await self._end.wait()
        finally:
            self._waiting -= 1
        if patience.cancelled_caught and self._key(identifier) is None:
            raise Unverifiable(f"no key of this name within {WAIT_SECONDS:g} s")

    async def _read(self) -> None:
        failure: str | None = None
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
        except Exception as error:  # boundary: nobody else would read them again
            failure = f"reading failed with {type(error).__name__}"
        if failure is not None and failure != self._failure:
            logger.warning("public keys of tokens: %s", failure)
        self._failure = failure
        self._next_at = monotonic() + PAUSE_SECONDS

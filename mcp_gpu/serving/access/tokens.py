"""Static bearer tokens, in a file that may change meanwhile."""

from __future__ import annotations

import hmac
import logging
from functools import partial
from pathlib import Path
from time import monotonic

import anyio

from mcp_gpu.serving.access.model import Caller, Unverifiable
from mcp_gpu.serving.access.reading import Reader

__all__ = ["StaticTokens", "read_tokens"]

logger = logging.getLogger(__name__)

TOKENS_SECONDS = 1.0
"""How old what was read from the token file may be: rotated tokens count within this."""

HOLDER = Caller(kind="static", name="static")


class StaticTokens:
    """The tokens of a file. Without a readable one nobody is let in."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._reader = Reader(f"token file {file}")
        self._tokens: tuple[bytes, ...] | Unverifiable | None = None
        self._read_at = 0.0
        self._reading = anyio.Lock()
        self._failure: str | None = None

    async def verify(self, token: str) -> Caller | None:
        """See `Verifier`."""
        shown = token.encode()
        # Every one is compared, so that time tells nothing.
        matches = sum(hmac.compare_digest(shown, known) for known in await self._current())
        return HOLDER if matches else None

    async def _current(self) -> tuple[bytes, ...]:
        async with self._reading:
            if self._tokens is None or monotonic() - self._read_at >= TOKENS_SECONDS:
                self._tokens = await self._read()
                self._read_at = monotonic()
            if isinstance(self._tokens, Unverifiable):
                raise Unverifiable(str(self._tokens))
            return self._tokens

    async def _read(self) -> tuple[bytes, ...] | Unverifiable:
        """What is in the file now; nothing where it cannot be read."""
        tokens: tuple[bytes, ...] | Unverifiable
        failure: str | None = None
        try:
            tokens = await self._reader.read(partial(read_tokens, self._file))
        except Unverifiable as error:
            tokens, failure = error, str(error)
        except (OSError, ValueError) as error:
            # Closed, not open: what was valid once may have been withdrawn since.
            tokens, failure = (), f"token file: {error}"
        if failure is not None and failure != self._failure:
            logger.error("nobody is let in by a static token: %s", failure)
        self._failure = failure
        return tokens


def read_tokens(file: Path) -> tuple[bytes, ...]:
    """The tokens of a file, one per line; blank lines do not count.

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no token in it, or a line is not one. The text shows no token.
    """
    tokens = tuple(line.strip() for line in file.read_bytes().splitlines() if line.strip())
    if not tokens:
        raise ValueError(f"{file} holds no token")
    if any(b" " in token or not token.isascii() for token in tokens):
        raise ValueError(f"{file}: a token may not hold blanks or other than ASCII characters")
    return tokens

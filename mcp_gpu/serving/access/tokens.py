"""Static bearer tokens, in a file that may change meanwhile."""

from __future__ import annotations

import hmac
import logging
from pathlib import Path
from time import monotonic

import anyio
import anyio.to_thread

from mcp_gpu.serving.access.model import Caller

__all__ = ["StaticTokens", "read_tokens"]

logger = logging.getLogger(__name__)

TOKENS_SECONDS = 1.0
"""How old what was read from the token file may be: rotated tokens count within this."""

HOLDER = Caller(kind="static", name="static")


class StaticTokens:
    """The tokens of a file. Without a readable one nobody is let in."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._tokens: tuple[bytes, ...] | None = None
        self._read_at = 0.0
        self._reading = anyio.Lock()

    async def verify(self, token: str) -> Caller | None:
        """See `Verifier`."""
        shown = token.encode()
        # Every one is compared, so that time tells nothing.
        matches = sum(hmac.compare_digest(shown, known) for known in await self._current())
        return HOLDER if matches else None

    async def _current(self) -> tuple[bytes, ...]:
        async with self._reading:
            now = monotonic()
            if self._tokens is None or now - self._read_at >= TOKENS_SECONDS:
                try:
                    self._tokens = await anyio.to_thread.run_sync(read_tokens, self._file)
                except (OSError, ValueError) as error:
                    # Closed, not open: what was valid once may have been withdrawn since.
                    self._tokens = ()
                    logger.error("nobody is let in by a static token: token file: %s", error)
                self._read_at = now
            return self._tokens


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

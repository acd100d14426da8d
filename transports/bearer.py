"""A bearer token, given or in a file that is rotated."""

from __future__ import annotations

import anyio

from transports.files import Version, version

__all__ = ["BearerToken"]


class BearerToken:
    """A token for the Authorization header.

    Raises:
        ValueError: the given one is none. The message does not show it.
    """

    def __init__(self, token: str, file: str) -> None:
        self._file = anyio.Path(file) if file else None
        self._read_at: Version | None = None
        self._token = _header_value(token)

    async def read(self) -> str:
        """The token, empty if there is none.

        Raises:
            OSError: the file cannot be read.
            ValueError: what it holds is not a token. The message does not show it.
        """
        if self._file is not None:
            now = version(await self._file.stat())
            if now != self._read_at:
                text = await self._file.read_text(encoding="utf-8")
                # While tokens are exchanged a file of those that are taken holds the new one first.
                self._token = _header_value(text.strip().partition("\n")[0])
                self._read_at = now
        return self._token


def _header_value(token: str) -> str:
    value = token.strip()
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("the token holds characters that no token has")
    return value

"""A client's file: read whole, replaced whole, with what was there kept beside it."""

from __future__ import annotations

import codecs
import os
import secrets
import shutil
from pathlib import Path
from typing import Final, Self

from mcp_gpu.clients.model import ClientError
from mcp_gpu.sockets import UNIX

__all__ = ["ClientFile"]

LONGEST_BYTES: Final = 64 * 1024 * 1024
"""Claude Code keeps what it remembers in the same file, which comes to some MiB."""

BACKUP: Final = ".mcp-gpu-backup"


class ClientFile:
    """One file as it was when it was read."""

    def __init__(self, path: Path, content: bytes | None) -> None:
        self.path = path
        """The file itself, where a link leads to it."""
        self._content = content

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read it, if it is there.

        Raises:
            ClientError: it cannot be read.
        """
        try:
            real = path.expanduser().resolve()
        except (OSError, RuntimeError) as error:
            raise ClientError(f"{path} cannot be read: {_reason(error)}") from None
        return cls(real, _read(real))

    @property
    def exists(self) -> bool:
        return self._content is not None

    @property
    def text(self) -> str:
        """What is in it, without a byte order mark; empty where there is no file.

        Raises:
            ClientError: it is not UTF-8.
        """
        try:
            return (self._content or b"").removeprefix(codecs.BOM_UTF8).decode()
        except UnicodeDecodeError as error:
            raise ClientError(f"{self.path} is not UTF-8: {error.reason}") from None

    @property
    def backup(self) -> Path:
        """Where the content before the last change is kept, if there was any."""
        return self.path.with_name(self.path.name + BACKUP)

    def kept(self) -> Self:
        """The file as it was before the last change.

        Raises:
            ClientError: the backup cannot be read.
        """
        return type(self)(self.path, _read(self.backup))

    def same(self, text: str) -> bool:
        """Whether it would stay as it is with this text in it."""
        return self.exists and text == self.text

    def replace(self, text: str) -> None:
        """Put this text into it at once or not at all, and keep what was there.

        A byte order mark, the mode and the owner stay.

        Raises:
            ClientError: it cannot be written, or has changed since it was read.
        """
        mark = codecs.BOM_UTF8 if (self._content or b"").startswith(codecs.BOM_UTF8) else b""
        self._check()
        try:
            if self._content is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.backup.unlink(missing_ok=True)
            else:
                _write(self.backup, self._content, like=self.path)
            _write(self.path, mark + text.encode(), like=self.path)
        except OSError as error:
            raise self._unwritable(error) from None

    def restore(self, former: Self) -> None:
        """Put back what was there before the last change, byte for byte.

        Raises:
            ClientError: it cannot be written, or has changed since it was read.
        """
        self._check()
        try:
            if former._content is None:
                self.path.unlink()
            else:
                _write(self.path, former._content, like=self.path)
                self.backup.unlink()
        except OSError as error:
            raise self._unwritable(error) from None

    def _check(self) -> None:
        """Raises where it is not to be written."""
        if _read(self.path) != self._content:
            raise ClientError(f"{self.path} has just been changed by another program; try again")
        # A rename would not ask for the right, and root has every right.
        if self.exists and not self.path.stat().st_mode & 0o222:
            raise ClientError(f"{self.path} is read-only; nothing was changed")

    def _unwritable(self, error: OSError) -> ClientError:
        return ClientError(f"{self.path} cannot be written: {_reason(error)}")


def _read(path: Path) -> bytes | None:
    try:
        if path.exists() and not path.is_file():
            raise ClientError(f"{path} is no file")
        with path.open("rb") as file:
            content = file.read(LONGEST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClientError(f"{path} cannot be read: {_reason(error)}") from None
    if len(content) > LONGEST_BYTES:
        raise ClientError(f"{path} is longer than {LONGEST_BYTES} bytes")
    return content


def _write(path: Path, content: bytes, *, like: Path) -> None:
    """Write a file anew beside its place, and move it there."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with new.open("xb") as file:
            if like.exists():
                _take_after(new, like)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _take_after(new: Path, like: Path) -> None:
    """Give a file the mode and the owner of another."""
    as_it_is = like.stat()
    new.chmod(as_it_is.st_mode & 0o7777)
    if UNIX:
        try:
            shutil.chown(new, as_it_is.st_uid, as_it_is.st_gid)
        except PermissionError:
            pass  # only root gives files away: this one is the user's own from now on


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)

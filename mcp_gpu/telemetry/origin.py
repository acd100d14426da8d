"""Who sends a request, and by which way in."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

__all__ = ["ORIGIN", "Origin"]


@dataclass(slots=True, kw_only=True)
class Origin:
    """The sender of one request over HTTP, or of all requests of one stream."""

    listener: Literal["http", "unix", "stdio"]
    peer: str = ""
    """Address and port over HTTP, which may be a proxy's; user and process at the Unix socket."""
    token: str = ""
    """Kind of the token that was checked: static, kubernetes, oauth. Empty: none was asked for, or
    none was good."""
    subject: str = ""
    """Whose it is, as whoever issued it says."""
    asked: str = ""
    """The tool or the method, as far as the request has been read."""


ORIGIN: ContextVar[Origin | None] = ContextVar("origin", default=None)
"""Of the request that is being answered."""

"""Where the HTTP server listens, on IPv4 and IPv6 alike."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from mcp_gpu.serving.access.model import AccessPolicy
from transports.hosts import is_loopback

__all__ = ["Ceilings", "HttpEndpoint", "ListenError", "TlsFiles", "bind"]

logger = logging.getLogger(__name__)

UNACKNOWLEDGED_MS = 60_000
"""How long a client may leave sent bytes unacknowledged or its window shut before the kernel drops
it: bounds what clients that stopped reading or vanished can hold (tcp(7), TCP_USER_TIMEOUT)."""

UNSENT_BYTES = 128 << 10
"""What the kernel takes for a client ahead of its reading. Linux allows as much again for itself,
and on its own would go up to megabytes for each client that asks much and reads little."""

BACKLOG = 1024
"""Connections that may wait to be accepted; the kernel caps it at somaxconn."""

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class ListenError(Exception):
    """A listener could not be opened. The text tells a person what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """A server's certificate chain and private key, PEM; read again when they change."""

    cert_file: Path
    key_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The bounds on requests, which `limits` keeps."""

    inflight: int = 32
    """Answered at once."""
    inflight_per_caller: int = 16
    waiting: int = 256
    wait_seconds: float = 10.0
    """How long a request waits for its turn."""
    qps: float = 0.0
    """Requests a second of one caller, in the long run; 0 for any."""
    burst: int = 100
    """How many of them may come at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpEndpoint:
    """The HTTP listener and whom it lets in."""

    hosts: tuple[str, ...] = ("127.0.0.1", "::1")
    """Addresses to listen on; IPv6 ones are skipped on a machine without IPv6. `::` alone
    serves IPv4 too."""
    port: int = 8080
    """0 takes a free one, the same on all hosts."""
    allowed_hosts: tuple[str, ...] = ()
    """DNS names that a Host header may carry: exact, `*.suffix`, or `*` for all."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages that may call, such as `https://console.example`."""
    access: AccessPolicy = field(default_factory=AccessPolicy)
    """What `/mcp` wants of its callers. The pages beside it are open to all."""
    tls: TlsFiles | None = None
    """None serves plain HTTP."""
    body_bytes: int = 1 << 20
    """Longest request body. Arguments are names and numbers."""
    ceilings: Ceilings = field(default_factory=Ceilings)

    @property
    def open_to_all(self) -> bool:
        """Whether other machines may call and need no token."""
        return not self.access.wants_token and self._beyond_loopback

    @property
    def in_the_clear(self) -> bool:
        """Whether callers on other machines show tokens over plain HTTP."""
        return self.access.wants_token and self.tls is None and self._beyond_loopback

    @property
    def _beyond_loopback(self) -> bool:
        return not all(map(is_loopback, self.hosts))


def bind(endpoint: HttpEndpoint) -> list[socket.socket]:
    """One listening socket per address.

    Raises:
        ListenError: a port is taken or an address is not this machine's.
    """
    with ExitStack() as stack:
        bound: list[socket.socket] = []
        port = endpoint.port
        skipped: OSError | None = None
        addresses = _addresses(endpoint.hosts, port)
        # Beside an IPv4 listener, an IPv6 one must keep to IPv6 or it takes the same port twice.
        v6_only = any(family == socket.AF_INET for family, _ in addresses)
        for address in addresses:
            try:
                opened = stack.enter_context(_open(address, port, v6_only=v6_only))
            except OSError as error:
                if address[0] == socket.AF_INET6 and error.errno in _NO_IPV6:
                    logger.info("no IPv6 here: not listening on %s", address[1])
                    skipped = error
                    continue
                raise ListenError(_explain(address[1], port, error)) from error
            bound.append(opened)
            port = opened.getsockname()[1]
        if not bound:
            raise ListenError(
                f"no address to listen on among {', '.join(endpoint.hosts)}: {skipped}"
            )
        stack.pop_all()
        return bound


def _addresses(hosts: Sequence[str], port: int) -> list[tuple[socket.AddressFamily, str]]:
    found: dict[tuple[socket.AddressFamily, str], None] = {}
    for host in hosts:
        try:
            entries = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise ListenError(f"cannot listen on {host}: {error.strerror}") from error
        for family, _, _, _, address in entries:
            found[family, str(address[0])] = None
    return list(found)


def _open(address: tuple[socket.AddressFamily, str], port: int, *, v6_only: bool) -> socket.socket:
    family, host = address
    # Named, because asyncio turns Nagle's delay off only where it sees the protocol: without it
    # every answer takes 44 ms.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would let two programs share the port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6_only))
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # accepted connections inherit all of it
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNSENT_BYTES)
        opened.bind((host, port))
        # At once: two sockets may share a bound port on Linux, and only the listener owns it.
        opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def _explain(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken by another process; choose another port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs privileges; choose one above 1023"
    return f"cannot listen on {host} port {port}: {error.strerror}"

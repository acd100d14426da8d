"""`host:port` as people write it."""

from __future__ import annotations

import ipaddress

from mcp_gpu.fleet.discovery.table import DiscoveryError
from transports.hosts import is_address

__all__ = ["DEFAULT_PORT", "split_host_port"]

DEFAULT_PORT = 8080


def split_host_port(text: str, place: str) -> tuple[str, int | None]:
    """Split `host`, `host:port`, `[v6]:port`, a bare IPv6 address, or an http URL of those.

    Args:
        place: where the text was found, for the error.

    Raises:
        DiscoveryError: it is none of those.
    """
    bare = text.removeprefix("http://").removesuffix("/").removesuffix("/mcp")
    if "/" in bare or not bare:
        raise DiscoveryError(f"{place}: {text!r} is not host[:port]")
    if is_address(bare.strip("[]")):
        return str(ipaddress.ip_address(bare.strip("[]"))), None
    host, separator, port = bare.rpartition(":")
    if not separator:
        return bare, None
    if not port.isdecimal() or not 0 < int(port) < 65536 or not host:
        raise DiscoveryError(f"{place}: {port!r} is not a port number")
    if ":" in host and not is_address(host.strip("[]")):
        raise DiscoveryError(f"{place}: {host!r} is neither a name nor an address")
    return host.strip("[]"), int(port)

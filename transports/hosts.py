"""What a host is called by: an IP address, or a name."""

from __future__ import annotations

import ipaddress

__all__ = ["is_address", "is_dns_name", "is_loopback"]


def is_address(host: str) -> bool:
    """Whether it is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether it is this machine and leads to no other."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_dns_name(host: str) -> bool:
    """Whether it may be a DNS name."""
    labels = host.split(".")
    fits = all(0 < len(each) < 64 and each.replace("-", "").isalnum() for each in labels)
    return fits and host.isascii() and not is_address(host)

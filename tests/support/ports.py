"""Free TCP ports of this machine."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path


def free_ports(count: int) -> list[int]:
    """Ports that are free now. All are held until all are known, so that none comes twice."""
    with ExitStack() as held:
        ports = []
        for _ in range(count):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
        return ports


def steady_ports(count: int) -> list[int]:
    """Free ports that the kernel gives to no outgoing connection, so that a server that is gone for
    a while gets its own back. Linux only.

    Raises:
        RuntimeError: there are not so many.
    """
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    candidates = [port for port in range(10_000, 65_536) if not first <= port <= last]
    random.shuffle(candidates)  # so that runs side by side seldom want the same
    ports: list[int] = []
    for port in candidates:
        if len(ports) == count:
            return ports
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
    raise RuntimeError(f"fewer than {count} free ports outside {first} to {last}")

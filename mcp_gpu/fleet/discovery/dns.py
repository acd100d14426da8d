"""Agents behind the DNS name of a headless Service."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from contextlib import suppress

import anyio
from anyio.abc import TaskStatus

from mcp_gpu.fleet.discovery.hostport import DEFAULT_PORT, split_host_port
from mcp_gpu.fleet.discovery.table import DiscoveryError, Table
from transports.base import Target

__all__ = ["DnsDiscovery"]

logger = logging.getLogger(__name__)


class DnsDiscovery:
    """The addresses of a headless Service's DNS name (A and AAAA).

    DNS knows addresses only: node and pod are learned from the probe. It also drops
    agents that are not ready, so an address that disappears is kept, marked not ready,
    for `retain_seconds`: its node has not ceased to exist.
    """

    def __init__(
        self,
        name: str,
        *,
        port: int = DEFAULT_PORT,
        refresh_seconds: float = 15.0,
        resolve_timeout_seconds: float = 5.0,
        retain_seconds: float = 600.0,
    ) -> None:
        host, given_port = split_host_port(name, f"DNS name {name!r}")
        self._host = host
        self._port = given_port or port
        self._refresh_seconds = refresh_seconds
        self._resolve_timeout_seconds = resolve_timeout_seconds
        self._retain_seconds = retain_seconds
        self._last_seen: dict[str, float] = {}
        self._as_of: float | None = None
        self._problem: str | None = "not asked yet"

    def table(self) -> Table:
        source = f"DNS {self._host}"
        if self._as_of is None:
            raise DiscoveryError(f"{source}: {self._problem}")
        targets = [
            Target(addresses=(address,), port=self._port, ready=seen == self._as_of)
            for address, seen in sorted(self._last_seen.items())
        ]
        return Table(tuple(targets), self._as_of, source, self._problem)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        await self.refresh()
        task_status.started()
        while True:
            await anyio.sleep(self._refresh_seconds)
            await self.refresh()

    async def refresh(self) -> None:
        """Ask DNS once. A failure keeps the table and says so in it."""
        try:
            with anyio.fail_after(self._resolve_timeout_seconds):
                addresses = await _resolve(self._host, self._port)
        except TimeoutError:
            self._problem = f"no answer from DNS in {self._resolve_timeout_seconds:g} s"
        except OSError as error:
            self._problem = f"cannot resolve: {error.strerror or error}"
        else:
            now = time.time()
            kept = {
                address: seen
                for address, seen in self._last_seen.items()
                if now - seen <= self._retain_seconds
            }
            self._last_seen = kept | dict.fromkeys(addresses, now)
            self._as_of, self._problem = now, None
            return
        logger.warning("discovery failed", extra={"source": self._host, "problem": self._problem})


async def _resolve(host: str, port: int) -> list[str]:
    """getaddrinfo on a daemon thread: the event loop's own executor is joined at exit, and a
    resolver that hangs for its 30 s would hold up SIGTERM."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[list[str]] = loop.create_future()

    def finish(addresses: list[str] | None, error: OSError | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(addresses or [])

    def ask() -> None:
        addresses: list[str] | None = None
        problem: OSError | None = None
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = _one_family({str(entry[4][0]) for entry in found})
        except OSError as error:
            problem = error
        except UnicodeError as error:
            problem = OSError(f"not a host name: {error}")
        # The loop may have closed while the resolver hung.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(finish, addresses, problem)

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    return await done


def _one_family(addresses: set[str]) -> list[str]:
    """The addresses of the family that has more of them, IPv4 if both have as many.

    In a dual-stack cluster every pod has one of each, and nothing in DNS says which belong
    together: asking both would count each node twice.
    """
    six = {address for address in addresses if ":" in address}
    four = addresses - six
    return sorted(six if len(six) > len(four) else four)

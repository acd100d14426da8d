"""Which agents exist: a static list, or the addresses behind a DNS name.

Discovery never says whether an agent can be reached. An agent that is known and
does not answer is still a known node, so that it shows as a failure instead of
vanishing from the answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anyio
from anyio.abc import TaskStatus

from transports.base import Target

__all__ = ["Discovery", "DiscoveryError", "DnsDiscovery", "StaticDiscovery", "Table"]

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8080


class DiscoveryError(Exception):
    """No agent table can be had: bad input, or nothing has been found out yet."""


@dataclass(frozen=True, slots=True)
class Table:
    """The agents known, and since when."""

    targets: tuple[Target, ...]
    as_of: float
    """Unix seconds at which the source last confirmed this table."""
    source: str
    """For people: `static list`, `DNS agents.gpu.svc`."""
    problem: str | None = None
    """Why the table could not be refreshed since `as_of`; None while it is current."""


class Discovery(Protocol):
    """A source of agents."""

    def table(self) -> Table:
        """The latest table, at once.

        Raises:
            DiscoveryError: nothing has been found out yet; the text says why.
        """

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep the table current until cancelled. Started once the first look has ended."""


class StaticDiscovery:
    """A fixed list of agents, from the command line or a file."""

    def __init__(self, targets: Sequence[Target], source: str = "static list") -> None:
        if not targets:
            raise DiscoveryError(f"{source}: no agents in it")
        keys = Counter(target.key for target in targets)
        doubled = [str(target) for target in targets if keys[target.key] > 1]
        if doubled:
            raise DiscoveryError(f"{source}: agent named twice: {doubled[0]}")
        self._targets = tuple(targets)
        self._source = source

    @classmethod
    def from_text(cls, text: str) -> StaticDiscovery:
        """Read `[node=]host[:port]` entries separated by commas or blanks.

        Raises:
            DiscoveryError: an entry is not of that form; the text names it.
        """
        entries = text.replace(",", " ").split()
        return cls([_parse_entry(entry) for entry in entries], "agent list")

    @classmethod
    def from_file(cls, path: Path) -> StaticDiscovery:
        """Read a TOML file of `[[agents]]` tables (docs/configuration.md shows one).

        Raises:
            DiscoveryError: the file cannot be read or an entry is wrong; the text says which.
        """
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DiscoveryError(f"agents file {path}: {error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DiscoveryError(f"agents file {path}: not valid TOML: {error}") from error
        unknown = sorted(set(document) - {"agents"})
        entries = document.get("agents")
        if unknown or not isinstance(entries, list):
            what = f"unknown key {unknown[0]!r}" if unknown else "no [[agents]] tables"
            raise DiscoveryError(f"agents file {path}: {what}")
        targets = [_parse_table(path, i, entry) for i, entry in enumerate(entries, 1)]
        return cls(targets, f"agents file {path}")

    def table(self) -> Table:
        return Table(self._targets, time.time(), self._source)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Nothing to do: the list does not change."""
        task_status.started()


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
        host, given_port = _split_host_port(name, f"DNS name {name!r}")
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


def _parse_entry(entry: str) -> Target:
    node, separator, address = entry.rpartition("=")
    if separator and not node:
        raise DiscoveryError(f"agent {entry!r}: empty node name before '='")
    host, port = _split_host_port(address, f"agent {entry!r}")
    return Target(node=node, addresses=(host,), port=port or DEFAULT_PORT)


_TABLE_FIELDS = {"node", "namespace", "pod", "uid", "container", "cluster"}


def _parse_table(path: Path, number: int, entry: object) -> Target:
    place = f"agents file {path}: agent {number}"
    if not isinstance(entry, Mapping):
        raise DiscoveryError(f"{place}: not a table")
    names: dict[str, str] = {}
    addresses: list[str] = []
    port = DEFAULT_PORT
    options: dict[str, Mapping[str, Any]] = {}
    for key, value in entry.items():
        if key in _TABLE_FIELDS:
            if not isinstance(value, str):
                raise DiscoveryError(f"{place}: {key} is not a string")
            names[key] = value
        elif key in ("address", "addresses"):
            listed = [value] if isinstance(value, str) else value
            if not isinstance(listed, list) or not all(isinstance(v, str) for v in listed):
                raise DiscoveryError(f"{place}: {key} is neither a string nor a list of strings")
            for text in listed:
                host, given_port = _split_host_port(text, place)
                addresses.append(host)
                port = given_port or port
        elif isinstance(value, Mapping):
            # Any other table is the options of the transport it is named after.
            options[key] = value
        else:
            known = ", ".join(sorted(_TABLE_FIELDS | {"address", "addresses"}))
            raise DiscoveryError(
                f"{place}: unknown key {key!r} (known: {known}, or a table of transport options)"
            )
    if not addresses and not options:
        raise DiscoveryError(f"{place}: neither an address nor the options of a transport")
    return Target(
        node=names.get("node", ""),
        cluster=names.get("cluster", ""),
        namespace=names.get("namespace", ""),
        pod=names.get("pod", ""),
        uid=names.get("uid", ""),
        container=names.get("container", ""),
        addresses=tuple(addresses),
        port=port,
        options=options,
    )


def _split_host_port(text: str, place: str) -> tuple[str, int | None]:
    """Split `host`, `host:port`, `[v6]:port`, a bare IPv6 address, or an http URL of those."""
    bare = text.removeprefix("http://").removesuffix("/").removesuffix("/mcp")
    if "/" in bare or not bare:
        raise DiscoveryError(f"{place}: {text!r} is not host[:port]")
    if _is_ip(bare.strip("[]")):
        return str(ipaddress.ip_address(bare.strip("[]"))), None
    host, separator, port = bare.rpartition(":")
    if not separator:
        return bare, None
    if not port.isdecimal() or not 0 < int(port) < 65536 or not host:
        raise DiscoveryError(f"{place}: {port!r} is not a port number")
    if ":" in host and not _is_ip(host.strip("[]")):
        raise DiscoveryError(f"{place}: {host!r} is neither a name nor an address")
    return host.strip("[]"), int(port)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True

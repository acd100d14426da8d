"""Agents named one by one: on the command line, or in a file."""

from __future__ import annotations

import time
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskStatus

from mcp_gpu.fleet.discovery.hostport import DEFAULT_PORT, split_host_port
from mcp_gpu.fleet.discovery.table import DiscoveryError, Table
from transports.base import Target
from transports.text import is_name, quoted

__all__ = ["StaticDiscovery"]


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


def _parse_entry(entry: str) -> Target:
    node, separator, address = entry.rpartition("=")
    if separator and not node:
        raise DiscoveryError(f"agent {entry!r}: empty node name before '='")
    if node and not is_name(node):
        raise DiscoveryError(f"agent {entry!r}: the node's name cannot be shown")
    host, port = split_host_port(address, f"agent {entry!r}")
    return Target(node=node, addresses=(host,), port=port or DEFAULT_PORT)


NAME_CHARS = 80
"""How much is repeated of a name that is none."""

_SAME_FOR_ALL = ("http", "portforward", "exec")
"""Transports of ours that take no options for a single agent."""

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
            if value and not is_name(value):
                said = quoted(value, NAME_CHARS)
                raise DiscoveryError(f"{place}: {key} {said} is not one word that can be shown")
            names[key] = value
        elif key in ("address", "addresses"):
            listed = [value] if isinstance(value, str) else value
            if not isinstance(listed, list) or not all(isinstance(v, str) for v in listed):
                raise DiscoveryError(f"{place}: {key} is neither a string nor a list of strings")
            for text in listed:
                host, given_port = split_host_port(text, place)
                addresses.append(host)
                port = given_port or port
        elif key in _SAME_FOR_ALL:
            raise DiscoveryError(
                f"{place}: {key} takes no options for one agent; --transport-options is for all"
            )
        elif isinstance(value, Mapping):
            # Any other table is the options of the transport it is named after.
            options[key] = value
        else:
            known = ", ".join(sorted(_TABLE_FIELDS | {"address", "addresses"}))
            raise DiscoveryError(
                f"{place}: unknown key {key!r} (known: {known}, or a table of transport options)"
            )
    is_pod = "namespace" in names and "pod" in names
    if not (addresses or options or is_pod):
        raise DiscoveryError(
            f"{place}: neither an address, nor a namespace and pod, nor the options of a transport"
        )
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

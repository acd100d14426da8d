"""Snapshots of simulated nodes without a collector: for tests, goldens and benchmarks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from uuid import UUID

from mcp_gpu.gpu.errors import NvmlUnavailable
from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.reader import Reader
from mcp_gpu.gpu.simulator.binding import installed
from mcp_gpu.gpu.simulator.node import Node


def snapshot(node: Node, *, clock: Callable[[], float] = time.time) -> Snapshot:
    """One complete reading of a node through the real binding, on the calling thread.

    Without a bound: a fault that blocks its calls blocks this one.
    Whatever node was installed before is not any more afterwards.
    """
    with installed(node):
        reader = Reader(Nvml(), clock=clock)
        try:
            reader.open()
            reader.read_slow()
            reader.read_fast()
            complete = reader.read_rest()
            reader.close()
        except NvmlUnavailable as error:
            return reader.failed(error)
        return complete


def snapshots(nodes: Iterable[Node], count: int) -> Iterator[tuple[str, Snapshot]]:
    """`count` named snapshots, for a fleet of thousands in a second.

    Each of `nodes` is read once through the binding; further ones are its copies, with a name,
    UUIDs and serial numbers of their own.
    """
    templates = [(node.name, snapshot(node)) for node in nodes]
    for number in range(count):
        name, template = templates[number % len(templates)]
        yield (name, template) if number < len(templates) else _copy(name, template, number)


def _copy(name: str, template: Snapshot, number: int) -> tuple[str, Snapshot]:
    gpus = []
    for gpu in template.gpus:
        digest = hashlib.sha256(f"{name}/{number}/{gpu.index}".encode()).digest()
        own: dict[str, object] = {}
        if gpu.uuid is not None:
            own["uuid"] = f"GPU-{UUID(bytes=digest[:16], version=4)}"
        if gpu.serial is not None:
            own["serial"] = str(1_650_000_000_000 + int.from_bytes(digest[16:20], "big") % 10**9)
        gpus.append(gpu.model_copy(update=own))
    return f"{name}-{number:05}", template.model_copy(update={"gpus": tuple(gpus)})

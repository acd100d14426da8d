"""What a large cluster and its changes cost a gateway process that watches them."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

from bench.figures import Section
from bench.processes import PROGRAM, Child, Load, child, listening_port
from support.kubeapi.documents import Document, endpoint, endpoint_slice, node, pod, running
from support.kubeapi.server import FakeApiServer

__all__ = [
    "CHANGES_PER_SECOND",
    "PER_SLICE",
    "SLICES",
    "count_agents",
    "fill",
    "gateway",
    "growth",
    "slice_of",
    "watching",
]

SLICES = 50
PER_SLICE = 100
"""The most that Kubernetes puts into one EndpointSlice."""

CHANGES_PER_SECOND = 100

RESOURCES = ("endpointslices", "pods", "nodes")

PORT = 8080


async def watching(churn_seconds: float) -> Section:
    """A gateway on an empty cluster, then one on a large cluster that changes all the time."""
    count = SLICES * PER_SLICE
    title = f"a gateway over {count:,} agents, {CHANGES_PER_SECOND} slices changing a second"
    section = Section(f"{title} for {churn_seconds:.0f} s")
    async with FakeApiServer() as api, gateway(api) as (process, _, started_ms):
        section.add("empty cluster: start until it listens", started_ms, "ms")
        empty = Load.of(process)
        section.add("empty cluster: resident", empty.resident_mib, "MiB")
    async with FakeApiServer() as api:
        await fill(api)
        async with gateway(api) as (process, port, started_ms):
            section.add("start until it listens, all of it listed", started_ms, "ms")
            before = Load.of(process)
            section.add("resident, more than on the empty cluster", growth(before, empty), "MiB")
            began = time.monotonic()
            changes = await _churn(api, port, churn_seconds)
            took = time.monotonic() - began
            after = Load.of(process)
            section.add("changes sent", changes / took, "/s")
            share = 100 * (after.cpu_seconds - before.cpu_seconds) / took
            section.add("processor time, of one", share, "%")
            section.add("resident, more than before the changes", growth(after, before), "MiB")
            relists = sum(api.lists(resource) - 1 for resource in RESOURCES)
            section.add("collections listed again", relists, "", 0.0)
    return section


def growth(now: Load, then: Load) -> float:
    """MiB that a process has come to take."""
    return max(now.resident_mib - then.resident_mib, 0.0)


@asynccontextmanager
async def gateway(api: FakeApiServer) -> AsyncIterator[tuple[Child, int, float]]:
    """A gateway process that has had its first look, its port, and the milliseconds that took."""
    argv = [*PROGRAM, "gateway", "--kubeconfig", str(api.kubeconfig), "--http-port", "0"]
    began = time.perf_counter()
    with child(argv) as process:
        # The API server is in this process: nothing here may block while the gateway lists.
        port = await anyio.to_thread.run_sync(listening_port, process)
        yield process, port, (time.perf_counter() - began) * 1000


async def fill(api: FakeApiServer) -> None:
    """5,000 agents on as many nodes."""
    for number in range(SLICES):
        await api.apply(slice_of(number, 0))
        for name in _names(number):
            await api.apply(pod(name, state=running(), ready=True))
            await api.apply(node(name))


async def _churn(api: FakeApiServer, port: int, seconds: float) -> int:
    """Change one slice after the other at a steady pace, and have the gateway look at all of its
    agents once a second. Returns how many changes there were."""
    changes = round(seconds * CHANGES_PER_SECOND)
    began = time.monotonic()
    for change in range(changes):
        await anyio.sleep(max(began + change / CHANGES_PER_SECOND - time.monotonic(), 0.0))
        await api.apply(slice_of(change % SLICES, 1 + change // SLICES))
        if change % CHANGES_PER_SECOND == 0:
            await anyio.to_thread.run_sync(count_agents, port)
    return changes


def count_agents(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/readyz")
        known = json.loads(connection.getresponse().read())["agents"]
    finally:
        connection.close()
    if known != SLICES * PER_SLICE:
        raise RuntimeError(f"the gateway knows {known} agents")


def slice_of(number: int, state: int) -> Document:
    """In each state another agent of the slice is not ready."""
    unready = state % PER_SLICE
    return endpoint_slice(
        f"agents-{number:02}",
        [
            endpoint(f"10.0.{number}.{each}", name, serving=not state or each != unready)
            for each, name in enumerate(_names(number))
        ],
        port=PORT,
    )


def _names(number: int) -> list[str]:
    return [f"node-{number:02}-{each:02}" for each in range(PER_SLICE)]

"""What one node's page and pods cost a gateway of a large cluster, and its API server."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any

import anyio.to_thread

from bench.discovery import PER_SLICE, SLICES, fill, gateway, growth
from bench.figures import Section
from bench.processes import PROGRAM, Child, Load, ask_http, child, listening_port
from support.kubeapi.documents import endpoint, endpoint_slice, pod, running
from support.kubeapi.server import FakeApiServer
from support.kubelet import Kubelet, plugin
from support.kubelet import pod as held_by
from support.nodepage import dra_device, event, gpu_node, gpu_pod, slice_of
from support.wire import call

__all__ = ["nodes"]

DESCRIBED = "described"

HELD = "held"
"""Its kubelet tells which pods hold its GPUs."""

FLEET = "\n".join(f'[[nodes]]\nname = "{name}"\nprofile = "h100"' for name in (DESCRIBED, HELD))

GPUS = 8
"""Of each node."""

Ask = Callable[[int], float]
"""Makes one call to the gateway at a port; milliseconds."""


async def nodes(folder: Path, calls: int) -> tuple[Section, Section]:
    """`describe_gpu_node` and `get_pod_gpu_allocation` of one node each of 5,000, all of which have
    pods with GPUs, events and ResourceSlices."""
    count = SLICES * PER_SLICE + 2
    (folder / "described.toml").write_text(FLEET)
    kubelet = Kubelet(folder / "kubelet.sock")
    workers = [f"worker-{index}" for index in range(GPUS)]
    given = [plugin("nvidia.com/gpu", str(index)) for index in range(GPUS)]
    kubelet.holding(
        held_by("agents", f"agent-{HELD}"), *map(held_by, ["train"] * GPUS, workers, given)
    )
    with (
        # Whose kubelet tells nothing: then the node's pods are listed as well.
        _agent(folder, DESCRIBED, folder / "none.sock") as described,
        _agent(folder, HELD, kubelet.path) as held,
    ):
        ports = {DESCRIBED: listening_port(described), HELD: listening_port(held)}
        async with kubelet.listening(), FakeApiServer() as api:
            await _populate(api, ports)
            for worker in workers:
                await api.apply(gpu_pod(worker, 1, node=HELD))
            page = Section(f"describe_gpu_node of one of {count:,} nodes, {calls} calls")
            # The node, its events, its ResourceSlices and its pods: never more, however large the
            # cluster.
            await _measure(page, api, _describe, calls, requests=4, gets=1)
            pods = Section(f"get_pod_gpu_allocation of one of them with {GPUS} pods, {calls} calls")
            await _measure(pods, api, _allocation, calls, requests=GPUS, gets=GPUS)
    return page, pods


def _agent(folder: Path, node: str, pod_resources: Path) -> AbstractContextManager[Child]:
    argv = [*PROGRAM, "agent", "--node-name", node, "--simulate", str(folder / "described.toml")]
    argv += ["--pod-name", f"agent-{node}", "--pod-uid", f"uid-{node}"]
    argv += ["--http-port", "0", "--socket", str(folder / f"{node}.sock")]
    argv += ["--pod-resources-socket", str(pod_resources)]
    return child(argv)


async def _measure(
    section: Section, api: FakeApiServer, ask: Ask, calls: int, *, requests: float, gets: float
) -> None:
    """By a gateway of its own."""
    async with gateway(api) as (process, port, _):
        before = Load.of(process)
        first = await anyio.to_thread.run_sync(ask, port)
        warm = Load.of(process)
        asked = len(api.requests)
        taken = [await anyio.to_thread.run_sync(ask, port) for _ in range(calls)]
        after = Load.of(process)
        made = Counter(f"{each.verb} {each.resource}" for each in api.requests[asked:])
    busy_ms = 1000 * (after.cpu_seconds - warm.cpu_seconds) / calls
    section.add("first call", first, "ms")
    section.add("later calls, median", median(taken), "ms")
    section.add("processor time of the gateway, a later call", busy_ms, "ms")
    section.add("resident before the first call", before.resident_mib, "MiB")
    section.add("resident, more after the first", growth(warm, before), "MiB")
    section.add("resident, more after the others", growth(after, warm), "MiB")
    section.add("requests to the API server, a call", made.total() / calls, "", requests)
    got = sum(number for what, number in made.items() if what.startswith("get "))
    section.add("of them GETs of one object", got / calls, "", gets)


async def _populate(api: FakeApiServer, ports: dict[str, int]) -> None:
    await fill(api)
    for number in range(SLICES):
        for each in range(PER_SLICE):
            node = f"node-{number:02}-{each:02}"
            await _crowd(api, node)
            await api.apply(gpu_pod(f"worker-{node}", GPUS, node=node))
    for node, port in ports.items():
        await _crowd(api, node)
        await api.apply(endpoint_slice(node, [endpoint("127.0.0.1", node)], port=port))
        await api.apply(pod(node, state=running(), ready=True))
        await api.apply(gpu_node(node))
    await api.apply(gpu_pod(f"worker-{DESCRIBED}", GPUS, node=DESCRIBED))


async def _crowd(api: FakeApiServer, node: str) -> None:
    """What there is of each node beside itself and its pods."""
    devices = [dra_device(f"gpu-{index}") for index in range(GPUS)]
    await api.apply(slice_of(*devices, node=node, driver="gpus.example.org"))
    await api.apply(event("Rebooted", f"Node {node} has been rebooted", name=node))


def _describe(port: int) -> float:
    """Raises: RuntimeError: a part of the page is missing."""
    found, elapsed_ms = _timed(port, "describe_gpu_node", node=DESCRIBED)
    if found["unavailable"] or found["verdict"] != "healthy":
        raise RuntimeError(f"{found['verdict']}: {found['unavailable']}, {found['gaps']}")
    return elapsed_ms


def _allocation(port: int) -> float:
    """Raises: RuntimeError: a pod is missing, or what the API server knows of it."""
    found, elapsed_ms = _timed(port, "get_pod_gpu_allocation", nodes=[HELD])
    (node,) = found["nodes"]
    named = [pod["phase"] for pod in node["pods"]]
    if (node["source"], named) != ("pod_resources", ["Running"] * GPUS):
        raise RuntimeError(f"{node['source']}: {named}")
    return elapsed_ms


def _timed(port: int, tool: str, **arguments: Any) -> tuple[dict[str, Any], float]:
    begun = time.perf_counter()
    found: dict[str, Any] = ask_http(port, call(tool, **arguments))["structuredContent"]
    return found, (time.perf_counter() - begun) * 1000

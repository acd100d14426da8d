"""What one node's page costs a gateway of a large cluster, and the cluster's API server."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from statistics import median

import anyio.to_thread

from bench.discovery import PER_SLICE, SLICES, fill, gateway, growth
from bench.figures import Section
from bench.processes import PROGRAM, Load, ask_http, child, listening_port
from support.kubeapi.documents import endpoint, endpoint_slice, pod, running
from support.kubeapi.server import FakeApiServer
from support.nodepage import dra_device, event, gpu_node, gpu_pod, slice_of
from support.wire import call

__all__ = ["described"]

NAME = "described"

FLEET = f"""
[[nodes]]
name = "{NAME}"
profile = "h100"
"""

REQUESTS = 4.0
"""The node, its events, its ResourceSlices, and its pods where its agent does not tell whose GPUs
are whose: never more, however large the cluster."""


async def described(folder: Path, calls: int) -> Section:
    """`describe_gpu_node` of one node of 5,000, all with events and ResourceSlices."""
    count = SLICES * PER_SLICE
    section = Section(f"describe_gpu_node of one of {count + 1:,} nodes, {calls} calls")
    fleet_file = folder / "described.toml"
    fleet_file.write_text(FLEET)
    argv = [*PROGRAM, "agent", "--node-name", NAME, "--simulate", str(fleet_file)]
    argv += ["--pod-name", f"agent-{NAME}", "--pod-uid", f"uid-{NAME}"]
    argv += ["--http-port", "0", "--socket", str(folder / "described.sock")]
    with child(argv) as agent:
        agent_port = listening_port(agent)
        async with FakeApiServer() as api:
            await _populate(api, agent_port)
            async with gateway(api) as (process, port, _):
                before = Load.of(process)
                first = await anyio.to_thread.run_sync(_ask, port)
                warm = Load.of(process)
                asked = len(api.requests)
                taken = [await anyio.to_thread.run_sync(_ask, port) for _ in range(calls)]
                after = Load.of(process)
                requests = Counter(f"{each.verb} {each.resource}" for each in api.requests[asked:])
    busy_ms = 1000 * (after.cpu_seconds - warm.cpu_seconds) / calls
    section.add("first call", first, "ms")
    section.add("later calls, median", median(taken), "ms")
    section.add("processor time of the gateway, a later call", busy_ms, "ms")
    section.add("resident before the first call", before.resident_mib, "MiB")
    section.add("resident, more after the first", growth(warm, before), "MiB")
    section.add("resident, more after the others", growth(after, warm), "MiB")
    section.add("requests to the API server, a call", requests.total() / calls, "", REQUESTS)
    gets = sum(number for what, number in requests.items() if what.startswith("get "))
    section.add("of them GETs of one object", gets / calls, "", 1.0)
    return section


async def _populate(api: FakeApiServer, agent_port: int) -> None:
    await fill(api)
    for number in range(SLICES):
        for each in range(PER_SLICE):
            await _crowd(api, f"node-{number:02}-{each:02}")
    await _crowd(api, NAME)
    here = endpoint("127.0.0.1", NAME)
    await api.apply(endpoint_slice("described", [here], port=agent_port))
    await api.apply(pod(NAME, state=running(), ready=True))
    await api.apply(gpu_node(NAME))


async def _crowd(api: FakeApiServer, node: str) -> None:
    """What there is of each node beside itself."""
    devices = [dra_device(f"gpu-{index}") for index in range(8)]
    await api.apply(slice_of(*devices, node=node, driver="gpus.example.org"))
    await api.apply(event("Rebooted", f"Node {node} has been rebooted", name=node))
    await api.apply(gpu_pod(f"worker-{node}", 8, node=node))


def _ask(port: int) -> float:
    """Milliseconds of one call.

    Raises:
        RuntimeError: a part of the page is missing.
    """
    begun = time.perf_counter()
    found = ask_http(port, call("describe_gpu_node", node=NAME))["structuredContent"]
    elapsed_ms = (time.perf_counter() - begun) * 1000
    if found["unavailable"] or found["verdict"] != "healthy":
        raise RuntimeError(f"{found['verdict']}: {found['unavailable']}, {found['gaps']}")
    return elapsed_ms

"""Whose the processes on GPUs are, by an agent's own code in its own container: runs in there.

NVML's list of processes is all that is simulated. Arguments are pairs of a GPU's index and a pid;
prints what `get_gpu_processes` of an agent answers, as JSON.
"""

from __future__ import annotations

import os
import sys

import anyio

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.simulator.processes import Process
from mcp_gpu.node.holdings import Attribution
from mcp_gpu.node.occupants import Occupants
from mcp_gpu.node.pod_resources import PodResources
from mcp_gpu.node.process_pods import ProcessPods
from mcp_gpu.settings.agent import AgentSettings
from mcp_gpu.tools.processes_account import account

GPUS = 4
FIRST_SECONDS = 20.0
LISTED = 100


async def main(listed: list[tuple[int, int]]) -> None:
    processes = [Process(gpu=index, pid=pid, memory_mib=1000) for index, pid in listed]
    name = os.environ["MCP_GPU_NODE_NAME"]
    simulator.install(simulator.Node(name, "h100", gpus=GPUS, load=0.0, processes=processes))
    collector = Collector()
    collector.start()
    await collector.first(FIRST_SECONDS)
    settings = AgentSettings.model_fields
    attribution = Attribution(
        lambda: collector.snapshot,
        PodResources(settings["pod_resources_socket"].default),
        settings["device_plugin_checkpoint"].default,
        pod=os.environ["MCP_GPU_POD_NAME"],
    )
    occupancy = await Occupants(collector, ProcessPods()).look()
    held = await attribution.holdings()
    print(account(name, collector.snapshot, occupancy, held, limit=LISTED).model_dump_json())
    collector.stop()


if __name__ == "__main__":
    words = [int(word) for word in sys.argv[1:]]
    anyio.run(main, list(zip(words[::2], words[1::2], strict=True)))

"""`mcp-gpu ps` as a person runs it: over real agents, gateways and kubelets' sockets."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import anyio
from mcp_types import CallToolResult
from rich.console import Console

from mcp_gpu.gpu.simulator import load_fleet, snapshot
from mcp_gpu.ps import render
from mcp_gpu.tools.fleet_allocation import gateway_tool
from mcp_gpu.tools.fleet_allocation_model import FleetAllocation
from mcp_gpu.workloads.reads import Workloads
from support import served
from support.allocation import AllocationAgent, holder
from support.cluster import cluster
from support.fleet import Agent
from support.kubelet import Kubelet, plugin, pod
from support.results import data
from support.terminal import WIDTH, Run, run, ways

FLEET = """
[[nodes]]
name = "a"
profile = "h100"
gpus = 3
"""

LIMIT_SECONDS = 60


async def ps(*flags: str, terminal: bool = False) -> Run:
    found = await run("ps", *flags, terminal=terminal)
    assert found.said == ""
    return found


def uuids(folder: Path) -> list[str]:
    file = folder / "alone.toml"
    file.write_text(FLEET)
    return [gpu.uuid or "" for gpu in snapshot(load_fleet(file).node("a")).gpus]


async def test_a_gateway_and_the_agents_themselves_tell_the_same(tmp_path: Path) -> None:
    one, two, _ = uuids(tmp_path)
    kubelet = Kubelet(tmp_path / "kubelet.sock")
    kubelet.holding(
        pod("train", "worker-0", plugin("nvidia.com/gpu", one)),
        pod("dev", "notebook", plugin("nvidia.com/gpu", f"{two}::0"), container="jupyter"),
    )
    flags = ["--pod-resources-socket", str(kubelet.path)]
    async with kubelet.listening(), cluster(tmp_path, FLEET, agent_flags=flags) as here:
        with anyio.fail_after(LIMIT_SECONDS):
            while (await ps(*ways(here)[0])).status != 0:
                await anyio.sleep(0.1)  # the first look has no event to wait for
        for way in ways(here):
            every = await ps(*way)
            assert every.status == 0
            assert every.lines[0].split() == [
                "NODE", "POD", "CONTAINER", "GPU", "BUSY", "MEMORY", "(GiB)", "STATE", "OWNER",
            ]  # fmt: skip
            assert [line.split()[:5] for line in every.lines[1:3]] == [
                ["a", "dev/notebook", "jupyter", "GPU", "1"],
                ["a", "train/worker-0", "main", "GPU", "0"],
            ]
            assert "free on a: GPU 2" in every.lines
            assert any(line.startswith("1 of 1 nodes answered: 2 pods") for line in every.lines)
            shown = await ps(*way, terminal=True)
            assert [line for line in shown.lines if len(line) > WIDTH] == []
            answer = (await ps(*way, "--json", "--pod", "worker-0", "--nodes", "a")).answer
            (node,) = answer["nodes"]
            assert [each["pod"] for each in node["pods"]] == ["worker-0"]
            assert [gpu["index"] for gpu in node["gpus"]] == [0]
            none = await ps(*way, "--pod-namespace", "nobody")
            assert "No such pod holds a GPU" in none.lines[0]


async def test_without_a_kubelet_it_says_so_and_fails(tmp_path: Path) -> None:
    async with cluster(
        tmp_path, FLEET, agent_flags=["--pod-resources-socket", str(tmp_path / "none")]
    ) as here:
        found = await ps(*ways(here)[1])
    assert found.status == 1
    assert found.lines[0] == "Who holds the GPUs is unknown on every node that answered."
    assert any(line.startswith("! a: ") and "No such file" in line for line in found.lines)


async def test_a_simulated_node_is_held_by_pods_that_are_said_to_be_made_up(
    tmp_path: Path,
) -> None:
    uid = "0b9b7c34-3a5e-4f0e-8a51-0ef1c5d8a001"
    fleet = f"""{FLEET}load = 0.0
[[nodes.processes]]
gpu = 1
pid = 77
memory_mib = 2048
pod_uid = "{uid}"
container_id = "{"ab" * 32}"
"""
    async with cluster(tmp_path, fleet) as here:
        with anyio.fail_after(LIMIT_SECONDS):
            while (found := await ps(*ways(here)[0])).status != 0:
                await anyio.sleep(0.1)  # the first look has no event to wait for
        assert found.lines[1].split()[:5] == ["a", "simulated/job-0b9b7c34", "main", "GPU", "1"]
        assert "free on a: GPU 0, 2" in found.lines
        (node,) = (await ps(*ways(here)[0], "--json")).answer["nodes"]
    assert (node["source"], node["simulated"], node["strays"]) == ("simulated", True, [])
    assert node["allocatable"] == {"nvidia.com/gpu": 3}
    assert "strays" not in node["unavailable"]
    assert [each["pod_uid"] for each in node["pods"]] == [uid]


def shown(found: FleetAllocation, width: int) -> list[str]:
    """At a terminal of so many columns."""
    out = StringIO()
    render(found, Console(width=width, file=out, highlight=False, emoji=False), named=False)
    return [line.rstrip() for line in out.getvalue().splitlines()]


async def told(*agents: Agent) -> FleetAllocation:
    """What a gateway of these agents answers."""
    by_name = {agent.node: agent for agent in agents}
    async with served.gateway(
        lambda router: gateway_tool(router, Workloads({})), by_name
    ) as client:
        answer = await client.call_tool("get_pod_gpu_allocation", {"detail": "full", "limit": 100})
    assert isinstance(answer, CallToolResult)
    return FleetAllocation.model_validate(data(answer))


async def test_nodes_that_cannot_say_for_one_reason_are_one_line() -> None:
    why = "kubelet.sock: Permission denied"
    lines = shown(await told(*(AllocationAgent(f"n-{each:02}", why=why) for each in range(40))), 80)
    assert "! n-00-n-39: holders unknown: kubelet.sock: Permission denied" in lines
    assert len(lines) < 10


async def test_a_terminal_shows_a_container_in_one_row_and_leaves_out_what_does_not_fit() -> None:
    node = "ip-10-0-12-34.us-west-2.compute.internal"
    found = await told(
        AllocationAgent(node, holder("ml-research/llama3-70b-pretrain-0-7f9k2", node, 0, 1, 2))
    )
    narrow = shown(found, 80)
    assert narrow[0].split() == [
        "NODE", "POD", "CONTAINER", "GPU", "BUSY", "MEMORY", "(GiB)", "STATE",
    ]  # fmt: skip
    assert narrow[1].split()[0] == "ip-10-0-12-34"
    assert re.search(r"  main       GPU 0-2  [0-9-]+ %  +[0-9.]+/238.9  ", narrow[1])
    assert len(narrow[: narrow.index("")]) <= 4, "the heading, and a row of three lines"
    piped = shown(found, 400)
    assert piped[1].startswith(f"{node}  ml-research/llama3-70b-pretrain-0-7f9k2  main  ")
    assert piped[2] == ""
    assert piped[0].endswith("OWNER")
    names = ("n.a", "n.b")
    two = await told(*(AllocationAgent(name, holder("a/p", name, 0)) for name in names))
    assert [line.split()[0] for line in shown(two, 60)[1:3]] == ["n.a", "n.b"]

"""`get_nvlink_topology` through a real MCP client: of one node, and of a fleet."""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import pytest
from mcp import Client
from mcp_types import CallToolResult
from pydantic import BaseModel, TypeAdapter

from mcp_gpu.gpu.history import Past
from mcp_gpu.gpu.simulator import Node, snapshot
from mcp_gpu.gpu.simulator.faults import Fault, Hang, Lost, NvlinkDown, WholeNode
from mcp_gpu.registry import Arguments
from mcp_gpu.tools.fleet_topology import gateway_tool
from mcp_gpu.tools.topology import AgentArguments, agent_tool
from mcp_gpu.tools.topology_answer import of_node
from mcp_gpu.tools.topology_model import NAME, NodeTopology
from support import served
from support.fleet import Agent, Foreign, Path
from support.results import data, text
from support.schemas import check
from transports.errors import Gone

FAULT: TypeAdapter[Any] = TypeAdapter(Fault)

gateway = partial(served.gateway, gateway_tool)


def agent(node: Node, *, looked: bool = True) -> AbstractAsyncContextManager[Client]:
    return served.agent(node, lambda collector: agent_tool(node.name, collector), looked=looked)


async def ask(client: Client, **arguments: Any) -> CallToolResult:
    result = await client.call_tool(NAME, arguments)
    assert isinstance(result, CallToolResult)
    return result


def fault(kind: str, gpu: int, **keys: object) -> Any:
    return FAULT.validate_python({"kind": kind, "gpu": gpu, **keys})


def topology(node: Node) -> NodeTopology:
    return of_node(node.name, snapshot(node), Past(), "full")


class TopologyAgent(Agent):
    """Leaves single GPUs out of a summary, as the real one does."""

    def answer(self, arguments: Arguments) -> BaseModel:
        full = arguments.model_dump()["detail"] == "full"
        return self.data if full else self.data.model_copy(update={"gpus": ()})


def agents(*told: NodeTopology) -> dict[str, Agent]:
    return {
        each.node: TopologyAgent(
            each.node, each, tool=NAME, arguments=AgentArguments, result=NodeTopology
        )
        for each in told
    }


def fleet(count: int, *others: NodeTopology, profile: str = "h100") -> dict[str, Agent]:
    """So many nodes wired alike, and others."""
    one = topology(Node("one", profile))
    alike = [one.model_copy(update={"node": f"node-{i:04}"}) for i in range(count)]
    return agents(*alike, *others)


# --- an agent -----------------------------------------------------------------------------------


async def test_a_node_is_told_by_its_matrix() -> None:
    async with agent(Node("n", "h100", load=0.5)) as client:
        answer = await ask(client)
        summary = data(await ask(client, detail="summary"))
    assert summary["gpus"] == []
    found = data(answer)
    assert summary["matrix"] == found["matrix"]
    assert found["matrix"][0] == ["X", *["NV18"] * 7]
    assert (found["asymmetries"], found["unknown"]) == ([], {})
    assert found["peer_access"] == [
        {"read": "ok", "write": "ok", "nvlink": "ok", "atomics": "ok", "pairs": 28, "which": []}
    ]
    first = found["gpus"][0]
    assert (first["nvlinks"], first["nvlinks_up"], first["switched"]) == (18, 18, True)
    assert (first["numa_node"], first["cpu_affinity"]) == (0, "0-47,96-143")
    assert [each["links"] for each in first["links"]] == [[*range(18)]]
    for gpu in found["gpus"]:
        assert {name for name, value in gpu.items() if value is None} == set(gpu["unavailable"])
    assert text(answer).splitlines()[0] == (
        "n: 8x NVIDIA H100 80GB HBM3; NV18 everywhere through NVSwitch; peer access; "
        "NUMA 0: GPU 0-3, NUMA 1: GPU 4-7; fabric completed (8)"
    )
    assert (
        "GPU7  NV18  NV18  NV18  NV18  NV18  NV18  NV18  X     48-95,144-191  1"
        in text(answer).splitlines()
    )
    assert "SIMULATED" in text(answer)


async def test_what_differs_is_told_before_the_matrix() -> None:
    faults = (NvlinkDown(kind="nvlink_down", gpu=1, links=(2, 3)), Lost(kind="lost", gpu=6))
    async with agent(Node("n", "h100", faults=faults)) as client:
        answer = await ask(client)
    found = data(answer)
    assert [each["kind"] for each in found["asymmetries"]] == ["links_down"]
    assert found["gpus"][1]["nvlinks_down"] == {"inactive": [2, 3]}
    assert found["unknown"] == {"6": "gpu_lost"}
    lines = text(answer).splitlines()
    assert lines[1].startswith("! GPU 1 has 16 NVLinks up")
    assert "unknown for GPU 6: gpu_lost" in lines


async def test_links_that_are_alike_are_told_together() -> None:
    faults = (fault("nvlink_errors", 0, error="crc", links=[4], count=9),)
    async with agent(Node("n", "h100", gpus=2, faults=faults)) as client:
        answer = await ask(client, detail="full")
    assert [each["links"] for each in data(answer)["gpus"][0]["links"]] == [
        [0, 1, 2, 3, *range(5, 18)],
        [4],
    ]
    assert "GPU 0 NVLink 4: active, to switch; crc_errors 9" in text(answer).splitlines()
    assert "GPU 1 NVLink 0-17: active, to switch; no errors" in text(answer).splitlines()


async def test_boards_without_nvlink_are_told_by_their_way_over_pcie() -> None:
    async with agent(Node("n", "l40s", gpus=4)) as client:
        answer = await ask(client, detail="full")
    assert data(answer)["shape"] == (
        "4x NVIDIA L40S; NODE everywhere; peer access; NUMA 0: GPU 0-3"
    )
    assert "GPU 0-3: no NVLinks known (not_supported)" in text(answer)
    assert {gpu["unavailable"]["switched"] for gpu in data(answer)["gpus"]} == {"not_supported"}


@pytest.mark.parametrize("gpus", [0, 1])
async def test_no_gpu_and_one_gpu_have_no_pairs(gpus: int) -> None:
    async with agent(Node("n", "t4", gpus=gpus)) as client:
        answer = await ask(client)
    assert data(answer)["matrix"] == [["X"]] * gpus
    assert data(answer)["peer_access"] == []


async def test_a_node_without_a_driver_says_so() -> None:
    node = Node("n", "t4", faults=(WholeNode(kind="driver_not_loaded"),))
    async with agent(node) as client:
        answer = await ask(client)
    assert data(answer)["state"] == "absent"
    assert "DriverNotLoaded" in text(answer)


async def test_a_driver_that_hangs_on_it_does_not_take_the_answer_with_it() -> None:
    hang = Hang(kind="hang", seconds=3600, call="nvmlDeviceGetTopologyCommonAncestor")
    node = Node("n", "l4", gpus=2, faults=(hang,))
    async with agent(node) as client:
        answer = await ask(client)
        node.faults = ()
    assert data(answer)["unknown"] == {"0-1": "not_read"}
    assert data(answer)["gpus"][0]["numa_node"] == 0
    assert "unknown for GPU 0-1: not_read" in text(answer)


async def test_an_agent_that_hangs_everywhere_knows_nothing_and_says_it() -> None:
    node = Node("n", "l4", faults=(Hang(kind="hang", seconds=3600),))
    async with agent(node, looked=False) as client:
        answer = await ask(client)
        node.faults = ()
    assert data(answer)["matrix"] == []
    assert data(answer)["shape"] == "no GPUs known"


# --- a gateway ----------------------------------------------------------------------------------


async def test_nodes_wired_alike_are_one_line() -> None:
    async with gateway(fleet(12)) as client:
        answer = await ask(client)
    found = data(answer)
    assert (found["nodes"], found["nodes_odd"], found["domains"]) == ([], 0, [])
    assert [(each["nodes"], each["names"]) for each in found["alike"]] == [
        (12, "node-0000-node-0011")
    ]
    assert text(answer).splitlines()[0] == "12 of 12 nodes answered: 0 odd nodes, 1 kind of wiring"
    assert (
        "12 nodes alike: 8x NVIDIA H100 80GB HBM3; NV18 everywhere through NVSwitch; peer access; "
        "NUMA 0: GPU 0-3, NUMA 1: GPU 4-7; fabric completed (8): node-0000-node-0011"
    ) in text(answer).splitlines()


async def test_odd_nodes_are_told_first_each_with_why() -> None:
    down = topology(Node("down", "h100", faults=[fault("nvlink_down", 1, links=[5])]))
    lost = topology(Node("lost", "h100", faults=[fault("lost", 2)]))
    short = topology(Node("short", "h100", faults=[fault("nvlink_down", 0)]))
    few = topology(Node("few", "h100", gpus=4))
    other = down.model_copy(
        update={"node": "other", "asymmetries": (), "shape": "8x NVIDIA H100 80GB HBM3; wired so"}
    )
    async with gateway(fleet(5, down, lost, short, few, other)) as client:
        answer = await ask(client)
    found = data(answer)
    assert [node["node"] for node in found["nodes"]] == ["down", "lost", "other", "short"]
    assert found["nodes_odd"] == 4
    assert found["alike"][0]["nodes"] == 5
    why = {node["node"]: node["odd"] for node in found["nodes"]}
    assert why["lost"] == ["unknown for GPU 2: gpu_lost"]
    assert why["other"][0].startswith("wired otherwise than 5 nodes with the same GPUs (8x NVIDIA")
    assert why["down"][0].startswith("GPU 1 has 17 NVLinks up and should have 18")
    lines = text(answer).splitlines()
    assert lines[2].startswith("! down: GPU 1 has 17 NVLinks up")
    assert found["nodes"][0]["matrix"] == []


async def test_two_nodes_that_differ_prove_neither_wrong() -> None:
    other = topology(Node("b", "h100")).model_copy(update={"shape": "otherwise"})
    async with gateway(agents(topology(Node("a", "h100")), other)) as client:
        assert data(await ask(client))["nodes_odd"] == 0


@pytest.mark.parametrize("arguments", [{"detail": "full"}, {"nodes": ["node-0001"]}])
async def test_named_nodes_and_full_detail_have_matrices(arguments: dict[str, Any]) -> None:
    served_by = fleet(3)
    async with gateway(served_by) as client:
        answer = await ask(client, **arguments)
    told = data(answer)["nodes"]
    assert [node["node"] for node in told] == arguments.get("nodes", sorted(served_by))
    for node in told:
        assert node["matrix"][0][1] == "NV18"
        assert node["via"] == "http"
    assert text(answer).count("GPU7  NV18") == len(told)
    details = [call.model_dump()["detail"] for call in served_by["node-0001"].calls]
    assert details == ["full"]


def rack(count: int, *, clique: int = 2, first: int = 0, chassis: str = "c1") -> list[NodeTopology]:
    one = topology(Node("one", "gb200"))
    (place,) = one.fabric
    places = (place.model_copy(update={"clique_id": clique, "chassis_serial": chassis}),)
    return [
        one.model_copy(update={"node": f"rack-{i:02}", "fabric": places})
        for i in range(first, first + count)
    ]


async def test_nodes_of_one_nvlink_domain_are_told_together() -> None:
    async with gateway(agents(*rack(18))) as client:
        answer = await ask(client)
    (domain,) = data(answer)["domains"]
    assert (domain["nodes"], domain["gpus"], domain["missing"]) == (18, 72, [])
    assert domain["names"] == "rack-00-rack-17"
    assert "72 GPUs on 18 nodes: rack-00-rack-17" in text(answer)


async def test_members_that_are_missing_from_a_domain_are_named() -> None:
    nodes = rack(16)
    (place,) = nodes[3].fabric
    lacking = {"cluster_uuid": None, "clique_id": None, "why": "registration in_progress"}
    parts = ({"gpus": (0, 2, 3)}, {"gpus": (1,), **lacking})
    update = {"fabric": tuple(place.model_copy(update=part) for part in parts)}
    nodes[3] = nodes[3].model_copy(update=update)
    elsewhere = rack(2, clique=9, first=16)
    served_by = agents(*nodes, *elsewhere, *rack(1, first=30, chassis="c2", clique=5))
    http = Path("http", served_by)
    http.probe_errors["rack-30"] = Gone
    async with gateway(served_by, http) as client:
        answer = await ask(client)
    small, large = sorted(data(answer)["domains"], key=lambda one: one["gpus"])
    assert (small["clique_id"], small["gpus"], large["gpus"]) == (9, 8, 63)
    assert large["missing"] == [
        "rack-03 GPU 1: registration in_progress",
        "rack-16 GPU 0-3: in clique 9",
        "rack-17 GPU 0-3: in clique 9",
    ]
    assert "missing: rack-03 GPU 1: registration in_progress; rack-16" in text(answer)
    assert "rack-30" in text(answer)


async def test_boards_whose_fabric_ends_with_their_node_are_no_domain() -> None:
    async with gateway(fleet(3)) as client:
        assert data(await ask(client))["domains"] == []


async def test_pages_together_are_all_odd_nodes() -> None:
    odd = topology(Node("odd", "h100", faults=[fault("lost", 2)]))
    served_by = fleet(2, *(odd.model_copy(update={"node": f"odd-{i:02}"}) for i in range(7)))
    pages: list[list[str]] = []
    cursor: dict[str, str] = {}
    async with gateway(served_by) as client:
        for _ in range(4):
            page = data(await ask(client, limit=3, **cursor))
            pages.append([node["node"] for node in page["nodes"]])
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        bad = await ask(client, cursor="odd")
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [name for page in pages for name in page] == [f"odd-{i:02}" for i in range(7)]
    assert "next_cursor" in text(bad)
    assert bad.is_error


@pytest.mark.parametrize("profile", ["h100", "gb200"])
async def test_a_thousand_nodes_fit_a_context_whatever_their_state(profile: str) -> None:
    faults = [fault("nvlink_down", gpu, links=list(range(gpu, 9))) for gpu in range(4)]
    sick = topology(Node("sick", profile, faults=faults))
    served_by = fleet(
        500,
        *(
            sick.model_copy(update={"node": f"sick-{i:04}", "shape": f"{i} {sick.shape * 9}"})
            for i in range(500)
        ),
        profile=profile,
    )
    async with gateway(served_by, deadlines_seconds=(40.0, 50.0)) as client:
        answer = await ask(client)
        named = await ask(client, nodes=[f"sick-{i:04}" for i in range(40)])
    assert data(answer)["nodes_odd"] == 500
    assert len(text(answer)) < 8_000
    assert len(json.dumps(answer.structured_content)) < 40_000
    assert len(text(named)) <= 30_000
    assert len(json.dumps(named.structured_content)) < 300_000
    assert data(named)["next_cursor"] is not None


EVIL = "\x1b[2J one\r\n! forged \u202e two"


async def test_an_odd_agent_costs_the_others_nothing() -> None:
    document = topology(Node("odd", "h100")).model_dump(mode="json")
    document |= {"shape": EVIL, "message": EVIL, "matrix": [["X", EVIL], ["a"], []]}
    document["models"] = {EVIL: -1}
    document["unknown"] = {EVIL: EVIL}
    document["fabric"] = [
        {**document["fabric"][0], "cluster_uuid": f"{EVIL}{n}", "clique_id": n} for n in range(99)
    ]
    served_by = fleet(2)
    served_by["odd"] = Agent("odd", Foreign(**document), tool=NAME, arguments=AgentArguments)
    broken = {"matrix": "X", "node": "broken"}
    served_by["broken"] = Agent(
        "broken", Foreign(**document | broken), tool=NAME, arguments=AgentArguments
    )
    async with gateway(served_by) as client:
        for arguments in ({}, {"detail": "full"}):
            answer = await ask(client, **arguments)
            assert data(answer)["failures_by_reason"] == {"bad_response": 1}
            assert data(answer)["alike"][0]["nodes"] == 2
            assert all(line.isprintable() for line in text(answer).splitlines())
            assert not any(line.startswith("! forged") for line in text(answer).splitlines())
            assert len(json.dumps(answer.structured_content)) < 80_000


async def test_both_answer_only_what_their_schemas_promise() -> None:
    served_by = fleet(2, topology(Node("lost", "h100", faults=[fault("lost", 2)])))
    async with gateway(served_by) as fleet_client, agent(Node("n", "gb200")) as client:
        for role, each in (("gateway", fleet_client), ("agent", client)):
            (tool,) = (await each.list_tools()).tools
            for detail in ("summary", "full"):
                check(role, tool, (await ask(each, detail=detail)).structured_content)

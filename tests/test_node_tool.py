"""`describe_gpu_node` as a client has it, of a gateway over real agents on simulated nodes."""

from __future__ import annotations

import json
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_gpu.gpu.simulator import Node
from mcp_gpu.gpu.simulator.faults import Lost, Vanished, WholeNode
from mcp_gpu.node.surroundings import Surroundings, simulated
from mcp_gpu.tools.node import agent_tool
from support import served
from support.failures import claim
from support.fleet import Agent, inventory
from support.health import BLIND, blind
from support.kubeapi.documents import Document
from support.nodepage import (
    dra_device,
    event,
    gpu_node,
    gpu_pod,
    holder,
    holders,
    page,
    slice_of,
)

SEVEN = {"nvidia.com/gpu.count": "7"}


def machine(*faults: Any, **settings: Any) -> Node:
    return Node("n1", "h100", faults=faults, **settings)


def uuids(node: Node, *without: int) -> list[Document]:
    """A DRA driver's devices for the node's GPUs."""
    return [
        dra_device(f"gpu-{gpu.index}", uuid=gpu.answer("nvmlDeviceGetUUID"))
        for gpu in node.gpus
        if gpu.index not in without
    ]


def counts(told: dict[str, Any]) -> dict[str, int | None]:
    return {each["source"]: each["count"] for each in told["counts"]}


# --- one page ----------------------------------------------------------------------------------


async def test_a_well_node_is_told_on_one_page_and_nobody_disagrees() -> None:
    documents = [
        gpu_node(
            labels={"nvidia.com/mig.strategy": "none", "example.org/owner": "someone"},
            taints=[{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}],
        ),
        event("Rebooted", "Node n1 has been rebooted"),
        event("NodeNotReady", "long ago", at="12:00:00"),
        gpu_pod("worker-0", 3),
        gpu_pod("done", 4, phase="Succeeded"),
        gpu_pod("elsewhere", 8, node="n2"),
    ]
    async with page(machine(), *documents, expected=8) as here:
        text, told = await here.told()
        assert here.api is not None
        asked = {(each.verb, each.resource) for each in here.api.requests}
    assert told["verdict"] == "healthy"
    assert told["disagreements"] == []
    assert counts(told) == {
        "nvml": 8,
        "pci_bus": 8,
        "expected": 8,
        "capacity": 8,
        "allocatable": 8,
        "gfd_label": 8,
        "resource_slices": 0,
    }
    node = told["kubernetes"]
    assert (node["ready"], node["cordoned"], node["zone"]) == (True, False, "eu-west-1a")
    assert node["taints"] == ["nvidia.com/gpu=present:NoSchedule"]
    assert "example.org/owner" not in node["labels"]
    assert node["labels"]["nvidia.com/mig.strategy"] == "none"
    assert (node["kernel"], node["kubelet"]) == ("6.8.0-60-generic", "v1.34.2")
    assert told["allocated"] == {
        "resources": {"nvidia.com/gpu": 3},
        "guess": True,
        "source": "pods' requests",
        "pods": ["train/worker-0"],
        "pods_omitted": 0,
    }
    assert [(each["reason"], each["count"]) for each in told["events"]] == [("Rebooted", 1)]
    assert told["reach"]["via"] == "http"
    assert told["gaps"] == []
    assert told["unavailable"] == {}
    assert told["simulated"] is True
    assert len(text) <= 8_000
    for words in (
        "n1: HEALTHY  8x NVIDIA H100 80GB HBM3  via http",
        "SIMULATED",
        "nvidia.com/gpu 3 of 8 allocatable (GUESS by pods' requests)",
        "Warning Rebooted x1",
        "Ubuntu 24.04.2 LTS",
        "containerd://2.0.5",
    ):
        assert words in text, words
    # Four of them, however large the cluster.
    assert asked == {
        ("get", "nodes"),
        ("list", "events"),
        ("list", "resourceslices"),
        ("list", "pods"),
    }


async def test_an_agent_describes_its_own_node_without_anybody_else() -> None:
    node = machine(Lost(kind="lost", gpu=3))

    def tool(collector: Any) -> Any:
        return agent_tool("n1", collector, blind(), lambda: BLIND, lambda: simulated(node))

    async with served.agent(node, tool) as client:
        result = await client.call_tool("describe_gpu_node", {})
        refused = await client.call_tool("describe_gpu_node", {"node": "n2"})
    assert refused.is_error
    told = result.structured_content
    assert told is not None
    assert told["gpu_count"] == 8
    silent = [gpu for gpu in told["surroundings"]["bus"]["gpus"] if gpu["answers"] is False]
    assert [gpu["address"] for gpu in silent] == ["0000:86:00.0"]
    assert told["surroundings"]["kernel"] is None
    assert told["surroundings"]["unavailable"]["kernel"] == "the node is simulated"
    text = result.content[0].text  # type: ignore[union-attr]
    assert "PCI bus: 8 NVIDIA GPUs (NVML counts 8; fallen off: 0000:86:00.0)" in text
    assert "CRITICAL GPU 3 gpu_lost" in text


async def test_a_bus_that_does_not_answer_costs_the_rest_of_the_page_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mcp_gpu.tools.node.LOOK_SECONDS", 0.05)
    node, mended = machine(), threading.Event()

    def stuck() -> Surroundings:
        assert mended.wait(60)
        return simulated(node)

    def tool(collector: Any) -> Any:
        return agent_tool("n1", collector, blind(), lambda: BLIND, stuck)

    async with served.agent(node, tool) as client:
        for _ in range(2):  # the second finds the one thread still in use
            told = (await client.call_tool("describe_gpu_node", {})).structured_content
            assert told is not None
            assert told["health"]["verdict"] == "healthy"
            assert told["surroundings"]["bus"]["gpus"] is None
            assert "dead or being reset" in told["surroundings"]["bus"]["why"]
            assert told["surroundings"]["unavailable"].keys() >= {"kernel", "module_version"}
        mended.set()
        with anyio.fail_after(20):
            while (await client.call_tool("describe_gpu_node", {})).structured_content[  # type: ignore[index]
                "surroundings"
            ]["bus"]["gpus"] is None:
                await anyio.lowlevel.checkpoint()


async def test_what_the_kubelet_has_given_out_goes_before_what_pods_ask_for() -> None:
    told_by_agent = holders(
        "pod_resources",
        holder("worker-0", "GPU-a", "GPU-b"),
        holder("shares", "GPU-b", claims=["gpu-1"]),
        holder("monitor", claims=["gpu-1", "gpu-2"]),
        holder("none"),
    )
    known = (
        gpu_node(),
        gpu_pod("asks", 8),
        claim("shares", "gpu-1"),
        claim("monitor", "gpu-1", "gpu-2", admin=True),
    )
    async with page(machine(), *known, tools=[told_by_agent]) as here:
        text, told = await here.told()
        assert here.api is not None
        assert here.api.count("list", "pods") == 0
        assert here.api.count("get", "resourceclaims") == 2
    assert told["allocated"] == {
        "resources": {"nvidia.com/gpu": 2, "gpu.nvidia.com": 1},
        "guess": False,
        "source": "pod_resources",
        "pods": ["train/worker-0", "train/shares"],
        "pods_omitted": 0,
    }
    assert "nvidia.com/gpu 2 of 8 allocatable (by the kubelet's pod_resources)" in text

    denied = [("get", "resourceclaims")]
    async with page(machine(), *known, tools=[told_by_agent], denied=denied) as here:
        _, told = await here.told()
    assert told["allocated"]["resources"] == {"nvidia.com/gpu": 2, "gpu.nvidia.com": 2}
    assert {gap["grant"] for gap in told["gaps"]} == {"get resourceclaims.resource.k8s.io in train"}

    knows_nothing = holders("none")
    async with page(machine(), gpu_node(), gpu_pod("asks", 8), tools=[knows_nothing]) as here:
        _, told = await here.told()
    assert (told["allocated"]["guess"], told["allocated"]["pods"]) == (True, ["train/asks"])


async def test_each_node_is_looked_up_in_its_own_cluster() -> None:
    context = "arn:aws:eks:eu-west-1:1:cluster/a"
    async with page(machine(), gpu_node(), clusters=[context, "b"]) as here:
        (other,) = here.others
        await other.apply(gpu_node("n2"))
        _, told = await here.told(f"{context}/n1")
        assert (told["node"], told["kubernetes"]["name"]) == (f"{context}/n1", "n1")
        assert told["disagreements"] == []
        assert other.requests == []
        _, told = await here.told("b/n2")
        assert told["kubernetes"]["name"] == "n2"
        for name in ("n1", "b/n1", f"{context}/n2", "c/n1"):
            assert (await here.ask(name)).is_error, name


# --- the disagreements -------------------------------------------------------------------------


async def test_a_gpu_that_has_fallen_off_the_bus_is_named_with_what_else_follows() -> None:
    node = gpu_node(allocatable={"nvidia.com/gpu": 7})
    async with page(machine(Lost(kind="lost", gpu=3)), node) as here:
        text, told = await here.told()
    fallen, unhealthy = told["disagreements"]
    assert (fallen["code"], fallen["gpus"]) == ("fallen_off_bus", [3])
    assert "reboot" in fallen["fix"]
    assert (unhealthy["code"], unhealthy["gpus"]) == ("device_unhealthy", [3])
    assert "DISAGREE fallen_off_bus: 1 GPU has fallen off the PCI bus." in text
    assert told["verdict"] == "failed"


async def test_a_gpu_that_the_driver_could_not_start_is_on_the_bus_alone() -> None:
    missing = machine(Vanished(kind="vanished", gpu=3, on_bus=True))
    async with page(missing, gpu_node(capacity={"nvidia.com/gpu": 7}, labels=SEVEN)) as here:
        _, told = await here.told()
    (found,) = told["disagreements"]
    assert found["code"] == "not_started"
    assert found["evidence"][1] == "not among NVML's: 0000:86:00.0"
    assert (counts(told)["nvml"], counts(told)["pci_bus"]) == (7, 8)


async def test_a_device_that_the_plugin_never_takes_back_is_told_from_one_that_is_ill() -> None:
    node = gpu_node(allocatable={"nvidia.com/gpu": 7})
    async with page(machine(), node) as here:
        _, told = await here.told()
    (found,) = told["disagreements"]
    assert found["code"] == "device_never_recovered"
    assert found["evidence"][0] == "nvidia.com/gpu: 7 of 8 allocatable"
    assert "Restart the device plugin's pod on this node" in found["fix"]


async def test_a_label_that_nobody_has_renewed_is_stale() -> None:
    async with page(machine(gpus=4), gpu_node(capacity={"nvidia.com/gpu": 4})) as here:
        assert await here.codes() == ["gfd_label_stale"]


async def test_gpus_without_a_driver_are_seen_on_the_bus() -> None:
    node = gpu_node(capacity={}, labels={"nvidia.com/gpu.count": ""})
    async with page(machine(WholeNode(kind="driver_not_loaded")), node) as here:
        text, told = await here.told()
    (found,) = told["disagreements"]
    assert found["code"] == "driver_not_loaded"
    assert (counts(told)["nvml"], counts(told)["pci_bus"]) == (None, 8)
    assert "modprobe" in found["fix"]
    assert "module unknown: no nvidia kernel module is loaded" in text


async def test_gpus_that_nobody_hands_out_have_no_device_plugin() -> None:
    async with page(machine(), gpu_node(capacity={"nvidia.com/gpu": 0})) as here:
        assert await here.codes() == ["device_plugin_absent"]


async def test_slices_that_miss_a_gpu_are_stale_and_all_of_them_are_no_reason_to_speak() -> None:
    node = machine()
    dra = gpu_node(capacity={}, labels={"nvidia.com/gpu.count": ""})
    async with page(node, dra, slice_of(*uuids(node))) as here:
        _, told = await here.told()
        assert told["disagreements"] == []
        assert counts(told)["resource_slices"] == 8
        assert told["slices"][0]["devices"] == {"gpu": 8}
        assert here.api is not None
        await here.api.apply(slice_of(*uuids(node, 5), generation=2))
        _, told = await here.told()
        (found,) = told["disagreements"]
        assert (found["code"], found["gpus"]) == ("resource_slices_stale", [5])
        await here.api.apply(slice_of(*uuids(node), generation=3, slices=2))
        assert await here.codes() == ["resource_slices_incomplete"]


async def test_fewer_gpus_than_expected_are_missing_where_the_bus_has_them_no_more() -> None:
    gone = machine(Vanished(kind="vanished", gpu=3))
    seven = gpu_node(capacity={"nvidia.com/gpu": 7}, labels=SEVEN)
    async with page(gone, seven, expected=8) as here:
        assert await here.codes() == ["fewer_than_expected"]


async def test_what_was_cut_or_shared_is_no_disagreement() -> None:
    shared = gpu_node(
        capacity={"nvidia.com/gpu.shared": 32, "nvidia.com/gpu": 0},
        labels={"nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.sharing-strategy": "mps"},
    )
    async with page(machine(), shared) as here:
        assert await here.codes() == []
    cut = {0: ("1g.10gb",) * 7}
    mixed = gpu_node(
        capacity={"nvidia.com/gpu": 7, "nvidia.com/mig-1g.10gb": 7},
        labels={"nvidia.com/mig.strategy": "mixed"},
    )
    async with page(machine(mig=cut), mixed) as here:
        text, told = await here.told()
        assert told["disagreements"] == []
        assert "MIG on GPU 0: 7x 1g.10gb" in text


# --- halves ------------------------------------------------------------------------------------


async def test_kubernetes_half_stands_where_the_agent_is_silent() -> None:
    silent = Agent("n1", inventory("n1"))
    async with page(
        None, gpu_node(allocatable={"nvidia.com/gpu": 7}), others={"n1": silent}
    ) as here:
        text, told = await here.told()
    assert told["agent"] is None
    assert told["unavailable"]["agent"].startswith("the agent has not answered (agent_too_old)")
    assert told["verdict"] == "unknown"
    assert told["reach"]["failure"]["reason"] == "agent_too_old"
    assert counts(told)["nvml"] is None
    assert [each["code"] for each in told["disagreements"]] == ["device_unhealthy"]
    assert "n1: UNKNOWN  GPUs unknown" in text


async def test_the_page_says_how_its_agent_was_reached_or_how_it_was_not() -> None:
    async with page(machine(), gpu_node(), broken=["http"]) as here:
        text, told = await here.told()
    assert (told["reach"]["via"], told["reach"]["passed_over"]) == (
        "command",
        {"http": "unreachable"},
    )
    assert "passed over: http (unreachable): check_connectivity says more" in text
    async with page(machine(), gpu_node(), broken=["http", "command"]) as here:
        text, told = await here.told()
    attempts = {each["via"]: each["reason"] for each in told["reach"]["failure"]["attempts"]}
    assert attempts == {"http": "unreachable", "command": "unreachable"}
    assert "! The agent has not answered (unreachable): scripted Unreachable" in text
    assert "Not reached: check_connectivity says why, and what mends it" in text
    assert told["kubernetes"]["ready"] is True


async def test_the_agents_half_stands_without_kubernetes() -> None:
    async with page(machine(Lost(kind="lost", gpu=0)), kubernetes=False) as here:
        text, told = await here.told()
    assert told["kubernetes"] is None
    assert told["events"] is None
    assert told["slices"] is None
    assert told["allocated"] is None
    assert set(told["unavailable"]) == {"kubernetes", "slices", "events", "allocated"}
    assert counts(told)["capacity"] is None
    assert [each["code"] for each in told["disagreements"]] == ["fallen_off_bus"]
    assert "Not read: Kubernetes: this gateway has no API server to ask" in text


@pytest.mark.parametrize(
    ("verb", "resource", "field", "grant"),
    [
        ("get", "nodes", "kubernetes", "get nodes"),
        ("list", "events", "events", "list events in default"),
        ("list", "resourceslices", "slices", "list resourceslices.resource.k8s.io"),
        ("list", "pods", "allocated", "list pods"),
    ],
)
async def test_a_right_that_is_missing_is_a_gap_and_the_rest_stands(
    verb: str, resource: str, field: str, grant: str
) -> None:
    parts = {"kubernetes", "events", "slices", "allocated"}
    async with page(machine(), gpu_node(), denied=[(verb, resource)]) as here:
        text, told = await here.told()
    assert told[field] is None
    assert all(told[name] is not None for name in parts - {field})
    assert [gap["grant"] for gap in told["gaps"]] == [grant]
    assert told["unavailable"] == {field: f"forbidden: {grant}"}
    assert f"(grant: {grant})" in text
    assert told["verdict"] == "healthy"
    assert told["disagreements"] == []


async def test_a_node_that_has_no_agent_is_described_by_kubernetes() -> None:
    async with page(None, gpu_node("n7")) as here:
        _, told = await here.told("n7")
        assert told["unavailable"]["agent"] == "no agent is known on this node"
        assert told["kubernetes"]["name"] == "n7"
        for name in ("n8", "../secrets", "other/n7"):
            refused = await here.ask(name)
            assert refused.is_error
            said = refused.content[0].text  # type: ignore[union-attr]
            assert said.startswith(f'Unknown nodes: "{name}". Known: elsewhere.')
        assert here.api is not None
        assert all("secrets" not in each.resource for each in here.api.requests)


async def test_nothing_of_a_strangers_acts_on_a_terminal_and_the_page_is_never_long() -> None:
    long = "\x1b[2J" + "x" * 5_000
    node = gpu_node(
        labels={f"nvidia.com/gpu.strange-{number}": long for number in range(200)},
        taints=[{"key": f"k{n}", "value": "v" * 60, "effect": "NoSchedule"} for n in range(300)],
    )
    node["status"]["conditions"] += [
        {"type": f"Odd{number}", "status": "True", "reason": long, "message": long}
        for number in range(100)
    ]
    events = [event(f"Reason{number}", long) for number in range(300)]
    async with page(machine(), node, *events) as here:
        text, told = await here.told()
    assert len(text) <= 8_000
    assert len(json.dumps(told)) <= 60_000
    assert "\x1b" not in text + json.dumps(told, ensure_ascii=False)
    assert len(told["events"]) == 20

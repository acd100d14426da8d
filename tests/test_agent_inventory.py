"""`get_gpu_inventory` as an agent serves it: real binding, simulated boards, real MCP client."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp_types import CallToolResult

from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.model import READINGS
from mcp_gpu.gpu.recorder.recorder import Recorder
from mcp_gpu.gpu.simulator import Node, snapshot
from mcp_gpu.gpu.simulator.faults import (
    Ecc,
    Hang,
    Lost,
    NoPermission,
    RecoveryAction,
    Refused,
    WholeNode,
)
from mcp_gpu.node.boot import Boot
from mcp_gpu.node.watch import XidWatch
from mcp_gpu.registry import Tool
from mcp_gpu.tools import health, timeline, topology, xids
from mcp_gpu.tools.inventory import NodeInventory, agent_tool
from support import served
from support.health import BLIND
from support.results import data
from support.results import text as text_of
from support.schemas import check


def agent(node: Node) -> AbstractAsyncContextManager[Client]:
    """A client of an agent on this machine, once the agent has looked at it."""
    return served.agent(node, lambda collector: agent_tool(node.name, collector))


async def ask(client: Client, **arguments: Any) -> tuple[dict[str, Any], str]:
    result = await client.call_tool("get_gpu_inventory", arguments)
    assert isinstance(result, CallToolResult)
    (block,) = result.content
    assert block.type == "text"
    assert not result.is_error, block.text
    assert result.structured_content is not None
    return result.structured_content, block.text


async def test_every_gpu_is_listed_with_every_field_or_its_reason() -> None:
    async with agent(Node("n", "h100", driver="580.105.08")) as client:
        found, text = await ask(client)
    assert len(found["gpus"]) == found["gpu_count"] == 8
    for gpu in found["gpus"]:
        missing = {name for name in READINGS if gpu[name] is None}
        assert missing == set(gpu["unavailable"])
    first = found["gpus"][0]
    assert first["name"] == "NVIDIA H100 80GB HBM3"
    assert first["memory_total_bytes"] == 81559 * 2**20
    assert first["pci_bus_id"] == "00000000:53:00.0"
    assert found["driver_version"] == "580.105.08"
    assert found["cuda_version"] == "13.0"
    assert found["simulated"] is True
    assert found["attention"] == []
    assert "SIMULATED" in text
    assert text.count("  GPU ") == 8


async def test_a_summary_leaves_out_the_single_gpus() -> None:
    async with agent(Node("n", "t4")) as client:
        found, text = await ask(client, detail="summary")
    assert found["gpus"] == []
    assert [model["name"] for model in found["models"]] == ["Tesla T4"]
    assert "GPU 0" not in text


async def test_one_lost_gpu_hides_none_of_the_others() -> None:
    async with agent(Node("n", "h100", faults=(Lost(kind="lost", gpu=3),))) as client:
        found, text = await ask(client)
    states = [gpu["state"] for gpu in found["gpus"]]
    assert states == ["ok"] * 3 + ["lost"] + ["ok"] * 4
    assert found["gpus_lost"] == 1
    assert "GPU 3 lost" in found["attention"][0]
    assert "GPU 3 lost" in text
    assert found["gpus"][3]["unavailable"]["temperature_celsius"] == "gpu_lost"


async def test_a_gpu_lost_while_it_runs_keeps_its_identity() -> None:
    node = Node("n", "h100")
    async with agent(node) as client:
        before, _ = await ask(client)
        node.faults = (Lost(kind="lost", gpu=5),)
        while True:
            found, _ = await ask(client)
            if found["gpus"][5]["state"] == "lost":
                break
            await anyio.sleep(0.1)
    lost = found["gpus"][5]
    for name in ("uuid", "serial", "pci_bus_id", "name"):
        assert lost[name] == before["gpus"][5][name]
    assert lost["temperature_celsius"] is None


@pytest.mark.parametrize(
    ("kind", "state", "says"),
    [
        ("library_missing", "absent", "NVIDIA_VISIBLE_DEVICES"),
        ("driver_not_loaded", "absent", "DriverNotLoaded"),
        ("driver_mismatch", "failing", "LibRmVersionMismatch"),
        ("device_cgroup", "failing", "restart this pod"),
    ],
)
async def test_nvml_absent_and_nvml_failing_are_different_answers(
    kind: Any, state: str, says: str
) -> None:
    async with agent(Node("n", "h100", faults=(WholeNode(kind=kind),))) as client:
        found, text = await ask(client)
    assert found["state"] == state
    assert says.lower() in found["message"].lower()
    assert found["gpus"] == []
    assert found["gpu_count"] is None
    assert "GPUs unknown" in text


async def test_a_call_that_hangs_is_named_and_the_last_readings_are_told() -> None:
    node = Node("n", "h100")
    async with agent(node) as client:
        before, _ = await ask(client)
        node.faults = (Hang(kind="hang", seconds=20, call="nvmlDeviceGetPowerUsage", gpu=2),)
        found: dict[str, Any] = {"message": None}
        while not found["message"]:
            found, text = await ask(client)
        assert "GPU 2" in found["message"]
        assert "nvmlDeviceGetPowerUsage" in found["message"]
        assert [gpu["uuid"] for gpu in found["gpus"]] == [gpu["uuid"] for gpu in before["gpus"]]
        assert found["message"] in text
        node.faults = ()


async def test_the_drivers_own_verdict_is_brought_to_attention() -> None:
    node = Node("n", "h100", faults=(Ecc(kind="ecc", gpu=1, uncorrected=3),))
    async with agent(node) as client:
        found, _ = await ask(client)
    assert found["gpus"][1]["ecc_uncorrected_volatile"] == 3


async def test_once_the_driver_is_gone_nothing_of_before_is_told_as_current() -> None:
    node = Node("n", "h100")
    async with agent(node) as client:
        before, _ = await ask(client)
        node.faults = (WholeNode(kind="driver_not_loaded"),)
        found: dict[str, Any] = {"state": "ok"}
        while found["state"] == "ok":
            found, text = await ask(client)
    assert (found["state"], found["gpu_count"], found["driver_version"]) == ("absent", None, None)
    assert [gpu["uuid"] for gpu in found["gpus"]] == [gpu["uuid"] for gpu in before["gpus"]]
    assert {gpu["state"] for gpu in found["gpus"]} == {"unreadable"}
    assert (found["gpus_lost"], found["age_seconds"]) == (8, None)
    assert found["attention"] == [found["message"]], "one trouble, told once"
    assert "before (NVML absent)" in text


def inventory(node: Node, *, age_seconds: float = 0.0) -> NodeInventory:
    """Of one reading that was taken so long ago."""
    found = snapshot(node, clock=lambda: time.time() - age_seconds)
    return NodeInventory.of("n", found, "full")


def test_old_readings_are_brought_to_attention_whoever_waits() -> None:
    assert inventory(Node("n", "t4"), age_seconds=20).attention == ()
    old = inventory(Node("n", "t4"), age_seconds=61)
    assert old.message is not None
    assert "readings are 61 s old" in old.message
    assert old.attention == (old.message,)


def test_after_the_clock_was_set_back_the_age_is_unknown_not_zero() -> None:
    assert inventory(Node("n", "t4"), age_seconds=-600).age_seconds is None


def test_a_gpu_that_another_container_was_given_is_not_lost() -> None:
    found = inventory(
        Node("n", "h100", gpus=2, faults=(NoPermission(kind="no_permission", gpu=1),))
    )
    assert found.gpus_lost == 0
    assert "may not open the GPU" in found.attention[0]


def test_a_gpu_that_refuses_every_reading_needs_attention() -> None:
    found = inventory(Node("n", "h100", faults=(Refused(kind="refused", gpu=1),)))
    assert (found.state, found.gpus_lost) == ("ok", 1)
    assert found.attention[0].startswith("GPU 1 unreadable")


def test_mig_devices_that_cannot_be_listed_need_attention() -> None:
    call = "nvmlDeviceGetMigDeviceHandleByIndex"
    fault = Refused(kind="refused", gpu=0, return_code=4, call=call)
    found = inventory(Node("n", "h100", mig={0: ("1g.10gb",)}, faults=(fault,)))
    assert found.attention == ("GPU 0 MIG devices cannot all be listed: no_permission",)


@pytest.mark.parametrize(("action", "warned"), [(1, True), (4, True), (6, True), (2, False)])
def test_advice_to_reset_says_that_this_agent_must_be_stopped(action: int, warned: bool) -> None:
    fault = RecoveryAction(kind="recovery_action", gpu=0, action=action)
    (note,) = inventory(Node("n", "h100", faults=(fault,))).attention
    assert ("this agent included" in note) == warned


async def test_an_idle_healthy_board_needs_no_attention() -> None:
    """What naive rules call sick: x8 links, PCIe replays, power caps (published captures)."""
    for profile in ("t4", "a100-40", "a100-80", "h100", "h200", "b200", "gb200", "l4", "l40s"):
        async with agent(Node("n", profile, load=0.0)) as client:
            found, _ = await ask(client)
        assert found["attention"] == [], profile


async def test_the_agent_answers_what_its_schema_promises() -> None:
    async with agent(Node("n", "gb200", faults=(Lost(kind="lost", gpu=0),))) as client:
        listed = (await client.list_tools()).tools
        found, _ = await ask(client)
    check("agent", listed[0], found)


@pytest.mark.parametrize(
    "name",
    [
        "get_gpu_inventory",
        "get_gpu_health",
        "get_gpu_timeline",
        "get_nvlink_topology",
        "analyze_xid_errors",
    ],
)
async def test_a_simulated_node_says_so_before_it_was_ever_read(name: str) -> None:
    node = Node("n", "t4", faults=(Hang(kind="hang", seconds=3600),))
    log = node.kernel_log
    watch = XidWatch(log.open, boot=Boot(log.boot_id, log.started_at))
    makes: dict[str, Callable[[Collector], Tool[Any]]] = {
        "get_gpu_inventory": lambda collector: agent_tool("n", collector),
        "get_gpu_health": lambda collector: health.agent_tool("n", collector, watch, lambda: BLIND),
        "get_nvlink_topology": lambda collector: topology.agent_tool("n", collector),
        "analyze_xid_errors": lambda collector: xids.agent_tool("n", collector, watch),
        "get_gpu_timeline": lambda collector: timeline.agent_tool(
            "n", collector, Recorder(), watch
        ),
    }
    async with served.agent(node, makes[name], looked=False) as client:
        answer = await client.call_tool(name, {})
        node.faults = ()
    assert isinstance(answer, CallToolResult)
    assert data(answer)["simulated"] is True
    assert "SIMULATED: no real hardware" in text_of(answer)

"""`get_gpu_processes` through a real MCP client: of one node, and of a fleet."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import pytest
from mcp import Client
from mcp_types import CallToolResult

from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.simulator import Node
from mcp_gpu.gpu.simulator.faults import (
    Fault,
    Hang,
    HiddenProcesses,
    LeakedMemory,
    Lost,
    Refused,
    WholeNode,
)
from mcp_gpu.gpu.simulator.processes import Process
from mcp_gpu.node import occupants
from mcp_gpu.node.holdings import Device, Holder, Holdings
from mcp_gpu.node.occupants import Occupants
from mcp_gpu.node.process_pods import PodProcess, ProcessPods, Whose
from mcp_gpu.node.simulated_processes import SimulatedProcesses
from mcp_gpu.registry import Tool
from mcp_gpu.tools.fleet_processes import gateway_tool
from mcp_gpu.tools.processes import AgentArguments, agent_tool, seen
from mcp_gpu.tools.processes_model import NodeProcesses
from support import served
from support.fleet import Agent, Path
from support.results import data, text
from support.schemas import check
from transports.errors import Gone

gateway = partial(served.gateway, gateway_tool)

MIB = 1 << 20
POD = "0b9b7c34-3a5e-4f0e-8a51-0ef1c5d8a001"
OTHER = "0b9b7c34-3a5e-4f0e-8a51-0ef1c5d8a002"
CONTAINER = "c6" * 32


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests is no driver that hangs."""
    monkeypatch.setattr(occupants, "READ_SECONDS", 20.0)


def process(pid: int, gpu: int = 0, **changes: Any) -> Process:
    settings = {"memory_mib": 1000, "pod_uid": UUID(POD), "container_id": CONTAINER}
    return Process(gpu=gpu, pid=pid, **(settings | changes))


def board(*processes: Process, faults: Sequence[Fault] = (), **changes: Any) -> Node:
    settings = {"gpus": 2, "processes": processes, "faults": faults}
    return Node("n", "h100", **(settings | changes))


def device(gpu: int) -> Device:
    return Device(
        id=f"GPU-{gpu}", resource="nvidia.com/gpu", gpu_uuid=f"GPU-{gpu}", gpu_index=gpu,
        mig_uuid=None, mig_profile=None, replica=None,
    )  # fmt: skip


def holder(pod: str, uid: str | None, *gpus: int, container: str = "main") -> Holder:
    return Holder(
        namespace="ml", pod=pod, pod_uid=uid, container=container,
        devices=tuple(map(device, gpus)), claims=(),
    )  # fmt: skip


def holds(*holders: Holder) -> Callable[[], Awaitable[Holdings]]:
    async def holdings() -> Holdings:
        return Holdings(source="pod_resources", why="", holders=holders)

    return holdings


def agent(
    node: Node,
    holdings: Callable[[], Awaitable[Holdings]] | None = None,
    whose: Whose | None = None,
    *,
    looked: bool = True,
) -> AbstractAsyncContextManager[Client]:
    """A client of an agent on this machine."""

    def make(collector: Collector) -> Tool[AgentArguments]:
        looking = Occupants(collector, whose or SimulatedProcesses(node))
        return agent_tool(node.name, collector, looking, holdings)

    return served.agent(node, make, looked=looked)


async def ask(client: Client, **arguments: Any) -> CallToolResult:
    result = await client.call_tool("get_gpu_processes", arguments)
    assert isinstance(result, CallToolResult)
    return result


async def told(node: Node, *args: Any, **arguments: Any) -> tuple[dict[str, Any], str]:
    """Data and text of one answer."""
    async with agent(node, *args) as client:
        answer = await ask(client, **arguments)
    return data(answer), text(answer)


async def test_a_process_is_told_with_its_pod_and_its_share_of_the_gpu() -> None:
    node = board(process(7, utilization=40, name="trainer", user_id=1000))
    found, said = await told(node, holds(holder("train-0", POD, 0)))
    assert (found["state"], found["processes_count"], found["strays"]) == ("busy", 1, 0)
    (row,) = found["processes"]
    assert (row["command"], row["memory_bytes"], row["sm_percent"]) == ("trainer", 1000 * MIB, 40)
    assert (row["namespace"], row["pod"], row["container"]) == ("ml", "train-0", "main")
    assert (row["pod_uid"], row["container_id"], row["user_id"]) == (POD, CONTAINER, 1000)
    assert row["stray"] is False
    first, second = found["gpus"]
    assert (first["processes"], first["unaccounted_memory_bytes"]) == (1, 0)
    assert (second["processes"], second["unavailable"]) == (0, {})
    assert 'GPU 0  pid 7  "trainer"  1.0 GiB  40 % busy  pod ml/train-0 (main)' in said
    assert said.startswith("n: 1 process on GPU 0 of 2")
    assert found["simulated"]
    assert "SIMULATED" in said


async def test_every_null_has_its_reason() -> None:
    node = board(
        process(7, memory_mib=None),
        process(8, gpu=1, pod_uid=None, container_id=None),
        faults=(Refused(kind="refused", gpu=1, return_code=3, call="*ProcessUtilization"),),
    )
    found, _ = await told(node)
    for row in found["processes"]:
        nulls = {name for name, value in row.items() if value is None} - {"mig_uuid"}
        assert nulls == set(row["unavailable"])
    for gpu in found["gpus"]:
        assert {name for name, value in gpu.items() if value is None} == set(gpu["unavailable"])
    rows = {row["pid"]: row["unavailable"] for row in found["processes"]}
    assert rows[7]["memory_bytes"] == rows[8]["sm_percent"] == "not_supported"
    assert rows[8]["pod_uid"] == "of_no_pod"
    assert found["gpus"][0]["unavailable"] == {"unaccounted_memory_bytes": "not_supported"}


async def test_what_is_outside_of_any_allocation_comes_first() -> None:
    node = board(
        process(1, memory_mib=9000),
        process(2, gpu=1, memory_mib=10),  # of the same pod, which holds the other GPU
        process(3, pod_uid=None, container_id=None, memory_mib=20),
    )
    found, said = await told(node, holds(holder("train-0", POD, 0), holder("b", OTHER, 1)))
    assert [(row["pid"], row["stray"]) for row in found["processes"]] == [
        (3, True), (2, True), (1, False),
    ]  # fmt: skip
    assert (found["state"], found["strays"]) == ("attention", 2)
    assert "GPU 0, 1: 2 processes are on a GPU that nobody gave them" in said
    assert "STRAY on GPU 0  pid 3" in said
    assert "the node's own" in said


async def test_who_is_outside_is_unknown_where_holders_are() -> None:
    nobody = Holdings(source="none", why="no socket here")

    async def none() -> Holdings:
        return nobody

    unsure = holds(holder("train-0", None, 0))
    for holdings, stray in ((None, None), (none, None), (holds(), None), (unsure, False)):
        found, _ = await told(board(process(7)), holdings)
        (row,) = found["processes"]
        assert row["stray"] is stray
        assert (found["strays"] is None) == (stray is None)
        assert ("strays" in found["unavailable"]) == (stray is None)


async def test_a_process_on_several_gpus_is_told_on_one_line_and_counted_once() -> None:
    node = board(*(process(7, gpu=gpu, memory_mib=2048) for gpu in range(8)), gpus=8)
    found, said = await told(node)
    assert (len(found["processes"]), found["processes_count"]) == (8, 1)
    assert 'GPU 0-7  pid 7  "python3"  16.0 GiB' in said
    assert said.startswith("n: 1 process on GPU 0-7 of 8")


async def test_outside_of_the_host_s_process_namespace_nothing_is_claimed() -> None:
    hidden = HiddenProcesses(kind="hidden_processes")
    found, said = await told(board(process(7), faults=(hidden,)), holds(holder("a", POD, 0)))
    assert (found["state"], found["host_processes"]) == ("unknown", False)
    assert (found["processes"], found["processes_count"], found["strays"]) == ([], None, None)
    assert [gpu["processes"] for gpu in found["gpus"]] == [None, None]
    assert found["gpus"][0]["unaccounted_memory_bytes"] == 1000 * MIB
    assert "GPU 0: 1.0 GiB held by processes that cannot be seen, or leaked" in said
    assert "an empty list means nothing" in said
    assert "hostPID: true" in said
    assert "no processes" not in said


class Blind(ProcessPods):
    """Of an agent in a namespace of its own, whose driver tells the host's pids all the same."""

    def blind(self) -> str:
        return "a process namespace of its own"

    async def look_up(self, pids: Iterable[int], read_at: float) -> Mapping[int, PodProcess]:
        raise AssertionError("pid 7 is somebody else here")


async def test_pids_of_another_namespace_are_never_looked_up() -> None:
    found, _ = await told(board(process(7, utilization=40)), None, Blind())
    (row,) = found["processes"]
    assert (row["pid"], row["command"], row["pod_uid"], row["sm_percent"]) == (7, None, None, None)
    for name in ("command", "pod_uid", "user_id", "sm_percent"):
        assert row["unavailable"][name] == "pid_namespace"


async def test_memory_that_nobody_holds_is_told_where_everybody_is_seen() -> None:
    leaked = LeakedMemory(kind="leaked_memory", gpu=1, mib=8192)
    found, said = await told(board(process(7), faults=(leaked,)))
    assert found["state"] == "attention"
    assert found["gpus"][1]["unaccounted_memory_bytes"] == 8192 * MIB
    assert "GPU 1: 8.0 GiB are held by no process of this node" in said
    little = LeakedMemory(kind="leaked_memory", gpu=1, mib=100)
    found, said = await told(board(process(7), faults=(little,)))
    assert (found["state"], found["attention"]) == ("busy", [])


async def test_a_driver_that_lists_wrong_processes_is_not_believed() -> None:
    found, said = await told(board(process(7), driver="535.54.03"))
    assert (found["processes"], found["processes_count"]) == ([], None)
    assert "drivers 535.43 to 535.86 list wrong processes" in said
    assert "processes unknown: driver_defect" in said


async def test_one_lost_gpu_is_unknown_and_hides_no_other() -> None:
    node = board(process(7, gpu=1), faults=(Lost(kind="lost", gpu=0),))
    found, said = await told(node)
    assert [gpu["processes"] for gpu in found["gpus"]] == [None, 1]
    assert found["state"] == "unknown"
    assert "! GPU 0: processes unknown: gpu_lost" in said


async def test_without_a_driver_it_is_said_why() -> None:
    found, said = await told(board(faults=(WholeNode(kind="driver_not_loaded"),)))
    assert (found["state"], found["processes"], found["processes_count"]) == ("unknown", [], None)
    assert "DriverNotLoaded" in said


async def test_while_nvml_hangs_the_last_ones_are_told_with_their_age(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(occupants, "MAX_AGE_SECONDS", 0.0)
    node = board(process(7))
    async with agent(node) as client:
        await ask(client)
        monkeypatch.setattr(occupants, "READ_SECONDS", 0.05)
        node.faults = (Hang(kind="hang", seconds=3600, call="*RunningProcesses_v3"),)
        found = data(await ask(client))
        node.faults = ()
    assert [row["pid"] for row in found["processes"]] == [7]
    assert found["age_seconds"] is not None


async def test_before_the_first_reading_nothing_is_claimed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(occupants, "READ_SECONDS", 0.05)
    node = board(process(7), faults=(Hang(kind="hang", seconds=3600),))
    async with agent(node, looked=False) as client:
        answer = await ask(client)
        node.faults = ()
    found = data(answer)
    assert (found["state"], found["processes"], found["processes_count"]) == ("unknown", [], None)
    assert found["unavailable"]["processes"] == "processes have not been read yet"
    assert "no processes" not in text(answer)


async def test_many_processes_are_bounded_and_the_largest_are_told() -> None:
    crowd = [process(pid, memory_mib=pid, name="\x1b[2J" + "x" * 60) for pid in range(1, 401)]
    found, said = await told(board(*crowd))
    assert len(found["processes"]) == 100
    assert (found["processes_omitted"], found["processes_count"]) == (300, 400)
    assert found["processes"][0]["pid"] == 400
    assert len(said) <= 8000
    assert "\x1b" not in said
    assert "more line" in said
    found, _ = await told(board(*crowd), limit=200)
    assert len(json.dumps(found)) < 256 * 1024


async def test_an_allocation_is_told_which_processes_are_of_which_pod() -> None:
    node = board(process(1), process(2, gpu=1, pod_uid=None, container_id=None))
    heard: list[Any] = []

    def make(collector: Collector) -> Tool[AgentArguments]:
        looking = Occupants(collector, SimulatedProcesses(node))
        heard.append(seen(collector, looking))
        return agent_tool("n", collector, looking)

    async with served.agent(node, make):
        with anyio.fail_after(20):
            found = await heard[0]()
    assert [(each.pid, each.gpu_index, each.pod_uid) for each in found.processes] == [
        (1, 0, POD), (2, 1, None),
    ]  # fmt: skip
    assert found.why == ""


# --- the fleet -------------------------------------------------------------------------------


class ProcessAgent(Agent):
    """An agent that answers as a real one did."""

    def __init__(self, node: str, found: dict[str, Any]) -> None:
        super().__init__(
            node,
            data=NodeProcesses(**found | {"node": node}),
            tool="get_gpu_processes",
            arguments=AgentArguments,
            result=NodeProcesses,
        )


async def kinds() -> dict[str, dict[str, Any]]:
    """Answers of nodes of every state."""
    leaked = LeakedMemory(kind="leaked_memory", gpu=1, mib=8192)
    hidden = HiddenProcesses(kind="hidden_processes")
    nodes = {
        "leaky": board(process(7), faults=(leaked,)),
        "blind": board(process(7), faults=(hidden,)),
        "busy": board(process(7), process(8, gpu=1)),
        "idle": board(),
    }
    return {name: (await told(node))[0] for name, node in nodes.items()}


async def test_a_fleet_tells_what_asks_for_a_look_first() -> None:
    answers = await kinds()
    agents: dict[str, Agent] = {name: ProcessAgent(name, found) for name, found in answers.items()}
    agents["gone"] = ProcessAgent("gone", answers["idle"])
    http = Path("http", agents)
    http.probe_errors["gone"] = Gone
    async with gateway(agents, http) as client:
        answer = await ask(client)
        everything = data(await ask(client, detail="full"))
        one = data(await ask(client, nodes=["idle"]))
    found, said = data(answer), text(answer)
    assert [node["node"] for node in found["nodes"]] == ["leaky", "blind", "busy"]
    assert found["nodes_by_state"] == {"attention": 1, "unknown": 2, "busy": 1, "idle": 1}
    assert (found["processes_count"], found["strays"]) == (3, 0)
    assert found["unaccounted_memory_bytes"] == (8192 + 1000) * MIB
    assert said.startswith("5 nodes: 1 attention, 2 unknown, 1 busy, 1 idle; 3 processes seen")
    assert "! gone: " in said
    assert "! blind: processes unknown: a simulated process namespace of its own" in said
    assert "GPU 1: 8.0 GiB are held by no process" in said
    assert [node["node"] for node in everything["nodes"]] == ["leaky", "blind", "busy", "idle"]
    assert [node["node"] for node in one["nodes"]] == ["idle"]


async def test_a_fleet_tells_of_which_gpu_nothing_is_known_and_why() -> None:
    lost = board(process(7), gpus=2, faults=(Lost(kind="lost", gpu=1),))
    agents: dict[str, Agent] = {"half": ProcessAgent("half", (await told(lost))[0])}
    async with gateway(agents) as client:
        for detail in ("summary", "full"):
            answer = await ask(client, detail=detail)
            assert data(answer)["nodes"][0]["state"] == "unknown"
            assert "  ! GPU 1: processes unknown: " in text(answer)


async def test_nodes_whose_processes_cannot_be_seen_take_little_room() -> None:
    blind = (await kinds())["blind"]
    agents: dict[str, Agent] = {
        f"n{each:02}": ProcessAgent(f"n{each:02}", blind) for each in range(60)
    }
    async with gateway(agents) as client:
        answer = await ask(client, limit=60)
        whole = data(await ask(client, nodes=["n00"], detail="full"))
    found = data(answer)
    assert len(found["nodes"]) >= 20
    assert {gpu for node in found["nodes"] for gpu in node["gpus"]} == set()
    assert whole["nodes"][0]["gpus"] != []


async def test_many_nodes_fit_and_pages_tell_each_of_them_once() -> None:
    answers = await kinds()
    names = [f"node-{number:03}" for number in range(60)]
    agents: dict[str, Agent] = {
        name: ProcessAgent(name, answers[("busy", "leaky", "blind", "busy")[number % 4]])
        for number, name in enumerate(names)
    }
    listed: list[dict[str, Any]] = []
    cursor: str | None = None
    async with gateway(agents) as client:
        while True:
            answer = await ask(client, limit=100, cursor=cursor)
            found = data(answer)
            assert len(text(answer)) < 8_000
            assert len(json.dumps(found)) < 40_000
            assert found["processes_count"] == 2 * 30 + 15
            listed += found["nodes"]
            cursor = found["next_cursor"]
            if cursor is None:
                break
    assert sorted(node["node"] for node in listed) == names
    assert [node["state"] for node in listed] == (
        ["attention"] * 15 + ["unknown"] * 15 + ["busy"] * 30
    )


@pytest.mark.parametrize("cursor", ["", "nonsense", "lost node"])
async def test_a_cursor_of_another_tool_is_refused(cursor: str) -> None:
    agents: dict[str, Agent] = {"a": ProcessAgent("a", (await kinds())["idle"])}
    async with gateway(agents) as client:
        refused = await ask(client, cursor=cursor)
    assert refused.is_error


async def test_answers_keep_to_their_schemas() -> None:
    answers = await kinds()
    agents: dict[str, Agent] = {name: ProcessAgent(name, found) for name, found in answers.items()}
    for role, connecting in (("agent", agent(board(process(7)))), ("gateway", gateway(agents))):
        async with connecting as client:
            (tool,) = (await client.list_tools()).tools
            found = data(await ask(client))
        check(role, tool, found)

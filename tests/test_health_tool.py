"""`get_gpu_health` through a real MCP client: of one node, and of a fleet."""

from __future__ import annotations

import json
import time
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp_types import CallToolResult
from pydantic import TypeAdapter

from mcp_gpu.gpu.health.assess import assess
from mcp_gpu.gpu.history import Past
from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.simulator import Node, snapshot, snapshots
from mcp_gpu.gpu.simulator.faults import (
    Ecc,
    Fault,
    Hang,
    Lost,
    NoPermission,
    Refused,
    RowRemap,
    WholeNode,
)
from mcp_gpu.gpu.vitals import VITALS_READINGS
from mcp_gpu.gpu.xid.model import XidEvent
from mcp_gpu.node.sight import Sense, Sight
from mcp_gpu.node.watch import XidWatch
from mcp_gpu.tools.fleet_health import gateway_tool
from mcp_gpu.tools.health import AgentArguments, agent_tool
from mcp_gpu.tools.health import text as one_text
from mcp_gpu.tools.health_model import NodeHealth
from support import served
from support.fleet import Agent, Path, inventory
from support.health import BLIND, HealthAgent, assessment, blind, finding, fleet
from support.results import data, text
from support.schemas import check
from transports.errors import Gone, Unreachable

gateway = partial(served.gateway, gateway_tool)

FAULT: TypeAdapter[Fault] = TypeAdapter(Fault)

NO_LOG = Sense(
    name="kernel_log", works=False, why="no permission to read /dev/kmsg", unlocks="Xids 79"
)


def agent(
    node: Node, sight: Sight = BLIND, *, looked: bool = True, watch: XidWatch | None = None
) -> AbstractAsyncContextManager[Client]:
    """A client of an agent on this machine, once the agent has looked at it, or at once."""
    return served.agent(
        node,
        lambda collector: agent_tool(node.name, collector, watch or blind(), lambda: sight),
        looked=looked,
    )


async def ask(client: Client, **arguments: Any) -> CallToolResult:
    result = await client.call_tool("get_gpu_health", arguments)
    assert isinstance(result, CallToolResult)
    return result


def places(found: dict[str, Any]) -> list[tuple[str, int | None]]:
    return [(each["severity"], each["gpu_index"]) for each in found["findings"]]


@pytest.mark.parametrize("profile", ["h100", "h200", "b200", "a100-80", "l40s", "t4"])
async def test_a_healthy_node_is_told_in_a_few_words(profile: str) -> None:
    no_pods = Sense(name="pod_resources", works=False, why="no socket", unlocks="Pods")
    sight = Sight(uid=0, driver_version=None, senses=(NO_LOG, no_pods), missing_symbols=())
    async with agent(Node("gpu-node-0001", profile, gpus=8), sight) as client:
        answer = await ask(client)
        warnings = data(await ask(client, severity="warning"))
    found = data(answer)
    assert (found["verdict"], found["gpus"]) == ("healthy", [])
    assert {each["severity"] for each in found["findings"]} <= {"info"}
    assert warnings["findings"] == []
    assert found["gpus_by_verdict"] == {"failed": 0, "degraded": 0, "unknown": 0, "healthy": 8}
    assert found["unseen"] == {"kernel_log": "no permission to read /dev/kmsg"}
    assert text(answer).startswith("gpu-node-0001: HEALTHY  8 GPUs: 8 healthy  driver ")
    assert "Xids may be missing: kernel_log (no permission to read /dev/kmsg)" in text(answer)
    assert "SIMULATED" in text(answer)
    assert len(text(answer)) < 600


async def test_a_lost_gpu_is_named_with_what_to_do_and_hides_no_other() -> None:
    async with agent(Node("n", "h100", faults=(Lost(kind="lost", gpu=3),))) as client:
        answer = await ask(client)
    found = data(answer)
    assert found["verdict"] == "failed"
    assert found["gpus_by_verdict"] == {"failed": 1, "degraded": 0, "unknown": 0, "healthy": 7}
    (gpu,) = found["gpus"]
    assert (gpu["gpu_index"], gpu["verdict"]) == (3, "failed")
    assert places(found)[0] == ("critical", 3)
    first = found["findings"][0]
    assert f"CRITICAL GPU 3 {first['code']}: {first['title']}" in text(answer)
    assert f"  do: {first['action']}: {first['advice']}" in text(answer)


async def test_a_gpu_that_cannot_be_read_is_a_finding_and_no_gap() -> None:
    async with agent(Node("n", "h100", faults=(Lost(kind="lost", gpu=3),))) as client:
        lost = await ask(client)
    assert "GpuIsLost" not in text(lost).partition("Not checked")[2]
    assert "readings" not in {each["check"] for each in data(lost)["not_checked"]}
    (gpu,) = data(lost)["gpus"]
    assert "GpuIsLost" in gpu["not_checked"]["readings"]


async def test_a_driver_that_refuses_is_one_gap_and_not_one_more_per_gpu() -> None:
    node = Node("n", "h100", gpus=2)
    async with agent(node) as client:
        node.faults = (WholeNode(kind="driver_mismatch"),)
        with anyio.fail_after(20):
            while (found := data(await ask(client)))["verdict"] != "failed":
                await anyio.sleep(0.01)
    assert found["gpus_by_verdict"]["unknown"] == 2
    assert [each["check"] for each in found["not_checked"]] == ["gpus"]


async def test_a_gpu_that_may_not_be_opened_is_a_gap() -> None:
    faults = (NoPermission(kind="no_permission", gpu=1),)
    async with agent(Node("n", "h100", gpus=2, faults=faults)) as client:
        answer = await ask(client, severity="warning")
    assert data(answer)["verdict"] == "unknown"
    assert "readings on GPU 1: NoPermission" in text(answer)


async def test_an_xid_of_this_boot_counts_though_the_readings_are_well() -> None:
    watch = blind()
    for boot, code in ((watch.boot_id, 119), ("1" * 32, 79)):
        event = XidEvent(code, time.time(), "kernel_log", bus_id="0000:53:00", boot_id=boot)
        watch.log.add(event)
    async with agent(Node("n", "h100", driver="535.183.06"), watch=watch) as client:
        found = data(await ask(client))
    first = found["findings"][0]
    assert (first["code"], first["gpu_index"], found["verdict"]) == ("xid", 0, "failed")
    assert [each["value"] for each in first["evidence"]] == [119], "79 was in another boot"


async def test_what_is_less_severe_than_asked_for_is_counted() -> None:
    faults = (Lost(kind="lost", gpu=3), Ecc(kind="ecc", gpu=1, uncorrected=3))
    async with agent(Node("n", "h100", faults=faults)) as client:
        all_of_it = data(await ask(client))
        worst = await ask(client, severity="critical")
    found = data(worst)
    severe = [each for each in all_of_it["findings"] if each["severity"] == "critical"]
    assert [each["code"] for each in found["findings"]] == [each["code"] for each in severe]
    hidden = len(all_of_it["findings"]) - len(severe)
    assert found["findings_hidden"] == hidden > 0
    assert found["gpus_by_verdict"] == all_of_it["gpus_by_verdict"]
    assert f"{hidden} finding" in text(worst)


async def test_a_node_with_everything_wrong_is_told_within_bounds() -> None:
    sick = [
        finding(f"kind_{number:02}", gpu=gpu, advice="x" * 300)
        for gpu in range(16)
        for number in range(20)
    ]
    one = HealthAgent("n", assessment(*sick, gpus=16))
    for arguments in (AgentArguments(), AgentArguments(detail="full")):
        health = one.answer(arguments)
        assert isinstance(health, NodeHealth)
        assert (len(health.findings), health.findings_omitted) == (100, 220)
        assert (
            len(one_text(health, arguments)) <= {"summary": 8_000, "full": 30_000}[arguments.detail]
        )
    assert "more lines in the structured content" in one_text(health, AgentArguments())
    async with gateway({"n": one}) as client:
        for detail in ("summary", "full"):
            (node,) = data(await ask(client, detail=detail))["nodes"]
            assert len(node["findings"]) + node["findings_omitted"] == 320


async def test_detail_full_has_every_gpu_and_its_readings() -> None:
    async with agent(Node("n", "h100")) as client:
        brief, answer = data(await ask(client)), await ask(client, detail="full")
    found = data(answer)
    assert brief["readings"] == brief["gpus"] == []
    assert [gpu["gpu_index"] for gpu in found["gpus"]] == list(range(8))
    assert [readings["gpu_index"] for readings in found["readings"]] == list(range(8))
    for readings in found["readings"]:
        assert readings["values"].keys() | (readings["unavailable"].keys() - {"links"}) == {
            *VITALS_READINGS
        }
        links = [index for each in readings["links"] for index in each["links"]]
        assert sorted(links) == list(range(18))
    assert len(json.dumps(found)) < 40_000
    assert text(answer).count("  HEALTHY  NVIDIA H100 80GB HBM3  ") == 8


@pytest.mark.parametrize("kind", ["library_missing", "driver_not_loaded", "driver_mismatch"])
async def test_a_node_without_nvml_is_not_healthy(kind: Any) -> None:
    async with agent(Node("n", "h100", faults=(WholeNode(kind=kind),))) as client:
        answer = await ask(client)
    found = data(answer)
    assert found["verdict"] != "healthy"
    assert found["message"]
    assert found["message"] in text(answer) or found["findings"]


async def test_a_node_none_of_whose_readings_can_be_had_is_unknown() -> None:
    faults = tuple(Refused(kind="refused", gpu=gpu, return_code=3) for gpu in range(8))
    async with agent(Node("n", "h100", faults=faults)) as client:
        found = data(await ask(client))
    assert found["verdict"] == "unknown"
    assert found["gpus_by_verdict"]["unknown"] == 8


@pytest.mark.parametrize("from_the_start", [True, False])
async def test_where_nvml_hangs_nobody_waits_for_it(from_the_start: bool) -> None:
    hang = Hang(kind="hang", seconds=3600)
    node = Node("n", "h100", faults=(hang,) if from_the_start else ())
    async with agent(node, looked=not from_the_start) as client:
        node.faults = (hang,)
        found: dict[str, Any] = {"waiting": None}
        while found["waiting"] is None:
            with anyio.fail_after(30):  # an hour less than the call hangs
                answer = await ask(client)
            found = data(answer)
        node.faults = ()
    assert found["verdict"] == ("unknown" if from_the_start else "healthy")
    assert found["gpus_by_verdict"]["healthy"] == (0 if from_the_start else 8)
    first = found["findings"][0]
    assert first["code"] == "nvml_not_answering"
    assert found["waiting"]["call"] in json.dumps(first)
    assert f"nvml_not_answering: {first['title']}" in text(answer).splitlines()[1]


async def test_an_agent_answers_what_its_schema_promises() -> None:
    faults = (Lost(kind="lost", gpu=0), RowRemap(kind="row_remap", gpu=1))
    async with agent(Node("n", "gb200", faults=faults)) as client:
        (tool,) = (await client.list_tools()).tools
        answers = [data(await ask(client, detail=detail)) for detail in ("summary", "full")]
    for answer in answers:
        check("agent", tool, answer)


async def test_the_sick_are_named_worst_first_and_the_healthy_counted() -> None:
    agents = fleet(6, [(1, finding("slow", "warning", 2)), (4, finding("lost", "critical", 3))])
    async with gateway(agents) as client:
        answer = await ask(client)
    found = data(answer)
    assert found["verdict"] == "failed"
    assert [(node["node"], node["verdict"]) for node in found["nodes"]] == [
        ("node-0004", "failed"),
        ("node-0001", "degraded"),
    ]
    assert found["nodes_by_verdict"] == {"failed": 1, "degraded": 1, "unknown": 0, "healthy": 4}
    assert found["gpus_by_verdict"] == {"failed": 1, "degraded": 1, "unknown": 0, "healthy": 46}
    assert [gpu["gpu_index"] for node in found["nodes"] for gpu in node["gpus"]] == [3, 2]
    assert text(answer).splitlines() == [
        "FAILED: 6 nodes: 1 failed, 1 degraded, 4 healthy; "
        "48 GPUs: 1 failed, 1 degraded, 46 healthy",
        "SIMULATED: no real hardware stands behind some or all of these figures.",
        "CRITICAL lost: The GPU has lost. (high confidence: NVIDIA driver)",
        "  on node-0004 GPU 3",
        "  seen: errors 3 (0 before)",
        "  do: RESET_GPU: Stop its pods and reset the GPU.",
        "WARNING slow: The GPU has slow. (high confidence: NVIDIA driver)",
        "  on node-0001 GPU 2",
        "  seen: errors 3 (0 before)",
        "  do: RESET_GPU: as above",
    ]


async def test_a_command_for_one_gpu_is_never_taken_for_anothers() -> None:
    def sick(code: str, gpu: int) -> Any:
        return finding(
            code, gpu=gpu, advice=f"Drain GPU {gpu}, run nvidia-smi -r --id={gpu} there."
        )

    async with gateway(fleet(3, [(0, sick("a", 1)), (1, sick("b", 2))])) as client:
        both, one = text(await ask(client)), text(await ask(client, nodes=["node-0001"]))
    assert "do: RESET_GPU: Drain the GPU, run nvidia-smi -r --id=INDEX there." in both
    assert "do: RESET_GPU: as above" in both
    assert "--id=1" not in both
    assert "do: RESET_GPU: Drain GPU 2, run nvidia-smi -r --id=2 there." in one


async def test_a_node_that_did_not_answer_is_unknown_and_named() -> None:
    agents = fleet(3)
    http = Path("http", agents)
    http.probe_errors["node-0001"] = Unreachable
    async with gateway(agents, http) as client:
        answer = await ask(client)
        well = await ask(client, nodes=["node-0000", "node-0002"])
    found = data(answer)
    assert found["verdict"] == "unknown"
    assert found["nodes_by_verdict"] == {"failed": 0, "degraded": 0, "unknown": 1, "healthy": 2}
    assert [(each["node"], each["reason"]) for each in found["failures"]] == [
        ("node-0001", "unreachable")
    ]
    assert text(answer).startswith("UNKNOWN: 3 nodes: 1 unknown, 2 healthy; 16 GPUs: 16 healthy")
    assert "  ! node-0001: unreachable: scripted Unreachable" in text(answer)
    assert data(well)["verdict"] == "healthy"


async def test_the_verdict_of_a_fleet_is_its_worst_nodes() -> None:
    unknown = assessment(verdict="unknown", not_checked={"driver": "not read yet"})
    agents = fleet(3, [(0, finding("slow", "warning"))])
    agents["node-0001"] = HealthAgent("node-0001", unknown)
    async with gateway(agents) as client:
        degraded = await ask(client)
        looked = await ask(client, nodes=["node-0001", "node-0002"])
    assert data(degraded)["verdict"] == "degraded"
    assert data(looked)["verdict"] == "unknown"
    assert "UNKNOWN node-0001: driver: not read yet" in text(degraded)


async def test_one_trouble_of_many_nodes_is_told_once() -> None:
    sick = [(number, finding("hot", "warning", gpu)) for number in range(40) for gpu in (0, 1, 2)]
    async with gateway(fleet(60, [*sick, (50, finding("hot", "warning", 7))])) as client:
        answer = await ask(client, limit=5)
    found = data(answer)
    assert found["findings"] == [
        {"code": "hot", "severity": "warning", "action": "RESET_GPU", "nodes": 41, "gpus": 121}
    ]
    assert (len(found["nodes"]), found["nodes_omitted"]) == (5, 36)
    assert "WARNING hot: The GPU has hot. (121 GPUs on 41 nodes; high confidence: " in text(answer)
    assert "  on node-0000-node-0039 GPU 0-2; node-0050 GPU 7" in text(answer)
    assert text(answer).count("RESET_GPU") == 1
    assert '36 more nodes in detail: call again with cursor "degraded node-0004"' in text(answer)


async def test_what_is_hidden_is_counted() -> None:
    sick = [(0, finding("a", "info")), (0, finding("b", "warning")), (1, finding("c", "info"))]
    async with gateway(fleet(3, sick)) as client:
        usual, strict = await ask(client), await ask(client, severity="critical")
        everything = await ask(client, severity="info")
    assert (data(usual)["findings_hidden"], data(strict)["findings_hidden"]) == (2, 3)
    assert '2 findings less severe than warning not told: ask with severity "info".' in text(usual)
    assert data(strict)["verdict"] == "degraded"
    assert data(strict)["gpus_by_verdict"] == data(usual)["gpus_by_verdict"]
    assert "DEGRADED node-0000: only less severe findings" in text(strict)
    assert data(everything)["findings_hidden"] == 0
    assert [node["node"] for node in data(everything)["nodes"]] == ["node-0000", "node-0001"]


async def test_named_nodes_are_listed_healthy_or_not() -> None:
    async with gateway(fleet(3)) as client:
        every, one = data(await ask(client)), data(await ask(client, nodes=["node-0002"]))
        full = data(await ask(client, detail="full"))
    assert every["nodes"] == []
    assert [node["node"] for node in one["nodes"]] == ["node-0002"]
    assert [len(node["gpus"]) for node in full["nodes"]] == [8, 8, 8]


async def test_an_agent_without_the_tool_is_told_to_be_updated() -> None:
    agents = fleet(2)
    old = [f"old-{number}" for number in range(3)]
    agents |= {name: Agent(name, inventory(name), version="0.0.9") for name in old}
    async with gateway(agents) as client:
        answer = await ask(client)
    found = data(answer)
    assert (found["verdict"], found["nodes_by_verdict"]["unknown"]) == ("unknown", 3)
    assert found["failures_by_reason"] == {"agent_too_old": 3}
    assert "old-0-old-2: agent_too_old: agent 0.0.9 has no tool get_gpu_health" in text(answer)
    assert "update the agents" in text(answer)


async def test_what_no_agent_could_look_at_is_told_once() -> None:
    sight = Sight(uid=0, driver_version=None, senses=(NO_LOG,), missing_symbols=())
    partly = assessment(not_checked={"fabric": "not_supported"})
    agents: dict[str, Agent] = {
        name: HealthAgent(name, partly if name == "a" else assessment(), sight) for name in "abc"
    }
    async with gateway(agents) as client:
        answer = await ask(client)
    assert data(answer)["gaps"] == [
        {"what": ["kernel_log"], "why": NO_LOG.why, "nodes": 3},
        {"what": ["fabric"], "why": "not_supported", "nodes": 1},
    ]
    assert f"Not checked: kernel_log: {NO_LOG.why}" in text(answer)
    assert "Not checked on 1 node: fabric: not_supported" in text(answer)


async def test_any_replica_goes_on_where_another_stopped() -> None:
    sick = [(number, finding("hot", "warning")) for number in range(0, 20, 2)]
    sick += [(number, finding("lost")) for number in (3, 9, 17)]
    agents = fleet(20, sick)
    http = Path("http", agents)
    http.probe_errors["node-0001"] = Gone
    told: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        async with gateway(agents, http) as client:
            answer = await ask(client, limit=4, **cursor)
        page = data(answer)
        if cursor:
            assert page["failures"] == []
            assert "node-0001" not in text(answer)
            for before in told:
                assert before not in text(answer)
        assert page["nodes_by_verdict"]["failed"] == 3
        told += [node["node"] for node in page["nodes"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
        assert len(told) < 20
    assert told == ["node-0003", "node-0009", "node-0017"] + [
        f"node-{number:04}" for number in range(0, 20, 2)
    ]


FAULTS: dict[str, dict[str, Any]] = {
    "gpu_lost": {"kind": "lost"},
    "gpu_unreadable": {"kind": "unreadable"},
    "recovery_action": {"kind": "recovery_action", "action": 2},
    "sram_threshold_exceeded": {"kind": "sram_threshold"},
    "row_remap_failure": {"kind": "row_remap", "failure": True},
    "row_remap_pending": {"kind": "row_remap"},
    "row_remap_exhausted": {"kind": "remap_exhausted"},
    "ecc_uncorrected": {"kind": "ecc", "uncorrected": 4},
    "gpu_hot": {"kind": "temperature", "margin": -4},
    "nvlink_down": {"kind": "nvlink_down"},
    "fabric_failed": {"kind": "fabric", "status": 999},
    "mig_mode_pending": {"kind": "mig_pending"},
}
"""By the code that each is found as."""


def taken(name: str, found: Snapshot) -> HealthAgent:
    """An agent that answers with what is made of one reading."""
    agent = HealthAgent(name, assess(found, Past()))
    agent.snapshot = found
    return agent


async def test_twelve_sick_gpus_among_eight_thousand_are_all_named() -> None:
    faults = (
        FAULT.validate_python(fault | {"gpu": at % 8}) for at, fault in enumerate(FAULTS.values())
    )
    sick = {
        f"gpu-node-{at:04}": fault for at, fault in zip(range(17, 1000, 83), faults, strict=True)
    }
    well = snapshots([Node("template", "h100")], 1000)
    agents: dict[str, Agent] = {}
    for number, (_, found) in enumerate(well):
        name = f"gpu-node-{number:04}"
        reading = snapshot(Node(name, "h100", faults=(sick[name],))) if name in sick else found
        agents[name] = taken(name, reading)
    async with gateway(agents, deadlines_seconds=(50.0, 55.0)) as client:
        answer = await ask(client)
    found, told = data(answer), text(answer)
    assert found["coverage"]["nodes_answered"] == 1000
    assert found["gpus_by_verdict"]["healthy"] == 8000 - 12
    assert found["nodes_by_verdict"]["healthy"] == 1000 - 12
    assert {kind["code"] for kind in found["findings"]} == FAULTS.keys()
    assert told.splitlines()[2].startswith("CRITICAL recovery_action: "), "the driver's own word"
    for name, fault in sick.items():
        assert f"{name} GPU {fault.gpu}" in told
    for kind in found["findings"]:
        assert kind["code"] in told
        action = kind["action"]
        assert action == "NONE" or f"do: {action}: " in told
    assert len(told) < 8000
    assert len(json.dumps(answer.structured_content)) < 40_000


@pytest.mark.parametrize("state", ["all sick", "half gone", "worst"])
async def test_a_thousand_nodes_fit_a_context_whatever_their_state(state: str) -> None:
    def worst(code: str, gpu: int) -> Any:
        return finding(f"{code}_{gpu}", "warning", gpu, title="so " * 200, advice="do " * 400)

    findings = [worst("code", gpu) for gpu in range(8) for _ in range(4)]
    plain = [finding("hot", "warning", 1)]
    agents: dict[str, Agent] = {}
    for number in range(1000):
        name = f"ip-10-0-{number // 250}-{number % 250}.eu-central-1.compute.internal"
        own = findings if state == "worst" else plain
        agents[name] = HealthAgent(name, assessment(*own))
    http = Path("http", agents)
    if state in ("half gone", "worst"):
        http.probe_errors = dict.fromkeys(list(agents)[::2], Gone)
    async with gateway(agents, http) as client:
        answer = await ask(client)
    assert len(text(answer)) < 10_000
    assert len(json.dumps(answer.structured_content)) < 40_000


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"host": "a"}, 'unknown argument "host"'),
        ({"detail": "everything"}, '"detail"'),
        ({"severity": "error"}, '"severity"'),
        ({"limit": 0}, '"limit"'),
        ({"cursor": "node-0001"}, '"cursor" of get_gpu_health must be the next_cursor'),
        ({"nodes": ["nowhere"]}, 'Unknown nodes: "nowhere". Known: node-0000, node-0001'),
    ],
)
async def test_bad_arguments_get_one_clear_error(arguments: dict[str, Any], complaint: str) -> None:
    async with gateway(fleet(2)) as client:
        answer = await ask(client, **arguments)
    assert answer.is_error
    assert complaint in text(answer)
    assert "pydantic" not in text(answer)


async def test_a_gateway_answers_only_what_its_schema_promises() -> None:
    agents = fleet(3, [(2, finding("hot", "warning"))])
    http = Path("http", agents)
    http.probe_errors["node-0001"] = Gone
    async with gateway(agents, http) as client:
        (tool,) = (await client.list_tools()).tools
        answers = [data(await ask(client, detail=detail)) for detail in ("summary", "full")]
    for answer in answers:
        check("gateway", tool, answer)

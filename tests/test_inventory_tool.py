"""`get_gpu_inventory` through a real MCP client: one node's answer, and the fleet's."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from mcp import Client
from mcp_types import CallToolResult

from mcp_gpu.tools.fleet_inventory import gateway_tool
from mcp_gpu.tools.inventory import GpuModel
from support import served
from support.fleet import GIB, H100, Agent, Path, full_gpus, inventory
from support.results import data, text
from support.schemas import check
from transports.errors import Denied, Gone, Unreachable

gateway = partial(served.gateway, gateway_tool)


def fleet(count: int, **changes: Any) -> dict[str, Agent]:
    names = [f"node-{i:04}" for i in range(count)]
    return {name: Agent(name, inventory(name, **changes)) for name in names}


async def ask(client: Client, **arguments: Any) -> CallToolResult:
    result = await client.call_tool("get_gpu_inventory", arguments)
    assert isinstance(result, CallToolResult)
    return result


async def names_page_by_page(client: Client, **arguments: Any) -> list[list[str]]:
    pages: list[list[str]] = []
    cursor: dict[str, str] = {}
    while True:
        page = data(await ask(client, **arguments, **cursor))
        pages.append([node["node"] for node in page["nodes"]])
        if page["next_cursor"] is None:
            return pages
        cursor = {"cursor": page["next_cursor"]}
        assert len(pages) < 100


async def test_the_fleet_is_merged_into_one_answer() -> None:
    async with gateway(fleet(3)) as client:
        answer = await ask(client)
    found = data(answer)
    assert [(n["node"], n["via"], n["age_seconds"]) for n in found["nodes"]] == [
        (f"node-{i:04}", "http", 0.5) for i in range(3)
    ]
    assert found["totals"]["models"] == [
        {"name": H100, "gpus": 24, "nodes": 3, "memory_total_bytes": 80 * GIB}
    ]
    assert found["totals"]["drivers"] == [{"driver_version": "580.105.08", "nodes": 3}]
    assert found["coverage"]["nodes_answered"] == found["coverage"]["nodes_known"] == 3
    assert found["simulated"] is True
    assert "SIMULATED" in text(answer)
    assert "3 of 3 nodes answered, 24 GPUs" in text(answer)


async def test_a_node_that_fails_is_named_with_reason_and_attempts() -> None:
    agents = fleet(3)
    http = Path("http", agents)
    http.probe_errors["node-0001"] = Unreachable
    async with gateway(agents, http) as client:
        answer = await ask(client)
    found = data(answer)
    assert found["failures"] == [
        {
            "node": "node-0001",
            "reason": "unreachable",
            "message": "scripted Unreachable",
            "attempts": [
                {"via": "http", "reason": "unreachable", "message": "scripted Unreachable"}
            ],
        }
    ]
    assert found["failures_by_reason"] == {"unreachable": 1}
    assert "node-0001: unreachable: scripted Unreachable" in text(answer)
    assert "their GPUs are unknown" in text(answer)


async def test_the_ways_are_told_where_some_nodes_did_not_come_by_the_best() -> None:
    agents = fleet(6)
    http, stream = Path("http", agents), Path("exec", agents)
    http.probe_errors = {"node-0001": Unreachable, "node-0002": Unreachable, "node-0003": Denied}
    async with gateway(agents, http, stream) as client:
        told = await ask(client, limit=1)
        page = await ask(client, limit=1, cursor=data(told)["next_cursor"])
        some = await ask(client, nodes=["node-0000", "node-0001"])
        well = await ask(client, nodes=["node-0000"])
    whys = "http does not reach 2 nodes, http is denied to 1 node: see check_connectivity"
    for answer in (told, page):
        assert data(answer)["ways"] == {"http": 3, "exec": 3}
        assert data(answer)["passed_over"] == {"http": {"unreachable": 2, "denied": 1}}
        assert f"3 over http, 3 over exec ({whys})" in text(answer).splitlines()
    assert data(some)["ways"] == {"http": 1, "exec": 1}
    assert data(some)["passed_over"] == {"http": {"unreachable": 1}}
    assert data(well)["ways"] == {"http": 1}
    assert data(well)["passed_over"] == {}
    assert " over http" not in text(well)


async def test_when_every_node_fails_the_answer_is_still_an_answer() -> None:
    agents = fleet(40)
    http = Path("http", agents)
    http.probe_errors.update(dict.fromkeys(agents, Gone))
    async with gateway(agents, http) as client:
        found = data(await ask(client))
    assert found["nodes"] == []
    assert len(found["failures"]) + found["failures_omitted"] == 40
    assert found["failures_by_reason"] == {"not_running": 40}


async def test_nodes_out_of_the_ordinary_come_first() -> None:
    agents = fleet(6)
    agents["node-0004"].data = inventory("node-0004", driver_version="570.1")
    agents["node-0005"].data = inventory("node-0005", gpu_count=7)
    agents["node-0003"].data = inventory("node-0003", attention=("GPU 3 lost",), gpus_lost=1)
    async with gateway(agents) as client:
        answer = await ask(client)
    found = data(answer)
    first = [(node["node"], node["attention"]) for node in found["nodes"][:4]]
    assert first == [
        ("node-0003", ["GPU 3 lost"]),
        ("node-0004", [f"driver 570.1; most nodes with {H100}: 580.105.08"]),
        ("node-0005", [f"7 GPUs; most nodes with {H100} have 8"]),
        ("node-0000", []),
    ]
    assert found["totals"]["nodes_needing_attention"] == 3
    assert found["totals"]["gpus_lost"] == 1
    assert "Driver versions differ: 580.105.08 (5 nodes), 570.1 (1 node)" in text(answer)


async def test_two_nodes_that_differ_prove_neither_wrong() -> None:
    agents = fleet(2)
    agents["node-0001"].data = inventory("node-0001", driver_version="570.1")
    async with gateway(agents) as client:
        found = data(await ask(client))
    assert [node["attention"] for node in found["nodes"]] == [[], []]
    assert len(found["totals"]["drivers"]) == 2


async def test_nodes_are_compared_only_with_nodes_of_the_same_model() -> None:
    agents = fleet(3)
    t4 = (GpuModel(name="Tesla T4", count=1, memory_total_bytes=15 * GIB),)
    agents["t4"] = Agent("t4", inventory("t4", models=t4, gpu_count=1, driver_version="595.1"))
    async with gateway(agents) as client:
        found = data(await ask(client))
    assert all(node["attention"] == [] for node in found["nodes"])


async def test_pages_together_are_the_fleet_outliers_first() -> None:
    agents = fleet(23)
    for i in (3, 7, 11, 15, 19, 22, 21):
        name = f"node-{i:04}"
        agents[name].data = inventory(name, attention=("odd",))
    async with gateway(agents) as client:
        pages = await names_page_by_page(client, limit=5)
    assert [len(page) for page in pages] == [5, 5, 5, 5, 3]
    flat = [name for page in pages for name in page]
    odd = [f"node-{i:04}" for i in (3, 7, 11, 15, 19, 21, 22)]
    assert flat == odd + [name for name in sorted(agents) if name not in odd]


async def test_a_cursor_among_the_outliers_loses_nobody_when_its_node_gets_well() -> None:
    agents = fleet(6)
    for name in ("node-0003", "node-0004", "node-0005"):
        agents[name].data = inventory(name, attention=("odd",))
    async with gateway(agents) as client:
        first = data(await ask(client, limit=2))
        assert [node["node"] for node in first["nodes"]] == ["node-0003", "node-0004"]
        agents["node-0004"].data = inventory("node-0004")
        rest = data(await ask(client, limit=50, cursor=first["next_cursor"]))
    listed = {node["node"] for node in rest["nodes"]}
    assert {"node-0000", "node-0001", "node-0002", "node-0005"} <= listed


async def test_failures_stand_on_the_first_page_alone() -> None:
    agents = fleet(4)
    http = Path("http", agents)
    http.probe_errors["node-0003"] = Gone
    async with gateway(agents, http) as client:
        first = data(await ask(client, limit=2))
        second = data(await ask(client, limit=2, cursor=first["next_cursor"]))
    assert [failure["node"] for failure in first["failures"]] == ["node-0003"]
    assert second["failures"] == []
    assert second["failures_by_reason"] == {"not_running": 1}


async def test_detail_full_asks_the_agents_for_it_and_shows_single_gpus() -> None:
    agents = fleet(1, gpus=full_gpus())
    async with gateway(agents) as client:
        answer = await ask(client, detail="full", nodes=["node-0000"])
        await ask(client)
    found = data(answer)
    assert [gpu["uuid"] for gpu in found["nodes"][0]["gpus"]] == [f"GPU-{i}" for i in range(8)]
    assert found["nodes"][0]["gpus"][0]["unavailable"]["serial"] == "not_reported"
    assert text(answer).count("  GPU ") == 8
    details = [call.model_dump()["detail"] for call in agents["node-0000"].calls]
    assert details == ["full", "summary"]


async def test_a_page_of_full_detail_ends_before_it_drowns_the_reader() -> None:
    async with gateway(fleet(30, gpus=full_gpus())) as client:
        answer = await ask(client, detail="full")
        pages = await names_page_by_page(client, detail="full")
    assert len(json.dumps(answer.structured_content)) < 300_000
    assert len(text(answer)) < 40_000
    assert [name for page in pages for name in page] == sorted(fleet(30))


@pytest.mark.parametrize("state", ["all well", "half odd", "half failing", "worst"])
async def test_a_thousand_nodes_fit_a_context_whatever_their_state(state: str) -> None:
    agents = fleet(1000)
    http = Path("http", agents)
    for i, name in enumerate(sorted(agents)):
        if state in ("half odd", "worst") and i % 2:
            notes = tuple(f"GPU {g} lost (00000000:{g:02}:00.0): " + "very " * 99 for g in range(8))
            agents[name].data = inventory(name, attention=notes, message="long " * 200)
        if state in ("half failing", "worst") and i % 2 == 0:
            http.probe_errors[name] = Gone
    async with gateway(agents, http) as client:
        answer = await ask(client)
    found = data(answer)
    assert found["coverage"]["nodes_known"] == 1000
    assert len(found["nodes"]) <= 50
    assert len(text(answer)) < 10_000
    assert len(json.dumps(answer.structured_content)) < 40_000


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"host": "a"}, 'unknown argument "host"'),
        ({"detail": "everything"}, '"detail"'),
        ({"limit": 0}, '"limit"'),
        ({"limit": "5"}, '"limit"'),
        ({"nodes": []}, '"nodes"'),
        ({"nodes": "node-0000"}, '"nodes"'),
        ({"nodes": ["nowhere"]}, 'Unknown nodes: "nowhere". Known: node-0000, node-0001'),
    ],
)
async def test_bad_arguments_get_one_clear_error(arguments: dict[str, Any], complaint: str) -> None:
    async with gateway(fleet(2)) as client:
        answer = await ask(client, **arguments)
    assert answer.is_error
    assert complaint in text(answer)
    assert "pydantic" not in text(answer)


async def test_the_gateway_answers_only_what_its_schema_promises() -> None:
    agents = fleet(3, gpus=full_gpus(2))
    http = Path("http", agents)
    http.probe_errors["node-0001"] = Gone
    async with gateway(agents, http) as client:
        (tool,) = (await client.list_tools()).tools
        for detail in ("summary", "full"):
            check("gateway", tool, (await ask(client, detail=detail)).structured_content)


async def test_one_node_may_be_named_as_other_tools_name_theirs() -> None:
    async with gateway(fleet(4)) as client:
        one = data(await ask(client, node="node-0001"))
        more = data(await ask(client, node="node-0001", nodes=["node-0003", "node-0001"]))
        unknown = await ask(client, node="nowhere")
    assert [node["node"] for node in one["nodes"]] == ["node-0001"]
    assert [node["node"] for node in more["nodes"]] == ["node-0001", "node-0003"]
    assert unknown.is_error
    assert "Unknown nodes" in text(unknown)

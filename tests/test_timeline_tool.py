"""`get_gpu_timeline` through a real MCP client: of one node, and of a fleet."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path as Folder
from typing import Any, get_args

import pytest
from mcp import Client
from mcp_types import CallToolResult

from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.recorder.file import File
from mcp_gpu.gpu.recorder.metrics import METRICS
from mcp_gpu.gpu.recorder.recorder import Recorder
from mcp_gpu.gpu.simulator import Node
from mcp_gpu.gpu.xid.model import XidEvent
from mcp_gpu.node.watch import XidWatch
from mcp_gpu.registry import Tool
from mcp_gpu.tools.fleet_timeline import gateway_tool
from mcp_gpu.tools.timeline import agent_tool
from mcp_gpu.tools.timeline_events import event_severity, event_weight
from mcp_gpu.tools.timeline_model import MAIN, GpuTimeline, MetricName, TimelineEvent
from support import served
from support.fleet import Agent, Path
from support.health import blind
from support.readings import T0
from support.results import data, text
from support.schemas import check
from support.timelines import NOW, TimelineAgent, change, node_timeline, recorded
from transports.errors import Gone

gateway = partial(served.gateway, gateway_tool)

LARGEST_BYTES = 256 << 10
"""A gateway takes no larger answer of an agent."""


def quiet(second: int) -> dict[str, Any]:
    return {}


def heated(second: int) -> dict[str, Any]:
    """Half an hour ago it became hot, slow and full of errors."""
    hot = second >= 1800
    return {
        "temperature_celsius": (86 if hot else 60) + second // 10 % 3,
        "clock_sm_mhz": 1200 if hot else 1980,
        "ecc_dram_corrected": 25 if second >= 2400 else 0,
        "slowed_by_hw_thermal_seconds": max(second - 1800, 0) / 2,
        "throttle_reasons": ("hw_thermal_slowdown",) if hot else (),
        "memory_temperature_celsius": None,
    }


def agent(
    at: Callable[[int], dict[str, Any]] = quiet, *, gpus: int = 2, watch: XidWatch | None = None
) -> AbstractAsyncContextManager[Client]:
    """A client of an agent whose first GPU had such an hour."""

    def make(collector: Collector) -> Tool[Any]:
        recorder = recorded(collector.snapshot, at)
        return agent_tool("n", collector, recorder, watch or blind(), clock=lambda: NOW)

    return served.agent(Node("n", "h100", gpus=gpus, load=0.5), make)


async def ask(client: Client, **arguments: Any) -> CallToolResult:
    result = await client.call_tool("get_gpu_timeline", arguments)
    assert isinstance(result, CallToolResult)
    return result


async def test_what_changed_comes_first_with_when_and_from_what_to_what() -> None:
    async with agent(heated) as client:
        answer = await ask(client, gpu=0)
    lines = text(answer).splitlines()
    assert lines[0] == "n: 2025-11-24T16:00:00Z to 2025-11-24T17:00:00Z, 1 GPU"
    assert lines[1].startswith("SIMULATED")
    first = [line for line in lines if line.startswith("CHANGED")]
    assert lines[2] == "EVENT 30 min ago GPU 0: slowed by hw_thermal_slowdown"
    assert (
        lines[3] == first[0] == ("CHANGED GPU 0 slowed_by_hw_thermal_percent 0 -> 50 % 30 min ago")
    )
    assert "CHANGED GPU 0 clock_sm_mhz 1980 -> 1200 MHz 30 min ago" in first
    assert "CHANGED GPU 0 temperature_celsius 61 -> 87 C 30 min ago" in first
    assert "CHANGED GPU 0 ecc_corrected 25 came, the first 20 min ago" in first
    (row,) = [line for line in lines if line.startswith("  temperature_celsius ")]
    assert row.startswith("  temperature_celsius 60 to 88 C, mean 74, p95 88, last 8")
    assert len(row.split("  ")[-1]) == 60
    (gpu,) = data(answer)["gpus"]
    assert gpu["unavailable"] == {"memory_temperature_celsius": "no reading in this stretch"}
    assert {each["metric"] for each in gpu["statistics"]} == METRICS.keys() - gpu["unavailable"]
    weights = [each["weight"] for each in gpu["changes"]]
    assert weights == sorted(weights, reverse=True)
    assert data(answer)["weight"] == weights[0]


async def test_an_hour_in_which_nothing_happened_says_so() -> None:
    async with agent() as client:
        answer = await ask(client)
    found = data(answer)
    assert (found["weight"], found["events"]) == (0, [])
    assert [gpu["changes"] for gpu in found["gpus"]] == [[], []]
    for gpu in found["gpus"]:
        assert {each["metric"] for each in gpu["statistics"]} == set(MAIN)
        assert gpu["series"] == [], "not of all GPUs at once"
        assert gpu["recorded_since"] == "2025-11-24T16:00:00Z"
    brief = r"^GPU 1: temperature_celsius \d+ to \d+ C, .*; memory_used_bytes [\d.]+ to "
    assert re.search(brief, text(answer), re.MULTILINE)
    assert "Recorded since" not in text(answer)
    assert "Nothing changed by as much as is worth telling." in text(answer)


async def test_a_timeline_that_cannot_be_saved_says_so(tmp_path: Folder) -> None:
    (tmp_path / "file").touch()
    recorder = Recorder("n", file=File(tmp_path / "file" / "folder"))

    def make(collector: Collector) -> Tool[Any]:
        recorder.take(collector.snapshot, 0.0)
        recorder.save()
        return agent_tool("n", collector, recorder, blind())

    async with served.agent(Node("n", "h100", gpus=2), make) as client:
        answer = await ask(client)
    assert data(answer)["unsaved"].endswith("NotADirectoryError: Not a directory")
    assert f"! Would not outlive the agent: {data(answer)['unsaved']}" in text(answer).splitlines()


async def test_time_before_the_first_reading_is_unknown_and_never_nought() -> None:
    async with agent() as client:
        answer = await ask(client, gpu=0, window="2h", metrics=["temperature_celsius"])
    found = data(answer)
    (gpu,) = found["gpus"]
    lines = text(answer).splitlines()
    assert lines[2] == (
        "! Recorded since 2025-11-24T16:00:00Z: of the 50 % of the time before, no reading"
    )
    assert "of the time unknown" not in text(answer), "which is said once"
    (series,) = gpu["series"]
    assert series["values"][:29] == series["min"][:29] == [None] * 29
    assert None not in series["values"][31:]
    assert gpu["statistics"][0]["unknown_share"] == pytest.approx(0.5, abs=0.02)
    assert gpu["statistics"][0]["min"] > 0


async def test_a_gpu_is_named_by_index_or_uuid_and_a_wrong_one_is_told_which_there_are() -> None:
    async with agent() as client:
        by_index = data(await ask(client, gpu=1))
        uuid = by_index["gpus"][0]["uuid"]
        assert data(await ask(client, gpu=uuid)) == by_index == data(await ask(client, gpu="1"))
        wrong = await ask(client, gpu=7)
    assert wrong.is_error
    assert f"1 ({uuid})" in text(wrong)


async def test_points_are_as_many_as_asked_for_and_keep_spikes() -> None:
    def spiked(second: int) -> dict[str, Any]:
        return {"power_draw_watts": 690.0 if second == 1230 else 100.0}

    async with agent(spiked) as client:
        for points in (1, 7, 60, 500):
            found = data(await ask(client, gpu=0, metrics=["power_draw_watts"], points=points))
            (series,) = found["gpus"][0]["series"]
            assert 0 < len(series["values"]) <= points
            assert max(value or 0 for value in series["max"]) == 690
        found = data(await ask(client, gpu=0, metrics=["power_draw_watts"], points=0))
        assert found["gpus"][0]["series"] == []
    assert found["gpus"][0]["statistics"][0]["max"] == 690


async def test_a_stretch_of_the_past_is_told_alone() -> None:
    async with agent(heated) as client:
        found = data(
            await ask(client, gpu=0, since="2025-11-24T16:05:00Z", until="2025-11-24T16:25:00Z")
        )
        assert found["gpus"][0]["changes"] == []
        found = data(await ask(client, gpu=0, window="10m", until="2025-11-24T16:35:00Z"))
    changed = {each["metric"]: each["at"] for each in found["gpus"][0]["changes"]}
    assert changed["clock_sm_mhz"] == "2025-11-24T16:30:00Z"


async def test_xids_stand_among_the_events_of_their_gpu() -> None:
    watch = blind()
    async with agent(watch=watch, gpus=2) as client:
        bus = "0000:53:00"
        for at, code in ((NOW - 600, 48), (NOW - 7200, 79)):
            watch.log.add(XidEvent(code, at, "kernel_log", bus_id=bus))
        found = data(await ask(client))
        others = data(await ask(client, gpu=1))
    (event,) = found["events"]
    assert (event["kind"], event["gpu_index"], event["seconds_ago"]) == ("xid", 0, 600)
    assert event["text"].startswith("Xid 48: Double Bit ECC")
    assert (found["weight"], event["severity"]) == (1000, "critical")
    assert others["events"] == []


async def test_of_one_metric_of_many_gpus_a_few_changes_are_told() -> None:
    def gpu(index: int) -> GpuTimeline:
        return like.model_copy(update={"gpu_index": index})

    found = node_timeline("a", change("power_draw_watts", 9.0), change(weight=4.0))
    like = found.gpus[3]
    found = found.model_copy(update={"gpus": tuple(map(gpu, range(16)))})
    async with gateway({"a": TimelineAgent("a", found)}) as client:
        lines = text(await ask(client, node="a")).splitlines()
    told = [line.split()[3] for line in lines if line.startswith("CHANGED")]
    assert told == ["power_draw_watts"] * 8 + ["clock_sm_mhz"] * 8
    assert "16 more changes, smaller ones" in lines


async def test_what_went_wrong_comes_before_what_followed_and_before_jobs_that_began() -> None:
    def restless(second: int) -> dict[str, Any]:
        return {"memory_used_bytes": (second // 600 % 2) * (140 << 30)}

    watch = blind()
    for at, code in ((NOW - 900, 79), (NOW - 880, 31), (NOW - 870, 45), (NOW - 860, 43)):
        watch.log.add(XidEvent(code, at, "kernel_log", bus_id="0000:53:00"))
    async with agent(restless, watch=watch) as client:
        answer = await ask(client)
    found = data(answer)
    told = [(each["severity"], each["text"][:6]) for each in found["events"]]
    assert told[:2] == [("critical", "Xid 79"), ("warning", "Xid 45")]
    assert told[-1] == ("info", "Xid 43")
    lines = text(answer).splitlines()
    assert [line.partition(" ")[0] for line in lines[2:8]] == ["EVENT"] * 4 + ["CHANGED"] * 2
    assert "Xid 79" in lines[2]
    assert found["weight"] == 1000
    (gpu,) = [gpu for gpu in found["gpus"] if gpu["changes"]]
    assert {(each["metric"], each["weight"]) for each in gpu["changes"]} == {
        ("memory_used_bytes", 10)
    }
    assert (len(gpu["changes"]), gpu["changes_omitted"]) == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"window": "soon"}, "should be a duration"),
        ({"window": "0m"}, "should be a duration"),
        ({"since": "2026-11-26"}, "with its zone"),
        ({"window": "1h", "since": "2025-11-24T16:05:00Z"}, "not both"),
        ({"since": "2025-11-24T16:05:00Z", "until": "2025-11-24T16:00:00Z"}, "before"),
        ({"window": "1h", "until": "2025-11-20T16:00:00Z"}, "kept for 24 hours"),
        ({"metrics": ["heat"]}, "temperature_celsius"),
        ({"points": 501}, "500"),
        ({"metrics": list(METRICS), "points": 500}, "17,000 points"),
    ],
)
async def test_what_cannot_be_asked_is_told_why(arguments: dict[str, Any], why: str) -> None:
    async with agent() as client:
        answer = await ask(client, **arguments)
    assert answer.is_error
    assert why in text(answer)


async def test_the_longest_answer_is_one_that_a_gateway_takes() -> None:
    def restless(second: int) -> dict[str, Any]:
        return {
            "memory_used_bytes": 10**10 + second * 1_234_567,
            "clock_sm_mhz": 1980 - second % 700,
            "throttle_reasons": ("hw_slowdown",) if second // 10 % 2 else (),
        }

    async with agent(restless) as client:
        answer = await ask(client, gpu=0, metrics=list(METRICS), points=500)
        everything = await ask(client, metrics=list(METRICS), points=290)
    for each in (answer, everything):
        assert len(json.dumps(data(each))) < LARGEST_BYTES
        assert len(text(each)) <= 8000


async def test_before_anything_was_read_the_reason_is_told() -> None:
    def make(collector: Collector) -> Tool[Any]:
        return agent_tool("n", collector, Recorder(), blind(), clock=lambda: T0)

    async with served.agent(Node("n", "t4"), make) as client:
        found = data(await ask(client, gpu=0))
    (gpu,) = found["gpus"]
    assert gpu["unavailable"].keys() == METRICS.keys()
    assert gpu["unavailable"]["temperature_celsius"] == "no reading in this stretch"
    assert gpu["unavailable"]["memory_temperature_celsius"] == "not_supported"


async def test_a_fleet_is_told_by_who_changed_most() -> None:
    agents: dict[str, Agent] = {
        f"n{number:03}": TimelineAgent(f"n{number:03}", node_timeline(f"n{number:03}"))
        for number in range(40)
    }
    for name, weight in (("n007", 5.0), ("n021", 9.0), ("n033", 2.0)):
        agents[name] = TimelineAgent(name, node_timeline(name, change(weight=weight)))
    for name in ("n005", "n007"):
        found = agents[name].data
        young = [
            gpu.model_copy(update={"recorded_since": "2026-11-26T10:00:00Z"}) for gpu in found.gpus
        ]
        agents[name].data = found.model_copy(update={"gpus": tuple(young)})
    http = Path("http", agents)
    http.probe_errors["n000"] = Gone
    async with gateway(agents, http) as client:
        answer = await ask(client)
        pages = [data(await ask(client, limit=2))]
        pages.append(data(await ask(client, limit=2, cursor=pages[0]["next_cursor"])))
    found = data(answer)
    assert [node["node"] for node in found["nodes"]] == ["n021", "n007", "n033"]
    assert (found["nodes_unchanged"], found["failures_by_reason"]) == (36, {"not_running": 1})
    assert [gpu["gpu_index"] for gpu in found["nodes"][0]["gpus"]] == [3]
    assert found["nodes_recorded_late"] == 2
    assert (
        "2 nodes recorded for a part of this time only: what was before is unknown."
        in text(answer).splitlines()
    )
    lines = text(answer).splitlines()
    assert lines[0] == "39 of 40 nodes answered: something changed on 3, most first"
    assert "n021: GPU 3 clock_sm_mhz 1980 -> 1200 MHz 10 min ago" in lines
    assert (found["next_cursor"], pages[1]["next_cursor"]) == (None, None)
    assert [[node["node"] for node in page["nodes"]] for page in pages] == [
        ["n021", "n007"], ["n033"],
    ]  # fmt: skip
    asked = agents["n007"].calls[0].model_dump(exclude_none=True)
    assert asked == {"points": 0}, "no series of a whole fleet"


async def test_pages_neither_repeat_nor_skip_a_node_however_close_their_weights() -> None:
    weights = {"a": 1234567.0, "b": 1234567.8, "c": 1234566.9, "d": 1000000.5, "e": 0.1 + 0.2}
    agents: dict[str, Agent] = {
        name: TimelineAgent(name, node_timeline(name, change(weight=weight)))
        for name, weight in weights.items()
    }
    told: list[str] = []
    async with gateway(agents) as client:
        arguments: dict[str, Any] = {"limit": 1}
        while len(told) <= len(weights):
            page = data(await ask(client, **arguments))
            told += [node["node"] for node in page["nodes"]]
            if page["next_cursor"] is None:
                break
            arguments["cursor"] = page["next_cursor"]
    assert told == ["b", "a", "c", "d", "e"]


async def test_a_fleet_is_told_what_went_wrong_first() -> None:
    def happened(kind: str, ago: float, said: str) -> TimelineEvent:
        return TimelineEvent(
            kind=kind, severity=event_severity(kind, said), at="2026-11-26T10:00:00Z",
            seconds_ago=ago, last_seconds_ago=ago, count=1, gpu_index=3, text=said,
        )  # fmt: skip

    lost = (
        happened("gpu", 599, "lost: GpuIsLost"),
        happened("xid", 600, "Xid 79: GPU has fallen off the bus"),
        happened("xid", 598, "Xid 43: GPU stopped processing"),
    )
    memory = [change("memory_used_bytes", 9.0, unit="B", before=0.0, after=2.0**35)] * 3
    weight = max(map(event_weight, lost))
    agents: dict[str, Agent] = {
        "broken": TimelineAgent(
            "broken", node_timeline("broken", *memory, events=lost, weight=weight)
        ),
        "began": TimelineAgent("began", node_timeline("began", change(weight=70.0))),
    }
    async with gateway(agents) as client:
        answer = await ask(client)
    broken, began = text(answer).splitlines()[2:4]
    assert broken == (
        "broken: 10 min ago GPU 3: lost: GpuIsLost; 10 min ago GPU 3: Xid 79: GPU has fallen off "
        "the bus; GPU 3 memory_used_bytes 0 -> 32 GiB 10 min ago"
    )
    assert began.startswith("began: GPU 3 clock_sm_mhz")
    assert [node["node"] for node in data(answer)["nodes"]] == ["broken", "began"]


async def test_a_large_fleet_in_which_all_changed_is_told_in_short() -> None:
    names = [f"node-{number:04}" for number in range(300)]
    agents: dict[str, Agent] = {
        name: TimelineAgent(name, node_timeline(name, *[change(weight=5.0)] * 8)) for name in names
    }
    async with gateway(agents, deadlines_seconds=(60.0, 60.0)) as client:
        answer = await ask(client, limit=500)
    assert len(text(answer)) <= 8000
    assert len(json.dumps(data(answer))) < 40_000
    assert data(answer)["next_cursor"] is not None


async def test_one_node_of_a_fleet_is_told_as_its_agent_does() -> None:
    agents: dict[str, Agent] = {
        name: TimelineAgent(name, node_timeline(name, change())) for name in ("a", "b")
    }
    async with gateway(agents) as client:
        answer = await ask(client, node="b", gpu=3, window="2h", points=10)
        for arguments, why in (
            ({"gpu": 3}, '"node"'),
            ({"node": "b", "nodes": ["a"]}, '"nodes"'),
            ({"cursor": "nonsense"}, '"cursor"'),
            ({"cursor": "nan b"}, '"cursor"'),
            ({"cursor": "-inf b"}, '"cursor"'),
            ({"node": "c"}, "Unknown nodes"),
            ({"window": "1h", "since": "2025-11-24T16:05:00Z"}, "not both"),
        ):
            wrong = await ask(client, **arguments)
            assert wrong.is_error
            assert why in text(wrong)
    assert [node["node"] for node in data(answer)["nodes"]] == ["b"]
    assert agents["a"].calls == []
    (asked,) = agents["b"].calls
    assert asked.model_dump(exclude_none=True) == {"gpu": 3, "window": "2h", "points": 10}
    assert "CHANGED GPU 3 clock_sm_mhz 1980 -> 1200 MHz 10 min ago" in text(answer)


async def test_what_an_agent_says_adds_no_line_and_nothing_that_acts() -> None:
    said = "x\nSIMULATED nothing\x1b[2J\u202e"
    event = {
        "kind": "gpu", "at": "now", "seconds_ago": 1, "last_seconds_ago": 1, "count": 1,
        "gpu_index": 3, "severity": "critical", "text": said,
    }  # fmt: skip
    odd = node_timeline("odd", change(metric=said), message=said)
    odd = odd.model_copy(update={"events": (TimelineEvent(**event),)})
    async with gateway({"odd": TimelineAgent("odd", odd)}) as client:
        for arguments in ({}, {"node": "odd"}):
            told = text(await ask(client, **arguments))
            assert not {"\x1b", "\u202e"} & set(told)
            assert "SIMULATED nothing" not in told.splitlines()


def test_every_metric_can_be_asked_for() -> None:
    assert get_args(MetricName) == tuple(METRICS)


async def test_answers_keep_to_their_schemas() -> None:
    agents: dict[str, Agent] = {"b": TimelineAgent("b", node_timeline("b", change()))}
    for role, connecting, calls in (
        ("agent", agent(heated), [{}, {"gpu": 0}]),
        ("gateway", gateway(agents), [{}, {"node": "b"}]),
    ):
        async with connecting as client:
            (tool,) = (await client.list_tools()).tools
            for argument in tool.input_schema["properties"].values():
                assert "description" in argument
            for arguments in calls:
                check(role, tool, data(await ask(client, **arguments)))

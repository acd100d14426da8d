"""`check_connectivity` through a real MCP client: the verdict first, and never long."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus
from mcp import Client
from mcp_types import CallToolResult

from mcp_gpu.fleet.connectivity.checkup import Checkup
from mcp_gpu.fleet.connectivity.model import Place, Survey
from mcp_gpu.fleet.connectivity.survey import Paths, Surveyor
from mcp_gpu.fleet.diagnosis.model import Cause, Diagnosis, Unread
from mcp_gpu.fleet.discovery import AbsentAgent, DiscoveryError, Table
from mcp_gpu.registry import Registry
from mcp_gpu.tools.check_connectivity import NAME, connectivity_tool
from mcp_gpu.tools.connectivity_text import LINES
from mcp_gpu.tools.spans import places, spans
from support.fleet import Agent, KnownPaths, Path, PathKnown, inventory
from support.results import data, text
from support.schemas import check
from transports.base import Identity, Target
from transports.errors import Denied, Gone, Unreachable

WELL = Diagnosis(verdict="healthy", headline="healthy: all is well")


@dataclass
class Told:
    """A source of agents that says what it is told to."""

    said: Table | DiscoveryError

    def table(self) -> Table:
        if isinstance(self.said, DiscoveryError):
            raise self.said
        return self.said

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None: ...


@dataclass
class Fleet:
    """Agents over scripted paths, and what is made of a survey of them."""

    count: int
    paths: tuple[str, ...] = ("http", "exec")
    diagnosis: Diagnosis = WELL
    absent: tuple[AbsentAgent, ...] = ()
    states: dict[str, Sequence[PathKnown]] = field(default_factory=dict)
    surveys: list[Survey] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = [f"n{number:04}" for number in range(self.count)]
        agents = {name: Agent(name, inventory(name)) for name in self.names}
        self.transports = {name: Path(name, agents) for name in self.paths}
        targets = tuple(Target(node=name) for name in self.names)
        self.discovery = Told(Table(targets, 0.0, "a list", None, self.absent))

    def cut(self, via: str, *names: str, by: type[Exception] = Unreachable) -> None:
        self.transports[via].probe_errors |= dict.fromkeys(names, by)

    async def diagnose(self, survey: Survey) -> Diagnosis:
        self.surveys.append(survey)
        return self.diagnosis

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        paths: Paths = KnownPaths(list(self.transports.values()), self.states)
        surveyor = Surveyor(
            paths, place=Place("here", "gateway-1", "gpu"), default_probe_timeout_seconds=30
        )
        registry = Registry(
            name="mcp-gpu-gateway",
            version="0",
            instructions="",
            tools=[connectivity_tool(Checkup(self.discovery, surveyor, self.diagnose))],
            identity=lambda: Identity(name="mcp-gpu-gateway", version="0", node="here"),
        )
        async with AsyncExitStack() as stack:
            for transport in self.transports.values():
                await stack.enter_async_context(transport)
            with anyio.fail_after(120):
                async with Client(registry.server, mode="2026-07-28") as client:
                    yield client


async def ask(client: Client, **arguments: Any) -> CallToolResult:
    result = await client.call_tool(NAME, arguments)
    assert isinstance(result, CallToolResult)
    return result


async def test_a_healthy_fleet_is_two_lines_of_counts() -> None:
    fleet = Fleet(30, states={"n0000": [PathKnown("http", "proven"), PathKnown("exec", "in_use")]})
    async with fleet.client() as client:
        answer = await ask(client)
    found = data(answer)
    assert (found["verdict"], found["headline"]) == ("healthy", "healthy: all is well")
    assert (found["nodes_healthy"], found["nodes"]) == (30, [])
    assert found["healthy_by_path"] == {"http": 29, "exec": 1}
    assert [(p["via"], p["outcomes"]) for p in found["paths"]] == [
        ("http", {"ok": 30}),
        ("exec", {"ok": 30}),
    ]
    assert (found["gateway_node"], found["gateway_pod"]) == ("here", "gpu/gateway-1")
    coverage = found["coverage"]
    assert (coverage["nodes_known"], coverage["nodes_asked"], coverage["nodes_answered"]) == (
        30,
        30,
        30,
    )
    first, second, third = text(answer).splitlines()
    assert first == "HEALTHY: all is well"
    assert second == "30 of 30 nodes healthy: 29 over http, 1 over exec"
    assert third.startswith("Paths: http 30 ok (median ")


async def test_a_node_says_what_each_path_does_and_what_calls_use() -> None:
    states = [PathKnown("http", "failed", "connect timed out", 4.2), PathKnown("exec", "in_use")]
    fleet = Fleet(3, states={"n0001": states})
    fleet.cut("http", "n0001")
    fleet.cut("exec", "n0002", by=Denied)
    async with fleet.client() as client:
        answer = await ask(client)
    (node,) = data(answer)["nodes"]
    assert node["node"] == "n0001"
    assert (node["in_use"], node["why"]) == ("exec", "http failed 4 s ago: connect timed out")
    http, stream = node["paths"]
    assert (http["via"], http["outcome"], http["message"]) == (
        "http",
        "other",
        "scripted Unreachable",
    )
    assert (stream["outcome"], stream["message"]) == ("ok", None)
    assert stream["ms"] > 0
    # A fallback that is denied leaves the node healthy, and shows in the counts of its path.
    assert data(answer)["paths"][1]["outcomes"] == {"ok": 2, "other": 1}
    assert "! n0001: http other, exec ok (" in text(answer)
    assert "; calls use exec" in text(answer)
    assert "    n0001 http: scripted Unreachable" in text(answer)


def worst(names: list[str]) -> Diagnosis:
    """More than fits."""
    cause = Cause(
        code="crosssubnet-source-check",
        title="Pods' packets between nodes of one subnet are dropped: " + "x" * 200,
        confidence="high",
        node_count=len(names),
        nodes=tuple(names[:20]),
        evidence=tuple(f"evidence {n}: " + "y" * 200 for n in range(6)),
        fix=tuple(f"kubectl patch ippool pool-{n} --patch '" + "z" * 150 + "'" for n in range(6)),
    )
    return Diagnosis(
        verdict="broken",
        headline="h" * 300,
        causes=(cause,) * 5,
        patterns=tuple(f"pattern {n}: " + "p" * 200 for n in range(9)),
        ruled_out=tuple("r" * 90 for _ in range(9)),
        unread=tuple(Unread(what=f"u{n}", why="w" * 150, grant="g" * 150) for n in range(9)),
    )


async def test_a_thousand_nodes_in_every_kind_of_trouble_take_forty_lines() -> None:
    absent = tuple(AbsentAgent(f"z{number:04}", "w" * 400) for number in range(200))
    fleet = Fleet(1000, ("http", "portforward", "exec"), absent=absent)
    fleet.diagnosis = worst(fleet.names)
    fleet.cut("http", *fleet.names[4:124], *fleet.names[300:900])
    fleet.cut("portforward", *fleet.names[4:124:2], by=Gone)
    fleet.cut("portforward", *fleet.names[300:600], by=Denied)
    fleet.cut("exec", *fleet.names[4:124:3], *fleet.names[500:550], by=Denied)
    async with fleet.client() as client:
        answer = await ask(client)
        page_2 = await ask(client, cursor=data(answer)["next_cursor"], limit=500)
    for shown in (answer, page_2):
        assert len(text(shown).splitlines()) <= LINES == 40
        assert len(text(shown)) < 10_000
    said = text(answer).splitlines()
    assert said[0].startswith("BROKEN: hhh")
    assert said[1].startswith("280 of 1200 nodes healthy: ")
    for number in range(1, 6):
        assert any(line.startswith(f"{number}. Pods' packets") for line in said)
    fixes = [line for line in said if line.startswith("   fix: ")]
    assert fixes
    assert all(line.endswith("'") for line in fixes)  # half a command is worse than none
    found = data(answer)
    assert len(json.dumps(found)) < 70_000
    assert len(found["nodes"]) + found["nodes_omitted"] == 720
    assert len(found["absent"]) + found["absent_omitted"] == 200


async def test_pages_tell_each_node_once() -> None:
    fleet = Fleet(40)
    fleet.cut("http", *fleet.names)
    told: list[str] = []
    async with fleet.client() as client:
        cursor: dict[str, str] = {}
        while True:
            page = data(await ask(client, limit=15, **cursor))
            told += [node["node"] for node in page["nodes"]]
            assert page["nodes_healthy"] == 0
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
    assert told == fleet.names


async def test_nodes_that_look_alike_are_told_together() -> None:
    fleet = Fleet(60)
    fleet.cut("http", *fleet.names[4:34], *fleet.names[50:53])
    fleet.cut("exec", *fleet.names[50:53], by=Gone)
    async with fleet.client() as client:
        said = text(await ask(client))
    assert "! 3 nodes (n0050-n0052): http other, exec not_running; no path works" in said
    assert "! 30 nodes (n0004-n0033): http other, exec ok (" in said
    assert said.index("n0050-n0052") < said.index("n0004-n0033")


@pytest.mark.parametrize(
    ("names", "count", "told"),
    [
        ([], None, ""),
        (["a"], None, "a"),
        (["a", "b"], None, "a, b"),
        ([f"n{n:02}" for n in range(3, 9)], None, "n03-n08"),
        (["n01", "n02", "n04"], None, "n01, n02, n04"),
        (["n9", "n10", "n11"], None, "n10, n11, n9"),  # of unlike width: no row to the eye
        (["a1", "b2"], None, "a1, b2"),
        (
            [f"n{n:03}" for n in (*range(5, 50), 60, 70, 80, 90)],
            None,
            "n005-n049, n060, n070 and 2 more",
        ),
        (["n01", "n02", "n03"], 30, "n01-n03 and 27 more"),
    ],
)
def test_names_in_few_words(names: list[str], count: int | None, told: str) -> None:
    assert spans(names, count=count) == told


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([("a", None)], "a"),
        ([("a", 3), ("a", 1), ("a", 2), ("b", 0)], "a GPU 1-3; b GPU 0"),
        ([("a", 0), ("b", 0), ("c", None)], "a, b GPU 0; c"),
        ([("a", "NVSwitch 0000:c1:00")], "a NVSwitch 0000:c1:00"),
        ([("a", 0), ("a", "NVSwitch 0000:c1:00")], "a GPU 0, NVSwitch 0000:c1:00"),
        ([("a", f"NVSwitch 0000:c{n}:00") for n in range(5)],
         "a NVSwitch 0000:c0:00, NVSwitch 0000:c1:00, NVSwitch 0000:c2:00, 2 more"),
        ([(node, 0) for node in "adgj"], "a, d, g GPU 0 and 1 more node"),
    ],
)  # fmt: skip
def test_devices_of_nodes_in_few_words(
    members: list[tuple[str, int | str | None]], told: str
) -> None:
    assert places(members, most=3) == told


async def test_single_nodes_may_be_asked_for_and_unknown_ones_are_refused() -> None:
    fleet = Fleet(3, absent=(AbsentAgent("z", "no agent"),))
    async with fleet.client() as client:
        found = data(await ask(client, nodes=["n0001", "z"]))
        coverage = found["coverage"]
        assert (coverage["nodes_known"], coverage["nodes_asked"]) == (4, 2)
        assert found["absent"] == [{"node": "z", "why": "no agent"}]
        refused = await ask(client, nodes=["y"])
    assert refused.is_error
    assert text(refused) == 'Unknown nodes: "y". Known: n0000, n0001, n0002, z.'


async def test_nobody_known_is_an_error_that_says_why() -> None:
    fleet = Fleet(0)
    async with fleet.client() as client:
        refused = await ask(client)
        assert (refused.is_error, text(refused)) == (
            True,
            "No agents are known: a list: no agents there",
        )
        fleet.discovery.said = DiscoveryError("the API server has not answered yet")
        refused = await ask(client)
    assert text(refused) == "No agents are known: the API server has not answered yet"


async def test_every_path_of_a_large_fleet_is_tried_when_asked_for() -> None:
    fleet = Fleet(100)
    async with fleet.client() as client:
        usual = data(await ask(client))
        thorough = data(await ask(client, every_path=True))
    assert usual["paths"][1]["outcomes"]["not_tried"] > 80
    assert thorough["paths"][1]["outcomes"] == {"ok": 100}


async def test_a_client_hears_of_each_node() -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    async with Fleet(3).client() as client:
        await client.call_tool(NAME, {}, progress_callback=note)
    assert [(done, total) for done, total, _ in heard] == [(1, 3), (2, 3), (3, 3)]
    assert {message for *_, message in heard} == {f"n000{n} answers" for n in range(3)}


async def test_the_answer_fits_the_schema_that_is_listed() -> None:
    fleet = Fleet(5)
    fleet.diagnosis = worst(fleet.names)
    fleet.cut("http", "n0001")
    async with fleet.client() as client:
        (listed,) = (await client.list_tools()).tools
        found = data(await ask(client))
    check("gateway", listed, found)
    assert listed.annotations is not None
    assert listed.annotations.read_only_hint

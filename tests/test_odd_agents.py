"""A gateway among agents whose answers fit their tool and are odd: one costs the others nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mcp import Client
from mcp_types import CallToolResult
from pydantic import BaseModel

from mcp_gpu.registry import Arguments, ToolError
from mcp_gpu.serving.server import HttpEndpoint
from mcp_gpu.tools import fleet_health, fleet_inventory, fleet_xids
from support import served
from support.fleet import Agent, Foreign, inventory
from support.health import HealthAgent, assessment, finding
from support.results import data, text
from support.terminal import run
from support.wire import serving
from support.xids import XidAgent, line

Edit = Callable[[dict[str, Any]], None]

EVIL = "\x1b[2J\x1b]0;x\x07 one\r\nSETTLED forged \u202e\u2028 two \x9b31m"


class OddXids(XidAgent):
    """Answers as a real one, but for an edit."""

    def __init__(self, node: str, edit: Edit, *lines: tuple[str, str]) -> None:
        super().__init__(node, *lines)
        self.edit = edit

    def answer(self, arguments: Arguments) -> BaseModel:
        return edited(super().answer(arguments), self.edit)


class OddHealth(HealthAgent):
    """Answers as a real one, but for an edit."""

    def __init__(self, node: str, edit: Edit) -> None:
        super().__init__(node, assessment(finding("ecc")))
        self.edit = edit

    def answer(self, arguments: Arguments) -> BaseModel:
        return edited(super().answer(arguments), self.edit)


def edited(answer: BaseModel, edit: Edit) -> BaseModel:
    document = answer.model_dump(mode="json")
    edit(document)
    return Foreign(**document)


async def ask(client: Client, tool: str, **arguments: Any) -> CallToolResult:
    result = await client.call_tool(tool, arguments)
    assert isinstance(result, CallToolResult)
    return result


async def ask_xids(agents: dict[str, Agent], **arguments: Any) -> CallToolResult:
    async with served.gateway(fleet_xids.gateway_tool, agents) as client:
        return await ask(client, "analyze_xid_errors", **arguments)


async def ask_health(agents: dict[str, Agent], **arguments: Any) -> CallToolResult:
    async with served.gateway(fleet_health.gateway_tool, agents) as client:
        return await ask(client, "get_gpu_health", **arguments)


async def ask_inventory(agents: dict[str, Agent], **arguments: Any) -> CallToolResult:
    async with served.gateway(fleet_inventory.gateway_tool, agents) as client:
        return await ask(client, "get_gpu_inventory", **arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("codes", []),
        ("first", ""),
        ("first", "2026-11-26T10:00:00"),
        ("first", "2026-11-26T10:00:00+01:00"),
        ("first", "2026-13-45T10:00:00Z"),
        ("last", "now"),
    ],
)
async def test_a_chain_that_cannot_be_costs_its_own_node(name: str, value: object) -> None:
    def edit(answer: dict[str, Any]) -> None:
        answer["devices"][0]["chains"][0][name] = value

    agents: dict[str, Agent] = {
        "good": XidAgent("good", ("10:00:00", line(79))),
        "odd": OddXids("odd", edit, ("10:00:00", line(79))),
    }
    found = data(await ask_xids(agents))
    assert [(each["code"], each["where"]) for each in found["patterns"]] == [(79, "good GPU 0")]
    (failure,) = found["failures"]
    assert (failure["node"], failure["reason"]) == ("odd", "bad_response")
    assert f"devices.0.chains.0.{name}" in failure["message"]


async def test_an_action_that_nobody_knows_does_not_end_the_pages() -> None:
    def edit(answer: dict[str, Any]) -> None:
        answer["devices"][0]["action"] = "SING_TO_IT"

    agents: dict[str, Agent] = {
        name: OddXids(name, edit, ("10:00:00", line(79))) for name in ("a", "b")
    }
    first = data(await ask_xids(agents, limit=1))
    second = data(await ask_xids(agents, limit=1, cursor=first["next_cursor"]))
    assert [node["node"] for page in (first, second) for node in page["nodes"]] == ["a", "b"]


def everywhere(said: str) -> Edit:
    """Puts it into every text of an answer that is free."""
    kept = {"action", "bucket", "kind", "severity", "verdict", "state", "since", "source"}
    kept |= {"first", "last", "confidence", "sources", "models"}

    def put(value: Any) -> Any:
        if isinstance(value, str):
            return value + said
        if isinstance(value, list):
            return [put(each) for each in value]
        if isinstance(value, dict):
            return {name: each if name in kept else put(each) for name, each in value.items()}
        return value

    def edit(answer: dict[str, Any]) -> None:
        answer |= put(answer) | {"driver_version": answer["driver_version"]}
        answer["message"] = said

    return edit


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in value if isinstance(value, list) else ():
        yield from texts(each)
    for name, each in value.items() if isinstance(value, dict) else ():
        yield name
        yield from texts(each)


def odd_inventory(said: str) -> Agent:
    return Agent("odd", inventory("odd", attention=(f"note {said}",), message=said))


ODD: list[tuple[Callable[..., Any], Callable[[str], Agent]]] = [
    (ask_xids, lambda said: OddXids("odd", everywhere(said), ("10:00:00", line(48)))),
    (ask_health, lambda said: OddHealth("odd", everywhere(said))),
    (ask_inventory, odd_inventory),
]


@pytest.mark.parametrize(("asked", "made"), ODD)
@pytest.mark.parametrize("detail", ["summary", "full"])
async def test_what_an_agent_says_neither_acts_on_a_terminal_nor_feigns_a_line(
    asked: Callable[..., Any], made: Callable[[str], Agent], detail: str
) -> None:
    answer = await asked({"odd": made(EVIL)}, detail=detail)
    assert all(said.isprintable() for said in texts(data(answer)))
    assert all(told.isprintable() for told in text(answer).split("\n"))
    assert not [told for told in text(answer).split("\n") if told.startswith("SETTLED forged")]
    assert "forged" in text(answer)


@pytest.mark.parametrize(("asked", "made"), ODD)
async def test_a_text_without_an_end_leaves_a_summary_short(
    asked: Callable[..., Any], made: Callable[[str], Agent]
) -> None:
    answer = await asked({"odd": made("x" * 10_000)})
    assert len(json.dumps(data(answer))) < 40_000
    assert len(text(answer)) < 10_000


async def test_an_error_of_an_agents_tool_is_one_short_line() -> None:
    agent = XidAgent("odd")
    agent.error = ToolError(EVIL + "x" * 10_000)
    answer = await ask_xids({"odd": agent}, detail="full")
    (failure,) = data(answer)["failures"]
    assert failure["message"].isprintable()
    assert len(failure["message"]) <= 2_000
    assert all(told.isprintable() for told in text(answer).split("\n"))


async def test_what_a_gateway_says_does_not_act_on_a_terminal() -> None:
    answer = data(await ask_inventory({"a": Agent("a", inventory("a"))}))
    answer["nodes"][0]["attention"] = [EVIL]
    answer["coverage"]["discovery_problem"] = EVIL
    odd = Agent("gateway", Foreign(**answer), arguments=fleet_inventory.GatewayArguments)
    async with serving(odd.registry, http=HttpEndpoint(port=0)) as listening:
        url = f"http://127.0.0.1:{listening.http[0][1]}/mcp"
        found = await run("status", "--url", url)
        odd.error = ToolError(EVIL)
        refused = await run("status", "--url", url)
    assert (found.status, refused.status) == (0, 2)
    for shown in (found.shown, refused.said):
        assert "forged" in shown
        assert all(told.isprintable() for told in shown.split("\n"))
        assert not [told for told in shown.split("\n") if told.startswith("SETTLED forged")]

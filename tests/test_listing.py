"""What each role lists. It is kept beside the tools, since making it takes time at every start."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import anyio
import pytest
from mcp import Client

from bench.sizes import LISTED_CHARS
from mcp_gpu.registry import Answer, Arguments, Call, Makers, Registry, Tool, from_listing
from mcp_gpu.registry.schema import compact
from mcp_gpu.tools import agent, gateway
from support.demo_server import Text
from support.schemas import FOLDER, promised
from support.wire import PATIENCE_SECONDS, request
from transports.base import Identity

NOBODY: Any = None
"""Whom a tool would ask if it were called."""

MAKERS = {
    "agent": agent.makers(MagicMock()),
    "gateway": gateway.makers(NOBODY, NOBODY, NOBODY),
}
LISTINGS = {"agent": agent.LISTING, "gateway": gateway.LISTING}
FLAGS = {"agent": ["--simulate", "demo", "--node-name", "h100-a"], "gateway": ["--agents", "a"]}


def shown(makers: Makers) -> list[dict[str, Any]]:
    tools = {name: make() for name, make in makers.items()}
    assert [tool.name for tool in tools.values()] == list(tools)
    listed = [tool.listed() for tool in tools.values()]
    return [each.model_dump(by_alias=True, mode="json", exclude_none=True) for each in listed]


@pytest.mark.parametrize("role", MAKERS)
def test_what_is_kept_is_what_the_tools_say(role: str, pytestconfig: pytest.Config) -> None:
    """A change of the file changes what clients see: say so in CHANGELOG.md."""
    text = json.dumps({"tools": shown(MAKERS[role])}, indent=1) + "\n"
    if pytestconfig.getoption("--update-golden"):
        LISTINGS[role].write_text(text, encoding="utf-8")
    assert LISTINGS[role].read_text(encoding="utf-8") == text


@pytest.mark.parametrize("role", MAKERS)
def test_a_whole_schema_is_what_its_tool_answers(role: str, pytestconfig: pytest.Config) -> None:
    """A change of the file changes what clients read: say so in CHANGELOG.md."""
    tools = [make() for make in MAKERS[role].values()]
    whole = {tool.name: compact(tool.result, "serialization") for tool in tools}
    text = json.dumps(whole, indent=1) + "\n"
    path = FOLDER / f"{role}.json"
    if pytestconfig.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(("role", "chars"), LISTED_CHARS.items())
def test_what_is_listed_fits_a_models_context(role: str, chars: int) -> None:
    kept = json.loads(LISTINGS[role].read_text(encoding="utf-8"))
    assert len(json.dumps(kept, separators=(",", ":"), ensure_ascii=False)) <= chars


@pytest.mark.parametrize("role", MAKERS)
def test_of_objects_in_an_answer_only_the_names_are_listed(role: str) -> None:
    kept = json.loads(LISTINGS[role].read_text(encoding="utf-8"))
    (schema,) = (t["outputSchema"] for t in kept["tools"] if t["name"] == "get_gpu_inventory")
    key = {"agent": "gpus", "gateway": "nodes"}[role]
    whole = promised(role, "get_gpu_inventory")["$defs"]
    model = whole[{"agent": "Gpu", "gateway": "FleetNode"}[role]]
    line, names = model["description"].partition("\n")[0], ", ".join(model["properties"])
    assert schema["properties"][key]["items"] == {
        "type": "object",
        "description": f"{line} Fields: {names}.",
    }
    assert "$defs" not in schema


@pytest.mark.parametrize("role", MAKERS)
async def test_a_client_is_shown_what_is_kept(role: str) -> None:
    command = [sys.executable, "-m", "mcp_gpu", role, "--stdio", *FLAGS[role]]
    asked = json.dumps(request("tools/list")).encode() + b"\n"
    with anyio.fail_after(PATIENCE_SECONDS):
        done = await anyio.run_process(command, input=asked)
    kept = json.loads(LISTINGS[role].read_text(encoding="utf-8"))
    assert json.loads(done.stdout)["result"]["tools"] == kept["tools"]


async def nothing(arguments: Arguments, call: Call) -> Answer:
    return Answer("nothing", Text(title="nothing"))


DEMO = Tool(
    name="demo", title="Demo", description="D.", arguments=Arguments, result=Text, run=nothing
)


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    path = tmp_path / "demo.json"
    path.write_text(json.dumps({"tools": shown({"demo": lambda: DEMO})}), encoding="utf-8")
    return path


async def test_a_tool_is_made_once_by_its_first_call(listing: Path) -> None:
    made = []

    def make() -> Tool[Arguments]:
        made.append("demo")
        return DEMO

    registry = Registry(
        name="x",
        version="1",
        instructions="",
        tools=from_listing(listing, {"demo": make}),
        identity=lambda: Identity(name="x", version="1", node="n"),
    )
    assert registry.identity().tools == {"demo": ()}
    async with Client(registry.server, mode="2026-07-28") as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["demo"]
        assert made == []
        for _ in range(2):
            assert not (await client.call_tool("demo", {})).is_error
    assert made == ["demo"]


def test_a_listing_and_its_makers_name_the_same_tools(listing: Path) -> None:
    with pytest.raises(KeyError, match="demo"):
        from_listing(listing, {})
    with pytest.raises(ValueError, match="does not list other"):
        from_listing(listing, {"demo": lambda: DEMO, "other": lambda: DEMO})


def test_a_node_is_named_alike_wherever_nodes_are_asked_for() -> None:
    listed = json.loads(gateway.LISTING.read_text())
    tools = listed["tools"] if isinstance(listed, dict) else listed
    asked = {tool["name"]: tool["inputSchema"]["properties"] for tool in tools}
    of_fleets = {name for name, properties in asked.items() if "nodes" in properties}
    assert len(of_fleets) >= 8
    assert {name for name in of_fleets if "node" not in asked[name]} == set()

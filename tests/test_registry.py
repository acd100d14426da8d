"""How declared tools look and behave to a client, in both protocol eras."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import anyio
import jsonschema
import pytest
from mcp import Client, MCPError

from mcp_gpu.registry import Answer, Arguments, Call, Registry, Tool
from support.demo_server import Gate, Text, registry
from support.wire import ERAS, PATIENCE_SECONDS
from transports.base import Identity


@pytest.fixture(params=ERAS)
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with Client(
            registry(answer_bytes=10_000).server, mode=request.param, read_timeout_seconds=10
        ) as client:
            yield client


def text(result: Any) -> str:
    return result.content[0].text


async def test_tools_are_listed_by_name_with_closed_schemas(client: Client) -> None:
    tools = (await client.list_tools()).tools
    names = [tool.name for tool in tools]
    assert names == sorted(names)
    for tool in tools:
        jsonschema.Draft202012Validator.check_schema(tool.input_schema)
        assert tool.input_schema["type"] == "object"
        assert tool.input_schema["additionalProperties"] is False
        assert "title" not in tool.input_schema


async def test_every_tool_is_declared_read_only_with_all_four_annotations(client: Client) -> None:
    for tool in (await client.list_tools()).tools:
        notes = tool.annotations
        assert notes is not None
        assert (notes.read_only_hint, notes.destructive_hint) == (True, False)
        assert (notes.idempotent_hint, notes.open_world_hint) == (True, False)
        assert notes.title == tool.title


async def test_a_field_called_title_survives_the_removal_of_titles(client: Client) -> None:
    echo = next(tool for tool in (await client.list_tools()).tools if tool.name == "echo")
    assert echo.output_schema is not None
    assert echo.output_schema["properties"]["title"] == {"type": "string"}


async def test_an_answer_is_text_and_data_with_nulls_kept(client: Client) -> None:
    result = await client.call_tool("echo", {"text": "hi", "times": 2, "shout": True})
    assert text(result) == "HIHI"
    assert result.structured_content == {"title": "hi", "nothing": None}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"text": "a", "tims": 2}, ['unknown argument "tims"', "Allowed: text, times, shout"]),
        ({}, ['missing argument "text"']),
        ({"text": "a", "times": "2"}, ['"times"', "valid integer", '"2"']),
        ({"text": "a", "times": 0}, ['"times"', "greater than or equal to 1"]),
        ({"text": "a", "shout": 1}, ['"shout"', "boolean"]),
        ({"text": None}, ['"text"', "string", "null"]),
        ({"text": "a", "times": True}, ['"times"', "integer"]),
        ({"text": "a", **{f"x{i}": i for i in range(20)}}, ["and 15 more problems"]),
        ({"text": "\ud800"}, ["not valid text"]),
    ],
)
async def test_wrong_arguments_are_refused_by_name(
    client: Client, arguments: dict[str, Any], named: list[str]
) -> None:
    result = await client.call_tool("echo", arguments)
    assert result.is_error
    for words in ["echo", *named]:
        assert words in text(result)
    assert "pydantic" not in text(result)
    assert len(text(result)) < 1000


async def test_a_long_wrong_value_is_quoted_in_part(client: Client) -> None:
    result = await client.call_tool("echo", {"text": ["x" * 100_000]})
    assert result.is_error
    assert len(text(result)) < 300


async def test_what_a_tool_refuses_is_told_in_its_own_words(client: Client) -> None:
    result = await client.call_tool("refuse", {})
    assert result.is_error
    assert text(result) == "no agent is known; set MCP_GPU_AGENTS"


async def test_a_crash_is_told_by_reference_and_logged_in_full(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        result = await client.call_tool("crash", {})
    assert result.is_error
    assert "secret" not in text(result)
    reference = text(result).partition("reference ")[2].partition(")")[0]
    assert reference
    assert reference in caplog.text
    assert "a secret of the house" in caplog.text


async def test_an_unknown_tool_is_a_protocol_error_that_names_the_known(client: Client) -> None:
    with pytest.raises(MCPError) as caught:
        await client.call_tool("ecko", {})
    assert caught.value.code == -32602
    assert "echo" in caught.value.message


async def test_an_answer_over_the_limit_becomes_an_error_with_advice(client: Client) -> None:
    assert not (await client.call_tool("large", {"chars": 9_000})).is_error
    result = await client.call_tool("large", {"chars": 10_000})
    assert result.is_error
    assert "10,0" in text(result)
    assert "chars" in text(result)


async def test_the_caller_is_named_where_it_says_so(client: Client) -> None:
    result = await client.call_tool("who", {})
    assert text(result).startswith(("mcp", "unknown"))


async def test_progress_reaches_a_caller_that_asks_for_it(client: Client) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(done: float, total: float | None, message: str | None) -> None:
        heard.append((done, total, message))

    await client.call_tool("sleep", {"steps": 2}, progress_callback=hear)
    assert heard == [(1, 2, "step 1"), (2, 2, "step 2")]


async def test_progress_gives_up_on_a_caller_that_does_not_listen() -> None:
    async def deaf(done: float, total: float | None, message: str | None) -> None:
        await anyio.sleep_forever()

    with anyio.fail_after(PATIENCE_SECONDS):
        await Call(report=deaf).progress(1)


async def test_calls_are_counted_by_outcome() -> None:
    gate = Gate()
    served = registry(gate, answer_bytes=1000)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with Client(served.server, mode="2026-07-28", read_timeout_seconds=10) as client:
            await client.call_tool("echo", {"text": "a"})
            await client.call_tool("echo", {})
            await client.call_tool("refuse", {})
            await client.call_tool("crash", {})
            await client.call_tool("large", {"chars": 2000})
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.call_tool, "wait", {})
                await gate.until_entered(1)
                tasks.cancel_scope.cancel()
            await gate.until_cancelled(1)
    assert served.calls.counts == {
        ("echo", "ok"): 1,
        ("echo", "bad_arguments"): 1,
        ("refuse", "tool_error"): 1,
        ("crash", "internal_error"): 1,
        ("large", "too_large"): 1,
        ("wait", "cancelled"): 1,
    }


def test_the_identity_lists_each_tool_with_its_arguments() -> None:
    identity = registry().identity()
    assert identity.tools["echo"] == ("text", "times", "shout")
    assert Identity.from_wire(identity.to_wire()) == identity


def test_two_tools_of_one_name_are_refused() -> None:
    async def run(arguments: Arguments, call: Call) -> Answer:
        raise AssertionError("never called")

    tool = Tool(name="a", title="A", description="A.", arguments=Arguments, result=Text, run=run)
    with pytest.raises(ValueError, match="share a name"):
        Registry(
            name="x",
            version="1",
            instructions="",
            tools=[tool, tool],
            identity=lambda: Identity(name="x", version="1", node="n"),
        )

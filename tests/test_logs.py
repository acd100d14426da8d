"""Every line that is written for a call names it."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import pytest
from mcp import Client, StdioServerParameters, stdio_client
from pydantic import BaseModel

from mcp_gpu import logs
from mcp_gpu.registry import Answer, Arguments, Call, Tool
from mcp_gpu.telemetry.calls import Calls, Ended
from support.routed import running, ways
from support.served import registry
from transports.base import CALL_META_KEY

logger = logging.getLogger("mcp_gpu.test")

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Nothing(Arguments):
    pass


class Done(BaseModel):
    done: bool = True


async def work(arguments: Nothing, call: Call) -> Answer:
    """Log in this task, in one that it starts, and on a thread."""
    logger.info("in the task")
    async with anyio.create_task_group() as tasks:

        async def beside() -> None:
            logger.info("in another")

        tasks.start_soon(beside)
    await anyio.to_thread.run_sync(logger.info, "on a thread")
    return Answer("done", Done())


TOOL = Tool(name="work", title="t", description="d", arguments=Nothing, result=Done, run=work)

CALLS = 900
"""Each writes a line of more than 100 characters, and a pipe takes 65,536."""

SAID = ("in the task", "in another", "on a thread", "call ended")


async def said(meta: dict[str, Any], form: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is logged of one call, between a line before it and one after it."""
    logs.configure("info", form)
    async with Client(registry(TOOL).server, mode="2026-07-28") as client:
        logger.info("before")
        await client.call_tool("work", {}, meta=meta)  # type: ignore[arg-type]
        logger.info("after")
    before, *lines, after = capsys.readouterr().err.splitlines()
    assert "call" not in before + after
    return lines


async def test_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    meta = {CALL_META_KEY: "0123456789abcdef", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    lines = [json.loads(line) for line in await said(meta, "json", capsys)]
    assert [line["message"] for line in lines] == list(SAID)
    assert {line["call"] for line in lines} == {"0123456789abcdef"}
    # Its own trace, though nobody here records one.
    assert {line["trace"] for line in lines} == {TRACE}
    assert (lines[-1]["tool"], lines[-1]["outcome"]) == ("work", "ok")


@pytest.mark.parametrize("given", ["", "short", "g" * 16, "a" * 33, "a b c d e f", 12345678, None])
async def test_in_text_under_an_id_of_its_own(
    given: object, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = await said({CALL_META_KEY: given}, "text", capsys)
    found = [re.fullmatch(r".*: (.+?) (?:tool=.* )?call=([0-9a-f]{8})", line) for line in lines]
    assert [match and match[1] for match in found] == list(SAID)
    assert len({match and match[2] for match in found}) == 1


async def test_an_agent_knows_a_call_by_the_gateways_id_over_a_hedge_too() -> None:
    async with running("a") as fleet:
        ended: list[Ended] = []
        fleet.agents["a"].registry.calls.observers.append(ended.append)
        calls = Calls()
        with calls.run("ask", None, call_id="00000001", client="c"):
            assert ways(await fleet.ask()) == {"a": "http"}
        fleet.http.silent.add("a")
        with calls.run("ask", None, call_id="00000002", client="c") as call:
            assert ways(await fleet.ask()) == {"a": "command"}
        assert call.nodes == {"a": True}
        assert [each.id for each in ended] == ["00000001", "00000002"]


@pytest.fixture
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Both ends, to read and to write."""
    ours, its = os.pipe()
    with open(ours, "rb") as read, open(its, "wb") as written:
        yield read, written


async def test_whoever_reads_no_standard_error_is_served_all_the_same(
    tmp_path: Path, pipe: tuple[BinaryIO, BinaryIO]
) -> None:
    said, errors = pipe
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('[[nodes]]\nname = "a"\nprofile = "t4"\n')
    arguments = ["agent", "--stdio", "--no-http", "--socket", str(tmp_path / "own" / "a.sock")]
    arguments += ["--node-name", "a", "--simulate", str(fleet)]
    server = StdioServerParameters(command=sys.executable, args=["-m", "mcp_gpu", *arguments])
    with anyio.fail_after(120):
        async with Client(stdio_client(server, errlog=errors)) as client:  # type: ignore[arg-type]
            for _ in range(CALLS):
                assert not (await client.call_tool("get_gpu_inventory", {})).is_error
            os.set_blocking(said.fileno(), False)
            first = said.read()
            await client.call_tool("get_gpu_inventory", {})
    errors.close()
    os.set_blocking(said.fileno(), True)
    lines = (first + said.read()).decode().splitlines()
    (lost,) = re.findall(r"lines of this log were lost: (\d+)", "".join(lines))
    assert int(lost) > 0
    assert sum("call ended" in line for line in lines) + int(lost) == CALLS + 1
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in lines)

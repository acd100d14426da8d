"""Standard input and output, as a child process of the client."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters, stdio_client

from support.wire import DEMO, ERAS, Lines, announced, call, child


@pytest.mark.parametrize("mode", ERAS)
async def test_an_sdk_client_lists_and_calls_and_stray_prints_do_no_harm(mode: Any) -> None:
    server = StdioServerParameters(command=sys.executable, args=[str(DEMO), "--stdio"])
    with anyio.fail_after(30):
        async with Client(stdio_client(server), mode=mode, read_timeout_seconds=20) as client:
            assert "echo" in {tool.name for tool in (await client.list_tools()).tools}
            result = await client.call_tool("stray", {})
            assert result.content[0].text == "printed"
            result = await client.call_tool("large", {"chars": 900_000})
            assert len(result.content[0].text) == 900_000


async def test_stray_prints_appear_on_stderr() -> None:
    async with child("--stdio") as process:
        _, errors = await announced(process)
        lines = Lines(anyio.streams.stapled.StapledByteStream(process.stdin, process.stdout))
        await lines.send(call("stray"))
        assert (await lines.receive())["id"] == 1
        assert b"a stray print" in await errors.stream.receive()


async def test_end_of_input_ends_the_process_once_calls_in_flight_are_answered() -> None:
    async with child("--stdio") as process:
        lines = Lines(anyio.streams.stapled.StapledByteStream(process.stdin, process.stdout))
        await lines.send(call("sleep", 1, seconds=0.5), call("echo", 2, text="b"))
        await process.stdin.aclose()
        assert {message["id"] for message in await lines.rest()} == {1, 2}
        assert await process.wait() == 0


async def test_a_file_may_be_the_input(tmp_path: Path) -> None:
    script = tmp_path / "requests"
    script.write_text("".join(json.dumps(call("echo", n, text="a")) + "\n" for n in range(3)))
    with script.open("rb") as requests:
        async with child("--stdio", stdin=requests, stderr=subprocess.DEVNULL) as process:
            lines = Lines(process.stdout)  # type: ignore[arg-type]
            assert sorted(message["id"] for message in await lines.rest()) == [0, 1, 2]
            assert await process.wait() == 0


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_socket_may_be_both_ends_and_keeps_its_blocking_mode(blocking: bool) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(blocking)
    with theirs:
        async with (
            child("--stdio", stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL) as process,
            await anyio.abc.UNIXSocketStream.from_socket(ours) as stream,
        ):
            lines = Lines(stream)
            await lines.send(*(call("large", n, chars=300_000) for n in range(5)))
            assert {(await lines.receive())["id"] for _ in range(5)} == set(range(5))
            assert os.get_blocking(theirs.fileno()) is blocking
            await stream.send_eof()
            assert await process.wait() == 0


async def test_a_line_that_is_no_message_gets_an_error() -> None:
    async with child("--stdio", stderr=subprocess.DEVNULL) as process:
        lines = Lines(anyio.streams.stapled.StapledByteStream(process.stdin, process.stdout))
        await lines.send(b"{bad", call("echo", 2, text="b"))
        assert (await lines.receive())["error"]["code"] == -32700
        assert (await lines.receive())["id"] == 2


async def test_a_client_that_closes_its_end_ends_the_process() -> None:
    reading, writing = os.pipe()
    async with child("--stdio", stdout=writing, stderr=subprocess.DEVNULL) as process:
        os.close(writing)
        assert process.stdin is not None
        await Lines(process.stdin).send(call("large", chars=900_000))  # type: ignore[arg-type]
        await anyio.wait_readable(reading)
        os.close(reading)
        assert await process.wait() == 0

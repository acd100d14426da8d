"""Signals to a real process with everything open: it ends, with status 0, and answers first."""

import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.abc import Process

from support.wire import Lines, announced, call, child, headers, request, unix_lines

END_SECONDS = 6.0
"""What is promised: less than Kubernetes' grace period by far."""

LISTEN = request("subscriptions/listen", "listen", notifications={"toolsListChanged": True})


@asynccontextmanager
async def everything_open(
    socket_path: Path, *arguments: str, begin: dict[str, object]
) -> AsyncIterator[tuple[Process, Lines, Lines]]:
    """A server with a subscription on each listener and one call begun over stdin."""
    async with child(
        "--http", "0", "--socket", str(socket_path), "--stdio", *arguments, stdin=subprocess.PIPE
    ) as process:
        where, errors = await announced(process)
        address = "http://{}:{}/mcp".format(*where["http"][0])
        accept = headers(LISTEN, "application/json, text/event-stream")
        stdio = Lines(anyio.streams.stapled.StapledByteStream(process.stdin, process.stdout))
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            client.stream("POST", address, json=LISTEN, headers=accept) as events,
            unix_lines(socket_path) as unix,
        ):
            assert events.status_code == 200
            await unix.send(LISTEN)
            assert "acknowledged" in (await unix.receive())["method"]
            await stdio.send(LISTEN)
            assert "acknowledged" in (await stdio.receive())["method"]
            await stdio.send(begin)
            assert await errors.receive() == {"slept": "begun"}
            yield process, stdio, unix


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_everything_and_calls_in_flight_are_answered(
    number: signal.Signals, tmp_path: Path
) -> None:
    path = tmp_path / "own" / "agent.sock"
    begin = call("sleep", "call", seconds=1.0)
    async with everything_open(path, begin=begin) as (process, stdio, unix):
        process.send_signal(number)
        with anyio.fail_after(END_SECONDS):
            answers = {message["id"]: message["result"] for message in await stdio.rest()}
            assert await process.wait() == 0
        assert answers["call"]["content"][0]["text"] == "slept"
        assert answers["listen"]["resultType"] == "complete"
        assert [message["id"] for message in await unix.rest()] == ["listen"]
        assert not path.exists()


async def test_a_call_without_end_and_a_hung_thread_do_not_keep_the_process(tmp_path: Path) -> None:
    path = tmp_path / "own" / "agent.sock"
    begin = call("sleep", "call", seconds=600)
    async with everything_open(path, "--hung-thread", begin=begin) as (process, _, _):
        process.terminate()
        with anyio.fail_after(END_SECONDS):
            assert await process.wait() == 0


async def test_a_blocked_event_loop_does_not_keep_the_process(tmp_path: Path) -> None:
    path = tmp_path / "own" / "agent.sock"
    begin = call("block", "call", seconds=600)
    async with everything_open(path, begin=begin) as (process, _, _):
        process.terminate()
        with anyio.fail_after(END_SECONDS):
            assert await process.wait() == 1


async def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    path = tmp_path / "own" / "agent.sock"
    begin = call("sleep", "call", seconds=600)
    async with everything_open(path, begin=begin) as (process, _, unix):
        process.terminate()
        # Its subscriptions end when the first signal has been taken.
        assert (await unix.until("listen"))["result"]["resultType"] == "complete"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 1


async def test_a_taken_port_is_told_without_a_traceback() -> None:
    async with child("--http", "0") as first:
        where, _ = await announced(first)
        port = where["http"][0][1]
        async with child("--http", str(port)) as second:
            assert await second.wait() == 2
            assert second.stderr is not None
            told = b"".join([chunk async for chunk in second.stderr]).decode()
    assert told == f"port {port} on 127.0.0.1 is taken by another process; choose another port\n"

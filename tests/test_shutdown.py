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

from mcp_gpu.serving.server import DRAIN_MARGIN_SECONDS, DRAIN_SECONDS, LAST_RESORT_SECONDS
from support.wire import Lines, announced, call, child, headers, request, unix_lines

END_SECONDS = 25.0
"""Within Kubernetes' grace period of 30 s, however busy the machine."""

PROMISED_SECONDS = 6.0
"""What a free one takes at most, besides a delay: what is waited for adds up to less."""

LISTEN = request("subscriptions/listen", "listen", notifications={"toolsListChanged": True})


@asynccontextmanager
async def everything_open(
    socket_path: Path, *arguments: str, begin: dict[str, object]
) -> AsyncIterator[tuple[Process, Lines, Lines, int]]:
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
            yield process, stdio, unix, where["http"][0][1]


def test_what_an_end_waits_for_is_less_than_is_promised() -> None:
    """What the tests below cannot tell apart from a busy machine."""
    assert DRAIN_SECONDS + LAST_RESORT_SECONDS < PROMISED_SECONDS
    assert DRAIN_MARGIN_SECONDS < LAST_RESORT_SECONDS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_everything_and_calls_in_flight_are_answered(
    number: signal.Signals, tmp_path: Path
) -> None:
    path = tmp_path / "own" / "agent.sock"
    begin = call("sleep", "call", seconds=1.0)
    async with everything_open(path, begin=begin) as (process, stdio, unix, _):
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
    async with everything_open(path, "--hung-thread", begin=begin) as (process, _, _, _):
        process.terminate()
        with anyio.fail_after(END_SECONDS):
            assert await process.wait() == 0


@pytest.mark.parametrize("delay", [0, 1])
async def test_a_blocked_event_loop_does_not_keep_the_process(delay: int, tmp_path: Path) -> None:
    path = tmp_path / "own" / "agent.sock"
    begin = call("block", "call", seconds=600)
    async with everything_open(path, "--delay", str(delay), begin=begin) as (process, _, _, _):
        process.terminate()
        with anyio.fail_after(delay + END_SECONDS):
            assert await process.wait() == 1


async def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    path = tmp_path / "own" / "agent.sock"
    begin = call("sleep", "call", seconds=600)
    async with everything_open(path, begin=begin) as (process, _, unix, _):
        process.terminate()
        # Its subscriptions end when the first signal has been taken.
        assert (await unix.until("listen"))["result"]["resultType"] == "complete"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_while_load_balancers_learn_of_the_stop_every_listener_serves_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    path = tmp_path / "own" / "agent.sock"
    begin = call("sleep", "first", seconds=0.1)
    async with everything_open(path, "--delay", "2", begin=begin) as (process, stdio, unix, port):
        process.send_signal(number)
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            url = f"http://127.0.0.1:{port}"
            while (ready := await client.get(f"{url}/readyz")).status_code == 200:
                await anyio.sleep(0.01)
            assert (ready.status_code, ready.json()["status"]) == (503, "stopping")
            healthy = await client.get(f"{url}/healthz")
            assert healthy.status_code == 200
            message = call("echo", text="late")
            answer = await client.post(f"{url}/mcp", json=message)
            assert answer.json()["result"]["content"][0]["text"] == "late"
            # Who keeps a connection is sent elsewhere with the answer, not cut off later.
            for response in (ready, healthy, answer):
                assert response.headers["connection"] == "close"
            await stdio.send(call("echo", "over stdio", text="late"))
            await unix.send(call("echo", "over unix", text="late"))
            for lines, name in ((stdio, "over stdio"), (unix, "over unix")):
                found = (await lines.until(name))["result"]["content"][0]["text"]
                assert found == "late"
            async with unix_lines(path) as another:
                await another.send(call("echo", "new", text="late"))
                assert (await another.until("new"))["result"]["content"][0]["text"] == "late"
            # All this within the delay, or the last answer would not have come.
            assert (await client.get(f"{url}/readyz")).json()["status"] == "stopping"
        with anyio.fail_after(2 + END_SECONDS):
            assert await process.wait() == 0
        assert [message["id"] for message in await unix.rest()] == ["listen"]
        assert not path.exists()


async def test_a_second_signal_cuts_the_delay_short(tmp_path: Path) -> None:
    path = tmp_path / "own" / "agent.sock"
    begin = call("sleep", "call", seconds=0.0)
    async with everything_open(path, "--delay", "600", begin=begin) as (process, _, _, port):
        process.terminate()
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            while (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200:
                await anyio.sleep(0.01)
        process.terminate()
        with anyio.fail_after(END_SECONDS):
            assert await process.wait() == 1


async def test_a_client_at_stdin_that_goes_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "own" / "agent.sock"
    begin = call("sleep", "call", seconds=0.0)
    async with everything_open(path, "--delay", "600", begin=begin) as (process, _, _, _):
        assert process.stdin is not None
        await process.stdin.aclose()
        with anyio.fail_after(END_SECONDS):
            assert await process.wait() == 0


async def test_a_taken_port_is_told_without_a_traceback() -> None:
    async with child("--http", "0") as first:
        where, _ = await announced(first)
        port = where["http"][0][1]
        async with child("--http", str(port)) as second:
            assert await second.wait() == 2
            assert second.stderr is not None
            told = b"".join([chunk async for chunk in second.stderr]).decode()
    assert told == f"port {port} on 127.0.0.1 is taken by another process; choose another port\n"

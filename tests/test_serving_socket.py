"""The agent's Unix socket: who gets in, what is answered, and what becomes of bad input."""

import json
import math
import os
import select
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from mcp import Client

import mcp_gpu.serving.stream
import mcp_gpu.serving.unixsocket
from mcp_gpu.serving.server import ListenError, serve
from support.demo_server import Gate, registry
from support.wire import ERAS, PATIENCE_SECONDS, call, request, serving, unix_lines, unix_transport


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "own" / "agent.sock"


@pytest.mark.parametrize("mode", ERAS)
async def test_an_sdk_client_lists_and_calls_over_the_socket(mode: Any, path: Path) -> None:
    heard: list[float] = []

    async def hear(done: float, total: float | None, message: str | None) -> None:
        heard.append(done)

    async with (
        serving(registry(), socket_path=path),
        Client(unix_transport(path), mode=mode, read_timeout_seconds=10) as client,
    ):
        assert "echo" in {tool.name for tool in (await client.list_tools()).tools}
        await client.call_tool("sleep", {"steps": 2}, progress_callback=hear)
    assert heard == [1, 2]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_the_directory_and_the_socket_are_closed_to_others_and_removed(path: Path) -> None:
    async with serving(registry(), socket_path=path):
        assert (mode_of(path.parent), mode_of(path)) == (0o700, 0o600)
    with pytest.raises(FileNotFoundError):
        mode_of(path)


def test_a_directory_open_to_others_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o755)
    with pytest.raises(ListenError, match="open to others"), mcp_gpu.serving.unixsocket.bind(path):
        pass


def test_a_link_in_place_of_the_directory_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    path.parent.symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(ListenError, match="cannot listen at"),
        mcp_gpu.serving.unixsocket.bind(path),
    ):
        pass


async def test_a_dead_agents_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(registry(), socket_path=path), unix_lines(path) as lines:
        await lines.send(call("echo", text="alive"))
        assert (await lines.receive())["id"] == 1


async def test_a_live_agents_socket_is_left_alone(path: Path) -> None:
    async with serving(registry(), socket_path=path):
        with pytest.raises(ListenError, match="another agent listens"):
            await serve(registry(), socket_path=path, signals=False)
        async with unix_lines(path) as lines:
            await lines.send(call("echo", text="still here"))
            assert (await lines.receive())["id"] == 1


def test_a_file_in_the_way_is_left_alone(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_text("precious")
    with pytest.raises(ListenError, match="not a socket"), mcp_gpu.serving.unixsocket.bind(path):
        pass
    assert path.read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_one_clear_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ListenError, match="longer than 107"),
        mcp_gpu.serving.unixsocket.bind(tmp_path / ("x" * 120)),
    ):
        pass


def test_a_socket_that_another_agent_has_taken_over_is_not_removed(path: Path) -> None:
    with mcp_gpu.serving.unixsocket.bind(path):
        path.rename(path.with_name("moved"))
        path.write_text("another's")
    assert path.read_text() == "another's"


def let_everybody_in(path: Path) -> None:
    path.parent.parent.chmod(0o711)
    path.parent.chmod(0o711)
    path.chmod(0o666)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_is_turned_away_even_where_the_files_let_it_in() -> None:
    program = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.connect(sys.argv[1])\n"
        "print('connected', flush=True)\n"
        "s.sendall(sys.argv[2].encode() + b'\\n')\n"
        "print(s.recv(100))\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "own" / "agent.sock"
        async with serving(registry(), socket_path=path):
            let_everybody_in(path)
            result = await anyio.run_process(
                [sys.executable, "-c", program, str(path), json.dumps(call("echo", text="a"))],
                check=False,
                stderr=subprocess.DEVNULL,
            )
    # The door may close on it before or after it has spoken, but never answers.
    assert result.stdout in (b"connected\n", b"connected\nb''\n")


@pytest.mark.parametrize(
    ("line", "number", "code"),
    [
        (b"{bad", None, -32700),
        (b"\xff\xfe", None, -32700),
        (b"[" * 100_000, None, -32700),
        (b"[1]", None, -32600),
        (b"null", None, -32600),
        (b'{"jsonrpc":"1.0","id":4,"method":"x"}', 4, -32600),
        (b'{"jsonrpc":"2.0","id":"a"}', "a", -32600),
        (b'{"jsonrpc":"2.0","id":true,"method":7}', None, -32600),
    ],
)
async def test_a_line_that_is_no_message_gets_an_error_and_the_next_an_answer(
    line: bytes, number: object, code: int, path: Path
) -> None:
    async with serving(registry(), socket_path=path), unix_lines(path) as lines:
        await lines.send(line)
        error = await lines.receive()
        assert (error["id"], error["error"]["code"]) == (number, code)
        await lines.send(call("echo", 9, text="next"))
        assert (await lines.receive())["id"] == 9


async def test_a_frame_over_the_limit_gets_an_error_and_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_gpu.serving.stream, "REQUEST_BYTES", 1000)
    async with serving(registry(), socket_path=path), unix_lines(path) as lines:
        await lines.stream.send(b"x" * 1001)
        (error,) = await lines.rest()
        assert "1000" in error["error"]["message"]
        async with unix_lines(path) as others:
            await others.send(call("echo", text="others go on"))
            assert (await others.receive())["id"] == 1


async def test_requests_sent_before_a_half_close_are_answered(path: Path) -> None:
    gate = Gate()
    async with serving(registry(gate), socket_path=path), unix_lines(path) as lines:
        await lines.send(call("wait", 1), call("wait", 2), call("echo", 3, text="c"))
        await lines.stream.send_eof()
        await gate.until_entered(2)
        gate.open.set()
        assert sorted(message["id"] for message in await lines.rest()) == [1, 2, 3]


async def test_a_subscription_does_not_hold_a_half_closed_connection_open(path: Path) -> None:
    listen = request("subscriptions/listen", notifications={"toolsListChanged": True})
    async with serving(registry(), socket_path=path), unix_lines(path) as lines:
        await lines.send(listen)
        assert "acknowledged" in (await lines.receive())["method"]
        await lines.stream.send_eof()
        await lines.rest()


async def test_a_cancelled_call_ends_and_leaves_the_connection_open(path: Path) -> None:
    gate = Gate()
    cancel = {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": 1},
    }
    async with serving(registry(gate), socket_path=path), unix_lines(path) as lines:
        await lines.send(call("wait", 1))
        await gate.until_entered(1)
        await lines.send(cancel)
        await gate.until_cancelled(1)
        await lines.send(call("echo", 2, text="b"))
        assert (await lines.receive())["id"] == 2
        await lines.stream.send_eof()
        assert await lines.rest() == []


async def test_requests_beyond_the_limit_wait_and_are_answered(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_gpu.serving.stream, "IN_FLIGHT", 2)
    gate = Gate()
    async with serving(registry(gate), socket_path=path), unix_lines(path) as lines:
        await lines.send(*(call("wait", number) for number in range(5)))
        await gate.until_entered(2)
        await anyio.wait_all_tasks_blocked()
        assert gate.entered == 2
        gate.open.set()
        assert {(await lines.receive())["id"] for _ in range(5)} == set(range(5))


async def test_a_client_that_does_not_read_is_dropped_and_its_calls_ended(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_gpu.serving.unixsocket, "WRITE_SECONDS", 0.1)
    gate = Gate()
    async with serving(registry(gate), socket_path=path), unix_lines(path) as lines:
        await lines.send(call("wait", 1), *(call("large", n, chars=900_000) for n in range(2, 6)))
        await gate.until_cancelled(1)


async def test_a_client_that_half_closes_and_does_not_read_is_let_go(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_gpu.serving.unixsocket, "WRITE_SECONDS", math.inf)
    monkeypatch.setattr(mcp_gpu.serving.stream, "DRAIN_SECONDS", 0.1)
    monkeypatch.setattr(mcp_gpu.serving.stream, "FLUSH_SECONDS", 0.1)
    gate = Gate()
    async with serving(registry(gate), socket_path=path), unix_lines(path) as lines:
        await lines.send(call("wait", 1), *(call("large", n, chars=900_000) for n in range(2, 6)))
        await lines.stream.send_eof()
        await gate.until_cancelled(1)
        await hung_up(lines.stream.extra(SocketAttribute.raw_socket))


async def hung_up(connection: socket.socket) -> None:
    """Wait for the other side to close, past anything that lies unread."""
    poll = select.poll()
    poll.register(connection, 0)
    while not poll.poll(0):
        await anyio.sleep(0.01)


async def test_clients_over_the_limit_are_turned_away(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_gpu.serving.unixsocket, "CONNECTIONS", 1)
    async with serving(registry(), socket_path=path), unix_lines(path) as first:
        await first.send(call("echo", text="a"))
        assert (await first.receive())["id"] == 1
        async with unix_lines(path) as second:
            assert await second.rest() == []


async def test_calls_and_subscriptions_end_well_when_the_server_stops(path: Path) -> None:
    gate = Gate()
    stop = anyio.Event()
    listen = request("subscriptions/listen", 1, notifications={"toolsListChanged": True})
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            serving(registry(gate), socket_path=path, stop=stop, drain_seconds=15),
            unix_lines(path) as lines,
        ):
            await lines.send(listen, call("wait", 2))
            assert "acknowledged" in (await lines.receive())["method"]
            await gate.until_entered(1)
            stop.set()
            await anyio.wait_all_tasks_blocked()
            gate.open.set()
            answers = {message["id"]: message["result"] for message in await lines.rest()}
    assert answers[1]["resultType"] == "complete"
    assert answers[2]["content"][0]["text"] == "waited"

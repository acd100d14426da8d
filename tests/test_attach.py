"""`mcp-gpu attach`, the relay that a person's `kubectl exec` or a gateway starts in the pod."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import Process, SocketStream
from mcp import Client, StdioServerParameters, stdio_client

import mcp_gpu.cli
from mcp_gpu import attach
from mcp_gpu.sockets import default_socket_path
from support.demo_server import Gate, registry
from support.wire import ERAS, PATIENCE_SECONDS, Lines, call, serving

PROGRAM = ["-m", "mcp_gpu", "attach"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "own" / "agent.sock"


@asynccontextmanager
async def relay(path: Path, *flags: str, **options: Any) -> AsyncIterator[Process]:
    command = [sys.executable, *PROGRAM, "--socket", str(path), *flags]
    with anyio.fail_after(PATIENCE_SECONDS):
        async with await anyio.open_process(command, **options) as process:
            try:
                yield process
            finally:
                if process.returncode is None:
                    process.kill()


def run(*flags: str, timeout: float = PATIENCE_SECONDS) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *PROGRAM, *flags]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
    )


@contextmanager
def listener(path: Path) -> Iterator[socket.socket]:
    """A raw agent: bound and listening, and nothing more."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        bound.listen()
        yield bound


@asynccontextmanager
async def raw_agent(path: Path, *flags: str) -> AsyncIterator[tuple[Process, SocketStream]]:
    """A relay, and the agent's end of its connection."""
    with listener(path) as bound:
        bound.setblocking(False)
        async with relay(path, *flags) as process:
            await anyio.wait_readable(bound)
            connection, _ = bound.accept()
            async with await anyio.abc.UNIXSocketStream.from_socket(connection) as stream:
                yield process, stream


@pytest.mark.parametrize("mode", ERAS)
async def test_an_sdk_client_lists_and_calls_through_the_relay(mode: Any, path: Path) -> None:
    command = StdioServerParameters(
        command=sys.executable, args=[*PROGRAM, "--socket", str(path), "--relay-only"]
    )
    async with (
        serving(registry(), socket_path=path),
        Client(stdio_client(command), mode=mode, read_timeout_seconds=20) as client,
    ):
        assert "echo" in {tool.name for tool in (await client.list_tools()).tools}
        result = await client.call_tool("large", {"chars": 900_000})
        assert len(result.content[0].text) == 900_000


async def test_what_was_asked_before_the_end_of_input_is_answered(path: Path) -> None:
    gate = Gate()
    async with serving(registry(gate), socket_path=path), relay(path) as process:
        lines = Lines(anyio.streams.stapled.StapledByteStream(process.stdin, process.stdout))
        await lines.send(call("wait", 1), call("echo", 2, text="b"))
        await process.stdin.aclose()
        await gate.until_entered(1)
        gate.open.set()
        assert sorted(message["id"] for message in await lines.rest()) == [1, 2]
        assert await process.wait() == 0


async def test_every_byte_arrives_whatever_the_pace_of_either_side(path: Path) -> None:
    there, back = os.urandom(3_000_000), os.urandom(3_000_000)
    async with raw_agent(path) as (process, agent), anyio.create_task_group() as tasks:

        async def say() -> None:
            await process.stdin.send(there)
            await process.stdin.aclose()

        async def answer() -> None:
            await agent.send(back)
            await agent.send_eof()

        tasks.start_soon(say)
        tasks.start_soon(answer)
        assert b"".join([chunk async for chunk in agent]) == there
        assert b"".join([chunk async for chunk in process.stdout]) == back
        assert await process.wait() == 0


async def test_silence_ends_the_relay(path: Path) -> None:
    async with raw_agent(path, "--idle", "0.2") as (process, _):
        assert await process.wait() == 0


async def test_an_agent_that_closes_ends_the_relay_with_an_error(path: Path) -> None:
    async with raw_agent(path) as (process, agent):
        await agent.send(b"last words")
        await agent.aclose()
        assert b"".join([chunk async for chunk in process.stdout]) == b"last words"
        assert await process.wait() == 1
        assert b"the agent closed" in await process.stderr.receive()


async def test_a_caller_that_goes_ends_the_relay(path: Path) -> None:
    reading, writing = os.pipe()
    with listener(path) as bound:
        bound.setblocking(False)
        async with relay(path, stdout=writing) as process:
            os.close(writing)
            await anyio.wait_readable(bound)
            connection, _ = bound.accept()
            async with await anyio.abc.UNIXSocketStream.from_socket(connection) as agent:
                os.close(reading)
                await agent.send(b"anybody there?")
                assert await process.wait() == 0


@pytest.fixture
def heeded(number: signal.Signals) -> Iterator[None]:
    """A child inherits what its parent ignores, as everything under nohup ignores SIGHUP."""
    former = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, former)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_the_relay_without_a_word(
    number: signal.Signals, path: Path, heeded: None
) -> None:
    async with raw_agent(path) as (process, agent):
        await agent.send(b"up")
        assert await process.stdout.receive() == b"up"
        process.send_signal(number)
        assert await process.wait() == -number
        assert [chunk async for chunk in process.stderr] == []


def test_relay_only_has_its_own_status_where_nobody_listens(path: Path) -> None:
    absent = run("--relay-only", "--socket", str(path))
    assert (absent.returncode, absent.stdout) == (3, "")
    assert "no agent listens" in absent.stderr
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    refused = run("--relay-only", f"--socket={path}")
    assert refused.returncode == 3
    assert "Connection refused" in refused.stderr


def test_without_an_agent_a_person_gets_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []

    def become(arguments: Sequence[str]) -> int:
        asked.append(arguments)
        return 0

    monkeypatch.setattr(mcp_gpu.cli, "main", become)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        assert attach.main(["--socket", str(path)]) == 0
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert asked == [["agent", "--stdio"]]


async def test_check_says_who_listens(path: Path) -> None:
    async with (
        serving(registry(), socket_path=path),
        relay(path, "--check") as process,
    ):
        assert await process.wait() == 0
        told = await process.stdout.receive()
    assert told.decode() == f"demo 9.9 on node node-1 listens at {path}\n"


def test_check_fails_where_nobody_listens_or_what_listens_is_silent(path: Path) -> None:
    absent = run("--check", "--socket", str(path))
    assert (absent.returncode, absent.stdout) == (3, "")
    with listener(path):
        silent = run("--check", "--socket", str(path))
    assert (silent.returncode, silent.stdout) == (3, "")
    assert "does not answer" in silent.stderr


@pytest.mark.parametrize(
    "flags",
    [["--sock", "x"], ["--idle"], ["--idle", "soon"], ["--idle", "0"], ["--idle=nan"], ["extra"]],
)
def test_a_wrong_flag_is_told_with_the_usage(flags: list[str]) -> None:
    result = run(*flags)
    assert result.returncode == 2
    assert "usage: mcp-gpu attach" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_names_every_flag() -> None:
    result = run("--help")
    assert result.returncode == 0
    for flag in ("--socket", "--relay-only", "--idle", "--check"):
        assert flag in result.stdout


def test_the_relay_imports_nothing_heavy(path: Path) -> None:
    program = (
        "import sys\n"
        "from mcp_gpu.__main__ import main\n"
        "sys.argv[1:] = sys.argv[1:]\n"
        "main()\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    command = [sys.executable, "-c", program, "attach", "--relay-only", "--socket", str(path)]
    imported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "mcp_gpu" in imported
    heavy = {
        "mcp",
        "mcp_types",
        "pydantic",
        "kubernetes",
        "anyio",
        "starlette",
        "uvicorn",
        "httpx2",
    }
    heavy |= {"argparse", "asyncio", "json", "logging", "subprocess", "threading", "typing"}
    assert heavy.isdisjoint(imported)


def test_the_default_socket_is_in_a_directory_of_the_users_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MCP_GPU_SOCKET", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_socket_path() == "/run/mcp-gpu/agent.sock"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_socket_path() == "/tmp/mcp-gpu-1000/agent.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert default_socket_path() == "/run/user/1000/mcp-gpu/agent.sock"
    monkeypatch.setenv("MCP_GPU_SOCKET", "/somewhere/else.sock")
    assert default_socket_path() == "/somewhere/else.sock"

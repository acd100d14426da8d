"""`mcp-gpu top` as a person runs it: once into a pipe, and on a screen until Ctrl-C."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import termios
from pathlib import Path

import anyio
import pytest

from mcp_gpu.cli import main
from support.cluster import PROGRAM, cluster
from support.terminal import WIDTH, run, ways

LIMIT_SECONDS = 60

FLEET = """
seed = 7
[[nodes]]
name = "a"
profile = "t4"
gpus = 1
[[nodes]]
name = "b"
profile = "h100"
gpus = 4
[[nodes.faults]]
kind = "lost"
gpu = 3
"""

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
"""A terminal's own screen for a program, and back."""


async def test_a_gateway_and_the_agents_themselves_show_the_same_gpus(tmp_path: Path) -> None:
    async with cluster(tmp_path, FLEET) as here:
        for way in ways(here):
            piped = await run("top", *way)
            assert (piped.status, piped.said) == (0, "")
            assert piped.lines[0].split() == [
                "NODE", "GPU", "VERDICT", "UTIL", "MEM", "GiB", "POWER", "W", "TEMP", "SM/MEM",
                "MHz",
            ]  # fmt: skip
            rows = [line.split() for line in piped.lines[1:6]]
            assert rows[0] == ["b", "3", "failed", "-", "-/-", "-/-", "-", "-/-", "lost"]
            assert [row[:3] for row in rows[1:]] == [
                ["a", "0", "healthy"], ["b", "0", "healthy"], ["b", "1", "healthy"],
                ["b", "2", "healthy"],
            ]  # fmt: skip
            assert rows[1][3].endswith("%")
            assert piped.lines[6].startswith(
                "2 of 2 nodes answered, 5 GPUs: 1 failed, 4 healthy  simulated"
            )
            shown = await run("top", *way, "--once", terminal=True)
            assert [line for line in shown.lines if len(line) > WIDTH] == []
            answer = (await run("top", *way, "--json", "--nodes", "b")).answer
            assert [(each["node"], each["gpu"]["index"]) for each in answer["gpus"]] == [
                ("b", 3), ("b", 0), ("b", 1), ("b", 2),
            ]  # fmt: skip
        await here.agents["a"].end(signal.SIGKILL)
        for way in ways(here):
            gone = await run("top", *way)
            assert gone.status == 1
            assert "1 node did not answer (1 not_running); their GPUs are unknown:" in gone.lines


@pytest.mark.parametrize(
    ("number", "begun"),
    [
        (signal.SIGINT, ()),
        (signal.SIGTERM, ()),
        # As a shell without job control begins a program in the background.
        (signal.SIGTERM, ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")),
    ],
)
async def test_it_looks_again_and_leaves_the_screen_as_it_was(
    tmp_path: Path, number: signal.Signals, begun: tuple[str, ...]
) -> None:
    async with cluster(tmp_path, FLEET) as here:
        ours, its = os.openpty()
        termios.tcsetwinsize(its, (12, 100))
        env = {k: v for k, v in os.environ.items() if not k.startswith("MCP_GPU_")}
        process = await anyio.open_process(
            [*begun, *PROGRAM, "top", *ways(here)[0], "--interval-seconds", "0.2"],
            stdin=subprocess.DEVNULL,
            stdout=its,
            stderr=subprocess.PIPE,
            env=env | {"TERM": "xterm", "COLUMNS": "100", "LINES": "12"},
        )
        os.close(its)
        shown = b""
        try:
            with anyio.fail_after(LIMIT_SECONDS):
                while shown.count(b"Ctrl-C ends") < 3:
                    await anyio.wait_readable(ours)
                    shown += os.read(ours, 65_536)
                process.send_signal(number)
                shown += await rest(ours)
                status = await process.wait()
        finally:
            os.close(ours)
            if process.returncode is None:
                process.kill()
            await process.aclose()
    assert status == 0
    assert (shown.count(ENTER), shown.count(LEAVE)) == (1, 1)
    assert b"TREND" in shown
    assert b"Traceback" not in shown


async def rest(terminal: int) -> bytes:
    """What comes until nobody has the other end open any more."""
    shown = b""
    while True:
        await anyio.wait_readable(terminal)
        try:
            chunk = os.read(terminal, 65_536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return shown
        if not chunk:
            return shown
        shown += chunk


def test_nobody_to_ask_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--url", "http://127.0.0.1:1/mcp"]) == 2
    assert capsys.readouterr().err.startswith("mcp-gpu top: no answer from http://127.0.0.1:1")

"""A command as a person runs it: a process of its own, piped or at a terminal of 80 columns."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import termios
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from support.cluster import PROGRAM, Cluster

__all__ = ["WIDTH", "Run", "run", "ways"]

WIDTH = 80


@dataclass(frozen=True)
class Run:
    """What the command did."""

    status: int
    shown: str
    said: str

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.shown.splitlines()]

    @property
    def answer(self) -> Mapping[str, Any]:
        """What it printed with --json."""
        found: Mapping[str, Any] = json.loads(self.shown)
        return found


async def run(*arguments: str, stdin: str = "", terminal: bool = False) -> Run:
    """Run the program with these arguments and nothing of ours in the environment.

    Args:
        terminal: its output goes to a terminal without colours, and it is asked nothing.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("MCP_GPU_")}
    env |= {"COLUMNS": str(WIDTH)}
    with anyio.fail_after(120):
        if terminal:
            found = await _at_a_terminal([*PROGRAM, *arguments], env | {"TERM": "dumb"})
        else:
            done = await anyio.run_process(
                [*PROGRAM, *arguments], input=stdin.encode(), check=False, env=env
            )
            found = Run(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in found.said
    assert "\x1b" not in found.shown  # colours are for terminals
    return found


async def _at_a_terminal(argv: Sequence[str], env: Mapping[str, str]) -> Run:
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (24, WIDTH))
    try:
        process = await anyio.open_process(
            argv, stdin=subprocess.DEVNULL, stdout=its, stderr=subprocess.PIPE, env=env
        )
    finally:
        os.close(its)
    async with process:
        try:
            shown = b"".join([chunk async for chunk in _until_closed(ours)])
        finally:
            os.close(ours)
        assert process.stderr is not None
        said = b"".join([chunk async for chunk in process.stderr])
        status = await process.wait()
    return Run(status, shown.decode().replace("\r\n", "\n"), said.decode())


async def _until_closed(terminal: int) -> AsyncIterator[bytes]:
    while True:
        await anyio.wait_readable(terminal)
        try:
            chunk = os.read(terminal, 65_536)
        except OSError as error:
            if error.errno != errno.EIO:  # nobody has the other end open any more
                raise
            return
        yield chunk


def ways(here: Cluster) -> list[list[str]]:
    """How a command may be told where the agents are."""
    agents_file = str(here.fleet_file.with_name("agents.toml"))
    return [["--url", f"{here.gateway.url}/mcp"], ["--agents-file", agents_file]]

"""What starting costs: the relay that an exec stream runs, and an agent until it answers.

A start blocks this process, which has nothing else to do meanwhile.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anyio.lowlevel

from bench.figures import Section, medians, rounds_of
from bench.processes import MODULE, PROGRAM, ask_http, ask_stdio, child, listening_port
from support.wire import request

__all__ = ["agent", "attach"]

ATTACH_MS = 60.0
AGENT_MS = 700.0

FLOOR = (sys.executable, "-c", "pass")
"""The least that any Python program takes here."""


async def attach(command: Sequence[str], rounds: int) -> Section:
    """`mcp-gpu attach` from process start to the first answer that comes through it."""
    section = Section(f"`mcp-gpu attach`, start to first answer, median of {rounds} starts each")
    taken = await _interleaved(
        {
            "script": lambda: _first_answer(command, "server/discover"),
            "module": lambda: _first_answer([*MODULE, *command[1:]], "server/discover"),
            "floor": _floor,
        },
        rounds,
    )
    section.add("the console script `mcp-gpu attach`", taken["script"], "ms", ATTACH_MS)
    section.add("`python -m mcp_gpu attach`", taken["module"], "ms")
    section.add("floor: `python -c pass`, start to exit", taken["floor"], "ms")
    return section


async def agent(fleet_file: Path, node: str, folder: Path, rounds: int) -> Section:
    """`mcp-gpu agent` from process start to an answered `tools/list`."""
    section = Section(f"`mcp-gpu agent`, start to `tools/list`, median of {rounds} starts each")
    program = [*PROGRAM, "agent", "--node-name", node]
    simulated = [*program, "--simulate", str(fleet_file)]
    http = ["--http-port", "0", "--socket", str(folder / "start.sock")]
    taken = await _interleaved(
        {
            "http": lambda: _over_http([*simulated, *http]),
            "stdio": lambda: _first_answer([*simulated, "--stdio"], "tools/list"),
            "bare stdio": lambda: _first_answer([*program, "--stdio"], "tools/list"),
            "floor": _floor,
        },
        rounds,
    )
    section.add("over HTTP, simulated 8xH100", taken["http"], "ms", AGENT_MS)
    section.add("over stdio, simulated 8xH100", taken["stdio"], "ms", AGENT_MS)
    section.add("over stdio, this machine's own NVML or none", taken["bare stdio"], "ms", AGENT_MS)
    section.add("floor: `python -c pass`, start to exit", taken["floor"], "ms")
    return section


async def _interleaved(
    variants: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for number, names in enumerate(rounds_of(list(variants), rounds + 1)):
        for name in names:
            await anyio.lowlevel.checkpoint()
            elapsed_ms = variants[name]()
            if number:  # the first round fills the caches of files and byte code
                taken[name].append(elapsed_ms)
    return medians(taken)


def _first_answer(argv: Sequence[str], method: str) -> float:
    begun = time.perf_counter()
    with child(argv) as process:
        ask_stdio(process, request(method))
        return (time.perf_counter() - begun) * 1000


def _over_http(argv: Sequence[str]) -> float:
    begun = time.perf_counter()
    with child(argv) as process:
        ask_http(listening_port(process), request("tools/list"))
        return (time.perf_counter() - begun) * 1000


def _floor() -> float:
    begun = time.perf_counter()
    subprocess.run(FLOOR, check=True, timeout=60)
    return (time.perf_counter() - begun) * 1000

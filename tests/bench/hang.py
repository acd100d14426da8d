"""How long an agent takes to answer while NVML hangs: whoever asks then must not hang with it."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import anyio.lowlevel

from bench.figures import Section
from bench.processes import PROGRAM, ask_http, child, listening_port
from support.wire import call

__all__ = ["health"]

LIMIT_MS = 1000.0

KNOWN_SECONDS = 30.0
"""Bound for the agent to notice."""

FLEET = """
[[nodes]]
name = "one"
profile = "h100"
"""

HANG = """
[[nodes.faults]]
kind = "hang"
seconds = 3600
"""


async def health(folder: Path, calls: int) -> Section:
    """`get_gpu_health` of an agent process, each call in a connection of its own."""
    section = Section(f"get_gpu_health while NVML hangs, until it says so and {calls} calls more")
    fleet_file = folder / "hang.toml"
    for name, before in (("hung since it was read", FLEET), ("hung from the start", FLEET + HANG)):
        fleet_file.write_text(before)
        argv = [*PROGRAM, "agent", "--node-name", "one", "--simulate", str(fleet_file)]
        with child([*argv, "--http-port", "0", "--socket", str(folder / "hang.sock")]) as agent:
            port = listening_port(agent)
            if before == FLEET:
                while _ask(port)["verdict"] != "healthy":
                    await anyio.sleep(0.1)  # it has not looked yet
                fleet_file.write_text(FLEET + HANG)
            taken = await _calls(port, calls)
        section.add(f"{name}: slowest call", max(taken), "ms", LIMIT_MS)
        section.add(f"{name}: median", median(taken), "ms")
    return section


async def _calls(port: int, calls: int) -> list[float]:
    """Milliseconds of each call until the answer says that NVML hangs, and of so many after."""
    taken: list[float] = []
    known = 0
    with anyio.fail_after(KNOWN_SECONDS):
        while known < calls:
            await anyio.lowlevel.checkpoint()
            begun = time.perf_counter()
            found = _ask(port)
            taken.append((time.perf_counter() - begun) * 1000)
            known += any(each["code"] == "nvml_not_answering" for each in found["findings"])
    return taken


def _ask(port: int) -> dict[str, Any]:
    found: dict[str, Any] = ask_http(port, call("get_gpu_health"))["structuredContent"]
    return found

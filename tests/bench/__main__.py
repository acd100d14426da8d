"""`python -m bench`: take all figures in one run; with `--check`, exit 1 if a limit was missed."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from bench import (
    calls,
    collection,
    discovery,
    hang,
    memory,
    nodepage,
    race,
    scale,
    sizes,
    startup,
    xids,
)
from bench.figures import Figure, Section
from support.cluster import cluster

FLEET = """
seed = 7
[[nodes]]
name = "h100"
profile = "h100"
[[nodes]]
name = "h200"
profile = "h200"
[[nodes]]
name = "gb200"
profile = "gb200"
[[nodes]]
name = "t4"
profile = "t4"
"""
NODE = "h100"
"""Where one node is measured: it has 8 GPUs."""

Report = Callable[[Section], None]

RUN_SECONDS = 190.0
"""Bound for everything together: a benchmark that takes longer is not run."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each thing is done."""

    calls: int
    routers: int
    fan_outs: int
    attach_starts: int
    agent_starts: int
    analyses: int
    idle_seconds: float
    churn_seconds: float
    readings: int
    pages: int


FULL = Effort(
    calls=200,
    routers=60,
    fan_outs=9,
    attach_starts=40,
    agent_starts=9,
    analyses=5,
    idle_seconds=30.0,
    churn_seconds=10.0,
    readings=100,
    pages=40,
)
QUICK = Effort(
    calls=40,
    routers=10,
    fan_outs=3,
    attach_starts=10,
    agent_starts=3,
    analyses=2,
    idle_seconds=5.0,
    churn_seconds=5.0,
    readings=20,
    pages=10,
)


async def _run(effort: Effort, folder: Path, report: Report) -> bool:
    """Take all figures. False when a signal ended it before they were complete.

    Raises:
        TimeoutError: it took longer than `RUN_SECONDS`.
    """
    complete = False
    with anyio.fail_after(RUN_SECONDS):
        async with anyio.create_task_group() as group:
            group.start_soon(_obey_signals, group.cancel_scope)
            await _measure(effort, folder, report)
            complete = True
            group.cancel_scope.cancel()
    return complete


async def _obey_signals(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for _ in received:
            scope.cancel()


async def _measure(effort: Effort, folder: Path, report: Report) -> None:
    async with cluster(folder, FLEET) as fleet:
        with memory.idle_agents(fleet.fleet_file, NODE, folder) as idle:
            report(await calls.gateway(fleet, effort.calls))
            report(await race.overhead(fleet, effort.calls, effort.routers))
            report(await calls.paths(fleet, NODE, effort.calls))
            attach = calls.attach_command(fleet.agents[NODE])
            report(await startup.attach(attach, effort.attach_starts))
            report(await sizes.answers(fleet, NODE))
            report(await idle.weigh(effort.idle_seconds))
    # What follows takes a processor for itself, so those processes have ended.
    report(await startup.agent(fleet.fleet_file, NODE, folder, effort.agent_starts))
    report(collection.cycle(effort.readings))
    report(collection.recording(effort.readings))
    report(await hang.health(folder, effort.calls))
    report(await xids.analysis(effort.analyses))
    report(await discovery.watching(effort.churn_seconds))
    for section in await nodepage.nodes(folder, effort.pages):
        report(section)
    agents = scale.healthy_agents()
    report(await scale.in_memory(agents, effort.fan_outs))
    report(await scale.over_sockets(agents, effort.fan_outs))
    report(await sizes.summaries(agents))


def main(arguments: Sequence[str]) -> int:
    """Print the figures. Returns 0, or 1 when limits were to be checked and one was missed."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, less precise")
    parser.add_argument("--check", action="store_true", help="exit 1 if a limit was missed")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    load, *_ = os.getloadavg()
    version = platform.python_version()
    print(f"Python {version}, {os.cpu_count()} processors, load before {load:.2f}", flush=True)
    figures: list[Figure] = []

    def report(section: Section) -> None:
        print(f"\n{section}", flush=True)
        figures.extend(section.figures)

    try:
        with tempfile.TemporaryDirectory(prefix="mcp-gpu-bench-") as folder:
            complete = anyio.run(_run, QUICK if options.quick else FULL, Path(folder), report)
    except TimeoutError:
        print(f"\nnot done within {RUN_SECONDS:g} s", file=sys.stderr)
        return 1
    if not complete:
        return 130
    print(f"\ntook {time.monotonic() - started:.0f} s")
    missed = [figure for figure in figures if figure.missed]
    if options.check:
        limits = sum(figure.limit is not None for figure in figures)
        print(f"{limits - len(missed)} of {limits} limits kept")
        for figure in missed:
            print(f"  {figure}")
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m bench.soak`: a gateway called for long while its agents restart; exit 1 on any miss.

Every answer is checked against what was true meanwhile (`bench.truth`), and a node may fail only
while its agent restarts. `bench.restless` has the agents.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, get_args

import anyio
import httpx2

from bench.figures import Section
from bench.inuse import read
from bench.restless import PATHS, Place, RestlessFleet, Way, restless_fleet
from bench.trend import Holdings, Trend, grown, warm
from mcp_gpu.fleet.breaker import LAST_RESORT_MOST_SECONDS, TOGETHER_SECONDS
from support.wire import call, headers

__all__ = ["Soak"]

MINUTES = 30.0
CALLS_A_SECOND = 20.0
SAMPLE_SECONDS = 2.0
IN_USE_SECONDS = 30.0

PROBE_SECONDS = 2.0
SETTLE_SECONDS = LAST_RESORT_MOST_SECONDS + TOGETHER_SECONDS + PROBE_SECONDS
"""How long after an agent is back a gateway may still tell what it found last: until a caller may
look at it again, and has."""

PAUSE_SECONDS = SETTLE_SECONDS + 4.0
"""From the end of an agent's restart to its next one."""

AT_ONCE = 16
"""Most calls under way: where answers take longer, fewer are asked a second."""

PATIENCE_SECONDS = 60.0
"""Longest wait for an answer, longer than a call may take."""

FLEET_EVERY = 5
"""Each call of this number asks all nodes, the others one."""

JUDGED_MINUTES = 20.0
"""From this length on the growth of memory is judged: before, caches still fill."""

GROWTH_KIB_AN_HOUR = 1024.0
"""24 MiB a day; beyond what noise can make. Of the gateway's memory this is for what is in use."""

GROWTH_BLOCKS_AN_HOUR = 10_000.0
"""Of up to 512 bytes, and about a hundred on average: as much again."""

GIVEN_MIB = 3.0
"""What a gateway may be given from one third of the run to the next, for fuller moments than there
were: Python takes a MiB at a time."""

FILES_GROWN = 8
THREADS_GROWN = 2
RELAYS_END_SECONDS = 20.0

GATEWAY = "gateway"

LOOKS_LEAST = 9
"""At a process, for what is told of it."""

SHOWN = 5
"""Words of what went wrong, of each kind."""


@dataclass(slots=True)
class Seen:
    """What the calls have shown."""

    calls: int = 0
    wrong: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    explained: Counter[str] = field(default_factory=Counter)
    """By reason."""
    ways: Counter[str] = field(default_factory=Counter)
    one_ms: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Calls to one node, by path."""
    fleet_ms: list[float] = field(default_factory=list)
    held_up_ms: float = 0.0
    """The longest by which a call began late for want of a processor here."""


@dataclass(slots=True)
class Soak:
    """Callers and restarts, side by side."""

    fleet: RestlessFleet
    seen: Seen = field(default_factory=Seen)
    restarts: Counter[str] = field(default_factory=Counter)
    holdings: dict[str, Holdings] = field(default_factory=dict)
    """Of the gateway and the agents that stay, by name."""
    begun: float = 0.0

    async def run(
        self,
        over: Callable[[], bool],
        *,
        pace_seconds: float = 1 / CALLS_A_SECOND,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        """Call and restart until it is over; what is being restarted then comes to its end.

        Args:
            pace_seconds: from the begin of one call to that of the next.
            pause_seconds: from the end of an agent's restart to its next one.
        """
        self.begun = time.monotonic()
        restless = [place for place in self.fleet.places if place.restless]
        async with anyio.create_task_group() as around:
            around.start_soon(self._watch)
            around.start_soon(self._call, pace_seconds)
            async with anyio.create_task_group() as restarting:
                for number, place in enumerate(restless):
                    restarting.start_soon(self._restart, place, number, over, pause_seconds)
                    await anyio.sleep(pause_seconds / len(restless))
            around.cancel_scope.cancel()

    async def _restart(
        self, place: Place, number: int, over: Callable[[], bool], pause_seconds: float
    ) -> None:
        """Restart it again and again, each time in the next way, beginning with that number."""
        ways: Sequence[Way] = get_args(Way)
        for way in itertools.islice(itertools.cycle(ways), number, None):
            await self.fleet.restart(place, way)
            self.restarts[way] += 1
            await anyio.sleep(pause_seconds)
            if over():
                return

    async def _watch(self) -> None:
        processes = {GATEWAY: self.fleet.gateway}
        for place in self.fleet.places:
            if not place.restless and place.process is not None:
                processes[place.name] = place.process
        for name, running in processes.items():
            assert running.process is not None
            self.holdings[name] = Holdings(running.process.pid)
        while True:
            for held in self.holdings.values():
                with suppress(OSError, KeyError):  # it has ended, which the report tells
                    held.look(time.monotonic())
            await anyio.sleep(SAMPLE_SECONDS)

    async def _call(self, pace_seconds: float) -> None:
        names = [place.name for place in self.fleet.places]
        free = anyio.Semaphore(AT_ONCE)
        async with (
            httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
            anyio.create_task_group() as calls,
        ):

            async def one(asked: Sequence[str], number: int) -> None:
                await self.ask(client, asked, number)
                free.release()

            due = time.monotonic()
            for number in itertools.count():
                asked = [names[number % len(names)]] if number % FLEET_EVERY else names
                await free.acquire()
                calls.start_soon(one, asked, number)
                now = time.monotonic()
                due = max(due + pace_seconds, now)
                await anyio.sleep(due - now)
                late_ms = (time.monotonic() - due) * 1000
                self.seen.held_up_ms = max(self.seen.held_up_ms, late_ms)

    async def ask(self, client: httpx2.AsyncClient, asked: Sequence[str], number: int) -> None:
        """The call of this number, and what is to be thought of its answer."""
        seen, whole = self.seen, len(asked) == len(self.fleet.places)
        named = {} if whole else {"nodes": list(asked)}
        message = call("get_gpu_inventory", number, detail="full", **named)
        begun = time.monotonic()
        told, trouble = await self._told(client, message)
        ended = time.monotonic()
        seen.calls += 1
        if told is None:
            seen.unexplained.append(trouble)
            return
        try:
            judged = self.fleet.register.judge(told, asked, begun, ended)
        except (KeyError, TypeError) as error:
            seen.wrong.append(f"no inventory: {error!r}: {str(told)[:300]}")
            return
        seen.wrong += judged.wrong
        for failure in judged.failures:
            if failure.explained:
                seen.explained[failure.reason] += 1
            else:
                seen.unexplained.append(str(failure))
        seen.ways.update(judged.ways.values())
        if whole:
            seen.fleet_ms.append((ended - begun) * 1000)
        for via in judged.ways.values() if not whole else ():
            seen.one_ms[via].append((ended - begun) * 1000)

    async def _told(
        self, client: httpx2.AsyncClient, message: dict[str, Any]
    ) -> tuple[Mapping[str, Any] | None, str]:
        """The answer's data, or what came instead."""
        try:
            answer = await client.post(
                f"{self.fleet.gateway.url}/mcp",
                json=message,
                headers=headers(message, "application/json"),
            )
        except httpx2.HTTPError as error:
            return None, f"the gateway did not answer: {type(error).__name__}: {error}"
        if answer.status_code != 200:
            return None, f"HTTP {answer.status_code}: {answer.text[:300]}"
        try:
            document = answer.json()
            result = document["result"]
            data: Mapping[str, Any] = result["structuredContent"]
        except (ValueError, KeyError, TypeError):
            return None, f"no answer: {answer.text[:300]}"
        if result.get("isError"):
            return None, f"an error: {answer.text[:300]}"
        if document["id"] != message["id"]:
            return None, f"the answer to call {document['id']}, and not to {message['id']}"
        return data, ""


def _calls(soak: Soak, taken_seconds: float) -> Section:
    seen = soak.seen
    section = Section(f"{taken_seconds / 60:.1f} minutes of calls while agents restart")
    section.add("calls", seen.calls, "")
    section.add("calls a second", seen.calls / taken_seconds, "")
    section.add("the longest that this process was held up", seen.held_up_ms, "ms")
    for way, count in soak.restarts.items():
        section.add(f"restarts, by {way}", count, "")
    section.add("wrong answers", len(seen.wrong), "", 0.0)
    section.add("failures that no restart explains", len(seen.unexplained), "", 0.0)
    for reason, count in seen.explained.most_common():
        section.add(f"failures that one explains: {reason}", count, "")
    unheard = soak.fleet.register.unheard(soak.begun)
    section.add("agents that came and were never heard", len(unheard), "", 0.0)
    for via in PATHS:
        section.add(f"answers over {via}", seen.ways[via], "")
    idle = sum(not seen.ways[via] for via in PATHS)
    section.add("paths that no answer came over", idle, "", 0.0)
    latencies = {f"a call to one node, {via}": seen.one_ms[via] for via in PATHS}
    for name, taken in (latencies | {"a call to all nodes": seen.fleet_ms}).items():
        if len(taken) > 1:
            cuts = quantiles(taken, n=100)
            section.add(f"{name}: median", median(taken), "ms")
            section.add(f"{name}: p95", cuts[94], "ms")
            section.add(f"{name}: the longest", max(taken), "ms")
    return section


def _holdings(soak: Soak, *, judged: bool) -> Section:
    section = Section("what processes hold; memory: in the last two thirds of the time")
    for name, held in soak.holdings.items():
        if len(held.times) < LOOKS_LEAST:
            continue  # it has ended, which is a miss of its own
        section.add(f"{name}: processor time, of one", held.busy_percent, "%")
        section.add(f"{name}: waited for one", held.waited_percent, "%")
        section.add(f"{name}: resident, at the end", held.loads[-1].resident_mib, "MiB")
        section.add(f"{name}: of its own, at the end", held.own_kib[-1] / 1024, "MiB")
        if name == GATEWAY:
            _trend(section, f"{name}: memory", held.memory(), "KiB/h", None)
            given = grown(held.own_kib) / 1024
            section.add(f"{name}: memory, grown by", given, "MiB", GIVEN_MIB if judged else None)
        else:
            limit = GROWTH_KIB_AN_HOUR if judged else None
            _trend(section, f"{name}: memory", held.memory(), "KiB/h", limit)
        section.add(f"{name}: open files, most", max(held.files), "")
        section.add(f"{name}: open files, grown by", grown(held.files), "", FILES_GROWN)
        section.add(f"{name}: threads, most", max(held.threads), "")
        section.add(f"{name}: threads, grown by", grown(held.threads), "", THREADS_GROWN)
    return section


def _in_use(soak: Soak, *, judged: bool) -> Section:
    """Of the gateway's memory."""
    section = Section("of its memory the gateway uses, in the last two thirds of the time")
    looks = read(soak.fleet.in_use)
    missing = max(LOOKS_LEAST - len(looks), 0)
    section.add("looks at it that are missing", missing, "", 0.0 if judged else None)
    if missing:
        return section
    times = [look.at for look in looks]
    section.add("blocks of Python's, at the end", looks[-1].blocks, "")
    blocks = warm(times, [float(look.blocks) for look in looks])
    _trend(section, "blocks", blocks, "/h", GROWTH_BLOCKS_AN_HOUR if judged else None)
    section.add("heap, at the end", looks[-1].heap_bytes / (1 << 20), "MiB")
    heap = warm(times, [look.heap_bytes / 1024 for look in looks])
    _trend(section, "heap", heap, "KiB/h", GROWTH_KIB_AN_HOUR if judged else None)
    return section


def _trend(section: Section, name: str, trend: Trend, unit: str, limit: float | None) -> None:
    slope, noise = trend.slope * 3600, 2 * trend.error * 3600
    section.add(f"{name}, slope", slope, unit)
    section.add(f"{name}, noise (two standard errors)", noise, unit)
    section.add(f"{name}, growth beyond it", max(slope - noise, 0.0), unit, limit)


async def _end(soak: Soak) -> Section:
    """End the gateway, and see what it leaves."""
    section = Section("the end")
    fleet = soak.fleet
    runnings = [fleet.gateway, *(place.process for place in fleet.places if place.process)]
    processes = [running.process for running in runnings if running.process]
    fallen = sum(process.returncode is not None for process in processes)
    section.add("processes that ended by themselves", fallen, "", 0.0)
    section.add("exit status of the gateway", abs(await fleet.gateway.end()), "", 0.0)
    with anyio.move_on_after(RELAYS_END_SECONDS):
        while fleet.relays():
            await anyio.sleep(0.1)
    section.add("relays left behind", fleet.relays(), "", 0.0)
    traces = sum(log.read_text(errors="replace").count("Traceback") for log in fleet.logs())
    section.add("exceptions in logs", traces, "", 0.0)
    return section


async def _measure(folder: Path, minutes: float) -> list[Section]:
    async with restless_fleet(
        folder, settle_seconds=SETTLE_SECONDS, look_seconds=IN_USE_SECONDS
    ) as fleet:
        soak = Soak(fleet)
        await soak.run(lambda: time.monotonic() >= soak.begun + minutes * 60)
        taken_seconds = time.monotonic() - soak.begun
        judged = taken_seconds >= JUDGED_MINUTES * 60
        for kind, words in (("wrong", soak.seen.wrong), ("unexplained", soak.seen.unexplained)):
            for text in words[:SHOWN]:
                print(f"{kind}: {text}")
        return [
            _calls(soak, taken_seconds),
            _holdings(soak, judged=judged),
            _in_use(soak, judged=judged),
            await _end(soak),
        ]


def main(arguments: Sequence[str]) -> int:
    """Print the figures. Returns 1 where one is missed."""
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    options = parser.parse_args(arguments)
    if options.minutes < 1:
        parser.error("--minutes must be at least 1")
    load, *_ = os.getloadavg()
    print(f"Python {platform.python_version()}, load before {load:.2f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mcp-gpu-soak-") as folder:
        sections = anyio.run(partial(_measure, Path(folder), options.minutes))
    print("\n" + "\n\n".join(map(str, sections)))
    return 1 if any(figure.missed for section in sections for figure in section.figures) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m bench.fleet`: a gateway process over up to 1,000 agents; exit 1 if a limit is missed.

The agents are ports of another process (`bench.farm`), so that two processors are enough for a
gateway and its fleet.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import anyio

from bench import profile, reprobe
from bench.farm import Farm, farm
from bench.figures import Figure, Section, medians, rounds_of
from bench.processes import PROGRAM, Child, Load, ask_http, child, listening_port
from bench.recording import name_of, record, uid_of
from support.wire import call

SIZES = (100, 300, 1000)
PROCESSORS = 2
GPUS = 8

DYING = tuple(number for number in range(max(SIZES)) if number % 10 in (3, 6, 9))
"""The agents that are dead where 30 % are."""

SUMMARY_MS = 3000.0
RESIDENT_MIB = 300.0
SLOWER = 1.2
"""The limits of acceptance."""

OPEN_FILES = 8192
"""Three for each agent here, and as many for the gateway of each kind of fleet."""

SILENT_SECONDS = 60
"""Longer than anybody waits for a stream."""

GATEWAY_SECONDS = 300.0
"""Longest life of a gateway."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each thing is done."""

    starts: int
    calls: int
    dead_calls: int
    """With a part of the fleet dead, where a call may take as long as its deadline."""
    window_seconds: float


FULL = Effort(starts=3, calls=20, dead_calls=5, window_seconds=60.0)
QUICK = Effort(starts=1, calls=3, dead_calls=2, window_seconds=30.0)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Agents as a gateway finds them, each by its number."""

    file: Path
    count: int
    answering: int
    watched: frozenset[int]
    """The last of these to answer is waited for."""

    @classmethod
    def write(
        cls, file: Path, ports: Mapping[int, int], dead: Mapping[int, int], watched: frozenset[int]
    ) -> Fleet:
        """The agents that answer at these ports, but for the dead, which are at others."""
        entries = [
            f'[[agents]]\nnode = "{name_of(number)}"\nuid = "{uid_of(number)}"\n'
            f'address = "127.0.0.1:{dead.get(number, port)}"\n'
            for number, port in ports.items()
        ]
        file.write_text("\n".join(entries))
        return cls(file, len(ports), len(ports) - len(dead), watched)


class Gateway:
    """A gateway process over a fleet, and the streams that it has opened."""

    def __init__(self, process: Child, port: int, fleet: Fleet, opened: Path) -> None:
        self.process = process
        self._port = port
        self._fleet = fleet
        self._opened = opened

    def ask(self) -> float:
        """Milliseconds of one inventory in summary, as a client of the gateway has it.

        Raises:
            RuntimeError: not just the live agents have answered.
        """
        begun = time.monotonic()
        found = ask_http(self._port, call("get_gpu_inventory"))["structuredContent"]
        elapsed_ms = (time.monotonic() - begun) * 1000
        fleet, coverage = self._fleet, found["coverage"]
        counted = coverage["nodes_asked"], coverage["nodes_answered"], found["totals"]["gpus"]
        if counted != (fleet.count, fleet.answering, GPUS * fleet.answering):
            failed = f"{found['failures_by_reason']}, such as {found['failures'][:1]}"
            text = f"{fleet.answering} answers expected; asked, answered, GPUs: {counted}"
            raise RuntimeError(f"{text}; {failed}")
        return elapsed_ms

    def ask_until_live(self, agents: Farm) -> tuple[float, float]:
        """Milliseconds until the last live agent had answered, and of the whole call."""
        begun = time.monotonic()
        whole_ms = self.ask()
        answered = agents.answered()
        last = max(answered[number] for number in self._fleet.watched)
        return (last - begun) * 1000, whole_ms

    def streams(self) -> list[str]:
        """The nodes that streams were opened to so far, each as often."""
        return self._opened.read_text().split()

    def peak_mib(self) -> float:
        """The most memory that was resident at once."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024


@contextmanager
def _gateway(fleet: Fleet, folder: Path, *, samples: Path | None = None) -> Iterator[Gateway]:
    """A gateway with a second path to each agent: a program that notes its start, and is as
    silent as a dead network."""
    opened = folder / "opened"
    opened.write_text("")
    program = ["sh", "-c", f"echo {{node}} >>{opened}; exec sleep {SILENT_SECONDS}"]
    flags = ["gateway", "--agents-file", str(fleet.file), "--http-port", "0"]
    flags += ["--transport-options", json.dumps({"command": {"argv": program}})]
    argv = [*PROGRAM, *flags] if samples is None else profile.argv(samples, *flags)
    with child(argv, life_seconds=GATEWAY_SECONDS) as process:
        port = listening_port(process)
        yield Gateway(process, port, fleet, opened)


def _healthy(fleet: Fleet, folder: Path, effort: Effort) -> Section:
    """Everything is well: the first call of new gateways, and later ones of the last of them."""
    count = fleet.count
    section = Section(f"{count:,} agents, all well")
    cold = []
    for _ in range(effort.starts):
        with _gateway(fleet, folder) as gateway:
            cold.append(gateway.ask())
            opened = len(gateway.streams())
            if len(cold) < effort.starts:
                continue
            before = Load.of(gateway.process)
            warm = [gateway.ask() for _ in range(effort.calls)]
            after = Load.of(gateway.process)
            peak_mib, all_opened = gateway.peak_mib(), len(gateway.streams())
    section.add(
        f"first call over {count:,}, median of {effort.starts}", median(cold), "ms", SUMMARY_MS
    )
    section.add(
        f"later call over {count:,}, median of {effort.calls}", median(warm), "ms", SUMMARY_MS
    )
    busy_ms = 1000 * (after.cpu_seconds - before.cpu_seconds) / effort.calls
    section.add("processor time of the gateway, a later call", busy_ms, "ms")
    section.add("resident after them", after.resident_mib, "MiB")
    section.add("resident, the most at once", peak_mib, "MiB", RESIDENT_MIB)
    section.add("streams opened by the first call", opened, "", 0.0)
    section.add("streams opened by later calls", all_opened - opened, "", 0.0)
    return section


def _dead(fleets: Mapping[str, Fleet], agents: Farm, folder: Path, effort: Effort) -> Section:
    """A part of the fleet is dead on every path: what that costs the rest."""
    section = Section("30 % of 1,000 agents silent: until the last of the other 700 has answered")
    first: dict[str, list[tuple[float, float]]] = {name: [] for name in fleets}
    later: dict[str, list[tuple[float, float]]] = {name: [] for name in fleets}
    with ExitStack() as stack:
        for turn, names in enumerate(rounds_of(list(fleets), effort.starts)):
            gateways: dict[str, Gateway] = {}
            with ExitStack() as turns:
                keep = stack if turn == effort.starts - 1 else turns
                for name in names:
                    place = folder / f"{turn}-{names.index(name)}"
                    place.mkdir()
                    gateways[name] = keep.enter_context(_gateway(fleets[name], place))
                    first[name].append(gateways[name].ask_until_live(agents))
        opened = gateways["dead"].streams()
        for names in rounds_of(list(fleets), effort.dead_calls):
            for name in names:
                later[name].append(gateways[name].ask_until_live(agents))
        all_opened = gateways["dead"].streams()
        peak_mib = gateways["dead"].peak_mib()
    for when, taken, count in (
        ("first", first, effort.starts),
        ("later", later, effort.dead_calls),
    ):
        live = medians({name: [each for each, _ in pairs] for name, pairs in taken.items()})
        section.add(f"{when} call, median of {count}: all 1,000 well", live["well"], "ms")
        section.add(f"{when} call: the 700 alone", live["alone"], "ms")
        section.add(f"{when} call: 300 dead", live["dead"], "ms")
        section.add(f"{when} call: 300 dead / all well", live["dead"] / live["well"], "x", SLOWER)
        section.add(f"{when} call: 300 dead / the 700 alone", live["dead"] / live["alone"], "x")
        whole = median(each for _, each in taken["dead"])
        section.add(f"{when} call: 300 dead, until the gateway has answered", whole, "ms")
    live_nodes = {name_of(number) for number in fleets["dead"].watched}
    section.add("streams opened by a first call", len(opened), "")
    section.add("of them to live agents", len([n for n in opened if n in live_nodes]), "")
    later_opened = len(all_opened) - len(opened)
    section.add("streams opened by a later call", later_opened / effort.dead_calls, "")
    section.add("resident with 300 dead, the most at once", peak_mib, "MiB", RESIDENT_MIB)
    return section


def _fleets(agents: Farm, folder: Path) -> dict[str, Fleet]:
    """All well; three in ten dead, half of them mute and half of them cut off; the rest alone."""
    ports = dict(enumerate(agents.live))
    dead = dict(zip(DYING, [*agents.silent, *agents.full], strict=True))
    rest = {number: port for number, port in ports.items() if number not in dead}
    watched = frozenset(rest)
    return {
        "well": Fleet.write(folder / "well.toml", ports, {}, watched),
        "dead": Fleet.write(folder / "dead.toml", ports, dead, watched),
        "alone": Fleet.write(folder / "alone.toml", rest, {}, watched),
    }


def _profile(fleet: Fleet, folder: Path, calls: int) -> str:
    """Where the processor time of later calls goes."""
    samples = folder / "samples.json"
    with _gateway(fleet, folder, samples=samples) as gateway:
        gateway.ask()
        profile.begin(gateway.process)
        taken = [gateway.ask() for _ in range(calls)]
        seen = profile.end(gateway.process, samples)
    title = f"where a gateway's processor time goes, {calls} later calls of {median(taken):,.0f} ms"
    return f"{title}, {fleet.count:,} agents\n{seen}"


def _measure(folder: Path, effort: Effort, report: Callable[[Section], None]) -> None:
    recording = folder / "recording.json"
    record(folder).write(recording)
    silent = len(DYING) // 2
    with farm(recording, live=max(SIZES), silent=silent, full=len(DYING) - silent) as agents:
        for size in SIZES:
            ports = dict(enumerate(agents.live[:size]))
            fleet = Fleet.write(folder / f"{size}.toml", ports, {}, frozenset(ports))
            report(_healthy(fleet, folder, effort))
        report(_dead(_fleets(agents, folder), agents, folder, effort))
    with farm(recording, silent=max(SIZES)) as agents:
        report(anyio.run(reprobe.traffic, agents, effort.window_seconds))


def _print_profile(folder: Path, effort: Effort) -> None:
    recording = folder / "recording.json"
    record(folder).write(recording)
    with farm(recording, live=max(SIZES)) as agents:
        ports = dict(enumerate(agents.live))
        fleet = Fleet.write(folder / "agents.toml", ports, {}, frozenset())
        print(f"\n{_profile(fleet, folder, effort.calls)}")


def _prepare() -> None:
    """Two processors and enough open files, for this process and its children."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:PROCESSORS])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < OPEN_FILES:
        raise RuntimeError(f"{OPEN_FILES:,} open files are needed, and {most:,} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, most))


def main(arguments: Sequence[str]) -> int:
    """Print the figures. Returns 1 where a limit was missed."""
    parser = argparse.ArgumentParser(prog="bench.fleet", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, less precise")
    parser.add_argument("--profile", action="store_true", help="where the time goes, and no more")
    options = parser.parse_args(arguments)
    effort = QUICK if options.quick else FULL
    started = time.monotonic()
    load, *_ = os.getloadavg()
    _prepare()
    version, processors = platform.python_version(), len(os.sched_getaffinity(0))
    print(f"Python {version}, {processors} processors, load before {load:.2f}", flush=True)
    figures: list[Figure] = []

    def report(section: Section) -> None:
        print(f"\n{section}", flush=True)
        figures.extend(section.figures)

    with tempfile.TemporaryDirectory(prefix="mcp-gpu-bench-") as folder:
        if options.profile:
            _print_profile(Path(folder), effort)
        else:
            _measure(Path(folder), effort, report)
    print(f"\ntook {time.monotonic() - started:.0f} s")
    missed = [figure for figure in figures if figure.missed]
    for figure in missed:
        print(f"  {figure}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m bench.overload`: a gateway and far too many clients; exit 1 if a limit is missed.

Most of them ask again as soon as they are answered, and come back when a 429 tells them to. Some
are slow: they never finish a request, or read no answer. The agents are ports of another process
(`bench.farm`).
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
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import anyio
from anyio.abc import SocketStream

from bench.farm import farm
from bench.figures import Section
from bench.fleet import Fleet
from bench.processes import PROGRAM, Child, Load, child, listening_port
from bench.recording import HEAD_END, message_end, record
from support.wire import call, headers

__all__ = ["Crowd", "Seen", "ask", "request_of"]

CLIENTS = 500
SLOW = 50
AGENTS = 20
LOAD_SECONDS = 30.0
CALM_CALLS = 60
RECOVERY_SECONDS = 20.0
"""How long the return to the pace before is watched for."""

RESIDENT_MIB = 256.0
"""Half of what the chart allows a gateway."""

RECOVERED_SECONDS = 5.0
ARRIVED_SECONDS = 2.0
"""Over how long the clients arrive."""

PATIENCE_SECONDS = 60.0
"""Longest wait of a client for an answer: longer than the queue and a call take together."""

OPEN_FILES = 4096
LIFE_SECONDS = 300.0
SAMPLE_SECONDS = 0.25
PIPELINED = 8


def request_of(tool: str) -> bytes:
    """A call as it goes over the wire."""
    message = call(tool)
    body = json.dumps(message).encode()
    told = {"Host": "localhost", "Content-Type": "application/json"}
    told |= headers(message, "application/json") | {"Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"POST /mcp HTTP/1.1\r\n{lines}\r\n".encode() + body


async def ask(stream: SocketStream, request: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer.

    Raises:
        anyio.EndOfStream, anyio.BrokenResourceError: the server has closed.
    """
    await stream.send(request)
    heard = bytearray()
    while not message_end(heard):
        heard += await stream.receive()
    head, _, body = bytes(heard).partition(HEAD_END)
    return int(head.split(b" ", 2)[1]), head, body


@dataclass(slots=True)
class Seen:
    """What the clients that read have seen."""

    statuses: Counter[int] = field(default_factory=Counter)
    answered_ms: list[float] = field(default_factory=list)
    broken: int = 0
    """Connections that ended in the middle of a request."""
    wrong: list[str] = field(default_factory=list)
    """Answers that are not what they should be."""


@dataclass(slots=True)
class Crowd:
    """Clients of one port, each at an address of its own.

    Args:
        right: whether an answer is what it should be.
        heeds: what share they wait of the time that a 429 names.
    """

    port: int
    request: bytes
    right: Callable[[bytes], bool]
    heeds: float = 1.0
    seen: Seen = field(default_factory=Seen)

    async def connect(self, number: int) -> SocketStream:
        """A connection of the client of this number."""
        address = f"127.1.{number // 250}.{number % 250 + 1}"
        return await anyio.connect_tcp("127.0.0.1", self.port, local_host=address)

    async def hurry(self, number: int, calls: int | None = None) -> None:
        """Ask again and again: so often, or until cancelled."""
        answered = 0
        while calls is None or answered < calls:
            try:
                async with await self.connect(number) as stream:
                    while calls is None or answered < calls:
                        answered += await self._ask(stream)
            except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
                self.seen.broken += 1

    async def _ask(self, stream: SocketStream) -> bool:
        """Whether there was an answer."""
        begun = time.monotonic()
        with anyio.fail_after(PATIENCE_SECONDS):
            status, head, body = await ask(stream, self.request)
        self.seen.statuses[status] += 1
        if status == 200:
            self.seen.answered_ms.append((time.monotonic() - begun) * 1000)
            if not self.right(body):
                self.seen.wrong.append(body[:300].decode(errors="replace"))
            return True
        if status == 429:
            after = next(
                line for line in head.lower().split(b"\r\n") if line.startswith(b"retry-after:")
            )
            await anyio.sleep(self.heeds * float(after.partition(b":")[2]))
        return False

    async def dawdle(self, number: int) -> None:
        """Be slow, each in one of five ways, until cancelled."""
        said = (
            b"",
            self.request[:40],
            self.request[:-1],
            self.request * PIPELINED,
            self.request,
        )[number % 5]
        while True:
            try:
                async with await self.connect(number) as stream:
                    await stream.send(said)
                    if number % 5 < 4:
                        await anyio.sleep_forever()
                    while True:  # read, but only just
                        await stream.receive(100)
                        await anyio.sleep(1)
            except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
                await anyio.sleep(1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run has shown."""

    calm_ms: Sequence[float]
    seen: Seen
    before_mib: float
    most_mib: float
    cpu_seconds: float
    recovered_seconds: float


async def overload(process: Child, crowd: Crowd, clients: int, slow: int) -> Outcome:
    """Calm, then the crowd, then calm again."""
    calm = Crowd(crowd.port, crowd.request, crowd.right)
    await calm.hurry(0, CALM_CALLS)
    calm_ms = calm.seen.answered_ms[CALM_CALLS // 3 :]
    before = Load.of(process)
    most_mib = before.resident_mib

    async with anyio.create_task_group() as tasks:
        for number in range(1, clients + 1):
            come = crowd.dawdle if number <= slow else crowd.hurry
            tasks.start_soon(come, number)
            await anyio.sleep(ARRIVED_SECONDS / clients)
        ends_at = time.monotonic() + LOAD_SECONDS
        while time.monotonic() < ends_at:
            await anyio.sleep(SAMPLE_SECONDS)
            most_mib = max(most_mib, Load.of(process).resident_mib)
        tasks.cancel_scope.cancel()
    after = Load.of(process)
    recovered = await _recovery(calm, limit_ms=max(calm_ms))
    return Outcome(
        calm_ms=calm_ms,
        seen=crowd.seen,
        before_mib=before.resident_mib,
        most_mib=most_mib,
        cpu_seconds=after.cpu_seconds - before.cpu_seconds,
        recovered_seconds=recovered,
    )


async def _recovery(calm: Crowd, *, limit_ms: float) -> float:
    """Seconds until the first second began in which most calls took no longer than before."""
    begun = time.monotonic()
    taken: list[tuple[float, float]] = []
    while time.monotonic() < begun + RECOVERY_SECONDS:
        count = len(calm.seen.answered_ms)
        await calm.hurry(0, 1)
        taken.append((time.monotonic() - begun, calm.seen.answered_ms[count]))
        since = taken[-1][0] - 1
        if since >= 0 and median(ms for at, ms in taken if at > since) <= limit_ms:
            return since
    return RECOVERY_SECONDS


def _right(body: bytes) -> bool:
    result = json.loads(body)["result"]
    coverage = result.get("structuredContent", {}).get("coverage", {})
    return bool(coverage.get("nodes_answered") == coverage.get("nodes_asked") == AGENTS)


def _section(outcome: Outcome, clients: int, slow: int) -> Section:
    seen = outcome.seen
    section = Section(f"{clients} clients at once, {slow} of them slow, for {LOAD_SECONDS:g} s")
    calm = sorted(outcome.calm_ms)
    section.add("a call before, one client: median", median(calm), "ms")
    section.add("a call before: the slowest", calm[-1], "ms")
    cuts = quantiles(seen.answered_ms, n=100) if len(seen.answered_ms) > 1 else [0.0] * 99
    for percent in (50, 95, 99):
        section.add(f"healthy clients, answered: p{percent}", cuts[percent - 1], "ms")
    section.add("answers a second", len(seen.answered_ms) / LOAD_SECONDS, "")
    section.add("sent away with 429", seen.statuses[429], "")
    section.add("sent away with 429: missing", float(not seen.statuses[429]), "", 0.0)
    odd = sum(count for status, count in seen.statuses.items() if status not in (200, 429))
    section.add("other statuses than 200 and 429", odd, "", 0.0)
    section.add("answers with a node missing", len(seen.wrong), "", 0.0)
    section.add("connections of healthy clients that broke", seen.broken, "", 0.0)
    section.add("processor time of the gateway", outcome.cpu_seconds, "s")
    section.add("resident before", outcome.before_mib, "MiB")
    section.add("resident, the most", outcome.most_mib, "MiB", RESIDENT_MIB)
    section.add("until as fast as before", outcome.recovered_seconds, "s", RECOVERED_SECONDS)
    return section


def _measure(folder: Path, clients: int, slow: int) -> Section:
    recording = folder / "recording.json"
    record(folder).write(recording)
    with farm(recording, live=AGENTS) as agents:
        ports = dict(enumerate(agents.live))
        fleet = Fleet.write(folder / "agents.toml", ports, {}, frozenset(ports))
        flags = ["--agents-file", str(fleet.file), "--transports", "http", "--http-port", "0"]
        with child([*PROGRAM, "gateway", *flags], life_seconds=LIFE_SECONDS) as process:
            port = listening_port(process)
            crowd = Crowd(port, request_of("get_gpu_inventory"), _right)
            outcome = anyio.run(overload, process, crowd, clients, slow)
            for words in crowd.seen.wrong[:3]:
                print(words)
            return _section(outcome, clients, slow)


def main(arguments: Sequence[str]) -> int:
    """Print the figures. Returns 1 where a limit was missed."""
    parser = argparse.ArgumentParser(prog="bench.overload", description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--slow", type=int, default=SLOW, help="how many of them are slow")
    options = parser.parse_args(arguments)
    if not 0 <= options.slow < options.clients:
        parser.error("--slow must be less than --clients")
    started = time.monotonic()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, most))
    load, *_ = os.getloadavg()
    print(f"Python {platform.python_version()}, load before {load:.2f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mcp-gpu-bench-") as folder:
        section = _measure(Path(folder), options.clients, options.slow)
    print(f"\n{section}\n\ntook {time.monotonic() - started:.0f} s")
    return 1 if any(figure.missed for figure in section.figures) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

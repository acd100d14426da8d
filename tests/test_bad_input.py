"""2,000 generated bad inputs against the real processes, on every way in.

After each comes a good request, which must be answered; every answer must be well-formed and tell
nothing of the program's inside; at the end the process holds what it held before.
"""

from __future__ import annotations

import json
import math
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import httpx
import jsonschema
import pytest
from anyio.abc import ByteStream, UNIXSocketStream
from anyio.streams.stapled import StapledByteStream

from support.badinput import (
    ERAS,
    FRAME_BYTES,
    SEED,
    TOOL,
    Exchange,
    Forge,
    HttpForge,
    Vitals,
    check_message,
    check_text,
    initialize,
    line,
    post,
    request,
)
from support.cluster import PROGRAM, Running, cluster
from support.impostor import LONGEST_BYTES, Impostors
from support.ports import free_ports
from support.schemas import promised

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="what a process holds is read from Linux's /proc"
)

FLEET = '[[nodes]]\nname = "a"\nprofile = "t4"\n'

INPUTS = {"gateway http": 550, "agent http": 450, "socket": 350, "stdio": 200, "attach": 200}
"""Bad inputs per way in; what a fake agent says to the gateway makes up the rest of 2,000."""

EXCHANGE_SECONDS = 20
"""Bound for one answer on a busy machine."""

SETTLE_SECONDS = 20
"""Bound for a process to let go of what the last clients held."""

NOISE_BYTES = 12 << 20
"""Resident memory moves by as much on its own: over many rounds it climbs by 3 to 10 MiB, to a
height that depends on how many long inputs came at once, and stays there. A leak does not stay."""


@pytest.fixture(autouse=True)
def frugal_malloc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have glibc give back what is freed, in the processes started here: what it keeps for later
    would look like a leak."""
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")


Connect = Callable[[], AbstractAsyncContextManager[ByteStream]]


def held(now: Vitals, before: Vitals) -> bool:
    """Whether the process holds no more than before."""
    return (
        now.resident_bytes <= before.resident_bytes + NOISE_BYTES
        and now.descriptors <= before.descriptors
        and now.threads <= before.threads
    )


async def settled(pid: int, before: Vitals) -> None:
    """Wait until the process holds no more than before."""
    now = Vitals.of(pid)
    try:
        with anyio.fail_after(SETTLE_SECONDS):
            while not held(now, before):
                await anyio.sleep(0.1)
                now = Vitals.of(pid)
    except TimeoutError:
        pytest.fail(f"was {before}, is {now}")
    print(f"{before} -> {now}, {(now.resident_bytes - before.resident_bytes) / 1024:.0f} KiB more")


class Talk:
    """One conversation over lines, in which every line that comes is checked."""

    numbers = count()

    def __init__(self, stream: ByteStream, era: str) -> None:
        self.stream = stream
        self.era = era
        self._rest = b""
        self._longest = 0

    async def send(self, *frames: bytes) -> None:
        self._longest = max(self._longest, *map(len, frames))
        await self.stream.send(b"".join(frame + b"\n" for frame in frames))

    async def receive(self) -> dict[str, Any]:
        """The next message. Raises `anyio.EndOfStream`."""
        while b"\n" not in self._rest:
            self._rest += await self.stream.receive()
        raw, _, self._rest = self._rest.partition(b"\n")
        return check_message(raw, self._longest)

    async def ask(self, message: dict[str, Any]) -> None:
        """Ask something good and get its result."""
        await self.send(line(message))
        with anyio.fail_after(EXCHANGE_SECONDS):
            while (answer := await self.receive()).get("id") != message["id"]:
                pass
        assert "result" in answer, answer

    async def greet(self) -> None:
        if self.era != ERAS[0]:
            await self.ask(initialize("greeting"))
            await self.send(line({"jsonrpc": "2.0", "method": "notifications/initialized"}))

    async def good(self) -> None:
        number = next(self.numbers)
        if number % 10 == 0:
            await self.ask(
                request(self.era, "tools/call", f"good-{number}", name=TOOL, arguments={})
            )
        else:
            await self.ask(request(self.era, "tools/list", f"good-{number}"))

    async def heckle(self, frames: Iterable[bytes]) -> None:
        """Say each bad frame and something good after it."""
        await self.good()
        for frame in frames:
            await self.send(frame)
            await self.good()

    async def end(self) -> None:
        """All that still comes until the other side closes."""
        with anyio.fail_after(EXCHANGE_SECONDS):
            try:
                while True:
                    await self.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                assert self._rest == b"", "ends within a line"


async def converse(connect: Connect, frames: Iterable[bytes], era: str, ending: str) -> None:
    """Say bad frames, and leave in one of several ways."""
    async with connect() as stream:
        talk = Talk(stream, era)
        await talk.greet()
        await talk.heckle(frames)
        if ending == "half-closed":
            await talk.send(line(request(era, "tools/list", "last")))
            await stream.send_eof()
            await talk.end()
        elif ending == "partial":
            await stream.send(line(request(era, "tools/list", "last"))[:-1])
        elif ending == "unread":
            await talk.send(*[line(request(era, "tools/list", n)) for n in range(100)])
        elif ending == "endless":
            await stream.send(b'{"jsonrpc":"2.0","id":"')
            try:
                for _ in range(FRAME_BYTES // 65_536 + 1):
                    await stream.send(b"x" * 65_536)
            except anyio.BrokenResourceError:
                pass
            await talk.end()


ENDINGS = ("half-closed", "partial", "unread", "endless")


async def attack(connect: Connect, seed: int, inputs: int, per_talk: int) -> None:
    """`inputs` bad frames over as many conversations as it takes, in both eras."""
    forge = Forge(seed)
    for number in range(inputs // per_talk):
        era = ERAS[number % 2]
        ending = ENDINGS[number // 2 % len(ENDINGS)]
        await converse(connect, forge.frames(per_talk, era), era, ending)


@asynccontextmanager
async def unix(path: Path) -> AsyncIterator[ByteStream]:
    async with await anyio.connect_unix(path) as stream:
        yield stream


@asynccontextmanager
async def agent(folder: Path) -> AsyncIterator[tuple[Running, Path]]:
    async with cluster(folder, FLEET) as fleet:
        yield fleet.agents["a"], folder / "a" / "agent.sock"


def pid_of(running: Running) -> int:
    assert running.process is not None
    return running.process.pid


def check_log(log: Path) -> None:
    """What comes from outside is no reason for a stack."""
    assert "Traceback" not in log.read_text(), log.read_text()[-5_000:]


async def test_the_agents_socket_outlives_bad_frames(tmp_path: Path) -> None:
    async with agent(tmp_path) as (running, path):
        half = INPUTS["socket"] // 2
        connect = partial(unix, path)
        await attack(connect, SEED, half, 25)
        before = Vitals.of(pid_of(running))
        async with slow_clients(partial(anyio.connect_unix, path), LIST + b"\n"):
            await attack(connect, SEED + 1, half, 25)
        await settled(pid_of(running), before)
        assert await running.end() == 0
        check_log(running.log)


@dataclass(eq=False)
class ChildStream(StapledByteStream):
    """A process's standard input and output."""

    pid: int = 0


@asynccontextmanager
async def child(
    *arguments: str, log: Path, statuses: Collection[int] = (0,)
) -> AsyncIterator[ChildStream]:
    """A process's standard input and output; leaving closes both, upon which it has to end."""
    # Its output is a socket, because anyio cannot close the reading end of a process's pipe.
    ours, theirs = socket.socketpair()
    with theirs, log.open("ab") as errors:
        process = await anyio.open_process(
            [*PROGRAM, *arguments], stdin=subprocess.PIPE, stdout=theirs, stderr=errors
        )
    assert process.stdin is not None
    try:
        async with (
            await UNIXSocketStream.from_socket(ours) as output,
            ChildStream(process.stdin, output, process.pid) as stream,
        ):
            yield stream
        with anyio.fail_after(EXCHANGE_SECONDS):
            assert await process.wait() in statuses
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()


async def test_an_agent_on_stdio_outlives_bad_frames(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(FLEET)
    log = tmp_path / "log"
    arguments = ["agent", "--stdio", "--simulate", str(fleet), "--node-name", "a"]
    half = INPUTS["stdio"] // 2
    await attack(partial(child, *arguments, log=log), SEED + 2, half, half // 4)
    forge = Forge(SEED + 3)
    async with child(*arguments, log=log) as stream:
        talk = Talk(stream, ERAS[0])
        await talk.heckle(forge.frames(half // 2, ERAS[0]))
        before = Vitals.of(stream.pid)
        await talk.heckle(forge.frames(half // 2, ERAS[0]))
        await settled(stream.pid, before)
    check_log(log)


async def test_the_relay_and_the_agent_behind_it_outlive_bad_frames(tmp_path: Path) -> None:
    async with agent(tmp_path) as (running, path):
        log = tmp_path / "attach.log"
        arguments = ["attach", "--relay-only", "--socket", str(path)]
        # 1 says that it was the agent who ended the session.
        connect = partial(child, *arguments, log=log, statuses=(0, 1))
        await attack(connect, SEED + 4, INPUTS["attach"] // 2, 10)
        before = Vitals.of(pid_of(running))
        await attack(connect, SEED + 5, INPUTS["attach"] // 2, 10)
        await settled(pid_of(running), before)
        check_log(running.log)
        check_log(log)


async def test_a_gateway_on_stdio_outlives_cancellations_that_misname_their_request(
    tmp_path: Path,
) -> None:
    """More of them than requests may be under way."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"a=127.0.0.1:{silent.getsockname()[1]}"
        connect = partial(child, "gateway", "--stdio", "--agents", address, log=tmp_path / "log")
        async with connect() as stream:
            talk = Talk(stream, ERAS[0])
            for number in range(200):
                cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled"}
                await talk.send(
                    line(request(ERAS[0], "tools/call", number, name=TOOL, arguments={})),
                    line(cancel | {"params": {"requestId": str(number)}}),
                )
            await talk.good()


LOOK_SECONDS = 0.05
"""How long to look for an answer where none is owed: a request that is not complete."""

LIST = line({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})

STATUSES = {200, 202, 400, 403, 404, 405, 406, 408, 413, 415, 421}


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One HTTP connection, read without a library."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self._data = b""

    async def respond(self) -> Response | None:
        """The next response; None where the server closes without one."""
        if not await self._until(lambda: b"\r\n\r\n" in self._data):
            assert self._data == b"", f"ends within a head: {self._data[:500]!r}"
            return None
        raw, _, self._data = self._data.partition(b"\r\n\r\n")
        status, *fields = raw.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (f.partition(": ") for f in fields)}
        code = int(status.split(" ")[1])
        if code < 200:
            return await self.respond()
        if "content-length" in headers:
            length = int(headers["content-length"])
            assert await self._until(lambda: len(self._data) >= length), "ends within a body"
            body, self._data = self._data[:length], self._data[length:]
        else:
            # A subscription's stream has no end: its acknowledgement is enough.
            done = (b"0\r\n\r\n", b"acknowledged")
            await self._until(lambda: any(mark in self._data for mark in done))
            body, self._data = self._data, b""
        return Response(code, headers, body)

    async def _until(self, ready: Callable[[], bool]) -> bool:
        try:
            while not ready():
                self._data += await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return False
        return True


def check_response(response: Response, echo_bytes: int) -> None:
    check_text(response.body.decode() + str(response.headers))
    assert response.status in STATUSES, response
    kind = response.headers.get("content-type", "")
    if kind == "application/json" and b'"jsonrpc"' in response.body:
        message = check_message(response.body, echo_bytes)
        # The handshake's era answers errors with 200.
        assert "error" in message or response.status == 200, response
    elif response.status >= 400:
        assert len(response.body) < 500, response


async def exchange(port: int, sent: Exchange, *, half_close: bool) -> None:
    """Send it, check what comes back, close."""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        with anyio.fail_after(EXCHANGE_SECONDS):
            try:
                await stream.send(sent.raw)
                if half_close:
                    await stream.send_eof()
            except anyio.BrokenResourceError:
                pass  # refused before all of it was said
            response = None
            owed = sent.answered and not half_close
            with anyio.move_on_after(math.inf if owed else LOOK_SECONDS):
                response = await Connection(stream).respond()
            assert response is not None or not owed, "no answer"
            if response is not None:
                check_response(response, len(sent.raw))


@asynccontextmanager
async def slow_clients(
    connect: Callable[[], Awaitable[ByteStream]], good: bytes
) -> AsyncIterator[None]:
    """Clients that say nothing, or a part of something, or read none of their many answers."""
    async with AsyncExitStack() as stack:
        for said in (b"", good[:5], good[: len(good) // 2], good[:-1], good * 50):
            for _ in range(6):
                stream = await stack.enter_async_context(await connect())
                await stream.send(said)
        yield


async def assail(url: str, port: int, seed: int, inputs: int) -> None:
    """`inputs` bad requests, and a good one after each over one kept connection."""
    async with httpx.AsyncClient(trust_env=False, timeout=EXCHANGE_SECONDS) as client:
        for number, sent in enumerate(HttpForge(seed).exchanges(inputs)):
            try:
                await exchange(port, sent, half_close=number % 10 == 9)
            except (AssertionError, TimeoutError) as error:
                pytest.fail(f"{sent.raw[:1_500]!r}: {error}")
            if number % 20 == 0:
                good = request(ERAS[1], "tools/call", number, name=TOOL, arguments={})
            else:
                good = request(ERAS[1], "tools/list", number)
            answer = await client.post(f"{url}/mcp", json=good)
            assert answer.status_code == 200
            assert "result" in check_message(answer.content, 0)


@pytest.mark.parametrize("role", ["agent", "gateway"])
async def test_http_outlives_bad_requests(role: str, tmp_path: Path) -> None:
    async with cluster(tmp_path, FLEET) as fleet:
        running = fleet.gateway if role == "gateway" else fleet.agents["a"]
        half = INPUTS[f"{role} http"] // 2
        seed = SEED + len(role)
        await assail(running.url, running.port, seed, half)
        before = Vitals.of(pid_of(running))
        good = post({"Host": "localhost", "Content-Type": "application/json"}, LIST)
        async with slow_clients(partial(anyio.connect_tcp, "127.0.0.1", running.port), good):
            await assail(running.url, running.port, seed + 1, half)
        await settled(pid_of(running), before)
        assert await running.end() == 0
        check_log(running.log)


IMPOSTORS = tuple(f"i{number}" for number in range(24))

RELAY = Path(__file__).parent / "support" / "relay.py"


@asynccontextmanager
async def surrounded(
    folder: Path, impostors: Impostors, nodes: Sequence[str] = IMPOSTORS
) -> AsyncIterator[Running]:
    """A gateway over the agent of node a and over impostors of it."""
    paths = {node: folder / f"{node}.sock" for node in nodes}
    entries = [
        f'[[agents]]\nnode = "{node}"\n'
        f"command.argv = {json.dumps([sys.executable, str(RELAY), str(path)])}\n"
        for node, path in {"a": folder / "a" / "agent.sock", **paths}.items()
    ]
    agents_file = folder / "impostors.toml"
    agents_file.write_text("".join(entries))
    (port,) = free_ports(1)
    arguments = ["gateway", "--agents-file", str(agents_file), "--http-port", str(port)]
    options = {"command": {"max_frame_bytes": LONGEST_BYTES}}
    arguments += ["--transport-options", json.dumps(options)]
    arguments += ["--node-deadline-seconds", "1.5", "--stream-timeout-seconds", "1"]
    gateway = Running(arguments, port, folder / "surrounded.log")
    async with impostors.listening(paths):
        try:
            await gateway.start()
            yield gateway
        finally:
            with anyio.CancelScope(shield=True):
                await gateway.end(signal.SIGKILL)


async def test_a_gateway_outlives_agents_that_answer_badly_on_the_command_stream(
    tmp_path: Path,
) -> None:
    async with agent(tmp_path) as (_, path):
        impostors = Impostors(SEED, path, "a")
        async with surrounded(tmp_path, impostors) as gateway:
            schema = promised("gateway", TOOL)
            rounds: list[Vitals] = []
            # Memory climbs to a height and stays there, as a rule after the first round. A leak
            # goes on in every one.
            for goal in (125, 250, 375, 500):
                impostors.spoiling = True
                while impostors.spoiled < goal:
                    found = await survey(gateway.url, schema)
                    listed = [node["node"] for node in found["nodes"]]
                    failed = [failure["node"] for failure in found["failures"]]
                    omitted = found["nodes_omitted"] + found["failures_omitted"]
                    assert len(listed) + len(failed) + omitted == len(IMPOSTORS) + 1
                    assert "a" not in failed
                impostors.spoiling = False
                with anyio.fail_after(EXCHANGE_SECONDS):
                    while (await survey(gateway.url, schema))["failures"]:
                        pass
                rounds.append(Vitals.of(pid_of(gateway)))
                if len(rounds) > 1 and held(rounds[-1], rounds[-2]):
                    break
            else:
                await settled(pid_of(gateway), rounds[-2])
            assert await gateway.end() == 0
            check_log(gateway.log)


@pytest.mark.parametrize("field", ["driver_version", "models", "attention"])
async def test_one_agents_endless_answer_costs_the_others_nothing(
    field: str, tmp_path: Path
) -> None:
    def swell(answer: bytes) -> list[bytes]:
        message = json.loads(answer)
        data = message["result"].get("structuredContent")
        if data is not None:
            (model,) = data["models"]
            fitting = {
                "driver_version": "5" * 1_200_000,
                "models": [{**model, "name": f"board {number}"} for number in range(15_000)],
                "attention": ["x" * 1_000] * 1_200,
            }
            data[field] = fitting[field]
        return [line(message) + b"\n"]

    async with agent(tmp_path) as (_, path):
        impostors = Impostors(SEED, path, "a")
        impostors.spoiling, impostors.spoil = True, swell
        async with surrounded(tmp_path, impostors, ["i"]) as gateway:
            found = await survey(gateway.url, promised("gateway", TOOL))
    assert "a" in [node["node"] for node in found["nodes"]]
    assert len(json.dumps(found)) < 40_000
    assert found["coverage"]["nodes_asked"] == 2


async def test_an_agent_that_lacks_the_tool_and_is_mended_is_asked_again(tmp_path: Path) -> None:
    def forget_tools(answer: bytes) -> list[bytes]:
        message = json.loads(answer)
        meta = message["result"].get("_meta", {})
        if "mcp-gpu/identity" in meta:
            meta["mcp-gpu/identity"]["tools"] = {}
        return [line(message) + b"\n"]

    async with agent(tmp_path) as (_, path):
        impostors = Impostors(SEED, path, "a")
        impostors.spoiling, impostors.spoil = True, forget_tools
        async with surrounded(tmp_path, impostors, ["i"]) as gateway:
            schema = promised("gateway", TOOL)
            (failure,) = (await survey(gateway.url, schema))["failures"]
            assert (failure["node"], failure["reason"]) == ("i", "agent_too_old")
            impostors.spoiling = False
            assert (await survey(gateway.url, schema))["failures"] == []


async def survey(url: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The fleet, as the schema has it."""
    call = request(ERAS[1], "tools/call", 1, name=TOOL, arguments={})
    async with httpx.AsyncClient(trust_env=False, timeout=EXCHANGE_SECONDS) as client:
        answer = await client.post(f"{url}/mcp", json=call)
    result = check_message(answer.content, 0)["result"]
    assert not result.get("isError"), result
    jsonschema.validate(result["structuredContent"], schema)
    found: dict[str, Any] = result["structuredContent"]
    return found

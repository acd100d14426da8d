"""Attacks on whoever listens: DNS rebinding, sizes, and hundreds of clients that only hold on."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import ByteStream
from mcp_types import METHOD_NOT_FOUND

import mcp_gpu.serving.endpoint
import mcp_gpu.serving.http
import mcp_gpu.serving.protocol
from mcp_gpu.serving.access.model import AccessPolicy
from mcp_gpu.serving.endpoint import UNSENT_BYTES, HttpEndpoint, bind
from support.badinput import Vitals, head, post
from support.cluster import PROGRAM, Cluster, cluster
from support.demo_server import registry
from support.wire import PATIENCE_SECONDS, Lines, call, headers, request, serving
from transports.base import PAD_CHARS, PAD_META_KEY

NOT_LINUX = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="what a process holds is read from Linux's /proc"
)

ECHO = json.dumps(call("echo", text="in")).encode()
HEADERS = {"Host": "localhost", "Content-Type": "application/json"}
PAGES = ("/version", "/readyz", "/metrics")


@asynccontextmanager
async def listening(**endpoint: Any) -> AsyncIterator[int]:
    async with serving(registry(), http=HttpEndpoint(port=0, **endpoint)) as where:
        yield where.http[0][1]


async def status_of(port: int, raw: bytes) -> int:
    """The status of what answers these bytes, and its body checked to tell nothing."""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(raw)
        data = await stream.receive()
    return int(data.split(b" ", 2)[1])


def knock(path: str, *told: str, target: str = "", version: str = "1.1") -> bytes:
    """A request that is well but for its headers."""
    body = ECHO if path == "/mcp" else b""
    method = "POST" if body else "GET"
    lines = [f"{method} {target or path} HTTP/{version}", *told]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example.",
    "localhost@evil.example",
    "evil.example@localhost",
    "evil.example:80@127.0.0.1",
    "localhost/evil.example",
    "localhost?evil.example",
    "localhost#evil.example",
    "localhost\\evil.example",
    "localhost:evil.example",
    "localhost:80:80",
    "localhost,evil.example",
    "local\thost",
    "localhost..",
    "localhost%00.evil.example",
    "[::1].evil.example",
    "[::1]evil.example",
    "[localhost]",
    "[127.0.0.1]",
    "::1",
    "[::ffff:127.0.0.1",
    "2130706433",
    "127.1",
    "0x7f.0.0.1",
    "*",
    "http://localhost",
    "\xadlocalhost",
]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
async def test_a_page_whose_name_leads_here_by_its_own_dns_reads_nothing(host: str) -> None:
    async with listening() as port:
        for path in ("/mcp", *PAGES):
            assert await status_of(port, knock(path, f"Host: {host}")) == 421, path


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost.",
        "localhost:",
        "127.0.0.1:8080",
        "10.0.0.7",
        "[::1]:8080",
        "[::ffff:127.0.0.1]:1",
        "[fe80::1%25eth0]:8080",
        "[FD00::7]",
    ],
)
async def test_odd_spellings_of_an_address_are_served(host: str) -> None:
    async with listening() as port:
        for path in ("/mcp", *PAGES):
            assert await status_of(port, knock(path, f"Host: {host}")) == 200, path


@pytest.mark.parametrize("path", ["/mcp", *PAGES])
async def test_a_host_that_is_doubled_missing_or_told_elsewhere_is_not_believed(path: str) -> None:
    good, evil = "Host: localhost", "Host: evil.example"
    refused = [
        knock(path, good, evil),
        knock(path, evil, good),
        knock(path),
        knock(path, version="1.0"),
        knock(path, evil, "X-Forwarded-Host: localhost", "Forwarded: host=localhost"),
        knock(path, evil, target=f"http://localhost{path}"),
        knock(path, good, target=f"http://evil.example{path}"),
        knock(path, good, target=f"http://localhost{path}", version="1.0"),
    ]
    async with listening() as port:
        for raw in refused:
            assert await status_of(port, raw) in (400, 404, 421), raw
        told_elsewhere = knock(path, good, "X-Forwarded-Host: evil.example", "X-Host: evil.example")
        assert await status_of(port, told_elsewhere) == 200


@pytest.mark.parametrize(
    "origins",
    [
        ["null"],
        ["file://"],
        ["file://localhost"],
        ["http://localhost.evil.example"],
        ["http://127.0.0.1.evil.example"],
        ["http://localhost@evil.example"],
        ["http://evil.example@localhost"],
        ["http://localhost/evil.example"],
        ["http://localhost#evil.example"],
        ["http://local\thost"],
        ["http://[::1].evil.example"],
        ["chrome-extension://localhost"],
        ["localhost"],
        ["//localhost"],
        ["http://localhost http://evil.example"],
        ["http://localhost", "http://evil.example"],
        ["http://evil.example", "http://localhost"],
    ],
)
async def test_a_foreign_page_does_not_call(origins: list[str]) -> None:
    told = ["Host: localhost", *(f"Origin: {origin}" for origin in origins)]
    async with listening() as port:
        for path in ("/mcp", *PAGES):
            assert await status_of(port, knock(path, *told)) == 403, path


async def test_what_a_load_balancer_asks_for_is_told_to_whoever_asks() -> None:
    async with listening() as port:
        assert await status_of(port, knock("/healthz", "Host: health.example")) == 200


async def test_no_answer_invites_a_foreign_page_to_read_it() -> None:
    async with (
        listening() as port,
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
    ):
        for method, path in product(("OPTIONS", "POST", "GET"), ("/mcp", "/version", "/lost")):
            for origin in ("http://localhost", "https://evil.example"):
                told = {"Origin": origin, "Access-Control-Request-Method": "POST"}
                url = f"http://127.0.0.1:{port}{path}"
                answer = await client.request(method, url, headers=told)
                invited = [name for name in answer.headers if name.startswith("access-control")]
                assert invited == []


FLEET = '[[nodes]]\nname = "a"\nprofile = "t4"\n'

LONG = 900_000
"""Within what a request may take up, and longer than anything sensible."""


@dataclass
class Door:
    """One way in to a server, over which messages are said and answers come."""

    lines: Lines | None = None
    url: str = ""

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.lines is not None:
            await self.lines.send(message)
            answer = await self.lines.until(message["id"])
        else:
            async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client:
                answer = (await client.post(f"{self.url}/mcp", json=message)).json()
        assert isinstance(answer, dict)
        return answer


@asynccontextmanager
async def stdio(folder: Path) -> AsyncIterator[Door]:
    arguments = ["gateway", "--stdio", "--agents", "127.0.0.1:9"]
    with (folder / "stdio.log").open("ab") as log:
        process = await anyio.open_process([*PROGRAM, *arguments], stderr=log)
    async with process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            stream = anyio.streams.stapled.StapledByteStream(process.stdin, process.stdout)
            yield Door(Lines(stream))
        finally:
            if process.returncode is None:
                process.kill()


@asynccontextmanager
async def door(name: str, here: Cluster, folder: Path) -> AsyncIterator[Door]:
    """A new connection to one of the program's listeners."""
    if name == "socket":
        async with await anyio.connect_unix(folder / "a" / "agent.sock") as stream:
            yield Door(Lines(stream))
    elif name == "stdio":
        async with stdio(folder) as found:
            yield found
    else:
        running = here.gateway if name == "gateway" else here.agents["a"]
        yield Door(url=running.url)


def oversized() -> Iterator[dict[str, Any]]:
    """Requests of which one thing is far too much of."""
    tool = "get_gpu_inventory"
    names = [f"node-{number:05}" for number in range(10_000)]
    deep: Any = 0
    for _ in range(150):
        deep = [deep]
    for arguments in (
        {"nodes": names},
        {"nodes": ["x" * LONG]},
        {"nodes": ["x" * 80_000] * 11},
        {"cursor": "x" * LONG},
        {"detail": "x" * LONG},
        {"limit": 10**300},
        {"limit": -(10**300)},
        {"limit": 1e300},
        {"x" * LONG: 1},
        {f"argument-{number}": number for number in range(30_000)},
        {"limit": deep},
    ):
        yield request("tools/call", 1, name=tool, arguments=arguments)
    yield request("tools/call", 1, name="analyze_xid_errors", arguments={"since": "9" * LONG})
    yield request("tools/call", 1, name="analyze_xid_errors", arguments={"codes": [79] * 100_000})
    yield request("tools/call", 1, name="explain_xid", arguments={"line": "Xid (" * 150_000})
    yield request("tools/call", 1, name="explain_xid", arguments={"code": 10**400})
    yield request("tools/call", 1, name="explain_xid", arguments={"driver_version": "5" * LONG})
    yield request("tools/call", 1, name="x" * LONG, arguments={})
    yield request("x" * LONG, 1)
    yield request("tools/list", 1, cursor="x" * LONG)
    yield request("server/discover", 1, meta={"mcp-gpu/pad": 10**300})
    yield request("tools/list", 1, meta={"x" * LONG: {"y": ["z"] * 10_000}})
    yield request("subscriptions/" + "x" * LONG, 1)


ANSWER_CHARS = 2_500
"""A refusal is a few sentences, whatever it is about."""


@pytest.mark.parametrize("name", ["gateway", "agent", "socket", "stdio"])
async def test_what_is_far_too_much_is_refused_in_few_words(name: str, tmp_path: Path) -> None:
    if name == "stdio":
        async with stdio(tmp_path) as only:
            await overdo(only)
    else:
        async with cluster(tmp_path, FLEET) as here, door(name, here, tmp_path) as first:
            await overdo(first)
            async with door(name, here, tmp_path) as second:
                assert "result" in await second.ask(request("tools/list", 2))


async def overdo(door: Door) -> None:
    with anyio.fail_after(6 * PATIENCE_SECONDS):
        for number, message in enumerate(oversized()):
            answer = await door.ask(message)
            if "error" not in answer and not answer["result"].get("isError"):
                assert message["method"] in ("tools/list", "server/discover"), message
            elif answer.get("error", {}).get("code") != METHOD_NOT_FOUND:  # repeats the method
                said = json.dumps(answer)
                assert len(said) < ANSWER_CHARS, f"{number}: {len(said)} characters: {said[:300]}"
            good = await door.ask(request("tools/list", f"after {number}"))
            assert "tools" in good["result"]


@pytest.mark.parametrize(
    "raw",
    [
        post({"Host": "localhost"} | {f"X-{n}": "y" for n in range(20_000)}, ECHO),
        post({"Host": "localhost", "X": "y" * 1_000_000}, ECHO),
        post({"Host": "x" * 60_000}, ECHO),
        post({"Host": "localhost", "Authorization": "Bearer " + "y" * 60_000}, ECHO),
        post({"Host": "localhost", "Origin": "http://" + "y" * 60_000}, ECHO),
        post({"Host": "localhost"}, ECHO, request_line=b"POST /" + b"x" * 1_000_000 + b" HTTP/1.1"),
        post({"Host": "localhost"}, ECHO, request_line=b"POST /?" + b"x" * 60_000 + b" HTTP/1.1"),
        post({"Host": "localhost"}, ECHO, length="9" * 19),
        post({"Host": "localhost"}, ECHO, length="9" * 60_000),
        post({"Host": "localhost"}, ECHO, length="1" + "0" * 4_500),
        head({"Host": "localhost", "Transfer-Encoding": "chunked"})
        + b"%x\r\n%s\r\n" % (65_536, b" " * 65_536) * 17
        + b"0\r\n\r\n",
        head({"Host": "localhost", "Transfer-Encoding": "chunked"})
        + b"1\r\n \r\n" * 100_000
        + b"0\r\n\r\n",
        head({"Host": "localhost", "Transfer-Encoding": "chunked"})
        + b"1;" + b"x" * 100_000 + b"\r\n \r\n0\r\n\r\n",
        head({"Host": "localhost", "Transfer-Encoding": "chunked"})
        + b"0\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
    ],
    ids=lambda raw: f"{len(raw)}-{raw[:30]!r}",
)  # fmt: skip
async def test_a_request_that_is_far_too_long_is_refused_in_few_words(raw: bytes) -> None:
    async with listening() as port:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            try:
                await stream.send(raw)
            except anyio.BrokenResourceError:
                pass  # refused before all of it was said
            try:
                answer = await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                answer = b""
        assert not answer.startswith(b"HTTP/1.1 5"), answer[:500]
        assert len(answer) < ANSWER_CHARS
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client:
            good = await client.post(
                f"http://127.0.0.1:{port}/mcp",
                content=ECHO,
                headers={"Content-Type": "application/json"},
            )
            assert good.status_code == 200


SLOW = 500
"""Sockets of one attacker."""

ELSEWHERE = "127.0.0.2"
"""Where the attacker is: from another address than those who are to be served meanwhile."""

HELD_BYTES = 512 << 10
"""What each may make the process hold: an answer that is not read, and what it was made of."""

LISTEN = request("subscriptions/listen", notifications={"toolsListChanged": True})

PADDED = request("server/discover", meta={PAD_META_KEY: 4 * PAD_CHARS})
"""Three answers are more than a connection holds, and cost little."""

SLOW_CLIENTS = {
    "nothing": b"",
    "half a head": head(HEADERS)[:-10],
    "a head without an end": head(HEADERS)[:-2] + b"X: " + b"y" * 60_000,
    "half a body": post(HEADERS, b" " * 1_000_000)[:-500_000],
    "a body but for its last byte": post(HEADERS, b" " * 1_000_000)[:-1],
    "requests, and reads no answer": post(HEADERS, json.dumps(PADDED).encode()) * 3,
    "a subscription": post(
        HEADERS | headers(LISTEN, "application/json, text/event-stream"),
        json.dumps(LISTEN).encode(),
    ),
}
"""What each says before it falls silent."""


UNREAD = b"GET /version?pad=99999 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500
"""Asks for more than any buffer on the way holds."""

EARLY = head(HEADERS | {"Content-Length": "2"})
"""Wants no body to be refused: an answer comes where a token is wanted."""


@dataclass(frozen=True)
class Hold:
    """How a client holds on to its connection."""

    said: bytes = b""
    answered: bytes = b""
    """What is then awaited."""
    more: bytes = b""
    """What is said after that."""


HOLDS = {
    "nothing": Hold(),
    "part of a head": Hold(b"POST /mcp HT"),
    "idle": Hold(knock("/healthz", "Host: localhost"), b" 200 "),
    "refused, and part of a body": Hold(EARLY, b" 401 ", b"x"),
    "refused, and a body": Hold(EARLY, b" 401 ", b"xx"),
    "refused, and a body and part of a head": Hold(EARLY, b" 401 ", b"xxGET"),
    "a page, and part of a body": Hold(
        head({"Host": "localhost", "Content-Length": "2"}, b"GET /version HTTP/1.1"), b" 200 ", b"x"
    ),
    "unread answers": Hold(UNREAD, b" 200 "),
    "an unread answer, the last": Hold(
        b"GET /version?pad=99999 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b" 200 ",
    ),
}


@asynccontextmanager
async def holding(port: int, hold: Hold) -> AsyncIterator[socket.socket]:
    """A connection held in this way by a client that takes little before it reads."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", port))
        raw.sendall(hold.said)
        if hold.answered:
            await anyio.wait_readable(raw)
            assert hold.answered in raw.recv(4096)
        raw.sendall(hold.more)
        yield raw


@pytest.fixture
def tokens(tmp_path: Path) -> AccessPolicy:
    (tmp_path / "tokens").write_text("a-static-token-of-this-test\n")
    return AccessPolicy(token_file=tmp_path / "tokens")


@pytest.mark.parametrize("how", HOLDS)
async def test_clients_that_only_hold_on_make_room_for_others(
    how: str, tokens: AccessPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_gpu.serving.protocol, "CONNECTIONS", 8)
    monkeypatch.setattr(mcp_gpu.serving.endpoint, "UNSENT_BYTES", 4096)
    async with listening(access=tokens) as port, AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(holding(port, HOLDS[how]))
        for _ in range(20):
            assert await status_of(port, knock("/version", "Host: localhost")) == 200


@pytest.mark.parametrize("how", [how for how in HOLDS if how != "idle"])
async def test_no_client_is_waited_for_without_end(
    how: str, tokens: AccessPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that reads a little now and then."""
    for clock in ("HEADER_SECONDS", "UNREAD_SECONDS", "KEEP_ALIVE_SECONDS"):
        monkeypatch.setattr(mcp_gpu.serving.protocol, clock, 0.3)
    monkeypatch.setattr(mcp_gpu.serving.http, "KEEP_ALIVE_SECONDS", 0.3)
    monkeypatch.setattr(mcp_gpu.serving.endpoint, "UNSENT_BYTES", 4096)
    async with listening(access=tokens) as port, holding(port, HOLDS[how]) as raw:
        with suppress(ConnectionResetError):
            await anyio.wait_readable(raw)
            while raw.recv(100):
                await anyio.sleep(0.05)
                await anyio.wait_readable(raw)


def test_an_unread_answer_holds_little_of_the_kernels_memory() -> None:
    """What it takes ahead of a client is bounded for every connection, as Linux doubles it."""
    (bound,) = bind(HttpEndpoint(hosts=("127.0.0.1",), port=0))
    with bound, socket.create_connection(bound.getsockname()):
        accepted, _ = bound.accept()
        with accepted:
            held = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert held <= 2 * UNSENT_BYTES


@NOT_LINUX
async def test_hundreds_of_slow_clients_hold_up_nobody_and_hold_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # have it give back what is freed
    # What a gateway allows its agents is not the question: five hundred clients beside other work
    # can take both processors for seconds.
    flags = [
        word
        for name in ("node-deadline", "call-deadline", "probe-timeout")
        for word in (f"--{name}-seconds", str(PATIENCE_SECONDS))
    ]
    async with cluster(tmp_path, FLEET, *flags) as here:
        for kind, said in SLOW_CLIENTS.items():
            before = await held_by(here)
            async with crowd(here.gateway.port, said):
                with anyio.fail_after(3 * PATIENCE_SECONDS):
                    for _ in range(3):
                        during = await held_by(here)
                grown = during.resident_bytes - before.resident_bytes
                assert grown < SLOW * HELD_BYTES, f"{kind}: {grown >> 20} MiB"
            with anyio.fail_after(3 * PATIENCE_SECONDS):
                while (await held_by(here)).descriptors > before.descriptors:
                    await anyio.sleep(0.05)
        assert await here.gateway.end() == 0
        assert "Traceback" not in here.gateway.log.read_text()


async def held_by(here: Cluster) -> Vitals:
    """What the gateway holds, once it has answered as it should."""
    found = await here.ask()
    assert found["coverage"]["nodes_answered"] == 1, found["failures"]
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client:
        assert (await client.get(f"{here.gateway.url}/readyz")).status_code == 200
    assert here.gateway.process is not None
    return Vitals.of(here.gateway.process.pid)


@asynccontextmanager
async def crowd(port: int, said: bytes) -> AsyncIterator[None]:
    """So many clients that have said this and do nothing more."""
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        for _ in range(SLOW):
            connected = await anyio.connect_tcp("127.0.0.1", port, local_host=ELSEWHERE)
            tasks.start_soon(say, await stack.enter_async_context(connected), said)
        yield
        tasks.cancel_scope.cancel()


async def say(stream: ByteStream, said: bytes) -> None:
    if said:
        try:
            await stream.send(said)
        except anyio.BrokenResourceError:
            pass

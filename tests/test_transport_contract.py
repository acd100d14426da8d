"""What holds for every transport, over a real socket, a real child process, or in memory."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from mcp import ClientSession
from mcp.types import DiscoverResult, ServerCapabilities
from mcp.types.version import LATEST_MODERN_VERSION

from support.kubeapi.credentials import write_kubeconfig
from support.kubeapi.streams import Pod, one_pod
from support.peer import PEER, Peer, children, listen, relayed, serve_http, text_of, until
from transports.base import PAD_CHARS, Identity, Target, Transport
from transports.command import CommandTransport
from transports.errors import BadPeer, Broken, TimedOut, Unreachable
from transports.exec import ExecSettings, ExecTransport
from transports.http import HttpTransport
from transports.memory import MemoryTransport
from transports.portforward import PortForwardSettings, PortForwardTransport
from transports.session import call_tool

KINDS = ("http-ipv4", "http-ipv6", "portforward", "command", "exec", "memory")
HOSTS = {"http-ipv4": "127.0.0.1", "http-ipv6": "::1"}


IN_POD = Target(node="peer-1", namespace="gpu", pod="agent-1")


def exec_of(argv: Sequence[str], folder: Path) -> ExecTransport:
    return ExecTransport(ExecSettings(argv=tuple(argv), kubeconfig=str(folder / "kubeconfig")))


def forwarding(folder: Path) -> PortForwardTransport:
    return PortForwardTransport(PortForwardSettings(kubeconfig=str(folder / "kubeconfig")))


@dataclass
class Way:
    """A transport that is entered, and the peer at its other end."""

    transport: Transport
    target: Target
    peer: Peer

    async def call(self, tool: str, *, seconds: float = 20, **arguments: object) -> str:
        result = await call_tool(
            self.transport, self.target, tool, arguments, timeout_seconds=seconds
        )
        return text_of(result)


@asynccontextmanager
async def way_to(kind: str, folder: Path) -> AsyncIterator[Way]:
    peer = Peer()
    transport: Transport
    async with AsyncExitStack() as stack:
        match kind:
            case "memory":
                transport = MemoryTransport({"peer-1": peer.server})
                target = Target(node="peer-1")
            case "command":
                argv = await stack.enter_async_context(relayed(peer.serve_bytes, folder))
                transport = CommandTransport()
                target = Target(node="peer-1", options={"command": {"argv": argv}})
            case "exec":
                argv = await stack.enter_async_context(relayed(peer.serve_bytes, folder))
                await stack.enter_async_context(one_pod(folder, Pod()))
                transport = exec_of(argv, folder)
                target = IN_POD
            case "portforward":
                port = await stack.enter_async_context(serve_http(peer.app()))
                await stack.enter_async_context(one_pod(folder, Pod(ports={8080: port})))
                transport = forwarding(folder)
                target = IN_POD
            case _:
                port = await stack.enter_async_context(serve_http(peer.app(), HOSTS[kind]))
                transport = HttpTransport()
                target = Target(node="peer-1", addresses=(HOSTS[kind],), port=port)
        async with transport:
            assert transport.applies(target)
            yield Way(transport, target, peer)


@pytest.fixture(params=KINDS)
async def way(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Way]:
    async with way_to(request.param, tmp_path) as found:
        yield found


async def test_a_probe_says_who_answers(way: Way) -> None:
    with anyio.fail_after(20):
        identity = await way.transport.probe(way.target)
    assert identity == way.peer.identity
    assert identity == Identity.from_wire(json.loads(await way.call("whoami")))


async def test_a_probe_may_ask_for_a_small_answer(way: Way) -> None:
    with anyio.fail_after(20):
        assert await way.transport.probe(way.target, pad_chars=0) == way.peer.identity
    assert way.peer.padding[-1] == 0
    with anyio.fail_after(20):
        await way.transport.probe(way.target)
    assert way.peer.padding[-1] == PAD_CHARS


async def test_a_call_sends_one_request_and_nothing_else(way: Way) -> None:
    assert await way.call("echo", text="grüß dich\n\u2028") == "grüß dich\n\u2028"
    assert await way.call("echo", text="again") == "again"
    assert way.peer.requests == ["tools/call", "tools/call"]


async def test_the_sdk_session_works_over_the_streams(way: Way) -> None:
    with anyio.fail_after(20):
        async with way.transport.connect(way.target) as streams, ClientSession(*streams) as session:
            session.adopt(
                DiscoverResult(
                    supported_versions=[LATEST_MODERN_VERSION],
                    capabilities=ServerCapabilities(),
                    ttl_ms=0,
                    cache_scope="public",
                )
            )
            listed = await session.list_tools()
            assert "echo" in [tool.name for tool in listed.tools]
            # The SDK's own session checks the result against the listed schema.
            assert text_of(await session.call_tool("echo", {"text": "x"})) == "x"


async def test_several_mebibytes_pass_both_ways(way: Way) -> None:
    text = "ä" * (2 * 1024 * 1024)
    assert await way.call("echo", text=text) == text


async def test_fifty_calls_are_under_way_at_once(way: Way) -> None:
    met: list[str] = []

    async def meet() -> None:
        met.append(await way.call("meet", name="all", count=50))

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(meet)
    assert met == ["50"] * 50


async def test_progress_reaches_the_call_it_belongs_to(way: Way) -> None:
    seen: dict[str, list[tuple[float, float | None, str | None]]] = {}

    async def run(label: str) -> None:
        async def note(progress: float, total: float | None, message: str | None) -> None:
            seen.setdefault(label, []).append((progress, total, message))

        result = await call_tool(
            way.transport,
            way.target,
            "progress",
            {"steps": 3, "label": label},
            timeout_seconds=20,
            progress=note,
        )
        assert text_of(result) == label

    labels = [f"call {number}" for number in range(10)]
    async with anyio.create_task_group() as tasks:
        for label in labels:
            tasks.start_soon(run, label)
    assert seen == {label: [(float(n), 3.0, label) for n in (1, 2, 3)] for label in labels}


async def test_a_tool_that_fails_is_a_result(way: Way) -> None:
    result = await call_tool(way.transport, way.target, "fail", {}, timeout_seconds=20)
    assert result.is_error
    assert text_of(result) == "it failed"


async def test_an_error_of_the_peer_is_told_in_its_words(way: Way) -> None:
    with pytest.raises(BadPeer, match="unknown tool nope") as caught:
        await way.call("nope")
    assert caught.value.reason == "bad_response"
    assert caught.value.target is way.target
    assert caught.value.transport == way.transport.name
    assert await way.call("echo", text="still there") == "still there"


async def test_the_words_of_a_peer_are_one_line_of_bounded_length(way: Way) -> None:
    with pytest.raises(BadPeer, match=r"unknown tool \[2J x+$") as caught:
        await way.call("\x1b[2J\n" + "x" * 9_000)
    assert len(str(caught.value)) == 500
    assert caught.value.message == str(caught.value)


async def test_a_timeout_ends_the_work_and_leaves_the_path_usable(way: Way) -> None:
    with pytest.raises(TimedOut, match=r"0\.3 s"):
        await way.call("wait", name="never", seconds=0.3)
    await until(lambda: way.peer.waiting == 0)
    assert await way.call("echo", text="next") == "next"


async def test_cancelling_one_call_leaves_the_others(way: Way) -> None:
    answers: list[str] = []
    scope = anyio.CancelScope()

    async def cancelled() -> None:
        with scope:
            await way.call("wait", name="never")
        assert scope.cancelled_caught

    async def kept() -> None:
        answers.append(await way.call("wait", name="go"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancelled)
        for _ in range(3):
            tasks.start_soon(kept)
        await until(lambda: way.peer.waiting == 4)
        scope.cancel()
        await until(lambda: way.peer.waiting == 3)
        await way.call("release", name="go")
    assert answers == ["go"] * 3
    assert way.peer.waiting == 0


async def test_leaving_with_a_request_under_way_ends_the_work(way: Way) -> None:
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(way.call, "wait")
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert await way.call("echo", text="clean") == "clean"
    await until(lambda: way.peer.waiting == 0)


async def test_what_the_caller_raises_leaves_the_connection_as_it_is(way: Way) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with way.transport.connect(way.target):
            raise KeyError("mine")
    assert await way.call("echo", text="next") == "next"


@pytest.mark.parametrize("kind", KINDS)
async def test_what_ends_the_block_leaves_it_as_it_is(kind: str, tmp_path: Path) -> None:
    async def fail(way: Way) -> None:
        async with way.transport:
            await way.call("echo", text="x")
            raise KeyError("mine")

    async with way_to(kind, tmp_path) as entered:
        with pytest.raises(RuntimeError, match="entered twice"):
            await fail(entered)
    with pytest.raises(RuntimeError, match="outside of"):
        await entered.transport.probe(entered.target)
    with pytest.raises(KeyError, match="mine"):
        async with entered.transport:  # and may be entered again
            raise KeyError("mine")


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_left_behind(kind: str, tmp_path: Path) -> None:
    def held() -> tuple[int, int, set[int]]:
        return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")), children()

    async with way_to(kind, tmp_path) as warm_up:  # what imports and first uses open for good
        await warm_up.call("echo", text="x")
    before = held()
    async with way_to(kind, tmp_path) as found:
        await found.transport.probe(found.target)
        await found.call("echo", text="x")
        with pytest.raises(TimedOut):
            await found.call("wait", name="never", seconds=0.1)
        with pytest.raises(BadPeer):
            await found.call("nope")
    await until(lambda: held() == before)


@pytest.mark.parametrize(
    "kind", ["http-ipv4", "portforward", "command", "exec"]
)  # in memory a peer dies with the test
async def test_a_peer_that_dies_in_mid_call_is_broken(kind: str, tmp_path: Path) -> None:
    if kind in ("command", "exec"):
        argv = [sys.executable, str(PEER), "stdio"]
        async with (
            one_pod(tmp_path, Pod()),
            CommandTransport(argv) if kind == "command" else exec_of(argv, tmp_path) as transport,
        ):
            with anyio.fail_after(20):
                await transport.probe(IN_POD)
            with pytest.raises(Broken, match=r"exit status 7: .*boom") as caught:
                await call_tool(transport, IN_POD, "crash", {}, timeout_seconds=20)
            assert "\x1b" not in str(caught.value)
        return
    async with await anyio.open_process([sys.executable, str(PEER), "http"], stderr=None) as child:
        assert child.stdout is not None
        with anyio.fail_after(20):
            port = int(await child.stdout.receive())
        target, http = Target(addresses=("127.0.0.1",), port=port), HttpTransport()
        if kind == "portforward":
            target, http = IN_POD, forwarding(tmp_path)
        async with one_pod(tmp_path, Pod(ports={8080: port})), http:
            with pytest.raises(Broken, match="closed before the answer"):
                await call_tool(http, target, "crash", {}, timeout_seconds=20)
            await child.wait()
            with pytest.raises(Unreachable, match="refused"):
                await call_tool(http, target, "echo", {"text": ""}, timeout_seconds=20)


async def test_where_nobody_is_the_path_is_unreachable(tmp_path: Path) -> None:
    with listen("127.0.0.1") as gone:
        port = gone.getsockname()[1]
    write_kubeconfig(tmp_path / "kubeconfig", f"https://127.0.0.1:{port}")
    nowhere: list[tuple[Transport, Target]] = [
        (HttpTransport(), Target(addresses=("127.0.0.1",), port=port)),
        (CommandTransport(["/no/such/command"]), Target(node="n")),
        (exec_of(["relay"], tmp_path), IN_POD),
        (forwarding(tmp_path), IN_POD),
        (MemoryTransport({}), Target(node="n")),
    ]
    for transport, target in nowhere:
        async with transport:
            with anyio.fail_after(20), pytest.raises(Unreachable):
                await transport.probe(target)
            with pytest.raises(Unreachable):
                await call_tool(transport, target, "echo", {"text": ""}, timeout_seconds=20)

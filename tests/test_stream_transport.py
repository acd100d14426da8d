"""What only a warm stream can show, mostly over the real pipes of a real child process."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, TaskGroup
from mcp.shared.message import SessionMessage
from mcp.types import (
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    TextContent,
)

from support.peer import Peer, children, relayed, text_of, until
from transports import turns
from transports.base import Target
from transports.command import CommandTransport
from transports.errors import BadPeer, Broken, Gone, TimedOut, TransportError, Unreachable
from transports.framing import LineSplitter, decode, encode
from transports.session import call_tool
from transports.stream import Pipe, StreamSettings, StreamTransport

NODE = Target(node="n")


async def call(
    transport: StreamTransport, tool: str, target: Target = NODE, **arguments: object
) -> str:
    result = await call_tool(transport, target, tool, arguments, timeout_seconds=20)
    return text_of(result)


def python(script: str) -> list[str]:
    """A child that runs a script without importing much."""
    return [sys.executable, "-I", "-S", "-c", script]


async def replies(
    stream: ByteStream, answer: Callable[[JSONRPCMessage], list[JSONRPCMessage]]
) -> None:
    """A peer by script: what it answers to each message."""
    splitter = LineSplitter()
    async with stream:
        async for data in stream:
            for line in splitter.feed(data):
                for message in answer(decode(line)):
                    await stream.send(encode(message))


def text_result(wire_id: int | str, text: str) -> JSONRPCResponse:
    result = {"content": [{"type": "text", "text": text}], "resultType": "complete"}
    return JSONRPCResponse(jsonrpc="2.0", id=wire_id, result=result)


async def test_many_first_callers_open_one_stream(tmp_path: Path) -> None:
    peer = Peer()
    async with (
        relayed(peer.serve_bytes, tmp_path) as argv,
        CommandTransport(argv) as transport,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(20):
            tasks.start_soon(call, transport, "whoami")
    assert peer.connections == 1


async def test_a_hundred_calls_at_once_keep_their_answers_and_progress_apart(
    tmp_path: Path,
) -> None:
    peer = Peer()
    seen: dict[str, list[tuple[float, str | None]]] = {}
    async with relayed(peer.serve_bytes, tmp_path) as argv, CommandTransport(argv) as transport:

        async def run(label: str) -> None:
            async def note(progress: float, total: float | None, message: str | None) -> None:
                seen.setdefault(label, []).append((progress, message))

            arguments = {"steps": 2, "label": label}
            result = await call_tool(
                transport, NODE, "progress", arguments, timeout_seconds=20, progress=note
            )
            assert isinstance(result.content[0], TextContent)
            assert result.content[0].text == label
            assert await call(transport, "echo", text=label) == label

        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(run, f"call {number}")
    assert len(seen) == 100
    assert all(got == [(1.0, label), (2.0, label)] for label, got in seen.items())
    assert peer.connections == 1


async def test_ids_and_tokens_are_the_connections_own_on_the_wire(tmp_path: Path) -> None:
    wire: list[Any] = []

    def answer(message: JSONRPCMessage) -> list[JSONRPCMessage]:
        wire.append(message)
        if isinstance(message, JSONRPCRequest) and (message.params or {})["name"] == "now":
            progress = {"progressToken": message.id, "progress": 1}
            return [
                # What belongs to nobody is dropped.
                text_result(999, "stray"),
                JSONRPCResponse(jsonrpc="2.0", id="1", result={}),
                JSONRPCNotification(
                    jsonrpc="2.0",
                    method="notifications/progress",
                    params={"progressToken": 999, "progress": 1},
                ),
                JSONRPCNotification(jsonrpc="2.0", method="notifications/tools/list_changed"),
                JSONRPCRequest(jsonrpc="2.0", id=message.id, method="ping"),
                JSONRPCNotification(
                    jsonrpc="2.0", method="notifications/progress", params=progress
                ),
                text_result(message.id, "done"),
                text_result(message.id, "twice"),
            ]
        if isinstance(message, JSONRPCNotification):  # too late
            assert message.params is not None
            return [text_result(message.params["requestId"], "late")]
        return []

    seen: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    async def serve(stream: ByteStream) -> None:
        await replies(stream, answer)

    async with relayed(serve, tmp_path) as argv, CommandTransport(argv) as transport:
        assert await call(transport, "now") == "done"
        with pytest.raises(TimedOut):
            await call_tool(transport, NODE, "never", {}, timeout_seconds=0.1)
        result = await call_tool(transport, NODE, "now", {}, timeout_seconds=20, progress=note)
        assert isinstance(result.content[0], TextContent)
        assert result.content[0].text == "done"
    first, second, cancelled, third = wire
    assert (first.id, second.id, third.id) == (1, 2, 3)
    assert cancelled.method == "notifications/cancelled"
    assert cancelled.params["requestId"] == 2
    assert "progressToken" not in first.params["_meta"]
    assert third.params["_meta"]["progressToken"] == 3
    assert seen == [1.0]


async def test_a_conversation_that_reads_nothing_is_cut_off_and_its_siblings_are_not(
    tmp_path: Path,
) -> None:
    peer = Peer()
    meta = {
        "progressToken": "mine",
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": "progress", "arguments": {"steps": 1000}, "_meta": meta}
    request = JSONRPCRequest(jsonrpc="2.0", id=1, method="tools/call", params=params)

    async def ask_and_read_nothing(transport: StreamTransport) -> None:
        async with transport.connect(NODE) as (_, write):
            await write.send(SessionMessage(request))
            await until(lambda: "tools/call" in peer.requests)
            for _ in range(50):  # on the same stream, among the thousand notifications
                assert await call(transport, "echo", text="sibling") == "sibling"

    async with relayed(peer.serve_bytes, tmp_path) as argv, CommandTransport(argv) as transport:
        with anyio.fail_after(20), pytest.raises(Broken, match="left unread"):
            await ask_and_read_nothing(transport)
        assert await call(transport, "echo", text="after") == "after"
    assert peer.connections == 1


async def test_leaving_with_a_request_unanswered_cancels_it(tmp_path: Path) -> None:
    peer = Peer()
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": "wait", "arguments": {"name": "never"}, "_meta": meta}
    request = JSONRPCRequest(jsonrpc="2.0", id=1, method="tools/call", params=params)
    async with relayed(peer.serve_bytes, tmp_path) as argv, CommandTransport(argv) as transport:
        async with transport.connect(NODE) as (_, write):
            await write.send(SessionMessage(request))
            await until(lambda: peer.waiting == 1)
        await until(lambda: peer.waiting == 0)
    assert peer.connections == 1


async def test_a_probe_given_up_is_not_cancelled_on_the_wire(tmp_path: Path) -> None:
    wire: list[Any] = []

    def answer(message: JSONRPCMessage) -> list[JSONRPCMessage]:
        wire.append(message)
        return []

    async def serve(stream: ByteStream) -> None:
        await replies(stream, answer)

    async with relayed(serve, tmp_path) as argv, CommandTransport(argv) as transport:
        with anyio.move_on_after(0.3):
            await transport.probe(NODE)
        with pytest.raises(TimedOut):
            await call_tool(transport, NODE, "echo", {}, timeout_seconds=0.1)
        await until(lambda: len(wire) == 3)
    methods = [message.method for message in wire]
    # The specification forbids cancelling the negotiation.
    assert methods == ["server/discover", "tools/call", "notifications/cancelled"]


async def test_a_quiet_stream_is_kept_alive(tmp_path: Path) -> None:
    peer = Peer()
    settings = StreamSettings(keepalive_seconds=0.1, keepalive_timeout_seconds=20)
    async with (
        relayed(peer.serve_bytes, tmp_path) as argv,
        CommandTransport(argv, settings=settings) as transport,
    ):
        await call(transport, "whoami")
        await until(lambda: peer.requests.count("server/discover") >= 3)
        await call(transport, "whoami")
    assert peer.connections == 1


async def test_a_stream_that_gives_no_sign_of_life_is_declared_dead(tmp_path: Path) -> None:
    peer = Peer()
    settings = StreamSettings(keepalive_seconds=0.2, keepalive_timeout_seconds=0.2)
    async with (
        relayed(peer.serve_bytes, tmp_path) as argv,
        CommandTransport(argv, settings=settings) as transport,
    ):
        before = children()
        await call(transport, "whoami")
        (child,) = children() - before
        os.kill(child, signal.SIGSTOP)
        with pytest.raises(Broken, match=r"silent for 0\.4 s"):
            await call(transport, "whoami")
        assert await call(transport, "echo", text="anew") == "anew"
        await until(lambda: child not in children())
    assert peer.connections == 2


async def test_a_stream_that_never_answers_is_unreachable() -> None:
    settings = StreamSettings(open_timeout_seconds=0.2, keepalive_timeout_seconds=0.2)
    argv = python("import time; print('Password:', flush=True); time.sleep(60)")
    async with CommandTransport(argv, settings=settings) as transport:
        with pytest.raises(Unreachable, match=r"silent for 0\.4 s: Password:"):
            await call(transport, "whoami")


async def test_a_far_side_that_stops_reading_is_declared_dead() -> None:
    settings = StreamSettings(write_timeout_seconds=0.3)
    async with (
        CommandTransport(python("import time; time.sleep(60)"), settings=settings) as transport,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(3):

            async def large() -> None:
                with pytest.raises(Broken, match=r"read nothing for 0\.3 s"):
                    await call(transport, "echo", text="x" * 500_000)

            tasks.start_soon(large)


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("sys.exit(3)", Gone, "ended with exit status 3 before it answered"),
        ("print('no route', file=sys.stderr); sys.exit(255)", Unreachable, "status 255 .*no route"),
        ("sys.exit(127)", Unreachable, "exit status 127"),
        ("sys.exit(0)", Unreachable, "exit status 0"),
        ("print('Welcome\\nto node 7')", Unreachable, "answered: Welcome: to node 7"),
        ("os.kill(os.getpid(), 9)", Unreachable, "exit status -9"),
        ("os.close(1); os.read(0, 1); time.sleep(60)", Unreachable, "the stream closed"),
    ],
)
async def test_an_early_end_is_told_with_exit_status_and_last_words(
    script: str, kind: type[TransportError], words: str
) -> None:
    argv = python(f"import os, sys, time; {script}")
    async with CommandTransport(argv) as transport:
        with pytest.raises(kind, match=words):
            await call(transport, "whoami")
        with anyio.fail_after(20), pytest.raises(kind, match=words):
            await transport.probe(NODE)


async def test_why_a_stream_ended_is_logged_in_plain_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "transports")
    async with CommandTransport(python("import sys; sys.exit(3)")) as transport:
        with pytest.raises(Gone):
            await call(transport, "whoami")
    words = "ended with exit status 3 before it answered"
    assert [record.getMessage() for record in caplog.records] == [
        f"stream to {NODE}: not_running: {words}"
    ]


async def test_only_the_tail_of_standard_error_is_quoted_and_no_control_characters() -> None:
    script = (
        "import sys; sys.stderr.buffer.write(b'start' + b'\\x1b[2J\\xff\\n' * 300_000"
        " + b'the end'); sys.exit(1)"
    )
    async with CommandTransport(python(script)) as transport:
        with pytest.raises(Unreachable) as caught:
            await call(transport, "whoami")
    text = str(caught.value)
    assert text.endswith("the end")
    assert "start" not in text
    assert text.isprintable()
    assert len(text) <= 500


async def test_a_banner_is_tolerated(tmp_path: Path) -> None:
    peer = Peer()

    async def serve(stream: ByteStream) -> None:
        await stream.send(b"Last login: Mon\n\nWelcome\n{}\n")
        await peer.serve_bytes(stream)

    async with relayed(serve, tmp_path) as argv, CommandTransport(argv) as transport:
        assert await call(transport, "echo", text="x") == "x"


async def test_a_stray_line_now_and_then_is_tolerated_for_ever(tmp_path: Path) -> None:
    async def serve(stream: ByteStream) -> None:
        splitter = LineSplitter()
        async with stream:
            async for data in stream:
                for line in splitter.feed(data):
                    request = decode(line)
                    assert isinstance(request, JSONRPCRequest)
                    answer = encode(text_result(request.id, "x"))
                    await stream.send(b"warning: clock skew\n" + answer)

    async with relayed(serve, tmp_path) as argv, CommandTransport(argv) as transport:
        for _ in range(20):
            assert await call(transport, "echo") == "x"


async def test_a_peer_that_talks_something_else_is_a_bad_peer() -> None:
    argv = python("import time\nfor n in range(100): print('line', n, flush=True)\ntime.sleep(60)")
    async with CommandTransport(argv) as transport:
        with pytest.raises(BadPeer, match="else than MCP: line 0: line 1: "):
            await call(transport, "whoami")


async def test_an_endless_line_is_a_bad_peer() -> None:
    settings = StreamSettings(max_frame_bytes=100_000)
    argv = python("import os\nwhile True: os.write(1, b'x' * 65536)")
    async with CommandTransport(argv, settings=settings) as transport:
        with pytest.raises(BadPeer, match="longer than 100000 bytes"):
            await call(transport, "whoami")


async def test_a_stream_nobody_uses_is_closed_and_opened_again(tmp_path: Path) -> None:
    peer = Peer()
    settings = StreamSettings(idle_seconds=0.2)
    async with (
        relayed(peer.serve_bytes, tmp_path) as argv,
        CommandTransport(argv, settings=settings) as transport,
    ):
        before = children()
        await call(transport, "whoami")
        await until(lambda: children() == before)
        assert await call(transport, "echo", text="anew") == "anew"
        async with anyio.create_task_group() as tasks:  # one in use is not closed
            tasks.start_soon(call, transport, "wait")
            tasks.cancel_scope.cancel()
    assert peer.connections == 2


async def test_a_stream_that_ended_while_unused_costs_the_next_call_nothing(
    tmp_path: Path,
) -> None:
    peer = Peer()
    async with relayed(peer.serve_bytes, tmp_path) as argv, CommandTransport(argv) as transport:
        before = children()
        await call(transport, "whoami")
        for child in children() - before:
            os.kill(child, signal.SIGKILL)
        await until(lambda: not transport._streams)  # noticed with nobody asking
        assert await call(transport, "echo", text="anew") == "anew"
    assert peer.connections == 2


async def test_past_the_limit_the_longest_unused_stream_makes_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer()
    one, two, three = (Target(node=f"n{number}") for number in range(3))
    async with (
        relayed(peer.serve_bytes, tmp_path) as argv,
        CommandTransport(argv, settings=StreamSettings(max_open=2)) as transport,
    ):
        before = children()
        await call(transport, "whoami", one)
        (first,) = children() - before
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                assert await call(transport, "wait", two, name="go") == "go"

            tasks.start_soon(wait)
            await until(lambda: peer.waiting == 1)
            await call(transport, "whoami", three)
            await until(lambda: first not in children())
            async with transport.connect(three):
                with pytest.raises(Unreachable, match="all 2 streams are in use"):
                    await call(transport, "whoami", one)
            await call(transport, "release", two, name="go")
    told = "command: 2 streams are open: unused ones make room"
    assert caplog.messages.count(told) == 1


async def test_closing_the_transport_ends_a_call_under_way(tmp_path: Path) -> None:
    peer = Peer()
    async with relayed(peer.serve_bytes, tmp_path) as argv, anyio.create_task_group() as tasks:

        async def wait() -> None:
            with pytest.raises(Broken, match="transport was closed"):
                await call(transport, "wait", name="never")

        async with CommandTransport(argv) as transport:
            tasks.start_soon(wait)
            await until(lambda: peer.waiting == 1)


class Custom(StreamTransport):
    """What a third party might write."""

    name = "custom"

    def __init__(self, open_pipe: Callable[[Target], Awaitable[Pipe]], **settings: Any) -> None:
        super().__init__(StreamSettings(**settings))
        self._open = open_pipe

    def applies(self, target: Target) -> bool:
        return True

    async def open_pipe(self, target: Target, tasks: TaskGroup) -> Pipe:
        return await self._open(target)


async def test_an_opening_that_takes_too_long_is_unreachable_for_all_who_wait() -> None:
    opened: list[Target] = []

    async def forever(target: Target) -> Pipe:
        opened.append(target)
        await anyio.sleep_forever()
        raise AssertionError

    async def refused() -> None:
        with pytest.raises(Unreachable, match=r"not open within 0\.2 s"):
            await call(transport, "whoami")

    async with (
        Custom(forever, open_timeout_seconds=0.2) as transport,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(5):
            tasks.start_soon(refused)
    assert opened == [NODE]


async def test_only_so_many_streams_are_opened_at_once() -> None:
    opening = most = 0

    async def slow(target: Target) -> Pipe:
        nonlocal opening, most
        opening += 1
        most = max(most, opening)
        await anyio.sleep(0.02)
        opening -= 1
        raise Unreachable("no", target=target, transport="custom")

    async def refused(number: int) -> None:
        with pytest.raises(Unreachable):
            await call(transport, "whoami", Target(node=str(number)))

    async with Custom(slow, max_opening=3) as transport, anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(refused, number)
    assert most == 3


async def test_what_opens_slowly_holds_up_others_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.1)

    async def dead_or_gone(target: Target) -> Pipe:
        if target.node.startswith("dead"):
            await anyio.sleep_forever()
        raise Gone("not running", target=target, transport="custom")

    async with (
        Custom(dead_or_gone, max_opening=2, open_timeout_seconds=60) as transport,
        anyio.create_task_group() as tasks,
    ):
        for number in range(6):
            tasks.start_soon(call, transport, "whoami", Target(node=f"dead-{number}"))
        await until(lambda: len(transport._streams) == 6)
        with anyio.fail_after(20), pytest.raises(Gone):
            await call(transport, "whoami", Target(node="well"))
        tasks.cancel_scope.cancel()


async def test_a_stream_for_which_nobody_waits_any_more_is_not_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 60)
    opened: list[str] = []
    go = anyio.Event()

    async def slow(target: Target) -> Pipe:
        opened.append(target.node)
        await go.wait()
        raise Gone("not running", target=target, transport="custom")

    async def leave(node: str) -> None:
        with anyio.move_on_after(0.1) as left:
            await transport.probe(Target(node=node))
        assert left.cancelled_caught

    async def stay(node: str) -> None:
        with pytest.raises(Gone):
            await transport.probe(Target(node=node))

    async with Custom(slow, max_opening=1) as transport, anyio.create_task_group() as tasks:
        tasks.start_soon(stay, "first")
        await until(lambda: opened == ["first"])
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(leave, "left")
            leaving.start_soon(leave, "joined")
            tasks.start_soon(stay, "joined")
        go.set()
        await stay("last")
    assert opened == ["first", "joined", "last"]


async def test_a_defect_of_one_pipe_costs_one_stream(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(target: Target) -> Pipe:
        raise LookupError("a defect")

    async with Custom(broken) as transport:
        for _ in range(2):
            with pytest.raises(Broken, match="LookupError: a defect"):
                await call(transport, "whoami")
    assert "failed unexpectedly" in caplog.text

"""All sources joined, over a simulated node, and inside a real agent."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import httpx2
import pytest
from mcp import Client

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.simulator.faults import Fault, Hang, Xid
from mcp_gpu.gpu.xid.model import Burst
from mcp_gpu.node.boot import Boot
from mcp_gpu.node.kmsg import opener
from mcp_gpu.node.watch import XidWatch
from mcp_gpu.registry import Registry
from mcp_gpu.tools.explain_xid import explain_tool
from support.ports import free_ports
from support.wire import headers, request
from transports.base import IDENTITY_META_KEY, Identity

LIMIT_SECONDS = 60
PROGRAM = [sys.executable, "-m", "mcp_gpu"]


async def until(happened: Callable[[], bool]) -> None:
    while not happened():
        await anyio.sleep(0.005)


@asynccontextmanager
async def watching(*faults: Fault) -> AsyncIterator[tuple[simulator.Node, XidWatch]]:
    """A watch of a simulated node that has read all there is, with its collector."""
    with simulator.installed(simulator.Node("one", "h100", gpus=2, faults=faults)) as node:
        log = node.kernel_log
        watch = XidWatch(log.open, boot=Boot(log.boot_id, log.started_at))
        collector = Collector(events=watch.events, fast_seconds=0.05)
        collector.start()
        try:
            with anyio.fail_after(LIMIT_SECONDS):
                async with anyio.create_task_group() as tasks:
                    await tasks.start(watch.run)
                    await until(lambda: all(one.live for one in watch.sources()[:2]))
                    yield node, watch
                    tasks.cancel_scope.cancel()
        finally:
            node.faults = ()
            collector.stop()
            assert collector.join(LIMIT_SECONDS)


def counts(bursts: tuple[Burst, ...]) -> dict[int, int]:
    found: dict[int, int] = {}
    for burst in bursts:
        found[burst.first.code] = found.get(burst.first.code, 0) + burst.count
    return found


async def test_what_came_before_the_watch_and_what_comes_is_told_once() -> None:
    past = Xid(kind="xid", gpu=0, xid=63, seconds_ago=3600, text="Row Remapper: New row marked")
    async with watching(past) as (node, watch):
        node.faults = [
            past,
            Xid(kind="xid", gpu=1, xid=31, pid=42, process="python3", text="Ch 8", count=3),
            Xid(kind="xid", gpu=1, xid=79, text="GPU has fallen off the bus."),
        ]
        await until(
            lambda: any(
                len(burst.sources) == 2 and burst.count == 3 for burst in watch.log.bursts()
            )
        )
        await until(lambda: 79 in counts(watch.log.bursts()))
        remapped, fault, fallen = watch.log.bursts(boot_id=watch.boot_id)
    assert fault.first.at - remapped.first.at > 3590
    assert (remapped.sources, fallen.sources) == (("kernel_log",), ("kernel_log",))
    assert (fault.first.process, fault.first.text, fault.first.bus_id) == (
        "python3",
        "Ch 8",
        "0000:64:00",
    )


async def test_a_source_that_is_silent_does_not_hide_the_other() -> None:
    async with watching() as (node, watch):
        node.faults = [
            Xid(kind="xid", gpu=0, xid=13, sources=("nvml",)),
            Xid(kind="xid", gpu=0, xid=43, sources=("kernel_log",)),
        ]
        await until(lambda: len(watch.log.bursts()) == 2)
        sources = {burst.first.code: burst.sources for burst in watch.log.bursts()}
    assert sources == {13: ("nvml",), 43: ("kernel_log",)}


async def test_the_kernel_log_is_read_while_nvml_hangs() -> None:
    async with watching() as (node, watch):
        node.faults = [
            Hang(kind="hang", seconds=600),
            Xid(kind="xid", gpu=0, xid=119, text="Timeout after 6s of waiting for RPC response"),
        ]
        await until(lambda: counts(watch.log.bursts()) == {119: 1})


async def test_a_storm_of_the_driver_s_is_counted_exactly() -> None:
    async with watching() as (node, watch):
        node.faults = [
            Xid(kind="xid", gpu=0, xid=45, count=300, text="Ch 1"),
            Xid(kind="xid", gpu=0, xid=48, text="DBE"),
        ]
        # Each source in its own time; what one has told of already the other does not add.
        await until(lambda: counts(watch.log.bursts()) == {45: 300, 48: 1})
        await until(lambda: all(len(burst.sources) == 2 for burst in watch.log.bursts()))
        assert counts(watch.log.bursts()) == {45: 300, 48: 1}


async def test_where_nothing_can_be_read_it_runs_and_says_so(tmp_path: Path) -> None:
    watch = XidWatch(opener(tmp_path / "kmsg"), journal_paths=[tmp_path / "journal"])
    with anyio.fail_after(LIMIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            await tasks.start(watch.run)
            await until(lambda: "mount the node's" in watch.sources()[2].message)
            nvml, kernel_log, journal = watch.sources()
            tasks.cancel_scope.cancel()
    assert [one.live for one in (nvml, kernel_log, journal)] == [False] * 3
    assert nvml.message == "NVML is not open"
    assert "79, 119 and 120 may be absent" in kernel_log.message
    assert watch.log.bursts() == ()


# --- in an agent ----------------------------------------------------------------------------


@asynccontextmanager
async def agent(*arguments: str) -> AsyncIterator[int]:
    """An agent's port; it ends by a signal with status 0."""
    (port,) = free_ports(1)
    command = [*PROGRAM, "agent", "--http-port", str(port), "--http-host", "127.0.0.1", *arguments]
    async with await anyio.open_process(command, stdin=None, stderr=None) as process:
        try:
            yield port
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()


async def sees(port: int, wanted: Callable[[dict[str, str]], bool]) -> dict[str, str]:
    """What the agent says that it sees, once it is as wanted; and that `/version` does not say."""
    message = request("server/discover")
    told: dict[str, str] = {}
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        with anyio.fail_after(LIMIT_SECONDS):
            while not told or not wanted(told):
                await anyio.sleep(0.1)
                with suppress(httpx2.TransportError):
                    answer = await client.post("/mcp", json=message, headers=headers(message))
                    told = answer.json()["result"]["_meta"][IDENTITY_META_KEY]["sees"]
        assert "sees" not in (await client.get("/version")).json()
    return told


async def test_an_agent_tells_what_it_sees(tmp_path: Path) -> None:
    simulated = ("--simulate", "demo", "--node-name", "h100-a", "--socket", str(tmp_path / "s"))
    with anyio.fail_after(LIMIT_SECONDS):
        async with agent(*simulated) as port:
            found = await sees(port, lambda told: told["nvml_events"] == "yes")
    assert found["driver"] == found["kernel_log"] == "yes"
    assert found["journal"] == "no journal to read: former boots are not seen"


async def test_an_agent_without_anything_to_read_serves_all_the_same(tmp_path: Path) -> None:
    nothing = ("--kernel-log", str(tmp_path / "kmsg"), "--journal-paths", str(tmp_path))
    with anyio.fail_after(LIMIT_SECONDS):
        async with agent(*nothing, "--socket", str(tmp_path / "s")) as port:
            found = await sees(
                port,
                lambda told: "mount" in told["kernel_log"] and "former boots" in told["journal"],
            )
    assert found["nvml_events"] == "NVML is not open"


@pytest.mark.parametrize("sees", [[], {"a": 1}, {"a": "x" * 5000}, {"a": "\x1b"}, "yes", None])
def test_an_agent_is_taken_whatever_it_says_that_it_sees(sees: object) -> None:
    identity = Identity(name="mcp-gpu", version="0", node="n")
    assert Identity.from_wire({**identity.to_wire(), "sees": sees}) == identity


async def test_a_call_looks_at_nothing_but_what_it_asks_for() -> None:
    looks: list[str] = []

    def look() -> dict[str, str]:
        looks.append("")
        return {}

    one = Registry(
        name="mcp-gpu",
        version="0",
        instructions="",
        tools=[explain_tool()],
        identity=lambda: Identity(name="mcp-gpu", version="0", node="n"),
        sees=look,
    )
    async with Client(one.server, mode="2026-07-28") as client:
        before = len(looks)
        await client.call_tool("explain_xid", {"code": 79})
        assert len(looks) == before

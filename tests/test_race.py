"""How a path is chosen: the race, what is learned from it, hedges, and looking again."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_gpu.fleet import reachability as reachability_module
from mcp_gpu.fleet import reprobe
from mcp_gpu.fleet.discovery.static import StaticDiscovery
from mcp_gpu.fleet.patience import MOST_PER_SLICE_SECONDS, Patience
from mcp_gpu.fleet.reachability import Reachability
from mcp_gpu.fleet.router import FanOut, Router
from mcp_gpu.registry import ToolError
from mcp_gpu.tools.inventory import NAME, NodeInventory
from support.fleet import Agent, Path, inventory
from support.routed import Fleet, reasons, running, turns, ways
from transports.base import Target
from transports.errors import BadPeer, Broken, Denied, Gone, TransportError, Unreachable

NEVER_SECONDS = 1e6
"""A head start or a time-out that does not end within a test."""


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The background looks in every turn of the loop, so that a test can tell that it does not."""
    monkeypatch.setattr(reprobe, "LOOK_SECONDS", 1e-6)
    monkeypatch.setattr(reprobe, "PACE_SECONDS", 1e-9)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def asking(fleet: Fleet) -> AsyncIterator[list[FanOut[NodeInventory]]]:
    """A question that is under way in the block, and answered after it."""
    found: list[FanOut[NodeInventory]] = []

    async def ask() -> None:
        found.append(await fleet.ask())

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        yield found


# The race.


async def test_a_silent_path_is_overtaken_after_its_head_start_and_cancelled() -> None:
    async with running("a") as fleet:
        fleet.http.silent.add("a")
        assert ways(await fleet.ask()) == {"a": "command"}
        assert (fleet.http.probes, fleet.stream.probes) == (["a"], ["a"])
        assert not fleet.http.under_way
        assert fleet.statuses("a") == {"http": "failed", "command": "in_use"}
        failed = fleet.state("a")["http"]
        assert failed.reason == "timeout"
        assert failed.message.startswith("no answer, while command gave one (0.")


async def test_a_path_that_fails_is_followed_by_the_next_at_once() -> None:
    async with running("a", head_start_seconds=NEVER_SECONDS) as fleet:
        fleet.http.probe_errors["a"] = Unreachable
        assert ways(await fleet.ask()) == {"a": "command"}
        assert fleet.state("a")["http"].message == "scripted Unreachable"


async def test_a_path_that_takes_its_time_within_the_head_start_is_alone() -> None:
    async with running("a", head_start_seconds=NEVER_SECONDS) as fleet:
        gate = fleet.http.gates["a"] = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(fleet.ask)
            await until(lambda: fleet.http.probes == ["a"])
            await turns(100)
            gate.set()
        assert fleet.stream.probes == []
        assert fleet.statuses("a") == {"http": "in_use", "command": "untried"}


async def test_a_path_that_was_overtaken_may_still_win() -> None:
    async with running("a", probe_timeout_seconds={"http": NEVER_SECONDS}) as fleet:
        gate = fleet.http.gates["a"] = anyio.Event()
        fleet.stream.silent.add("a")
        async with asking(fleet) as found:
            await until(lambda: fleet.stream.probes == ["a"])
            gate.set()
        assert ways(found[0]) == {"a": "http"}
        assert not fleet.stream.under_way
        assert fleet.statuses("a") == {"http": "in_use", "command": "untried"}


async def test_all_who_ask_share_one_race() -> None:
    async with running("a", head_start_seconds=NEVER_SECONDS) as fleet:
        gate = fleet.http.gates["a"] = anyio.Event()
        found: list[FanOut[NodeInventory]] = []

        async def ask() -> None:
            found.append(await fleet.ask())

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask)
            async with anyio.create_task_group() as impatient:
                impatient.start_soon(ask)
                await until(lambda: fleet.http.probes == ["a"])
                impatient.cancel_scope.cancel()
            gate.set()
        assert [ways(each) for each in found] == [{"a": "http"}] * 3
        assert fleet.http.probes == ["a"]


async def test_a_race_that_nobody_waits_for_ends_and_blames_nobody() -> None:
    async with running("a") as fleet:
        fleet.http.silent.add("a")
        fleet.stream.silent.add("a")
        async with anyio.create_task_group() as group:
            group.start_soon(fleet.ask)
            group.start_soon(fleet.ask)
            await until(lambda: fleet.stream.probes == ["a"])
            group.cancel_scope.cancel()
        await until(lambda: not fleet.http.under_way and not fleet.stream.under_way)
        assert fleet.statuses("a") == {"http": "untried", "command": "untried"}
        fleet.http.silent.clear()
        assert ways(await fleet.ask()) == {"a": "http"}


async def test_a_race_ends_with_the_deadline_of_the_last_who_waits() -> None:
    async with running("a", probe_timeout_seconds={"http": NEVER_SECONDS}) as fleet:
        fleet.http.silent.add("a")
        fleet.stream.silent.add("a")
        found = await fleet.ask(node_deadline_seconds=0.4)
        assert reasons(found) == {"a": "timeout"}
        assert "no answer in time" in found.failures[0].message
        await until(lambda: not fleet.http.under_way and not fleet.stream.under_way)
        assert fleet.statuses("a")["http"] == "failed"


async def test_leaving_ends_every_race_and_probe() -> None:
    fleet = Fleet({"a": Agent("a", inventory("a"))})
    async with fleet.open():
        fleet.http.silent.add("a")
        fleet.stream.silent.add("a")
        async with anyio.create_task_group() as group:
            group.start_soon(fleet.ask)
            await until(lambda: fleet.stream.probes == ["a"])
            group.cancel_scope.cancel()
    assert not fleet.http.under_way
    assert not fleet.stream.under_way


async def test_patience_stretches_with_a_busy_loop() -> None:
    patience = Patience()
    over = anyio.Event()
    seconds, passes = 0.15, 0
    async with anyio.create_task_group() as group:
        group.start_soon(patience.run)
        patience.after(seconds / 2, lambda: pytest.fail("was cancelled")).cancel()
        patience.after(seconds, over.set)
        while not over.is_set():
            time.sleep(0.005)  # noqa: ASYNC251 - what a loop does that has too much to do
            await anyio.lowlevel.checkpoint()
            passes += 1
        group.cancel_scope.cancel()
    assert passes >= seconds / MOST_PER_SLICE_SECONDS


async def test_a_thousand_healthy_agents_asked_for_the_first_time_open_no_stream() -> None:
    names = [f"node-{number:04}" for number in range(1000)]
    fleet = Fleet(
        {name: Agent(name, inventory(name)) for name in names}, probe_timeout_seconds={"http": 2.0}
    )
    gc.freeze()  # walks through a thousand agents are not what a gateway does
    try:
        async with fleet.open():
            with anyio.fail_after(120):
                found = await fleet.router(
                    node_deadline_seconds=100, call_deadline_seconds=100
                ).fan_out(NAME, {}, NodeInventory)
    finally:
        gc.unfreeze()
    assert len(found.answers) == 1000
    assert {answer.via for answer in found.answers} == {"http"}
    assert fleet.stream.probes == fleet.stream.connects == []


async def test_silent_agents_give_their_place_up_once_they_only_wait() -> None:
    dead = [f"dead-{number}" for number in range(8)]
    settings = {"concurrency": 2, "probe_timeout_seconds": {"http": NEVER_SECONDS}}
    async with running(*dead, "live", head_start_seconds=0.01, **settings) as fleet:
        fleet.http.silent |= set(dead)
        fleet.stream.silent |= set(dead)
        async with anyio.create_task_group() as group:
            group.start_soon(fleet.ask)
            await until(lambda: len(fleet.agents["live"].calls) == 1)
            await until(lambda: len(fleet.http.under_way) == len(dead))
            assert len(fleet.stream.under_way) == 2  # streams are held to their number
            group.cancel_scope.cancel()


async def test_a_head_start_is_as_long_as_is_usual_when_the_probe_is_sent() -> None:
    settings = {"concurrency": 1, "probe_timeout_seconds": {"http": NEVER_SECONDS}}
    async with running("a", "b", **settings) as fleet:
        fleet.reachability._latencies.add(("", "http"), NEVER_SECONDS)
        gate = fleet.http.gates["a"] = anyio.Event()
        fleet.http.silent.add("b")
        async with asking(fleet) as found:
            await until(lambda: fleet.http.probes == ["a"])
            fleet.now = 11  # b has queued since when probes took that long
            gate.set()
        assert ways(found[0]) == {"a": "http", "b": "command"}


@asynccontextmanager
async def streams_alone(
    agents: dict[str, Agent], **settings: Any
) -> AsyncIterator[tuple[Path, Path, Router]]:
    """A gateway that has two kinds of streams and nothing else."""
    targets = [Target(node=name) for name in agents]
    settings = {"concurrency": 1, "default_probe_timeout_seconds": NEVER_SECONDS} | settings
    async with (
        Path("portforward", agents) as first,
        Path("exec", agents) as second,
        Reachability([first, second], **settings) as reachability,
    ):
        yield first, second, Router(StaticDiscovery(targets), reachability)


async def test_a_stream_keeps_its_place_however_long_it_is_silent() -> None:
    agents = {name: Agent(name, inventory(name)) for name in "ab"}
    async with streams_alone(agents, head_start_seconds=0.01) as (first, second, router):
        first.silent |= set("ab")
        second.silent |= set("ab")
        async with anyio.create_task_group() as group:
            group.start_soon(router.fan_out, NAME, {}, NodeInventory)
            await until(lambda: len(second.probes) == 1)
            await turns(50)
            assert (first.under_way.total(), second.under_way.total()) == (1, 1)
            group.cancel_scope.cancel()


@pytest.mark.usefixtures("eager")
async def test_the_background_queues_for_streams_even_where_they_are_preferred() -> None:
    agents = {name: Agent(name, inventory(name)) for name in "abc"}
    now = 0.0
    async with streams_alone(agents, clock=lambda: now) as (first, second, router):
        for path in (first, second):
            path.probe_errors = dict.fromkeys("abc", Gone)
        await router.fan_out(NAME, {}, NodeInventory)
        first.probe_errors.clear()
        first.silent |= set("abc")
        now = 2.0
        await until(lambda: first.under_way.total() > 0)
        await turns(50)
        assert first.under_way.total() == 1


@pytest.mark.usefixtures("eager")
async def test_a_dead_stream_is_looked_at_still_more_seldom() -> None:
    agents = {"a": Agent("a", inventory("a"))}
    now = 0.0
    jitter: Callable[[float], float] = lambda most: most  # noqa: E731
    settings = {"clock": lambda: now, "jitter": jitter, "ttl_seconds": NEVER_SECONDS}
    async with streams_alone(agents, **settings) as (first, _, router):
        first.probe_errors["a"] = Unreachable
        await router.fan_out(NAME, {}, NodeInventory)
        looks = []
        for second in range(2, 1200, 2):
            now = second
            if second % 500 == 0:
                await router.fan_out(NAME, {}, NodeInventory)  # the gateway is in use
            before = len(first.probes)
            await turns(30)
            if len(first.probes) > before:
                looks.append(second)
        assert looks == [2, 6, 14, 30, 62, 126, 254, 510, 810, 1110]


async def test_waiting_for_a_probes_place_takes_nothing_of_an_agents_time() -> None:
    settings = {"concurrency": 1, "default_probe_timeout_seconds": NEVER_SECONDS}
    async with running("a", "b", **settings) as fleet, running("c") as other:
        other.http.silent.add("c")
        other.stream.silent.add("c")
        fleet.http.probe_errors = dict.fromkeys("ab", Unreachable)
        gate = fleet.stream.gates["a"] = anyio.Event()
        found: list[FanOut[NodeInventory]] = []

        async def ask() -> None:
            found.append(await fleet.ask("b", node_deadline_seconds=0.3))

        async with anyio.create_task_group() as group:
            group.start_soon(fleet.ask, "a")
            await until(lambda: fleet.stream.probes == ["a"])
            group.start_soon(ask)
            await until(lambda: fleet.statuses("b")["http"] == "failed")
            # By when this one's time is over, b's would be.
            assert reasons(await other.ask(node_deadline_seconds=0.3)) == {"c": "timeout"}
            assert not found
            gate.set()
        assert ways(found[0]) == {"b": "command"}


# Hedges.


async def test_a_proven_path_that_is_silent_is_hedged_and_then_found_dead() -> None:
    async with running("a") as fleet:
        await fleet.ask()
        fleet.http.silent.add("a")
        found = await fleet.ask()
        assert ways(found) == {"a": "command"}
        assert found.answers[0].passed_over == (("http", "slow"),)
        assert not fleet.http.under_way
        # Slow is not dead. The background finds out that it is.
        assert fleet.statuses("a") == {"http": "in_use", "command": "proven"}
        await until(lambda: fleet.statuses("a")["http"] == "failed")
        assert fleet.statuses("a")["command"] == "in_use"
        calls = len(fleet.http.connects)
        found = await fleet.ask()
        assert found.answers[0].passed_over == (("http", "timeout"),)
        assert len(fleet.http.connects) == calls


async def test_a_proven_path_that_was_only_slow_stays_in_use() -> None:
    async with running("a") as fleet:
        await fleet.ask()
        fleet.http.gates["a"] = anyio.Event()
        assert ways(await fleet.ask()) == {"a": "command"}
        fleet.http.gates.clear()
        await until(lambda: fleet.http.probes == ["a", "a"])
        await until(lambda: not fleet.http.under_way)
        assert ways(await fleet.ask()) == {"a": "http"}
        assert fleet.statuses("a") == {"http": "in_use", "command": "proven"}


async def test_the_first_answer_counts_even_if_it_comes_over_the_slow_path() -> None:
    async with running("a") as fleet:
        await fleet.ask()
        gate = fleet.http.gates["a"] = anyio.Event()
        fleet.stream.silent.add("a")
        async with asking(fleet) as found:
            await until(lambda: fleet.stream.probes == ["a"])
            gate.set()
        assert ways(found[0]) == {"a": "http"}
        await until(lambda: not fleet.stream.under_way)
        assert fleet.statuses("a") == {"http": "in_use", "command": "untried"}


@pytest.mark.parametrize("error", [Unreachable, Broken])
async def test_a_path_that_fails_while_it_is_hedged_is_left_at_once(
    error: type[TransportError],
) -> None:
    async with running("a") as fleet:
        await fleet.ask()
        slow = fleet.http.gates["a"] = anyio.Event()
        fleet.http.call_errors["a"] = fleet.http.probe_errors["a"] = error
        stream = fleet.stream.gates["a"] = anyio.Event()
        async with asking(fleet) as found:
            await until(lambda: fleet.stream.probes == ["a"])
            slow.set()
            await until(lambda: fleet.statuses("a")["http"] != "in_use")
            stream.set()
        assert ways(found[0]) == {"a": "command"}


async def test_a_hedge_that_fails_leaves_the_call_alone() -> None:
    async with running("a") as fleet:
        await fleet.ask()
        gate = fleet.http.gates["a"] = anyio.Event()
        fleet.stream.probe_errors["a"] = Gone
        async with asking(fleet) as found:
            await until(lambda: fleet.statuses("a")["command"] == "failed")
            gate.set()
        assert ways(found[0]) == {"a": "http"}


@asynccontextmanager
async def one_path() -> AsyncIterator[tuple[Path, Router]]:
    agents = {"a": Agent("a", inventory("a"))}
    async with Path("http", agents) as http, Reachability([http]) as reachability:
        yield http, Router(StaticDiscovery([Target(node="a")]), reachability)


async def test_a_silent_call_is_sent_again_over_its_path_where_there_is_no_other() -> None:
    async with one_path() as (http, router):
        await router.fan_out(NAME, {}, NodeInventory)
        http.stalls.add("a")
        assert ways(await router.fan_out(NAME, {}, NodeInventory)) == {"a": "http"}
        assert http.probes == ["a", "a"]
        assert not http.under_way


async def test_a_silent_call_is_sent_again_where_all_other_paths_have_failed() -> None:
    async with running("a") as fleet:
        await fleet.ask()
        fleet.stream.probe_errors["a"] = Gone
        fleet.http.stalls.add("a")
        assert ways(await fleet.ask()) == {"a": "http"}


async def test_a_path_that_stays_silent_is_tried_once_more_and_no_more() -> None:
    async with one_path() as (http, router):
        await router.fan_out(NAME, {}, NodeInventory)
        http.call_errors["a"] = Unreachable
        slow = http.gates["a"] = anyio.Event()
        found: list[FanOut[NodeInventory]] = []

        async def ask() -> None:
            found.append(await router.fan_out(NAME, {}, NodeInventory))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await until(lambda: http.probes == ["a", "a"])
            slow.set()
        assert reasons(found[0]) == {"a": "unreachable"}
        assert http.probes == ["a", "a"]
        assert len(http.connects) <= 3


async def test_a_call_over_a_path_just_proven_says_what_is_usual() -> None:
    async with running("a") as fleet:
        await fleet.ask()
        assert fleet.reachability._latencies.p99_seconds(("http", NAME), within_seconds=1) > 0


async def test_a_call_that_is_hedged_holds_up_no_other() -> None:
    async with running("a", "b") as fleet:
        await fleet.ask()
        fleet.http.silent.add("a")
        fleet.stream.silent.add("a")
        router = fleet.router(concurrency=1)
        async with anyio.create_task_group() as group:
            group.start_soon(router.fan_out, NAME, {}, NodeInventory)
            await until(lambda: len(fleet.agents["b"].calls) == 2)
            assert fleet.http.under_way["a"] == 1
            group.cancel_scope.cancel()


async def test_a_tool_that_is_usually_slow_is_hedged_later() -> None:
    async with running("a") as fleet:
        http = fleet.http
        assert fleet.reachability.hedge_seconds(http, "x") == 0.25
        for _ in range(100):
            fleet.reachability.took(http, "x", 0.1)
        fleet.reachability.took(http, "x", 60)
        assert fleet.reachability.hedge_seconds(http, "x") == pytest.approx(0.4)
        assert fleet.reachability.hedge_seconds(http, "y") == 0.25
        for _ in range(10):
            fleet.reachability.took(http, "x", 60)
        assert fleet.reachability.hedge_seconds(http, "x") == 2
        fleet.now = 61
        assert fleet.reachability.hedge_seconds(http, "x") == 0.25


# Looking again.


async def test_a_healed_path_is_in_use_again_without_a_failed_call_in_between() -> None:
    async with running("a") as fleet:
        await fleet.ask()
        fleet.http.call_errors["a"] = fleet.http.probe_errors["a"] = Unreachable
        seen = [ways(await fleet.ask())]
        fleet.http.call_errors.clear()
        fleet.http.probe_errors.clear()
        fleet.now += 2
        with anyio.fail_after(10):
            while seen[-1] != {"a": "http"}:
                seen.append(ways(await fleet.ask()))
        assert seen[:-1] == [{"a": "command"}] * (len(seen) - 1)
        assert fleet.stream.probes == ["a"]


async def test_going_back_to_the_better_path_harms_no_call_under_way() -> None:
    async with running("a") as fleet:
        fleet.http.probe_errors["a"] = Unreachable
        await fleet.ask()
        agent = fleet.agents["a"]
        agent.gate, agent.entered = anyio.Event(), anyio.Event()
        async with asking(fleet) as found:
            await agent.entered.wait()
            fleet.http.probe_errors.clear()
            fleet.now += 2
            await until(lambda: fleet.statuses("a")["http"] == "in_use")
            agent.gate.set()
        assert [each.via for each in found[0].answers] in (["command"], ["http"])
        assert ways(await fleet.ask()) == {"a": "http"}


@pytest.mark.usefixtures("eager")
async def test_a_dead_path_is_looked_at_ever_more_seldom() -> None:
    async with running("a") as fleet:
        fleet.http.probe_errors["a"] = Unreachable
        await fleet.ask()
        looks = []
        for second in range(1, 90):
            fleet.now = second
            before = len(fleet.http.probes)
            await turns(30)
            if len(fleet.http.probes) > before:
                assert len(fleet.http.probes) == before + 1
                looks.append(second)
        assert looks == [2, 6, 14, 30, 50, 70]
        assert fleet.stream.probes == ["a"]


@pytest.mark.usefixtures("eager")
async def test_what_works_again_for_one_agent_is_tried_at_once_for_the_others() -> None:
    async with running("a", "b", "c", "d") as fleet:
        fleet.http.probe_errors = {"a": Unreachable, "b": Unreachable}
        await fleet.ask("a")
        fleet.now = 1
        await fleet.ask("b")
        fleet.http.probe_errors.clear()
        await turns(50)
        assert fleet.http.probes == ["a", "b"]
        fleet.now = 2  # a is due, and b in a second
        await until(lambda: fleet.statuses("b")["http"] == "in_use")
        assert fleet.http.probes == ["a", "b", "a", "b"]


@pytest.mark.usefixtures("eager")
async def test_a_dead_agent_is_looked_at_over_the_preferred_path_alone() -> None:
    async with running("a") as fleet:
        fleet.http.probe_errors["a"] = fleet.stream.probe_errors["a"] = Unreachable
        await fleet.ask()
        for _ in range(20):
            fleet.now += 20
            await turns(30)
        assert len(fleet.http.probes) > 15
        assert fleet.stream.probes == ["a"]
        fleet.http.probe_errors.clear()
        fleet.now += 20
        await until(lambda: fleet.statuses("a")["http"] == "in_use")


@pytest.mark.usefixtures("eager")
async def test_a_gateway_that_nobody_uses_does_not_look() -> None:
    async with running("a") as fleet:
        fleet.http.probe_errors["a"] = Unreachable
        await fleet.ask()
        fleet.now = 601
        await turns(100)
        assert fleet.http.probes == ["a"]
        fleet.http.probe_errors.clear()
        assert ways(await fleet.ask()) == {"a": "http"}  # the stream's proof has expired


# What is not tried.


async def test_a_dead_agent_is_not_hammered_and_found_soon_after_it_is_back() -> None:
    async with running("a", "b") as fleet:
        for path in (fleet.http, fleet.stream):
            path.probe_errors["b"] = Unreachable
        await fleet.ask()
        fleet.now = 0.25
        for _ in range(100):
            found = await fleet.ask()
            assert ways(found) == {"a": "http"}
            assert reasons(found) == {"b": "unreachable"}
        assert [fleet.http.probes.count("b"), fleet.stream.probes.count("b")] == [1, 1]
        said = "scripted Unreachable (0 s ago; tried again in 2 s)"
        assert [attempt.message for attempt in found.failures[0].attempts] == [said, said]
        tried = []
        for second in range(1, 20):
            fleet.now = second
            before = fleet.stream.probes.count("b")
            await fleet.ask()
            if fleet.stream.probes.count("b") > before:
                tried.append(second)
        assert tried == [2, 4, 8, 12, 16]
        for path in (fleet.http, fleet.stream):
            path.probe_errors.clear()
        fleet.now += 4
        assert set(ways(await fleet.ask())) == {"a", "b"}


async def test_an_agent_that_has_become_ready_is_asked_at_once_however_often_it_failed() -> None:
    async with running("a") as fleet:
        starting, started = Target(node="a", ready=False), Target(node="a")
        fleet.discovery = StaticDiscovery([starting])
        fleet.http.probe_errors["a"], fleet.stream.probe_errors["a"] = Unreachable, Denied
        for fleet.now in range(0, 20, 4):
            assert reasons(await fleet.ask()) == {"a": "denied"}
        fleet.http.probe_errors.clear()
        assert reasons(await fleet.ask()) == {"a": "denied"}  # as long as nobody says so
        fleet.discovery = StaticDiscovery([started])
        assert ways(await fleet.ask()) == {"a": "http"}
        # What its start does not explain is not asked for again before its time.
        assert fleet.statuses("a") == {"http": "in_use", "command": "denied"}
        # It has become ready once: what fails from now on counts.
        fleet.http.probe_errors["a"] = fleet.http.call_errors["a"] = Unreachable
        assert reasons(await fleet.ask()) == {"a": "denied"}
        fleet.http.probe_errors.clear()
        fleet.http.call_errors.clear()
        assert reasons(await fleet.ask()) == {"a": "denied"}


async def test_a_call_waits_little_for_an_agent_that_was_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reachability_module, "SUSPECT_SECONDS", 0.05)
    async with running("a", probe_timeout_seconds={"http": NEVER_SECONDS}) as fleet:
        for path in (fleet.http, fleet.stream):
            path.probe_errors["a"] = Gone
        await fleet.ask()
        for path in (fleet.http, fleet.stream):
            path.probe_errors.clear()
        fleet.now = 2
        gate = fleet.http.gates["a"] = fleet.stream.gates["a"] = anyio.Event()
        found = await fleet.ask(node_deadline_seconds=NEVER_SECONDS)
        assert reasons(found) == {"a": "not_running"}
        assert found.failures[0].message == "scripted Gone (2 s ago; being tried again)"
        # The race goes on without the call, and others do not begin one beside it.
        await fleet.ask(node_deadline_seconds=NEVER_SECONDS)
        assert fleet.http.probes == ["a", "a"]
        gate.set()
        await until(lambda: fleet.statuses("a")["http"] == "in_use")
        assert ways(await fleet.ask()) == {"a": "http"}


async def test_an_agent_back_among_dead_ones_is_found_by_the_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reachability_module, "SUSPECT_SECONDS", 0.05)
    settings = {"concurrency": 1, "default_probe_timeout_seconds": NEVER_SECONDS}
    async with running("dead", "back", **settings) as fleet:
        fleet.http.probe_errors = dict.fromkeys(["dead", "back"], Unreachable)
        fleet.stream.probe_errors = dict.fromkeys(["dead", "back"], Gone)
        await fleet.ask()
        fleet.stream.probe_errors.clear()
        fleet.stream.silent.add("dead")
        fleet.now = 2
        await fleet.ask("dead")  # its race holds the suspects' only place among streams
        await fleet.ask("back")  # and this one's waits for it
        assert fleet.stream.under_way == {"dead": 1}
        fleet.http.probe_errors.clear()
        fleet.now = 30
        await until(lambda: fleet.statuses("back")["http"] == "in_use")
        assert ways(await fleet.ask("back")) == {"back": "http"}


async def test_an_agent_that_was_dead_holds_up_no_other() -> None:
    settings = {"concurrency": 1, "default_probe_timeout_seconds": NEVER_SECONDS}
    async with running("dead", "live", **settings) as fleet:
        fleet.http.probe_errors = {"dead": Unreachable, "live": Unreachable}
        fleet.stream.probe_errors = {"dead": Gone}
        await fleet.ask("dead")
        fleet.now = 2
        fleet.stream.gates["dead"] = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(fleet.ask, "dead")
            await until(lambda: fleet.stream.under_way["dead"] == 1)
            assert ways(await fleet.ask("live")) == {"live": "command"}
            assert fleet.stream.under_way["dead"] == 1
            group.cancel_scope.cancel()


async def test_a_race_takes_the_place_of_the_look_in_the_background() -> None:
    async with running("a", probe_timeout_seconds={"http": NEVER_SECONDS}) as fleet:
        fleet.http.probe_errors["a"] = fleet.stream.probe_errors["a"] = Unreachable
        await fleet.ask()
        fleet.http.gates["a"] = anyio.Event()
        fleet.now = 2
        await until(lambda: fleet.http.under_way["a"] == 1)
        async with anyio.create_task_group() as group:
            group.start_soon(fleet.ask)
            await until(lambda: len(fleet.http.probes) == 3)
            await until(lambda: fleet.http.under_way["a"] == 1)
            group.cancel_scope.cancel()


@pytest.mark.usefixtures("eager")
async def test_access_that_is_denied_is_asked_for_again_after_a_minute() -> None:
    async with running("a") as fleet:
        await fleet.ask()
        fleet.http.call_errors["a"] = Denied
        fleet.stream.probe_errors["a"] = Unreachable
        found = await fleet.ask()
        assert reasons(found) == {"a": "denied"}
        fleet.stream.probe_errors.clear()
        fleet.now = 4
        assert ways(await fleet.ask()) == {"a": "command"}
        assert fleet.statuses("a") == {"http": "denied", "command": "in_use"}
        fleet.stream.call_errors["a"] = fleet.stream.probe_errors["a"] = Gone
        fleet.now = 50
        found = await fleet.ask()
        assert [attempt.message for attempt in found.failures[0].attempts] == [
            "scripted Denied (50 s ago; tried again in 10 s)",
            "scripted Gone",
        ]
        fleet.http.call_errors.clear()
        fleet.now = 59
        await fleet.ask()
        await turns(50)
        assert (fleet.http.probes, len(fleet.http.connects)) == (["a"], 2)
        fleet.now = 60
        assert ways(await fleet.ask()) == {"a": "http"}


class Unauthorized(Denied):
    symptom = "unauthorized"


async def test_a_refusal_by_the_agent_is_asked_about_again_soon_where_nothing_else_is_left() -> (
    None
):
    async with running("a", "b") as fleet:
        fleet.http.call_errors = dict.fromkeys("ab", Unauthorized)
        fleet.stream.probe_errors["a"] = Unreachable
        found = await fleet.ask()
        assert (reasons(found), ways(found)) == ({"a": "denied"}, {"b": "command"})
        fleet.http.call_errors.clear()
        fleet.now = 2
        assert ways(await fleet.ask()) == {"a": "http", "b": "command"}
        assert fleet.tried("b").count("http") == 1


async def test_a_token_that_is_refused_over_http_is_not_shown_through_a_port_forward() -> None:
    agents = {"a": Agent("a", inventory("a"))}
    async with (
        Path("http", agents) as http,
        Path("portforward", agents) as forward,
        Path("exec", agents) as relay,
        Reachability([http, forward, relay]) as reachability,
    ):
        router = Router(StaticDiscovery([Target(node="a")]), reachability)
        http.call_errors["a"] = Unauthorized
        assert ways(await router.fan_out(NAME, {}, NodeInventory)) == {"a": "exec"}
        assert forward.probes == []
        states = {path.via: path for path in reachability.state(Target(node="a"))}
        assert states["portforward"].status == "denied"
        assert states["portforward"].message == (
            "not tried: http refused the same token: scripted Unauthorized"
        )


async def test_a_tool_that_says_no_is_no_failure_of_its_path() -> None:
    async with running("a") as fleet:
        fleet.agents["a"].error = ToolError("the GPUs are on holiday")
        await fleet.ask()
        assert fleet.statuses("a") == {"http": "in_use", "command": "untried"}
        assert not fleet.reachability.is_suspect(fleet.targets[0])


# What agents teach about each other.


@asynccontextmanager
async def taught(*nodes: str, cluster: str = "") -> AsyncIterator[Fleet]:
    """A gateway on node a, to which HTTP has turned out to be dead for b, c and d."""
    names = ["a", "b", "c", "d", *nodes]
    known = [Target(node=name, cluster=cluster) for name in names]
    fleet = Fleet({n: Agent(n, inventory(n)) for n in names}, known, own_node="a")
    shown = [f"{cluster}/{name}" if cluster else name for name in "abcd"]
    async with fleet.open():
        fleet.http.probe_errors |= dict.fromkeys("bcd", Unreachable)
        found = await fleet.ask(*shown)
        assert sorted(ways(found).values()) == ["command"] * 3 + ["http"]
        yield fleet


async def test_a_path_dead_to_all_other_nodes_is_not_the_first_for_a_new_agent() -> None:
    async with taught("e") as fleet:
        fleet.http.silent.add("e")
        found = await fleet.ask("e")
        assert ways(found) == {"e": "command"}
        assert found.answers[0].passed_over == (("http", "untried"),)
        assert fleet.tried("e")[0] == "command"
        # The path that was left out is tried in the background, so that it can prove itself.
        fleet.http.silent.clear()
        await until(lambda: fleet.statuses("e")["http"] == "in_use")


async def test_the_lesson_is_of_no_matter_for_the_own_node_and_ends_with_the_first_that_works() -> (
    None
):
    async with taught("e", "f") as fleet:
        fleet.now = 30  # past what the background waits for b
        fleet.http.probe_errors.clear()
        await until(lambda: fleet.statuses("b")["http"] == "in_use")
        await fleet.ask("e")
        assert fleet.tried("e") == ["http"]
    async with taught() as fleet:
        fleet.reachability.outdated(fleet.targets[0], fleet.http)
        fleet.begun.clear()
        await fleet.ask("a")
        assert fleet.tried("a") == ["http"]


async def test_a_lesson_is_forgotten_after_a_minute() -> None:
    async with taught("e") as fleet:
        fleet.reachability.retain([fleet.targets[-1]])  # nobody looks at b, c and d again
        fleet.now = 61
        await fleet.ask("e")
        assert fleet.tried("e") == ["http"]


async def test_dead_agents_teach_nothing_of_the_path() -> None:
    async with running("b", "c", "d", "e", own_node="a") as fleet:
        fleet.http.probe_errors = dict.fromkeys("bcd", Unreachable)
        fleet.stream.probe_errors = dict.fromkeys("bcd", Gone)
        found = await fleet.ask("b", "c", "d")
        assert len(found.failures) == 3
        await fleet.ask("e")
        assert fleet.tried("e") == ["http"]


@pytest.mark.parametrize("error", [Denied, Gone, BadPeer])
async def test_what_is_not_the_network_teaches_nothing_of_it(error: type[TransportError]) -> None:
    async with running("b", "c", "d", "e", own_node="a") as fleet:
        fleet.http.probe_errors = dict.fromkeys("bcd", error)
        assert len((await fleet.ask("b", "c", "d")).answers) == 3
        await fleet.ask("e")
        assert fleet.tried("e") == ["http"]


async def test_two_agents_of_three_do_not_teach_and_in_a_small_cluster_one_is_enough() -> None:
    async with running("b", "c", "d", "e", own_node="a") as fleet:
        fleet.http.probe_errors = dict.fromkeys("bc", Unreachable)
        await fleet.ask("b", "c")
        await fleet.ask("e")
        assert fleet.tried("e") == ["http"]
    async with running("b", "e", own_node="a") as fleet:
        fleet.http.probe_errors["b"] = Unreachable
        await fleet.ask("b")
        await fleet.ask("e")
        assert fleet.tried("e")[0] == "command"


async def test_a_lesson_is_of_one_cluster() -> None:
    async with taught(cluster="x") as fleet:
        lessons = fleet.reachability
        assert lessons.dead_elsewhere(Target(node="e", cluster="x"), fleet.http)
        assert not lessons.dead_elsewhere(Target(node="e", cluster="y"), fleet.http)


async def test_a_head_start_is_shorter_where_paths_are_dead_and_longer_where_probes_are_slow() -> (
    None
):
    async with taught("e") as fleet:
        e = fleet.targets[-1]
        head_start = fleet.reachability.head_start_seconds
        assert head_start(e, fleet.http) == pytest.approx(0.05, abs=0.04)
        assert head_start(e, fleet.stream) >= 0.6  # it opens a stream, which takes longer
        fleet.now = 61
        assert head_start(e, fleet.http) == 0.15
        fleet.reachability._latencies.add(("", "http"), 0.2)
        assert head_start(e, fleet.http) == 0.4
        fleet.now += 11
        assert head_start(e, fleet.http) == 0.15


# Who is who.


async def test_an_agent_that_discovery_forgets_is_forgotten_and_an_outage_forgets_nobody() -> None:
    async with running("a", "b") as fleet:
        await fleet.ask()
        fleet.reachability.retain(fleet.targets[:1])
        assert fleet.statuses("a")["http"] == "in_use"
        assert fleet.statuses("b")["http"] == "untried"
        fleet.now = 59
        assert fleet.state("a")["http"].age_seconds == 59
        await fleet.ask()
        assert fleet.state("a")["http"].age_seconds == 0
        assert fleet.http.probes.count("a") == 1


async def test_nodes_of_two_clusters_with_one_name_stay_apart() -> None:
    known = [Target(node="a", cluster=cluster, uid=cluster) for cluster in ("x", "y")]
    agents = {
        target.key: Agent("a", inventory("a", driver_version=target.cluster), uid=target.uid)
        for target in known
    }
    fleet = Fleet(agents, known)
    async with fleet.open():
        found = await fleet.ask()
        assert {(each.node, each.data.driver_version) for each in found.answers} == {
            ("x/a", "x"),
            ("y/a", "y"),
        }
        assert [each.identity.node for each in found.answers] == ["a", "a"]
        assert set(ways(await fleet.ask("y/a"))) == {"y/a"}
        assert (await fleet.ask("y/a")).coverage.nodes_known == 2

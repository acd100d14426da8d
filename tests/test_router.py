"""The router: every node by the best path known, failures as data, siblings untouched."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskStatus

from mcp_gpu.fleet.discovery import AbsentAgent, DiscoveryError, Explanation, Table
from mcp_gpu.fleet.router import FanOut, Router, UnknownNodes
from mcp_gpu.registry import Arguments, ToolError
from mcp_gpu.tools.inventory import NAME, NodeInventory
from support.fleet import Agent, Foreign, inventory
from support.routed import Fleet, reasons, running, ways
from transports.base import Target
from transports.errors import BadPeer, Broken, Denied, Gone, TransportError, Unreachable


async def test_every_node_answers_over_the_preferred_path() -> None:
    async with running() as fleet:
        found = await fleet.ask()
    assert ways(found) == {"a": "http", "b": "http", "c": "http"}
    assert [answer.data for answer in found.answers] == [inventory(n) for n in ("a", "b", "c")]
    assert found.failures == ()
    assert (found.coverage.nodes_known, found.coverage.nodes_answered) == (3, 3)


async def test_a_node_cut_off_from_http_is_reached_by_the_next_path() -> None:
    async with running() as fleet:
        fleet.http.silent.add("b")
        found = await fleet.ask()
        assert ways(found) == {"a": "http", "b": "command", "c": "http"}


async def test_a_proven_path_is_used_again_without_a_probe_until_it_expires() -> None:
    async with running("a") as fleet:
        for _ in range(3):
            await fleet.ask()
        assert fleet.http.probes == ["a"]
        fleet.now = 61
        await fleet.ask()
        assert fleet.http.probes == ["a", "a"]


async def test_a_dead_path_is_not_waited_for_twice() -> None:
    async with running("a") as fleet:
        fleet.http.silent.add("a")
        for _ in range(3):
            assert ways(await fleet.ask()) == {"a": "command"}
        assert fleet.http.probes == ["a"]


@pytest.mark.parametrize("error", [Unreachable, Denied, Gone, Broken, BadPeer])
async def test_a_call_that_fails_goes_on_over_the_next_path_and_drops_the_choice(
    error: type[TransportError],
) -> None:
    async with running("a") as fleet:
        await fleet.ask()
        fleet.http.call_errors["a"] = error
        assert ways(await fleet.ask()) == {"a": "command"}
        del fleet.http.call_errors["a"]
        fleet.now = 61  # the stream's proof expires, and preference counts again
        assert ways(await fleet.ask()) == {"a": "http"}


async def test_a_connection_that_died_since_it_was_proven_is_replaced_on_the_same_path() -> None:
    async with running("a") as fleet:
        await fleet.ask()
        fleet.http.breaks.add("a")
        assert ways(await fleet.ask()) == {"a": "http"}
        assert fleet.http.probes == ["a", "a"]
        assert fleet.stream.probes == []


async def test_a_proven_path_that_falls_silent_leaves_time_for_another() -> None:
    async with running("a") as fleet:
        await fleet.ask()
        fleet.http.silent.add("a")
        found = await fleet.ask(node_deadline_seconds=1.0)
        assert ways(found) == {"a": "command"}


async def test_a_node_that_fails_everywhere_is_a_failure_and_its_siblings_answer() -> None:
    async with running() as fleet:
        fleet.http.probe_errors["b"] = Unreachable
        fleet.stream.probe_errors["b"] = Gone
        found = await fleet.ask()
        assert ways(found) == {"a": "http", "c": "http"}
        (failure,) = found.failures
        assert (failure.node, failure.reason, failure.message) == (
            "b",
            "not_running",
            "scripted Gone",
        )
        assert [(a.via, a.reason) for a in failure.attempts] == [
            ("http", "unreachable"),
            ("command", "not_running"),
        ]
        assert (found.coverage.nodes_known, found.coverage.nodes_answered) == (3, 2)


async def test_a_silent_node_ends_at_its_own_deadline_with_reason_timeout() -> None:
    async with running() as fleet:
        await fleet.ask()
        fleet.http.silent.add("b")
        fleet.stream.silent.add("b")
        found = await fleet.ask(node_deadline_seconds=0.3)
        assert reasons(found) == {"b": "timeout"}
        assert ways(found) == {"a": "http", "c": "http"}


async def test_the_whole_call_ends_at_its_deadline_with_what_there_is() -> None:
    async with running() as fleet:
        fleet.agents["b"].gate = anyio.Event()
        found = await fleet.ask(call_deadline_seconds=0.3)
        assert reasons(found) == {"b": "timeout"}
        assert ways(found) == {"a": "http", "c": "http"}


async def test_nodes_waiting_for_a_place_when_the_call_ends_are_failures_too() -> None:
    async with running() as fleet:
        fleet.agents["a"].gate = anyio.Event()
        found = await fleet.ask(call_deadline_seconds=0.3, concurrency=1)
        assert set(reasons(found)) == {"a", "b", "c"}
        assert "before the call's deadline" in found.failures[1].message


async def test_waiting_for_a_place_takes_nothing_of_an_agents_time() -> None:
    async with running("a", "b", "silent") as fleet:
        await fleet.ask("a", "silent")
        fleet.http.silent.add("silent")
        fleet.stream.silent.add("silent")
        router = fleet.router(node_deadline_seconds=0.3, concurrency=1)
        found: list[FanOut[NodeInventory]] = []

        async def ask() -> None:
            found.append(await router.fan_out(NAME, {}, NodeInventory, nodes=["b"]))

        async with anyio.create_task_group() as group, router._lanes.place("http"):
            group.start_soon(ask)
            with anyio.fail_after(10):
                while fleet.statuses("b")["http"] != "in_use":
                    await anyio.lowlevel.checkpoint()
            # By when this one's time is over, b's would be.
            await fleet.ask("silent", node_deadline_seconds=0.3)
            assert not found
        assert ways(found[0]) == {"b": "http"}
        assert fleet.statuses("b")["http"] == "in_use"


async def test_no_more_calls_run_at_once_than_the_limit() -> None:
    async with running() as fleet:
        gate = anyio.Event()
        for agent in fleet.agents.values():
            agent.gate = gate
        found: list[FanOut[NodeInventory]] = []

        async def ask() -> None:
            found.append(await fleet.ask(concurrency=2))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await fleet.agents["a"].entered.wait()
                await fleet.agents["b"].entered.wait()
                await anyio.wait_all_tasks_blocked()
                assert not fleet.agents["c"].entered.is_set()
                gate.set()
        assert len(found[0].answers) == 3


async def test_an_answer_from_another_node_is_refused() -> None:
    """Addresses are reused: what answers there may be another node's agent by now."""
    fleet = Fleet({"a": Agent("z", inventory("z"))})
    async with fleet.open():
        found = await fleet.ask()
    assert reasons(found) == {"a": "bad_response"}
    assert "says it is on node 'z', not 'a'" in found.failures[0].message


async def test_an_answer_from_another_pod_of_the_node_is_refused() -> None:
    agent = Agent("a", inventory("a"), uid="new")
    fleet = Fleet({"old": agent}, [Target(node="a", uid="old")])
    async with fleet.open():
        found = await fleet.ask()
    assert "pod new answers where pod old was expected" in found.failures[0].message


async def test_an_address_that_leads_elsewhere_by_now_is_noticed_by_the_answer() -> None:
    """A pod's address is given to the next pod; a proof of before the change must not count."""
    known = [Target(addresses=("10.0.0.1",))]
    first = known[0].key
    fleet = Fleet({first: Agent("a", inventory("a"))}, known)
    async with fleet.open():
        assert set(ways(await fleet.ask())) == {"a"}
        fleet.http.lead_to(first, Agent("b", inventory("b")))
        found = await fleet.ask()
    assert [(answer.node, answer.data.node) for answer in found.answers] == [("b", "b")]


async def test_an_address_of_a_named_node_that_leads_elsewhere_is_refused() -> None:
    async with running("a") as fleet:
        await fleet.ask()
        for path in (fleet.http, fleet.stream):
            path.lead_to("a", Agent("b", inventory("b")))
        found = await fleet.ask()
        assert reasons(found) == {"a": "bad_response"}


async def test_an_agent_replaced_in_its_place_is_asked_as_what_it_is_now() -> None:
    async with running("a") as fleet:
        await fleet.ask()
        older = Agent("a", inventory("a"), arguments=Arguments, started_at=2)
        fleet.http.lead_to("a", older)
        assert ways(await fleet.ask()) == {"a": "http"}
        assert older.calls == [Arguments()]
        fleet.http.lead_to("a", Agent("a", inventory("a"), tool="get_other", started_at=3))
        assert reasons(await fleet.ask()) == {"a": "agent_too_old"}
        fleet.http.lead_to("a", Agent("a", inventory("a"), started_at=4))
        assert ways(await fleet.ask()) == {"a": "http"}


async def test_a_defect_met_on_one_path_costs_that_path_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as fleet:
        fleet.http.probe_errors["b"] = ZeroDivisionError
        assert ways(await fleet.ask()) == {"a": "http", "b": "command", "c": "http"}
        assert "trying http for b failed" in caplog.text
        fleet.stream.probe_errors["c"] = fleet.http.probe_errors["c"] = ZeroDivisionError
        fleet.http.call_errors["c"] = Unreachable
        found = await fleet.ask()
    assert reasons(found) == {"c": "broken"}
    assert "ZeroDivisionError" in found.failures[0].message


async def test_a_defect_met_in_a_call_costs_that_node_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as fleet:
        await fleet.ask()
        fleet.http.call_errors["b"] = ZeroDivisionError
        found = await fleet.ask()
    assert set(ways(found)) == {"a", "c"}
    assert reasons(found) == {"b": "broken"}
    assert "ZeroDivisionError" in found.failures[0].message
    assert "asking b failed" in caplog.text


async def test_live_nodes_do_not_queue_behind_the_probes_of_dead_ones() -> None:
    async with running("dead", "live") as fleet:
        fleet.stream.probe_errors["dead"] = Unreachable
        router = fleet.router(concurrency=1)
        with anyio.fail_after(10):
            await router.fan_out(NAME, {}, NodeInventory, nodes=["live"])
            fleet.http.silent.add("dead")
            probed = len(fleet.http.probes)
            async with anyio.create_task_group() as group:
                group.start_soon(router.fan_out, NAME, {}, NodeInventory)
                while len(fleet.http.probes) == probed:
                    await anyio.lowlevel.checkpoint()
                # The dead node's probe holds its lane now, and until its time-out.
                found = await router.fan_out(NAME, {}, NodeInventory, nodes=["live"])
                assert ways(found) == {"live": "http"}
                group.cancel_scope.cancel()


async def test_a_caller_who_leaves_says_nothing_of_the_path() -> None:
    async with running("a") as fleet:
        await fleet.ask()
        fleet.agents["a"].gate = anyio.Event()
        fleet.agents["a"].entered = anyio.Event()
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(fleet.ask)
                await fleet.agents["a"].entered.wait()
                group.cancel_scope.cancel()
        fleet.agents["a"].gate = None
        assert ways(await fleet.ask()) == {"a": "http"}
        assert fleet.http.probes == ["a"]


async def test_an_outgoing_agent_is_not_waited_for_once_its_node_has_answered() -> None:
    known = [Target(node="a", uid="new"), Target(node="a", uid="gone", ready=False)]
    agents = {uid: Agent("a", inventory("a"), uid=uid) for uid in ("new", "gone")}
    fleet = Fleet(agents, known)
    async with fleet.open():
        fleet.http.silent.add("gone")
        fleet.stream.silent.add("gone")
        found = await fleet.ask(node_deadline_seconds=1000, call_deadline_seconds=1000)
    assert ways(found) == {"a": "http"}
    assert found.failures == ()


async def test_another_kind_of_server_is_not_an_agent() -> None:
    fleet = Fleet({"a": Agent("a", inventory("a"), name="mcp-gpu-gateway")})
    async with fleet.open():
        found = await fleet.ask()
    assert reasons(found) == {"a": "bad_response"}


async def test_an_agent_without_the_tool_is_too_old() -> None:
    fleet = Fleet({"a": Agent("a", inventory("a"), tool="get_other", version="0.0.9")})
    async with fleet.open():
        found = await fleet.ask()
    assert reasons(found) == {"a": "agent_too_old"}
    assert "agent 0.0.9 has no tool get_gpu_inventory" in found.failures[0].message


async def test_an_agent_is_sent_only_arguments_it_lists() -> None:
    fleet = Fleet({"a": Agent("a", inventory("a"), arguments=Arguments)})
    async with fleet.open():
        found = await fleet.ask()
    assert ways(found) == {"a": "http"}
    assert fleet.agents["a"].calls == [Arguments()]


async def test_a_tool_that_fails_is_told_in_its_own_words_and_not_retried() -> None:
    async with running("a") as fleet:
        fleet.agents["a"].error = ToolError("the GPUs are on holiday")
        found = await fleet.ask()
        assert reasons(found) == {"a": "tool_error"}
        assert found.failures[0].message == "the GPUs are on holiday"
        assert fleet.stream.probes == []


async def test_an_answer_that_does_not_fit_the_schema_is_a_bad_response() -> None:
    async with running("a") as fleet:
        fleet.agents["a"].data = Foreign(**inventory("a").model_dump() | {"gpu_count": "eight"})
        found = await fleet.ask()
        assert reasons(found) == {"a": "bad_response"}
        assert "gpu_count" in found.failures[0].message


async def test_two_agents_of_one_node_give_the_answer_of_the_newest_ready_one() -> None:
    agents = {
        "old": Agent("a", inventory("a", driver_version="1"), uid="old", started_at=1),
        "new": Agent("a", inventory("a", driver_version="2"), uid="new", started_at=2),
        "unready": Agent("a", inventory("a", driver_version="3"), uid="unready", started_at=3),
    }
    known = [
        Target(node="a", uid="old"),
        Target(node="a", uid="new"),
        Target(node="a", uid="unready", ready=False),
    ]
    fleet = Fleet(agents, known)
    async with fleet.open():
        found = await fleet.ask()
        assert [answer.data.driver_version for answer in found.answers] == ["2"]
        assert found.coverage.nodes_known == 1
        # One that dies takes nothing from the node: the other has answered.
        fleet.http.call_errors["new"] = fleet.stream.probe_errors["new"] = Gone
        found = await fleet.ask()
        assert [answer.data.driver_version for answer in found.answers] == ["1"]
        assert found.failures == ()


async def test_an_agent_known_by_address_alone_is_named_by_its_probe_and_keeps_the_name() -> None:
    known = [Target(addresses=("10.0.0.1",)), Target(addresses=("10.0.0.2",))]
    agents = {t.key: Agent(node, inventory(node)) for t, node in zip(known, "ab", strict=True)}
    fleet = Fleet(agents, known)
    async with fleet.open():
        first = known[0].key
        fleet.http.probe_errors[first] = fleet.stream.probe_errors[first] = Unreachable
        assert reasons(await fleet.ask()) == {"10.0.0.1:8080": "unreachable"}
        fleet.http.probe_errors.clear()
        fleet.now += 2
        assert set(ways(await fleet.ask())) == {"a", "b"}
        fleet.http.call_errors[first] = Broken
        found = await fleet.ask()
        assert reasons(found) == {"a": "broken"}
        assert found.coverage.nodes_known == 2


async def test_only_the_nodes_named_are_asked() -> None:
    async with running() as fleet:
        found = await fleet.router().fan_out(NAME, {}, NodeInventory, nodes=["b"] * 3)
        assert set(ways(found)) == {"b"}
        assert fleet.http.probes == fleet.http.connects == ["b"]
        assert (found.coverage.nodes_known, found.coverage.nodes_asked) == (3, 1)


async def test_an_unknown_node_is_refused_with_the_known_ones() -> None:
    async with running() as fleet:
        with pytest.raises(UnknownNodes) as refused:
            await fleet.router().fan_out(NAME, {}, NodeInventory, nodes=["b", "x"])
        assert (refused.value.unknown, refused.value.known) == (["x"], ["a", "b", "c"])


async def test_a_node_is_looked_for_among_agents_that_have_not_said_theirs() -> None:
    known = [Target(addresses=("10.0.0.1",)), Target(addresses=("10.0.0.2",))]
    agents = {t.key: Agent(node, inventory(node)) for t, node in zip(known, "ab", strict=True)}
    fleet = Fleet(agents, known)
    async with fleet.open():
        found = await fleet.router().fan_out(NAME, {}, NodeInventory, nodes=["b"])
        assert set(ways(found)) == {"b"}
        assert agents[known[0].key].calls == []
        found = await fleet.router().fan_out(NAME, {}, NodeInventory, nodes=["a"])
        assert set(ways(found)) == {"a"}
        with pytest.raises(UnknownNodes):
            await fleet.router().fan_out(NAME, {}, NodeInventory, nodes=["x"])


async def test_an_agent_that_no_path_applies_to_is_unreachable() -> None:
    fleet = Fleet({"a": Agent("a", inventory("a"))}, [Target(node="a"), Target(node="lonely")])
    async with fleet.open():
        found = await fleet.ask()
    assert reasons(found) == {"lonely": "unreachable"}
    assert "paths configured: http, command" in found.failures[0].message


async def test_progress_tells_each_node() -> None:
    told: list[tuple[int, int, str]] = []

    async def progress(done: int, total: int, message: str) -> None:
        told.append((done, total, message))

    async with running() as fleet:
        fleet.http.probe_errors["b"] = fleet.stream.probe_errors["b"] = Unreachable
        await fleet.router().fan_out(NAME, {}, NodeInventory, progress=progress)
    assert [(done, total) for done, total, _ in told] == [(1, 3), (2, 3), (3, 3)]
    assert {message for _, _, message in told} == {"a answered", "b failed", "c answered"}


async def test_one_log_line_ends_a_fan_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mcp_gpu.fleet.router"):
        async with running() as fleet:
            fleet.http.silent.add("b")
            fleet.http.probe_errors["c"] = fleet.stream.probe_errors["c"] = Gone
            await fleet.ask()
    (line,) = [record for record in caplog.records if record.message == "routing complete"]
    facts = vars(line)
    assert (facts["nodes"], facts["success"], facts["failed"]) == (3, 2, 1)
    assert facts["by_path"] == {"http": 1, "command": 1}
    json.dumps({key: facts[key] for key in ("tool", "nodes", "by_path", "seconds")})


@dataclass
class Told:
    """A source of agents that says what it is told to."""

    said: Table

    def table(self) -> Table:
        return self.said

    async def run(self, *, task_status: TaskStatus[None]) -> None: ...


async def test_an_old_table_says_its_age() -> None:
    async with running("a") as fleet:
        table = fleet.discovery.table()
        stale = Told(replace(table, as_of=table.as_of - 90, problem="DNS is down"))
        found = await Router(stale, fleet.reachability).fan_out(NAME, {}, NodeInventory)
    assert found.coverage.discovery_age_seconds >= 90
    assert found.coverage.discovery_problem == "DNS is down"


async def test_a_node_without_an_agent_is_a_failure_and_counts_as_known() -> None:
    async with running("a", "b") as fleet:
        absent = (AbsentAgent("a", "of old"), AbsentAgent("z", "agent pod z cannot start"))
        told = Told(replace(fleet.discovery.table(), absent=absent))
        router = Router(told, fleet.reachability)
        found = await router.fan_out(NAME, {}, NodeInventory)
        assert ways(found) == {"a": "http", "b": "http"}
        (failure,) = found.failures
        assert (failure.node, failure.reason) == ("z", "not_running")
        assert (failure.message, failure.attempts) == ("agent pod z cannot start", ())
        coverage = found.coverage
        assert (coverage.nodes_known, coverage.nodes_asked, coverage.nodes_answered) == (3, 3, 2)

        found = await router.fan_out(NAME, {}, NodeInventory, nodes=["z", "b"])
        assert (set(ways(found)), reasons(found)) == ({"b"}, {"z": "not_running"})
        assert found.coverage.nodes_asked == 2
        found = await router.fan_out(NAME, {}, NodeInventory, nodes=["a"])
        assert found.failures == ()
        with pytest.raises(UnknownNodes) as caught:
            await router.fan_out(NAME, {}, NodeInventory, nodes=["y", "z"])
    assert (caught.value.unknown, caught.value.known) == (["y"], ["a", "b", "z"])


async def test_a_silent_agent_is_explained_by_what_discovery_knows() -> None:
    async with running() as fleet:
        for path in (fleet.http, fleet.stream):
            path.probe_errors |= {"a": Unreachable, "b": Unreachable}
        explanations = {
            fleet.targets[0].key: Explanation("agent pod a does not stay up", stopped=True),
            fleet.targets[1].key: Explanation("the node is not ready", stopped=False),
            fleet.targets[2].key: Explanation("nobody asks", stopped=True),
        }
        told = Told(replace(fleet.discovery.table(), explanations=explanations))
        found = await Router(told, fleet.reachability).fan_out(NAME, {}, NodeInventory)
    a, b = found.failures
    assert (a.reason, a.message) == ("not_running", "agent pod a does not stay up")
    assert [attempt.via for attempt in a.attempts] == ["http", "command"]
    assert (b.reason, b.message) == ("unreachable", "scripted Unreachable; the node is not ready")
    assert ways(found) == {"c": "http"}


async def test_an_agent_that_has_spoken_needs_no_explanation() -> None:
    async with running("a") as fleet:
        fleet.agents["a"].error = ToolError("the GPUs are on holiday")
        explanations = {fleet.targets[0].key: Explanation("it is said not to run", stopped=True)}
        told = Told(replace(fleet.discovery.table(), explanations=explanations))
        found = await Router(told, fleet.reachability).fan_out(NAME, {}, NodeInventory)
    assert reasons(found) == {"a": "tool_error"}


async def test_a_source_that_knows_nobody_is_an_error() -> None:
    async with running("a") as fleet:
        told = Told(Table((), 0.0, "Kubernetes, namespace x", "no agent there matches app=y"))
        with pytest.raises(DiscoveryError, match="namespace x: no agent there matches app=y"):
            await Router(told, fleet.reachability).fan_out(NAME, {}, NodeInventory)

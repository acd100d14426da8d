"""A survey tries every path and says how each answers or fails, over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mcp_gpu.fleet.connectivity.model import NodeSurvey, Outcome, Place, Survey
from mcp_gpu.fleet.connectivity.survey import SAMPLE, Surveyor
from mcp_gpu.fleet.discovery import AbsentAgent, Explanation, Table
from mcp_gpu.fleet.selection import UnknownNodes
from support.fleet import Agent, KnownPaths, Path, PathKnown, inventory
from support.peer import Peer, listen, reset, serve_http, speaking
from transports.base import PAD_CHARS, Target, Transport
from transports.errors import Denied, Gone, Unreachable
from transports.http import HttpSettings, HttpTransport


def table(*targets: Target, **more: Any) -> Table:
    return Table(targets, as_of=0.0, source="a list", **more)


async def survey(
    transports: Sequence[Transport], *targets: Target, seconds: float = 0.5, **more: Any
) -> Survey:
    surveyor = Surveyor(
        KnownPaths(transports),
        place=Place(node="here"),
        probe_timeout_seconds={"http": seconds},
        default_probe_timeout_seconds=seconds,
    )
    with anyio.fail_after(30):
        async with AsyncExitStack() as stack:
            for transport in transports:
                await stack.enter_async_context(transport)
            return await surveyor.survey(table(*targets), **more)


async def over_http(target: Target, seconds: float = 0.5) -> NodeSurvey:
    (node,) = (await survey([HttpTransport()], target, seconds=seconds)).nodes
    return node


def outcomes(node: NodeSurvey) -> dict[str, Outcome]:
    return {path.via: path.outcome for path in node.paths}


@asynccontextmanager
async def agent(spoil: Callable[[ASGIApp], ASGIApp] | None = None) -> AsyncIterator[Target]:
    """An agent over HTTP, spoilt or not."""
    app = Peer("peer-1").app()
    async with serve_http(spoil(app) if spoil else app) as port:
        yield Target(node="peer-1", addresses=("127.0.0.1",), port=port)


def refusing(status: int, where: str) -> Callable[[ASGIApp], ASGIApp]:
    """Answers requests for a path with a status."""

    def spoil(app: ASGIApp) -> ASGIApp:
        async def spoilt(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] == where:
                await Response("no", status)(scope, receive, send)
            else:
                await app(scope, receive, send)

        return spoilt

    return spoil


async def test_an_agent_that_answers_is_ok_and_has_a_latency() -> None:
    async with agent() as target:
        node = await over_http(target, seconds=10)
    (path,) = node.paths
    assert (path.outcome, path.message, node.node) == ("ok", "", "peer-1")
    assert path.seconds is not None
    assert 0 < path.seconds < 10


@pytest.mark.parametrize(("status", "expected"), [(401, "unauthorized"), (403, "forbidden")])
async def test_an_agent_that_lets_probes_in_and_no_calls(status: int, expected: Outcome) -> None:
    async with agent(refusing(status, "/mcp")) as target:
        (path,) = (await over_http(target, seconds=10)).paths
    assert path.outcome == expected
    assert path.message.startswith(f"answers probes but no calls: HTTP {status}")


async def test_a_port_where_nobody_listens_is_refused() -> None:
    with closing(listen("127.0.0.1")) as gone:
        port = gone.getsockname()[1]
    node = await over_http(Target(node="a", addresses=("127.0.0.1",), port=port))
    assert outcomes(node) == {"http": "refused"}


async def test_a_server_that_says_nothing_is_silent() -> None:
    async def swallow(stream: ByteStream) -> None:
        while True:
            await stream.receive()

    async def until_they_leave(stream: ByteStream) -> None:
        try:
            await swallow(stream)
        except anyio.EndOfStream:
            pass

    async with speaking(until_they_leave) as target:
        (path,) = (await over_http(target, seconds=0.2)).paths
    assert (path.outcome, path.message) == ("silent", "no answer to the probe within 0.2 s")


async def test_a_connection_that_is_cut_is_reset() -> None:
    async with speaking(reset) as target:
        assert outcomes(await over_http(target)) == {"http": "reset"}


async def test_a_connection_that_is_kept_hides_nothing() -> None:
    """As where a policy drops new connections and lets those pass that are there."""
    peer = Peer("peer-1").app()
    seen: list[Any] = []

    async def first_come(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            seen.append(scope["client"])
            if scope["client"] != seen[0]:
                await anyio.sleep_forever()
        await peer(scope, receive, send)

    http = HttpTransport()
    async with serve_http(first_come) as port, http:
        target = Target(node="peer-1", addresses=("127.0.0.1",), port=port)
        surveyor = Surveyor(KnownPaths([http]), place=Place(), probe_timeout_seconds={"http": 0.5})
        with anyio.fail_after(30):
            await http.probe(target)
            found = await surveyor.survey(table(target))
            assert outcomes(found.nodes[0]) == {"http": "silent"}
            assert (await http.probe(target)).node == "peer-1"


async def test_tls_asked_of_a_server_without() -> None:
    async with agent() as target:
        found = await survey([HttpTransport(HttpSettings(scheme="https"))], target)
    assert outcomes(found.nodes[0]) == {"http": "tls_scheme"}


async def test_small_answers_that_arrive_where_large_ones_do_not() -> None:
    """As behind a link of a smaller MTU than both ends believe."""
    stalled: list[int] = []
    identity = Peer("peer-1").identity.to_wire()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        pad_chars = int(Request(scope).query_params["pad"])
        if pad_chars:
            stalled.append(pad_chars)
            await anyio.sleep_forever()
        await JSONResponse(identity)(scope, receive, send)

    async with serve_http(answer) as port:
        target = Target(node="peer-1", addresses=("127.0.0.1",), port=port)
        (path,) = (await over_http(target)).paths
    assert path.outcome == "large_lost"
    assert path.message == f"small answers arrive; one of {PAD_CHARS:,} characters does not"
    assert stalled == [PAD_CHARS]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"node": "other"}, "on node 'other', not 'peer-1'"),
        ({"uid": "new"}, "pod new answers where pod old was expected"),
        ({"name": "grafana"}, "'grafana', not 'mcp-gpu'"),
    ],
)
async def test_somebody_else_at_the_address_is_a_wrong_identity(
    change: dict[str, str], words: str
) -> None:
    identity: Any = {**Peer("peer-1").identity.to_wire(), **change, "padding": "x" * PAD_CHARS}

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await Response(json.dumps(identity))(scope, receive, send)

    async with serve_http(answer) as port:
        target = Target(node="peer-1", uid="old", addresses=("127.0.0.1",), port=port)
        (path,) = (await over_http(target, seconds=10)).paths
    assert path.outcome == "wrong_identity"
    assert words in path.message


async def test_another_server_at_the_address_is_foreign() -> None:
    async with agent(refusing(404, "/version")) as target:
        assert outcomes(await over_http(target, seconds=10)) == {"http": "foreign"}


def fleet(count: int) -> tuple[dict[str, Agent], list[Target]]:
    names = [f"n{number:03}" for number in range(count)]
    return {name: Agent(name, inventory(name)) for name in names}, [Target(node=n) for n in names]


async def test_a_small_fleet_is_tried_over_every_path() -> None:
    agents, targets = fleet(64)
    http, stream = Path("http", agents), Path("exec", agents)
    http.probe_errors["n007"] = Unreachable
    stream.probe_errors["n007"] = Gone
    stream.probe_errors["n008"] = Denied
    found = await survey([http, stream], *targets, seconds=20)
    assert len(stream.probes) == 64
    assert outcomes(found.nodes[7]) == {"http": "other", "exec": "not_running"}
    assert outcomes(found.nodes[8]) == {"http": "ok", "exec": "other"}
    healthy = [outcomes(node) for node in found.nodes if node.node not in ("n007", "n008")]
    assert healthy == [{"http": "ok", "exec": "ok"}] * 62
    assert found.place == Place(node="here")


async def test_in_a_large_fleet_streams_are_opened_where_http_fails_and_in_a_sample() -> None:
    agents, targets = fleet(200)
    paths = {name: Path(name, agents) for name in ("http", "portforward", "exec")}
    for name in ("n090", "n091"):
        paths["http"].probe_errors[name] = Unreachable
    paths["portforward"].probe_errors["n091"] = Denied
    found = await survey(list(paths.values()), *targets, seconds=20)
    tried = {name: set(path.probes) for name, path in paths.items()}
    assert len(tried["http"]) == 200
    assert tried["portforward"] >= {"n090", "n091"}
    assert "n091" in tried["exec"]
    assert len(tried["portforward"] - {"n090", "n091"}) == SAMPLE
    left = found.nodes[150 + 1].path("exec")
    assert left is not None
    assert left.outcome == "not_tried"
    assert "a better path works" in left.message
    assert left.seconds is None
    assert outcomes(found.nodes[90])["exec"] == "not_tried"  # portforward works


async def test_all_paths_of_a_large_fleet_are_tried_where_that_is_asked_for() -> None:
    agents, targets = fleet(100)
    http, stream = Path("http", agents), Path("exec", agents)
    await survey([http, stream], *targets, seconds=20, every_path=True)
    assert len(stream.probes) == 100


async def test_the_whole_is_bounded_and_says_what_it_left_out() -> None:
    agents, targets = fleet(40)
    stream = Path("exec", agents)
    stream.silent |= {target.node for target in targets}
    surveyor = Surveyor(KnownPaths([stream]), place=Place(), survey_seconds=0.3)
    async with stream:
        with anyio.fail_after(30):
            found = await surveyor.survey(table(*targets))
    assert [outcomes(node) for node in found.nodes] == [{"exec": "not_tried"}] * 40
    assert "the 0.3 s that a survey may take were over" in found.nodes[0].paths[0].message


async def test_a_defect_of_a_transport_costs_that_path_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agents, targets = fleet(2)
    http, stream = Path("http", agents), Path("exec", agents)
    stream.probe_errors["n000"] = ZeroDivisionError
    found = await survey([http, stream], *targets, seconds=20)
    assert [outcomes(node)["exec"] for node in found.nodes] == ["other", "ok"]
    assert "ZeroDivisionError" in found.nodes[0].paths[1].message
    assert "trying exec to n000 failed" in caplog.text


@pytest.mark.parametrize(
    ("states", "in_use", "why"),
    [
        ([], "", "no call has been made yet"),
        (
            [PathKnown("http", "untried"), PathKnown("exec", "untried")],
            "",
            "no call has been made yet",
        ),
        ([PathKnown("http", "in_use")], "http", "the preferred path, and it works"),
        (
            [PathKnown("http", "failed", "connect timed out", 12.3), PathKnown("exec", "in_use")],
            "exec",
            "http failed 12 s ago: connect timed out",
        ),
        (
            [
                PathKnown("http", "proven", age_seconds=3),
                PathKnown("portforward", "denied", "grant it"),
                PathKnown("exec", "in_use"),
            ],
            "exec",
            "http worked 3 s ago; portforward is denied: grant it",
        ),
        (
            [PathKnown("http", "failed", "refused", 1), PathKnown("exec", "untried")],
            "",
            "http failed 1 s ago: refused; exec has not been tried",
        ),
    ],
)
async def test_it_says_what_calls_use_and_why(
    states: list[PathKnown], in_use: str, why: str
) -> None:
    agents, targets = fleet(1)
    paths = KnownPaths([Path("http", agents), Path("exec", agents)], {"n000": states})
    async with paths.transports[0], paths.transports[1]:
        found = await Surveyor(paths, place=Place()).survey(table(*targets))
    assert (found.nodes[0].in_use, found.nodes[0].why) == (in_use, why)


async def test_nodes_without_an_agent_and_what_discovery_knows_are_told() -> None:
    agents, targets = fleet(2)
    known = table(
        *targets,
        absent=(AbsentAgent("n000", "of old"), AbsentAgent("z", "agent pod z cannot start")),
        explanations={targets[1].key: Explanation("the node is not ready", stopped=False)},
    )
    http = Path("http", agents)
    surveyor = Surveyor(KnownPaths([http]), place=Place())
    async with http:
        found = await surveyor.survey(known)
        assert found.absent == (("z", "agent pod z cannot start"),)
        assert [node.explanation for node in found.nodes] == ["", "the node is not ready"]
        found = await surveyor.survey(known, nodes=["n001", "z"])
        assert [node.node for node in found.nodes] == ["n001"]
        assert [node for node, _ in found.absent] == ["z"]
        with pytest.raises(UnknownNodes, match="unknown nodes: y"):
            await surveyor.survey(known, nodes=["y"])


async def test_a_node_with_two_agents_is_told_by_the_one_that_answers() -> None:
    uids = {"new": Agent("a", inventory("a"), uid="new"), "old": Agent("a", inventory("a"))}
    http = Path("http", uids)
    http.probe_errors["old"] = Gone
    targets = [Target(node="a", uid="old", ready=False), Target(node="a", uid="new")]
    found = await survey([http], *targets, seconds=20)
    assert [(node.target.uid, outcomes(node)) for node in found.nodes] == [("new", {"http": "ok"})]


async def test_an_agent_known_by_its_address_is_called_what_it_says() -> None:
    async with agent() as target:
        nameless = replace(target, node="")
        found = await survey([HttpTransport()], nameless, seconds=10)
        assert [node.node for node in found.nodes] == ["peer-1"]
        found = await survey([HttpTransport()], nameless, seconds=10, nodes=["peer-1"])
        assert [node.node for node in found.nodes] == ["peer-1"]
        found = await survey([HttpTransport()], nameless, seconds=10, nodes=["other"])
        assert (found.nodes, found.absent) == ((), (("other", "no agent said it is on this node"),))


async def test_progress_tells_each_agent() -> None:
    told: list[tuple[int, int, str]] = []

    async def progress(done: int, total: int, message: str) -> None:
        told.append((done, total, message))

    agents, targets = fleet(2)
    http = Path("http", agents)
    http.probe_errors["n001"] = Unreachable
    await survey([http], *targets, seconds=20, progress=progress)
    assert [(done, total) for done, total, _ in told] == [(1, 2), (2, 2)]
    assert {message for *_, message in told} == {"n000 answers", "n001 does not answer"}

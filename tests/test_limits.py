"""Who is answered now, who waits, and who is sent away: the rules, and how HTTP shows them."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

import mcp_gpu.serving.limits
import mcp_gpu.serving.protocol
from mcp_gpu.serving.access.model import Caller
from mcp_gpu.serving.endpoint import Ceilings, HttpEndpoint
from mcp_gpu.serving.limits import Limits, Shed, Visit, name_of
from mcp_gpu.serving.message import NESTING
from support.demo_server import Gate, registry
from support.wire import PATIENCE_SECONDS, call, end_of, headers, request, serving, unix_lines

HERE = "127.0.0.1"


def limits(**ceilings: Any) -> Limits:
    return Limits(Ceilings(**ceilings), clock=lambda: 0.0)


def visit(at: Limits, name: str) -> Visit:
    """A request that is answered or waits."""
    found = at.admit(name)
    assert isinstance(found, Visit)
    assert found.enter() is None
    return found


def end(found: Visit) -> None:
    with found:
        pass


def test_what_is_free_is_used_and_the_rest_waits() -> None:
    at = limits(inflight=2, inflight_per_caller=2)
    first, second, third = (visit(at, "a") for _ in range(3))
    assert (first.is_on, second.is_on, third.waits) == (True, True, True)
    assert (at.running, at.waiting) == (2, 1)
    end(first)
    assert third.is_on
    end(second)
    end(third)
    assert (at.running, at.waiting) == (0, 0)


def test_one_caller_leaves_room_for_others() -> None:
    at = limits(inflight=3, inflight_per_caller=2)
    assert [visit(at, "a").is_on for _ in range(4)] == [True, True, False, False]
    assert visit(at, "b").is_on


def test_callers_take_turns_however_much_each_has_waiting() -> None:
    at = limits(inflight=1, inflight_per_caller=1)
    running = visit(at, "a")
    waiting = [visit(at, name) for name in ("a", "a", "a", "b", "b", "c")]
    order = []
    for _ in waiting:
        end(running)
        (running,) = (each for each in waiting if each.is_on)
        order.append(running.caller.name)
    assert order == ["b", "c", "a", "b", "a", "a"]


def test_a_full_queue_takes_no_more_of_whoever_fills_it() -> None:
    at = limits(inflight=1, inflight_per_caller=1, waiting=3)
    for _ in range(4):
        visit(at, "a")
    shed = at.admit("a")
    assert isinstance(shed, Shed)
    assert (shed.why, at.shed["queue"]) == ("queue", 1)
    assert shed.message == ("Too many requests: 1 are being answered and 3 wait. Try again in 1 s.")


def test_the_newest_of_the_one_with_the_most_makes_room_for_others() -> None:
    at = limits(inflight=1, inflight_per_caller=1, waiting=3)
    visit(at, "a")
    first, second, third = (visit(at, "a") for _ in range(3))
    other = visit(at, "b")
    assert (first.waits, second.waits, third.waits, other.waits) == (True, True, False, True)
    assert third.called.is_set()
    assert at.waiting == 3
    assert isinstance(at.admit("b"), Shed)  # as many as the other has then: nobody makes room


def test_a_queue_of_none_sends_away_at_once() -> None:
    at = limits(inflight=1, waiting=0)
    visit(at, "a")
    assert isinstance(at.admit("b"), Shed)


def test_those_sent_away_are_not_all_told_the_same_time() -> None:
    at = limits(inflight=1, waiting=0)
    visit(at, "a")
    sheds = [at.admit("a") for _ in range(5)]
    assert [each.retry_seconds for each in sheds if isinstance(each, Shed)] == [1, 2, 3, 4, 1]


def test_a_rate_is_each_callers_own_and_comes_back() -> None:
    now = 0.0
    at = Limits(Ceilings(qps=2.0, burst=3), clock=lambda: now)
    for _ in range(3):
        end(visit(at, "a"))
    shed = at.admit("a")
    assert isinstance(shed, Shed)
    assert shed.message == "More than 2 requests a second from one caller. Try again in 1 s."
    end(visit(at, "b"))
    now = 0.5
    end(visit(at, "a"))
    assert isinstance(at.admit("a"), Shed)
    now = 100.0
    for _ in range(3):
        end(visit(at, "a"))
    assert isinstance(at.admit("a"), Shed)
    assert at.shed == {"rate": 3}


def test_callers_of_whom_nothing_is_under_way_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mcp_gpu.serving.limits, "CALLERS", 10)
    at = Limits(Ceilings(qps=1.0, burst=1), clock=lambda: 0.0)
    kept = visit(at, "kept")
    for number in range(100):
        end(visit(at, str(number)))
        assert len(at._callers) <= 10
    assert kept.is_on
    assert isinstance(at.admit("kept"), Shed)  # still the same caller, who is at its rate


def test_subscriptions_take_no_turn_and_have_bounds_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mcp_gpu.serving.limits, "SUBSCRIPTIONS", 3)
    monkeypatch.setattr(mcp_gpu.serving.limits, "SUBSCRIPTIONS_PER_CALLER", 2)
    at = limits(inflight=1)
    found = [at.admit(name) for name in ("a", "a", "a", "b", "c")]
    sheds = [each.subscribe() for each in found if isinstance(each, Visit)]
    assert [each and each.why for each in sheds] == [
        None, None, "subscriptions", None, "subscriptions",
    ]  # fmt: skip
    assert (at.subscriptions, at.running) == (3, 0)
    for each in found:
        assert isinstance(each, Visit)
        each.pass_on()  # not even one whose client does not read
    assert at.subscriptions == 3
    assert visit(at, "a").is_on
    for each in found:
        assert isinstance(each, Visit)
        end(each)
    assert at.subscriptions == 0


async def test_a_turn_that_does_not_come_is_waited_for_so_long() -> None:
    at = limits(inflight=1, wait_seconds=0.01)
    visit(at, "a")
    late = visit(at, "b")
    shed = await late.turn()
    assert shed is not None
    assert shed.why == "wait"
    assert at.waiting == 0
    assert not late.is_on


async def test_who_gives_up_waiting_is_not_called() -> None:
    at = limits(inflight=1)
    running = visit(at, "a")
    with anyio.CancelScope() as scope, visit(at, "b") as gone:
        scope.cancel()
        await gone.turn()
    assert at.waiting == 0
    end(running)
    assert at.running == 0


@pytest.mark.parametrize(
    ("caller", "address", "name"),
    [
        (Caller(kind="kubernetes", name="ann", uid="1"), HERE, "kubernetes ann 1"),
        (Caller(kind="static", name="static"), HERE, HERE),
        (None, "::ffff:10.0.0.1", "10.0.0.1"),
        (None, "fd00:1:2:3:4:5:6:7", "fd00:1:2:3::/64"),
        (None, "fe80::1%eth0", "fe80::/64"),
        (None, "", ""),
    ],
)
def test_callers_are_told_apart_by_token_else_by_address(
    caller: Caller | None, address: str, name: str
) -> None:
    assert name_of(caller, address) == name


class Client:
    """Clients of one server, each at an address of its own."""

    def __init__(self, port: int, stack: AsyncExitStack) -> None:
        self._port = port
        self._stack = stack

    async def at(self, address: str) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(local_address=address)
        base_url = f"http://{HERE}:{self._port}"
        client = httpx.AsyncClient(transport=transport, base_url=base_url, timeout=PATIENCE_SECONDS)
        return await self._stack.enter_async_context(client)


@asynccontextmanager
async def listening(gate: Gate, **ceilings: Any) -> AsyncIterator[Client]:
    endpoint = HttpEndpoint(hosts=(HERE,), port=0, ceilings=Ceilings(**ceilings))
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(serving(registry(gate), http=endpoint))
        yield Client(here.http[0][1], stack)


async def post(
    client: httpx.AsyncClient, message: dict[str, Any], accept: str = "application/json"
) -> httpx.Response:
    return await client.post("/mcp", json=message, headers=headers(message, accept))


async def test_a_request_too_many_gets_429_and_when_to_come_back_and_the_pages_are_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate()
    async with (
        listening(gate, inflight=1, waiting=0) as clients,
        anyio.create_task_group() as tasks,
    ):
        client = await clients.at(HERE)
        tasks.start_soon(post, client, call("wait"))
        await gate.until_entered(1)
        for number in (1, 2):
            refused = await post(client, call("echo", text="hi"))
            assert refused.status_code == 429
            assert refused.headers["Retry-After"] == str(number)
            message = refused.json()["error"]["message"]
            assert message.startswith("Too many requests: 1 are being answered and 0 wait.")
        for page in ("/healthz", "/readyz", "/version", "/metrics"):
            assert (await client.get(page)).status_code == 200
        gate.open.set()
    assert len([each for each in caplog.messages if "sending requests away" in each]) == 1


@pytest.mark.parametrize("accept", ["application/json", "application/json, text/event-stream"])
async def test_those_who_wait_are_answered_in_their_turn(accept: str) -> None:
    gate = Gate()
    answers: list[int] = []
    async with (
        listening(gate, inflight=1, inflight_per_caller=1) as clients,
        anyio.create_task_group() as tasks,
    ):
        client = await clients.at(HERE)

        async def ask() -> None:
            answers.append((await post(client, call("wait"), accept)).status_code)

        for _ in range(4):
            tasks.start_soon(ask)
        await gate.until_entered(1)
        gate.open.set()
    assert answers == [200] * 4
    assert gate.entered == 4


async def test_who_hangs_up_while_waiting_is_not_answered() -> None:
    gate = Gate()
    async with (
        listening(gate, inflight=1, inflight_per_caller=1, waiting=1) as clients,
        anyio.create_task_group() as tasks,
    ):
        client = await clients.at(HERE)
        other = await clients.at("127.0.0.2")
        tasks.start_soon(post, client, call("wait"))
        await gate.until_entered(1)
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(post, other, call("wait"))
            while (await post(client, call("echo", text="hi"))).status_code != 429:
                await anyio.lowlevel.checkpoint()
            waiting.cancel_scope.cancel()
        gate.open.set()
        assert (await post(client, call("echo", text="hi"))).status_code == 200
    assert gate.entered == 1


async def test_who_does_not_read_holds_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_gpu.serving.endpoint, "UNSENT_BYTES", 4096)
    gate = Gate()
    large = call("large", chars=900_000)
    body = json.dumps(large).encode()
    async with listening(gate, inflight=1, inflight_per_caller=1) as clients:
        client = await clients.at(HERE)
        port = client.base_url.port
        async with AsyncExitStack() as stack:
            for accept in ("application/json", "application/json, text/event-stream"):
                stream = await stack.enter_async_context(await anyio.connect_tcp(HERE, port))
                told = {"Host": HERE, "Content-Type": "application/json", **headers(large, accept)}
                told["Content-Length"] = str(len(body))
                lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
                await stream.send(f"POST /mcp HTTP/1.1\r\n{lines}\r\n".encode() + body)
                assert (await stream.receive(10)).startswith(b"HTTP/1.1 2")
            assert (await post(client, call("echo", text="hi"))).status_code == 200


async def test_of_too_many_unread_answers_the_oldest_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mcp_gpu.serving.endpoint, "UNSENT_BYTES", 4096)
    monkeypatch.setattr(mcp_gpu.serving.protocol, "UNREAD_ANSWERS", 1)
    asks = b"GET /version?pad=99999 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500
    async with listening(Gate()) as clients:
        client = await clients.at(HERE)
        port = client.base_url.port
        async with await anyio.connect_tcp(HERE, port) as first:
            await first.send(asks[:5000])
            assert (await first.receive(10)).startswith(b"HTTP/1.1 2")
            async with await anyio.connect_tcp(HERE, port) as second:
                await second.send(asks[:5000])
                assert (await second.receive(10)).startswith(b"HTTP/1.1 2")
                await end_of(first)
                assert await second.receive(10)


async def test_subscriptions_over_http_end_at_their_own_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mcp_gpu.serving.limits, "SUBSCRIPTIONS_PER_CALLER", 1)
    message = request("subscriptions/listen", notifications={"toolsListChanged": True})
    accept = "application/json, text/event-stream"
    async with listening(Gate(), inflight=1) as clients:
        client = await clients.at(HERE)
        told = headers(message, accept)
        async with client.stream("POST", "/mcp", json=message, headers=told) as open_one:
            assert open_one.status_code == 200
            refused = await post(client, message, accept)
            assert refused.status_code == 429
            assert "subscriptions" in refused.json()["error"]["message"]
            assert (await post(client, call("echo", text="hi"))).status_code == 200
        while (await post(client, call("echo", text="hi"))).status_code != 200:
            await anyio.lowlevel.checkpoint()


def nested(levels: int) -> bytes:
    """A call whose lists and objects lie so deep in one another."""
    inner = levels - 3  # the message, its parameters, the arguments
    message = json.dumps(call("echo", 7, text="?")).replace('"?"', "[" * inner + "]" * inner)
    return message.encode()


async def test_what_is_nested_too_deep_is_refused_over_http_and_a_stream(tmp_path: Any) -> None:
    path = tmp_path / "run" / "mcp.sock"
    endpoint = HttpEndpoint(hosts=(HERE,), port=0)
    async with serving(registry(), http=endpoint, socket_path=path) as here:
        url = f"http://{HERE}:{here.http[0][1]}/mcp"
        async with httpx.AsyncClient(trust_env=False) as client, unix_lines(path) as lines:
            for levels, words in ((NESTING, "Bad arguments"), (NESTING + 1, "32 levels deep")):
                told = headers(call("echo", text=""), "application/json")
                told["Content-Type"] = "application/json"
                answer = await client.post(url, content=nested(levels), headers=told)
                assert words in answer.text
                await lines.send(nested(levels))
                found = await lines.receive()
                assert found["id"] == 7
                assert words in json.dumps(found)


async def test_one_id_is_one_request_under_way(tmp_path: Any) -> None:
    gate = Gate()
    path = tmp_path / "run" / "mcp.sock"
    async with serving(registry(gate), socket_path=path), unix_lines(path) as lines:
        await lines.send(call("wait", 1))
        await gate.until_entered(1)
        await lines.send(call("wait", 1), call("wait", "1"))
        for _ in range(2):
            refused = await lines.receive()
            assert refused["id"] is None
            assert "is under way" in refused["error"]["message"]
        gate.open.set()
        assert (await lines.receive())["result"]["isError"] is False
    assert gate.entered == 1


async def test_subscriptions_on_a_stream_leave_it_open_for_calls(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_gpu.serving.stream, "SUBSCRIPTIONS", 2)
    path = tmp_path / "run" / "mcp.sock"
    wants = {"toolsListChanged": True}
    async with serving(registry(), socket_path=path), unix_lines(path) as lines:
        await lines.send(
            *(request("subscriptions/listen", n, notifications=wants) for n in range(3)),
            call("echo", 9, text="hi"),
        )
        assert "Too many subscriptions" in (await lines.until(2))["error"]["message"]
        assert (await lines.until(9))["result"]["isError"] is False

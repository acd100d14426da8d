"""Who subscribes to a resource is told when it changes, in both eras; nobody looks otherwise."""

from __future__ import annotations

import json
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError
from mcp.shared.exceptions import MCPDeprecationWarning

from mcp_gpu.fleet.discovery import DiscoveryError, Table
from mcp_gpu.fleet.discovery.static import StaticDiscovery
from mcp_gpu.fleet.reachability import Reachability
from mcp_gpu.fleet.router import Router
from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.simulator import Node, installed
from mcp_gpu.gpu.simulator.faults import Lost
from mcp_gpu.node.sight import Lookout
from mcp_gpu.registry import Registry, from_listing, updates
from mcp_gpu.resources import agent as of_agent
from mcp_gpu.resources import gateway as of_gateway
from mcp_gpu.serving.server import HttpEndpoint
from mcp_gpu.tools import agent, gateway
from support.fleet import Path as Way
from support.health import HealthAgent, assessment, blind, finding
from support.wire import ERAS, PATIENCE_SECONDS, request, serving, unix_lines, unix_transport
from transports.base import Identity, Target

NOBODY: Any = None


@dataclass
class Heard:
    """What one client is told of."""

    uris: list[str] = field(default_factory=list)
    changed: anyio.Event = field(default_factory=anyio.Event)

    def note(self, uri: str) -> None:
        self.uris.append(uri)
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, count: int) -> list[str]:
        while len(self.uris) < count:
            await self.changed.wait()
        return self.uris


@asynccontextmanager
async def hearing(path: Path, era: Any, *uris: str) -> AsyncIterator[tuple[Client, Heard]]:
    """A client over the Unix socket that has subscribed to these."""
    heard = Heard()

    async def note(message: Any) -> None:
        method = getattr(message, "method", "")
        if era == "legacy" and method == "notifications/resources/updated":
            heard.note(str(message.params.uri))

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            Client(unix_transport(path), mode=era, message_handler=note)
        )
        if era == "legacy":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MCPDeprecationWarning)
                for uri in uris:
                    await client.subscribe_resource(uri)
            yield client, heard
            return
        listened = await stack.enter_async_context(client.listen(resource_subscriptions=uris))
        assert listened.honored.resource_subscriptions == list(uris)

        async def follow() -> None:
            async for event in listened:
                heard.note(event.uri)  # type: ignore[union-attr]

        tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(follow)
        yield client, heard
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def watching(registry: Registry, path: Path) -> AsyncIterator[None]:
    """The server on a socket, looking for changes."""
    async with serving(registry, socket_path=path), anyio.create_task_group() as tasks:
        tasks.start_soon(registry.watch)
        yield
        tasks.cancel_scope.cancel()


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "own" / "s.sock"


@pytest.mark.parametrize("era", ERAS)
async def test_an_agent_tells_of_its_own_health(era: str, socket: Path) -> None:
    node = Node("h100-a", "h100", gpus=2)
    with installed(node), anyio.fail_after(2 * PATIENCE_SECONDS):
        collector = Collector(fast_seconds=0.05, slow_seconds=0.05)
        collector.start()
        try:
            await collector.first(PATIENCE_SECONDS)
            makers = agent.makers(
                agent.Sources(
                    node=node.name,
                    collector=collector,
                    recorder=NOBODY,
                    watch=blind(),
                    lookout=Lookout(lambda: collector.snapshot, tuple, pod_resources=Path("/none")),
                    attribution=NOBODY,
                    occupants=NOBODY,
                    simulated=None,
                    expected_gpus=None,
                )
            )
            registry = Registry(
                name="mcp-gpu",
                version="0",
                instructions="",
                tools=from_listing(agent.LISTING, makers),
                identity=lambda: Identity(name="mcp-gpu", version="0", node=node.name),
                surface=of_agent.surface(node.name, collector, makers["get_gpu_health"]),
            )
            uri = "gpu://node/h100-a"
            async with watching(registry, socket), hearing(socket, era, uri) as (client, heard):
                assert heard.uris == []
                node.faults = (Lost(kind="lost", gpu=1),)
                # The driver's word and the readings may come one after the other.
                told, verdict = 0, "healthy"
                while verdict != "failed":
                    told += 1
                    assert (await heard.until(told))[-1] == uri
                    (found, *_) = (await client.read_resource(uri)).contents
                    verdict = json.loads(found.text)["verdict"]  # type: ignore[union-attr]
        finally:
            collector.stop()
            assert collector.join(10)


class Changing(StaticDiscovery):
    """A list of nodes that may lose all of them."""

    lost = False

    def table(self) -> Table:
        if self.lost:
            raise DiscoveryError("the list has gone")
        return super().table()


@dataclass
class Fleet:
    """A gateway in this process over agents of made-up health."""

    path: Path
    agents: Mapping[str, HealthAgent]
    discovery: Changing
    registry: Registry

    @property
    def looks(self) -> list[int]:
        """How often each node was asked."""
        return [len(agent.calls) for agent in self.agents.values()]


@asynccontextmanager
async def fleet(path: Path, *, period_seconds: float = 0.02) -> AsyncIterator[Fleet]:
    agents = {name: HealthAgent(name, assessment()) for name in ("a", "b")}
    http = Way("http", {**agents})
    async with http, Reachability([http], probe_timeout_seconds={"http": 5.0}) as reachability:
        discovery = Changing([Target(node=name) for name in agents])
        router = Router(discovery, reachability)
        registry = Registry(
            name="mcp-gpu-gateway",
            version="0",
            instructions="",
            tools=from_listing(gateway.LISTING, gateway.makers(router, NOBODY, NOBODY)),
            identity=lambda: Identity(name="mcp-gpu-gateway", version="0", node="here"),
            surface=of_gateway.surface(router, period_seconds=period_seconds),
        )
        with anyio.fail_after(2 * PATIENCE_SECONDS):
            async with watching(registry, path):
                yield Fleet(path, agents, discovery, registry)


@pytest.mark.parametrize("era", ERAS)
async def test_a_gateway_tells_of_the_nodes_that_change(era: str, socket: Path) -> None:
    uris = ("gpu://fleet", "gpu://node/a", "gpu://node/b")
    async with fleet(socket) as running, hearing(socket, era, *uris) as (_, heard):
        running.agents["b"].found = assessment(finding("ecc_uncorrected", gpu=3))
        assert sorted(await heard.until(2)) == ["gpu://fleet", "gpu://node/b"]
        # The same verdict with another finding is a change, too.
        running.agents["b"].found = assessment(finding("ecc_uncorrected", gpu=4))
        assert sorted((await heard.until(4))[2:]) == ["gpu://fleet", "gpu://node/b"]
        running.agents["a"].error = RuntimeError("it is broken")
        assert sorted((await heard.until(6))[4:]) == ["gpu://fleet", "gpu://node/a"]
        running.discovery.lost = True
        assert sorted((await heard.until(9))[6:]) == sorted(uris)


async def test_what_is_only_worth_knowing_of_a_node_is_told(socket: Path) -> None:
    async with fleet(socket) as running, hearing(socket, ERAS[0], "gpu://node/a") as (_, heard):
        running.agents["a"].found = assessment(finding("persistence_off", "info", None))
        assert await heard.until(1) == ["gpu://node/a"]


async def test_nobody_is_asked_while_nobody_subscribes(socket: Path) -> None:
    async with fleet(socket) as running:
        async with Client(unix_transport(socket), mode=ERAS[0]) as client:
            await client.list_resources()
            async with client.listen(tools_list_changed=True) as listened:
                assert listened.honored.tools_list_changed is None
        assert running.looks == [0, 0]


@pytest.mark.parametrize("era", ERAS)
async def test_all_subscribers_share_one_look(era: str, socket: Path) -> None:
    """The period is longer than the test: a look of one's own would be one too many."""
    async with fleet(socket, period_seconds=3600) as running, AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(hearing(socket, era, "gpu://fleet"))
        assert running.looks == [1, 1]


async def test_only_the_nodes_wanted_are_asked(socket: Path) -> None:
    async with fleet(socket, period_seconds=3600) as running:
        opened = hearing(socket, ERAS[0], "gpu://node/b")
        async with opened:
            assert running.looks == [0, 1]


async def test_a_client_that_has_gone_is_looked_for_no_more(socket: Path) -> None:
    """Of the handshake's era, where the end of the connection is the end of its subscriptions."""
    async with fleet(socket) as running:
        async with hearing(socket, "legacy", "gpu://node/a"):
            pass
        async with hearing(socket, "legacy", "gpu://node/b") as (_, heard):
            asked = len(running.agents["a"].calls)
            for gpu in range(3):
                running.agents["b"].found = assessment(finding("ecc_uncorrected", gpu=gpu))
                await heard.until(gpu + 1)
            assert len(running.agents["a"].calls) == asked


@pytest.mark.parametrize("era", ERAS)
async def test_a_subscription_ends_when_the_client_says_so(era: str, socket: Path) -> None:
    async with fleet(socket) as running, hearing(socket, "legacy", "gpu://node/b") as (_, heard):
        async with hearing(socket, era, "gpu://node/a") as (client, _):
            if era == "legacy":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", MCPDeprecationWarning)
                    await client.unsubscribe_resource("gpu://node/a")
                    await client.unsubscribe_resource("gpu://node/a")
        running.agents["b"].found = assessment(finding("ecc_uncorrected"))
        await heard.until(1)
        asked = len(running.agents["a"].calls)
        running.agents["b"].found = assessment()
        await heard.until(2)
        assert len(running.agents["a"].calls) == asked


async def test_only_what_is_watched_is_acknowledged(socket: Path) -> None:
    asked = ["gpu://node/a/gpu/0", "xid://79", "gpu://node/nobody", "gpu://x", "gpu://node/a"]
    async with fleet(socket), Client(unix_transport(socket), mode=ERAS[0]) as client:
        listening = client.listen(
            resource_subscriptions=[*asked, "gpu://node/a"],
            prompts_list_changed=True,
            resources_list_changed=True,
        )
        async with listening as listened:
            assert listened.honored.model_dump(exclude_none=True) == {
                "resource_subscriptions": ["gpu://node/a"]
            }


@pytest.mark.parametrize(
    ("uri", "code"),
    [("gpu://node/nobody", -32002), ("gpu://x", -32002), ("xid://79", -32600)],
)
@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
async def test_what_is_not_watched_cannot_be_subscribed_to(
    uri: str, code: int, socket: Path
) -> None:
    async with fleet(socket), Client(unix_transport(socket), mode="legacy") as client:
        with pytest.raises(MCPError) as caught:
            await client.subscribe_resource(uri)
        assert caught.value.code == code


@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
async def test_over_http_the_older_era_is_told_what_to_do_instead(socket: Path) -> None:
    async with fleet(socket) as running:
        async with serving(running.registry, http=HttpEndpoint(port=0)) as listening:
            host, port = listening.http[0]
            url = f"http://{host}:{port}/mcp"
            async with Client(url, mode="legacy") as client:
                with pytest.raises(MCPError, match="subscriptions/listen"):
                    await client.subscribe_resource("gpu://fleet")
            async with Client(url, mode=ERAS[0]) as client:
                opened = client.listen(resource_subscriptions=["gpu://fleet"])
                async with opened as listened:
                    running.agents["a"].found = assessment(finding("ecc_uncorrected"))
                    assert (await anext(aiter(listened))).uri == "gpu://fleet"  # type: ignore[union-attr]
        assert max(running.looks) > 0


async def test_a_look_that_fails_is_not_the_last(
    socket: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet(socket) as running, hearing(socket, ERAS[0], "gpu://node/a") as (_, heard):
        broken = anyio.Event()

        def fail(*_: object) -> Any:
            broken.set()
            raise RuntimeError("a defect")

        with monkeypatch.context() as patched:
            patched.setattr(Router, "unknown", fail)
            await broken.wait()
        running.agents["a"].found = assessment(finding("ecc_uncorrected"))
        assert await heard.until(1) == ["gpu://node/a"]
    assert "looking for changes of resources failed" in caplog.text


@pytest.mark.parametrize("era", ERAS)
async def test_what_was_first_looked_at_too_late_is_told_as_changed(
    era: str, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have changed before the look, and after the client read it."""
    monkeypatch.setattr(updates, "FIRST_LOOK_SECONDS", 0)
    async with fleet(socket) as running:
        running.agents["a"].gate = gate = anyio.Event()
        async with hearing(socket, era, "gpu://node/a") as (_, heard):
            await running.agents["a"].entered.wait()
            assert heard.uris == []
            gate.set()
            assert await heard.until(1) == ["gpu://node/a"]


async def test_a_subscription_that_waits_for_its_first_look_holds_up_no_end(socket: Path) -> None:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(fleet(socket))
        gate = running.agents["a"].gate = anyio.Event()
        lines = await stack.enter_async_context(unix_lines(socket))
        wanted = {"resourceSubscriptions": ["gpu://node/a"]}
        await lines.send(request("subscriptions/listen", 7, notifications=wanted))
        await running.agents["a"].entered.wait()
        handler = running.registry.server.get_request_handler("subscriptions/listen")
        assert handler is not None
        handler.handler.close()  # type: ignore[attr-defined]
        assert "stopping" in (await lines.until(7))["error"]["message"]
        gate.set()


@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
async def test_a_client_hears_of_a_hundred_resources_at_most(socket: Path) -> None:
    """Where no agents are known any name may be a node's."""
    uris = [f"gpu://node/n{number}" for number in range(150)]
    async with fleet(socket) as running:
        running.discovery.lost = True
        async with Client(unix_transport(socket), mode=ERAS[0]) as client:
            opened = client.listen(resource_subscriptions=uris)
            async with opened as listened:
                assert listened.honored.resource_subscriptions == uris[:100]
        async with Client(unix_transport(socket), mode="legacy") as client:
            for uri in uris[:100]:
                await client.subscribe_resource(uri)
            with pytest.raises(MCPError, match="100 resources"):
                await client.subscribe_resource(uris[100])


@pytest.mark.parametrize("era", ERAS)
async def test_what_cannot_be_read_now_is_not_called_unknown(era: Any, socket: Path) -> None:
    async with fleet(socket) as running, Client(unix_transport(socket), mode=era) as client:
        running.discovery.lost = True
        for uri in ("gpu://fleet", "gpu://node/a"):
            with pytest.raises(MCPError, match="the list has gone") as caught:
                await client.read_resource(uri)
            assert caught.value.code == -32603

"""The race over real sockets: HTTP that is refused, silent or swallowed, and what is left of it."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import anyio
from anyio.abc import ByteStream

from mcp_gpu.fleet.discovery.static import StaticDiscovery
from mcp_gpu.fleet.reachability import Reachability
from mcp_gpu.fleet.router import Router
from mcp_gpu.serving.server import HttpEndpoint, Listening, serve
from mcp_gpu.tools.inventory import NAME, NodeInventory
from support.fleet import Agent, Path, inventory
from support.peer import speaking, swallowing, until
from support.ports import free_ports
from support.routed import ways
from transports.base import Target
from transports.errors import Gone
from transports.http import HttpTransport


@asynccontextmanager
async def listening(agents: Sequence[Agent]) -> AsyncIterator[dict[str, Target]]:
    """Every agent on a port of its own."""
    endpoint = HttpEndpoint(hosts=("127.0.0.1",), port=0)
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        targets = {}
        for agent in agents:
            start = partial(serve, agent.registry, http=endpoint, stop=stop, signals=False)
            started: Listening = await group.start(start)
            (_, port), *_ = started.http
            targets[agent.node] = at(agent.node, port)
        yield targets
        stop.set()


def at(node: str, port: int) -> Target:
    return Target(node=node, addresses=("127.0.0.1",), port=port)


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


class Silence:
    """A server that takes connections and says nothing."""

    def __init__(self) -> None:
        self.connections = 0

    async def __call__(self, stream: ByteStream) -> None:
        self.connections += 1
        try:
            async for _ in stream:
                pass
        except anyio.BrokenResourceError:
            pass
        finally:
            self.connections -= 1


async def test_a_connection_that_is_overtaken_is_closed() -> None:
    silence = Silence()
    agents = {"a": Agent("a", inventory("a"))}
    async with (
        speaking(silence) as target,
        HttpTransport() as http,
        Path("command", agents) as stream,
        Reachability([http, stream]) as reachability,
    ):
        router = Router(StaticDiscovery([target]), reachability)
        found = await router.fan_out(NAME, {}, NodeInventory)
        assert ways(found) == {"a": "command"}
        await until(lambda: silence.connections == 0)
        (state, _) = reachability.state(target)
        assert (state.status, state.reason) == ("failed", "timeout")


async def test_fifty_agents_of_which_many_are_dead_in_different_ways_a_hundred_times() -> None:
    """Every call is whole, and nothing is left of them but what is kept on purpose."""
    names = [f"node-{number:02}" for number in range(50)]
    dead, cut = names[:15], names[15:20]
    agents = {name: Agent(name, inventory(name)) for name in names}
    silence = Silence()
    async with (
        listening([agents[name] for name in names[20:]]) as targets,
        speaking(silence) as silent,
        swallowing() as hole,
    ):
        ports = [silent.port, hole, *free_ports(1)]
        for number, name in enumerate([*dead, *cut]):
            targets[name] = at(name, ports[number % len(ports)])
        files, tasks = open_files(), len(asyncio.all_tasks())
        async with Path("command", agents) as stream:
            stream.silent |= set(dead[::2])
            stream.probe_errors |= dict.fromkeys(dead[1::2], Gone)
            async with (
                HttpTransport() as http,
                Reachability(
                    [http, stream],
                    probe_timeout_seconds={"http": 0.5},
                    default_probe_timeout_seconds=0.5,
                ) as reachability,
            ):
                router = Router(StaticDiscovery(list(targets.values())), reachability)
                found = [await router.fan_out(NAME, {}, NodeInventory) for _ in range(100)]
                assert stream.connects.count(names[-1]) == 0
        for each in found:
            assert {failure.node for failure in each.failures} == set(dead)
            assert len(each.answers) == 35
            assert "call's deadline" not in "".join(f.message for f in each.failures)
        assert Counter(ways(found[-1]).values()) == {"http": 30, "command": 5}
        assert not stream.under_way
        await until(lambda: silence.connections == 0)
        await until(lambda: (open_files(), len(asyncio.all_tasks())) == (files, tasks))

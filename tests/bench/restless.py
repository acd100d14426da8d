"""Agents that restart, as a cluster shows them, and a gateway over them: all real processes.

Some agents are reached over HTTP, some only through a port-forward, some only through an exec. The
API server is the fake one, in this process; what its exec starts is the real `mcp-gpu attach`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import anyio

from bench.inuse import program
from bench.truth import Life, Register
from mcp_gpu.gpu.simulator import load_fleet
from support.cluster import Running, clean_up, start_all
from support.kubeapi.documents import endpoint, endpoint_slice, node, pod, running, waiting
from support.kubeapi.pods import Pod
from support.kubeapi.server import FakeApiServer
from support.kubeapi.streams import stream_routes
from support.ports import steady_ports

__all__ = ["PATHS", "Place", "RestlessFleet", "Way", "restless_fleet"]

PATHS = ("http", "portforward", "exec")
"""Best first. The first that works for an agent, and those after it, are there for it."""

PROFILE = "t4"
GPUS = 2

Way = Literal["end", "kill", "replace"]
"""How an agent restarts: its container ends in good order; it is killed; its pod makes way for
another one."""


@dataclass(slots=True)
class Place:
    """A node, and the agent that is on it now."""

    name: str
    path: str
    """The best one to it."""
    port: int
    forwarded: bool
    """Whether a port-forward reaches the port."""
    restless: bool
    generation: int = 0
    """Of its agents so far."""
    pod_number: int = 0
    process: Running | None = None
    life: Life | None = None

    @property
    def pod_name(self) -> str:
        return f"agent-{self.name}-{self.pod_number}"

    @property
    def uid(self) -> str:
        return f"uid-{self.name}-{self.pod_number}"


@dataclass(slots=True)
class RestlessFleet:
    """Places, what the API server knows of them, and the gateway."""

    folder: Path
    api: FakeApiServer
    pods: dict[tuple[str, str], Pod]
    """Those of now, by namespace and name."""
    places: Sequence[Place]
    dead_port: int
    register: Register
    gateway: Running
    in_use: Path
    """What `bench.inuse` tells of the gateway."""
    all_pods: list[Pod] = field(default_factory=list)

    async def restart(self, place: Place, way: Way) -> None:
        """End the agent, and have another one in its place that is ready."""
        assert place.process is not None
        assert place.life is not None
        place.life.ending = time.monotonic()
        if way == "replace":
            await self._show(place, ready=False, deleted=True)
        await place.process.end(signal.SIGKILL if way == "kill" else signal.SIGTERM)
        place.life.ended = time.monotonic()
        if way == "replace":
            await self.api.delete("Pod", place.pod_name)
            del self.pods[self.api.namespace, place.pod_name]
            place.pod_number += 1
            await self._show(place, ready=False)
        await self._start(place)
        await self._show(place, ready=True)

    def relays(self) -> int:
        """Processes that exec has started and that have not ended."""
        return sum(len(each.alive) for each in self.all_pods)

    def logs(self) -> Iterable[Path]:
        return self.folder.glob("*.log")

    async def begin(self, place: Place) -> None:
        """The first agent of a place."""
        await self.api.apply(node(place.name, gpus=GPUS))
        await self._show(place, ready=False)
        await self._start(place)
        await self._show(place, ready=True)

    async def clean_up(self) -> None:
        """End what is left of the agents."""
        for place in self.places:
            if place.process is not None:
                await clean_up(place.process)

    async def _start(self, place: Place) -> None:
        place.generation += 1
        fleet_file = self.folder / f"{place.name}-{place.generation}.toml"
        own = f'[[nodes]]\nname = "{place.name}"\nprofile = "{PROFILE}"\ngpus = {GPUS}\n'
        fleet_file.write_text(f"seed = {place.generation}\n{own}")
        boards = load_fleet(fleet_file).nodes[place.name].gpus
        socket = self.folder / place.pod_name / "agent.sock"
        arguments = ["agent", "--node-name", place.name, "--simulate", str(fleet_file)]
        arguments += ["--pod-name", place.pod_name, "--pod-uid", place.uid]
        arguments += ["--socket", str(socket), "--http-port", str(place.port)]
        place.process = Running(arguments, place.port, self.folder / f"{place.name}.log")
        key = self.api.namespace, place.pod_name
        if key not in self.pods:
            ports = {place.port: place.port} if place.path == "http" else {}
            if place.forwarded and place.path != "http":
                ports = {self.dead_port: place.port}
            self.pods[key] = Pod(env={"MCP_GPU_SOCKET": str(socket)}, ports=ports)
            self.all_pods.append(self.pods[key])
        place.life = self.register.begin(
            place.name, tuple(str(board.answers["nvmlDeviceGetUUID"]) for board in boards)
        )
        await place.process.start()
        place.life.ready = time.monotonic()

    async def _show(self, place: Place, *, ready: bool, deleted: bool = False) -> None:
        """Pod and endpoint as the API server has them."""
        port = place.port if place.path == "http" else self.dead_port
        conditions = {"ready": ready, "serving": ready, "terminating": deleted}
        here = endpoint("127.0.0.1", place.name, uid=place.uid, pod=place.pod_name, **conditions)
        state = running() if ready or deleted else waiting("ContainerCreating")
        await self.api.apply(
            pod(
                place.name,
                name=place.pod_name,
                uid=place.uid,
                state=state,
                ready=ready,
                deleted=deleted,
            )
        )
        await self.api.apply(endpoint_slice(f"slice-{place.name}", [here], port=port))


@asynccontextmanager
async def restless_fleet(
    folder: Path,
    *flags: str,
    settle_seconds: float,
    look_seconds: float,
    steady: bool = True,
) -> AsyncIterator[RestlessFleet]:
    """Two agents on each path, one of which restarts when told to, and a gateway over them.

    Args:
        flags: more of the gateway's.
        settle_seconds: how long after a restart a node may still be told to be away.
        look_seconds: between two looks at what memory the gateway uses.
        steady: whether the other ones are there, too.
    """
    kinds = [(path, restless) for path in PATHS for restless in (False, True)[not steady :]]
    dead_port, gateway_port, *ports = steady_ports(len(kinds) + 2)
    places = [
        Place(
            name=f"{path}-{'restless' if restless else 'steady'}",
            path=path,
            port=port,
            forwarded=path != "exec",
            restless=restless,
        )
        for (path, restless), port in zip(kinds, ports, strict=True)
    ]
    paths = {place.name: PATHS[PATHS.index(place.path) :] for place in places}
    pods: dict[tuple[str, str], Pod] = {}
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(FakeApiServer(routes=stream_routes(pods)))
        arguments = ["gateway", "--kubeconfig", str(api.kubeconfig)]
        arguments += ["--http-port", str(gateway_port), *flags]
        in_use = folder / "in-use"
        gateway = program(in_use, look_seconds)
        fleet = RestlessFleet(
            folder,
            api,
            pods,
            places,
            dead_port,
            Register(paths, settle_seconds),
            Running(arguments, gateway_port, folder / "gateway.log", program=gateway),
            in_use,
        )
        stack.push_async_callback(fleet.clean_up)
        async with anyio.create_task_group() as beginning:
            for place in places:
                beginning.start_soon(fleet.begin, place)
        await start_all(stack, [fleet.gateway])
        yield fleet

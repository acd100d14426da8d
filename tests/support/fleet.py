"""Agents in this process and transports that fail on command, for tests of the gateway's side."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import anyio
from pydantic import BaseModel, ConfigDict

from mcp_gpu.gpu.model import Gpu
from mcp_gpu.registry import Answer, Arguments, Call, Registry, Tool
from mcp_gpu.tools.inventory import AgentArguments, GpuModel, NodeInventory
from transports.base import PAD_CHARS, Identity, Target, Transport, TransportStreams
from transports.errors import Broken, TransportError
from transports.memory import MemoryTransport

H100 = "NVIDIA H100 80GB HBM3"
GIB = 2**30


def inventory(node: str, **changes: Any) -> NodeInventory:
    """A healthy node of 8 H100, but for `changes`."""
    fields: dict[str, Any] = {
        "node": node,
        "state": "ok",
        "message": None,
        "simulated": True,
        "driver_version": "580.105.08",
        "nvml_version": "13.580.105.08",
        "cuda_version": "13.0",
        "gpu_count": 8,
        "gpu_count_expected": 8,
        "gpus_lost": 0,
        "models": (GpuModel(name=H100, count=8, memory_total_bytes=80 * GIB),),
        "attention": (),
        "age_seconds": 0.5,
    }
    return NodeInventory(**(fields | changes))


def full_gpus(count: int = 8) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(index=i, uuid=f"GPU-{i}", name=H100, memory_total_bytes=80) for i in range(count)
    )


class Foreign(BaseModel):
    """What another program's tool of the same name might answer."""

    model_config = ConfigDict(extra="allow")


@dataclass
class Agent:
    """An in-process agent: its inventory may be changed while it runs."""

    node: str
    data: BaseModel
    uid: str = ""
    started_at: float = 1.0
    version: str = "0.1.0"
    name: str = "mcp-gpu"
    tool: str = "get_gpu_inventory"
    arguments: type[Arguments] = AgentArguments
    result: type[BaseModel] = NodeInventory
    error: Exception | None = None
    calls: list[Arguments] = field(default_factory=list)
    gate: anyio.Event | None = None
    """When set, a call waits for it."""
    entered: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        tool = Tool(
            name=self.tool,
            title="t",
            description="d",
            arguments=self.arguments,
            result=self.result,
            run=self._run,
        )
        self.registry = Registry(
            name=self.name,
            version=self.version,
            instructions="",
            tools=[tool],
            identity=self.whoami,
        )
        self.server = self.registry.server

    def whoami(self) -> Identity:
        return Identity(
            name=self.name,
            version=self.version,
            node=self.node,
            uid=self.uid,
            instance=f"{self.node}-{self.started_at}",
            started_at=self.started_at,
            simulated=True,
        )

    async def _run(self, arguments: Arguments, call: Call) -> Answer:
        self.calls.append(arguments)
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Answer(f"answer of {self.node}", self.answer(arguments))

    def answer(self, arguments: Arguments) -> BaseModel:
        """What it answers to these arguments."""
        return self.data


class Path:
    """A transport called `name` over in-process agents, whose paths can be cut per target."""

    def __init__(self, name: str, agents: dict[str, Agent]) -> None:
        self._name = name
        self._servers = {key: agent.server for key, agent in agents.items()}
        self._memory = MemoryTransport(self._servers)
        self.probe_errors: dict[str, type[Exception]] = {}
        self.call_errors: dict[str, type[Exception]] = {}
        self.breaks: set[str] = set()
        """Targets whose next connection dies under the call, and no other."""
        self.stalls: set[str] = set()
        """Targets whose next connection falls silent, and no other."""
        self.silent: set[str] = set()
        """Targets that neither answer nor refuse."""
        self.gates: dict[str, anyio.Event] = {}
        """Targets whose probes and calls wait for the event before anything else."""
        self.probes: list[str] = []
        self.begun: list[tuple[str, str]] = []
        """Path and target of each probe. Several paths may share one list."""
        self.connects: list[str] = []
        self.under_way: Counter[str] = Counter()
        """Probes and calls that have begun and not ended."""

    @property
    def name(self) -> str:
        return self._name

    def applies(self, target: Target) -> bool:
        return self._memory.applies(target)

    async def probe(self, target: Target, *, pad_chars: int = PAD_CHARS) -> Identity:
        self.probes.append(label(target))
        self.begun.append((self.name, label(target)))
        async with self._under_way(target):
            self._refuse(self.probe_errors, target)
            return await self._memory.probe(target, pad_chars=pad_chars)

    @contextlib.asynccontextmanager
    async def connect(self, target: Target) -> AsyncIterator[TransportStreams]:
        self.connects.append(label(target))
        async with self._under_way(target):
            self._refuse(self.call_errors, target)
            if label(target) in self.breaks:
                self.breaks.remove(label(target))
                raise Broken("scripted end", target=target, transport=self.name)
            if label(target) in self.stalls:
                self.stalls.remove(label(target))
                await anyio.sleep_forever()
            async with self._memory.connect(target) as streams:
                yield streams

    @contextlib.asynccontextmanager
    async def _under_way(self, target: Target) -> AsyncIterator[None]:
        self.under_way[label(target)] += 1
        try:
            if label(target) in self.gates:
                await self.gates[label(target)].wait()
            if label(target) in self.silent:
                await anyio.sleep_forever()
            yield
        finally:
            self.under_way[label(target)] -= 1
            self.under_way += Counter()  # drops what is down to none

    def lead_to(self, key: str, agent: Agent) -> None:
        """From now on another agent answers there."""
        self._servers[key] = agent.server

    def _refuse(self, errors: dict[str, type[Exception]], target: Target) -> None:
        cls = errors.get(label(target))
        if cls is not None and issubclass(cls, TransportError):
            raise cls(f"scripted {cls.__name__}", target=target, transport=self.name)
        if cls is not None:
            raise cls("scripted defect")

    async def __aenter__(self) -> Self:
        await self._memory.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._memory.__aexit__(exc_type, exc, traceback)


@dataclass
class PathKnown:
    """What is known of one path to one agent."""

    via: str
    status: str
    message: str = ""
    age_seconds: float | None = None


@dataclass
class KnownPaths:
    """Transports, and what calls have learned of them, by node."""

    transports: Sequence[Transport]
    states: Mapping[str, Sequence[PathKnown]] = field(default_factory=dict)

    def node(self, target: Target) -> str:
        return target.node

    def state(self, target: Target) -> Sequence[PathKnown]:
        return self.states.get(target.node, ())


def label(target: Target) -> str:
    """What tests call a target: its uid, else its node, else its address."""
    return target.uid or target.node or target.key

"""A node as Kubernetes and its own agent know it, and a gateway's page of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from mcp import Client
from mcp.types import CallToolResult
from pydantic import BaseModel

from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.simulator import Node, installed
from mcp_gpu.node.surroundings import simulated
from mcp_gpu.registry import Answer, Arguments, Call, Tool
from mcp_gpu.tools.fleet_node import gateway_tool
from mcp_gpu.tools.node import agent_tool
from mcp_gpu.workloads.reads import Workloads
from support import served
from support.fleet import Agent, Path, inventory
from support.health import BLIND, blind
from support.kubeapi.documents import Document
from support.kubeapi.server import FakeApiServer
from transports.errors import Unreachable
from transports.kubernetes import KubernetesApi

__all__ = [
    "CLOCK",
    "NOW",
    "Page",
    "dra_device",
    "event",
    "gpu_node",
    "gpu_pod",
    "holder",
    "holders",
    "page",
    "slice_of",
]

NOW = 1_790_000_000.0
"""When a gateway is asked, by its clock: 2026-09-21T14:13:20Z."""

CLOCK = "2026-09-21T{}Z"


def gpu_node(
    name: str = "n1",
    *,
    capacity: Mapping[str, int] | None = None,
    allocatable: Mapping[str, int] | None = None,
    labels: Mapping[str, str] | None = None,
    **more: Any,
) -> Document:
    """A node of 8 GPUs, all well, but for what is said. `labels` join those of GFD.

    Args:
        more: of its spec.
    """
    handed = {"nvidia.com/gpu": 8} if capacity is None else dict(capacity)
    free = handed if allocatable is None else dict(allocatable)
    own = {"nvidia.com/gpu.count": "8", "nvidia.com/gpu.replicas": "1"}
    own |= {"topology.kubernetes.io/zone": "eu-west-1a"} | dict(labels or {})
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "kubelet is posting ready status",
        "lastTransitionTime": CLOCK.format("08:00:00"),
    }
    info = {
        "kernelVersion": "6.8.0-60-generic",
        "osImage": "Ubuntu 24.04.2 LTS",
        "containerRuntimeVersion": "containerd://2.0.5",
        "kubeletVersion": "v1.34.2",
        "architecture": "amd64",
    }
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name, "labels": {k: v for k, v in own.items() if v}},
        "spec": more,
        "status": {
            "capacity": {"cpu": "64", "pods": "110"} | {k: str(v) for k, v in handed.items()},
            "allocatable": {"cpu": "63"} | {k: str(v) for k, v in free.items()},
            "conditions": [ready],
            "nodeInfo": info,
        },
    }


def event(
    reason: str, message: str, *, at: str = "14:10:00", name: str = "n1", count: int = 1
) -> Document:
    """An event about a node, as the kubelet writes it."""
    return {
        "kind": "Event",
        "apiVersion": "v1",
        "metadata": {"name": f"{name}.{reason}.{at}".lower(), "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": name, "uid": name},
        "reason": reason,
        "message": message,
        "type": "Warning",
        "count": count,
        "lastTimestamp": CLOCK.format(at),
        "source": {"component": "kubelet"},
    }


def dra_device(name: str, *, kind: str = "gpu", **attributes: str) -> Document:
    """A device of a slice."""
    told = {"type": kind} | attributes
    return {"name": name, "attributes": {key: {"string": value} for key, value in told.items()}}


def slice_of(
    *devices: Document,
    node: str = "n1",
    name: str = "",
    driver: str = "gpu.nvidia.com",
    generation: int = 1,
    slices: int = 1,
) -> Document:
    """A ResourceSlice of a node's pool."""
    pool = {"name": node, "generation": generation, "resourceSliceCount": slices}
    return {
        "kind": "ResourceSlice",
        "apiVersion": "resource.k8s.io/v1",
        "metadata": {"name": name or f"{node}-{driver}"},
        "spec": {"driver": driver, "nodeName": node, "pool": pool, "devices": list(devices)},
    }


def gpu_pod(name: str, gpus: int, *, node: str = "n1", phase: str = "Running") -> Document:
    """A pod on the node that asks for GPUs."""
    asked = {"limits": {"nvidia.com/gpu": str(gpus)}}
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "train"},
        "spec": {"nodeName": node, "containers": [{"name": "main", "resources": asked}]},
        "status": {"phase": phase},
    }


class _RealAgent(Agent):
    """A real agent's tool, on a simulated node."""

    def __init__(
        self, node: str, collector: Collector, machine: Node, expected: int | None, *more: Tool[Any]
    ) -> None:
        super().__init__(node, inventory(node))
        tool = agent_tool(
            node,
            collector,
            blind(),
            lambda: BLIND,
            lambda: simulated(machine),
            expected_gpus=expected,
        )
        self.registry = served.registry(tool, node, *more)
        self.server = self.registry.server


class _Holders(BaseModel):
    """What an agent says of its GPUs' holders, in what matters here."""

    source: str
    pods: list[dict[str, Any]]


def holders(source: str, *pods: Document) -> Tool[Any]:
    """`get_pod_gpu_allocation` of an agent."""

    async def run(arguments: Arguments, call: Call) -> Answer:
        return Answer("held", _Holders(source=source, pods=list(pods)))

    return Tool(
        name="get_pod_gpu_allocation",
        title="t",
        description="d",
        arguments=Arguments,
        result=_Holders,
        run=run,
    )


def holder(pod: str, *devices: str, claims: Sequence[str] = ()) -> Document:
    """A pod that holds devices, by their ids, and devices of a claim that is called as it is."""
    held = [{"id": device, "resource": "nvidia.com/gpu", "gpu_index": 0} for device in devices]
    claim = {"namespace": "train", "name": pod, "driver": "gpu.nvidia.com", "pool": "n1"}
    claimed = [claim | {"device": device} for device in claims]
    container = {"container": "main", "devices": held, "claims": claimed}
    return {"namespace": "train", "pod": pod, "pod_uid": "u", "containers": [container]}


@dataclass
class Page:
    """A gateway over one node, as a client has it."""

    api: FakeApiServer | None
    client: Client
    others: Sequence[FakeApiServer]
    """API servers of the other clusters."""

    async def ask(self, node: str = "n1") -> CallToolResult:
        result = await self.client.call_tool("describe_gpu_node", {"node": node})
        assert isinstance(result, CallToolResult)
        return result

    async def told(self, node: str = "n1") -> tuple[str, dict[str, Any]]:
        """Text and structured content of an answer that is no error."""
        result = await self.ask(node)
        text = result.content[0].text  # type: ignore[union-attr]
        assert not result.is_error, text
        assert isinstance(result.structured_content, dict)
        return text, result.structured_content

    async def codes(self, node: str = "n1") -> list[str]:
        _, told = await self.told(node)
        return [each["code"] for each in told["disagreements"]]


@asynccontextmanager
async def page(
    machine: Node | None,
    *documents: Document,
    kubernetes: bool = True,
    denied: Sequence[tuple[str, str]] = (),
    expected: int | None = None,
    others: Mapping[str, Agent] | None = None,
    tools: Sequence[Tool[Any]] = (),
    clusters: Sequence[str] = ("",),
    broken: Sequence[str] = (),
) -> AsyncIterator[Page]:
    """A gateway over an API server of these objects and the agent of a simulated node.

    Args:
        machine: the node; None: it has no agent.
        kubernetes: False: there is no API server.
        denied: verbs and resources that the gateway may not use.
        expected: `--expected-gpus` of the agent.
        others: more agents, by node.
        tools: more of the agent's.
        clusters: names of several, in the first of which all of this is.
        broken: paths that lead nowhere, of http and command.
    """
    async with AsyncExitStack() as stack:
        agents: dict[str, Agent] = dict(others or {})
        collector = None
        if machine is not None:
            stack.enter_context(installed(machine))
            collector = Collector(Nvml())
            collector.start()
            stack.callback(collector.join, 10)
            stack.callback(collector.stop)
            with anyio.fail_after(30):
                await collector.first(20)
            agents[machine.name] = _RealAgent(machine.name, collector, machine, expected, *tools)
        servers, apis = [], {}
        for cluster in clusters if kubernetes else ():
            servers.append(await stack.enter_async_context(FakeApiServer()))
            reader = KubernetesApi(str(servers[-1].kubeconfig))
            apis[cluster] = await stack.enter_async_context(reader)
        api = servers[0] if servers else None
        if api is not None:
            for verb, resource in denied:
                api.deny(verb, resource)
            for document in documents:
                await api.apply(document)
        known = agents or {"elsewhere": Agent("elsewhere", inventory("elsewhere"))}
        paths = [Path(via, known) for via in ("http", "command")]
        for path in paths:
            path.probe_errors |= dict.fromkeys(known, Unreachable) if path.name in broken else {}
        client = await stack.enter_async_context(
            served.gateway(
                lambda router: gateway_tool(router, Workloads(apis), clock=lambda: NOW),
                known,
                *paths,
                cluster=clusters[0],
            )
        )
        yield Page(api, client, servers[1:])

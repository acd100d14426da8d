"""Deaths of pods as a real API server shows them, and a gateway that is asked about them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aiohttp import web
from mcp import Client
from mcp_types import CallToolResult
from pydantic import BaseModel

from mcp_gpu.gpu.health.model import Finding
from mcp_gpu.gpu.model import Gpu
from mcp_gpu.gpu.xid.analysis import analyse
from mcp_gpu.gpu.xid.present import Present
from mcp_gpu.gpu.xid.view import View
from mcp_gpu.registry import Answer, Arguments, Call, Tool
from mcp_gpu.tools.allocation_model import PastHolder
from mcp_gpu.tools.explain_failure import gateway_tool
from mcp_gpu.tools.health import AgentArguments as HealthArguments
from mcp_gpu.tools.health_model import NodeHealth
from mcp_gpu.tools.timeline_model import NodeTimeline, TimelineArguments
from mcp_gpu.tools.xids import AgentArguments as XidArguments
from mcp_gpu.tools.xids_model import NodeXids
from mcp_gpu.workloads.reads import Workloads
from support import served
from support.fleet import Agent
from support.health import HealthAgent, assessment
from support.kubeapi.documents import Document
from support.kubeapi.pods import forbidden
from support.kubeapi.server import FakeApiServer
from support.xids import GPUS, NOW, READ, UNREAD, XidAgent, seconds
from transports.kubernetes import KubernetesApi

__all__ = [
    "NAMESPACE",
    "Stage",
    "at",
    "claim",
    "died",
    "event",
    "job",
    "node",
    "past_holder",
    "pod",
    "staged",
    "status",
    "unschedulable",
    "waiting",
]

NAMESPACE = "train"
NODE = "n1"
POD = "worker-0"
UID = "5f0c1f0e-7a52-4f0a-9d0e-2f2f6b0f3a11"

LATER = "10:05:00"
"""When the gateway is asked, by the clock."""


def at(clock: str) -> str:
    return f"2026-11-26T{clock}Z"


def died(
    code: int,
    reason: str = "Error",
    message: str = "",
    *,
    began: str = "10:00:10",
    ended: str = "10:02:30",
) -> Document:
    """A state of a container."""
    ending: Document = {
        "exitCode": code,
        "reason": reason,
        "startedAt": at(began),
        "finishedAt": at(ended),
        "containerID": "containerd://8d1e",
    }
    return {"terminated": ending | ({"message": message} if message else {})}


def waiting(reason: str, message: str = "") -> Document:
    return {"waiting": {"reason": reason, "message": message}}


def status(
    state: Document, *, name: str = "main", last: Document | None = None, **more: Any
) -> Document:
    """A container's status."""
    return {
        "name": name,
        "image": "registry.example/train:1",
        "imageID": "",
        "ready": False,
        "started": False,
        "restartCount": 0 if last is None else 3,
        "state": state,
        "lastState": last or {},
    } | more


def pod(
    *statuses: Document,
    name: str = POD,
    phase: str = "Failed",
    gpus: int = 1,
    memory: str = "",
    placed: bool = True,
    labels: Mapping[str, str] | None = None,
    owner: tuple[str, str] | None = None,
    inits: Sequence[Document] = (),
    spec: Mapping[str, Any] | None = None,
    annotations: Mapping[str, str] | None = None,
    **more: Any,
) -> Document:
    """A pod that asks for GPUs.

    Args:
        more: of its status.
    """
    limits = ({"nvidia.com/gpu": str(gpus)} if gpus else {}) | (
        {"memory": memory} if memory else {}
    )
    container = {"name": "main", "image": "registry.example/train:1", "resources": {}}
    if limits:
        container["resources"] = {"limits": limits, "requests": limits}
    metadata: Document = {
        "name": name,
        "namespace": NAMESPACE,
        "uid": UID if name == POD else f"uid-{name}",
        "creationTimestamp": at("10:00:00"),
        "labels": dict(labels or {}),
        "annotations": dict(annotations or {}),
    }
    if owner is not None:
        metadata["ownerReferences"] = [
            {"kind": owner[0], "name": owner[1], "uid": "u", "controller": True}
        ]
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": metadata,
        "spec": {"containers": [container], "restartPolicy": "Never"}
        | ({"nodeName": NODE} if placed else {})
        | dict(spec or {}),
        "status": {"phase": phase}
        | ({"startTime": at("10:00:05")} if placed else {})
        | ({"containerStatuses": list(statuses)} if statuses else {})
        | ({"initContainerStatuses": list(inits)} if inits else {})
        | more,
    }


def unschedulable(message: str, **more: Any) -> Document:
    """A pod that the scheduler finds no node for."""
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": at("10:00:00"),
    }
    return pod(phase="Pending", placed=False, conditions=[condition], **more)


def held_by_status(*uuids: str, health: str = "Healthy") -> list[Document]:
    """A container's `allocatedResourcesStatus`."""
    devices = [{"resourceID": uuid, "health": health} for uuid in uuids]
    return [{"name": "nvidia.com/gpu", "resources": devices}]


_numbers = iter(range(10_000))


def event(
    reason: str,
    message: str,
    *,
    kind: str = "Pod",
    name: str = POD,
    clock: str = "10:02:31",
    uid: str = "",
    component: str = "kubelet",
    host: str = NODE,
    count: int = 1,
) -> Document:
    """An event of core/v1, as `kubectl get events` lists them."""
    involved: Document = {"kind": kind, "name": name, "apiVersion": "v1"}
    involved["uid"] = uid or (UID if (kind, name) == ("Pod", POD) else f"uid-{name}")
    where = "default" if kind == "Node" else NAMESPACE
    if kind != "Node":
        involved["namespace"] = NAMESPACE
    return {
        "kind": "Event",
        "apiVersion": "v1",
        "metadata": {"name": f"{name}.{next(_numbers)}", "namespace": where},
        "involvedObject": involved,
        "reason": reason,
        "message": message,
        "type": "Warning",
        "count": count,
        "firstTimestamp": at(clock),
        "lastTimestamp": at(clock),
        "source": {"component": component} | ({"host": host} if component == "kubelet" else {}),
        "reportingComponent": component,
        "reportingInstance": host,
    }


def node(
    *conditions: Document, name: str = NODE, gpus: int = 8, taints: Sequence[Document] = ()
) -> Document:
    """A node, ready unless told otherwise."""
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "kubelet is posting ready status",
        "lastTransitionTime": at("08:00:00"),
    }
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name},
        "spec": {"taints": list(taints)} if taints else {},
        "status": {
            "capacity": {"cpu": "64", "nvidia.com/gpu": str(gpus)},
            "conditions": list(conditions) or [ready],
        },
    }


def job(name: str = "llama", *conditions: Document, kind: str = "Job") -> Document:
    version = {
        "Job": "batch/v1",
        "JobSet": "jobset.x-k8s.io/v1alpha2",
        "PyTorchJob": "kubeflow.org/v1",
    }[kind]
    return {
        "kind": kind,
        "apiVersion": version,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {},
        "status": {"failed": 1, "conditions": list(conditions)},
    }


def claim(name: str, *devices: str, reserved: int = 1, admin: bool = False) -> Document:
    """A ResourceClaim, allocated if there are devices."""
    requests = [
        {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com", "allocationMode": "All"}}
    ]
    results = [
        {"request": "gpu", "driver": "gpu.nvidia.com", "pool": NODE, "device": device}
        | ({"adminAccess": True} if admin else {})
        for device in devices
    ]
    users = [{"resource": "pods", "name": f"p{number}"} for number in range(reserved)]
    allocation = {"allocation": {"devices": {"results": results}}, "reservedFor": users}
    return {
        "kind": "ResourceClaim",
        "apiVersion": "resource.k8s.io/v1",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"devices": {"requests": requests}},
        "status": allocation if devices else {},
    }


class _Xids(XidAgent):
    """Xids of no more than the time asked for."""

    def answer(self, arguments: Arguments) -> BaseModel:
        assert isinstance(arguments, XidArguments)
        since = datetime.fromisoformat(arguments.since).timestamp()
        found = analyse(
            self.bursts,
            Present(seconds(LATER), GPUS, 580, NOW),
            view=View(since=since, codes=frozenset(arguments.codes or ())),
            limit=arguments.limit,
        )
        whole = super().answer(arguments)
        assert isinstance(whole, NodeXids)
        return whole.model_copy(update=dict(found))


class _AllocationArguments(Arguments):
    past: bool = False


class _Allocation(BaseModel):
    """What an agent says of its GPUs' holders, in what matters here."""

    node: str
    pods: list[dict[str, Any]]
    why: str = ""
    past: tuple[PastHolder, ...] = ()


class _Inventory(BaseModel):
    """What an agent says of its GPUs, in what matters here."""

    node: str
    state: str = "ok"
    message: None = None
    simulated: bool = True
    driver_version: None = None
    nvml_version: None = None
    cuda_version: None = None
    gpu_count: None = None
    gpu_count_expected: None = None
    gpus_lost: int = 0
    models: tuple[()] = ()
    attention: tuple[()] = ()
    age_seconds: None = None
    gpus: tuple[Gpu, ...]


def past_holder(
    pod: str = POD,
    gpu: int = 0,
    *,
    uid: str | None = None,
    since: str = "09:59:00",
    until: str = "10:02:20",
) -> PastHolder:
    """That a pod has held a GPU, as an agent remembers."""
    return PastHolder(
        namespace=NAMESPACE,
        pod=pod,
        pod_uid=uid or (UID if pod == POD else f"uid-{pod}"),
        container="main",
        gpu_uuid=f"GPU-{gpu}",
        gpu_index=gpu,
        mig="",
        shared=False,
        since=at(since),
        until=at(until),
    )


class WholeAgent(Agent):
    """An agent with all that an explanation asks."""

    def __init__(
        self,
        node: str,
        *lines: tuple[str, str],
        findings: Sequence[Finding] = (),
        held: Mapping[str, Sequence[int]] | None = None,
        claims: Mapping[str, Sequence[str]] | None = None,
        why: str = "",
        inventory: Sequence[Gpu] | None = None,
        past: Sequence[PastHolder] = (),
        blind: bool = False,
        timeline: NodeTimeline | None = None,
    ) -> None:
        self._xids = _Xids(
            node,
            *lines,
            source=UNREAD if blind else READ,
            missed=(UNREAD.message,) if blind else (),
        )
        self._health = HealthAgent(node, assessment(*findings))
        self._held, self._past, self._timeline = held, tuple(past), timeline
        self._claims, self._why, self._inventory = dict(claims or {}), why, inventory
        super().__init__(node, self._xids.source, tool="unused", result=_Allocation)

    def __post_init__(self) -> None:
        super().__post_init__()
        tools: list[Tool[Any]] = [
            self._tool("analyze_xid_errors", XidArguments, NodeXids, self._xids.answer),
            self._tool("get_gpu_health", HealthArguments, NodeHealth, self._health.answer),
        ]
        if self._held is not None:
            tools.append(
                self._tool(
                    "get_pod_gpu_allocation", _AllocationArguments, _Allocation, self._allocation
                )
            )
        if self._inventory is not None:
            told = _Inventory(node=self.node, gpus=tuple(self._inventory))
            tools.append(
                self._tool("get_gpu_inventory", _AllocationArguments, _Inventory, lambda _: told)
            )
        if self._timeline is not None:
            tools.append(
                self._tool(
                    "get_gpu_timeline", TimelineArguments, NodeTimeline, lambda _: self._timeline
                )
            )
        self.registry = served.registry(tools[0], self.node, *tools[1:])
        self.server = self.registry.server

    def _tool(self, name: str, arguments: Any, result: Any, answer: Any) -> Tool[Any]:
        async def run(asked: Arguments, call: Call) -> Answer:
            self.calls.append(asked)
            return Answer(name, answer(asked))

        return Tool(
            name=name, title="t", description="d", arguments=arguments, result=result, run=run
        )

    def _allocation(self, arguments: Arguments) -> _Allocation:
        assert self._held is not None
        pods = [
            {
                "namespace": NAMESPACE,
                "pod": name,
                "pod_uid": UID if name == POD else f"uid-{name}",
                "containers": [
                    {
                        "container": "main",
                        "devices": [
                            {"gpu_index": index, "gpu_uuid": f"GPU-{index}"} for index in indices
                        ],
                        "claims": [
                            {"driver": "gpu.nvidia.com", "name": name}
                            for name in self._claims.get(name, ())
                        ],
                    }
                ],
            }
            for name, indices in self._held.items()
        ]
        assert isinstance(arguments, _AllocationArguments)
        past = self._past if arguments.past else ()
        return _Allocation(node=self.node, pods=pods, past=past, why=self._why)


@dataclass
class Stage:
    """A cluster in which something has died, and a client of its gateway."""

    api: FakeApiServer
    client: Client
    logs: dict[tuple[str, bool], str] = field(default_factory=dict)
    """Of containers, and of those before them."""

    async def ask(self, name: str = POD, **arguments: Any) -> CallToolResult:
        result = await self.client.call_tool(
            "explain_failure", {"pod": name, "namespace": NAMESPACE} | arguments
        )
        assert isinstance(result, CallToolResult)
        return result


@asynccontextmanager
async def staged(
    *documents: Document,
    agents: Sequence[Agent] = (),
    logs: Mapping[tuple[str, bool], str] | None = None,
    denied: Sequence[tuple[str, str]] = (),
    make: Callable[..., Tool[Any]] = gateway_tool,
    now: str = LATER,
) -> AsyncIterator[Stage]:
    """A cluster of these objects, and a gateway over it and these agents.

    Args:
        logs: by container and whether it is that of the one before.
        denied: verbs and resources that the gateway may not use.
        make: its tool.
        now: when it is asked, by the clock.
    """
    texts = dict(logs or {})

    async def log(request: web.Request) -> web.StreamResponse:
        name, namespace = request.match_info["name"], request.match_info["namespace"]
        if not api.may("get", "pods/log"):
            return forbidden("get", "pods/log", name, namespace)
        key = (request.query["container"], request.query["previous"] == "true")
        if key not in texts:
            return web.Response(status=404, text="not found")
        return web.Response(text=texts[key])

    path = "/api/v1/namespaces/{namespace}/pods/{name}/log"
    async with FakeApiServer(NAMESPACE, routes=[web.get(path, log)]) as api:
        for verb, resource in denied:
            api.deny(verb, resource)
        for document in documents:
            await api.apply(document)
        async with KubernetesApi(str(api.kubeconfig)) as reader:
            known = {agent.node: agent for agent in agents or [WholeAgent("elsewhere")]}
            async with served.gateway(
                lambda router: make(router, Workloads({"": reader}), clock=lambda: seconds(now)),
                known,
            ) as client:
                yield Stage(api, client, texts)

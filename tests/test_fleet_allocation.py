"""`get_pod_gpu_allocation` of a fleet: what agents say, joined with a real API server's objects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp import Client
from mcp_types import CallToolResult

from mcp_gpu.tools import fleet_allocation_join
from mcp_gpu.tools.allocation_model import Stray
from mcp_gpu.tools.fleet_allocation import gateway_tool
from mcp_gpu.workloads.claims import NO_UUID
from mcp_gpu.workloads.pods import requested
from mcp_gpu.workloads.reads import Workloads
from support import served
from support.allocation import AllocationAgent, claim, holder, uuid
from support.fleet import Agent, Path
from support.kubeapi.server import FakeApiServer
from support.results import data, text
from support.schemas import check
from transports.errors import Unreachable
from transports.kubernetes import KubernetesApi

GPU = "nvidia.com/gpu"


@pytest.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer() as running:
        yield running


@asynccontextmanager
async def gateway(
    server: FakeApiServer | None, *agents: Agent, http: Path | None = None
) -> AsyncIterator[Client]:
    by_name = {agent.node: agent for agent in agents}
    if server is None:
        async with served.gateway(
            lambda router: gateway_tool(router, Workloads({})), by_name, http
        ) as client:
            yield client
        return
    async with (
        KubernetesApi(str(server.kubeconfig)) as api,
        served.gateway(
            lambda router: gateway_tool(router, Workloads({"": api})), by_name, http
        ) as client,
    ):
        yield client


async def ask(client: Client, **arguments: Any) -> CallToolResult:
    result = await client.call_tool("get_pod_gpu_allocation", arguments)
    assert isinstance(result, CallToolResult)
    assert not result.is_error, text(result)
    return result


def pod_object(
    name: str,
    node: str,
    *,
    namespace: str = "train",
    phase: str = "Running",
    owner: str = "",
    gpus: int = 0,
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "uid": f"uid-{name}"}
    if owner:
        kind, _, owned = owner.partition("/")
        metadata["ownerReferences"] = [{"kind": kind, "name": owned, "controller": True}]
    resources = {"limits": {GPU: str(gpus), "cpu": "500m"}} if gpus else {}
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": metadata,
        "spec": {"nodeName": node, "containers": [{"name": "main", "resources": resources}]},
        "status": {"phase": phase},
    }


def resource_slice(
    node: str, devices: Mapping[str, Mapping[str, str]], generation: int = 1, name: str = ""
) -> dict[str, Any]:
    return {
        "kind": "ResourceSlice",
        "apiVersion": "resource.k8s.io/v1",
        "metadata": {"name": name or f"{node}-gpus-{generation}"},
        "spec": {
            "driver": "gpu.nvidia.com",
            "nodeName": node,
            "pool": {"name": node, "generation": generation},
            "devices": [
                {
                    "name": device,
                    "attributes": {key: {"string": value} for key, value in attributes.items()},
                }
                for device, attributes in devices.items()
            ],
        },
    }


def resource_claim(name: str, node: str, device: str, *, admin: bool = False) -> dict[str, Any]:
    result = {"request": "gpu", "driver": "gpu.nvidia.com", "pool": node, "device": device}
    if admin:
        result["adminAccess"] = True  # type: ignore[assignment]
    return {
        "kind": "ResourceClaim",
        "apiVersion": "resource.k8s.io/v1",
        "metadata": {"name": name, "namespace": "dra"},
        "status": {"allocation": {"devices": {"results": [result]}}},
    }


def pods(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{pod['namespace']}/{pod['pod']}": pod for node in found["nodes"] for pod in node["pods"]
    }


async def test_pods_are_named_with_owner_and_phase_by_one_get_each(server: FakeApiServer) -> None:
    await server.apply(pod_object("w0", "n1", owner="Job/train-7"))
    await server.apply(pod_object("w1", "n2", owner="Job/train-7"))
    await server.apply(pod_object("bystander", "n1"))
    agents = (
        AllocationAgent("n1", holder("train/w0", "n1", 0, 1)),
        AllocationAgent("n2", holder("train/w1", "n2", 3)),
    )
    async with gateway(server, *agents) as client:
        answer = await ask(client)
        (tool,) = (await client.list_tools()).tools
    found = data(answer)
    check("gateway", tool, found)
    told = pods(found)
    assert {name: (pod["phase"], pod["owner"], pod["pod_uid"]) for name, pod in told.items()} == {
        "train/w0": ("Running", "Job/train-7", "uid-w0"),
        "train/w1": ("Running", "Job/train-7", "uid-w1"),
    }
    assert [(request.verb, request.resource) for request in server.requests] == [
        ("get", "pods"),
        ("get", "pods"),
    ]
    totals = found["totals"]
    assert (totals["pods"], totals["gpus"], totals["held"], totals["free"]) == (2, 8, 3, 5)
    assert found["gaps"] == []
    assert "2 of 2 nodes answered: 2 pods on 3 of 8 GPUs, 5 free" in text(answer)
    assert "train/w0 (Job/train-7, Running) main: GPU 0 (NVIDIA H100" in text(answer)


async def test_a_pod_that_is_over_holds_nothing(server: FakeApiServer) -> None:
    await server.apply(pod_object("done", "n1", phase="Succeeded"))
    await server.apply(pod_object("moved", "n2"))
    agent = AllocationAgent(
        "n1",
        holder("train/done", "n1", 0),
        holder("train/moved", "n1", 1),
        holder("train/deleted", "n1", 2),
    )
    async with gateway(server, agent) as client:
        answer = await ask(client, detail="full")
    (node,) = data(answer)["nodes"]
    assert node["terminated"] == 1
    assert {pod["pod"]: pod["phase"] for pod in node["pods"]} == {
        "moved": "gone",
        "deleted": "gone",
    }
    assert [gpu["free"] for gpu in node["gpus"]] == [True, False, False, True]
    assert "1 pod left out: over, but still listed" in text(answer)


async def test_one_pod_is_found_wherever_it_is(server: FakeApiServer) -> None:
    await server.apply(pod_object("w1", "n2"))
    agents = (
        AllocationAgent("n1", holder("train/w0", "n1", 0)),
        AllocationAgent("n2", holder("train/w1", "n2", 2), holder("dev/w2", "n2", 3)),
    )
    async with gateway(server, *agents) as client:
        answer = await ask(client, namespace="train", pod="w1")
        nothing = await ask(client, pod="nobody")
    found = data(answer)
    (node,) = found["nodes"]
    assert (node["node"], [gpu["index"] for gpu in node["gpus"]]) == ("n2", [2])
    assert list(pods(found)) == ["train/w1"]
    assert server.count("get", "pods") == 1
    every = [
        (told["pods"], told["gpus"], told["held"]) for told in (found["totals"], node["totals"])
    ]
    assert every == [(3, 8, 3), (2, 4, 2)], "whichever pods are asked for"
    assert "n2: 2 pods on 2 of 4 GPUs, 2 free (says the kubelet); asked for: 1 pod" in text(answer)
    assert data(nothing)["totals"]["gpus"] == 8
    assert "No such pod holds a GPU" in text(nothing)
    async with gateway(None, AllocationAgent("n1", why="no socket")) as client:
        blind = text(await ask(client, pod="w1"))
    assert "0 pods on 0 of 4 GPUs, 0 free, 4 unknown" in blind
    assert "unknown on every node that answered" in blind


async def test_claims_are_joined_to_gpus_through_slices(server: FakeApiServer) -> None:
    devices = {
        "gpu-0": {"type": "gpu", "uuid": uuid("n1", 0)},
        "mig-1": {
            "type": "mig",
            "uuid": "MIG-1",
            "parentUUID": uuid("n1", 1),
            "profile": "1g.10gb",
        },
        "mig-2": {"type": "mig", "parentUUID": uuid("n1", 1), "profile": "2g.20gb"},
        "gpu-3": {"type": "gpu", "uuid": uuid("n1", 3)},
    }
    await server.apply(resource_slice("n1", devices, generation=2))
    await server.apply(resource_slice("n1", {"gpu-0": {"uuid": "GPU-of-before"}}))
    await server.apply(resource_slice("n2", {"gpu-0": {"uuid": "GPU-of-another"}}))
    for device in devices:
        await server.apply(resource_claim(device, "n1", device, admin=device == "gpu-3"))
        await server.apply(pod_object(f"p-{device}", "n1", namespace="dra"))
    agent = AllocationAgent(
        "n1",
        *(
            holder(f"dra/p-{device}", "n1", claims=[claim(device, "dra", "n1", device)])
            for device in devices
        ),
        holder("dra/lost", "n1", claims=[]),
    )
    async with gateway(server, agent) as client:
        answer = await ask(client, detail="full")
    found = data(answer)
    told = {
        each["name"]: each
        for pod in pods(found).values()
        for container in pod["containers"]
        for each in container["claims"]
    }
    assert {name: (each["gpu_index"], each["mig_uuid"]) for name, each in told.items()} == {
        "gpu-0": (0, None),
        "mig-1": (1, "MIG-1"),
        "mig-2": (1, None),
        "gpu-3": (3, None),
    }
    assert told["mig-2"]["mig_profile"] == "2g.20gb"
    assert told["mig-2"]["why"] == NO_UUID
    assert told["gpu-3"]["admin"], "who only watches holds nothing"
    (node,) = found["nodes"]
    assert [gpu["holders"] for gpu in node["gpus"]] == [1, 2, 0, 0]
    assert [gpu["free"] for gpu in node["gpus"]] == [False, False, True, True]
    assert server.count("list", "resourceslices") == 1
    assert server.count("get", "resourceclaims") == 4


@pytest.mark.parametrize(
    ("verb", "resource", "grant"),
    [
        ("get", "pods", "get pods in dra"),
        ("get", "resourceclaims", "get resourceclaims.resource.k8s.io in dra"),
        ("list", "resourceslices", "list resourceslices.resource.k8s.io"),
    ],
)
async def test_a_right_that_is_missing_is_named_and_the_rest_stands(
    server: FakeApiServer, verb: str, resource: str, grant: str
) -> None:
    await server.apply(resource_slice("n1", {"gpu-0": {"uuid": uuid("n1", 0)}}))
    await server.apply(resource_claim("c", "n1", "gpu-0"))
    await server.apply(pod_object("p", "n1", namespace="dra", owner="Job/j"))
    server.deny(verb, resource)
    agent = AllocationAgent(
        "n1", holder("dra/p", "n1", 3, claims=[claim("c", "dra", "n1", "gpu-0")])
    )
    async with gateway(server, agent) as client:
        answer = await ask(client, detail="full")
    found = data(answer)
    (gap,) = found["gaps"]
    assert (gap["why"], gap["grant"]) == ("forbidden", grant)
    assert f"(grant: {grant})" in text(answer)
    (pod,) = pods(found).values()
    (held,) = pod["containers"][0]["claims"]
    assert (pod["owner"] is None) == (resource == "pods")
    assert (pod["phase"] is None) == (resource == "pods")
    assert (held["gpu_index"] is None) == (resource == "resourceslices")
    (node,) = found["nodes"]
    assert node["gpus"][3]["holders"] == 1
    assert (node["gpus"][1]["free"] is None) == (resource == "resourceslices")


async def test_without_any_cluster_the_agents_word_is_told(server: FakeApiServer) -> None:
    async with gateway(None, AllocationAgent("n1", holder("train/w0", "n1", 0))) as client:
        found = data(await ask(client))
    (pod,) = pods(found).values()
    assert (pod["phase"], pod["owner"]) == (None, None)
    assert [gap["what"] for gap in found["gaps"]] == ["Kubernetes"]


async def test_where_nobody_can_say_requests_are_a_guess(server: FakeApiServer) -> None:
    await server.apply(pod_object("asks", "n1", gpus=2, owner="Job/j"))
    await server.apply(pod_object("over", "n1", gpus=2, phase="Failed"))
    await server.apply(pod_object("asks-nothing", "n1"))
    await server.apply(pod_object("elsewhere", "n2", gpus=1))
    blind = AllocationAgent("n1", why="no socket")
    async with gateway(server, blind) as client:
        answer = await ask(client, detail="full")
        server.deny("list", "pods")
        refused = await ask(client)
    found = data(answer)
    (pod,) = pods(found).values()
    assert (pod["pod"], pod["guess"], pod["owner"]) == ("asks", True, "Job/j")
    assert pod["containers"][0]["requested"] == {GPU: 2}
    assert found["nodes_unattributed"] == 1
    assert [gpu["free"] for gpu in found["nodes"][0]["gpus"]] == [None] * 4
    assert "a GUESS by what it asks for" in text(answer)
    assert "asks for 2 nvidia.com/gpu" in text(answer)
    assert "holders UNKNOWN" in text(answer)
    assert pods(data(refused)) == {}
    assert "grant: list pods" in text(refused)


async def test_idle_and_strays_come_first_and_pages_go_on(server: FakeApiServer) -> None:
    stray = Stray(
        pid=7, gpu_index=0, gpu_uuid=None, command="x\ny", memory_bytes=None, pod_uid=None
    )
    agents = (
        AllocationAgent("n1", holder("a/p1", "n1", 0)),
        AllocationAgent("n2", why="no socket"),
        AllocationAgent("n3", holder("a/p3", "n3", 0), strays=[stray]),
        AllocationAgent("n4", holder("a/p4", "n4", 0)),
    )
    async with gateway(None, *agents) as client:
        told: list[str] = []
        cursor = None
        for _ in range(4):
            page = data(await ask(client, limit=1, **({"cursor": cursor} if cursor else {})))
            assert page["totals"]["gpus"] == 16
            told += [node["node"] for node in page["nodes"]]
            cursor = page["next_cursor"]
    assert told == ["n3", "n2", "n1", "n4"]
    assert cursor is None


async def test_a_node_that_does_not_answer_is_named(server: FakeApiServer) -> None:
    agents = {each: AllocationAgent(each, holder("a/p", each, 0)) for each in ("n1", "n2")}
    http = Path("http", dict(agents))
    http.probe_errors["n2"] = Unreachable
    async with gateway(None, *agents.values(), http=http) as client:
        answer = await ask(client)
    assert data(answer)["failures_by_reason"] == {"unreachable": 1}
    assert "n2: unreachable" in text(answer)


async def test_no_more_pods_are_asked_about_than_an_api_server_bears(server: FakeApiServer) -> None:
    agents = [
        AllocationAgent(
            f"n{number}",
            *(holder(f"a/p{number}-{each}", f"n{number}", each % 4) for each in range(40)),
        )
        for number in range(4)
    ]
    async with gateway(server, *agents) as client:
        answer = await ask(client, detail="full")
    assert server.count("get", "pods") == 100
    assert any(gap["what"] == "more pods" for gap in data(answer)["gaps"])
    assert len(text(answer)) < 8_000


async def test_of_several_clusters_each_is_asked_about_its_own(server: FakeApiServer) -> None:
    await server.apply(pod_object("w0", "n1", owner="Job/here"))
    agents = {
        node: AllocationAgent(node, holder("train/w0", node, 0)) for node in ("east/n1", "west/n1")
    }
    async with (
        FakeApiServer() as other,
        KubernetesApi(str(server.kubeconfig)) as east,
        KubernetesApi(str(other.kubeconfig)) as west,
        served.gateway(
            lambda router: gateway_tool(router, Workloads({"east": east, "west": west})), agents
        ) as client,
    ):
        found = data(await ask(client))
        assert (server.count("get", "pods"), other.count("get", "pods")) == (1, 1)
    owners = {node["node"]: node["pods"][0]["owner"] for node in found["nodes"]}
    assert owners == {"east/n1": "Job/here", "west/n1": None}
    assert [node["pods"][0]["phase"] for node in found["nodes"]] == ["Running", "gone"]


async def test_an_api_server_that_hangs_costs_a_gap(
    server: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_allocation_join, "JOIN_SECONDS", 0.3)
    server.fault("get", "pods", "hang")
    async with gateway(server, AllocationAgent("n1", holder("train/w0", "n1", 0))) as client:
        found = data(await ask(client))
    (pod,) = pods(found).values()
    assert pod["phase"] is None
    assert [gap["why"] for gap in found["gaps"]] == ["not within 0.3 s"]
    assert found["totals"]["held"] == 1


async def test_of_a_large_fleet_many_nodes_are_told_at_once() -> None:
    why = "kubelet.sock: Permission denied; " + "what grants it, at length, " * 8
    agents = [
        *(AllocationAgent(f"blind-{each:02}", why=why) for each in range(60)),
        *(
            AllocationAgent(
                f"node-{each:02}",
                *(holder(f"a/p{gpu}", f"node-{each:02}", gpu) for gpu in range(4)),
            )
            for each in range(40)
        ),
    ]
    async with gateway(None, *agents) as client:
        first = await ask(client, limit=100)
        whole = data(await ask(client, nodes=["node-00"]))
        told, calls, cursor = [*data(first)["nodes"]], 1, data(first)["next_cursor"]
        while cursor is not None:
            found = data(await ask(client, limit=100, cursor=cursor))
            told, calls, cursor = [*told, *found["nodes"]], calls + 1, found["next_cursor"]
    assert [node["node"] for node in told] == sorted(agent.node for agent in agents)
    assert calls <= 9
    (reason,) = data(first)["unattributed"]
    assert (reason["nodes"], reason["names"], reason["why"]) == (60, "blind-00-blind-59", why)
    assert text(first).count("Permission denied") == 1
    assert "! blind-00-blind-59: holders unknown: kubelet.sock: Permission denied" in text(first)
    assert all(node["gpus"] == [] for node in told), "none is idle or out of order"
    assert len(whole["nodes"][0]["gpus"]) == 4, "asked by name it is told whole"


async def test_what_a_pod_asks_for_is_read_alike_everywhere() -> None:
    def container(name: str, count: int, **more: str) -> dict[str, Any]:
        return {"name": name, "resources": {"requests": {GPU: str(count)}}, **more}

    spec = {
        "initContainers": [
            container("sidecar", 1, restartPolicy="Always"),
            container("fetch", 4),
        ],
        "containers": [container("main", 2), {"name": "odd", "resources": {"limits": [GPU]}}],
    }
    assert requested({"spec": spec}) == {GPU: 5}, "the sidecar runs while the other fetches"
    spec["initContainers"].reverse()
    assert requested({"spec": spec}) == {GPU: 4}
    spec["containers"].append(container("other", 3))
    assert requested({"spec": spec}) == {GPU: 6}
    assert requested({"spec": {"containers": "none"}}) == {}

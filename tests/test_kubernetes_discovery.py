"""Agents found in Kubernetes: who is asked, who is missing and why, through every outage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_gpu.fleet.discovery import DiscoveryError, Table
from mcp_gpu.fleet.discovery import kubernetes as module
from mcp_gpu.fleet.discovery.kubernetes import KubernetesDiscovery
from support.kubeapi import server
from support.kubeapi.cases import CASES, Ground, discovering, eventually, run
from support.kubeapi.documents import (
    SELECTOR,
    SERVICE,
    Document,
    endpoint,
    endpoint_slice,
    node,
    pod,
    running,
    terminated,
    waiting,
)
from support.kubeapi.server import FakeApiServer
from transports.base import Target
from transports.kubernetes import KubernetesApi


@pytest.fixture
async def api() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer() as server:
        yield server


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_what_holds_on_a_real_cluster_holds_here(
    case: Callable[[Ground], Awaitable[None]], api: FakeApiServer
) -> None:
    await run(case, api)
    assert not any(api.store.objects(resource) for resource in ("endpointslices", "nodes"))


async def look(api: FakeApiServer, *documents: Document, **settings: Any) -> Table:
    """What discovery makes of these objects at its first look."""
    for document in documents:
        await api.apply(document)
    async with discovering(api, SELECTOR, **settings) as discovery:
        return discovery.table()


def missing(table: Table) -> dict[str, str]:
    return {absent.node: absent.why for absent in table.absent}


async def test_a_pod_in_several_slices_is_one_target(api: FakeApiServer) -> None:
    here = endpoint("10.0.0.1", "n1")
    table = await look(
        api,
        endpoint_slice("one", [here, endpoint("10.0.0.2", "n2")]),
        endpoint_slice("another", [here]),
        endpoint_slice("six", [endpoint("fd00::1", "n1")], family="IPv6"),
    )
    assert {t.node: t.addresses for t in table.targets} == {
        "n1": ("10.0.0.1", "fd00::1"),
        "n2": ("10.0.0.2",),
    }
    assert (table.source, table.problem) == ("Kubernetes, namespace gpu", None)


async def test_agents_of_other_labels_are_not_ours(api: FakeApiServer) -> None:
    gateway = {"app.kubernetes.io/name": "mcp-gpu", "app.kubernetes.io/component": "gateway"}
    table = await look(
        api,
        endpoint_slice("agents", [endpoint("10.0.0.1", "n1")]),
        endpoint_slice("gateway", [endpoint("10.0.0.9", "n9")], labels=gateway),
    )
    assert [target.node for target in table.targets] == ["n1"]


@pytest.mark.parametrize(
    ("conditions", "ready"),
    [
        ({}, True),
        # A Service that publishes what is not ready calls it ready all the same.
        ({"ready": True, "serving": False}, False),
        ({"ready": False, "serving": True, "terminating": True}, False),
        ({"ready": True, "serving": True, "terminating": True}, False),
    ],
)
async def test_an_agent_that_is_not_ready_is_a_target_too(
    api: FakeApiServer, conditions: dict[str, bool], ready: bool
) -> None:
    table = await look(api, endpoint_slice("s", [endpoint("10.0.0.1", "n1", **conditions)]))
    assert [(target.node, target.ready) for target in table.targets] == [("n1", ready)]


async def test_conditions_that_nobody_states_mean_ready(api: FakeApiServer) -> None:
    bare = endpoint("10.0.0.1", "n1") | {"conditions": {}}
    table = await look(api, endpoint_slice("s", [bare]))
    assert table.targets[0].ready


async def test_the_port_is_the_one_named_mcp_or_else_the_first(api: FakeApiServer) -> None:
    several = endpoint_slice("a", [endpoint("10.0.0.1", "n1")])
    several["ports"] = [{"name": "metrics", "port": 9}, {"name": "mcp", "port": 10}]
    other = endpoint_slice("b", [endpoint("10.0.0.2", "n2")])
    other["ports"] = [{"name": "http", "port": 11}, {"name": "metrics", "port": 12}]
    table = await look(api, several, other)
    assert {target.node: target.port for target in table.targets} == {"n1": 10, "n2": 11}


async def test_agents_without_a_port_have_no_address_for_http(api: FakeApiServer) -> None:
    table = await look(api, endpoint_slice("s", [endpoint("10.0.0.1", "n1")], port=None))
    (target,) = table.targets
    assert (target.addresses, target.pod, target.container) == ((), "agent-n1", "agent")


async def test_by_dns_an_agent_is_its_dashed_address_under_the_service(api: FakeApiServer) -> None:
    named = endpoint("10.0.0.2", "n2") | {"hostname": "agent-2"}
    table = await look(
        api,
        endpoint_slice("four", [endpoint("10.0.0.1", "n1"), named]),
        endpoint_slice("six", [endpoint("fd00::1", "n1")], family="IPv6"),
        endpoint_slice("net", [endpoint("fd00::", "n3")], family="IPv6"),
        domain="k8s.example",
    )
    under = f"{SERVICE}.gpu.svc.k8s.example"
    assert {t.node: t.addresses for t in table.targets} == {
        "n1": (f"10-0-0-1.{under}", f"fd00--1.{under}"),
        "n2": (f"agent-2.{under}",),
        "n3": (f"fd00--0.{under}",),
    }


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 1 Insufficient memory.",
}
STUCK = (
    "; after more than a minute its node may not know its RuntimeClass, or a Secret or volume is "
    "missing: kubectl -n gpu describe pod"
)
INIT = {"name": "driver", "restartCount": 2, "state": waiting("CrashLoopBackOff")}


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (
            pod("n1", phase="Pending", placed=False, conditions=[UNSCHEDULABLE]),
            "cannot be scheduled (Unschedulable): 0/3 nodes are available: 1 Insufficient memory.",
        ),
        (pod("n1", phase="Pending"), "has not started (Pending)"),
        (
            pod(
                "n1",
                phase="Pending",
                state=waiting("ContainerCreating"),
                startTime="2026-01-01T00:00:00Z",
            ),
            f"is starting (ContainerCreating since 2026-01-01T00:00:00Z){STUCK} agent-n1",
        ),
        (
            pod("n1", phase="Pending", state=waiting("PodInitializing")),
            "is starting (PodInitializing)",
        ),
        (
            pod("n1", phase="Pending", state=waiting("ContainerCreating"), restarts=1),
            "does not stay up (ContainerCreating, 1 restart)",
        ),
        (
            pod("n1", phase="Pending", state=waiting("ImagePullBackOff", "Back-off pulling x:1")),
            "cannot start (ImagePullBackOff): Back-off pulling x:1",
        ),
        (
            pod(
                "n1",
                state=waiting("CrashLoopBackOff", "back-off 5m0s"),
                last_state=terminated(137, "OOMKilled"),
                restarts=5,
            ),
            "does not stay up (CrashLoopBackOff, 5 restarts): last time it exited 137 (OOMKilled)",
        ),
        (pod("n1", state=terminated(2)), "is not running: it exited 2 (Error)"),
        (
            pod(
                "n1",
                phase="Pending",
                state=waiting("PodInitializing"),
                initContainerStatuses=[INIT | {"lastState": terminated(1)}],
            ),
            "does not stay up (CrashLoopBackOff, 2 restarts): last time it exited 1 (Error)",
        ),
        (
            pod("n1", phase="Failed", reason="Evicted", message="The node was low on memory."),
            "has ended (Evicted): The node was low on memory.",
        ),
        (pod("n1", phase="Failed", state=terminated(3)), "has ended (Failed): exited 3 (Error)"),
        (pod("n1", phase="Pending", deleted=True), "is being deleted"),
    ],
)
async def test_a_pod_whose_agent_does_not_run_says_why(
    api: FakeApiServer, document: Document, why: str
) -> None:
    table = await look(api, document)
    assert table.targets == ()
    assert missing(table) == {"n1": f"agent pod agent-n1 {why}"}


@pytest.mark.parametrize(
    ("document", "text", "stopped"),
    [
        (pod("n1", state=running()), "agent pod agent-n1 runs and is not ready", False),
        (
            pod("n1", state=running(), last_state=terminated(1), restarts=1),
            "agent pod agent-n1 is not ready after 1 restart: last time it exited 1 (Error)",
            False,
        ),
        (pod("n1", state=running(), deleted=True), "agent pod agent-n1 is being deleted", False),
        (
            pod("n1", state=waiting("CrashLoopBackOff"), restarts=3),
            "agent pod agent-n1 does not stay up (CrashLoopBackOff, 3 restarts)",
            True,
        ),
    ],
)
async def test_an_agent_with_an_address_is_asked_and_explained(
    api: FakeApiServer, document: Document, text: str, stopped: bool
) -> None:
    table = await look(api, endpoint_slice("s", [endpoint("10.0.0.1", "n1")]), document)
    (target,) = table.targets
    explanation = table.explanations[target.key]
    assert (explanation.text, explanation.stopped) == (text, stopped)
    assert missing(table) == {}


async def test_a_healthy_agent_needs_no_explanation(api: FakeApiServer) -> None:
    table = await look(
        api,
        endpoint_slice("s", [endpoint("10.0.0.1", "n1")]),
        pod("n1", state=running(), ready=True),
        node("n1"),
    )
    assert len(table.targets) == 1
    assert (table.absent, table.explanations, table.problem) == ((), {}, None)


async def test_an_agent_that_no_slice_lists_can_still_be_reached_by_a_stream(
    api: FakeApiServer,
) -> None:
    table = await look(api, pod("n1", state=running(), ready=True))
    (target,) = table.targets
    assert target == Target(
        node="n1", namespace="gpu", pod="agent-n1", uid="uid-n1", container="agent"
    )
    assert "no readable EndpointSlice lists it" in table.explanations["uid-n1"].text


async def test_the_newest_pod_speaks_for_a_node(api: FakeApiServer) -> None:
    old = pod("n1", name="agent-old", uid="old", phase="Failed", reason="Evicted")
    new = pod("n1", name="agent-new", uid="new", phase="Pending", state=waiting("ErrImagePull"))
    assert missing(await look(api, old, new)) == {
        "n1": "agent pod agent-new cannot start (ErrImagePull)"
    }


TAINT = {"key": "dedicated", "value": "ml", "effect": "NoSchedule"}
CORDON = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
SOFT = {"key": "soft", "effect": "PreferNoSchedule"}
NOBODY = "the node has NVIDIA GPUs and no agent pod; "
CHECK = "check the DaemonSet's node selector and affinity"


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (node("n2"), NOBODY + CHECK),
        (node("n2", gpus=0, labels={"nvidia.com/gpu.present": "true"}), NOBODY + CHECK),
        (
            node("n2", gpus=0, labels={"feature.node.kubernetes.io/pci-10de.present": "true"}),
            NOBODY + CHECK,
        ),
        (
            node("n2", taints=[TAINT, SOFT]),
            NOBODY + "taints that agents may not tolerate: dedicated=ml:NoSchedule",
        ),
        (node("n2", taints=[CORDON], cordoned=True), NOBODY + "the node is cordoned"),
        (
            node("n2", ready="Unknown", message="Kubelet stopped posting node status."),
            NOBODY + "the node is not ready: Kubelet stopped posting node status.",
        ),
    ],
)
async def test_a_node_with_gpus_and_no_agent_pod_is_missed(
    api: FakeApiServer, document: Document, why: str
) -> None:
    here = endpoint_slice("s", [endpoint("10.0.0.1", "n1")])
    assert missing(await look(api, here, node("n1"), document)) == {"n2": why}


async def test_a_node_without_gpus_is_not_missed(api: FakeApiServer) -> None:
    absent = {"nvidia.com/gpu.present": "false"}
    mig = node("n4", gpus=0)
    mig["status"]["capacity"] |= {"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "7"}
    documents = (node("n2", gpus=0), node("n3", gpus=0, labels=absent), mig)
    assert set(missing(await look(api, *documents))) == {"n4"}


async def test_a_pod_on_a_node_that_is_not_ready_says_so(api: FakeApiServer) -> None:
    gone = {"ready": "Unknown", "message": "Kubelet stopped posting node status."}
    table = await look(
        api,
        endpoint_slice("s", [endpoint("10.0.0.1", "n1")]),
        pod("n1", state=running()),
        node("n1", **gone),
        pod("n2", phase="Pending", state=waiting("ContainerCreating")),
        node("n2", **gone),
    )
    said = "the node is not ready: Kubelet stopped posting node status."
    assert table.explanations["uid-n1"].text == f"agent pod agent-n1 runs and is not ready; {said}"
    assert missing(table) == {
        "n2": f"agent pod agent-n2 is starting (ContainerCreating){STUCK} agent-n2; {said}",
    }


async def test_changes_of_all_three_reach_the_table(api: FakeApiServer) -> None:
    async with discovering(api, SELECTOR) as discovery:
        assert discovery.table().targets == ()
        await api.apply(node("n1"))
        await eventually(lambda: CHECK in str(missing(discovery.table())))
        await api.apply(pod("n1", phase="Pending"))
        await eventually(lambda: "has not started" in str(missing(discovery.table())))
        await api.apply(pod("n1", state=running(), ready=True))
        await api.apply(endpoint_slice("s", [endpoint("10.0.0.1", "n1")]))
        await eventually(lambda: [t.addresses for t in discovery.table().targets] != [])
        await eventually(lambda: discovery.table().explanations == {})
        assert missing(discovery.table()) == {}
        await api.delete("EndpointSlice", "s")
        await api.delete("Pod", "agent-n1")
        await api.delete("Node", "n1")
        await eventually(lambda: not discovery.table().targets)
        assert missing(discovery.table()) == {}


async def test_a_node_between_two_pods_is_missed_for_a_while(api: FakeApiServer) -> None:
    now = 1000.0
    slices = endpoint_slice("s", [endpoint("10.0.0.1", "n1"), endpoint("10.0.0.2", "n2")])
    without = endpoint_slice("s", [endpoint("10.0.0.1", "n1")])
    await api.apply(slices)
    for verb in ("list", "watch"):
        api.deny(verb, "nodes")
    async with discovering(api, SELECTOR, clock=lambda: now) as discovery:

        async def shows(document: Document, *nodes: str) -> None:
            await api.apply(document)
            await eventually(lambda: [t.node for t in discovery.table().targets] == [*nodes])

        await shows(slices, "n1", "n2")
        await shows(without, "n1")
        assert missing(discovery.table()) == {
            "n2": "its agent's pod has gone, and no other has come yet"
        }
        await shows(slices, "n1", "n2")
        assert missing(discovery.table()) == {}
        await shows(without, "n1")
        now += module.RETAIN_SECONDS
        assert set(missing(discovery.table())) == {"n2"}
        now += 1
        assert missing(discovery.table()) == {}

        # A node that is known to be gone is not missed at all.
        await api.apply(node("n1", gpus=0))
        for verb in ("list", "watch"):
            api.allow(verb, "nodes")
        await eventually(lambda: discovery.table().problem is None)
        await shows(slices, "n1", "n2")
        await shows(without, "n1")
        assert missing(discovery.table()) == {}


async def test_an_outage_keeps_the_table_and_says_so_once(api: FakeApiServer) -> None:
    await api.apply(endpoint_slice("s", [endpoint("10.0.0.1", "n1")]))
    async with discovering(api, SELECTOR) as discovery:
        before = discovery.table()
        await api.stop()
        await eventually(lambda: discovery.table().problem)
        during = discovery.table()
        assert (during.targets, during.as_of) == (before.targets, before.as_of)
        assert during.problem is not None
        assert during.problem.count("cannot reach the API server") == 1
        assert "object at" not in during.problem
        await api.apply(endpoint_slice("s", [endpoint("10.0.0.2", "n2")]))
        await api.start()
        await eventually(lambda: [t.node for t in discovery.table().targets] == ["n2"])
        await eventually(lambda: discovery.table().problem is None)
        assert discovery.table().as_of > before.as_of
    assert {r: api.lists(r) for r in ("endpointslices", "pods", "nodes")} == {
        "endpointslices": 1,
        "pods": 1,
        "nodes": 1,
    }


async def test_nodes_that_may_not_be_listed_cost_the_table_nothing(
    api: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    for verb in ("list", "watch"):
        api.deny(verb, "nodes")
    await api.apply(endpoint_slice("s", [endpoint("10.0.0.1", "n1")]))
    async with discovering(api, SELECTOR) as discovery:
        await eventually(lambda: api.count("watch", "nodes") > 3)
        table = discovery.table()
        assert [target.node for target in table.targets] == ["n1"]
        assert table.problem is not None
        assert table.problem.startswith("cannot watch nodes: forbidden: User ")
        assert 'cannot watch resource "nodes" in API group "" at the cluster scope' in table.problem
        assert table.problem.endswith("grant list and watch; nodes without an agent are not seen")
        assert caplog.text.count("cannot watch") == 1
        for verb in ("list", "watch"):
            api.allow(verb, "nodes")
        await eventually(lambda: discovery.table().problem is None)


async def test_pods_that_may_not_be_listed_leave_agents_unexplained(api: FakeApiServer) -> None:
    api.deny("watch", "pods")
    table = await look(api, endpoint_slice("s", [endpoint("10.0.0.1", "n1")]), pod("n2"))
    assert [target.node for target in table.targets] == ["n1"]
    assert table.problem is not None
    assert table.problem.endswith("silent agents are not explained")


def inside(namespace: str, document: Document) -> Document:
    """The object in another namespace than the server's own."""
    return document | {"metadata": document["metadata"] | {"namespace": namespace}}


async def released_twice(api: FakeApiServer) -> None:
    """Agents of one name in two namespaces, and in the second a pod that does not start."""
    for namespace in ("gpu", "other"):
        here = endpoint("10.0.0.1", f"n-{namespace}", uid=f"uid-{namespace}", pod="agent-x")
        await api.apply(inside(namespace, endpoint_slice("s", [here])))
        agent = pod(f"n-{namespace}", name="agent-x", uid=f"uid-{namespace}", state=running())
        await api.apply(inside(namespace, agent))
    await api.apply(inside("other", pod("n3", phase="Pending")))


async def test_all_namespaces_that_may_be_listed_are_looked_in(api: FakeApiServer) -> None:
    await released_twice(api)
    table = await look(api, namespace="", everywhere=True)
    assert [(t.node, t.namespace, t.pod) for t in table.targets] == [
        ("n-gpu", "gpu", "agent-x"),
        ("n-other", "other", "agent-x"),
    ]
    assert {key: each.text for key, each in table.explanations.items()} == {
        f"uid-{namespace}": "agent pod agent-x runs and is not ready"
        for namespace in ("gpu", "other")
    }
    assert set(missing(table)) == {"n3"}
    assert (table.source, table.problem) == ("Kubernetes, all namespaces", None)


async def test_a_namespace_that_is_named_is_the_only_one(api: FakeApiServer) -> None:
    await released_twice(api)
    table = await look(api, namespace="other", everywhere=True)
    assert [target.node for target in table.targets] == ["n-other"]
    assert table.source == "Kubernetes, namespace other"


async def test_where_not_all_may_be_listed_it_is_the_contexts_namespace(
    api: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    await released_twice(api)
    api.bound_in = {"gpu"}
    table = await look(api, namespace="", everywhere=True)
    assert [target.node for target in table.targets] == ["n-gpu"]
    # Nothing is wrong, and the source says how far it looked.
    assert (table.source, table.problem) == ("Kubernetes, namespace gpu", None)
    assert caplog.text == ""


async def test_a_right_that_is_taken_away_takes_no_agents_with_it(api: FakeApiServer) -> None:
    await released_twice(api)
    async with discovering(api, SELECTOR, namespace="", everywhere=True) as discovery:
        before = discovery.table()
        api.bound_in = {"gpu"}
        api.end_watches()
        await eventually(lambda: discovery.table().problem)
        table = discovery.table()
        assert (table.targets, table.source) == (before.targets, "Kubernetes, all namespaces")
        assert 'resource "endpointslices"' in (table.problem or "")


async def test_a_namespace_without_agents_says_that_others_may_not_be_listed(
    api: FakeApiServer,
) -> None:
    api.bound_in = {"gpu"}
    table = await look(api, namespace="", everywhere=True)
    assert table.problem == (
        f"no agent there matches {SELECTOR}; other namespaces may not be listed: "
        "name the agents' with --namespace"
    )


async def test_pods_of_other_namespaces_that_may_not_be_watched_are_told(
    api: FakeApiServer,
) -> None:
    await released_twice(api)
    api.bound_in, api.bound_everywhere = {"gpu"}, {"endpointslices"}
    table = await look(api, namespace="", everywhere=True)
    assert [target.node for target in table.targets] == ["n-gpu", "n-other"]
    assert set(table.explanations) == {"uid-gpu"}
    assert table.problem == (
        "pods may be watched in namespace gpu alone: silent agents of others are not explained"
    )


async def refused(discovery: KubernetesDiscovery) -> str:
    """What a first look that finds nothing out says."""
    async with anyio.create_task_group() as group:
        with anyio.fail_after(30):
            await group.start(discovery.run)
        with pytest.raises(DiscoveryError) as caught:
            discovery.table()
        group.cancel_scope.cancel()
    return str(caught.value)


def over(kubeconfig: Path, **settings: Any) -> KubernetesDiscovery:
    return KubernetesDiscovery(KubernetesApi(str(kubeconfig)), selector=SELECTOR, **settings)


async def test_slices_that_may_not_be_watched_are_an_error_to_act_on(api: FakeApiServer) -> None:
    api.deny("watch", "endpointslices")
    said = await refused(over(api.kubeconfig))
    assert said.startswith("Kubernetes, namespace gpu: cannot watch EndpointSlices: forbidden: ")
    assert 'cannot watch resource "endpointslices" in API group "discovery.k8s.io"' in said
    assert 'in the namespace "gpu"' in said
    assert "grant list and watch" in said


async def test_all_that_is_forbidden_is_named_at_once(api: FakeApiServer) -> None:
    for resource in ("endpointslices", "pods", "nodes"):
        api.deny("watch", resource)
    said = await refused(over(api.kubeconfig))
    for resource in ("endpointslices", "pods", "nodes"):
        assert f'cannot watch resource "{resource}"' in said
    assert said.endswith("; grant list and watch")


async def test_who_may_look_nowhere_is_told_what_to_name_however_long_their_name(
    api: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.bound_in = set()
    api.deny("watch", "nodes")
    monkeypatch.setattr(server, "USER", "arn:aws:sts::123456789012:assumed-role/Dev/" + "x" * 200)
    said = await refused(over(api.kubeconfig, everywhere=True))
    assert said.startswith("Kubernetes, namespace gpu: cannot watch EndpointSlices: forbidden: ")
    assert said.endswith("name the agents' with --namespace")


async def test_a_person_is_told_how_to_renew_credentials(
    api: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    api.tokens.clear()
    said = await refused(over(api.kubeconfig, login="kubectl --context x version"))
    assert said.endswith("not accepted: run `kubectl --context x version` in a terminal")
    assert caplog.text.count("cannot watch") == 1


async def test_credentials_that_have_expired_are_named_as_that(api: FakeApiServer) -> None:
    api.tokens.clear()
    said = await refused(over(api.kubeconfig))
    assert said.count("HTTP 401") == 1
    assert said.endswith("; the credentials have expired or are not accepted")


async def test_an_api_server_that_is_away_at_the_start_is_named(api: FakeApiServer) -> None:
    await api.stop()
    assert "cannot reach the API server: Cannot connect" in await refused(over(api.kubeconfig))


async def test_a_kubeconfig_that_is_none_is_named(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("hello")
    assert "no usable Kubernetes credentials" in await refused(over(kubeconfig))


async def test_an_api_server_that_does_not_answer_holds_the_start_up_for_a_while_only(
    api: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_LOOK_SECONDS", 0.2)
    for resource in ("endpointslices", "pods", "nodes"):
        api.fault("watch", resource, "hang")
    assert "the API server has not answered yet" in await refused(over(api.kubeconfig))


async def test_the_namespace_is_the_kubeconfigs_unless_another_is_named(
    api: FakeApiServer,
) -> None:
    await api.apply(endpoint_slice("s", [endpoint("10.0.0.1", "n1")]))
    assert [t.node for t in (await look(api, namespace="")).targets] == ["n1"]
    table = await look(api, namespace="other")
    assert (table.targets, table.source) == ((), "Kubernetes, namespace other")
    assert table.problem == f"no agent there matches {SELECTOR}"

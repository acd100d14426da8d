"""What is read of a cluster, with every grant, without one, and from servers that misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from mcp_gpu.fleet.connectivity.model import NodeSurvey, PathResult, Place, Survey
from mcp_gpu.fleet.diagnosis.cni import Felix, IpPool, Plugin
from mcp_gpu.fleet.diagnosis.diagnosis import diagnose
from mcp_gpu.fleet.diagnosis.evidence import Evidence, read_evidence
from mcp_gpu.fleet.diagnosis.model import Unread
from mcp_gpu.fleet.diagnosis.nodes import NodeFacts, instance, region
from mcp_gpu.fleet.diagnosis.pods import POD_ENI
from support.kubeapi import documents
from support.kubeapi.server import FakeApiServer
from transports.base import Target
from transports.kubernetes import KubernetesApi

POOL = {"name": "default-ipv4-ippool"}
CROSS = {"cidr": "10.244.0.0/16", "vxlanMode": "CrossSubnet", "ipipMode": "Never"}

GRANTS = {
    "nodes": "list nodes",
    "pods": "list pods in namespace gpu",
    "namespaces": "list namespaces",
    "daemonsets": "list daemonsets.apps",
    "networkpolicies": "list networkpolicies.networking.k8s.io in namespace gpu",
    "ippools": "list ippools.crd.projectcalico.org",
    "felixconfigurations": "list felixconfigurations.crd.projectcalico.org",
    "globalnetworkpolicies": "list globalnetworkpolicies.crd.projectcalico.org",
    "ciliumnetworkpolicies": "list ciliumnetworkpolicies.cilium.io in namespace gpu",
    "peerauthentications": "list peerauthentications.security.istio.io",
}
"""By resource of the fake server: what to grant where it may not be listed."""


@pytest.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer() as server:
        for document in cluster():
            await server.apply(document)
        yield server


def cluster() -> list[dict[str, Any]]:
    """Three nodes as the seed's fault needs them, and some of everything."""
    found: list[dict[str, Any]] = []
    for number in (1, 2, 3):
        subnet = 0 if number < 3 else 1
        labels = {"topology.kubernetes.io/zone": f"eu-west-1{'ab'[subnet]}"}
        labels["eks.amazonaws.com/nodegroup"] = "gpus"
        node = documents.node(f"n{number}", labels=labels)
        node["spec"] |= {"providerID": f"aws:///eu-west-1a/i-0{number}", "podCIDR": "10.244.1.0/24"}
        node["status"]["addresses"] = [
            {"type": "Hostname", "address": f"n{number}"},
            {"type": "InternalIP", "address": f"10.0.{subnet}.{number}"},
            {"type": "InternalIP", "address": f"fd00::{number}"},
        ]
        node["status"]["nodeInfo"] = {"kernelVersion": "6.1.0"}
        note = {"projectcalico.org/IPv4Address": f"10.0.{subnet}.{number}/24"}
        node["metadata"]["annotations"] = note
        found += [node, agent(number)]
    gateway = agent(9, name="gateway", node="n1")
    gateway["metadata"]["labels"] = {"app.kubernetes.io/component": "gateway"}
    stranger = agent(8, name="stranger", node="n1")
    found += [gateway, stranger]
    found += [
        {"kind": "Namespace", "metadata": {"name": "gpu", "labels": {"team": "ml"}}},
        {"kind": "Namespace", "metadata": {"name": "other", "labels": {}}},
        {"kind": "IPPool", "metadata": POOL, "spec": CROSS},
        {"kind": "IPPool", "metadata": {"name": "off"}, "spec": CROSS | {"disabled": True}},
        {
            "kind": "FelixConfiguration",
            "metadata": {"name": "default"},
            "spec": {"vxlanPort": 4790, "vxlanMTU": 1400, "awsSrcDstCheck": "DoNothing"},
        },
        {"kind": "FelixConfiguration", "metadata": {"name": "node.n1"}, "spec": {"vxlanPort": 1}},
        {
            "kind": "NetworkPolicy",
            "metadata": {"name": "out", "namespace": "gpu"},
            "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]},
        },
        {"kind": "NetworkPolicy", "metadata": {"name": "x", "namespace": "other"}, "spec": {}},
        {"kind": "GlobalNetworkPolicy", "metadata": {"name": "all"}, "spec": {"selector": "x"}},
        {
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "cnp", "namespace": "gpu"},
            "spec": {"endpointSelector": {"matchLabels": {"k8s:app": "web"}}},
        },
        {
            "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": "istio-system"},
            "spec": {"mtls": {"mode": "STRICT"}, "portLevelMtls": {"9": {"mode": "DISABLE"}}},
        },
        daemonset("calico-node", {"FELIX_AWSSRCDSTCHECK": "DoNothing", "PASSWORD": "hunter2"}),
        daemonset("web", {"ENABLE_POD_ENI": "true"}),
    ]
    return found


def agent(number: int, *, name: str = "", node: str = "") -> dict[str, Any]:
    pod = documents.pod(node or f"n{number}", name=name, ready=True, state=documents.running())
    pod["metadata"]["annotations"] = {POD_ENI: "[]", "secret": "hunter2"}
    pod["metadata"]["ownerReferences"] = [{"kind": "DaemonSet", "name": "agents"}]
    pod["spec"]["serviceAccountName"] = "account"
    pod["spec"]["containers"][0]["ports"] = [
        {"name": "mcp", "containerPort": 8080},
        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        {"containerPort": 9},
    ]
    pod["spec"]["initContainers"] = [{"name": "istio-proxy", "restartPolicy": "Always"}]
    pod["status"] |= {"podIP": f"10.244.1.{number}", "hostIP": f"10.0.0.{number}"}
    pod["status"]["podIPs"] = [{"ip": f"10.244.1.{number}"}, {"ip": f"fd01::{number}"}]
    return pod


def daemonset(name: str, env: Mapping[str, str]) -> dict[str, Any]:
    container = {"name": "node", "env": [{"name": k, "value": v} for k, v in env.items()]}
    container["env"].append({"name": "AWS_VPC_K8S_CNI_EXTERNALSNAT", "valueFrom": {}})  # type: ignore[attr-defined]
    labels = {"k8s-app": name}
    return {
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def survey(count: int = 3, *, place: Place | None = None) -> Survey:
    """HTTP to n2, of the gateway's subnet, is lost."""
    nodes = tuple(
        NodeSurvey(
            f"n{number}",
            Target(
                node=f"n{number}",
                namespace="gpu",
                pod=f"agent-n{number}",
                uid=f"uid-n{number}",
                addresses=(f"10.244.1.{number}",),
            ),
            (
                PathResult("http", "connect_timeout" if number == 2 else "ok"),
                PathResult("exec", "ok"),
            ),
        )
        for number in range(1, count + 1)
    )
    return Survey(Place("n1", "gateway", "gpu") if place is None else place, nodes)


async def read(server: FakeApiServer, of: Survey | None = None, **more: Any) -> Evidence:
    async with KubernetesApi(str(server.kubeconfig)) as api:
        return await read_evidence(api, of or survey(), **more)


async def test_everything_is_read_that_a_diagnosis_goes_by(server: FakeApiServer) -> None:
    found = await read(server)
    assert found.unread == ()
    assert found.nodes["n3"] == NodeFacts(
        name="n3",
        addresses=("10.0.1.3", "fd00::3"),
        pod_cidrs=("10.244.1.0/24",),
        kernel="6.1.0",
        provider_id="aws:///eu-west-1a/i-03",
        zone="eu-west-1b",
        group="gpus",
        calico_address="10.0.1.3/24",
    )
    assert (instance(found.nodes["n3"]), region(found.nodes["n3"])) == ("i-03", "eu-west-1")
    assert sorted(found.pods) == [("gpu", f"agent-n{n}") for n in (1, 2, 3)] + [("gpu", "gateway")]
    pod = found.pods["gpu", "agent-n2"]
    assert pod.addresses == ("10.244.1.2", "fd01::2")
    assert (pod.node, pod.host_address, pod.host_network) == ("n2", "10.0.0.2", False)
    assert (pod.mesh, pod.account, pod.owner) == ("Istio", "account", "daemonset/agents")
    assert (dict(pod.ports), dict(pod.annotations)) == ({"mcp": 8080}, {POD_ENI: "[]"})
    assert found.namespaces == {"gpu": {"team": "ml"}}
    assert [(p.namespace, p.name) for p in found.policies] == [("gpu", "out")]
    assert found.pools == (IpPool("default-ipv4-ippool", "10.244.0.0/16", "CrossSubnet"),)
    assert found.felix == Felix(vxlan_port=4790, mtus={"vxlanMTU": 1400})
    assert found.plugins == (
        Plugin(
            "calico",
            "calico-node",
            "kube-system",
            {"FELIX_AWSSRCDSTCHECK": "DoNothing"},
            "k8s-app=calico-node",
        ),
    )
    assert sorted(each.title for each in found.other_policies) == [
        "CiliumNetworkPolicy cnp -n gpu",
        "globalnetworkpolicy.crd.projectcalico.org all",
    ]
    (authentication,) = found.authentications
    assert (authentication.mode, dict(authentication.ports)) == ("STRICT", {9: "DISABLE"})
    assert "hunter2" not in repr(found)
    # Calico's own NetworkPolicies are no kind of this server's: none, and no gap.
    assert "networkpolicies.crd.projectcalico.org" in found.read
    diagnosis = diagnose(survey(), found)
    assert [(c.code, c.confidence) for c in diagnosis.causes] == [
        ("crosssubnet-source-check", "high")
    ]


@pytest.mark.parametrize("plural", GRANTS)
async def test_without_one_grant_the_rest_is_read(server: FakeApiServer, plural: str) -> None:
    whole = await read(server)
    server.deny("list", plural)
    found = await read(server)
    assert [(each.why, each.grant) for each in found.unread] == [("forbidden", GRANTS[plural])]
    assert len(whole.read - found.read) == 1
    assert all(each.startswith(plural) for each in whole.read - found.read)
    emptied = [
        name
        for name in Evidence.__slots__
        if name not in ("read", "unread") and getattr(found, name) != getattr(whole, name)
    ]
    assert len(emptied) == 1
    diagnosis = diagnose(survey(), found)
    assert [each.grant for each in diagnosis.unread] == [GRANTS[plural]]
    # One gap leaves a cause for what is lost; without the pools, or nodes, it is less certain.
    assert "crosssubnet-source-check" in [each.code for each in diagnosis.causes] or (
        plural == "nodes"
    )


async def test_without_any_grant_the_pattern_is_still_told(server: FakeApiServer) -> None:
    for plural in GRANTS:
        server.deny("list", plural)
    found = await read(server)
    assert sorted(each.grant for each in found.unread) == sorted(GRANTS.values())
    assert found == replace(Evidence(), read=found.read, unread=found.unread)
    diagnosis = diagnose(survey(), found)
    assert [each.code for each in diagnosis.causes] == ["unknown"]
    assert diagnosis.verdict == "degraded"
    assert "# permit what was not read: list nodes" in diagnosis.causes[0].fix


async def test_a_server_that_errs_hangs_or_breaks_off_costs_one_collection_each(
    server: FakeApiServer,
) -> None:
    server.fault("list", "nodes", 500)
    server.fault("list", "daemonsets", "hang")
    server.fault("list", "ippools", "drop", "drop")  # one that was kept open is tried again
    server.fault("list", "namespaces", "half")
    found = await read(server, seconds=2.0)
    whys = {each.what: each.why for each in found.unread}
    assert whys.keys() == {
        "nodes",
        "daemonsets.apps",
        "ippools.crd.projectcalico.org",
        "namespaces",
    }
    assert whys["daemonsets.apps"] == "not read within 2 s"
    assert "scripted" in whys["nodes"]
    assert {each.grant for each in found.unread} == {""}
    assert len(found.pods) == 4
    assert not found.read & whys.keys()


async def test_an_object_that_is_not_as_it_should_be_costs_its_collection(
    server: FakeApiServer,
) -> None:
    await server.apply({"kind": "IPPool", "metadata": {"name": "odd"}, "spec": "text"})
    await server.apply(
        {
            "kind": "PeerAuthentication",
            "metadata": {"name": "odd"},
            "spec": {"portLevelMtls": {"http": {}}},
        }
    )
    found = await read(server)
    assert [each.what for each in found.unread] == [
        "ippools.crd.projectcalico.org",
        "peerauthentications.security.istio.io",
    ]
    assert all("not as its kind should be" in each.why for each in found.unread)


async def test_a_large_cluster_is_read_in_pages(server: FakeApiServer) -> None:
    for number in range(4, 601):
        await server.apply(documents.node(f"n{number}"))
        await server.apply(agent(number))
    found = await read(server, survey(600), selector=documents.SELECTOR, seconds=60)
    assert (len(found.nodes), len(found.pods), found.unread) == (600, 601, ())
    pages = [r for r in server.requests if r.resource == "nodes"]
    assert [r.params["limit"] for r in pages] == ["250"] * 3
    listed = [r.params for r in server.requests if r.resource == "pods"]
    assert sum(p.get("labelSelector") == documents.SELECTOR for p in listed) == 3
    assert sum(p.get("fieldSelector") == "metadata.name=gateway" for p in listed) == 1


async def test_nobody_is_asked_about_agents_outside_of_kubernetes(server: FakeApiServer) -> None:
    static = NodeSurvey("n1", Target(node="n1", addresses=("10.9.9.9",)), ())
    assert await read(server, Survey(Place(), (static,))) == Evidence()
    assert server.requests == []


async def test_a_laptop_reads_of_the_agents_namespace_alone(server: FakeApiServer) -> None:
    found = await read(server, survey(place=Place()))
    assert sorted(found.pods) == [("gpu", f"agent-n{n}") for n in (1, 2, 3)]
    assert sorted(found.namespaces) == ["gpu"]


async def test_only_so_many_namespaces_are_looked_into(server: FakeApiServer) -> None:
    targets = [Target(node=f"n{n}", namespace=f"ns{n:02}", pod="agent") for n in range(25)]
    many = Survey(Place(), tuple(NodeSurvey(t.node, t, ()) for t in targets))
    found = await read(server, many)
    assert found.unread == (
        Unread(
            what="pods and policies of 5 more namespaces", why="only 20 are looked into", grant=""
        ),
    )
    assert server.count("list", "pods") == 20

"""NetworkPolicies are enforced where a test asks for it, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.cluster import Cluster
from cluster.plan import API_SERVICE_ADDRESS
from cluster.pods import Pod, pods
from cluster.policies import policies_enforced, settle
from cluster.probes import PORT, SELECTOR, answers, fetch, probes, stranger
from cluster.process import CommandError, run

NAMESPACE = "policed"

PROBES = {"matchLabels": {"app": "probe"}}
STRANGER = {"matchLabels": {"app": "stranger"}}


@pytest.fixture(scope="module")
def answering(own_cluster: Cluster, busybox: str) -> Iterator[list[Pod]]:
    """The probes, one on each node, and last a stranger beside the first of them."""
    with probes(own_cluster, NAMESPACE, busybox):
        found = pods(own_cluster, NAMESPACE, SELECTOR, 3)
        with stranger(own_cluster, NAMESPACE, busybox) as other:
            yield [*found, other]


@pytest.fixture(scope="module")
def enforced(own_cluster: Cluster, answering: list[Pod]) -> Iterator[list[Pod]]:
    with policies_enforced(own_cluster):
        yield answering


def apply(cluster: Cluster, **spec: Any) -> None:
    """The one policy of the namespace; the probes' unless it says otherwise."""
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "policy", "namespace": NAMESPACE},
        "spec": {"podSelector": PROBES, **spec},
    }
    cluster.kubectl("-n", NAMESPACE, "delete", "networkpolicy", "--all")
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(policy))
    settle(cluster)


def reached(sender: Pod, *targets: Pod) -> list[bool]:
    return [fetch(sender, target.address, "index.html") is not None for target in targets]


def test_policies_count_within_the_block_and_nothing_stays_after_it(
    own_cluster: Cluster, answering: list[Pod]
) -> None:
    *found, stranger = answering
    node = own_cluster.node("n1")

    def tables() -> str:
        return run(*node.wires(), "nft", "list", "tables")

    before = tables()
    with policies_enforced(own_cluster):
        apply(own_cluster, policyTypes=["Ingress"])
        assert reached(stranger, *found) == [False] * 3
    # The policy is still there.
    assert reached(stranger, *found) == [True] * 3
    assert tables() == before
    assert run(*node.wires(), "ipset", "list", "-n") == ""
    assert node.process("kube-router") is None
    own_cluster.kubectl("-n", NAMESPACE, "delete", "networkpolicy", "--all")


def test_nothing_is_forbidden_without_a_policy(enforced: list[Pod]) -> None:
    *found, stranger = enforced
    assert reached(stranger, *found) == [True] * 3


def test_a_policy_that_allows_nothing_keeps_everybody_out_but_the_kubelet(
    own_cluster: Cluster, enforced: list[Pod]
) -> None:
    *found, stranger = enforced
    apply(own_cluster, policyTypes=["Ingress"])
    for sender in (found[0], stranger):
        # Itself, and not those of the same node, of the same subnet and beyond it.
        own = sender is found[0]
        assert reached(sender, *found) == [own, False, False]
    for pod in found:
        url = f"http://{pod.address}:{PORT}/"
        own_cluster.run_in(pod.node.name, ["curl", "-sf", "--noproxy", "*", "-m", "3", url])
        another = next(name for name in own_cluster.nodes if name != pod.node.name)
        with pytest.raises(CommandError):
            own_cluster.run_in(another, ["curl", "-sf", "--noproxy", "*", "-m", "3", url])


def test_who_may_come_in_is_said_by_labels_and_port(
    own_cluster: Cluster, enforced: list[Pod]
) -> None:
    *found, stranger = enforced
    here = {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}
    allowed = {"podSelector": STRANGER, "namespaceSelector": here}
    for ports, expected in (
        ([{"port": PORT}], True),
        ([{"port": PORT - 80, "endPort": PORT + 10}], True),
        ([{"port": PORT + 1}], False),
    ):
        apply(own_cluster, ingress=[{"from": [allowed], "ports": ports}])
        assert reached(stranger, *found) == [expected] * 3
        assert reached(found[0], *found[1:]) == [False] * 2
    address = {"ipBlock": {"cidr": "10.244.0.0/16", "except": [f"{found[1].address}/32"]}}
    apply(own_cluster, ingress=[{"from": [address]}])
    assert reached(found[2], found[0]) == reached(stranger, found[0]) == [True]
    assert reached(found[1], found[0], found[2]) == [False, False]


def test_who_may_be_called_is_judged_behind_the_service(
    own_cluster: Cluster, enforced: list[Pod]
) -> None:
    """As network plugins do: by the pod that a Service has chosen, by the API server's own
    address and port."""
    *found, stranger = enforced
    query = ["get", "service", "probe", "-o", "jsonpath={.spec.clusterIP}"]
    service = own_cluster.kubectl("-n", NAMESPACE, *query)
    to_probes = {"to": [{"podSelector": PROBES}], "ports": [{"port": PORT}]}
    apply(own_cluster, podSelector=STRANGER, policyTypes=["Egress"], egress=[to_probes])
    assert reached(stranger, *found) == [True] * 3
    assert answers(stranger, f"http://{service}/")
    assert not answers(stranger, f"https://{API_SERVICE_ADDRESS}/healthz")
    address = {"ipBlock": {"cidr": f"{own_cluster.plan.api_address}/32"}}
    to_server = {"to": [address], "ports": [{"port": 6443}]}
    apply(own_cluster, podSelector=STRANGER, policyTypes=["Egress"], egress=[to_server])
    assert answers(stranger, f"https://{API_SERVICE_ADDRESS}/healthz")
    assert not answers(stranger, f"http://{service}/")
    assert reached(stranger, *found) == [False] * 3
    # It may still be called, and answer.
    assert answers(found[0], f"http://{stranger.address}:{PORT}/")

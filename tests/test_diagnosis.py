"""Every cause from the pattern and the evidence that name it, and from none that do not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcp_gpu.fleet.connectivity.model import Outcome, Place, Survey
from mcp_gpu.fleet.diagnosis import evidence
from mcp_gpu.fleet.diagnosis.cni import Felix, IpPool, Plugin
from mcp_gpu.fleet.diagnosis.diagnosis import diagnose
from mcp_gpu.fleet.diagnosis.evidence import Evidence
from mcp_gpu.fleet.diagnosis.mesh import OtherPolicy, PeerAuthentication
from mcp_gpu.fleet.diagnosis.model import CODES, Cause, Diagnosis, Unread
from mcp_gpu.fleet.diagnosis.pods import POD_ENI
from mcp_gpu.fleet.diagnosis.policies import Selector
from support.surveys import EVERYTHING, GATEWAY, Fleet, policy

PAGE = Path(__file__).parent.parent / "docs" / "troubleshooting" / "cross-node-networking.md"

CROSS = (IpPool("default-ipv4-ippool", "10.244.0.0/16", vxlan="CrossSubnet"),)
ALWAYS = (IpPool("default-ipv4-ippool", "10.244.0.0/16", vxlan="Always"),)
VPC_CNI = Plugin("vpc-cni", "aws-node", "kube-system", {})
FLANNEL = Plugin("flannel", "kube-flannel-ds", "kube-flannel", {}, "app=flannel")
CILIUM = Plugin("cilium", "cilium", "kube-system", {}, "k8s-app=cilium")

CALICO = Fleet(pools=CROSS, felix=Felix())
WRAPPED = Fleet(pools=ALWAYS, felix=Felix())
ROUTED = Fleet(plugins=(VPC_CNI,), annotated=False)
BLIND = EVERYTHING - {
    "ippools.crd.projectcalico.org",
    "felixconfigurations.crd.projectcalico.org",
    "networkpolicies.networking.k8s.io",
}
"""What a role that is granted nodes and pods alone has read."""


def all_of(names: list[str], outcome: Outcome = "connect_timeout") -> dict[str, Outcome]:
    return dict.fromkeys(names, outcome)


def diagnosed(fleet: Fleet) -> Diagnosis:
    return diagnose(fleet.survey(), fleet.evidence())


def cause(diagnosis: Diagnosis, code: str) -> Cause:
    return next(each for each in diagnosis.causes if each.code == code)


REMOTE = ["n1", "n2", "n3", "n4", "n5"]
LINUX_BRIDGE = {"kernel": "5.4.0"}
ENI = {"annotations": {POD_ENI: '[{"eniId":"eni-0a1","privateIp":"10.0.0.7"}]'}}
MESHED = {"mesh": "Istio"}
V6 = {"addresses": ("fd00::5",)}
GROUPED = {f"n{n}": {"group": "gpu-b" if n in (2, 4) else "gpu-a"} for n in range(6)}
HYBRID = {"n4": {"provider_id": "eks-hybrid:///x/n4"}, "n5": {"provider_id": "eks-hybrid:///x/n5"}}
TWO_CARDS = {n: {"addresses": ("10.0.0.7", "10.0.9.7")} for n in ("n2", "n3")}

NAMED = [
    # The one this product began with: same node answers, same subnet does not, others do.
    ("crosssubnet-source-check", "high", CALICO.but(http=all_of(["n1", "n2", "n4"]))),
    ("crosssubnet-source-check", "high", CALICO.but(subnets=1, http=all_of(REMOTE))),
    (
        "crosssubnet-source-check",
        "medium",
        CALICO.but(subnets=1, http=all_of(REMOTE), provider="openstack:///{}"),
    ),
    (
        "crosssubnet-source-check",
        "medium",
        CALICO.but(http=all_of(["n1", "n2", "n4"]), felix=Felix(source_check="Disable")),
    ),
    # Some machines have the check on.
    ("crosssubnet-source-check", "medium", CALICO.but(http=all_of(["n1"]))),
    # The pools may not be read: the pattern alone.
    (
        "crosssubnet-source-check",
        "medium",
        CALICO.but(http=all_of(["n1", "n2", "n4"]), pools=(), felix=None, more={"read": BLIND}),
    ),
    (
        "crosssubnet-source-check",
        "high",
        CALICO.but(
            pools=(IpPool("p", "10.244.0.0/16", ipip="CrossSubnet"),),
            http=all_of(["n1", "n2", "n4"], "silent"),
        ),
    ),
    ("network-policy", "high", WRAPPED.but(http=all_of(REMOTE), policies=(policy(),))),
    (
        "network-policy",
        "high",
        # It explains what a source/destination check would look like, too.
        CALICO.but(subnets=1, http=all_of(REMOTE), policies=(policy(),)),
    ),
    (
        "network-policy",
        "high",
        WRAPPED.but(
            http=all_of(REMOTE),
            policies=(policy(podSelector={"matchLabels": GATEWAY}, policyTypes=["Egress"]),),
        ),
    ),
    ("network-policy", "medium", WRAPPED.but(http=all_of(REMOTE, "refused"), policies=(policy(),))),
    (
        "network-policy",
        "medium",
        Fleet(http=all_of(REMOTE), policies=(policy(),), plugins=(FLANNEL,)),
    ),
    (
        "cni-policy",
        "medium",
        Fleet(
            http=all_of(["n0", *REMOTE]),
            plugins=(CILIUM,),
            more={
                "other_policies": (OtherPolicy("CiliumNetworkPolicy", "gpu", "deny", Selector()),)
            },
        ),
    ),
    (
        "cni-policy",
        "low",
        Fleet(
            count=2,
            http={"n1": "connect_timeout"},
            more={"other_policies": (OtherPolicy("GlobalNetworkPolicy", "", "deny"),)},
            pods={"n0": {"labels": {}}},
            vias=("http",),
        ).but(http={"n0": "not_tried", "n1": "connect_timeout"}),
    ),
    ("overlay-blocked", "high", CALICO.but(http=all_of(["n3", "n5"]))),
    ("overlay-blocked", "medium", WRAPPED.but(http=all_of(REMOTE))),
    ("overlay-blocked", "low", WRAPPED.but(http=all_of(REMOTE), more={"read": BLIND})),
    ("overlay-blocked", "high", WRAPPED.but(http=all_of(["n2", "n4"]), nodes=GROUPED)),
    ("overlay-blocked", "low", Fleet(http=all_of(REMOTE), plugins=(CILIUM,))),
    (
        "overlay-blocked",
        "medium",
        Fleet(
            http=all_of(REMOTE),
            plugins=(FLANNEL,),
            nodes={f"n{n}": {"flannel": "vxlan"} for n in range(6)},
        ),
    ),
    (
        "checksum-offload",
        "medium",
        WRAPPED.but(http=all_of(["n2", "n3"]), nodes=dict.fromkeys(("n2", "n3"), LINUX_BRIDGE)),
    ),
    ("checksum-offload", "low", WRAPPED.but(http=all_of(REMOTE))),
    ("mtu", "high", CALICO.but(http={"n3": "large_lost"})),
    ("mtu", "medium", CALICO.but(http={"n3": "large_lost"}, vias=("http",))),
    (
        "mtu",
        "high",  # the machine's own link
        CALICO.but(
            http={"n3": "large_lost"}, portforward={"n3": "large_lost"}, exec={"n3": "silent"}
        ),
    ),
    ("mtu", "medium", CALICO.but(portforward={"n3": "large_lost"}, vias=("portforward",))),
    (
        "mesh-mtls",
        "high",
        Fleet(
            http=all_of(["n0", *REMOTE], "reset"),
            pods={f"n{n}": MESHED for n in range(6)},
            more={
                "authentications": (PeerAuthentication("istio-system", "default", "STRICT"),),
            },
        ),
    ),
    (
        "mesh-mtls",
        "medium",
        Fleet(http=all_of(["n0", *REMOTE], "http_error"), gateway={"mesh": "Linkerd"}),
    ),
    ("reverse-path", "medium", Fleet(http=all_of(["n2", "n3"]), nodes=TWO_CARDS)),
    (
        "vpc-cni-snat",
        "medium",
        ROUTED.but(http=all_of(["n4", "n5"]), nodes=HYBRID),
    ),
    (
        "pod-security-group",
        "high",
        ROUTED.but(http=all_of(["n2", "n3"]), pods={"n2": ENI, "n3": ENI}),
    ),
    (
        "pod-security-group",
        "medium",
        ROUTED.but(http=all_of(["n0", *REMOTE]), pods={f"n{n}": ENI for n in range(6)}),
    ),
    ("security-group", "high", ROUTED.but(http=all_of(["n2", "n4"]), nodes=GROUPED)),
    ("security-group", "medium", ROUTED.but(http=all_of(REMOTE))),
    ("security-group", "low", ROUTED.but(http=all_of(REMOTE), more={"read": BLIND})),
    ("agent-absent", "high", CALICO.but(absent=(("n9", "the pod cannot be scheduled"),))),
    (
        "agent-down",
        "high",
        CALICO.but(
            http={"n3": "refused"}, portforward={"n3": "refused"}, exec={"n3": "not_running"}
        ),
    ),
    (
        "agent-down",
        "medium",  # it hangs
        CALICO.but(http={"n3": "silent"}, portforward={"n3": "silent"}, exec={"n3": "silent"}),
    ),
    (
        "agent-not-listening",
        "high",
        CALICO.but(http={"n3": "refused"}, portforward={"n3": "refused"}),
    ),
    ("agent-not-listening", "medium", CALICO.but(http={"n3": "refused"}, vias=("http", "exec"))),
    ("agent-on-loopback", "high", CALICO.but(http={"n3": "refused"})),
    ("stale-address", "high", CALICO.but(http={"n3": "wrong_identity"}, vias=("http",))),
    ("stale-address", "high", CALICO.but(http={"n3": "foreign"})),
    (
        "stale-address",
        "high",
        CALICO.but(
            http={"n3": "foreign"}, vias=("http",), pods={"n3": {"addresses": ("10.244.9.9",)}}
        ),
    ),
    ("stale-address", "medium", CALICO.but(http={"n3": "foreign"}, vias=("http",))),
    (
        "address-family",
        "high",
        Fleet(
            http=all_of(REMOTE, "no_route"),
            targets=dict.fromkeys(REMOTE, V6),
            pods=dict.fromkeys(REMOTE, V6),
        ),
    ),
    (
        "address-family",
        "medium",
        Fleet(
            http=all_of(REMOTE, "no_route"), targets=dict.fromkeys(REMOTE, V6), more={"pods": {}}
        ),
    ),
    ("name-resolution", "high", Fleet(http=all_of(["n0", *REMOTE], "dns"))),
    (
        "node-down",
        "high",
        CALICO.but(
            http={"n3": "connect_timeout"},
            portforward={"n3": "kubelet_unreachable"},
            exec={"n3": "kubelet_unreachable"},
            nodes={"n3": {"trouble": "the node is not ready: Kubelet stopped posting"}},
        ),
    ),
    (
        "node-down",
        "medium",
        CALICO.but(
            http={"n3": "connect_timeout"},
            portforward={"n3": "kubelet_unreachable"},
            exec={"n3": "kubelet_unreachable"},
            more={"nodes": {}},
        ),
    ),
    ("node-network", "medium", WRAPPED.but(count=12, http={"n5": "connect_timeout"})),
    ("node-network", "low", WRAPPED.but(count=12, http={"n5": "connect_timeout"}, vias=("http",))),
    (
        "kubelet-unreachable",
        "high",
        CALICO.but(exec={"n2": "kubelet_unreachable"}, portforward={"n2": "kubelet_unreachable"}),
    ),
    (
        "kubelet-unreachable",
        "high",  # from a laptop, where nothing else leads to the nodes
        CALICO.but(
            place=Place(),
            http=all_of(["n0", *REMOTE]),
            exec=all_of(["n0", *REMOTE], "kubelet_unreachable"),
            portforward=all_of(["n0", *REMOTE], "kubelet_unreachable"),
        ),
    ),
    (
        "kubelet-unreachable",
        "medium",  # the API server says so only after 30 s
        CALICO.but(exec={"n2": "silent"}, portforward={"n2": "silent"}),
    ),
    (
        "kubelet-unreachable",
        "high",
        CALICO.but(
            exec={"n2": "silent"},
            portforward={"n2": "silent"},
            nodes={"n2": {"trouble": "the node is not ready: Kubelet stopped posting"}},
        ),
    ),
    (
        "kubelet-unreachable",
        "medium",
        CALICO.but(
            place=Place(),
            vias=("portforward", "exec"),
            exec=all_of(["n0", *REMOTE], "silent"),
            portforward=all_of(["n0", *REMOTE], "silent"),
        ),
    ),
    ("api-unreachable", "high", CALICO.but(exec=all_of(["n0", *REMOTE], "api_unreachable"))),
    ("api-credentials", "high", CALICO.but(exec=all_of(["n0", *REMOTE], "credentials"))),
    ("stream-rbac", "high", CALICO.but(exec=all_of(["n0", *REMOTE], "rbac"))),
    ("stream-admission", "high", CALICO.but(exec=all_of(["n0", *REMOTE], "admission"))),
    ("no-relay", "high", CALICO.but(exec=all_of(["n0", *REMOTE], "no_command"))),
    ("token-rejected", "high", CALICO.but(http={"n3": "unauthorized"})),
    ("token-rejected", "medium", CALICO.but(http={"n3": "forbidden"})),
    ("certificate-untrusted", "high", CALICO.but(http={"n3": "tls_untrusted"})),
    ("certificate-name", "high", CALICO.but(http=all_of(["n0", *REMOTE], "tls_name"))),
    ("certificate-expired", "high", CALICO.but(http=all_of(["n0", *REMOTE], "tls_expired"))),
    ("tls-scheme", "high", CALICO.but(http=all_of(["n0", *REMOTE], "tls_scheme"))),
    ("tls", "high", CALICO.but(http=all_of(["n0", *REMOTE], "tls"))),
    (
        "kernel-regression",
        "low",
        Fleet(
            http={"n2": "reset"},
            nodes={f"n{n}": {"kernel": "5.14.0-611.el9.x86_64"} for n in range(6)},
        ),
    ),
    ("unknown", "low", Fleet(http={"n2": "other"})),
    ("unknown", "low", Fleet(http=all_of(REMOTE))),
]


@pytest.mark.parametrize(
    ("code", "confidence", "fleet"), NAMED, ids=[f"{i}-{n[0]}" for i, n in enumerate(NAMED)]
)
def test_a_cause_is_named(code: str, confidence: str, fleet: Fleet) -> None:
    found = diagnosed(fleet)
    assert [(each.code, each.confidence) for each in found.causes if each.code == code] == [
        (code, confidence)
    ], found
    assert cause(found, code).evidence
    assert cause(found, code).fix


def test_every_cause_has_a_case_above() -> None:
    # Its own test below: the http transport's words tell it.
    assert {code for code, _, _ in NAMED} | {"host-not-allowed"} == set(CODES)


FIRST = [
    ("network-policy", CALICO.but(subnets=1, http=all_of(REMOTE), policies=(policy(),))),
    ("crosssubnet-source-check", CALICO.but(http=all_of(["n1", "n2", "n4"]))),
    ("overlay-blocked", CALICO.but(http=all_of(["n3", "n5"]))),
    ("pod-security-group", ROUTED.but(http=all_of(["n2", "n3"]), pods={"n2": ENI, "n3": ENI})),
    ("security-group", ROUTED.but(http=all_of(["n2", "n4"]), nodes=GROUPED)),
    ("mtu", CALICO.but(http={"n3": "large_lost"})),
    (
        "agent-down",
        CALICO.but(http={"n3": "silent"}, portforward={"n3": "silent"}, exec={"n3": "silent"}),
    ),
    ("agent-on-loopback", CALICO.but(http={"n3": "refused"})),
    ("stale-address", CALICO.but(http={"n3": "foreign"})),
]


@pytest.mark.parametrize(("code", "fleet"), FIRST, ids=[code for code, _ in FIRST])
def test_a_plain_case_has_one_cause(code: str, fleet: Fleet) -> None:
    assert [each.code for each in diagnosed(fleet).causes] == [code]


NOT_NAMED = [
    # The pool wraps always; or the same node fails too; or other subnets do; or it is no Calico.
    ("crosssubnet-source-check", WRAPPED.but(http=all_of(["n1", "n2", "n4"]))),
    ("crosssubnet-source-check", CALICO.but(http=all_of(["n0", "n1", "n2", "n4"]))),
    ("crosssubnet-source-check", CALICO.but(http=all_of(REMOTE))),
    ("crosssubnet-source-check", ROUTED.but(http=all_of(["n1", "n2", "n4"]))),
    ("crosssubnet-source-check", CALICO.but(http=all_of(["n1", "n2", "n4"], "refused"))),
    # Agents that hang are no trouble of the network's; not where streams are silent to all.
    (
        "crosssubnet-source-check",
        CALICO.but(
            http=all_of(["n1", "n2", "n4"], "silent"),
            portforward=all_of(["n1", "n2", "n4"], "silent"),
            exec=all_of(["n1", "n2", "n4"], "silent"),
        ),
    ),
    (
        "crosssubnet-source-check",  # wrapped by something else
        CALICO.but(felix=Felix(wireguard=True), http=all_of(["n1", "n2", "n4"])),
    ),
    (
        "crosssubnet-source-check",  # another pool's addresses
        CALICO.but(
            pools=(IpPool("p", "10.99.0.0/16", vxlan="CrossSubnet"),),
            http=all_of(["n1", "n2", "n4"]),
        ),
    ),
    # Somebody forbids it, and it works all the same.
    ("network-policy", CALICO.but(http=all_of(["n1", "n2", "n4"]), policies=(policy(),))),
    # It is about other pods, another namespace, another direction.
    (
        "network-policy",
        WRAPPED.but(
            http=all_of(REMOTE), policies=(policy(podSelector={"matchLabels": {"a": "b"}}),)
        ),
    ),
    ("network-policy", WRAPPED.but(http=all_of(REMOTE), policies=(policy(namespace="other"),))),
    ("network-policy", WRAPPED.but(http=all_of(REMOTE), policies=(policy(ingress=[{}]),))),
    # Agents have the node's own network, about which policies say nothing.
    (
        "network-policy",
        WRAPPED.but(
            http=all_of(REMOTE),
            policies=(policy(),),
            pods={n: {"host_network": True} for n in REMOTE},
        ),
    ),
    # May not be read: nobody guesses.
    (
        "network-policy",
        WRAPPED.but(http=all_of(REMOTE), policies=(policy(),), more={"read": BLIND}),
    ),
    (
        "cni-policy",  # selects other pods
        Fleet(
            http=all_of(["n0", *REMOTE]),
            more={
                "other_policies": (
                    OtherPolicy("CiliumNetworkPolicy", "gpu", "x", Selector({"app": "web"})),
                )
            },
        ),
    ),
    ("overlay-blocked", CALICO.but(http=all_of(["n1", "n2", "n4"]))),
    ("overlay-blocked", WRAPPED.but(http=all_of(["n0", *REMOTE]))),
    ("overlay-blocked", WRAPPED.but(count=12, http=all_of(["n5"]))),
    ("overlay-blocked", ROUTED.but(http=all_of(REMOTE))),
    ("checksum-offload", CALICO.but(http=all_of(["n3", "n5"]))),
    ("checksum-offload", WRAPPED.but(count=12, http=all_of(["n5"]))),
    ("mtu", CALICO.but(http={"n3": "silent"})),
    ("mesh-mtls", Fleet(http=all_of(REMOTE, "reset"))),
    (
        "mesh-mtls",  # both ends are in it
        Fleet(
            http=all_of(REMOTE, "reset"),
            gateway={"mesh": "Istio"},
            pods={f"n{n}": MESHED for n in range(6)},
        ),
    ),
    (
        "mesh-mtls",  # the proxy leaves the port alone
        Fleet(
            http=all_of(REMOTE, "reset"),
            pods={
                f"n{n}": MESHED
                | {"annotations": {"traffic.sidecar.istio.io/excludeInboundPorts": "9, 8080"}}
                for n in range(6)
            },
        ),
    ),
    (
        "mesh-mtls",  # others of the kind answer
        Fleet(http={"n3": "reset"}, pods={f"n{n}": MESHED for n in range(6)}),
    ),
    ("reverse-path", Fleet(http=all_of(["n2", "n3"]), nodes={"n2": TWO_CARDS["n2"]})),
    (
        "reverse-path",
        Fleet(http=all_of(["n2", "n3"]), nodes=TWO_CARDS | {"n4": TWO_CARDS["n2"]}),
    ),
    ("vpc-cni-snat", ROUTED.but(http=all_of(["n2", "n5"]), nodes=HYBRID)),
    (
        "vpc-cni-snat",
        ROUTED.but(
            http=all_of(["n4", "n5"]),
            nodes=HYBRID,
            plugins=(replace(VPC_CNI, settings={"AWS_VPC_K8S_CNI_EXTERNALSNAT": "true"}),),
        ),
    ),
    ("pod-security-group", ROUTED.but(http=all_of(["n2", "n3"]), pods={"n2": ENI, "n4": ENI})),
    ("security-group", ROUTED.but(http=all_of(["n0", *REMOTE]))),
    ("security-group", CALICO.but(http=all_of(REMOTE), plugins=(VPC_CNI,))),
    ("agent-down", CALICO.but(http={"n3": "refused"}, portforward={"n3": "refused"})),
    ("agent-on-loopback", CALICO.but(http={"n3": "refused"}, portforward={"n3": "refused"})),
    ("agent-on-loopback", WRAPPED.but(http=all_of(REMOTE, "refused"), policies=(policy(),))),
    ("agent-not-listening", CALICO.but(http={"n3": "refused"})),
    ("address-family", Fleet(http=all_of(REMOTE, "no_route"))),
    (
        "address-family",  # one of two fits
        Fleet(
            http=all_of(REMOTE), targets={n: {"addresses": ("fd00::5", "10.9.9.9")} for n in REMOTE}
        ),
    ),
    ("kubelet-unreachable", CALICO.but(exec={"n2": "silent"})),
    (
        "kubelet-unreachable",  # the agent hangs
        CALICO.but(http={"n2": "silent"}, exec={"n2": "silent"}, portforward={"n2": "silent"}),
    ),
    (
        "agent-down",
        CALICO.but(
            http=all_of(REMOTE),
            exec=all_of(["n0", *REMOTE], "silent"),
            portforward=all_of(["n0", *REMOTE], "silent"),
        ),
    ),
    (
        "node-down",  # Kubernetes calls the node ready
        CALICO.but(
            http={"n3": "connect_timeout"},
            portforward={"n3": "kubelet_unreachable"},
            exec={"n3": "kubelet_unreachable"},
        ),
    ),
    ("node-network", WRAPPED.but(count=12, http=all_of(["n5", "n7", "n9", "n3"]))),
    ("node-network", WRAPPED.but(count=3, http={"n2": "connect_timeout"})),
    ("kernel-regression", Fleet(http={"n2": "reset"})),
    ("kernel-regression", Fleet(nodes={"n2": {"kernel": "5.14.0-611.el9"}})),
    ("unknown", CALICO.but(exec=all_of(["n0", *REMOTE], "other"))),
]


@pytest.mark.parametrize(
    ("code", "fleet"), NOT_NAMED, ids=[f"{i}-{n[0]}" for i, n in enumerate(NOT_NAMED)]
)
def test_a_near_miss_is_not_named(code: str, fleet: Fleet) -> None:
    assert code not in [each.code for each in diagnosed(fleet).causes]


LAPTOP = CALICO.but(place=Place(), http=all_of(["n0", *REMOTE]))
STATIC = Fleet(
    place=Place(),
    vias=("http", "command"),
    targets={f"n{n}": {"pod": "", "namespace": "", "uid": ""} for n in range(6)},
)

HEALTHY = {
    "Calico, CrossSubnet": CALICO,
    "Calico, VXLAN": WRAPPED,
    "Cilium": Fleet(plugins=(CILIUM,), annotated=False),
    "VPC CNI": ROUTED,
    "flannel": Fleet(plugins=(FLANNEL,), annotated=False, provider="k3s://{}"),
    "laptop": LAPTOP,
    "a policy that allows it": WRAPPED.but(
        policies=(policy(ingress=[{"from": [{"podSelector": {"matchLabels": GATEWAY}}]}]),)
    ),
    "a policy that nothing enforces": WRAPPED.but(policies=(policy(),)),
    "nothing may be read": CALICO.but(more={"nodes": {}, "pods": {}, "read": frozenset()}),
    "HTTP alone": CALICO.but(vias=("http",)),
}


@pytest.mark.parametrize("fleet", HEALTHY.values(), ids=HEALTHY.keys())
def test_a_healthy_fleet_has_no_cause(fleet: Fleet) -> None:
    found = diagnosed(fleet)
    assert (found.verdict, found.causes, found.ruled_out) == ("healthy", (), ())


def test_agents_outside_of_kubernetes_are_diagnosed_without_evidence() -> None:
    found = diagnose(STATIC.survey(), Evidence())
    assert (found.verdict, found.causes) == ("healthy", ())
    assert found.headline == "healthy: 6 of 6 nodes answer over http"
    assert found.patterns == (
        "agents outside Kubernetes: no cluster could be asked about its network",
        "all: 6 of 6 over http",
    )
    ill = STATIC.but(http={"n1": "refused", "n2": "wrong_identity", "n3": "connect_timeout"})
    codes = [each.code for each in diagnose(ill.survey(), Evidence()).causes]
    assert codes == ["stale-address", "agent-not-listening", "unknown"]


def test_a_laptop_is_not_expected_to_reach_pods() -> None:
    found = diagnosed(LAPTOP)
    assert found.headline == "healthy: 6 of 6 nodes answer over portforward"
    assert found.patterns == (
        "http: not expected to lead to pod addresses from outside the cluster",
    )
    # One that some pods do answer, as in a VPN, is told of those that do not.
    reaching = LAPTOP.but(http={"n3": "refused"})
    assert [each.code for each in diagnosed(reaching).causes] == ["agent-on-loopback"]
    denied = LAPTOP.but(portforward=all_of(["n0", *REMOTE], "rbac"))
    assert diagnosed(denied).verdict == "degraded"
    assert [each.code for each in diagnosed(denied).causes] == ["stream-rbac"]
    down = LAPTOP.but(portforward={"n3": "refused"}, exec={"n3": "not_running"})
    assert [each.code for each in diagnosed(down).causes] == ["agent-down"]


def test_the_verdict_goes_by_the_paths() -> None:
    assert diagnosed(CALICO.but(http={"n3": "refused"})).verdict == "degraded"
    cut = CALICO.but(
        http={"n3": "connect_timeout"}, portforward={"n3": "rbac"}, exec={"n3": "rbac"}
    )
    assert diagnosed(cut).verdict == "broken"
    assert diagnosed(CALICO.but(absent=(("n9", "no pod"),))).verdict == "broken"
    assert diagnosed(Fleet(count=0)).verdict == "unknown"
    untried = Fleet(http=all_of(["n0", *REMOTE], "not_tried"), vias=("http",))
    assert diagnosed(untried).headline == "unknown: no path was tried"
    # A fallback that is denied leaves a fleet healthy, and is told.
    denied = diagnosed(CALICO.but(exec=all_of(["n0", *REMOTE], "rbac")))
    assert (denied.verdict, [each.code for each in denied.causes]) == ("healthy", ["stream-rbac"])
    assert denied.headline == (
        "healthy: 6 of 6 nodes answer over http. Fallback (high confidence): RBAC does not let the"
        " gateway use exec"
    )


def test_the_gateways_node_may_be_known_from_its_pod() -> None:
    lost = CALICO.but(http=all_of(["n1", "n2", "n4"]))
    named, unnamed = diagnosed(lost), diagnosed(lost.but(place=Place("", "gateway", "gpu")))
    assert unnamed == named
    # Where not even that may be read, nothing is said of where agents are from it.
    blind = diagnosed(lost.but(place=Place("", "gateway", "gpu"), more={"pods": {}}))
    assert [each.code for each in blind.causes] == ["unknown"]
    assert blind.headline == (
        "degraded: 6 of 6 nodes answer, 3 of them over portforward only. No known cause fits"
    )
    assert blind.patterns[0] == "all: 3 of 6 over http"


def test_commands_fit_the_machines() -> None:
    elsewhere = CALICO.but(subnets=1, http=all_of(REMOTE), provider="openstack:///{}")
    assert not any("aws" in line for line in diagnosed(elsewhere).causes[0].fix)


def test_the_seeds_fault_is_told_whole() -> None:
    found = diagnosed(CALICO.but(count=3, http={"n1": "connect_timeout"}, subnets=3))
    assert found.headline == (
        "degraded: 3 of 3 nodes answer, 1 of them over portforward only. Cause (high confidence):"
        " pods' packets within a subnet are not wrapped (CrossSubnet), and a source/destination"
        " check drops them"
    )
    assert found.patterns == (
        "same node: 1 of 1 over http",
        "same subnet: 0 of 1 over http",
        "other subnets: 1 of 1 over http",
        "subnets are from Calico's node annotations",
        "zone eu-west-1a: 1 of 2, eu-west-1c: 1 of 1",
        "subnet 10.0.0.0/24: 1 of 2, 10.0.2.0/24: 1 of 1",
    )
    (only,) = found.causes
    assert only.nodes == ("n1",)
    assert only.evidence == (
        "1 of 1 nodes of the gateway's subnet are lost over http",
        "the gateway's own node answers",
        "1 of 1 of other subnets answer",
        "IPPool default-ipv4-ippool (10.244.0.0/16): vxlanMode CrossSubnet, ipipMode Never",
        "EC2 instances: the check is on unless somebody has turned it off",
    )
    assert only.fix == (
        "# one of these is enough; the first needs nobody's cloud account",
        "kubectl patch ippools.crd.projectcalico.org default-ipv4-ippool --type merge"
        ' -p \'{"spec":{"vxlanMode":"Always"}}\'',
        "# with Calico's operator instead: kubectl patch installation default --type json -p"
        ' \'[{"op":"replace","path":"/spec/calicoNetwork/ipPools/0/encapsulation",'
        '"value":"VXLAN"}]\'',
        "kubectl patch felixconfigurations.crd.projectcalico.org default --type merge"
        ' -p \'{"spec":{"awsSrcDstCheck":"Disable"}}\''
        "  # EC2: the nodes' role needs ec2:DescribeInstances and"
        " ec2:ModifyNetworkInterfaceAttribute",
        "# or by hand on each node; on one of several interfaces for each of them:"
        " aws ec2 modify-network-interface-attribute --region eu-west-1 --network-interface-id ENI"
        " --no-source-dest-check",
        "aws ec2 modify-instance-attribute --region eu-west-1 --instance-id i-00"
        " --no-source-dest-check  # n0",
        "aws ec2 modify-instance-attribute --region eu-west-1 --instance-id i-01"
        " --no-source-dest-check  # n1",
    )
    assert found.ruled_out == (
        "network-policy: NetworkPolicies: there are none",
        "overlay-blocked: every node that is reached by VXLAN answers",
    )


def test_a_policy_is_named_with_the_rule_that_is_missing() -> None:
    found = diagnosed(WRAPPED.but(http=all_of(REMOTE), policies=(policy("default-deny"),)))
    only = cause(found, "network-policy")
    assert only.evidence == (
        "NetworkPolicy default-deny of namespace gpu selects the agents, and no rule allows it",
        "missing: ingress from pods app.kubernetes.io/name=mcp-gpu,"
        "app.kubernetes.io/component=gateway of namespace gpu on TCP 8080",
    )
    assert only.fix == (
        "kubectl apply -f - <<'EOF'\n"
        "apiVersion: networking.k8s.io/v1\n"
        "kind: NetworkPolicy\n"
        "metadata: {name: allow-mcp-gpu-ingress, namespace: gpu}\n"
        "spec:\n"
        '  podSelector: {matchLabels: {app.kubernetes.io/name: "mcp-gpu",'
        ' app.kubernetes.io/component: "agent"}}\n'
        "  policyTypes: [Ingress]\n"
        "  ingress:\n"
        "    - ports: [{port: 8080, protocol: TCP}]\n"
        "      from:\n"
        "        - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: gpu}}\n"
        '          podSelector: {matchLabels: {app.kubernetes.io/name: "mcp-gpu",'
        ' app.kubernetes.io/component: "gateway"}}\n'
        "EOF",
    )


@pytest.mark.parametrize(
    "denying",
    [
        policy(),
        policy(policyTypes=["Ingress", "Egress"]),
        policy(podSelector={"matchLabels": GATEWAY}, policyTypes=["Egress"]),
    ],
)
@pytest.mark.parametrize("host", [False, True])
def test_applying_a_policys_fix_mends_it(denying: Any, host: bool) -> None:
    yaml = pytest.importorskip("yaml")
    fleet = WRAPPED.but(http=all_of(REMOTE), policies=(denying,))
    if host:
        fleet = fleet.but(gateway={"host_network": True, "addresses": ("10.0.0.1", "fd00::1")})
    added: list[Any] = []
    for _ in range(2):  # one for each end
        found = diagnosed(fleet.but(policies=(denying, *added)))
        fixes = [each.fix[0] for each in found.causes if each.code == "network-policy"]
        for text in fixes:
            document = yaml.safe_load(text.partition("\n")[2].removesuffix("EOF"))
            name, namespace = document["metadata"]["name"], document["metadata"]["namespace"]
            added.append(policy(name, namespace, **document["spec"]))
    if denying.egress is not None and denying.ingress is None and host:
        assert added == []  # nothing selects a pod of the node's network
    else:
        assert added
    final = diagnosed(fleet.but(policies=(denying, *added)))
    assert "network-policy" not in [each.code for each in final.causes]


def test_a_name_that_agents_do_not_serve_is_no_bad_token() -> None:
    fleet = CALICO.but(http={"n3": "forbidden"})
    survey = fleet.survey()
    nodes = tuple(
        replace(n, paths=(replace(n.paths[0], message="HTTP 421: not this host"), *n.paths[1:]))
        if n.node == "n3"
        else n
        for n in survey.nodes
    )
    found = diagnose(replace(survey, nodes=nodes), fleet.evidence())
    assert [each.code for each in found.causes] == ["host-not-allowed"]


def test_what_is_unknown_says_what_was_ruled_out_and_what_to_read() -> None:
    grants = Unread(what="daemonsets.apps", why="forbidden", grant="list daemonsets.apps")
    found = diagnosed(Fleet(http=all_of(REMOTE), more={"unread": (grants,)}))
    only = cause(found, "unknown")
    assert only.node_count == 5
    assert only.nodes == ("n1", "n2", "n3")
    assert only.fix[0] == "# permit what was not read: list daemonsets.apps"
    assert found.unread == (grants,)
    assert "network-policy: NetworkPolicies: there are none" in found.ruled_out


def test_two_causes_at_once_are_both_named() -> None:
    http: dict[str, Outcome] = {**all_of(["n1", "n2", "n4"]), "n3": "refused"}
    found = diagnosed(CALICO.but(http=http))
    assert [(each.code, each.nodes) for each in found.causes] == [
        ("crosssubnet-source-check", ("n1", "n2", "n4")),
        ("agent-on-loopback", ("n3",)),
    ]


def test_where_subnets_are_from_is_said() -> None:
    lost = all_of(["n1"])
    guessed = diagnosed(CALICO.but(annotated=False, http=lost))
    assert "subnets are from a guess: /24 of the nodes' addresses" in guessed.patterns
    labelled = CALICO.but(
        annotated=False, http=lost, nodes={f"n{n}": {"subnet": "a"} for n in range(6)}
    )
    assert "subnets are from the provider's node labels" in diagnosed(labelled).patterns
    # Nodes may not be read: pods know their own node's address.
    hosts = {f"n{n}": {"host_address": f"10.0.{n % 2}.{n}"} for n in range(6)}
    blind = CALICO.but(http=lost, pods=hosts, more={"nodes": {}})
    assert "same subnet: 2 of 2 over http" in diagnosed(blind).patterns


def test_a_fleet_of_a_thousand_is_told_in_few_lines() -> None:
    big = CALICO.but(count=1000, subnets=8)
    lost = big.mates()
    found = diagnosed(big.but(http=all_of(lost)))
    (only,) = found.causes
    assert (only.code, only.confidence) == ("crosssubnet-source-check", "high")
    assert only.node_count == len(lost) == 125
    assert len(only.nodes) == 3
    assert only.fix[-1] == "# and the same for 122 more of this subnet"
    assert len(only.evidence) + len(only.fix) + len(found.patterns) + len(found.ruled_out) < 30
    assert max(map(len, (*only.fix, *found.patterns, found.headline))) < 300
    policed = diagnosed(big.but(http=all_of(big.names[1:]), policies=(policy(),)))
    assert [each.code for each in policed.causes] == ["network-policy"]
    assert diagnosed(big) == Diagnosis(
        verdict="healthy",
        headline="healthy: 1000 of 1000 nodes answer over http",
        patterns=(
            "same node: 1 of 1 over http",
            "same subnet: 125 of 125 over http",
            "other subnets: 874 of 874 over http",
        ),
    )


def test_the_documentation_explains_every_cause_and_no_other() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## All causes")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == list(CODES)


def test_the_documentation_names_every_grant_and_every_kind_that_is_read() -> None:
    grants = PAGE.read_text(encoding="utf-8").partition("## Grants")[2]
    rows = [line for line in grants.splitlines() if line.startswith("| `")]
    named = {name for row in rows[1:] for name in re.findall(r"`([a-z]+)`", row.split("|")[1])}
    source = Path(evidence.__file__).read_text(encoding="utf-8")
    read = set(re.findall(r'reads\.add\([A-Z]+, "([a-z]+)"', source))
    assert named == read
    assert read > {"nodes", "ippools", "peerauthentications"}


def test_nobody_at_all_is_no_error() -> None:
    found = diagnose(Survey(Place(), ()), Evidence())
    assert (found.verdict, found.causes) == ("unknown", ())

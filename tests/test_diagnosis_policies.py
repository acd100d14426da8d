"""NetworkPolicies mean what the API says they mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_gpu.fleet.diagnosis.policies import NetworkPolicy, Party, decide
from support.surveys import AGENT, GATEWAY, policy

FROM = Party("gpu", GATEWAY, {"team": "ml"}, ("10.1.0.5",), {}, "n1")
TO = Party("gpu", AGENT, {"team": "ml"}, ("10.1.2.7",), {"mcp": 8080}, "n2")
OTHERS = replace(FROM, namespace="clients", namespace_labels={"team": "web"})
UNKNOWN = Party("gpu")
"""A pod of which nothing may be read."""


def pods(**labels: str) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": labels}}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {
        "podSelector": {
            "matchExpressions": [
                {"key": key, "operator": operator} | ({"values": list(values)} if values else {})
            ]
        }
    }


def spaces(**labels: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": labels}}


def block(cidr: str, *excepted: str) -> dict[str, Any]:
    return {"ipBlock": {"cidr": cidr, "except": list(excepted)}}


def ports(*each: Any) -> dict[str, Any]:
    return {"ports": list(each)}


ROLE = "app.kubernetes.io/component"
GATEWAYS = {"podSelector": {"matchLabels": GATEWAY}}
BY_NAME = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "clients"}}}

INGRESS: list[tuple[str, bool | None, Party, Party, list[Any]]] = [
    # allowed, from, to, rules
    ("no rule", False, FROM, TO, []),
    ("an empty rule", True, FROM, TO, [{}]),
    ("an empty list of peers", True, FROM, TO, [{"from": []}]),
    ("an empty list of ports", True, FROM, TO, [{"from": [GATEWAYS], "ports": []}]),
    ("pods by label", True, FROM, TO, [{"from": [GATEWAYS]}]),
    ("other pods", False, FROM, TO, [{"from": [pods(app="web")]}]),
    ("every pod of the namespace", True, FROM, TO, [{"from": [{"podSelector": {}}]}]),
    (
        "every pod of the namespace, from another",
        False,
        OTHERS,
        TO,
        [{"from": [{"podSelector": {}}]}],
    ),
    ("every namespace", True, OTHERS, TO, [{"from": [{"namespaceSelector": {}}]}]),
    ("a namespace by label", True, OTHERS, TO, [{"from": [spaces(team="web")]}]),
    ("another namespace", False, OTHERS, TO, [{"from": [spaces(team="ml")]}]),
    ("a namespace by name", True, OTHERS, TO, [{"from": [BY_NAME]}]),
    ("both, and both fit", True, OTHERS, TO, [{"from": [spaces(team="web") | GATEWAYS]}]),
    ("both, and one fits", False, OTHERS, TO, [{"from": [spaces(team="web") | pods(app="web")]}]),
    ("either, and one fits", True, OTHERS, TO, [{"from": [spaces(team="web"), pods(app="web")]}]),
    ("In", True, FROM, TO, [{"from": [expression(ROLE, "In", "x", "gateway")]}]),
    ("In, absent", False, FROM, TO, [{"from": [expression("x", "In", "gateway")]}]),
    ("NotIn", False, FROM, TO, [{"from": [expression(ROLE, "NotIn", "gateway")]}]),
    ("NotIn, absent", True, FROM, TO, [{"from": [expression("x", "NotIn", "gateway")]}]),
    ("Exists", True, FROM, TO, [{"from": [expression(ROLE, "Exists")]}]),
    ("Exists, absent", False, FROM, TO, [{"from": [expression("x", "Exists")]}]),
    ("DoesNotExist", False, FROM, TO, [{"from": [expression(ROLE, "DoesNotExist")]}]),
    ("an operator of the future", False, FROM, TO, [{"from": [expression(ROLE, "Gt", "1")]}]),
    ("a block", True, FROM, TO, [{"from": [block("10.1.0.0/16")]}]),
    ("another block", False, FROM, TO, [{"from": [block("10.2.0.0/16")]}]),
    ("a block but for this", False, FROM, TO, [{"from": [block("10.1.0.0/16", "10.1.0.0/24")]}]),
    ("a block but for that", True, FROM, TO, [{"from": [block("10.1.0.0/16", "10.1.9.0/24")]}]),
    ("a block of the other family", False, FROM, TO, [{"from": [block("::/0")]}]),
    ("the port", True, FROM, TO, [ports({"port": 8080})]),
    ("another port", False, FROM, TO, [ports({"port": 80})]),
    ("the port of another protocol", False, FROM, TO, [ports({"port": 8080, "protocol": "UDP"})]),
    ("every TCP port", True, FROM, TO, [ports({"protocol": "TCP"})]),
    ("a range", True, FROM, TO, [ports({"port": 8000, "endPort": 8080})]),
    ("a range that ends before", False, FROM, TO, [ports({"port": 8000, "endPort": 8079})]),
    ("the port by name", True, FROM, TO, [ports({"port": "mcp"})]),
    ("another port by name", False, FROM, TO, [ports({"port": "web"})]),
    ("the peer on another port", False, FROM, TO, [{"from": [GATEWAYS]} | ports({"port": 80})]),
    ("one of two rules", True, FROM, TO, [ports({"port": 80}), {"from": [GATEWAYS]}]),
    # Nobody guesses.
    ("who knows whose labels", None, UNKNOWN, TO, [{"from": [GATEWAYS]}]),
    ("who knows whose address", None, UNKNOWN, TO, [{"from": [block("10.0.0.0/8")]}]),
    ("nobody, whoever it is", False, UNKNOWN, TO, []),
    ("everybody, whoever it is", True, UNKNOWN, TO, [{}]),
    ("any pod here, whoever it is", True, UNKNOWN, TO, [{"from": [{"podSelector": {}}]}]),
    ("who knows which port", None, FROM, replace(TO, ports=None), [ports({"port": "mcp"})]),
    (
        "who knows its namespace's labels",
        None,
        replace(OTHERS, namespace_labels=None),
        TO,
        [{"from": [spaces(team="web")]}],
    ),
    (
        "a namespace's name is known",
        True,
        replace(OTHERS, namespace_labels=None),
        TO,
        [{"from": [BY_NAME]}],
    ),
    # The node's network: neither policed nor meant by selectors of pods.
    ("into the node's network", True, FROM, replace(TO, host_network=True), []),
    (
        "from the node's network",
        False,
        replace(FROM, host_network=True),
        TO,
        [{"from": [GATEWAYS]}],
    ),
    (
        "from the node's network by its address",
        True,
        replace(FROM, host_network=True),
        TO,
        [{"from": [block("10.1.0.5/32")]}],
    ),
    ("from the same node's network", True, replace(FROM, host_network=True, node="n2"), TO, []),
]


@pytest.mark.parametrize(("allowed", "source", "to", "rules"), [each[1:] for each in INGRESS],
                         ids=[each[0] for each in INGRESS])  # fmt: skip
def test_ingress(allowed: bool | None, source: Party, to: Party, rules: list[Any]) -> None:
    decision = decide([policy(ingress=rules)], source, to, 8080)
    assert decision.allowed is allowed
    assert decision.policies == (("deny",) if allowed is False else ())
    # A policy that nothing selects, or of another namespace, changes nothing.
    others = [
        policy("a", podSelector={"matchLabels": {"no": "pod"}}, ingress=[]),
        policy("b", "elsewhere", ingress=[]),
    ]
    if to.labels is not None:
        again = decide([*others, policy(ingress=rules)], source, to, 8080)
        assert again == decision


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        ({}, False, True),
        ({"policyTypes": ["Ingress"]}, False, True),
        ({"policyTypes": ["Egress"]}, True, False),
        ({"policyTypes": ["Ingress", "Egress"]}, False, False),
        ({"egress": [{"to": [{"podSelector": {}}]}]}, False, True),
        ({"egress": [ports({"port": 53})]}, False, False),
        ({"egress": []}, False, True),
        ({"policyTypes": ["Egress"], "ingress": []}, True, False),
        ({"policyTypes": ["Egress"], "egress": [{}]}, True, True),
    ],
)
def test_what_a_policy_is_about(spec: dict[str, Any], ingress: bool, egress: bool) -> None:
    at_agents = policy(**spec | {"podSelector": {"matchLabels": AGENT}})
    at_gateway = policy(**spec | {"podSelector": {"matchLabels": GATEWAY}})
    assert decide([at_agents], FROM, TO, 8080).allowed is ingress
    found = decide([at_gateway], FROM, TO, 8080)
    assert found.allowed is egress
    if not egress:
        assert found.direction == "egress"


def test_egress_goes_by_the_far_ends_labels_and_port_names() -> None:
    def allowed(*rules: Any) -> bool | None:
        only = policy(podSelector={"matchLabels": GATEWAY}, policyTypes=["Egress"], egress=rules)
        return decide([only], FROM, TO, 8080).allowed

    assert allowed({"to": [{"podSelector": {"matchLabels": AGENT}}], "ports": [{"port": "mcp"}]})
    assert allowed({"to": [block("10.1.2.0/24")]})
    assert allowed({"to": [{"podSelector": {"matchLabels": GATEWAY}}]}) is False


def test_policies_add_up() -> None:
    allowing = policy("allow", ingress=[{"from": [GATEWAYS]}])
    assert decide([policy(), allowing], FROM, TO, 8080).allowed is True
    other = policy("dns", ingress=[ports({"port": 53})])
    assert decide([policy(), other], FROM, TO, 8080).policies == ("deny", "dns")
    assert decide([], FROM, TO, 8080).allowed is True
    # Both ends have to agree.
    strict = policy("out", podSelector={"matchLabels": GATEWAY}, policyTypes=["Egress"])
    assert decide([allowing, strict], FROM, TO, 8080) == decide([strict], FROM, TO, 8080)


@pytest.mark.parametrize(
    ("policies", "allowed"),
    [
        ([policy(podSelector={"matchLabels": AGENT})], None),
        ([policy(podSelector={"matchLabels": AGENT}, ingress=[{}])], True),
        ([policy(), policy("x", podSelector={"matchLabels": AGENT}, ingress=[{}])], None),
        ([policy(), policy("x", podSelector={"matchLabels": AGENT})], False),
        ([policy(ingress=[{}]), policy("x", podSelector={"matchLabels": AGENT})], True),
    ],
)
def test_a_pod_that_may_be_selected(policies: list[NetworkPolicy], allowed: bool | None) -> None:
    assert decide(policies, FROM, UNKNOWN, 8080).allowed is allowed


LABELS = st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy"), max_size=2)
SELECTORS = st.fixed_dictionaries({"matchLabels": LABELS})
PEERS = st.one_of(
    st.fixed_dictionaries({"podSelector": SELECTORS}),
    st.fixed_dictionaries({"namespaceSelector": SELECTORS}),
    st.fixed_dictionaries({"podSelector": SELECTORS, "namespaceSelector": SELECTORS}),
    st.builds(block, st.sampled_from(["10.1.0.0/16", "10.2.0.0/16"])),
)
RULES = st.lists(
    st.fixed_dictionaries(
        {
            "from": st.lists(PEERS, max_size=2),
            "ports": st.lists(st.sampled_from([{"port": 8080}, {"port": 1}, {}]), max_size=2),
        }
    ),
    max_size=2,
)
POLICIES = st.lists(
    st.builds(lambda pods, rules: policy(podSelector=pods, ingress=rules), SELECTORS, RULES),
    max_size=3,
)


@given(POLICIES, LABELS, LABELS, LABELS)
def test_what_is_known_never_contradicts_what_becomes_known(
    policies: list[NetworkPolicy],
    source: dict[str, str],
    space: dict[str, str],
    destination: dict[str, str],
) -> None:
    """An answer that is given without labels is the one that all labels lead to."""
    full = Party("gpu", source, space, ("10.1.0.5",), {})
    to = Party("gpu", destination, space, ("10.1.2.7",), {"mcp": 8080})
    whole = decide(policies, full, to, 8080).allowed
    assert whole is not None
    for blind_from in (full, replace(full, labels=None), Party("gpu")):
        for blind_to in (to, replace(to, labels=None, ports=None)):
            found = decide(policies, blind_from, blind_to, 8080).allowed
            assert found in (None, whole)


@given(POLICIES, LABELS, LABELS)
def test_one_more_policy_of_an_isolated_pod_only_ever_allows_more(
    policies: list[NetworkPolicy], source: dict[str, str], destination: dict[str, str]
) -> None:
    full = Party("gpu", source, {}, ("10.1.0.5",), {})
    to = Party("gpu", destination, {}, ("10.1.2.7",), {})
    isolated = [policy(), *policies]
    for count in range(1, len(isolated)):
        if decide(isolated[:count], full, to, 8080).allowed:
            assert decide(isolated[: count + 1], full, to, 8080).allowed

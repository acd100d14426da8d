"""The gateway as the chart installs it: its replicas, its tests, and who reaches it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python
import pytest
from pydantic_settings import BaseSettings

from mcp_gpu.serving.server import DRAIN_SECONDS, LAST_RESORT_SECONDS
from mcp_gpu.settings.base import PREFIX
from mcp_gpu.settings.terminal import DoctorSettings, StatusSettings
from support import chart
from support.chart import CHART, CI_VALUES, Object, Rendered, render
from support.manifests import container, environment

every_ci_file = pytest.mark.parametrize("path", CI_VALUES, ids=lambda path: path.name)


# --- replicas ----------------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["gateway", "agent"])
def test_what_stops_has_time_to_and_another_is_there_first(component: str) -> None:
    for delay in (0, 5, 60):
        rendered = render({component: {"shutdownDelaySeconds": delay}})
        variables = environment(rendered, component)
        assert variables["MCP_GPU_SHUTDOWN_DELAY_SECONDS"] == str(delay)
        grace = rendered.pods()[component]["spec"]["terminationGracePeriodSeconds"]
        assert grace > delay + DRAIN_SECONDS + LAST_RESORT_SECONDS
    kind, strategy = {
        "gateway": ("Deployment", "strategy"),
        "agent": ("DaemonSet", "updateStrategy"),
    }[component]
    spec = render().one(kind, component)["spec"]
    assert spec[strategy]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_a_drain_takes_one_replica_at_a_time_and_waits_for_none_that_is_alone() -> None:
    budget = render().one("PodDisruptionBudget", "gateway")["spec"]
    assert budget["maxUnavailable"] == 1
    (expression,) = budget["selector"]["matchExpressions"]
    assert expression == {"key": "pod-template-hash", "operator": "Exists"}
    for gateway in ({"replicas": 1}, {"replicas": 0}, {"podDisruptionBudget": {"enabled": False}}):
        assert render({"gateway": gateway}).all("PodDisruptionBudget") == []


def test_replicas_are_spread_but_run_where_they_cannot_be() -> None:
    rendered = render()
    pod = rendered.pods()["gateway"]
    constraints = pod["spec"]["topologySpreadConstraints"]
    assert [each["topologyKey"] for each in constraints] == [
        "kubernetes.io/hostname", "topology.kubernetes.io/zone",
    ]  # fmt: skip
    for each in constraints:
        assert each["whenUnsatisfiable"] == "ScheduleAnyway"
        labels = each["labelSelector"]["matchLabels"]
        assert labels.items() <= pod["metadata"]["labels"].items()


# --- the pre-flight ----------------------------------------------------------------------------


def test_the_pre_flight_stands_where_the_gateway_stands() -> None:
    place = {
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"operator": "Exists"}],
        "podLabels": {"team": "gpu"},
        "podAnnotations": {"mesh/inject": "false"},
    }
    rendered = render({"gateway": place})
    test = rendered.one("Pod", "gateway")
    gateway = rendered.pods()["gateway"]
    assert gateway["metadata"]["labels"].items() <= test["metadata"]["labels"].items()
    assert test["metadata"]["annotations"]["mesh/inject"] == "false"
    for field in ("serviceAccountName", "securityContext", "nodeSelector", "tolerations"):
        assert test["spec"][field] == gateway["spec"][field]
    (doctor,) = test["spec"]["containers"]
    serving = container(rendered, "gateway")
    assert [each for each in serving["env"] if each in doctor["env"]] == doctor["env"]
    assert doctor["securityContext"] == serving["securityContext"]
    # Else it would be behind the gateway's Service, whose labels it has.
    assert test["spec"]["readinessGates"]
    # It shows agents what the gateway shows them, and holds no client's token.
    held = {volume["name"]: volume for volume in gateway["spec"]["volumes"]}
    assert test["spec"]["volumes"] == [held["agents"]]
    (policy,) = [
        entry
        for entry in render({"networkPolicy": {"enabled": True}}).all("NetworkPolicy")
        if entry["metadata"]["name"].endswith("-gateway")
    ]
    selector = policy["spec"]["podSelector"]["matchLabels"]
    assert selector.items() <= test["metadata"]["labels"].items()


def test_a_pre_flight_that_shows_no_token_has_none() -> None:
    for values in ({"auth": {"mode": "none"}}, {"gateway": {"routingMode": "exec"}}):
        test = render(values).one("Pod", "gateway")
        assert "volumes" not in test["spec"]
        assert "volumeMounts" not in test["spec"]["containers"][0]


def test_a_helm_test_fails_where_a_node_is_out_of_reach_and_an_install_only_if_told_to() -> None:
    def pre_flights(**values: Any) -> dict[str, list[str]]:
        found = [pod["spec"]["containers"][0] for pod in render({"preflight": values}).all("Pod")]
        hooks = [
            pod["metadata"]["annotations"]["helm.sh/hook"]
            for pod in render({"preflight": values}).all("Pod")
        ]
        return {
            hook: container["args"]
            for hook, container in zip(hooks, found, strict=True)
            if container["name"] == "doctor"
        }

    usual = ["doctor", "--in-cluster", "--wait-seconds=60"]
    hook = "post-install,post-upgrade"
    assert pre_flights() == {"test": [*usual, "--strict"]}
    assert pre_flights(onInstall=True) == {"test": [*usual, "--strict"], hook: usual}
    strict = pre_flights(onInstall=True, strict=True, waitSeconds=5)
    assert strict[hook] == ["doctor", "--in-cluster", "--wait-seconds=5", "--strict"]


@every_ci_file
def test_what_the_helm_tests_are_told_are_settings_of_their_commands(path: Path) -> None:
    commands: dict[str, type[BaseSettings]] = {"doctor": DoctorSettings, "status": StatusSettings}
    for pod in render(chart.values_of(path)).all("Pod"):
        (only,) = pod["spec"]["containers"]
        command, *flags = only["args"]
        names = {entry["name"] for entry in only["env"]}
        told = {name.removeprefix(PREFIX).lower() for name in names if name.startswith(PREFIX)}
        told |= {flag.removeprefix("--").partition("=")[0].replace("-", "_") for flag in flags}
        assert told <= set(commands[command].model_fields)


def test_without_a_gateway_nobody_is_granted_anything() -> None:
    rendered = render({"gateway": {"enabled": False}})
    assert {entry["kind"] for entry in rendered.objects} == {
        "DaemonSet", "Service", "ServiceAccount", "Secret",
    }  # fmt: skip
    # Whom agents then let in is who may make tokens of the clients' account.
    subject = environment(rendered, "agent")["MCP_GPU_TOKEN_SUBJECTS"]
    account = rendered.one("ServiceAccount", "client")["metadata"]["name"]
    assert subject == f"system:serviceaccount:gpu-diagnostics:{account}"
    stdio = render({"gateway": {"enabled": False}, "transport": {"mode": "stdio"}})
    assert {entry["kind"] for entry in stdio.objects} == {"DaemonSet", "Service", "ServiceAccount"}


# --- ways in -----------------------------------------------------------------------------------

HOST = "gpu.example.org"

OAUTH = {"issuer": "https://login.example.org:8443/r", "resource": f"https://{HOST}/mcp"}


@pytest.mark.parametrize("oauth", [False, True])
@pytest.mark.parametrize(
    ("way", "kind"),
    [
        ({"ingress": {"enabled": True, "hosts": [HOST]}}, "Ingress"),
        (
            {"httpRoute": {"enabled": True, "hostnames": [HOST], "parentRefs": [{"name": "g"}]}},
            "HTTPRoute",
        ),
    ],
)
def test_a_way_from_outside_leads_to_what_clients_call_and_to_nothing_else(
    way: dict[str, Any], kind: str, oauth: bool
) -> None:
    rendered = render({"gateway": way, **({"auth": {"oauth": OAUTH}} if oauth else {})})
    spec = rendered.one(kind, "gateway")["spec"]
    service = rendered.one("Service", "gateway")
    (rule,) = spec["rules"]
    if kind == "Ingress":
        assert rule["host"] == HOST
        paths = [(path["pathType"], path["path"]) for path in rule["http"]["paths"]]
        backends = [path["backend"]["service"]["name"] for path in rule["http"]["paths"]]
        assert spec["tls"] == [{"hosts": [HOST]}]
    else:
        assert spec["hostnames"] == [HOST]
        paths = [(m["path"]["type"], m["path"]["value"]) for m in rule["matches"]]
        backends = [backend["name"] for backend in rule["backendRefs"]]
        assert [b["port"] for b in rule["backendRefs"]] == [service["spec"]["ports"][0]["port"]]
    assert set(backends) == {service["metadata"]["name"]}
    assert paths[0] == ("Exact", "/mcp")
    assert [path for _, path in paths[1:]] == ["/.well-known/oauth-protected-resource"] * oauth
    # The gateway answers by that name, and the notes tell it.
    assert HOST in environment(rendered, "gateway")["MCP_GPU_ALLOWED_HOSTS"].split(",")
    assert f"https://{HOST}/mcp" in rendered.notes
    assert "port-forward service/" not in rendered.notes


@pytest.mark.parametrize("way", ["ingress", "httpRoute"])
def test_a_way_from_outside_needs_a_name(way: str) -> None:
    with pytest.raises(helm_python.HelmError, match="the names that clients call"):
        render({"gateway": {way: {"enabled": True}}})


@pytest.mark.parametrize(
    ("way", "values"),
    [
        ("ingress", {"hosts": [HOST]}),
        ("httpRoute", {"hostnames": [HOST], "parentRefs": [{"name": "g"}]}),
    ],
)
def test_a_way_that_would_lead_nowhere_is_refused(way: str, values: dict[str, Any]) -> None:
    gateway = {way: {"enabled": True, **values}}
    with pytest.raises(helm_python.HelmError, match=r"set gateway\.enabled=true"):
        render({"gateway": {**gateway, "enabled": False}})
    mapped = {**OAUTH, "resource": f"https://{HOST}/gpu/mcp"}
    with pytest.raises(helm_python.HelmError, match="end it in /mcp"):
        render({"gateway": gateway, "auth": {"oauth": mapped}})
    # A proxy of one's own may map paths.
    assert mapped["resource"] in render({"auth": {"oauth": mapped}}).notes


@pytest.mark.parametrize(
    "way",
    [
        {"ingress": {"enabled": True, "hosts": ["*.example.org"]}},
        {
            "httpRoute": {
                "enabled": True, "hostnames": ["*.example.org"], "parentRefs": [{"name": "g"}],
            }
        },
    ],
)  # fmt: skip
def test_the_notes_leave_a_name_open_that_is_open(way: dict[str, Any]) -> None:
    notes = render({"gateway": way}).notes
    assert "https://HOST.example.org/mcp" in notes
    assert "*." not in notes


@pytest.mark.parametrize(
    "auth", [{"oauth": OAUTH}, {"oauth": OAUTH, "kubernetes": {"enabled": False}}]
)
def test_no_two_commands_of_the_notes_add_a_server_of_one_name(auth: dict[str, Any]) -> None:
    notes = render({"auth": auth}).notes
    names = [line.split()[5] for line in notes.splitlines() if "claude mcp add" in line]
    assert names == ["gpu-login", "gpu"]
    alone = {"oauth": OAUTH, "kubernetes": {"enabled": False}, "static": {"enabled": False}}
    assert (
        f"claude mcp add --transport http gpu {OAUTH['resource']}" in render({"auth": alone}).notes
    )


@pytest.mark.parametrize("kind", ["LoadBalancer", "NodePort", "ClusterIP"])
def test_tokens_that_reach_a_port_of_the_outside_in_the_clear_are_warned_about(kind: str) -> None:
    def warned(**gateway: Any) -> bool:
        auth = gateway.pop("auth", {})
        values = {"gateway": {"service": {"type": kind}, **gateway}, "auth": auth}
        return f"WARNING: gateway.service.type is {kind}" in render(values).notes

    outside = kind != "ClusterIP"
    assert warned() == outside
    alone = {"oauth": OAUTH, "kubernetes": {"enabled": False}, "static": {"enabled": False}}
    assert warned(auth=alone) == outside
    assert not warned(tls={"source": "generated"})
    assert not warned(auth={"mode": "none"})


def test_tokens_that_reach_an_ingress_in_the_clear_are_warned_about() -> None:
    ingress = {"enabled": True, "hosts": [HOST], "tls": {"enabled": False}}
    rendered = render({"gateway": {"ingress": ingress}})
    assert "tls" not in rendered.one("Ingress", "gateway")["spec"]
    assert f"http://{HOST}/mcp" in rendered.notes
    assert "WARNING: gateway.ingress.tls.enabled is false" in rendered.notes
    open_to_all = render({"gateway": {"ingress": ingress}, "auth": {"mode": "none"}})
    assert "gateway.ingress.tls.enabled" not in open_to_all.notes


# --- network policies --------------------------------------------------------------------------

ON = {"networkPolicy": {"enabled": True}}


def admits(policy: Object, way: str, labels: dict[str, str] | None, port: int) -> bool:
    """Whether a policy lets a pod with these labels through, or, for None, any stranger."""
    for rule in policy["spec"].get(way, []):
        if port not in [entry["port"] for entry in rule["ports"]]:
            continue
        peers = rule.get("from" if way == "ingress" else "to")
        if peers is None:
            return True
        for peer in peers:
            wanted = peer.get("podSelector", {}).get("matchLabels")
            if labels and wanted and wanted.items() <= labels.items():
                return True
    return False


def policies(rendered: Rendered) -> dict[str, Object]:
    label = "app.kubernetes.io/component"
    return {entry["metadata"]["labels"][label]: entry for entry in rendered.all("NetworkPolicy")}


def labels_of(rendered: Rendered) -> dict[str, dict[str, str]]:
    """The labels of every pod, by its container's name."""
    templates = [*rendered.pods().values(), *rendered.all("Pod")]
    return {t["spec"]["containers"][0]["name"]: t["metadata"]["labels"] for t in templates}


def test_every_pod_is_under_a_policy_of_both_ways() -> None:
    rendered = render(ON)
    found = policies(rendered)
    for labels in labels_of(rendered).values():
        policy = found[labels["app.kubernetes.io/component"]]
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert render().all("NetworkPolicy") == []


def test_agents_are_reached_by_the_gateway_and_the_pre_flight_and_nobody_else() -> None:
    rendered = render(ON)
    found, labels = policies(rendered), labels_of(rendered)
    assert admits(found["agent"], "ingress", labels["gateway"], 8080)
    assert admits(found["agent"], "ingress", labels["doctor"], 8080)
    for stranger in (labels["client"], labels["agent"], {"app": "x"}, None):
        assert not admits(found["agent"], "ingress", stranger, 8080)
    assert admits(found["gateway"], "egress", labels["agent"], 8080)
    assert not admits(found["gateway"], "egress", {"app": "x"}, 8080)


def test_the_helm_test_reaches_the_gateway_though_others_may_not() -> None:
    listed = {"enabled": True, "gatewayFrom": [{"podSelector": {"matchLabels": {"app": "x"}}}]}
    rendered = render({"networkPolicy": listed})
    found, labels = policies(rendered), labels_of(rendered)
    assert admits(found["client"], "egress", labels["gateway"], 8080)
    assert admits(found["gateway"], "ingress", labels["client"], 8080)
    assert admits(found["gateway"], "ingress", {"app": "x"}, 8080)
    assert not admits(found["gateway"], "ingress", {"app": "y"}, 8080)
    assert admits(policies(render(ON))["gateway"], "ingress", None, 8080)


@pytest.mark.parametrize(
    ("values", "agents"),
    [
        ({}, True),
        ({"auth": {"mode": "none"}}, False),
        ({"transport": {"mode": "stdio"}}, False),
    ],
)
def test_agents_reach_the_api_server_only_where_they_ask_it(
    values: dict[str, Any], agents: bool
) -> None:
    found = policies(render({**values, **ON}))
    for port in (443, 6443, 53):
        assert admits(found["agent"], "egress", None, port) == agents
        assert admits(found["gateway"], "egress", None, port)
    assert not admits(found["agent"], "egress", None, 8080)


def test_agents_without_a_gateway_admit_nobody_rather_than_everybody() -> None:
    found = policies(render({**ON, "gateway": {"enabled": False}}))
    assert found.keys() == {"agent"}
    assert "ingress" not in found["agent"]["spec"]


def test_peers_of_ones_own_are_let_in() -> None:
    rendered = render(chart.values_of(CHART / "ci" / "network-policy-values.yaml"))
    found = policies(rendered)
    given = chart.values_of(CHART / "ci" / "network-policy-values.yaml")["networkPolicy"]
    nodes = [{"ipBlock": {"cidr": cidr}} for cidr in given["nodeCIDRs"]]
    (agents,) = found["agent"]["spec"]["ingress"]
    assert agents["from"][1:] == [*given["agentFrom"], *nodes]
    (gateway,) = found["gateway"]["spec"]["ingress"]
    assert gateway["from"][:-1] == [*given["gatewayFrom"], *nodes]
    for policy in (found["agent"], found["gateway"]):
        api = policy["spec"]["egress"][0]
        assert api["to"] == [{"ipBlock": {"cidr": "192.0.2.10/32"}}]
        assert [entry["port"] for entry in api["ports"]] == [6443]


def test_the_gateway_reaches_the_authorization_server_at_its_port() -> None:
    values = {**ON, "auth": {"oauth": OAUTH}}
    assert admits(policies(render(values))["gateway"], "egress", None, 8443)
    assert not admits(policies(render(ON))["gateway"], "egress", None, 8443)

"""The chart's identities: who may do what in the cluster, and whose tokens are believed."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import helm_python
import pytest

from support import chart
from support.chart import CHART, CI_VALUES, ROOT, Rendered, render
from support.helmapi import api_server
from support.manifests import container, environment, every_pod, files, projected, rules
from transports.exec import ExecSettings, ExecTransport
from transports.portforward import PortForwardTransport

every_ci_file = pytest.mark.parametrize("path", CI_VALUES, ids=lambda path: path.name)


# --- who may do what ---------------------------------------------------------------------------

READ = "list,watch"

WORKLOADS = [
    ("", "pods,nodes", "get"),
    ("", "events", "list"),
    ("resource.k8s.io", "resourceclaims", "get"),
    ("resource.k8s.io", "resourceslices", "list"),
]

NOTHING = {"nodes": False, "diagnosis": False, "workloads": False, "failures": False}
"""Of what RBAC can grant feature by feature."""

REVIEWS = [
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("authorization.k8s.io", "subjectaccessreviews", "create"),
]

FAILURES = [
    ("", "pods", "list"),
    ("batch", "jobs", "get"),
    ("jobset.x-k8s.io", "jobsets", "get"),
    ("kubeflow.org", "pytorchjobs", "get"),
]
"""What `explain_failure` reads besides, but for logs."""

MAY_CREATE = {(group, resource): {"create"} for group, resource, _ in REVIEWS} | {
    ("", "pods/exec"): {"create"},
    ("", "pods/portforward"): {"create"},
    ("gpu.mcp", "tools"): {"call"},
}
"""Everything beyond reading that anything of the chart may be granted, by group and resource. The
reviews are questions, and tools are the gateway's own."""


def test_the_gateway_may_read_agents_and_nodes_and_open_streams_and_no_more() -> None:
    rendered = render()
    assert rules(rendered, "Role", "gateway") == [
        ("discovery.k8s.io", "endpointslices", READ),
        ("", "pods", READ),
        ("networking.k8s.io,crd.projectcalico.org", "networkpolicies", "list"),
        ("cilium.io", "ciliumnetworkpolicies", "list"),
        ("", "pods/portforward", "get,create"),
        ("", "pods/exec", "get,create"),
    ]
    assert rules(rendered, "ClusterRole") == [
        *REVIEWS,
        ("", "nodes", READ),
        *WORKLOADS,
        *FAILURES,
        ("apps", "daemonsets", "list"),
        (
            "crd.projectcalico.org",
            "ippools,felixconfigurations,globalnetworkpolicies",
            "list",
        ),
        ("cilium.io", "ciliumclusterwidenetworkpolicies", "list"),
        ("security.istio.io", "peerauthentications", "list"),
        ("", "namespaces", "list"),
    ]


@every_ci_file
def test_every_grant_goes_to_an_account_of_this_release_and_none_is_wide(path: Path) -> None:
    rendered = render(chart.values_of(path))
    accounts = {entry["metadata"]["name"] for entry in rendered.all("ServiceAccount")}
    for kind in ("Role", "ClusterRole"):
        roles = {entry["metadata"]["name"]: entry for entry in rendered.all(kind)}
        bindings = rendered.all(f"{kind}Binding")
        bound = sorted(b["roleRef"]["name"] for b in bindings)
        # Without the clients' account the right to call tools waits for whom it is given to.
        unbound = {} if any(a.endswith("-client") for a in accounts) else {"gpu-mcp-mcp-gpu-caller"}
        assert bound == sorted(roles.keys() - unbound)
        for binding in bindings:
            assert binding["roleRef"]["kind"] == kind
            (subject,) = binding["subjects"]
            assert (subject["kind"], subject["namespace"]) == ("ServiceAccount", "gpu-diagnostics")
            assert subject["name"] in accounts
    for kind in ("Role", "ClusterRole"):
        for groups, resources, verbs in rules(rendered, kind):
            assert "*" not in groups + resources + verbs
            assert not {"nodes/proxy", "pods/proxy", "secrets"} & set(resources.split(","))
            changing = set(verbs.split(",")) - {"get", "list", "watch"}
            assert changing <= MAY_CREATE.get((groups, resources), set()), resources


def test_what_the_clients_account_may_is_to_call_tools_and_no_pod_of_ours_runs_as_it() -> None:
    rendered = render()
    assert rules(rendered, "Role", "client") == [("gpu.mcp", "tools", "call")]
    account = rendered.one("ServiceAccount", "client")
    (subject,) = rendered.one("RoleBinding", "client")["subjects"]
    assert subject["name"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is False
    for pod in rendered.pods().values():
        assert pod["spec"]["serviceAccountName"] != account["metadata"]["name"]


OAUTH = {"issuer": "https://login.example.org", "resource": "https://gpu.example.org/mcp"}


@pytest.mark.parametrize(
    ("auth", "reviews", "bound"),
    [
        ({}, REVIEWS, True),
        ({"accessReview": False}, REVIEWS[:1], False),
        ({"kubernetes": {"enabled": False}}, [], False),
        ({"kubernetes": {"enabled": False}, "oauth": OAUTH}, REVIEWS[1:], False),
        (
            {"accessReview": False, "kubernetes": {"enabled": False}, "oauth": OAUTH},
            [],
            False,
        ),
    ],
)
def test_the_gateway_may_ask_about_tokens_and_rights_only_where_it_does(
    auth: dict[str, Any], reviews: list[tuple[str, str, str]], bound: bool
) -> None:
    rendered = render({"auth": auth, "rbac": NOTHING})
    assert rules(rendered, "ClusterRole") == reviews
    variables = environment(rendered, "gateway")
    asks = REVIEWS[1] in reviews
    assert ("MCP_GPU_ACCESS_REVIEW" in variables) == asks
    assert bool(rules(rendered, "Role", "client")) == asks
    # The right to call is there for whoever logs in, and the notes say how to give it.
    bindings = [e for e in rendered.all("RoleBinding") if e["roleRef"]["name"].endswith("-caller")]
    assert [e["subjects"][0]["name"] for e in bindings] == ["gpu-mcp-mcp-gpu-client"] * bound
    logs_in = asks and "MCP_GPU_OAUTH_ISSUER" in variables
    assert (f"--user '{OAUTH['issuer']}#SUBJECT'" in rendered.notes) == logs_in


def test_agents_may_ask_about_tokens_only_where_they_do() -> None:
    assert rules(render(), "ClusterRole", "agent") == []
    asking = {"auth": {"agents": {"verify": "review"}}}
    assert rules(render(asking), "ClusterRole", "agent") == REVIEWS[:1]
    assert rules(render({**asking, "transport": {"mode": "stdio"}}), "ClusterRole", "agent") == []


def test_the_rights_are_those_that_the_paths_name() -> None:
    granted = rules(render(), "Role", "gateway")
    for grant in (PortForwardTransport.grant, ExecTransport.grant):
        assert ("", f"pods/{grant.subresource}", ",".join(grant.verbs)) in granted


def test_a_gateway_whose_exec_is_pinned_may_start_what_it_does_start() -> None:
    rendered = render({"admissionPolicy": {"enabled": True}})
    (policy,), (binding,) = (
        rendered.all(kind)
        for kind in ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    )
    assert binding["spec"] == {
        "policyName": policy["metadata"]["name"],
        "validationActions": ["Deny"],
    }
    account = rendered.pods()["gateway"]["spec"]["serviceAccountName"]
    (condition,) = policy["spec"]["matchConditions"]
    assert condition["expression"].endswith(f"'system:serviceaccount:gpu-diagnostics:{account}'")
    (validation,) = policy["spec"]["validations"]
    terms = validation["expression"].split(" && ")
    agents = rendered.one("DaemonSet", "agent")["metadata"]["name"]
    argv = ExecSettings().argv
    assert terms == [
        "request.namespace == 'gpu-diagnostics'",
        f"request.name.startsWith('{agents}')",
        "has(object.container)",
        f"object.container == '{container(rendered, 'agent')['name']}'",
        "has(object.command)",
        f"object.command == {list(argv)}",
        "!(has(object.tty)",
        "object.tty)",
    ]
    assert f"may start {' '.join(argv)} in the container agent of {agents}" in validation["message"]
    other = render({"admissionPolicy": {"enabled": True}}, namespace="other")
    assert (
        other.all("ValidatingAdmissionPolicy")[0]["metadata"]["name"] != binding["metadata"]["name"]
    )


@pytest.mark.parametrize("gateway", [{"enabled": False}, {"routingMode": "http"}])
def test_where_nothing_may_exec_there_is_nothing_to_pin(gateway: dict[str, Any]) -> None:
    values = {"admissionPolicy": {"enabled": True}, "gateway": gateway}
    assert render(values).all("ValidatingAdmissionPolicy") == []


@pytest.mark.parametrize(
    ("version", "enabled", "pinned"),
    [("1.29", "auto", False), ("1.30", "auto", True), ("1.30", False, False)],
)
def test_exec_is_pinned_wherever_the_cluster_can(
    version: str, enabled: bool | str, pinned: bool, tmp_path: Path
) -> None:
    # Only linting takes a version of Kubernetes, and of objects it tells only bad names.
    copied = Path(shutil.copytree(CHART, tmp_path / "mcp-gpu"))
    tells = """apiVersion: v1
kind: ConfigMap
metadata: {name: 'PINNED {{ include "mcp-gpu.pinsExec" . }}.'}
"""
    (copied / "templates" / "tells.yaml").write_text(tells, encoding="utf-8")
    values = {"admissionPolicy": {"enabled": enabled}}
    report = helm_python.lint(copied, values, namespace="gpu", kube_version=version)
    (told,) = [m["error"] for m in report["messages"] if "PINNED" in m["error"]]
    assert ("PINNED true." in told) == pinned


def test_a_gateway_that_opens_no_streams_may_not_exec() -> None:
    rendered = render({"gateway": {"routingMode": "http"}, "rbac": {"diagnosis": False}})
    resources = [resource for _, resource, _ in rules(rendered, "Role", "gateway")]
    assert resources == ["endpointslices", "pods"]


CLUSTER_WIDE = {
    "ClusterRole", "ClusterRoleBinding",
    "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
}  # fmt: skip
"""Kinds of the chart's that lie in no namespace."""


def test_with_rights_in_one_namespace_alone_it_installs_as_the_guide_says() -> None:
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    _, _, section = text.partition("## With rights in one namespace alone\n")
    command = section.split("```")[1]
    flags = [flag.replace('""', "") for flag in re.findall(r"--set (\S+)", command)]
    values = helm_python.parse_set_string(",".join(flags))
    with api_server(namespaced=True) as config:
        rendered = render(values, config=config)
        # Of a cluster where policies would be the default.
        assert {e["kind"] for e in rendered.objects} & CLUSTER_WIDE == set()
        assert len(rendered.all("Role")) == 1
        with pytest.raises(helm_python.HelmError, match="RuntimeClass"):
            render({**values, "gpu": {"runtimeClassName": "auto"}}, config=config)
    # Each of them is needed, but for the default that is named.
    for flag in flags:
        key = flag.partition("=")[0]
        if key in {"image.repository", "auth.agents.verify", "gpu.runtimeClassName"}:
            continue
        others = [other for other in flags if other != flag]
        if key == "auth.accessReview":
            others += ["auth.oauth.issuer=https://login.example.org"]
            others += ["auth.oauth.resource=https://gpu.example.org/mcp"]
        with api_server() as config:
            if key == "rbac.failures":  # which the other needs to take anything away
                with pytest.raises(helm_python.HelmError, match=r"set rbac[.]failures=false too"):
                    render(helm_python.parse_set_string(",".join(others)), config=config)
                continue
            wider = render(helm_python.parse_set_string(",".join(others)), config=config)
        assert {e["kind"] for e in wider.objects} & CLUSTER_WIDE, key


def test_every_kind_that_lies_in_no_namespace_is_known() -> None:
    for path in CI_VALUES:
        for entry in render(chart.values_of(path)).objects:
            assert ("namespace" in entry["metadata"]) != (entry["kind"] in CLUSTER_WIDE)


def test_a_diagnosis_is_granted_without_the_nodes_and_the_nodes_without_it() -> None:
    alone = rules(
        render({"rbac": {"nodes": False, "workloads": False, "failures": False}}), "ClusterRole"
    )
    assert "nodes" not in [resource for _, resource, _ in alone]
    granted = rules(render({"rbac": {**NOTHING, "nodes": True}}), "ClusterRole")
    assert granted == [*REVIEWS, ("", "nodes", READ)]


def test_what_pods_hold_and_a_nodes_page_tells_is_granted_by_itself() -> None:
    granted = rules(render({"rbac": {**NOTHING, "workloads": True}}), "ClusterRole")
    assert granted == [*REVIEWS, *WORKLOADS]


def test_what_explains_a_failure_is_granted_with_workloads_and_logs_only_on_demand() -> None:
    alone = {**NOTHING, "workloads": True, "failures": True}
    granted = rules(render({"rbac": alone}), "ClusterRole")
    assert granted == [*REVIEWS, *WORKLOADS, *FAILURES]
    granted = rules(render({"rbac": alone | {"failureLogs": True}}), "ClusterRole")
    assert granted == [*REVIEWS, *WORKLOADS, *FAILURES, ("", "pods/log", "get")]
    with pytest.raises(helm_python.HelmError, match="no use without rbac"):
        render({"rbac": {"failures": False, "failureLogs": True}})


def test_what_false_takes_away_is_what_the_documentation_says() -> None:
    def left(rbac: dict[str, bool]) -> tuple[list[tuple[str, str, str]], str | None]:
        rendered = render({"rbac": {**NOTHING, **rbac}})
        variables = environment(rendered, "gateway")
        return rules(rendered, "ClusterRole"), variables.get("MCP_GPU_WITHOUT_TOOLS")

    tools = "explain_failure,get_incident_report"
    assert left({"workloads": True, "failures": True}) == ([*REVIEWS, *WORKLOADS, *FAILURES], None)
    # What is left are rights to read the pods that died, which the tools that are left do not tell.
    assert left({"workloads": True}) == ([*REVIEWS, *WORKLOADS], tools)
    assert left({}) == (REVIEWS, tools)
    # Alone it would take away nothing: RBAC knows no tools.
    with pytest.raises(helm_python.HelmError, match=r"set rbac[.]failures=false too"):
        render({"rbac": {"workloads": False}})


def test_tools_that_are_left_out_are_those_of_values_and_of_rights_together() -> None:
    values = {"gateway": {"withoutTools": ["get_gpu_processes", "explain_failure"]}}
    variables = environment(render(values), "gateway")
    assert variables["MCP_GPU_WITHOUT_TOOLS"] == "get_gpu_processes,explain_failure"
    variables = environment(render({**values, "rbac": {"failures": False}}), "gateway")
    told = variables["MCP_GPU_WITHOUT_TOOLS"].split(",")
    assert told == ["get_gpu_processes", "explain_failure", "get_incident_report"]


# --- tokens ------------------------------------------------------------------------------------


def tokens(rendered: Rendered) -> dict[str, str]:
    secret = rendered.one("Secret", "auth")
    return {key: base64.b64decode(text).decode() for key, text in secret["data"].items()}


def private(rendered: Rendered) -> list[str]:
    """What is secret, as written in the Secrets."""
    return [
        text
        for secret in rendered.all("Secret")
        for key, text in secret["data"].items()
        if not key.endswith(".crt")
    ]


@every_ci_file
def test_secrets_are_in_secrets_and_nowhere_else(path: Path) -> None:
    rendered = render(chart.values_of(path))
    rest = json.dumps([entry for entry in rendered.objects if entry["kind"] != "Secret"])
    found = private(rendered)
    for text in found:
        for written in (text, base64.b64decode(text).decode()):
            assert written not in rest
            assert written not in rendered.notes
    assert len(set(found)) == len(found)


def test_the_static_token_is_long_and_the_gateways_alone() -> None:
    rendered = render()
    assert tokens(rendered).keys() == {"client-token"}
    assert re.fullmatch(r"[A-Za-z0-9]{48}", tokens(rendered)["client-token"])
    assert environment(rendered, "gateway")["MCP_GPU_TOKEN_FILE"].endswith("/client-token")
    holders = [
        name
        for name, spec in every_pod(rendered).items()
        if "client-token" in [file for volume in spec.get("volumes", []) for file in files(volume)]
    ]
    assert holders == ["gateway"]


@pytest.mark.parametrize("verify", ["jwks", "review"])
@pytest.mark.parametrize("audience", ["", "agents.example.org"])
def test_agents_take_the_token_that_the_gateway_and_the_pre_flight_show(
    verify: str, audience: str
) -> None:
    rendered = render({"auth": {"agents": {"verify": verify, "audience": audience}}})
    agent = environment(rendered, "agent")
    assert agent["MCP_GPU_KUBERNETES_TOKENS"] == verify
    account = rendered.one("ServiceAccount", "gateway")["metadata"]["name"]
    assert agent["MCP_GPU_TOKEN_SUBJECTS"] == f"system:serviceaccount:gpu-diagnostics:{account}"
    wanted = audience or "gpu-mcp-mcp-gpu-agent.gpu-diagnostics"
    assert agent["MCP_GPU_TOKEN_AUDIENCES"] == wanted
    pods = every_pod(rendered)
    for name in ("gateway", "doctor"):
        assert pods[name]["serviceAccountName"] == account
        (token,) = projected(pods[name])
        assert token["audience"] == wanted
        assert token["expirationSeconds"] <= 3600
    # What an agent itself is given opens the API server, where its account may do nothing.
    assert projected(pods["agent"]) == []
    assert pods["agent"]["automountServiceAccountToken"] is True
    assert "MCP_GPU_TOKEN_FILE" not in agent


def test_the_helm_test_shows_the_gateway_a_token_that_it_takes() -> None:
    rendered = render()
    spec = every_pod(rendered)["client"]
    (token,) = projected(spec)
    account = rendered.one("ServiceAccount", "client")["metadata"]["name"]
    assert spec["serviceAccountName"] == account
    assert spec["automountServiceAccountToken"] is False
    gateway = environment(rendered, "gateway")
    assert gateway["MCP_GPU_KUBERNETES_TOKENS"] == "review"
    assert gateway["MCP_GPU_TOKEN_AUDIENCES"] == token["audience"]
    assert "MCP_GPU_TOKEN_SUBJECTS" not in gateway
    # It is what the gateway's, whose audience is another, would be without that.
    assert token["audience"] != projected(every_pod(rendered)["gateway"])[0]["audience"]


@every_ci_file
def test_the_helm_test_calls_the_service_as_it_wants_to_be_called(path: Path) -> None:
    rendered = render(chart.values_of(path))
    if "gateway" not in rendered.pods():
        assert rendered.all("Pod") == []
        return
    gateway = environment(rendered, "gateway")
    calls = [pod for pod in rendered.all("Pod") if pod["metadata"]["name"].endswith("-test-call")]
    believed = {"MCP_GPU_TOKEN_FILE", "MCP_GPU_KUBERNETES_TOKENS", "MCP_GPU_ALLOW_ANONYMOUS"}
    if not believed & gateway.keys():  # an authorization server's tokens alone
        assert calls == []
        return
    (call,) = calls
    flags = dict(flag.partition("=")[::2] for flag in call["spec"]["containers"][0]["args"][1:])
    url = urlsplit(flags["--url"])
    service = rendered.one("Service", "gateway")
    assert url.hostname == f"{service['metadata']['name']}.gpu-diagnostics.svc"
    assert url.hostname in gateway["MCP_GPU_ALLOWED_HOSTS"].split(",")
    assert url.port == service["spec"]["ports"][0]["port"]
    assert (url.scheme == "https") == ("MCP_GPU_TLS_CERT_FILE" in gateway) == ("--ca-file" in flags)
    assert ("--token-file" in flags) == ("MCP_GPU_ALLOW_ANONYMOUS" not in gateway)
    assert ("--plain-token" in flags) == ("--token-file" in flags and url.scheme == "http")
    # It has none of the labels by which the Service finds its pods, and comes after the pre-flight.
    selector = service["spec"]["selector"]
    assert not selector.items() <= call["metadata"]["labels"].items()
    assert int(call["metadata"]["annotations"]["helm.sh/hook-weight"]) > 0


def test_a_secret_of_ones_own_is_mounted_and_none_is_made() -> None:
    rendered = render({"auth": {"static": {"existingSecret": "gpu-tokens"}}})
    assert [e for e in rendered.all("Secret") if "client-token" in e["data"]] == []
    (auth,) = [
        volume["secret"]
        for volume in rendered.pods()["gateway"]["spec"]["volumes"]
        if volume["name"] == "auth"
    ]
    assert auth["secretName"] == "gpu-tokens"
    assert "get secret gpu-tokens" in rendered.notes


def test_without_authentication_there_is_no_token_and_no_certificate_and_the_notes_warn() -> None:
    rendered = render({"auth": {"mode": "none"}})
    assert rendered.all("Secret") == []
    for component in ("agent", "gateway"):
        variables = environment(rendered, component)
        assert [name for name in variables if re.search("TOKEN|TLS|CA_FILE|REVIEW", name)] == []
        assert variables["MCP_GPU_ALLOW_ANONYMOUS"] == "true"
        probe = container(rendered, component)["readinessProbe"]["httpGet"]
        assert probe["scheme"] == "HTTP"
    assert "MCP_GPU_AGENT_SCHEME" not in environment(rendered, "gateway")
    assert rendered.pods()["agent"]["spec"]["automountServiceAccountToken"] is False
    assert {e["metadata"]["name"] for e in rendered.all("ServiceAccount")} == {
        "gpu-mcp-mcp-gpu-agent", "gpu-mcp-mcp-gpu-gateway",
    }  # fmt: skip
    assert "WARNING: auth.mode is none" in rendered.notes
    other = render({"auth": {"mode": "none"}, "agent": {"port": 9408}}).notes
    assert "reaches port 8080 of the gateway or port 9408 of an agent reads" in other
    assert "WARNING" not in render().notes


def test_https_without_tokens_is_served_where_it_is_asked_for() -> None:
    values = {"auth": {"mode": "none"}, "gateway": {"tls": {"source": "generated"}}}
    rendered = render(values)
    assert "MCP_GPU_TLS_CERT_FILE" in environment(rendered, "gateway")
    assert "MCP_GPU_TLS_CERT_FILE" not in environment(rendered, "agent")
    assert "https://localhost:8080/mcp" in rendered.notes


def test_where_nothing_listens_there_is_nothing_to_guard() -> None:
    alone = {"gateway": {"enabled": False}, "transport": {"mode": "stdio"}}
    assert render(alone).all("Secret") == []
    assert "WARNING" not in render({**alone, "auth": {"mode": "none"}}).notes


def test_a_gateway_that_would_believe_no_token_is_refused_with_the_way_out() -> None:
    nothing = {"kubernetes": {"enabled": False}, "static": {"enabled": False}}
    with pytest.raises(helm_python.HelmError, match=r"set auth\.kubernetes\.enabled"):
        render({"auth": nothing})
    assert render({"auth": nothing, "gateway": {"enabled": False}}).objects
    oauth = {"issuer": "https://login.example.org", "resource": "https://gpu.example.org/mcp"}
    variables = environment(render({"auth": {**nothing, "oauth": oauth}}), "gateway")
    assert variables["MCP_GPU_OAUTH_ISSUER"] == oauth["issuer"]
    assert variables["MCP_GPU_OAUTH_RESOURCE"] == oauth["resource"]
    assert "gpu.example.org" in variables["MCP_GPU_ALLOWED_HOSTS"].split(",")
    for useless in ({"resource": oauth["resource"]}, {"scopes": ["gpu.read"]}):
        with pytest.raises(helm_python.HelmError, match=r"of no use without auth\.oauth\.issuer"):
            render({"auth": {"oauth": useless}})
    with pytest.raises(helm_python.HelmError, match=r"auth\.oauth\.resource has to be"):
        render({"auth": {"oauth": {"issuer": "https://login.example.org"}}})


def test_a_generated_secret_is_kept_over_upgrades_and_uninstallations() -> None:
    first = render()
    secret = first.one("Secret", "auth")
    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    with api_server([secret]) as config:
        assert tokens(render(config=config)) == tokens(first)
    with api_server() as config:
        assert tokens(render(config=config)) != tokens(first)


def test_a_kept_secret_keeps_what_was_put_into_it() -> None:
    secret = render().one("Secret", "auth")
    secret["data"] = {"client-token": base64.b64encode(b"old\nnew\n").decode()}
    with api_server([secret]) as config:
        assert tokens(render(config=config)) == {"client-token": "old\nnew\n"}

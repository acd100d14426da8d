"""The Helm chart: what it installs with every switch, and that the program understands it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import helm_python
import httpx2
import pytest
import yaml

from mcp_gpu import __version__
from mcp_gpu.gpu import simulator
from mcp_gpu.settings import (
    PREFIX,
    AgentSettings,
    DoctorSettings,
    GatewaySettings,
)
from mcp_gpu.variables import unknown_variables
from support import chart, podsecurity
from support.chart import CHART, CI_VALUES, ROOT, Object, Rendered, render
from support.cluster import END_SECONDS, PROGRAM, Running
from support.helmapi import api_server
from support.ports import free_ports
from transports.exec import ExecSettings, ExecTransport
from transports.portforward import PortForwardTransport

DEFAULTS: dict[str, Any] = chart.values_of(CHART / "values.yaml")

every_ci_file = pytest.mark.parametrize("path", CI_VALUES, ids=lambda path: path.name)


def container(rendered: Rendered, component: str) -> Object:
    (only,) = rendered.pods()[component]["spec"]["containers"]
    found: Object = only
    return found


def environment(rendered: Rendered, component: str) -> dict[str, str]:
    """A container's variables; what the downward API fills in reads as its field."""
    return {
        entry["name"]: entry.get("value") or entry["valueFrom"]["fieldRef"]["fieldPath"]
        for entry in container(rendered, component)["env"]
    }


def rules(rendered: Rendered, kind: str) -> list[tuple[str, str, str]]:
    return [
        (",".join(rule["apiGroups"]), ",".join(rule["resources"]), ",".join(rule["verbs"]))
        for entry in rendered.all(kind)
        for rule in entry["rules"]
    ]


# --- the chart as such -------------------------------------------------------------------------


def test_every_switch_renders_to_what_the_api_knows(capsys: pytest.CaptureFixture[str]) -> None:
    status = chart.main()
    said = capsys.readouterr()
    assert (status, said.err) == (0, "")
    assert f"{len(CI_VALUES)} files of values" in said.out


def test_the_check_sees_a_misspelt_field_deep_inside() -> None:
    rendered = render()
    container(rendered, "agent")["securityContex"] = {}
    assert any("securityContex" in fault for fault in chart.faults_of(rendered))


def leaves(values: dict[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        if isinstance(value, dict) and value and (*place, key) not in FREE:
            yield from leaves(value, (*place, key))
        else:
            yield (*place, key)


FREE = {
    (role, key)
    for role in ("agent", "gateway")
    for key in ("resources", "nodeSelector", "affinity", "podLabels", "podAnnotations")
} | {("agent", "updateStrategy")}
"""Values that Kubernetes defines, not the chart."""


def test_every_value_is_set_by_some_file_under_ci() -> None:
    used = {leaf for path in CI_VALUES for leaf in leaves(chart.values_of(path))}
    assert set(leaves(DEFAULTS)) - used == set()


@pytest.mark.parametrize(
    "place", sorted({leaf[:-1] for leaf in leaves(DEFAULTS)}), ids=lambda p: ".".join(p) or "top"
)
def test_a_misspelt_value_is_refused_by_name(place: tuple[str, ...]) -> None:
    values: dict[str, Any] = {}
    inner = values
    for key in place:
        inner = inner.setdefault(key, {})
    inner["routingMod"] = "exec"
    with pytest.raises(helm_python.HelmValuesError, match="routingMod"):
        render(values)


def test_one_version_everywhere() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (about["version"], about["appVersion"]) == (__version__, __version__)


def test_long_release_names_still_make_legal_names() -> None:
    name = "r" * 53
    for entry in render(name=name).objects:
        if "ClusterRole" not in entry["kind"]:
            assert len(entry["metadata"]["name"]) <= 63, entry["metadata"]["name"]
    assert chart.faults_of(render(name=name)) == []


def test_two_installs_share_no_name() -> None:
    def names(**where: str) -> set[tuple[str, str, str]]:
        return {
            (e["kind"], e["metadata"].get("namespace", ""), e["metadata"]["name"])
            for e in render(**where).objects  # type: ignore[arg-type]
        }

    one = names(name="gpu", namespace="a")
    assert one & names(name="gpu", namespace="b") == set()
    assert one & names(name="gpu-2", namespace="a") == set()


# --- what the program is told ------------------------------------------------------------------


@every_ci_file
def test_every_variable_is_a_setting_of_its_role(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = render(chart.values_of(path))
    for component, settings in (("agent", AgentSettings), ("gateway", GatewaySettings)):
        if component not in rendered.pods():
            continue
        variables = environment(rendered, component)
        ours = {name: text for name, text in variables.items() if name.startswith(PREFIX)}
        known = {PREFIX + name.upper() for name in settings.model_fields}
        assert ours.keys() - known == set()
        assert list(unknown_variables(ours)) == []
        with monkeypatch.context() as patched:
            for name, text in ours.items():
                patched.setenv(name, text)
            read = settings()  # raises where a value does not read
        if "MCP_GPU_HTTP_HOST" in ours:
            assert read.http_host == ("0.0.0.0", "::")
            # Left to its default, or `mcp-gpu gateway --stdio` in the same pod would want it too.
            assert read.http_port is None


def test_the_gateway_looks_for_the_agents_that_this_release_installs() -> None:
    rendered = render()
    selector = environment(rendered, "gateway")["MCP_GPU_AGENT_SELECTOR"]
    wanted = dict(part.split("=") for part in selector.split(","))
    service = rendered.one("Service", "agent")
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert wanted.items() <= rendered.pods()["agent"]["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= wanted.items()
    assert not wanted.items() <= rendered.pods()["gateway"]["metadata"]["labels"].items()
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True


@pytest.mark.parametrize(
    ("transport", "routing", "transports"),
    [
        ("http", "auto", "http,portforward,exec"),
        ("http", "http", "http"),
        ("http", "portforward", "portforward"),
        ("http", "exec", "exec"),
        ("stdio", "auto", "exec"),
        ("stdio", "exec", "exec"),
    ],
)
def test_the_paths_follow_from_transport_and_routing(
    transport: str, routing: str, transports: str
) -> None:
    values = {"transport": {"mode": transport}, "gateway": {"routingMode": routing}}
    rendered = render(values)
    variables = environment(rendered, "gateway")
    assert variables["MCP_GPU_TRANSPORTS"] == transports
    # What is of no use on these paths is not handed out.
    paths = set(transports.split(","))
    assert ("MCP_GPU_AGENT_TOKEN_FILE" in variables) == bool(paths & {"http", "portforward"})
    for path in ("portforward", "exec"):
        granted = ("", f"pods/{path}", "get,create") in rules(rendered, "Role")
        assert granted == (path in paths)


@pytest.mark.parametrize("routing", ["http", "portforward"])
def test_routing_to_a_port_that_agents_do_not_have_is_refused_with_the_way_out(
    routing: str,
) -> None:
    values = {"transport": {"mode": "stdio"}, "gateway": {"routingMode": routing}}
    with pytest.raises(helm_python.HelmError, match="routingMode to auto or exec"):
        render(values)


def test_agents_in_stdio_mode_open_no_port_and_are_probed_through_their_socket() -> None:
    rendered = render({"transport": {"mode": "stdio"}})
    agent = container(rendered, "agent")
    assert "ports" not in agent
    for probe in ("readinessProbe", "livenessProbe"):
        assert agent[probe]["exec"]["command"] == ["mcp-gpu", "attach", "--check"]
    variables = environment(rendered, "agent")
    assert variables["MCP_GPU_HTTP"] == "false"
    assert {"MCP_GPU_HTTP_HOST", "MCP_GPU_TOKEN_FILE"} & variables.keys() == set()
    volumes = rendered.pods()["agent"]["spec"]["volumes"]
    assert [volume["name"] for volume in volumes] == ["socket"]
    assert rendered.one("Service", "agent")["spec"]["ports"][0]["port"] == 8080


@pytest.mark.parametrize("file", ["default", "simulate", "simulate-fleet", "gpu"])
def test_agents_ask_for_the_driver_unless_their_gpus_are_simulated(file: str) -> None:
    rendered = render(chart.values_of(CHART / "ci" / f"{file}-values.yaml"))
    simulated = file.startswith("simulate")
    variables = environment(rendered, "agent")
    assert ("MCP_GPU_SIMULATE" in variables) == simulated
    assert (variables.get("NVIDIA_VISIBLE_DEVICES") == "all") == (not simulated)
    assert (variables.get("NVIDIA_DRIVER_CAPABILITIES") == "utility") == (not simulated)
    runtime = rendered.pods()["agent"]["spec"].get("runtimeClassName")
    assert runtime == ("nvidia" if file == "gpu" else None)


def test_simulated_gpus_need_no_runtime_class() -> None:
    values = {"gpu": {"runtimeClassName": "nvidia"}, "simulate": {"enabled": True}}
    assert "runtimeClassName" not in render(values).pods()["agent"]["spec"]


@pytest.mark.parametrize(
    ("file", "shape"),
    [
        ("simulate", {"gpu-1": ("t4", 1), "worker-2": ("t4", 1)}),
        ("simulate-fleet", {"gpu-1": ("h100", 8), "worker-2": ("l40s", 2)}),
    ],
)
def test_the_fleet_that_is_mounted_has_gpus_for_every_node(
    file: str, shape: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    rendered = render(chart.values_of(CHART / "ci" / f"{file}-values.yaml"))
    (config,) = rendered.all("ConfigMap")
    path = tmp_path / "fleet.toml"
    path.write_text(config["data"]["fleet.toml"], encoding="utf-8")
    fleet = simulator.load_fleet(path)
    nodes = {name: fleet.node(name) for name in shape}
    assert {name: (node.profile, len(node.gpus)) for name, node in nodes.items()} == shape


def test_another_fleet_replaces_the_agents_and_the_same_does_not() -> None:
    def mark(**simulate: Any) -> str:
        rendered = render({"simulate": {"enabled": True, **simulate}})
        found: str = rendered.pods()["agent"]["metadata"]["annotations"]["checksum/fleet"]
        return found

    assert mark() == mark()
    assert len({mark(), mark(profile="t4"), mark(gpus=2)}) == 3


def test_every_shipped_profile_may_be_simulated() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    offered = schema["properties"]["simulate"]["properties"]["profile"]["enum"]
    assert offered == sorted(simulator.shipped_profiles())


def test_an_image_is_named_by_tag_or_by_digest() -> None:
    def image(**values: str) -> str:
        found: str = container(render({"image": values}), "agent")["image"]
        return found

    assert image() == f"mcp-gpu:{__version__}"
    assert image(repository="images.example/mcp-gpu", tag="x") == "images.example/mcp-gpu:x"
    digest = "sha256:" + 64 * "0"
    assert image(tag="x", digest=digest) == f"mcp-gpu@{digest}"


async def test_an_agent_started_as_the_chart_does_answers_by_its_names_and_on_its_socket(
    tmp_path: Path,
) -> None:
    rendered = render({"simulate": {"enabled": True, "profile": "t4"}, "auth": {"mode": "none"}})
    variables = environment(rendered, "agent")
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(rendered.all("ConfigMap")[0]["data"]["fleet.toml"], encoding="utf-8")
    (port,) = free_ports(1)
    variables |= {
        "MCP_GPU_NODE_NAME": "worker-1",
        "MCP_GPU_POD_UID": "uid-1",
        "MCP_GPU_HTTP_HOST": "127.0.0.1,::1",  # a pod has no others of its own; this machine does
        "MCP_GPU_HTTP_PORT": str(port),
        "MCP_GPU_SIMULATE": str(fleet),
        "MCP_GPU_SOCKET": f"{tmp_path}/run/agent/agent.sock",
    }
    arguments = container(rendered, "agent")["args"]
    agent = Running(arguments, port, tmp_path / "agent.log", environment=variables)
    await agent.start()
    try:
        service = rendered.one("Service", "agent")["metadata"]["name"]
        full = f"{service}.gpu-diagnostics.svc.cluster.local"
        async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
            answers = {
                host: (
                    await client.post(
                        f"{agent.url}/mcp",
                        headers={"host": f"{host}:8080"},
                        json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
                    )
                ).status_code
                for host in (
                    f"10-244-1-7.{full}", full, f"{service}.gpu-diagnostics.svc", service,
                    "10.244.1.7", f"{service}.other.svc", f"{full}.attacker.example",
                )
            }  # fmt: skip
        assert list(answers.values()) == [200] * 5 + [421] * 2
        assert "unknown" not in agent.log.read_text(encoding="utf-8").lower()
        stdio = container(render({"transport": {"mode": "stdio"}}), "agent")
        probe = stdio["livenessProbe"]["exec"]["command"][1:]
        with anyio.fail_after(END_SECONDS):
            checked = await anyio.run_process([*PROGRAM, *probe], env=variables, check=False)
        assert checked.returncode == 0, checked.stderr
        assert b"worker-1" in checked.stdout
    finally:
        await agent.end()


# --- who may do what ---------------------------------------------------------------------------

READ = "list,watch"


def test_the_gateway_may_read_agents_and_nodes_and_open_streams_and_no_more() -> None:
    rendered = render()
    assert rules(rendered, "Role") == [
        ("discovery.k8s.io", "endpointslices", READ),
        ("", "pods", READ),
        ("networking.k8s.io,crd.projectcalico.org", "networkpolicies", "list"),
        ("cilium.io", "ciliumnetworkpolicies", "list"),
        ("", "pods/portforward", "get,create"),
        ("", "pods/exec", "get,create"),
    ]
    assert rules(rendered, "ClusterRole") == [
        ("", "nodes", READ),
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
    account = rendered.pods()["gateway"]["spec"]["serviceAccountName"]
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        (binding,) = rendered.all(kind)
        assert [s["name"] for s in binding["subjects"]] == [account]
        assert [s["namespace"] for s in binding["subjects"]] == ["gpu-diagnostics"]
        (role,) = rendered.all(binding["roleRef"]["kind"])
        assert role["metadata"]["name"] == binding["roleRef"]["name"]


def test_the_rights_are_those_that_the_paths_name() -> None:
    granted = rules(render(), "Role")
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


def test_without_a_gateway_there_is_nothing_to_pin() -> None:
    values = {"admissionPolicy": {"enabled": True}, "gateway": {"enabled": False}}
    assert render(values).all("ValidatingAdmissionPolicy") == []


def test_a_gateway_that_opens_no_streams_may_not_exec() -> None:
    rendered = render({"gateway": {"routingMode": "http"}, "rbac": {"diagnosis": False}})
    assert [resource for _, resource, _ in rules(rendered, "Role")] == ["endpointslices", "pods"]


def test_nothing_is_granted_in_the_whole_cluster_when_nothing_there_is_to_be_read() -> None:
    rendered = render({"rbac": {"nodes": False, "diagnosis": False}})
    assert [e for e in rendered.objects if e["kind"].startswith("Cluster")] == []
    assert len(rendered.all("Role")) == 1


def test_a_diagnosis_is_granted_without_the_nodes_and_the_nodes_without_it() -> None:
    alone = rules(render({"rbac": {"nodes": False}}), "ClusterRole")
    assert "nodes" not in [resource for _, resource, _ in alone]
    assert rules(render({"rbac": {"diagnosis": False}}), "ClusterRole") == [("", "nodes", READ)]


# --- the pre-flight ----------------------------------------------------------------------------


def test_the_pre_flight_stands_where_the_gateway_stands() -> None:
    place = {
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"operator": "Exists"}],
        "podLabels": {"team": "gpu"},
        "podAnnotations": {"mesh/inject": "false"},
    }
    rendered = render({"gateway": place})
    (test,) = rendered.all("Pod")
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
    (volume,) = test["spec"]["volumes"]
    assert [item["key"] for item in volume["secret"]["items"]] == ["agent-token"]


def test_a_pre_flight_that_shows_no_token_has_none() -> None:
    for values in ({"auth": {"mode": "none"}}, {"gateway": {"routingMode": "exec"}}):
        (test,) = render(values).all("Pod")
        assert "volumes" not in test["spec"]
        assert "volumeMounts" not in test["spec"]["containers"][0]


def test_a_helm_test_fails_where_a_node_is_out_of_reach_and_an_install_only_if_told_to() -> None:
    def pre_flights(**values: Any) -> dict[str, list[str]]:
        found = render({"preflight": values}).all("Pod")
        return {
            pod["metadata"]["annotations"]["helm.sh/hook"]: pod["spec"]["containers"][0]["args"]
            for pod in found
        }

    usual = ["doctor", "--in-cluster", "--wait-seconds=60"]
    hook = "post-install,post-upgrade"
    assert pre_flights() == {"test": [*usual, "--strict"]}
    assert pre_flights(onInstall=True) == {"test": [*usual, "--strict"], hook: usual}
    strict = pre_flights(onInstall=True, strict=True, waitSeconds=5)
    assert strict[hook] == ["doctor", "--in-cluster", "--wait-seconds=5", "--strict"]


@every_ci_file
def test_every_variable_of_the_pre_flight_is_a_setting_of_the_doctor(path: Path) -> None:
    for pod in render(chart.values_of(path)).all("Pod"):
        names = {entry["name"] for entry in pod["spec"]["containers"][0]["env"]}
        assert not list(unknown_variables(dict.fromkeys(names, "")))
        fields = {name.removeprefix(PREFIX).lower() for name in names if name.startswith(PREFIX)}
        assert fields <= set(DoctorSettings.model_fields)


def test_without_a_gateway_nobody_is_granted_anything() -> None:
    rendered = render({"gateway": {"enabled": False}})
    assert {entry["kind"] for entry in rendered.objects} == {
        "DaemonSet", "Service", "ServiceAccount", "Secret",
    }  # fmt: skip


@every_ci_file
def test_the_gateway_runs_with_no_privilege(path: Path) -> None:
    rendered = render(chart.values_of(path))
    if "gateway" not in rendered.pods():
        return
    pods = [rendered.pods()["gateway"], *rendered.all("Pod")]
    assert [podsecurity.refusals(pod, "restricted") for pod in pods] == [[]] * len(pods)
    for pod in pods:
        (only,) = pod["spec"]["containers"]
        assert only["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["spec"]["enableServiceLinks"] is False


# --- tokens ------------------------------------------------------------------------------------


def tokens(rendered: Rendered) -> dict[str, str]:
    (secret,) = rendered.all("Secret")
    return {key: base64.b64decode(text).decode() for key, text in secret["data"].items()}


@every_ci_file
def test_tokens_are_in_the_secret_and_nowhere_else(path: Path) -> None:
    rendered = render(chart.values_of(path))
    if not rendered.all("Secret"):
        return
    made = tokens(rendered)
    rest = json.dumps([entry for entry in rendered.objects if entry["kind"] != "Secret"])
    for token in made.values():
        assert re.fullmatch(r"[A-Za-z0-9]{48}", token)
        for written in (token, base64.b64encode(token.encode()).decode()):
            assert written not in rest
            assert written not in rendered.notes
    assert len(set(made.values())) == len(made) == 2


def test_agents_hold_their_own_token_only() -> None:
    rendered = render()
    keys = {
        component: [
            item["key"]
            for volume in pod["spec"]["volumes"]
            for item in volume.get("secret", {}).get("items", [])
        ]
        for component, pod in rendered.pods().items()
    }
    assert keys == {"agent": ["agent-token"], "gateway": ["client-token", "agent-token"]}
    assert environment(rendered, "agent")["MCP_GPU_TOKEN_FILE"].endswith("/agent-token")
    assert environment(rendered, "gateway")["MCP_GPU_TOKEN_FILE"].endswith("/client-token")
    assert environment(rendered, "gateway")["MCP_GPU_AGENT_TOKEN_FILE"].endswith("/agent-token")


def test_a_secret_of_ones_own_is_mounted_and_none_is_made() -> None:
    rendered = render({"auth": {"existingSecret": "gpu-tokens"}})
    assert rendered.all("Secret") == []
    for pod in rendered.pods().values():
        (auth,) = [v["secret"] for v in pod["spec"]["volumes"] if v["name"] == "auth"]
        assert auth["secretName"] == "gpu-tokens"
    assert "get secret gpu-tokens" in rendered.notes


def test_without_authentication_there_is_no_token_and_the_notes_warn() -> None:
    rendered = render({"auth": {"mode": "none"}})
    assert rendered.all("Secret") == []
    for component in ("agent", "gateway"):
        assert [name for name in environment(rendered, component) if "TOKEN" in name] == []
    assert "WARNING: auth.mode is none" in rendered.notes
    assert "WARNING" not in render().notes


def test_where_nothing_listens_there_is_nothing_to_guard() -> None:
    alone = {"gateway": {"enabled": False}, "transport": {"mode": "stdio"}}
    assert render(alone).all("Secret") == []
    assert "WARNING" not in render({**alone, "auth": {"mode": "none"}}).notes


def test_a_generated_secret_is_kept_over_upgrades() -> None:
    first = render()
    (secret,) = first.all("Secret")
    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    with api_server([secret]) as config:
        assert tokens(render(config=config)) == tokens(first)
    with api_server() as config:
        assert tokens(render(config=config)) != tokens(first)


def test_a_kept_secret_gets_the_token_it_lacks_and_keeps_what_was_put_into_it() -> None:
    (secret,) = render().all("Secret")
    two = base64.b64encode(b"old\nnew\n").decode()
    secret["data"] = {"client-token": two}
    with api_server([secret]) as config:
        kept = tokens(render(config=config))
    assert kept["client-token"] == "old\nnew\n"
    assert len(kept["agent-token"]) == 48


# --- what a person reads -----------------------------------------------------------------------


@every_ci_file
def test_the_notes_name_what_exists_and_their_client_configuration_parses(path: Path) -> None:
    rendered = render(chart.values_of(path))
    names = {(e["kind"].lower(), e["metadata"]["name"]) for e in rendered.objects}
    for kind, name in re.findall(r"\b(service|daemonset|deployment)/(\S+)", rendered.notes):
        assert (kind, name) in names
    configurations = re.findall(r'^ +(\{"mcpServers".*)$', rendered.notes, re.MULTILINE)
    assert configurations
    for configuration in configurations:
        for server in json.loads(configuration)["mcpServers"].values():
            if "--stdio" in server.get("args", []):
                assert ("deployment", server["args"][4].removeprefix("deploy/")) in names
    for key in re.findall(r"jsonpath='\{\.data\.([a-z-]+)\}'", rendered.notes):
        assert key in {"client-token", "agent-token"}
    # Nothing that only a template's author would understand, and no holes in the text.
    assert "\n\n\n" not in rendered.notes
    assert "{{" not in rendered.notes
    assert "<no value>" not in rendered.notes


def test_the_notes_say_when_gpus_are_simulated_and_how_drivers_are_found() -> None:
    assert "SIMULATED" in render({"simulate": {"enabled": True}}).notes
    assert "gpu.runtimeClassName=nvidia" in render().notes
    assert "gpu.runtimeClassName" not in render({"gpu": {"runtimeClassName": "nvidia"}}).notes


@pytest.mark.parametrize("flags", chart.PREDECESSOR)
def test_the_installs_of_the_predecessor_render_and_may_keep_their_services_name(
    flags: str,
) -> None:
    old = "k8s-gpu-mcp-server"
    values = helm_python.parse_set_string(f"{flags},auth.mode=none,fullnameOverride=gpu-mcp-{old}")
    rendered = render(values, name="gpu-mcp", namespace="gpu-diagnostics")
    assert chart.faults_of(rendered) == []
    service = rendered.one("Service", "gateway")
    assert service["metadata"]["name"] == f"gpu-mcp-{old}-gateway"
    assert service["spec"]["type"] == "ClusterIP"
    assert [port["port"] for port in service["spec"]["ports"]] == [8080]


def test_a_fleet_file_may_begin_as_it_likes() -> None:
    text = '\n   # indented, \'"quoted"\'\n[[nodes]]\nname = "*"\nprofile = "t4"\n'
    rendered = render({"simulate": {"enabled": True, "fleet": text}})
    (fleet,) = rendered.all("ConfigMap")
    assert fleet["data"]["fleet.toml"].strip() == text.strip()


@pytest.mark.parametrize("name", ["1st", "a.b"])
def test_a_name_that_no_service_may_have_is_refused(name: str) -> None:
    with pytest.raises(Exception, match="set fullnameOverride"):
        render(name=name)
    assert render({"fullnameOverride": "first"}, name=name).one("Service", "gateway")


def test_the_installation_guide_names_only_values_that_exist() -> None:
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    known = {".".join(leaf) for leaf in leaves(DEFAULTS)}
    roots = "|".join(DEFAULTS)
    named = re.findall(rf"`((?:{roots})\.[A-Za-z.]+)", text)
    named += re.findall(r"--set(?:-file|-string)? ([A-Za-z.]+)=", text)
    assert named
    assert set(named) - known == set()

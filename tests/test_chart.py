"""The Helm chart: what it installs with every switch, and that the program understands it."""

from __future__ import annotations

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
from mcp_gpu.settings.agent import AgentSettings
from mcp_gpu.settings.base import PREFIX
from mcp_gpu.settings.fleet import GatewaySettings
from support import chart, podsecurity
from support.chart import CHART, CI_VALUES, ROOT, render
from support.cluster import END_SECONDS, PROGRAM, Running
from support.manifests import container, environment, every_pod, files, rules
from support.ports import free_ports

DEFAULTS: dict[str, Any] = chart.values_of(CHART / "values.yaml")

every_ci_file = pytest.mark.parametrize("path", CI_VALUES, ids=lambda path: path.name)


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
    (role, *place)
    for role in ("agent", "gateway")
    for place in (
        ("resources",), ("nodeSelector",), ("affinity",), ("podLabels",), ("podAnnotations",),
        ("updateStrategy",), ("tls", "issuerRef"), ("service", "annotations"),
        ("ingress", "annotations"), ("httpRoute", "annotations"), ("httpRoute", "timeouts"),
    )
} | {
    ("monitoring", *place)
    for place in (
        ("podMonitor", "labels"), ("serviceMonitor", "labels"), ("prometheusRule", "labels"),
        ("dashboard", "labels"), ("dashboard", "annotations"),
    )
}  # fmt: skip
"""Values that Kubernetes or another project defines, not the chart."""


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
        if entry["kind"] in {"Service", "Pod", "DaemonSet", "Deployment"}:
            assert len(entry["metadata"]["name"]) <= 63, entry["metadata"]["name"]
    assert chart.faults_of(render(name=name)) == []


def scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from scalars(inner)
    else:
        yield value


@every_ci_file
def test_names_that_yaml_would_take_for_something_else_stay_names(path: Path) -> None:
    values = chart.values_of(path) | {"fullnameOverride": "gpu"}
    rendered = render(values, name="123", namespace="2024")
    assert {e["metadata"].get("namespace", "2024") for e in rendered.objects} == {"2024"}
    assert {123, 2024} & {each for e in rendered.objects for each in scalars(e)} == set()
    for entry in rendered.objects:
        assert entry["metadata"]["labels"]["app.kubernetes.io/instance"] == "123"


def test_names_that_values_give_stay_names_too() -> None:
    own = {"tls": {"source": "secret", "existingSecret": "1"}}
    ingress = {
        "enabled": True,
        "hosts": ["h.example"],
        "className": "1",
        "tls": {"secretName": "1"},
    }
    values = {
        "auth": {"static": {"existingSecret": "1"}},
        "agent": {**own, "priorityClassName": "1"},
        "gateway": {**own, "priorityClassName": "1", "ingress": ingress},
        "image": {"pullSecrets": ["1"]},
        "gpu": {"runtimeClassName": "1"},
        "clusterDomain": "1",
    }
    assert chart.faults_of(render(values, name="true", namespace="1")) == []


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
    for name in ("TOKEN_FILE", "CA_FILE", "SERVER_NAME", "SCHEME"):
        asks = f"MCP_GPU_AGENT_{name}" in variables
        assert asks == bool(paths & {"http", "portforward"})
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
    asked = [name for name in variables if re.search("HTTP_|TOKEN|TLS|ANONYMOUS", name)]
    assert asked == []
    pod = rendered.pods()["agent"]["spec"]
    assert [volume["name"] for volume in pod["volumes"]] == ["socket"]
    assert pod["automountServiceAccountToken"] is False
    # Nor does the gateway hold what it would show at a port.
    assert [v["name"] for v in rendered.pods()["gateway"]["spec"]["volumes"]] == ["auth"]
    assert [e["metadata"]["name"] for e in rendered.all("Secret")] == ["gpu-mcp-mcp-gpu-auth"]
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


# --- the pods -------------------------------------------------------------------------------


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


@every_ci_file
def test_a_pod_has_what_it_mounts_and_mounts_what_it_has_and_reads_nothing_else(path: Path) -> None:
    for spec in every_pod(render(chart.values_of(path))).values():
        (only,) = spec["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in only.get("volumeMounts", [])}
        assert mounts.keys() == {volume["name"] for volume in spec.get("volumes", [])}
        held = {
            f"{mounts[volume['name']]}/{file}"
            for volume in spec.get("volumes", [])
            for file in files(volume)
        }
        told = [*only["args"], *(entry.get("value", "") for entry in only["env"])]
        read = {found for text in told for found in re.findall(r"/etc/mcp-gpu/\S+", text)}
        assert read == held


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
    made = {e["metadata"]["name"]: e["data"] for e in rendered.all("Secret")}
    read = re.findall(r"get secret (\S+) -o jsonpath='\{\.data\.(\S+)\}'", rendered.notes)
    for secret, key in read:
        assert key.replace("\\.", ".") in made.get(secret, {"client-token": "", "ca.crt": ""})
    accounts = {e["metadata"]["name"] for e in rendered.all("ServiceAccount")}
    assert set(re.findall(r"create token (\S+)", rendered.notes)) <= accounts
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


def test_the_last_install_of_the_predecessor_is_the_first_of_them() -> None:
    """So that a cluster need not be shown both."""
    first, *_, last = (
        chart.settled(render(helm_python.parse_set_string(flags))) for flags in chart.PREDECESSOR
    )
    assert first == last


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


def test_the_installation_guides_name_only_values_that_exist() -> None:
    pages = sorted((ROOT / "docs").glob("install*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    known = {".".join(leaf) for leaf in leaves(DEFAULTS)}
    roots = "|".join(DEFAULTS)
    named = re.findall(rf"`((?:{roots})\.[A-Za-z.]+)", text)
    named += re.findall(r"--set(?:-file|-string)? ([A-Za-z.]+)=", text)
    assert named
    assert set(named) - known == set()

"""The Helm chart's agents: how they get at GPUs, and what they may look at on their nodes."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import anyio
import helm_python
import pytest

from mcp_gpu.settings.agent import AgentSettings, GpuAccess
from support import chart, podsecurity
from support.chart import CHART, CI_VALUES, Object, Rendered, render
from support.cluster import PROGRAM, START_SECONDS
from support.helmapi import api_server

ACCESSES: tuple[str, ...] = get_args(GpuAccess)
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
LEVELS: tuple[str, ...] = tuple(SCHEMA["properties"]["agent"]["properties"]["privileges"]["enum"])

every_ci_file = pytest.mark.parametrize("path", CI_VALUES, ids=lambda path: path.stem)
every_access = pytest.mark.parametrize("access", ACCESSES)
every_level = pytest.mark.parametrize("level", LEVELS)


def agent(**values: Any) -> Object:
    """The agents' pod template, with these values of `agent` and `gpu` (as gpu_access ...)."""
    gpu = {key.removeprefix("gpu_"): values.pop(key) for key in list(values) if key[:4] == "gpu_"}
    return render({"agent": values, "gpu": gpu}).pods()["agent"]


def container(pod: Object) -> Object:
    (only,) = pod["spec"]["containers"]
    found: Object = only
    return found


def variables(pod: Object) -> dict[str, str]:
    return {e["name"]: e["value"] for e in container(pod)["env"] if "value" in e}


def host_paths(pod: Object) -> dict[str, tuple[str, str]]:
    """What is mounted of the node: each place in the container with its path there and its type."""
    volumes = {v["name"]: v["hostPath"] for v in pod["spec"]["volumes"] if "hostPath" in v}
    return {
        mount["mountPath"]: (volumes[mount["name"]]["path"], volumes[mount["name"]]["type"])
        for mount in container(pod)["volumeMounts"]
        if mount["name"] in volumes
    }


# --- everything that may be set ----------------------------------------------------------------


@every_ci_file
def test_what_every_file_of_values_creates(path: Path, golden: Callable[[str, Any], None]) -> None:
    """For the default all of it, for the others how they differ from it."""
    name = path.stem.removesuffix("-values")
    plain = chart.settled(render())
    here = chart.settled(render(chart.values_of(path)))
    golden(f"chart/{name}.json", here if name == "default" else chart.changes(plain, here))


def test_no_golden_file_is_left_of_a_file_of_values_that_is_gone() -> None:
    kept = {path.stem for path in (Path(__file__).parent / "golden" / "chart").iterdir()}
    assert kept == {path.stem.removesuffix("-values") for path in CI_VALUES}


def test_every_way_and_every_level_has_a_file_of_values() -> None:
    given = [chart.values_of(path) for path in CI_VALUES]
    assert {v["gpu"]["access"] for v in given if "gpu" in v} == set(ACCESSES)
    named = {v["agent"]["privileges"] for v in given if "privileges" in v.get("agent", {})}
    assert named == set(LEVELS) - {"unprivileged"}  # the default


def every_combination() -> Iterator[dict[str, Any]]:
    for access, level in itertools.product(ACCESSES, LEVELS):
        yield {"gpu": {"access": access}, "agent": {"privileges": level}}


def test_every_way_at_every_level_renders_to_what_the_api_knows() -> None:
    rendered = [render(values).one("DaemonSet", "agent") for values in every_combination()]
    assert chart.faults_of(Rendered(rendered, "")) == []


def test_no_rendering_counts_a_gpu() -> None:
    given = [*every_combination(), *map(chart.values_of, CI_VALUES)]
    for values in given:
        for pod in render(values).pods().values():
            for quantities in ("limits", "requests"):
                asked = container(pod)["resources"].get(quantities, {})
                assert asked.keys() <= {"cpu", "memory"}, values


@pytest.mark.parametrize("quantities", ["limits", "requests"])
@pytest.mark.parametrize("name", ["nvidia.com/gpu", "nvidia.com/mig-1g.10gb"])
def test_an_agent_cannot_be_given_a_gpu_that_counts(quantities: str, name: str) -> None:
    with pytest.raises(helm_python.HelmValuesError, match=r"nvidia\.com/"):
        agent(resources={quantities: {name: 1}})


# --- the way to the GPUs -----------------------------------------------------------------------


@every_access
def test_an_agent_is_told_by_which_way_it_gets_at_gpus(
    access: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in variables(agent(gpu_access=access)).items():
        monkeypatch.setenv(name, text)
    assert AgentSettings().gpu_access == access


def test_the_chart_has_the_ways_that_the_program_knows() -> None:
    assert SCHEMA["properties"]["gpu"]["properties"]["access"]["enum"] == list(ACCESSES)


@pytest.mark.parametrize(
    ("access", "devices", "capabilities"),
    [
        ("runtimeClass", "all", "utility"),
        ("cdi", "management.nvidia.com/gpu=all", None),
        ("volumeMounts", None, "utility"),
        ("hostDriver", None, None),
        ("draAdmin", None, None),
        ("none", None, None),
    ],
)
def test_the_toolkit_is_asked_in_its_own_words_and_only_where_it_is_the_way(
    access: str, devices: str | None, capabilities: str | None
) -> None:
    pod = agent(gpu_access=access, gpu_runtimeClassName="nvidia")
    told = variables(pod)
    assert told.get("NVIDIA_VISIBLE_DEVICES") == devices
    assert told.get("NVIDIA_DRIVER_CAPABILITIES") == capabilities
    runtime = "nvidia" if access in ("runtimeClass", "cdi", "volumeMounts") else None
    assert pod["spec"].get("runtimeClassName") == runtime
    asked = {k: v for k, v in pod["metadata"]["annotations"].items() if "cdi" in k}
    name = container(pod)["name"]
    cdi = {f"nvidia.cdi.k8s.io/container.{name}": "management.nvidia.com/gpu=all"}
    assert asked == (cdi if access == "cdi" else {})


def test_a_list_of_devices_by_mounts_is_what_the_toolkit_takes_for_one() -> None:
    paths = host_paths(agent(gpu_access="volumeMounts"))
    assert paths == {"/var/run/nvidia-container-devices/all": ("/dev/null", "CharDevice")}


@pytest.mark.parametrize(
    ("driver", "root", "library"),
    [
        ({}, "/home/kubernetes/bin/nvidia", "/host/driver/lib64/libnvidia-ml.so.1"),
        (
            {"root": "/run/nvidia/driver", "library": "usr/lib64/libnvidia-ml.so.1"},
            "/run/nvidia/driver",
            "/host/driver/usr/lib64/libnvidia-ml.so.1",
        ),
    ],
)
def test_the_nodes_own_driver_is_mounted_and_the_agent_loads_nvml_from_it(
    driver: dict[str, str], root: str, library: str
) -> None:
    pod = agent(gpu_access="hostDriver", gpu_hostDriver=driver)
    assert host_paths(pod) == {"/host/driver": (root, "DirectoryOrCreate")}
    assert variables(pod)["MCP_GPU_NVML_LIBRARY"] == library
    (mount,) = [m for m in container(pod)["volumeMounts"] if m["name"] == "driver"]
    assert mount["readOnly"] is True
    assert mount["mountPropagation"] == "HostToContainer"


@every_level
@every_access
def test_only_the_nodes_own_driver_takes_a_privileged_container(access: str, level: str) -> None:
    context = container(agent(gpu_access=access, privileges=level))["securityContext"]
    assert context.get("privileged", False) is (access == "hostDriver")
    # The API server refuses to let one gain none that has them all, or CAP_SYS_ADMIN.
    free = access == "hostDriver" or level == "admin"
    assert context.get("allowPrivilegeEscalation") is (None if free else False)


def test_simulated_gpus_need_no_way_to_real_ones() -> None:
    plain = render({"simulate": {"enabled": True}})
    for access in ACCESSES:
        asked = {"access": access, "runtimeClassName": "nvidia"}
        simulated = render({"simulate": {"enabled": True}, "gpu": asked})
        assert chart.changes(chart.settled(plain), chart.settled(simulated)) == {
            "added": {}, "removed": [], "changed": {},
        }  # fmt: skip
    assert variables(plain.pods()["agent"])["MCP_GPU_GPU_ACCESS"] == "none"


def runtime_class(name: str) -> Object:
    about = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "x"}
    return {**about, "metadata": {"name": name}}


def node(name: str, **labels: str) -> Object:
    """A node, with these labels of GPU feature discovery."""
    named = {f"nvidia.com/gpu.{label}": text for label, text in labels.items()}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": named}}


PLAIN = [node("a"), node("b", present="false"), {**node("c"), "metadata": {"name": "c"}}]

PRESENT = {"key": "nvidia.com/gpu.present", "operator": "In", "values": ["true"]}


@pytest.mark.parametrize(
    ("there", "gpus", "wanted", "used"),
    [
        (["nvidia"], True, "auto", "nvidia"),
        (["nvidia"], False, "auto", None),
        (["gvisor"], True, "auto", None),
        ([], True, "auto", None),
        (["nvidia"], True, "", None),
        (["nvidia"], False, "nvidia", "nvidia"),
        ([], False, "nvidia-cdi", "nvidia-cdi"),
    ],
)
def test_the_runtime_class_is_used_where_the_cluster_has_it_and_nodes_that_know_it(
    there: list[str], gpus: bool, wanted: str, used: str | None
) -> None:
    nodes = [*PLAIN, node("d", present="true")] if gpus else PLAIN
    with api_server([*map(runtime_class, there), *nodes]) as config:
        rendered = render({"gpu": {"runtimeClassName": wanted}}, config=config)
    assert chart.faults_of(rendered) == []
    spec = rendered.pods()["agent"]["spec"]
    assert spec.get("runtimeClassName") == used
    # An answer without GPUs is then to be expected, and the notes say what to do.
    assert ("gpu.runtimeClassName=nvidia" in rendered.notes) is (used is None)
    # The runtime of other nodes would never start such a pod. Who names a class names nodes, too.
    chosen = [PRESENT] if used and wanted == "auto" else []
    assert required(spec) == chosen
    assert ("nvidia.com/gpu.present=true alone" in rendered.notes) is bool(chosen)
    found = "there is a RuntimeClass nvidia, but no node" in rendered.notes
    assert found is (there == ["nvidia"] and not gpus and wanted == "auto")


def required(spec: Object) -> list[Object]:
    """What labels of nodes a pod wants by its affinity."""
    affinity = spec.get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    return [e for term in terms.get("nodeSelectorTerms", []) for e in term["matchExpressions"]]


ARM = {"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]}


@pytest.mark.parametrize(
    ("placement", "wanted"),
    [
        ({"nodeSelector": {"pool": "gpu"}}, []),
        (
            {
                "affinity": {
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [{"matchExpressions": [ARM]}]
                        }
                    }
                }
            },
            [ARM],
        ),
    ],
)
def test_who_chooses_nodes_has_the_runtime_class_on_those(
    placement: Object, wanted: list[Object]
) -> None:
    with api_server([runtime_class("nvidia"), *PLAIN]) as config:
        rendered = render({"agent": placement}, config=config)
    spec = rendered.pods()["agent"]["spec"]
    assert spec["runtimeClassName"] == "nvidia"
    assert required(spec) == wanted
    assert "gpu.present" not in rendered.notes


# --- a claim on the DRA driver -----------------------------------------------------------------

DRA = {"gpu": {"access": "draAdmin"}}


def namespace(**labels: str) -> Object:
    metadata = {"name": "gpu-diagnostics", "labels": labels}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def test_a_claim_is_on_every_gpu_of_the_node_and_takes_none_from_others() -> None:
    rendered = render(DRA)
    (template,) = rendered.all("ResourceClaimTemplate")
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"] == {
        "deviceClassName": "gpu.nvidia.com",
        "allocationMode": "All",
        "adminAccess": True,
        "tolerations": [{"operator": "Exists"}],
    }
    pod = rendered.pods()["agent"]
    (claim,) = pod["spec"]["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == template["metadata"]["name"]
    assert container(pod)["resources"]["claims"] == [{"name": claim["name"]}]
    assert "Pending" in rendered.notes


@pytest.mark.parametrize("resources", [{}, None, {"limits": {"memory": "1Gi"}}])
def test_a_claim_stands_beside_whatever_resources_are_set(resources: Object | None) -> None:
    rendered = render({**DRA, "agent": {"resources": resources}})
    assert chart.faults_of(rendered) == []
    assert container(rendered.pods()["agent"])["resources"]["claims"] == [{"name": "gpus"}]


def test_a_claim_where_the_cluster_knows_none_is_refused_with_the_way_out() -> None:
    refused = pytest.raises(helm_python.HelmError, match=r"set gpu\.access=runtimeClass")
    with api_server() as config, refused:
        config.install(CHART, "gpu-mcp", DRA, namespace="gpu-diagnostics", dry_run="server")


def test_a_claim_in_a_namespace_without_the_label_is_refused_with_the_command() -> None:
    label = "resource.kubernetes.io/admin-access"
    command = f"kubectl label namespace gpu-diagnostics {label}=true"
    refused = pytest.raises(helm_python.HelmError, match=re.escape(command))
    with api_server([namespace(team="gpu")]) as config, refused:
        render(DRA, config=config)
    with api_server([namespace(**{label: "true"})]) as config:
        assert render(DRA, config=config).all("ResourceClaimTemplate")


# --- the ladder of privileges ------------------------------------------------------------------

LADDER: dict[str, tuple[podsecurity.Level, bool, list[str], bool]] = {
    "unprivileged": ("restricted", False, [], False),
    "root": ("privileged", True, [], False),
    "kernelLog": ("privileged", True, ["SYSLOG"], False),
    "processes": ("privileged", True, ["SYSLOG"], True),
    "admin": ("privileged", True, ["SYSLOG", "SYS_ADMIN"], True),
}
"""Each level with the Pod Security level that admits it, whether it is root, its capabilities, and
whether it has the node's process ids."""


@every_level
def test_each_level_has_what_it_names_and_no_more(level: str) -> None:
    admitted, root, capabilities, host_pid = LADDER[level]
    pod = agent(privileges=level)
    assert podsecurity.level_of(pod) == admitted
    context = container(pod)["securityContext"]
    expected: Object = {
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    if level != "admin":
        expected["allowPrivilegeEscalation"] = False
    if root:
        expected |= {"runAsNonRoot": False, "runAsUser": 0, "runAsGroup": 0}
    if capabilities:
        expected["capabilities"]["add"] = capabilities
    assert context == expected
    assert pod["spec"].get("hostPID", False) is host_pid
    assert {"hostNetwork", "hostIPC"} & pod["spec"].keys() == set()
    assert pod["spec"]["securityContext"] == render().pods()["gateway"]["spec"]["securityContext"]
    monitor = variables(pod).get("NVIDIA_MIG_MONITOR_DEVICES")
    assert monitor == ("all" if level == "admin" else None)
    assert len(host_paths(pod)) == 2 * (root + ("SYSLOG" in capabilities))


def test_root_without_the_kubelets_folders_is_no_more_than_baseline() -> None:
    pod = agent(privileges="root", kubeletFolders=[])
    assert podsecurity.level_of(pod) == "baseline"
    assert host_paths(pod) == {}


def test_an_agent_finds_the_kubelets_files_where_their_folders_are_mounted() -> None:
    settings = AgentSettings()
    looked_at = {settings.pod_resources_socket.parent, settings.device_plugin_checkpoint.parent}
    paths = host_paths(agent(privileges="root", kubeletDirectory="/var/lib/k0s/kubelet"))
    assert {Path(place) for place in paths} == looked_at
    assert set(paths.values()) == {
        ("/var/lib/k0s/kubelet/pod-resources", "DirectoryOrCreate"),
        ("/var/lib/k0s/kubelet/device-plugins", "DirectoryOrCreate"),
    }


def test_the_ladder_is_climbed_from_the_bottom() -> None:
    assert list(LADDER) == list(LEVELS)
    values = (CHART / "values.yaml").read_text(encoding="utf-8")
    told = [line for line in values.splitlines() if line.startswith("  # ")]
    assert [name for line in told for name in LEVELS if line.startswith(f"  # {name}:")] == list(
        LEVELS
    )


@pytest.mark.parametrize(
    ("level", "effective"),
    [
        ("unprivileged", "kernelLog"),
        ("root", "kernelLog"),
        ("kernelLog", "kernelLog"),
        ("admin", "admin"),
    ],
)
def test_the_predecessors_switch_raises_the_level(level: str, effective: str) -> None:
    raised = render({"xidAnalysis": {"enabled": True}, "agent": {"privileges": level}})
    assert raised.pods()["agent"] == agent(privileges=effective)


def test_an_agent_finds_the_nodes_journal_where_it_is_mounted() -> None:
    looked_at = set(AgentSettings().journal_paths)
    paths = host_paths(agent(privileges="kernelLog", kubeletFolders=[]))
    # A folder that is made stays a folder: journald would begin to write to /var/log/journal.
    assert paths == {
        "/host/var/log": ("/var/log", "Directory"),
        "/host/run/log": ("/run/log", "DirectoryOrCreate"),
    }
    assert {f"{place}/journal" for place in paths} <= looked_at
    narrow = ["/var/log/journal", "/run/log/journal"]
    least = agent(privileges="kernelLog", journalFolders=narrow, kubeletFolders=[])
    assert set(host_paths(least)) <= looked_at


@every_level
def test_what_is_mounted_of_the_node_cannot_be_written_to(level: str) -> None:
    for access in ACCESSES:
        pod = agent(privileges=level, gpu_access=access)
        for mount in container(pod)["volumeMounts"]:
            if mount["mountPath"] in host_paths(pod):
                assert mount["readOnly"] is True


@every_ci_file
def test_agents_have_a_token_of_the_api_to_check_others_by_and_write_nowhere(path: Path) -> None:
    rendered = render(chart.values_of(path))
    spec = rendered.pods()["agent"]["spec"]
    checks = "MCP_GPU_KUBERNETES_TOKENS" in variables(rendered.pods()["agent"])
    assert spec["automountServiceAccountToken"] == checks
    assert rendered.one("ServiceAccount", "agent")["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    context = container(rendered.pods()["agent"])["securityContext"]
    assert context["readOnlyRootFilesystem"] is True


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can be root without capabilities",
)
async def test_as_root_without_capabilities_an_agent_is_reached_as_any_other(
    tmp_path: Path,
) -> None:
    values = {"transport": {"mode": "stdio"}, "agent": {"privileges": "root"}}
    pod = render({**values, "simulate": {"enabled": True}}).pods()["agent"]
    os.chown(tmp_path, 0, pod["spec"]["securityContext"]["fsGroup"])
    os.chmod(tmp_path, 0o2777)  # as the kubelet leaves an emptyDir
    settings = {
        **os.environ,
        **variables(pod),
        "MCP_GPU_NODE_NAME": "h100-a",
        "MCP_GPU_SIMULATE": "demo",
        "MCP_GPU_SOCKET": f"{tmp_path}/agent/agent.sock",
    }
    bare = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", *PROGRAM]
    probe = container(pod)["livenessProbe"]["exec"]["command"][1:]
    with anyio.fail_after(START_SECONDS):
        async with await anyio.open_process(
            [*bare, *container(pod)["args"]], env=settings, stdin=None, stdout=None
        ) as process:
            assert process.stderr is not None
            said = b""
            while b"listening: " not in said:
                said += await process.stderr.receive()
            checked = await anyio.run_process([*bare, *probe], env=settings, check=False)
            process.terminate()
    assert checked.returncode == 0, checked.stderr
    assert b"h100-a" in checked.stdout


# --- the nodes' own network --------------------------------------------------------------------


def test_on_the_nodes_network_the_port_is_the_nodes_and_the_old_agent_goes_first() -> None:
    rendered = render({"agent": {"hostNetwork": True, "port": 9408}})
    daemons = rendered.one("DaemonSet", "agent")["spec"]
    pod = daemons["template"]
    assert (pod["spec"]["hostNetwork"], pod["spec"]["dnsPolicy"]) == (
        True,
        "ClusterFirstWithHostNet",
    )
    assert daemons["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
    }
    assert container(pod)["ports"] == [{"name": "mcp", "containerPort": 9408}]
    assert container(pod)["args"] == ["agent", "--http-port=9408"]
    # The gateway calls the port that the slices of this Service name.
    (port,) = rendered.one("Service", "agent")["spec"]["ports"]
    assert (port["name"], port["port"], port["targetPort"]) == ("mcp", 9408, 9408)


@pytest.mark.parametrize(
    ("strategy", "used"),
    [
        (
            {"rollingUpdate": {"maxUnavailable": "10%"}},
            {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "10%"}},
        ),
        ({"type": "OnDelete", "rollingUpdate": None}, {"type": "OnDelete"}),
    ],
)
def test_on_the_nodes_network_how_many_agents_stop_at_once_is_as_set(
    strategy: Object, used: Object
) -> None:
    rendered = render({"agent": {"hostNetwork": True, "updateStrategy": strategy}})
    assert rendered.one("DaemonSet", "agent")["spec"]["updateStrategy"] == used


def test_elsewhere_the_new_agent_comes_first() -> None:
    assert render().one("DaemonSet", "agent")["spec"]["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }


@pytest.mark.parametrize(
    ("values", "way_out"),
    [
        ({"auth": {"mode": "none"}}, "set auth.mode=token"),
        ({"transport": {"mode": "stdio"}}, "set agent.hostNetwork=false"),
    ],
)
def test_an_open_port_of_a_node_is_refused_with_the_way_out(values: Object, way_out: str) -> None:
    with pytest.raises(helm_python.HelmError, match=way_out):
        render({**values, "agent": {"hostNetwork": True}})


# --- where agents run --------------------------------------------------------------------------


def tolerated(taint: Object, tolerations: list[Object]) -> bool:
    """As the scheduler judges it (k8s.io/api, Toleration.ToleratesTaint)."""
    return any(
        toleration.get("effect", taint["effect"]) == taint["effect"]
        and toleration.get("key", taint["key"]) == taint["key"]
        and (
            toleration.get("operator", "Equal") == "Exists"
            or toleration.get("value", "") == taint.get("value", "")
        )
        for toleration in tolerations
    )


@pytest.mark.parametrize(
    ("key", "value", "effect", "stays"),
    [
        ("nvidia.com/gpu", "present", "NoSchedule", True),
        ("nvidia.com/gpu", "true", "NoExecute", True),
        ("sku", "gpu", "NoSchedule", True),
        ("AggregatedNodeHealth", "False", "NoSchedule", True),
        ("example.org/gpu-fault", "xid-79", "NoExecute", True),
        ("sku", "cpu", "NoSchedule", False),
        ("node-role.kubernetes.io/control-plane", "", "NoSchedule", False),
        ("eks.amazonaws.com/compute-type", "fargate", "NoSchedule", False),
    ],
)
def test_agents_run_on_gpu_nodes_and_stay_on_those_in_trouble(
    key: str, value: str, effect: str, stays: bool
) -> None:
    taint = {"key": key, "value": value, "effect": effect}
    assert tolerated(taint, agent()["spec"]["tolerations"]) is stays


def test_a_priority_is_set_only_where_it_is_named() -> None:
    assert "priorityClassName" not in agent()["spec"]
    named = agent(priorityClassName="system-node-critical")["spec"]
    assert named["priorityClassName"] == "system-node-critical"


def test_an_agent_knows_how_many_gpus_it_should_have_where_somebody_has_said_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "MCP_GPU_EXPECTED_GPUS" not in variables(agent())
    told = variables(agent(expectedGpus=8))
    monkeypatch.setenv("MCP_GPU_EXPECTED_GPUS", told["MCP_GPU_EXPECTED_GPUS"])
    assert AgentSettings().expected_gpus == 8


def test_the_timeline_is_kept_on_the_node_only_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "MCP_GPU_RECORDER_DIRECTORY" not in variables(
        agent(privileges="root", kubeletFolders=[])
    )
    pod = agent(privileges="root", kubeletFolders=[], recorder={"hostPath": "/var/lib/gpus"})
    directory = variables(pod)["MCP_GPU_RECORDER_DIRECTORY"]
    assert host_paths(pod) == {directory: ("/var/lib/gpus", "DirectoryOrCreate")}
    monkeypatch.setenv("MCP_GPU_RECORDER_DIRECTORY", directory)
    assert str(AgentSettings().recorder_directory) == directory


def test_a_folder_that_the_agent_could_not_write_to_is_refused_with_the_way_out() -> None:
    with pytest.raises(helm_python.HelmError, match=r"set agent\.privileges=root"):
        agent(recorder={"hostPath": "/var/lib/gpus"})
    with pytest.raises(helm_python.HelmValuesError, match="hostPath"):
        agent(privileges="root", recorder={"hostPath": "relative"})

"""The cluster is what it is said to be: whatever is proven on it later stands on this."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

from cluster import faults
from cluster.cluster import Access, Cluster
from cluster.network import TUNNEL, same_subnet
from cluster.pods import Pod, pods
from cluster.probes import PORT, SELECTOR, ask_api_server, fetch, probes
from cluster.process import CommandError, wait

NAMESPACE = "cluster-tests"

ENDLESS = "trap exit TERM; sleep 10000 & wait"
"""Ends when it is asked to, which a bare sleep does not as the first process of a container."""


@pytest.fixture(scope="module", autouse=True)
def answering(cluster: Access, busybox: str) -> Iterator[None]:
    with probes(cluster, NAMESPACE, busybox):
        yield


@pytest.fixture
def probe_pods(own_cluster: Cluster) -> list[Pod]:
    return pods(own_cluster, NAMESPACE, SELECTOR, len(own_cluster.nodes))


def listed(cluster: Access) -> list[dict[str, str]]:
    """Name, node and address of each probe."""
    query = ["-n", NAMESPACE, "get", "pods", "-l", SELECTOR, "-o", "json"]
    return [
        {
            "name": item["metadata"]["name"],
            "node": item["spec"]["nodeName"],
            "address": item["status"]["podIP"],
        }
        for item in json.loads(cluster.kubectl(*query))["items"]
    ]


def inside(cluster: Access, pod: str, *argv: str) -> str:
    return cluster.kubectl("-n", NAMESPACE, "exec", pod, "--", *argv)


def test_every_node_is_ready_and_runs_a_pod(cluster: Access) -> None:
    nodes = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    assert len(nodes) >= 2
    for node in nodes:
        conditions = {c["type"]: c["status"] for c in node["status"]["conditions"]}
        assert conditions["Ready"] == "True"
    assert sorted(pod["node"] for pod in listed(cluster)) == cluster.nodes


def test_nodes_look_like_those_of_a_cloud(own_cluster: Cluster) -> None:
    nodes = json.loads(own_cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    zones = {}
    for node in nodes:
        name, labels = node["metadata"]["name"], node["metadata"]["labels"]
        zones[name] = labels["topology.kubernetes.io/zone"]
        assert node["spec"]["providerID"].startswith(f"aws:///{zones[name]}/i-0")
        assert {"type": "InternalIP", "address": own_cluster.node(name).address} in node["status"][
            "addresses"
        ]
    assert zones == {"n1": "eu-west-1a", "n2": "eu-west-1a", "n3": "eu-west-1b"}


def test_every_pod_reaches_every_pod(probe_pods: list[Pod]) -> None:
    seen = {
        (one.node.name, other.node.name): fetch(one, other.address)
        for one in probe_pods
        for other in probe_pods
    }
    assert seen == {pair: pair[1] for pair in seen}


def test_pods_of_a_subnet_talk_directly_and_others_by_vxlan(probe_pods: list[Pod]) -> None:
    def tunnelled(pod: Pod) -> int:
        statistics = ["ip", "-json", "-statistics", "link", "show", TUNNEL]
        return int(json.loads(pod.node.run(*statistics))[0]["stats64"]["tx"]["packets"])

    for one in probe_pods:
        for other in probe_pods:
            before = tunnelled(one)
            assert fetch(one, other.address) == other.node.name
            by_vxlan = tunnelled(one) > before
            assert by_vxlan is not same_subnet(one.node.node, other.node.node)


def test_dns_knows_each_pod_of_a_headless_service_by_its_dashed_address(cluster: Access) -> None:
    found = listed(cluster)
    for pod in found:
        dashed = pod["address"].replace(".", "-")
        name = f"{dashed}.headless.{NAMESPACE}.svc.cluster.local"
        said = inside(cluster, found[0]["name"], "wget", "-q", "-O", "-", f"http://{name}:{PORT}/")
        assert said.strip() == pod["node"]


def test_a_service_answers_on_its_cluster_address_from_every_pod(cluster: Access) -> None:
    for pod in listed(cluster):
        said = inside(cluster, pod["name"], "wget", "-q", "-O", "-", f"http://probe.{NAMESPACE}/")
        assert said.strip() in cluster.nodes


def test_a_node_port_answers_this_machine_and_the_client(own_cluster: Cluster) -> None:
    query = ["-n", NAMESPACE, "get", "service", "probe", "-o", "jsonpath={.spec.ports[0].nodePort}"]
    port = own_cluster.kubectl(*query)
    for name in own_cluster.nodes:
        url = f"http://{own_cluster.node(name).address}:{port}/"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=10) as answer:
            assert answer.read().decode().strip() in own_cluster.nodes
        program = f"import urllib.request; print(urllib.request.urlopen('{url}').read().decode())"
        ask = ["env", "NO_PROXY=*", sys.executable, "-c", program]
        assert own_cluster.run_in("client", ask).strip() in own_cluster.nodes


def test_exec_runs_in_a_pod_of_every_node_with_its_input_and_status(cluster: Access) -> None:
    for pod in listed(cluster):
        words = ["-n", NAMESPACE, "exec", "-i", pod["name"], "--"]
        assert cluster.kubectl(*words, "cat", stdin="through and back") == "through and back"
        with pytest.raises(CommandError, match="exit status 7"):
            cluster.kubectl(*words, "sh", "-c", "exit 7")


def test_port_forward_reaches_a_pod_of_every_node(cluster: Access) -> None:
    for pod in listed(cluster):
        forward = ["-n", NAMESPACE, "port-forward", f"pod/{pod['name']}", f":{PORT}"]
        with subprocess.Popen(
            cluster.command("kubectl", *forward), stdout=subprocess.PIPE, text=True
        ) as running:
            try:
                assert running.stdout is not None
                local = running.stdout.readline().split()[2]
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with opener.open(f"http://{local}/", timeout=10) as answer:
                    assert answer.read().decode().strip() == pod["node"]
            finally:
                running.terminate()


def test_the_api_server_reaches_a_pod_of_every_node(cluster: Access) -> None:
    for pod in listed(cluster):
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['name']}:{PORT}/proxy/"
        assert cluster.kubectl("get", "--raw", path).strip() == pod["node"]


def test_a_pod_may_do_what_its_service_account_is_granted_and_no_more(
    own_cluster: Cluster, probe_pods: list[Pod]
) -> None:
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    token = inside(own_cluster, probe_pods[2].name, "cat", f"{folder}/token")
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    assert ask_api_server(probe_pods[2], token, path) == 403
    with faults.granted(own_cluster, NAMESPACE, "default", "pods", "list"):
        wait("the grant", lambda: ask_api_server(probe_pods[2], token, path) == 200, 30)
    assert ask_api_server(probe_pods[2], "somebody", path) == 401


def test_the_objects_of_calico_say_how_pods_talk(own_cluster: Cluster) -> None:
    pool = json.loads(own_cluster.kubectl("get", "ippools", "default-ipv4-ippool", "-o", "json"))
    assert pool["spec"]["vxlanMode"] == "CrossSubnet"
    felix = json.loads(own_cluster.kubectl("get", "felixconfigurations", "default", "-o", "json"))
    assert felix["spec"]["vxlanPort"] == 4789


def test_helm_installs_a_chart_and_takes_it_away(
    cluster: Access, tmp_path_factory: pytest.TempPathFactory
) -> None:
    chart = tmp_path_factory.mktemp("charts") / "small"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: small\nversion: 0.1.0\n")
    (chart / "templates" / "map.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}-map}\n"
    )
    cluster.helm("-n", NAMESPACE, "install", "first", str(chart))
    assert cluster.kubectl("-n", NAMESPACE, "get", "configmap", "first-map", "-o", "name")
    cluster.helm("-n", NAMESPACE, "uninstall", "first")
    gone = ["-n", NAMESPACE, "get", "configmap", "first-map", "--ignore-not-found", "-o", "name"]
    assert cluster.kubectl(*gone) == ""


@pytest.mark.parametrize("daemon", ["containerd", "kubelet", "kube-proxy"])
def test_a_restarted_daemon_of_a_node_serves_again_and_its_pods_go_on(
    own_cluster: Cluster, probe_pods: list[Pod], daemon: str
) -> None:
    node, pod = own_cluster.node("n2"), probe_pods[1]
    before = node.process(daemon)
    node.restart(daemon)
    assert node.process(daemon) not in (None, before)
    words = ["-n", NAMESPACE, "exec", pod.name, "--", "true"]

    def serves() -> bool:
        try:
            own_cluster.kubectl(*words)
        except CommandError:
            return False
        return True

    wait(f"exec after a restart of {daemon}", serves, 60)
    assert pod.process.alive
    assert fetch(probe_pods[0], pod.address) == "n2"


@pytest.mark.parametrize("component", ["kube-controller-manager", "kube-scheduler"])
def test_a_restarted_controller_makes_and_places_pods_again(
    own_cluster: Cluster, busybox: str, component: str
) -> None:
    own_cluster.control.restart(component)
    name = f"after-{component}"
    create = ["create", "deployment", name, f"--image={busybox}", "--", "sh", "-c", ENDLESS]
    own_cluster.kubectl("-n", NAMESPACE, *create)
    rollout = ["-n", NAMESPACE, "rollout", "status", f"deployment/{name}", "--timeout=60s"]
    own_cluster.kubectl(*rollout, timeout=70)


@pytest.mark.parametrize("component", ["etcd", "kube-apiserver"])
def test_the_api_server_answers_after_a_restart_with_what_it_knew(
    own_cluster: Cluster, component: str
) -> None:
    own_cluster.kubectl("-n", NAMESPACE, "create", "configmap", f"before-{component}")
    own_cluster.control.restart(component)
    assert own_cluster.kubectl("-n", NAMESPACE, "get", "configmap", f"before-{component}")

"""Each fault does what it says, to those it names, and is gone when its block is left."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster import faults
from cluster.cluster import Cluster
from cluster.network import same_subnet
from cluster.pods import Pod, pods
from cluster.probes import PORT, SELECTOR, ask_api_server, fetch, probes
from cluster.process import CommandError, wait

NAMESPACE = "fault-tests"

MEND_SECONDS = 60
"""Bound for everything to be whole again."""

LARGE = 100_000
"""Bytes of the probe's large file."""

Pairs = dict[tuple[str, str], str]


@pytest.fixture(scope="module", autouse=True)
def answering(own_cluster: Cluster, busybox: str) -> Iterator[None]:
    with probes(own_cluster, NAMESPACE, busybox):
        yield


@pytest.fixture
def probe_pods(own_cluster: Cluster) -> list[Pod]:
    return pods(own_cluster, NAMESPACE, SELECTOR, len(own_cluster.nodes))


def reach(found: list[Pod]) -> Pairs:
    """How each pod gets to each: on its node, in its subnet, in another; or that it does not."""
    pairs = [(one, other) for one in found for other in found]

    def way(one: Pod, other: Pod) -> str:
        if fetch(one, other.address) != other.node.name:
            return "none"
        if one.node is other.node:
            return "node"
        return "direct" if same_subnet(one.node.node, other.node.node) else "tunnel"

    with ThreadPoolExecutor(len(pairs)) as pool:
        ways = list(pool.map(lambda pair: way(*pair), pairs))
    return {
        (one.node.name, other.node.name): found
        for (one, other), found in zip(pairs, ways, strict=True)
    }


def whole(found: list[Pod]) -> bool:
    return "none" not in reach(found).values()


def executes(cluster: Cluster, pod: Pod) -> bool:
    words = ["-n", NAMESPACE, "exec", pod.name, "--", "true"]
    try:
        cluster.kubectl(*words, timeout=10)
    except CommandError:
        return False
    return True


def ready(cluster: Cluster, node: str) -> str:
    """The status of its condition Ready."""
    path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    return cluster.kubectl("get", "node", node, "-o", path)


def test_the_source_destination_check_drops_what_pods_send_directly(
    own_cluster: Cluster, probe_pods: list[Pod]
) -> None:
    healthy = reach(probe_pods)
    with faults.source_destination_check(own_cluster):
        assert reach(probe_pods) == {
            pair: "none" if way == "direct" else way for pair, way in healthy.items()
        }
        assert all(executes(own_cluster, pod) for pod in probe_pods)
    assert reach(probe_pods) == healthy
    assert set(healthy.values()) == {"node", "direct", "tunnel"}


def test_vxlan_everywhere_passes_the_source_destination_check(
    own_cluster: Cluster, probe_pods: list[Pod]
) -> None:
    pool = ["get", "ippools.crd.projectcalico.org", "-o", "jsonpath={.items[0].spec.vxlanMode}"]
    with faults.source_destination_check(own_cluster):
        with faults.tunnelled(own_cluster):
            assert own_cluster.kubectl(*pool) == "Always"
            assert whole(probe_pods)
        assert own_cluster.kubectl(*pool) == "CrossSubnet"
        assert not whole(probe_pods)
    assert whole(probe_pods)


def test_a_blocked_overlay_parts_the_subnets(own_cluster: Cluster, probe_pods: list[Pod]) -> None:
    healthy = reach(probe_pods)
    with faults.overlay_blocked(own_cluster):
        assert reach(probe_pods) == {
            pair: "none" if way == "tunnel" else way for pair, way in healthy.items()
        }
        assert all(executes(own_cluster, pod) for pod in probe_pods)
    assert reach(probe_pods) == healthy


def test_a_kubelet_that_is_not_dialled_is_ready_and_takes_no_stream(
    own_cluster: Cluster, probe_pods: list[Pod]
) -> None:
    with faults.undialled(own_cluster, "n2"):
        assert [executes(own_cluster, pod) for pod in probe_pods] == [True, False, True]
        assert ready(own_cluster, "n2") == "True"
        assert whole(probe_pods)
    wait("exec on n2", lambda: executes(own_cluster, probe_pods[1]), MEND_SECONDS)


def test_another_server_answers_at_a_misdirected_address(probe_pods: list[Pod]) -> None:
    one, other, third = probe_pods
    with faults.misdirected(one, other.address, third.address):
        assert fetch(one, other.address) == "n3"
        assert fetch(third, other.address) == "n2"
    assert fetch(one, other.address) == "n2"


def test_a_crashing_pod_is_backed_off_and_comes_back(
    own_cluster: Cluster, probe_pods: list[Pod]
) -> None:
    one, other = probe_pods[:2]
    with faults.crashing(own_cluster, other):
        assert fetch(one, other.address) is None
    wait("the crashed pod", lambda: fetch(one, other.address) == "n2", MEND_SECONDS)


def test_a_cut_pod_network_leaves_each_node_its_own_pods_and_exec(
    own_cluster: Cluster, probe_pods: list[Pod]
) -> None:
    with faults.cut_pod_network(own_cluster):
        seen = reach(probe_pods)
        assert {pair for pair, way in seen.items() if way != "none"} == {
            pair for pair in seen if pair[0] == pair[1]
        }
        assert all(executes(own_cluster, pod) for pod in probe_pods)
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{probe_pods[0].name}:{PORT}/proxy/"
        with pytest.raises(CommandError):
            own_cluster.kubectl("get", "--raw", path, "--request-timeout=3s", timeout=10)
        # The API server is no pod.
        assert ask_api_server(probe_pods[2], "nobody", "/version") == 401
    assert whole(probe_pods)


def test_a_node_cut_from_the_api_server_still_serves_its_pods(
    own_cluster: Cluster, probe_pods: list[Pod]
) -> None:
    with faults.cut_from_api_server(own_cluster, "n3"):
        assert whole(probe_pods)
        assert not executes(own_cluster, probe_pods[2])
        assert executes(own_cluster, probe_pods[0])
    wait("exec on n3", lambda: executes(own_cluster, probe_pods[2]), MEND_SECONDS)


def test_an_unplugged_node_is_reached_by_nobody(
    own_cluster: Cluster, probe_pods: list[Pod]
) -> None:
    with faults.unplugged(own_cluster, "n2"):
        seen = reach(probe_pods)
        assert all((way == "none") is ((a == "n2") ^ (b == "n2")) for (a, b), way in seen.items())
        assert not executes(own_cluster, probe_pods[1])
    wait("the network", lambda: whole(probe_pods), MEND_SECONDS)
    wait("n2 ready", lambda: ready(own_cluster, "n2") == "True", MEND_SECONDS)


def test_a_black_hole_swallows_large_packets_alone(
    own_cluster: Cluster, probe_pods: list[Pod]
) -> None:
    one, other = probe_pods[0], probe_pods[2]
    large = fetch(one, other.address, "large")
    assert large is not None
    assert len(large) == LARGE
    with faults.black_hole(own_cluster, "n3", 1400):
        assert fetch(one, other.address) == "n3"
        assert fetch(one, other.address, "large") is None
    assert fetch(one, other.address, "large") == large


def say(pod: Pod, address: str) -> str:
    """What comes of a connection from the pod: the client's own words, or the answer."""
    program = (
        "import socket, sys\n"
        f"with socket.create_connection(('{address}', {PORT}), timeout=2) as s:\n"
        "    s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
        "    while data := s.recv(1000):\n"
        "        print(data.decode())\n"
    )
    command = [*pod.wires, "python3", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout or done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (faults.refused, "ConnectionRefusedError"),
        (faults.loopback_only, "ConnectionRefusedError"),
        (faults.reset, "ConnectionResetError"),
        (faults.silenced, "TimeoutError"),
    ],
)
def test_a_port_is_refused_reset_or_silenced_while_others_answer(
    probe_pods: list[Pod], fault: object, words: str
) -> None:
    faulty, other = probe_pods[1], probe_pods[0]
    assert callable(fault)
    with fault(faulty, PORT):
        assert words in say(other, faulty.address)
        assert "200 OK" in say(faulty, other.address)
    assert "200 OK" in say(other, faulty.address)


def test_a_delay_is_added_both_ways_and_large_transfers_stay_whole(
    own_cluster: Cluster, probe_pods: list[Pod]
) -> None:
    one, other = probe_pods[0], probe_pods[1]
    large = fetch(one, other.address, "large")

    def seconds() -> float:
        ping = ["busybox", "ping", "-c", "3", "-W", "3", other.address]
        line = one.run(*ping).splitlines()[-1]
        return float(line.split("=")[1].split("/")[0]) / 1000

    undelayed = seconds()
    with faults.delayed(other, 0.1):
        assert seconds() > 10 * undelayed
        assert fetch(one, other.address) == "n2"
        assert fetch(one, other.address, "large") == large
    assert whole(probe_pods)


def test_a_killed_pod_is_started_again(own_cluster: Cluster, probe_pods: list[Pod]) -> None:
    faults.killed(probe_pods[1])

    def again() -> bool:
        found = pods(own_cluster, NAMESPACE, SELECTOR, 3)[1]
        return found.process != probe_pods[1].process and found.uid == probe_pods[1].uid

    wait("the container started again", again, MEND_SECONDS)


def test_a_paused_pod_takes_connections_and_does_not_answer(
    own_cluster: Cluster, probe_pods: list[Pod]
) -> None:
    with faults.paused(probe_pods[1]):
        assert "TimeoutError" in say(probe_pods[0], probe_pods[1].address)
        assert executes(own_cluster, probe_pods[1])
    assert fetch(probe_pods[0], probe_pods[1].address) == "n2"


def test_a_replaced_pod_is_another_on_the_same_node(
    own_cluster: Cluster, probe_pods: list[Pod]
) -> None:
    new = faults.replaced(own_cluster, probe_pods[2], SELECTOR)
    assert new.uid != probe_pods[2].uid
    assert fetch(probe_pods[0], new.address) == "n3"


def test_without_a_kubelet_pods_answer_and_exec_does_not(
    own_cluster: Cluster, probe_pods: list[Pod]
) -> None:
    with faults.stopped(own_cluster.node("n1"), "kubelet"):
        assert whole(probe_pods)
        assert not executes(own_cluster, probe_pods[0])
    wait("exec on n1", lambda: executes(own_cluster, probe_pods[0]), MEND_SECONDS)


def test_without_an_api_server_pods_answer(own_cluster: Cluster, probe_pods: list[Pod]) -> None:
    with faults.stopped(own_cluster.control, "kube-apiserver"):
        assert whole(probe_pods)
        with pytest.raises(CommandError):
            own_cluster.kubectl("get", "--raw", "/readyz", "--request-timeout=3s", timeout=10)
    own_cluster.control.wait_ready(MEND_SECONDS)


def test_a_permission_is_granted_and_revoked(own_cluster: Cluster) -> None:
    account = f"--as=system:serviceaccount:{NAMESPACE}:default"
    ask = ["-n", NAMESPACE, "auth", "can-i", account, "create", "pods", "--subresource=exec"]

    def allowed() -> bool:
        try:
            own_cluster.kubectl(*ask)
        except CommandError:
            return False
        return True

    assert not allowed()
    with faults.granted(own_cluster, NAMESPACE, "default", "pods/exec", "create,get"):
        wait("the permission", allowed, MEND_SECONDS)
        with faults.without(own_cluster, NAMESPACE, "rolebinding/granted-default"):
            wait("the permission to be gone", lambda: not allowed(), MEND_SECONDS)
        wait("the permission", allowed, MEND_SECONDS)
    wait("the permission to be gone", lambda: not allowed(), MEND_SECONDS)


def test_a_resource_is_taken_out_of_a_role(own_cluster: Cluster) -> None:
    path = "jsonpath={.rules[*].resources}"
    rules = ["-n", NAMESPACE, "get", "role", "granted-default", "-o", path]
    with faults.granted(own_cluster, NAMESPACE, "default", "pods,pods/exec,configmaps", "get"):
        before = own_cluster.kubectl(*rules)
        with faults.revoked(own_cluster, NAMESPACE, "granted-default", ["pods/exec"]):
            left = own_cluster.kubectl(*rules)
            assert "pods/exec" not in left
            assert "configmaps" in left
        assert own_cluster.kubectl(*rules) == before


def test_after_compaction_a_watch_from_before_is_gone(own_cluster: Cluster) -> None:
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
    old = json.loads(own_cluster.kubectl("get", "--raw", path))["metadata"]["resourceVersion"]
    watch = f"{path}?watch=1&timeoutSeconds=1&resourceVersion={old}"
    assert "ERROR" not in own_cluster.kubectl("get", "--raw", watch)
    faults.compact(own_cluster)
    event = json.loads(own_cluster.kubectl("get", "--raw", watch))
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)

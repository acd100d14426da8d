"""What goes wrong in clusters, each as a context that makes it so and mends it after.

Faults of the network are rules of a table of their own in the namespace concerned, so that
mending is deleting the table.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cluster.cluster import Cluster
from cluster.controlplane import ControlPlane
from cluster.machine import Machine
from cluster.network import BRIDGE, POD_MTU, TUNNEL, VXLAN_PORT
from cluster.node import Node
from cluster.plan import CONTROL, NODES, POD_NETWORK
from cluster.pods import Pod, first_process, pods
from cluster.process import kill, run, wait

__all__ = [
    "black_hole",
    "compact",
    "crashing",
    "cut_from_api_server",
    "cut_pod_network",
    "delayed",
    "granted",
    "isolated",
    "killed",
    "loopback_only",
    "misdirected",
    "overlay_blocked",
    "paused",
    "refused",
    "replaced",
    "reset",
    "revoked",
    "silenced",
    "source_destination_check",
    "stopped",
    "tunnelled",
    "undialled",
    "unplugged",
    "without",
]

KUBELET_PORT = 10250


@contextmanager
def _rules(wires: Sequence[str], family: str, name: str, chains: str) -> Iterator[None]:
    text = f"table {family} {name} {{\n{chains}\n}}\n"
    run(*wires, "nft", "-f", "-", stdin=text)
    try:
        yield
    finally:
        run(*wires, "nft", "delete", "table", family, name)


@contextmanager
def source_destination_check(cluster: Cluster) -> Iterator[None]:
    """The fabric drops what is not from or to the address of the port's machine, as EC2 does by
    default: pods reach each other on one node and by VXLAN, but not directly."""
    machines = {f"v-{node.name}": cluster.plan.address(node) for node in (CONTROL, *NODES)}
    arriving = [
        f'iifname "{port}" ether type ip ip saddr != {address} counter drop'
        for port, address in machines.items()
    ]
    leaving = [
        f'oifname "{port}" ether type ip ip daddr != {address} counter drop'
        for port, address in machines.items()
    ]
    chains = "\n".join(
        [
            "chain arriving { type filter hook prerouting priority 0;",
            *arriving,
            "}",
            "chain leaving { type filter hook postrouting priority 0;",
            *leaving,
            "}",
        ]
    )
    with _rules(cluster.network.fabric.wires(), "bridge", "srcdst", chains):
        yield


@contextmanager
def tunnelled(cluster: Cluster) -> Iterator[None]:
    """Pods' traffic takes VXLAN within subnets too, and Calico's pool says so: `vxlanMode: Always`,
    which is one of the ways out of the source/destination check."""
    with _vxlan_mode(cluster, "Always"):
        cluster.network.route_pods(cluster.machines.values(), tunnelled=True)
        try:
            yield
        finally:
            cluster.network.route_pods(cluster.machines.values(), tunnelled=False)


@contextmanager
def _vxlan_mode(cluster: Cluster, mode: str) -> Iterator[None]:
    pool = ["ippools.crd.projectcalico.org", "default-ipv4-ippool"]
    before = cluster.kubectl("get", *pool, "-o", "jsonpath={.spec.vxlanMode}")

    def patch(to: str) -> None:
        change = json.dumps({"spec": {"vxlanMode": to}})
        cluster.kubectl("patch", *pool, "--type=merge", "-p", change)

    patch(mode)
    try:
        yield
    finally:
        patch(before)


@contextmanager
def overlay_blocked(cluster: Cluster) -> Iterator[None]:
    """The fabric drops VXLAN, as a security group between two groups of nodes does: pods of one
    subnet reach each other, those of two subnets do not."""
    dropped = f"ether type ip udp dport {VXLAN_PORT} counter drop"
    chains = f"chain arriving {{ type filter hook prerouting priority 0;\n{dropped}\n}}"
    with _rules(cluster.network.fabric.wires(), "bridge", "overlay", chains):
        yield


@contextmanager
def cut_pod_network(cluster: Cluster) -> Iterator[None]:
    """No packet reaches a pod from another machine of the cluster. Nodes, the API server and the
    kubelets still reach each other, pods reach the API server, and clients outside a node."""
    machines = ", ".join(cluster.plan.address(node) for node in (CONTROL, *NODES))
    arriving = f'iifname {{ "eth0", "{TUNNEL}" }} ip daddr {POD_NETWORK}'
    chains = (
        "chain cut { type filter hook forward priority 0;\n"
        f"{arriving} ip saddr {POD_NETWORK} drop\n"
        # Not the answers to what a pod has asked a machine.
        f"{arriving} ip saddr {{ {machines} }} ct direction original drop\n"
        "}"
    )
    with _on_all(cluster, "cut_pods", chains):
        yield


@contextmanager
def _on_all(cluster: Cluster, name: str, chains: str) -> Iterator[None]:
    made: list[Node] = []
    try:
        for node in cluster.machines.values():
            run(*node.wires(), "nft", "-f", "-", stdin=f"table ip {name} {{\n{chains}\n}}\n")
            made.append(node)
        yield
    finally:
        for node in made:
            run(*node.wires(), "nft", "delete", "table", "ip", name)


@contextmanager
def cut_from_api_server(cluster: Cluster, node: str) -> Iterator[None]:
    """Nothing passes between that node, with its pods, and the control plane."""
    api = cluster.plan.api_address
    chains = "\n".join(
        f"chain {hook} {{ type filter hook {hook} priority 0;"
        f" ip saddr {api} drop; ip daddr {api} drop; }}"
        for hook in ("input", "forward", "output")
    )
    with _rules(cluster.node(node).wires(), "ip", "cut_api", chains):
        yield


@contextmanager
def undialled(cluster: Cluster, node: str) -> Iterator[None]:
    """The API server gets no packet to that node's kubelet, which still gets to the API server:
    the node stays ready, and nobody gets a stream into its pods."""
    rule = f"ip saddr {cluster.plan.api_address} tcp dport {KUBELET_PORT} drop"
    chains = f"chain undialled {{ type filter hook input priority 0; {rule}; }}"
    with _rules(cluster.node(node).wires(), "ip", "undialled", chains):
        yield


@contextmanager
def unplugged(cluster: Cluster, node: str) -> Iterator[None]:
    """The node's cable is pulled."""
    fabric = cluster.network.fabric
    fabric.ip(f"link set v-{node} down")
    try:
        yield
    finally:
        fabric.ip(f"link set v-{node} up")


@contextmanager
def black_hole(cluster: Cluster, node: str, size: int, *, overlay: bool = False) -> Iterator[None]:
    """Packets of more than `size` bytes are lost on the way to and from the node, and nobody is
    told: connections open, small messages pass, large ones hang. With `overlay`, VXLAN's alone, as
    where pods' MTU leaves it no room."""
    lost = f"ether type ip meta length > {size} counter drop"
    if overlay:
        lost = f"ether type ip udp dport {VXLAN_PORT} meta length > {size} counter drop"
    chains = (
        "chain arriving { type filter hook prerouting priority 0;\n"
        f'iifname "v-{node}" {lost}\n}}\n'
        "chain leaving { type filter hook postrouting priority 0;\n"
        f'oifname "v-{node}" {lost}\n}}'
    )
    with _rules(cluster.network.fabric.wires(), "bridge", "black_hole", chains):
        yield


@contextmanager
def refused(pod: Pod, port: int) -> Iterator[None]:
    """New connections to the pod's port are refused; the kubelet's probes are not."""
    with _at(pod, port, "tcp flags & (syn | ack) == syn reject with tcp reset"):
        yield


@contextmanager
def loopback_only(pod: Pod, port: int) -> Iterator[None]:
    """The pod's port is closed to everybody but the pod itself and the kubelet's probes."""
    with _at(pod, port, 'iifname "eth0" reject with tcp reset'):
        yield


@contextmanager
def misdirected(pod: Pod, address: str, instead: str) -> Iterator[None]:
    """What the pod sends to `address` arrives at `instead`, as where an address was given to
    another pod and the news has not come through."""
    chains = (
        "chain stale { type nat hook output priority -100;\n"
        f"ip daddr {address} dnat to {instead}\n"
        "}"
    )
    with _rules(pod.wires, "ip", "stale", chains):
        yield


@contextmanager
def isolated(
    cluster: Cluster, namespace: str, found: Sequence[Pod], labels: dict[str, str], port: int
) -> Iterator[None]:
    """A NetworkPolicy selects the pods and allows nothing, and the wires do as it says: this
    cluster has nobody else to enforce it."""
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "default-deny", "namespace": namespace},
        "spec": {"podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress"]},
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(policy))
    try:
        with ExitStack() as stack:
            for pod in found:
                stack.enter_context(silenced(pod, port))
            yield
    finally:
        cluster.kubectl("-n", namespace, "delete", "networkpolicy", "default-deny")


@contextmanager
def reset(pod: Pod, port: int) -> Iterator[None]:
    """Connections to the pod's port open, and are reset at the first data sent on them."""
    with _at(pod, port, "tcp flags & psh == psh reject with tcp reset"):
        yield


@contextmanager
def silenced(pod: Pod, port: int) -> Iterator[None]:
    """The pod's port takes no packet, except the kubelet's."""
    with _at(pod, port, "drop"):
        yield


@contextmanager
def _at(pod: Pod, port: int, verdict: str) -> Iterator[None]:
    others = f"ip saddr != {pod.node.node.gateway}"
    chains = (
        "chain fault { type filter hook input priority 0;\n"
        f"{others} tcp dport {port} {verdict}\n"
        "}"
    )
    with _rules(pod.wires, "ip", "fault", chains):
        yield


@contextmanager
def delayed(pod: Pod, seconds: float) -> Iterator[None]:
    """Each packet to and from the pod takes that much longer."""
    node, port, tap = pod.node, pod.port, "longwire"
    # The wire takes a copy of each frame before this drops it, lest the node answer it too.
    drop = f"chain taken {{ type filter hook ingress device {port} priority 0; drop; }}"
    with _rules(node.wires(), "netdev", "longwire", drop):
        node.ip(
            f"tuntap add dev {tap} mode tap vnet_hdr",
            f"link set {port} nomaster",
            f"link set {tap} mtu {POD_MTU} master {BRIDGE} up",
        )
        try:
            program = str(Path(__file__).with_name("longwire.py"))
            node.start(tap, [sys.executable, program, port, tap, str(seconds)])
            wait("the long wire", lambda: _carries(node, tap), 30)
            yield
        finally:
            node.stop(tap)
            node.ip(f"link delete {tap}", f"link set {port} master {BRIDGE}")
            hairpin = ["bridge", "link", "set", "dev", port, "hairpin", "on"]
            run(*node.wires(), *hairpin)


def _carries(node: Machine, tap: str) -> bool:
    links = json.loads(run(*node.wires(), "ip", "-json", "link", "show", tap))
    return "LOWER_UP" in links[0]["flags"]


def killed(pod: Pod) -> None:
    """The first process of the pod is killed; the kubelet starts the container again."""
    kill([pod.process])


@contextmanager
def crashing(cluster: Cluster, pod: Pod) -> Iterator[None]:
    """The first process of the pod ends as soon as it begins, until the kubelet waits longer and
    longer before it tries again."""
    query = ["-n", pod.namespace, "get", "pod", pod.name, "-o", "json"]

    def waiting() -> bool:
        status = json.loads(cluster.kubectl(*query))["status"]["containerStatuses"][0]
        if status["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff":
            return True
        container = status.get("containerID", "").removeprefix("containerd://")
        if process := first_process(pod.node, container):
            kill([process])
        return False

    wait(f"{pod.name} crashing", waiting, 60)
    yield


@contextmanager
def paused(pod: Pod) -> Iterator[None]:
    """The first process of the pod is stopped: its port takes connections and nobody answers."""
    pod.process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        pod.process.signal(signal.SIGCONT)


def replaced(cluster: Cluster, pod: Pod, selector: str) -> Pod:
    """The pod is deleted; returns the one that its controller made for the same node."""
    query = ["-n", pod.namespace, "get", "pods", "-l", selector, "-o", "name"]
    count = len(cluster.kubectl(*query).split())
    # Not waited for: a kubelet may come back late to an API server that was away.
    flags = ["--grace-period=1", "--wait=false"]
    cluster.kubectl("-n", pod.namespace, "delete", "pod", pod.name, *flags)
    found = pods(cluster, pod.namespace, selector, count)
    return next(new for new in found if new.node.name == pod.node.name and new.uid != pod.uid)


@contextmanager
def stopped(machine: Node | ControlPlane, daemon: str) -> Iterator[None]:
    """The daemon is down, and then started again."""
    machine.stop(daemon)
    try:
        yield
    finally:
        machine.launch(daemon)


@contextmanager
def granted(
    cluster: Cluster, namespace: str, account: str, resources: str, verbs: str
) -> Iterator[None]:
    """The service account of that namespace may do this in it; comma-separated, as kubectl
    takes them."""
    name = f"granted-{account}"
    inside = ["-n", namespace]
    subject = f"--serviceaccount={namespace}:{account}"
    rules = [f"--resource={resources}", f"--verb={verbs}"]
    cluster.kubectl(*inside, "create", "role", name, *rules)
    try:
        cluster.kubectl(*inside, "create", "rolebinding", name, f"--role={name}", subject)
        yield
    finally:
        both = [f"role/{name}", f"rolebinding/{name}"]
        cluster.kubectl(*inside, "delete", "--ignore-not-found", *both)


@contextmanager
def without(cluster: Cluster, namespace: str, resource: str) -> Iterator[None]:
    """The object, such as `rolebinding/NAME`, is gone, and then there again."""
    inside = ["-n", namespace]
    manifest = json.loads(cluster.kubectl(*inside, "get", resource, "-o", "json"))
    for made in ("uid", "resourceVersion", "creationTimestamp", "managedFields"):
        manifest["metadata"].pop(made, None)
    cluster.kubectl(*inside, "delete", resource)
    try:
        yield
    finally:
        cluster.kubectl(*inside, "create", "-f", "-", stdin=json.dumps(manifest))


@contextmanager
def revoked(
    cluster: Cluster, namespace: str, role: str, resources: Sequence[str]
) -> Iterator[None]:
    """The role no longer allows anything with these resources, and then again."""
    inside = ["-n", namespace]
    rules = json.loads(cluster.kubectl(*inside, "get", "role", role, "-o", "json"))["rules"]

    def set_rules(to: list[dict[str, list[str]]]) -> None:
        change = json.dumps({"rules": to})
        cluster.kubectl(*inside, "patch", "role", role, "--type=merge", "-p", change)

    kept = [
        {**rule, "resources": left}
        for rule in rules
        if (left := [each for each in rule["resources"] if each not in resources])
    ]
    set_rules(kept)
    try:
        yield
    finally:
        set_rules(rules)


def compact(cluster: Cluster) -> None:
    """The past is forgotten: a watch that goes on from before gets 410 Gone.

    etcd drops its old revisions, and the API server, started again, its own copy of them.
    """
    control = cluster.control

    def ask(call: str, body: dict[str, object]) -> dict[str, dict[str, str]]:
        url = f"http://127.0.0.1:2379/v3/kv/{call}"
        program = (
            "import sys, urllib.request\n"
            "url, body = sys.argv[1], sys.argv[2].encode()\n"
            "print(urllib.request.urlopen(url, body, timeout=30).read().decode())"
        )
        post = [sys.executable, "-c", program, url, json.dumps(body)]
        answer: dict[str, dict[str, str]] = json.loads(control.run("env", "NO_PROXY=*", *post))
        return answer

    # A change that no watch has seen yet is what makes the past be past.
    cluster.kubectl("-n", "default", "create", "configmap", "compacted")
    cluster.kubectl("-n", "default", "delete", "configmap", "compacted")
    revision = ask("range", {"key": "AA=="})["header"]["revision"]
    ask("compaction", {"revision": revision, "physical": True})
    control.restart("kube-apiserver")

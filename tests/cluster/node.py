"""A node: containerd, kubelet and kube-proxy on a machine of their own."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.certificates import Authority
from cluster.machine import Machine
from cluster.network import BRIDGE, POD_MTU
from cluster.plan import CLUSTER_DOMAIN, DNS_ADDRESS, POD_NETWORK, NodePlan, Plan
from cluster.process import CommandError, wait

__all__ = ["CTR", "Node"]

SOCKET = "/run/containerd/containerd.sock"

CTR = ("ctr", "--address", SOCKET, "--namespace", "k8s.io")
"""containerd's command line, for what the kubelet runs."""

START_SECONDS = 60
"""Bound for containerd to answer: half a second on an idle machine."""

IMPORT_SECONDS = 300
"""Bound to unpack an image on a busy machine."""

CONTAINERD = """\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
# Without CAP_SYS_RESOURCE a score cannot be lowered, and then no container starts.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{folder}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""


class Node(Machine):
    """Its machine is made and wired by others; this is what runs on it."""

    def __init__(self, plan: Plan, node: NodePlan, binaries: Path) -> None:
        super().__init__(plan, node.name)
        self.node = node
        self.address = plan.address(node)
        self.binaries = binaries
        self._pki = plan.folder / "pki"

    def prepare(self, authority: Authority, server: str) -> None:
        """Write all configuration."""
        user = f"system:node:{self.name}"
        authority.issue(f"{self.name}-serving", user, hosts=[self.name, self.address])
        kubelet = authority.kubeconfig(f"{self.name}-kubelet", server, user, ["system:nodes"])
        proxy = authority.kubeconfig(f"{self.name}-proxy", server, "system:kube-proxy")
        (self.folder / "cni").mkdir()
        self._write("cni/10-bridge.conflist", self._cni())
        self._write("kubelet.json", self._kubelet(authority.certificate))
        self._write("kube-proxy.json", self._kube_proxy(proxy))
        text = CONTAINERD.format(socket=SOCKET, folder=self.folder)
        (self.folder / "containerd.toml").write_text(text)
        # Of pods that do not use the cluster's DNS. There is none outside of it.
        (self.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        commands = {
            "containerd": ["containerd", "--config", f"{self.folder}/containerd.toml"],
            "kubelet": [
                str(self.binaries / "kubelet"),
                f"--config={self.folder}/kubelet.json",
                f"--kubeconfig={kubelet}",
                f"--hostname-override={self.name}",
                f"--node-ip={self.address}",
                f"--node-labels=topology.kubernetes.io/zone={self.node.zone}"
                f",topology.kubernetes.io/region={self.node.zone[:-1]}"
                ",node.kubernetes.io/instance-type=g4dn.xlarge",
            ],
            "kube-proxy": [
                str(self.binaries / "kube-proxy"),
                f"--config={self.folder}/kube-proxy.json",
            ],
        }
        self._write("commands.json", commands)

    def launch(self, daemon: str) -> None:
        """Start one of containerd, kubelet and kube-proxy."""
        commands = json.loads((self.folder / "commands.json").read_text())
        self.start(daemon, commands[daemon])

    def restart(self, daemon: str) -> None:
        """End it and start it again; containers go on."""
        self.stop(daemon)
        self.launch(daemon)
        if daemon == "containerd":
            self.wait_containerd()

    def wait_containerd(self) -> None:
        """Until it answers.

        Raises:
            TimeoutError: it does not.
        """

        def answers() -> bool:
            try:
                self.run(*CTR, "plugins", "list", "--quiet")
            except CommandError:
                return False
            return True

        what = f"containerd of {self.name} (see {self.log('containerd')})"
        wait(what, answers, START_SECONDS)

    def import_image(self, archive: Path) -> None:
        """Give the kubelet an image from an OCI archive."""
        self.run(*CTR, "images", "import", str(archive), timeout=IMPORT_SECONDS)

    def _write(self, name: str, value: object) -> None:
        (self.folder / name).write_text(json.dumps(value, indent=2))

    def _cni(self) -> object:
        bridge = {
            "type": "bridge",
            "bridge": BRIDGE,
            "isDefaultGateway": True,
            "hairpinMode": True,
            "mtu": POD_MTU,
            "ipam": {"type": "host-local", "subnet": self.node.pods, "dataDir": "/run/cni"},
        }
        return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}

    def _kubelet(self, authority: Path) -> object:
        instance = f"i-0{self.node.number:016x}"
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{self._pki}/{self.name}-serving.crt",
            "tlsPrivateKeyFile": f"{self._pki}/{self.name}-serving.key",
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "providerID": f"aws:///{self.node.zone}/{instance}",
            "clusterDomain": CLUSTER_DOMAIN,
            "clusterDNS": [DNS_ADDRESS],
            "resolvConf": f"{self.folder}/resolv.conf",
            # The machine may be an old Linux, have swap, and little room: it is only borrowed.
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            # What of a device plugin's devices can be given out is told no sooner.
            "nodeStatusUpdateFrequency": "2s",
            "evictionHard": {
                "memory.available": "0%",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
                "imagefs.available": "0%",
                "imagefs.inodesFree": "0%",
            },
            # Images come by hand: none that is thrown away could be pulled again.
            "imageGCHighThresholdPercent": 100,
            "makeIPTablesUtilChains": False,
        }

    def _kube_proxy(self, kubeconfig: Path) -> object:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "hostnameOverride": self.name,
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "clusterCIDR": POD_NETWORK,
            # The size of the table belongs to the whole machine.
            "conntrack": {"maxPerCore": 0, "min": 0},
        }

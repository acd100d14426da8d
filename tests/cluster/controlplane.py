"""The machine of etcd, the API server, the controller manager and the scheduler."""

from __future__ import annotations

import ssl
import urllib.request
from pathlib import Path

from cluster.certificates import Authority
from cluster.machine import Machine
from cluster.plan import API_SERVICE_ADDRESS, CLUSTER_DOMAIN, CONTROL, SERVICE_NETWORK, Plan
from cluster.process import wait

__all__ = ["ControlPlane"]

READY_SECONDS = 120
"""Bound for the API server to answer: 4 s on two idle cores."""

ETCD = "http://127.0.0.1:2379"
"""Of the machine's own loopback, which nobody else reaches."""


class ControlPlane(Machine):
    """Starts and stops the components; each can be restarted by its name."""

    def __init__(self, plan: Plan, binaries: Path) -> None:
        super().__init__(plan, CONTROL.name)
        self.binaries = binaries
        self.server = f"https://{plan.api_address}:6443"
        self._pki = plan.folder / "pki"

    def prepare(self, authority: Authority) -> None:
        """Keys and certificates of everybody in here."""
        api = [self.plan.api_address, "127.0.0.1", API_SERVICE_ADDRESS, "kubernetes"]
        api += ["kubernetes.default", "kubernetes.default.svc"]
        api.append(f"kubernetes.default.svc.{CLUSTER_DOMAIN}")
        authority.issue("apiserver", "kube-apiserver", hosts=api)
        authority.issue("apiserver-kubelet-client", "kube-apiserver", ["system:masters"])
        for component in ("kube-controller-manager", "kube-scheduler"):
            authority.kubeconfig(component, self.server, f"system:{component}")
        authority.issue("service-accounts", "service-accounts")

    def restart(self, component: str) -> None:
        """End the component, start it again, and wait until the API server is ready."""
        self.stop(component)
        self.launch(component)
        self.wait_ready()

    def launch(self, component: str) -> None:
        """Start one of them; the others wait for it."""
        program = str(self.binaries / component)
        self.start(component, [program, *getattr(self, f"_{component.replace('-', '_')}")()])

    def wait_ready(self, timeout: float = READY_SECONDS) -> None:
        """Until the API server says that it is ready, which it is not without etcd.

        Raises:
            TimeoutError: it did not within `timeout` seconds.
        """
        wait(f"API server ready (see {self.log('kube-apiserver')})", self._ready, timeout)

    def _ready(self) -> bool:
        if self.process("kube-apiserver") is None:
            raise RuntimeError(f"the API server has ended: see {self.log('kube-apiserver')}")
        trusted = ssl.create_default_context(cafile=self._pki / "ca.crt")
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted)
        )
        try:
            with opener.open(f"{self.server}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _etcd(self) -> list[str]:
        peer = "http://127.0.0.1:2380"
        return [
            "--name=etcd",
            f"--data-dir={self.folder}/etcd",
            f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=etcd={peer}",
            "--log-level=warn",
            # A cluster that a power cut ends is made anew.
            "--unsafe-no-fsync",
        ]

    def _kube_apiserver(self) -> list[str]:
        pki = self._pki
        return [
            f"--etcd-servers={ETCD}",
            f"--advertise-address={self.plan.api_address}",
            "--secure-port=6443",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--client-ca-file={pki}/ca.crt",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
            f"--service-account-key-file={pki}/service-accounts.crt",
            f"--service-account-signing-key-file={pki}/service-accounts.key",
            f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
            f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
        ]

    def _kube_controller_manager(self) -> list[str]:
        pki = self._pki
        return [
            f"--kubeconfig={pki}/kube-controller-manager.kubeconfig",
            f"--root-ca-file={pki}/ca.crt",
            f"--service-account-private-key-file={pki}/service-accounts.key",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ]

    def _kube_scheduler(self) -> list[str]:
        return [
            f"--kubeconfig={self._pki}/kube-scheduler.kubeconfig",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ]

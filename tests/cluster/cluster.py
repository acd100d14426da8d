"""The whole cluster: bring it up, reach it, take it down."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO

from cluster import images
from cluster.binaries import Unavailable, binaries, cache, packages, versions
from cluster.certificates import Authority
from cluster.controlplane import ControlPlane
from cluster.images import Image
from cluster.machine import Machine, Namespace, members
from cluster.network import Network
from cluster.node import CTR, Node
from cluster.plan import CONTROL, NODES, Plan
from cluster.process import Process, run
from cluster.remains import clean

__all__ = ["ELSEWHERE", "Access", "Cluster", "alone", "at_hand", "take_down"]

ELSEWHERE = "MCP_GPU_TEST_KUBECONFIG"
"""The environment variable that names the kubeconfig file of another cluster to test on."""

MANIFESTS = Path(__file__).parent / "manifests"

READY_SECONDS = 180
"""Bound for nodes and DNS to be ready: 10 s on two idle cores."""


class Access:
    """Any cluster, as far as a kubeconfig file reaches."""

    def __init__(self, kubeconfig: Path, folder: Path, programs: Path | None = None) -> None:
        """`folder` is for caches; `programs` has kubectl and helm, which are else on the PATH."""
        self.kubeconfig = kubeconfig
        self._folder = folder
        self._programs = programs

    @property
    def nodes(self) -> list[str]:
        """Their names, in order."""
        return sorted(self.kubectl("get", "nodes", "-o", "name").replace("node/", "").split())

    def kubectl(self, *args: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Its standard output.

        Raises:
            CommandError: it failed, or took longer than `timeout` seconds.
        """
        return run(*self.command("kubectl", *args), stdin=stdin, timeout=timeout)

    def helm(self, *args: str, stdin: str | None = None, timeout: float = 300) -> str:
        """As `kubectl`."""
        return run(*self.command("helm", *args), stdin=stdin, timeout=timeout)

    def command(self, program: str, *args: str) -> list[str]:
        """The command line of kubectl or helm, for those who start it themselves."""
        path = str(self._programs / program) if self._programs else program
        return ["env", *[f"{k}={v}" for k, v in self.environment().items()], path, *args]

    def environment(self) -> dict[str, str]:
        """Variables for kubectl and helm; neither reads or writes anything of the user's."""
        excepted = [os.environ[name] for name in ("NO_PROXY", "no_proxy") if name in os.environ]
        host = self._host()
        return {
            "KUBECONFIG": str(self.kubeconfig),
            "KUBERC": "off",
            "KUBECACHEDIR": f"{self._folder}/kubectl",
            "HELM_CACHE_HOME": f"{self._folder}/helm/cache",
            "HELM_CONFIG_HOME": f"{self._folder}/helm/config",
            "HELM_DATA_HOME": f"{self._folder}/helm/data",
            "NO_PROXY": ",".join([*excepted, *([host] if host else [])]),
        }

    def _host(self) -> str | None:
        return None


class Cluster(Access):
    """The cluster of this machine. Use `up`, or `running` for one that is up."""

    def __init__(self, plan: Plan, programs: Path) -> None:
        super().__init__(plan.folder / "pki" / "admin.kubeconfig", plan.folder, programs)
        self.plan = plan
        self.programs = programs
        self.network = Network(plan)
        self.control = ControlPlane(plan, programs)
        self.machines = {node.name: Node(plan, node, programs) for node in NODES}
        self.owner: Process | None = None
        """With whose end it ends; nobody's if it is kept."""
        self.phases: dict[str, float] = {}
        """Seconds that each step of the bring-up took."""

    @classmethod
    def running(cls, plan: Plan) -> Cluster | None:
        """The one that is up, whole and somebody's; None if there is none."""
        try:
            state = json.loads((plan.folder / "cluster.json").read_text())
        except FileNotFoundError:
            return None
        owner = Process(**state["owner"]) if state["owner"] else None
        if owner and not owner.alive:
            return None
        cluster = cls(plan, Path(state["programs"]))
        cluster.owner = owner
        cluster.phases = state["phases"]
        return cluster if cluster.control.process("kube-apiserver") else None

    @classmethod
    def up(cls, plan: Plan, keep: bool) -> Cluster:
        """Bring it up, after taking away what is left of one that was not taken down.

        With `keep` it stays when this process ends; else the next `up` takes it for remains.
        """
        with _locked(plan):
            begun = time.monotonic()
            packages()
            cluster = cls(plan, binaries())
            loaded = [images.pause_image(), images.busybox_image()]
            loaded.append(images.coredns_image(cluster.programs))
            cluster._phase("programs", begun)
            begun = time.monotonic()
            clean(plan)
            try:
                cluster._bring_up(loaded)
            except BaseException:
                _save_logs(plan)
                clean(plan)
                raise
            cluster._phase("in all", begun)
            cluster.owner = None if keep else Process.of(os.getpid())
            cluster._record()
        return cluster

    def down(self) -> None:
        """Take away all of it."""
        take_down(self.plan)

    def node(self, name: str) -> Node:
        return self.machines[name]

    def namespace(self, name: str) -> Namespace:
        """A machine by its name: a node's, `cp`, `fabric`, or `client`, which is outside the
        cluster but can reach its nodes."""
        others: list[Namespace] = [self.control, self.network.fabric, self.network.client]
        known: dict[str, Namespace] = {machine.name: machine for machine in others}
        return (known | dict(self.machines))[name]

    def run_in(self, name: str, argv: Sequence[str], timeout: float = 60) -> str:
        """Run a command on a machine, named as for `namespace`; its standard output.

        Raises:
            CommandError: it failed, or took longer than `timeout` seconds.
        """
        return self.namespace(name).run(*argv, timeout=timeout)

    def load_image(self, image: Image) -> None:
        """Give it to the container runtime of every node."""
        _together([partial(node.import_image, image.archive) for node in self._all()])

    def alias_image(self, image: Image, name: str) -> None:
        """Let an image that every node has be known by another name too."""
        for node in self._all():
            node.run(*CTR, "images", "tag", "--force", image.name, name)

    def memory(self) -> int:
        """Bytes of memory of all its processes; what they share is counted once."""
        total = 0
        for process in members(self.plan.prefix):
            try:
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            except OSError:
                continue
            sizes = [line.split()[1] for line in text.splitlines() if line.startswith("Pss:")]
            total += sum(1024 * int(size) for size in sizes)
        return total

    def versions(self) -> dict[str, str]:
        """What it is made of."""
        built = versions()
        return {
            "Kubernetes": built["k8s.io/kubernetes"],
            "etcd": built["go.etcd.io/etcd/server/v3"],
            "CoreDNS": built["github.com/coredns/coredns"],
            "Helm": built["helm.sh/helm/v4"],
            "containerd": run("containerd", "--version").split()[2],
            "runc": run("runc", "--version").split()[2],
        }

    def _bring_up(self, loaded: Sequence[Image]) -> None:
        begun = time.monotonic()
        self.plan.folder.mkdir(mode=0o700)
        self.network.create_fabric()
        authority = Authority(self.plan.folder / "pki")
        authority.kubeconfig("admin", self.control.server, "admin", ["system:masters"])
        nodes = [partial(self._make_node, authority, node) for node in self._all()]
        _together([partial(self._make_control, authority), *nodes])
        self._phase("machines", begun)
        begun = time.monotonic()

        def prepare_node(node: Node) -> None:
            node.launch("containerd")
            node.wait_containerd()
            for image in loaded:
                node.import_image(image.archive)

        _together([self.control.wait_ready, *[partial(prepare_node, node) for node in self._all()]])
        self._phase("API server, containerd", begun)
        begun = time.monotonic()
        for component in ("kube-controller-manager", "kube-scheduler"):
            self.control.launch(component)
        for node in self._all():
            node.launch("kubelet")
            node.launch("kube-proxy")
        self._apply()
        names = [f"node/{node.name}" for node in self._all()]
        bound = f"--timeout={READY_SECONDS}s"

        def await_nodes() -> None:
            self.kubectl("wait", "--for=create", bound, *names, timeout=READY_SECONDS + 10)
            for node in self._all():
                # As calico-node says of each: which subnet it is in is known by the prefix.
                said = f"projectcalico.org/IPv4Address={self.plan.address(node.node)}/24"
                self.kubectl("annotate", "--overwrite", f"node/{node.name}", said)
            ready = ["wait", "--for=condition=Ready", bound]
            self.kubectl(*ready, *names, timeout=READY_SECONDS + 10)

        rollout = ["-n", "kube-system", "rollout", "status", "daemonset/coredns", bound]
        account = ["-n", "default", "wait", "--for=create", bound, "serviceaccount/default"]
        _together(
            [
                await_nodes,
                lambda: self.kubectl(*rollout, timeout=READY_SECONDS + 10),
                lambda: self.kubectl(*account, timeout=READY_SECONDS + 10),
            ]
        )
        self._phase("nodes, DNS", begun)

    def _make_control(self, authority: Authority) -> None:
        self._make(self.control)
        self.control.prepare(authority)
        self.control.launch("etcd")
        self.control.launch("kube-apiserver")

    def _make_node(self, authority: Authority, node: Node) -> None:
        self._make(node)
        self.network.prepare_pods(node, node.node)
        node.prepare(authority, self.control.server)

    def _make(self, machine: Machine) -> None:
        plans = {plan.name: plan for plan in (CONTROL, *NODES)}
        machine.create()
        self.network.attach(machine, plans[machine.name], plans.values())

    def _apply(self) -> None:
        apply = ["apply", "--server-side", "-f"]
        self.kubectl(*apply, str(MANIFESTS / "1-definitions.yaml"))
        self.kubectl(*apply, str(MANIFESTS / "2-coredns.yaml"))
        self.kubectl("wait", "--for=condition=Established", "crd", "--all")
        self.kubectl(*apply, str(MANIFESTS / "2-calico.yaml"))

    def _record(self) -> None:
        state = {
            "owner": asdict(self.owner) if self.owner else None,
            "programs": str(self.programs),
            "phases": self.phases,
        }
        unfinished = self.plan.folder / "cluster.json.new"
        unfinished.write_text(json.dumps(state, indent=2))
        unfinished.rename(self.plan.folder / "cluster.json")

    def _phase(self, name: str, begun: float) -> None:
        self.phases[name] = round(time.monotonic() - begun, 1)

    def _all(self) -> list[Node]:
        return list(self.machines.values())

    def _host(self) -> str | None:
        return self.plan.api_address


def take_down(plan: Plan) -> None:
    """Take down the cluster of that name, or what is left of it."""
    with _locked(plan):
        clean(plan)


def _save_logs(plan: Plan) -> None:
    kept = cache() / f"{plan.prefix}-failed"
    shutil.rmtree(kept, ignore_errors=True)
    for log in plan.folder.glob("*/*.log"):
        target = kept / log.relative_to(plan.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, target)
    print(f"the cluster did not come up; its logs are in {kept}", file=sys.stderr)


@contextmanager
def at_hand(plan: Plan) -> Iterator[Cluster]:
    """The cluster of that name for this test run alone: the one that is up, else one that is taken
    down after the block.

    Raises:
        Unavailable: another run has it.
    """
    with alone(plan):
        found = Cluster.running(plan)
        mark = plan.folder / "under-test"
        if found is not None and mark.exists():
            # Those tests were killed, and may have left one of their faults.
            found = Cluster.up(plan, keep=True)
        own = found or Cluster.up(plan, keep=False)
        mark.touch()
        try:
            yield own
        finally:
            mark.unlink()
            if found is None:
                own.down()


@contextmanager
def alone(plan: Plan) -> Iterator[None]:
    """Keep other test runs off the cluster of that name: each breaks things for the other.

    Raises:
        Unavailable: another run has it.
    """
    with _lock_file(plan, "tests") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(
                f"another test run is using cluster {plan.index}: wait for it, or choose another"
                " with MCP_GPU_CLUSTER=1"
            ) from None
        yield


@contextmanager
def _locked(plan: Plan) -> Iterator[None]:
    """While it is being brought up or taken down."""
    with _lock_file(plan, "making") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lock_file(plan: Plan, purpose: str) -> IO[str]:
    cache().mkdir(parents=True, exist_ok=True)
    return (cache() / f"{plan.prefix}-{purpose}.lock").open("w")


def _together(jobs: Sequence[Callable[[], object]]) -> None:
    """All at the same time; raises what the first of them raised, when all have ended."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()

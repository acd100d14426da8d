"""The project's own chart and image, installed on the test cluster."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from cluster.cluster import Cluster
from cluster.images import Image, build_image
from cluster.pods import Pod, pods
from cluster.process import CommandError, wait

__all__ = [
    "CALL",
    "CHART",
    "ROOT",
    "Release",
    "call",
    "everywhere",
    "forwarded",
    "image",
    "installed",
    "removed",
    "ways",
]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "mcp-gpu"

READY_SECONDS = 180
"""Bound for a rollout: some seconds where the image is on the nodes."""

SURGE = "agent.updateStrategy.rollingUpdate.maxSurge=100%"
"""All agents anew at once: what takes its time on a fleet need not in tests."""

REPLICAS = "gateway.replicas="

ALONE = (f"{REPLICAS}1", "gateway.shutdownDelaySeconds=1")
"""Whose sockets, whose log and whose first call is else not to be told, and which has nobody to
leave its calls to. Tests that ask for more gateways have the chart's own delay, too."""

NAME_CHARS = 52
"""The chart's bound for the names that it makes."""

IN_A_ROW = 12

ACCOUNT_SECONDS = 3600
"""How long a token of an account counts; Kubernetes makes none for less than ten minutes."""

CALL_SECONDS = 25
"""Bound for a call through the gateway, which ends by its own deadline of 20 s."""


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    """The request that calls a tool."""
    params = {"name": tool, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


CALL = call("get_gpu_inventory")


@cache
def image(cluster: Cluster) -> Image:
    """The project's image, built by its Dockerfile and on every node. Once in a run: to look
    through the sources, and to give it to three nodes, takes seconds."""
    built = build_image(ROOT)
    cluster.load_image(built)
    return built


class Release:
    """The chart as one release in a namespace of its own."""

    def __init__(
        self, cluster: Cluster, built: Image, name: str, namespace: str, level: str = "restricted"
    ) -> None:
        self.cluster = cluster
        self.image = built
        """What `set` installs; another makes the next `set` an upgrade to it."""
        self.name = name
        self.namespace = namespace
        self.level = level
        """Of Pod Security, which the namespace enforces. The default is the strictest."""
        whole = name if "mcp-gpu" in name else f"{name}-mcp-gpu"
        self.fullname = whole[:NAME_CHARS].removesuffix("-")
        self.address = ""
        """Of the gateway's Service, once it is ready: known while the API server is down, too."""
        self.authority: Path | None = None
        """The certificate of who signed the gateway's own; None where it serves plain HTTP."""

    def set(self, *values: str) -> str:
        """`upgrade`, and wait until it has been rolled out; helm's words."""
        said = self.upgrade(*values)
        self.ready()
        return said

    def upgrade(self, *values: str) -> str:
        """Install or upgrade with these values beside simulated GPUs; helm's words."""
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(self._namespace()))
        alone = () if any(value.startswith(REPLICAS) for value in values) else ALONE
        return self._helm("upgrade", "--install", values=[SURGE, *alone, *values])

    def install(self) -> str:
        """As a stranger does, with the chart's defaults beside simulated GPUs, and wait until it
        is rolled out; helm's words."""
        said = self._helm("install", "--create-namespace")
        self.ready()
        return said

    def _helm(self, *words: str, values: Sequence[str] = ()) -> str:
        repository, _, tag = self.image.name.rpartition(":")
        # As text: a tag may have digits alone.
        flags = [f"--set-string=image.repository={repository},image.tag={tag}"]
        flags += [f"--set={value}" for value in ("simulate.enabled=true", *values)]
        place = ["--namespace", self.namespace]
        return self.cluster.helm(*words, self.name, str(CHART), *flags, *place)

    def tested(self) -> str:
        """What `helm test` prints, with the logs of its pods; these are gone after it.

        Raises:
            CommandError: a test failed. What the pre-flight has found is in its notes.
        """
        words = ["test", self.name, "--namespace", self.namespace, "--logs", "--timeout=4m"]
        preflight, call = f"{self.fullname}-test", f"{self.fullname}-test-call"
        try:
            return self.cluster.helm(*words)
        except CommandError as error:
            error.add_note(self.kubectl("logs", preflight))
            raise
        finally:
            self.kubectl("delete", "pod", "--ignore-not-found", preflight, call)

    def _namespace(self) -> dict[str, Any]:
        labels = {"pod-security.kubernetes.io/enforce": self.level}
        metadata = {"name": self.namespace, "labels": labels}
        return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}

    def ready(self) -> None:
        """Wait until what is installed is rolled out."""
        for kind in ("daemonset", "deployment"):
            self.rolled_out(kind)
        service = f"{self.fullname}-gateway"
        spec = json.loads(self.kubectl("get", "service", service, "-o", "json"))["spec"]
        self.address = spec["clusterIP"]
        self.authority = None
        if spec["ports"][0].get("appProtocol") == "https":
            self.authority = self.cluster.plan.folder / f"{self.namespace}-{self.name}-ca.crt"
            self.authority.write_text(self.secret(self._certificate(), "ca.crt"))
        wait("the last of the old pods gone", self._is_settled, READY_SECONDS)
        wait("the gateway's Service", self._is_served, READY_SECONDS)

    def rolled_out(self, kind: str) -> None:
        """Wait until what is installed of that kind is rolled out."""
        query = ["get", kind, "-l", f"app.kubernetes.io/instance={self.name}", "-o", "name"]
        for found in self.kubectl(*query).split():
            rollout = ["rollout", "status", found, f"--timeout={READY_SECONDS}s"]
            self.kubectl(*rollout, timeout=READY_SECONDS + 10)

    def restart_gateway(self) -> None:
        """A new process, with no knowledge and no connection."""
        self.kubectl("rollout", "restart", f"deployment/{self.fullname}-gateway")
        self.ready()

    def _certificate(self) -> str:
        """The Secret that the gateway has its certificate from."""
        query = ["get", "deployment", f"{self.fullname}-gateway", "-o", "json"]
        volumes = json.loads(self.kubectl(*query))["spec"]["template"]["spec"]["volumes"]
        name: str = next(each["secret"]["secretName"] for each in volumes if each["name"] == "tls")
        return name

    def _is_settled(self) -> bool:
        query = ["get", "pods", "-l", self.selector("gateway"), "-o", "name"]
        return len(self.kubectl(*query).split()) == self.replicas()

    def replicas(self) -> int:
        """How many gateways there should be."""
        query = ["get", "deployment", f"{self.fullname}-gateway", "-o", "jsonpath={.spec.replicas}"]
        return int(self.kubectl(*query))

    def _is_served(self) -> bool:
        """So many times in a row: for a second kube-proxy may still send some to the pod that has
        just gone, whose address its node believes in for half a minute more."""
        curl = ["curl", "-sf", "--noproxy", "*", "-m", "2", *self.url("/healthz")]
        try:
            for _ in range(IN_A_ROW):
                self.cluster.run_in("n1", curl)
        except CommandError:
            return False
        return True

    def kubectl(self, *args: str, stdin: str | None = None, timeout: float = 60) -> str:
        return self.cluster.kubectl("-n", self.namespace, *args, stdin=stdin, timeout=timeout)

    def agents(self) -> list[Pod]:
        """The agents, by node."""
        return pods(self.cluster, self.namespace, self.selector("agent"), len(self.cluster.nodes))

    def gateways(self) -> list[Pod]:
        """All of them, by node."""
        return pods(self.cluster, self.namespace, self.selector("gateway"), self.replicas())

    def gateway(self) -> Pod:
        """The only one."""
        (found,) = self.gateways()
        return found

    def selector(self, component: str) -> str:
        return f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"

    def token(self, key: str = "client-token") -> str:
        """A static one."""
        return self.secret(f"{self.fullname}-auth", key).strip()

    def secret(self, name: str, key: str) -> str:
        data = json.loads(self.kubectl("get", "secret", name, "-o", "json"))["data"]
        return base64.b64decode(data[key]).decode()

    def account_token(
        self, account: str = "", audience: str = "", *, seconds: int = ACCOUNT_SECONDS
    ) -> str:
        """One of a ServiceAccount of the namespace, as `kubectl create token` makes it: by default
        of the chart's account for clients and for the gateway."""
        words = ["create", "token", account or f"{self.fullname}-client"]
        words += [f"--audience={audience or f'{self.fullname}.{self.namespace}'}"]
        return self.kubectl(*words, f"--duration={seconds}s").strip()

    def url(self, path: str) -> list[str]:
        """Words for curl: the gateway's Service by its address, and by its name where that has to
        be in a certificate."""
        if self.authority is None:
            return [f"http://{self.address}:8080{path}"]
        host = f"{self.fullname}-gateway.{self.namespace}.svc"
        trust = ["--cacert", str(self.authority), "--resolve", f"{host}:8080:{self.address}"]
        return [*trust, f"https://{host}:8080{path}"]

    def post(self, *headers: str, node: str = "n1", request: dict[str, Any] = CALL) -> str:
        """What a machine of the cluster gets from the gateway's Service, with the HTTP status in
        a line of its own at the end."""
        flags = [word for header in headers for word in ("-H", header)]
        command = [
            *["curl", "-s", "--noproxy", "*", "-m", str(CALL_SECONDS), "-w", "\n%{http_code}"],
            *["-X", "POST", *self.url("/mcp")],
            *["-H", "Content-Type: application/json", *flags, "-d", json.dumps(request)],
        ]
        try:
            return self.cluster.run_in(node, command, timeout=CALL_SECONDS + 5)
        except CommandError as error:
            gateway = f"deployment/{self.fullname}-gateway"
            error.add_note(self.kubectl("logs", gateway, "--timestamps", "--tail=40"))
            raise

    def inventory(self, *, token: str | None = None) -> dict[str, Any]:
        """The whole answer of get_gpu_inventory, through the gateway's Service."""
        found: dict[str, Any] = self.ask(CALL, token=token)["structuredContent"]
        return found

    def ask(self, request: dict[str, Any], *, token: str | None = None) -> dict[str, Any]:
        """The result of a call of a tool, through the gateway's Service."""
        headers = [f"Authorization: Bearer {token}"] if token else []
        body, _, status = self.post(*headers, request=request).rpartition("\n")
        assert status == "200", body
        result: dict[str, Any] = json.loads(body)["result"]
        assert not result.get("isError"), result
        return result

    def routed(self) -> dict[str, Any]:
        """The gateway's last log line about a call."""
        lines = self.kubectl("logs", f"deployment/{self.fullname}-gateway", "--tail=200")
        found = [line for line in lines.splitlines() if '"routing complete"' in line]
        line: dict[str, Any] = json.loads(found[-1])
        return line

    def sockets(self) -> int:
        """Open TCP connections of the gateway's pod, less those of the kubelet's probes."""
        gateway = self.gateway()
        lines = gateway.run("ss", "-Htn", "state", "established").splitlines()
        return sum(f"{gateway.address}:8080" not in line for line in lines)

    def relays(self, *others: Pod) -> list[int]:
        """Pids of the relays that exec streams have started in agents, and in the pods given."""
        owned = {
            os.stat(f"/proc/{pod.process.pid}/ns/pid").st_ino
            for pod in (*self.agents(), *others)
            if pod.process.alive
        }
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                inside = os.stat(folder / "ns" / "pid").st_ino in owned
            except OSError:
                continue
            if inside and b"attach" in words:
                found.append(int(folder.name))
        return found


@contextmanager
def installed(
    cluster: Cluster,
    built: Image,
    name: str,
    namespace: str,
    *values: str,
    level: str = "restricted",
) -> Iterator[Release]:
    """A release within the block, in a namespace that enforces that level of Pod Security."""
    release = Release(cluster, built, name, namespace, level)
    with removed(cluster, name, namespace):
        release.set(*values)
        yield release


@contextmanager
def removed(cluster: Cluster, name: str, namespace: str) -> Iterator[None]:
    """The release is gone after the block, and its namespace is on its way out: nobody waits for
    that but who wants one of the same name."""
    delete = ["delete", "namespace", namespace, "--ignore-not-found"]
    cluster.kubectl(*delete, "--timeout=120s", timeout=130)
    try:
        yield
    finally:
        try:
            cluster.helm("uninstall", name, "--namespace", namespace, "--ignore-not-found")
        finally:
            cluster.kubectl(*delete, "--wait=false")


def ways(answer: dict[str, Any]) -> dict[str, str]:
    """The path of each node that answered, the reason of each that did not."""
    answered = {node["node"]: node["via"] for node in answer["nodes"]}
    return answered | {failure["node"]: failure["reason"] for failure in answer["failures"]}


def everywhere(cluster: Cluster, way: str) -> dict[str, str]:
    """What `ways` says where every node has answered by that path."""
    return dict.fromkeys(cluster.nodes, way)


class forwarded:
    """A port of this machine that leads to the gateway's Service."""

    def __init__(self, release: Release) -> None:
        words = ["port-forward", f"service/{release.fullname}-gateway", ":8080"]
        self._command = release.cluster.command("kubectl", "-n", release.namespace, *words)

    def __enter__(self) -> str:
        self._running = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._running.stdout is not None
        return self._running.stdout.readline().split()[2].rpartition(":")[2]

    def __exit__(self, *_: object) -> None:
        self._running.terminate()
        self._running.wait(30)
        assert self._running.stdout is not None
        self._running.stdout.close()

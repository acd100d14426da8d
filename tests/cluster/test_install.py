"""What a stranger installs is ready, safe by default, and works as its notes say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster import faults
from cluster.attacker import attacker
from cluster.certificates import Authority
from cluster.cluster import Cluster
from cluster.images import Image
from cluster.pods import Pod
from cluster.probes import PORT, stranger
from cluster.process import CommandError, run, wait
from cluster.release import (
    CALL,
    CHART,
    Release,
    call,
    everywhere,
    forwarded,
    image,
    removed,
    ways,
)
from mcp_gpu import __version__
from support.chart import PREDECESSOR

NAME = "hall-2-rack-17--gpus-that-somebody-installs-on-friday"
NAMESPACE = "7-machines-in-a-namespace-that-has-a-name-as-long-as-may-be-now"
"""As long as Helm and Kubernetes take, 53 and 63 characters, with all that is allowed in them."""

GRANTED_SECONDS = 30
"""Bound for a new right to count: a gateway remembers for five that there was none."""

HEARD_SECONDS = 30


@pytest.fixture(scope="module")
def built(own_cluster: Cluster) -> Image:
    return image(own_cluster)


@pytest.fixture(scope="module")
def release(own_cluster: Cluster, built: Image) -> Iterator[Release]:
    release = Release(own_cluster, built, NAME, NAMESPACE)
    with removed(own_cluster, NAME, NAMESPACE):
        release.install()
        yield release


def status(release: Release, token: str, tool: str = "get_gpu_inventory") -> tuple[str, str]:
    """Of the gateway's answer, and its text."""
    body, _, code = release.post(f"Authorization: Bearer {token}", request=call(tool)).rpartition(
        "\n"
    )
    return code, body


def test_a_helm_test_is_green(release: Release) -> None:
    said = release.tested()
    assert "pre-flight passed: 3 nodes reached" in said
    # What the client's pod has been told by the gateway.
    assert "3 of 3 nodes" in said


def test_every_node_answers_a_kubernetes_token_by_http(
    release: Release, own_cluster: Cluster
) -> None:
    answer = release.inventory(token=release.account_token())
    assert ways(answer) == everywhere(own_cluster, "http"), answer["failures"]
    assert answer["simulated"] is True


def test_agents_speak_tls_alone_and_believe_no_client(release: Release) -> None:
    agent = release.agents()[0]
    url = f"//{agent.address}:{PORT}/mcp"
    curl = ["curl", "-sk", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}"]
    curl += ["-H", "Content-Type: application/json", "-d", json.dumps(CALL)]
    assert agent.run(*curl, f"https:{url}") == "401"
    for token in (release.token(), release.account_token()):
        assert agent.run(*curl, "-H", f"Authorization: Bearer {token}", f"https:{url}") == "401"
    assert agent.run(*curl, f"http:{url}") == "400"


def test_without_a_token_made_for_the_gateway_nobody_is_let_in(release: Release) -> None:
    body, _, code = release.post().rpartition("\n")
    assert code == "401"
    assert "bearer token" in body
    for audience in ("https://kubernetes.default.svc.cluster.local", f"{NAMESPACE}.agents"):
        token = release.account_token(audience=audience)
        code, body = status(release, token)
        assert code == "401"
        assert token not in body


def test_a_static_token_is_good(release: Release) -> None:
    assert status(release, release.token())[0] == "200"


def test_a_right_that_is_missing_is_named_and_granted_by_the_command_of_the_answer(
    release: Release, own_cluster: Cluster
) -> None:
    release.kubectl("create", "serviceaccount", "visitor")
    token = release.account_token("visitor")
    code, body = status(release, token)
    assert code == "403"
    said = json.loads(body)["error"]["message"] if "error" in body else body
    account = f"system:serviceaccount:{NAMESPACE}:visitor"
    assert f"{account!r} may not call the tool 'get_gpu_inventory'" in said
    assert f"the right 'call' on 'tools.gpu.mcp/get_gpu_inventory' in namespace {NAMESPACE}" in said
    command = said.partition("granted by: ")[2]
    assert command.endswith("apply -f -")
    shell(own_cluster, command)
    wait("the right", lambda: status(release, token)[0] == "200", GRANTED_SECONDS)
    code, body = status(release, token, "get_gpu_health")
    assert code == "403"
    assert "tools.gpu.mcp/get_gpu_health" in body


def shell(cluster: Cluster, *commands: str) -> str:
    """What a person's shell prints, whose kubectl is for the cluster."""
    path = f"{cluster.programs}:{os.environ['PATH']}"
    names = {**cluster.environment(), "PATH": path}
    words = ["env", *[f"{name}={value}" for name, value in names.items()]]
    return run(*words, "sh", "-ec", "\n".join(commands))


@pytest.mark.parametrize("kind", ["create token", "get secret"])
def test_the_notes_hold_commands_that_work(
    release: Release, own_cluster: Cluster, kind: str
) -> None:
    notes = own_cluster.helm("get", "notes", NAME, "--namespace", NAMESPACE)
    lines = [line.strip() for line in notes.splitlines()]
    (token,) = [line for line in lines if line.startswith("export GPU_TOKEN=") and kind in line]
    (curl,) = [line for line in lines if line.startswith("curl ")]
    with forwarded(release) as port:
        said = shell(own_cluster, token, "export NO_PROXY='*'", curl.replace(":8080/", f":{port}/"))
    answer = json.loads(said)["result"]["structuredContent"]
    assert ways(answer) == everywhere(own_cluster, "http")


def test_who_has_got_an_agents_address_gets_no_byte_of_a_token(
    release: Release, own_cluster: Cluster, busybox: str, tmp_path: Path
) -> None:
    gateways = release.gateways()
    (agent,) = [pod for pod in release.agents() if pod.node.name == "n2"]
    tokens = [shown(gateway) for gateway in gateways]
    name = f"{release.fullname}-agent.{NAMESPACE}.svc"
    forged = Authority(tmp_path / "own").issue("agent", "agent", hosts=[name])
    stolen = tmp_path / "stolen.crt", tmp_path / "stolen.key"
    for path, key in zip(stolen, ("tls.crt", "tls.key"), strict=True):
        path.write_text(release.secret(f"{release.fullname}-agent-tls", key))

    def path() -> str:
        return ways(release.inventory(token=release.token()))["n2"]

    def told(attacking: Pod, certificate: tuple[Path, Path]) -> bytes:
        wait("the agent", lambda: path() == "http", HEARD_SECONDS)
        with attacker(attacking, PORT, *certificate) as heard, ExitStack() as stack:
            for gateway in gateways:
                stale = faults.misdirected(gateway, agent.address, attacking.address)
                stack.enter_context(stale)
                gateway.run("ss", "-KHtn", "dst", agent.address)
            assert path() in ("portforward", "exec")
            wait("what the attacker has heard", heard, HEARD_SECONDS)
            return heard()

    own_cluster.kubectl("create", "namespace", "strangers")
    try:
        with stranger(own_cluster, "strangers", busybox, PORT + 1) as other:
            hello = told(other, forged)
            assert name.encode() in hello  # of TLS, which says in the clear whom it wants
            assert b"HTTP/" not in hello
            assert not [token for token in tokens if token[-40:] in hello]
            # With the agents' own key it would read the request: what there is to hear, it hears.
            assert b"HTTP/" in told(other, stolen)
    finally:
        own_cluster.kubectl("delete", "namespace", "strangers", timeout=120)


def shown(gateway: Pod) -> bytes:
    """What a gateway shows to agents."""
    return Path(f"/proc/{gateway.process.pid}/root/etc/mcp-gpu/agents/token").read_bytes()


def test_a_gateway_with_a_generated_certificate_is_checked_by_its_authority(
    release: Release, own_cluster: Cluster
) -> None:
    release.set("gateway.tls.source=generated")
    answer = release.inventory(token=release.account_token())
    assert ways(answer) == everywhere(own_cluster, "http")
    for url in (f"https://{release.address}:{PORT}/healthz", f"http://{release.address}:{PORT}/"):
        with pytest.raises(CommandError):
            own_cluster.run_in("n1", ["curl", "-sf", "--noproxy", "*", "-m", "5", url])


@pytest.mark.parametrize("flags", PREDECESSOR[:-1])
def test_the_installs_of_the_predecessor_work_as_written(
    own_cluster: Cluster, built: Image, flags: str
) -> None:
    """Its installs and its curl, with no more than auth.mode=none: no simulated GPU, and no name
    of an image. The last of the three makes the same objects as the first."""
    own_cluster.alias_image(built, f"docker.io/library/mcp-gpu:{__version__}")
    release = Release(own_cluster, built, "gpu-mcp", "typed")
    with removed(own_cluster, "gpu-mcp", "typed"):
        words = ["install", "gpu-mcp", str(CHART), "--namespace", "typed", "--create-namespace"]
        notes = own_cluster.helm(*words, "--set", flags, "--set", "auth.mode=none")
        assert "WARNING: auth.mode is none" in notes
        release.ready()
        with forwarded(release) as port:
            curl = ["curl", "-s", "--noproxy", "*", "-X", "POST", f"http://localhost:{port}/mcp"]
            said = run(*curl, "-H", "Content-Type: application/json", "-d", json.dumps(CALL))
        answer = json.loads(said)["result"]["structuredContent"]
        assert ways(answer) == everywhere(own_cluster, "exec" if "stdio" in flags else "http")
        logs = release.kubectl("logs", f"deployment/{release.fullname}-gateway")
        assert "NO AUTHENTICATION" in logs

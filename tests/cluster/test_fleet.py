"""The chart and the image on a real cluster: every node answers, over every path, broken or not."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import faults
from cluster.cluster import Cluster
from cluster.images import Image
from cluster.process import CommandError, wait
from cluster.release import CALL, Release, everywhere, image, installed, ways
from mcp_gpu import attach
from support import node as foreign

NAMESPACE = "gpu-diagnostics"

N1 = "gateway.nodeSelector.kubernetes\\.io/hostname=n1"
"""The gateway beside n2 in its subnet, and across from n3."""


@pytest.fixture(scope="module")
def built(own_cluster: Cluster) -> Image:
    return image(own_cluster)


@pytest.fixture(scope="module")
def release(own_cluster: Cluster, built: Image) -> Iterator[Release]:
    with installed(own_cluster, built, "gpu", NAMESPACE, N1) as found:
        yield found


@pytest.mark.parametrize("address", ["ip", "dns"])
def test_every_node_answers_over_http_through_the_service(
    release: Release, own_cluster: Cluster, address: str
) -> None:
    release.set(N1, f"gateway.agentAddress={address}", "gateway.routingMode=http")
    if address == "dns":
        # CoreDNS may learn of a new Service late, where the API server was away before.
        wait(
            "the agents' names",
            lambda: not release.inventory(token=release.token())["failures"],
            90,
        )
    answer = release.inventory(token=release.token())
    assert ways(answer) == everywhere(own_cluster, "http"), answer["failures"]
    assert answer["simulated"] is True
    routed = release.routed()
    assert routed["failed"] == 0
    assert routed["by_path"] == {"http": len(own_cluster.nodes)}


def test_a_caller_without_the_token_is_refused(release: Release) -> None:
    release.set(N1)
    for headers in ((), ("Authorization: Bearer wrong",)):
        body, _, status = release.post(*headers).rpartition("\n")
        assert status == "401"
        assert "bearer token" in body
    agent = release.agents()[0]
    url = f"https://{agent.address}:8080/mcp"
    token = release.token()
    shown = ["-H", f"Authorization: Bearer {token}", "-H", "Content-Type: application/json"]
    curl = ["curl", "-sk", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", *shown]
    # A client's token does not open agents.
    assert agent.run(*curl, "-d", json.dumps(CALL), url) == "401"


def test_what_the_chart_generates_outlives_upgrades(release: Release) -> None:
    def made() -> tuple[str, ...]:
        certificate = f"{release.fullname}-agent-tls"
        secrets = (release.secret(certificate, key) for key in ("tls.crt", "ca.crt"))
        return (release.token(), *secrets)

    before = made()
    release.set(N1, "log.level=debug")
    assert made() == before
    release.set(N1)


@pytest.mark.parametrize("mode", ["http", "portforward", "exec", "auto"])
def test_each_routing_mode_reaches_every_node_of_a_healthy_cluster(
    release: Release, own_cluster: Cluster, mode: str
) -> None:
    release.set(N1, f"gateway.routingMode={mode}")
    path = "http" if mode == "auto" else mode
    assert ways(release.inventory(token=release.token())) == everywhere(own_cluster, path)


def test_two_gateways_of_a_release_with_a_long_name_answer_alike(
    own_cluster: Cluster, built: Image
) -> None:
    name = "gpus-of-the-second-hall-installed-on-a-friday-evening"
    with installed(own_cluster, built, name, "hall-2", "gateway.replicas=2") as release:
        assert release.fullname == name[:52]
        token = release.token()
        gateways = release.gateways()
        assert len({gateway.name for gateway in gateways}) == 2
        for gateway in gateways:
            release.address = gateway.address
            answer = release.inventory(token=token)
            assert ways(answer) == everywhere(own_cluster, "http")


def test_http_alone_loses_the_nodes_that_the_source_destination_check_cuts_off(
    release: Release, own_cluster: Cluster
) -> None:
    """What the predecessor showed on AWS: the same node answers, the same subnet times out."""
    release.set(N1, "gateway.routingMode=http")
    with faults.source_destination_check(own_cluster):
        answer = release.inventory(token=release.token())
    assert ways(answer) == {"n1": "http", "n2": "unreachable", "n3": "http"}
    assert answer["coverage"]["nodes_known"] == 3
    assert answer["coverage"]["nodes_answered"] == 2


@pytest.mark.parametrize("mode", ["portforward", "exec", "auto"])
def test_the_source_destination_check_costs_no_node_where_a_stream_may_be_used(
    release: Release, own_cluster: Cluster, mode: str
) -> None:
    release.set(N1, f"gateway.routingMode={mode}")
    token = release.token()
    with faults.source_destination_check(own_cluster):
        first, second = (ways(release.inventory(token=token)) for _ in range(2))
    expected = everywhere(own_cluster, mode)
    if mode == "auto":
        expected = {"n1": "http", "n2": "portforward", "n3": "http"}
    assert first == second == expected


def test_agents_without_a_port_are_reached_by_exec(release: Release, own_cluster: Cluster) -> None:
    release.set(N1, "transport.mode=stdio")
    assert ways(release.inventory(token=release.token())) == everywhere(own_cluster, "exec")
    for agent in release.agents():
        listening = agent.run("ss", "-Hltn")
        assert listening == ""


def test_without_the_right_to_exec_nodes_beyond_http_are_denied_by_name(
    release: Release, own_cluster: Cluster
) -> None:
    release.set(N1, "gateway.routingMode=exec")
    token = release.token()
    release.restart_gateway()  # with no stream from before
    role = f"rolebinding/{release.fullname}-gateway"
    account = f"--as=system:serviceaccount:{NAMESPACE}:{release.fullname}-gateway"

    def revoked() -> bool:
        try:
            release.kubectl("auth", "can-i", account, "create", "pods/exec")
        except CommandError:
            return True
        return False

    with faults.without(own_cluster, NAMESPACE, role):
        wait("the right to be gone", revoked, 60)
        # The watch goes on, since it was authorised when it began; new streams are not.
        answer = release.inventory(token=token)
        assert set(ways(answer).values()) == {"denied"}
        words = {failure["message"] for failure in answer["failures"]}
        assert all("pods/exec" in text for text in words), words


@pytest.mark.node
@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_mcp_inspector_works_through_kubectl_exec(
    release: Release, pytestconfig: pytest.Config, tmp_path: Path, era: str
) -> None:
    foreign.require(pytestconfig, foreign.INSPECTOR)
    release.set(N1, "gateway.routingMode=http")  # so that every relay is this test's
    pod = release.agents()[1]
    words = ["-n", NAMESPACE, "exec", "-i", pod.name, "--", "mcp-gpu", "attach"]
    command, *arguments = release.cluster.command("kubectl", *words)
    configuration = tmp_path / "mcp.json"
    gpu = {"command": command, "args": arguments}
    configuration.write_text(json.dumps({"mcpServers": {"gpu": gpu}}))
    inspect = [str(foreign.INSPECTOR), "--cli", "--config", str(configuration), "--server", "gpu"]
    inspect += ["--protocol-era", era]
    done = subprocess.run(
        [*inspect, "--method", "tools/call", "--tool-name", "get_gpu_inventory"],
        capture_output=True, text=True, timeout=120, env=foreign.environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["structuredContent"]["node"] == pod.node.name
    wait("the relay's end", lambda: not release.relays(), 30)


def test_a_session_by_hand_outlasts_a_gateways_idle_limit(release: Release) -> None:
    """Here twice a limit of a second: by default it is five minutes, and a person's four hours."""
    assert attach.PERSON_IDLE_SECONDS > 2 * attach.GATEWAY_IDLE_SECONDS
    pod = release.agents()[0]
    request = json.dumps({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-11-25", "capabilities": {},
                   "clientInfo": {"name": "by hand", "version": "1"}},
    })  # fmt: skip
    words = ["-n", NAMESPACE, "exec", "-i", pod.name, "--", "mcp-gpu", "attach"]
    kubectl = release.cluster.command("kubectl", *words)
    by_gateway = [*kubectl, "--relay-only", "--idle", "1"]
    with subprocess.Popen(
        kubectl, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as by_hand:
        assert by_hand.stdin is not None
        assert by_hand.stdout is not None
        try:
            for _ in range(2):
                with subprocess.Popen(
                    by_gateway, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
                ) as idle:
                    assert idle.wait(60) == 0
            by_hand.stdin.write(request + "\n")
            by_hand.stdin.flush()
            answer = json.loads(by_hand.stdout.readline())
            assert answer["result"]["protocolVersion"] == "2025-11-25"
        finally:
            by_hand.stdin.close()
            by_hand.terminate()


def test_an_agent_runs_as_nobody_and_writes_nothing_to_its_image(release: Release) -> None:
    for agent in (*release.agents(), release.gateway()):
        status = Path(f"/proc/{agent.process.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split() == ["65532"] * 4
        assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
        assert fields["NoNewPrivs"] == "1"
        assert os.statvfs(f"/proc/{agent.process.pid}/root").f_flag & os.ST_RDONLY

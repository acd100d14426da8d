"""A path to every agent is found at once, left when it dies, and taken again when it is mended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from cluster import faults
from cluster.cluster import Cluster
from cluster.crowd import crowd
from cluster.process import wait
from cluster.release import Release, image, installed, ways

NAMESPACE = "reachability"
CROWDED = "crowded"

N1 = "gateway.nodeSelector.kubernetes\\.io/hostname=n1"
"""The gateway beside n2 in its subnet, and across from n3."""

HEALED_SECONDS = 90
"""Bound for a mended path to be taken again; how long it takes is `make bench-cluster`'s."""

CALLS = 200

HTTP = {"n1": "http", "n2": "http", "n3": "http"}
STREAMS = {"portforward", "exec"}
"""What may carry where HTTP does not. The first is preferred and has a head start, which on a busy
machine may not be enough."""


@pytest.fixture(scope="module")
def release(own_cluster: Cluster) -> Iterator[Release]:
    """Nothing is set but where the gateway runs."""
    with installed(own_cluster, image(own_cluster), "r", NAMESPACE, N1, "auth.mode=none") as found:
        yield found


@pytest.fixture
def fresh(release: Release) -> Release:
    """With a gateway that knows nothing yet, on a healthy network."""
    release.restart_gateway()
    return release


def checked(answer: dict[str, Any], streams: set[str] = STREAMS) -> bool:
    """Whether it came as it should with the source/destination check on: n2 by a stream."""
    found = ways(answer)
    return found.pop("n2") in streams and found == {"n1": "http", "n3": "http"}


def healed(release: Release) -> None:
    """Every node comes over HTTP again, and not one call fails on the way there."""

    def over_http() -> bool:
        answer = release.inventory()
        assert not answer["failures"]
        return ways(answer) == HTTP

    wait("every node over HTTP", over_http, HEALED_SECONDS)


def test_the_first_call_of_a_new_gateway_finds_every_node(
    own_cluster: Cluster, fresh: Release
) -> None:
    with faults.source_destination_check(own_cluster):
        fresh.restart_gateway()
        for _ in range(2):
            answer = fresh.inventory()
            assert checked(answer), answer["failures"]
            assert answer["ways"]["http"] == 2
    healed(fresh)


@pytest.mark.parametrize("fault", [faults.source_destination_check, faults.cut_pod_network])
def test_a_network_that_breaks_and_heals_costs_no_call(
    own_cluster: Cluster, release: Release, fault: Any
) -> None:
    healed(release)

    def answers() -> list[dict[str, Any]]:
        return [release.inventory() for _ in range(CALLS)]

    def broken(_: int) -> None:
        with fault(own_cluster):
            wait("n2 over another path", lambda: ways(release.inventory())["n2"] != "http", 60)

    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(answers)
        broken(0)
        for answer in calls.result():
            assert not answer["failures"]
            assert sorted(ways(answer)) == own_cluster.nodes
    healed(release)


def test_vxlan_everywhere_brings_http_back(own_cluster: Cluster, fresh: Release) -> None:
    with faults.source_destination_check(own_cluster):
        wait("n2 over another path", lambda: checked(fresh.inventory()), HEALED_SECONDS)
        with faults.tunnelled(own_cluster):
            healed(fresh)
    healed(fresh)


def streams_asked(cluster: Cluster) -> int:
    """How many requests the API server has had for streams into pods, or whether they may be."""
    lines = cluster.kubectl("get", "--raw", "/metrics").splitlines()
    of_interest = ('subresource="exec"', 'subresource="portforward"', '"selfsubjectaccessreviews"')
    return sum(
        int(float(line.rpartition(" ")[2]))
        for line in lines
        if line.startswith("apiserver_request_total{") and any(each in line for each in of_interest)
    )


def test_without_exec_a_forwarded_port_carries_on(own_cluster: Cluster, fresh: Release) -> None:
    role = f"{fresh.fullname}-gateway"
    with (
        faults.revoked(own_cluster, NAMESPACE, role, ["pods/exec"]),
        faults.source_destination_check(own_cluster),
    ):
        fresh.restart_gateway()
        assert checked(fresh.inventory(), {"portforward"})
    healed(fresh)


def test_a_node_behind_three_closed_paths_is_named_with_each_reason(
    own_cluster: Cluster, fresh: Release
) -> None:
    role = f"{fresh.fullname}-gateway"
    both = ["pods/exec", "pods/portforward"]
    with (
        faults.revoked(own_cluster, NAMESPACE, role, both),
        faults.source_destination_check(own_cluster),
    ):
        fresh.restart_gateway()
        first = fresh.inventory()
        before = streams_asked(own_cluster)
        for answer in (first, *(fresh.inventory() for _ in range(20))):
            assert ways(answer)["n1"] == ways(answer)["n3"] == "http"
            (failure,) = answer["failures"]
            assert failure["node"] == "n2"
            tried = {attempt["via"]: attempt["reason"] for attempt in failure["attempts"]}
            assert tried.keys() == {"http", "portforward", "exec"}
            assert tried["portforward"] == tried["exec"] == "denied"
            assert tried["http"] in {"unreachable", "timeout"}
        assert streams_asked(own_cluster) - before <= 4
    wait("n2 again", lambda: not fresh.inventory()["failures"], HEALED_SECONDS)


AGENTS = 50
EACH = 5
"""Agents of the fifty that are dead in each of three ways."""

WATCHES = 3
"""Connections that a gateway always has: of EndpointSlices, pods and nodes."""


@pytest.fixture(scope="module")
def idling(own_cluster: Cluster) -> Iterator[Release]:
    """Its connections are closed soon after a call, so that what is left over can be counted."""
    idle = {path: {"idle_seconds": 2} for path in ("http", "portforward", "exec")}
    options = json.dumps(idle).translate({ord(c): f"\\{c}" for c in ",{}"})
    values = [
        "gateway.extraEnv[0].name=MCP_GPU_TRANSPORT_OPTIONS",
        f"gateway.extraEnv[0].value={options}",
    ]
    every = image(own_cluster)
    with installed(own_cluster, every, "c", CROWDED, N1, "auth.mode=none", *values) as found:
        yield found


def test_a_third_of_fifty_agents_dead_costs_the_others_nothing(idling: Release) -> None:
    def answered() -> bool:
        return bool(idling.inventory()["coverage"]["nodes_answered"] == AGENTS + 3)

    def idle() -> bool:
        return idling.sockets() == WATCHES and not idling.relays(*found)

    with crowd(idling, AGENTS) as found, ExitStack() as faulty:
        wait("all agents", answered, HEALED_SECONDS)
        wait("nothing open", idle, HEALED_SECONDS)
        stopped, gone, killed = (found[n * EACH : (n + 1) * EACH] for n in range(3))
        for pod in stopped:
            faulty.enter_context(faults.paused(pod))
        for pod in gone:
            # The controller starts another one, which nobody has been told of.
            idling.kubectl("label", "pod", pod.name, "app=nobody", "--overwrite")
        names = [pod.name for pod in gone]
        idling.kubectl("delete", "pod", *names, "--grace-period=1", timeout=180)
        for pod in killed:
            faulty.enter_context(faults.crashing(idling.cluster, pod))
        dead = {pod.name for pod in (*stopped, *gone, *killed)}
        for _ in range(CALLS // 2):
            answer = idling.inventory()  # one that is over its deadline fails here
            found_dead = {failure["node"] for failure in answer["failures"]}
            # A container that crashed is started again now and then, and so is one that the
            # kubelet has found stopped for too long.
            assert found_dead <= dead, answer["failures"]
            assert set(names) <= found_dead
            assert answer["coverage"]["nodes_known"] == AGENTS + 3
        faulty.close()
        wait("nothing open again", idle, HEALED_SECONDS)

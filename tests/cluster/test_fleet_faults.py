"""What breaks under a gateway costs only the nodes that it breaks, and all is whole again after."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from cluster import faults
from cluster.cluster import Cluster
from cluster.plan import API_SERVICE_ADDRESS
from cluster.pods import Pod
from cluster.process import Process, kill, wait
from cluster.release import Release, image, installed, ways

NAMESPACE = "fleet-faults"

N1 = "gateway.nodeSelector.kubernetes\\.io/hostname=n1"

WELL = {"http", "portforward", "exec"}
"""What an answer may have come by."""

WHOLE_SECONDS = 90
"""Bound for every node to answer again."""

IDLE = {"idle_seconds": 2}
"""Connections without a call are closed soon, so that what is left over can be told from them."""


@pytest.fixture(scope="module")
def release(own_cluster: Cluster) -> Iterator[Release]:
    with installed(own_cluster, image(own_cluster), "f", NAMESPACE, *values("auto")) as found:
        yield found


def values(mode: str) -> list[str]:
    paths = ("http", "portforward", "exec") if mode == "auto" else (mode,)
    options = (
        json.dumps(dict.fromkeys(paths, IDLE))
        .replace(",", "\\,")
        .replace("{", "\\{")
        .replace("}", "\\}")
    )
    return [
        N1,
        "auth.mode=none",
        f"gateway.routingMode={mode}",
        "gateway.extraEnv[0].name=MCP_GPU_TRANSPORT_OPTIONS",
        f"gateway.extraEnv[0].value={options}",
    ]


@pytest.fixture(scope="module", params=["auto", "exec"])
def mode(request: pytest.FixtureRequest, release: Release) -> str:
    release.set(*values(request.param))
    return str(request.param)


def whole(release: Release) -> bool:
    answer = release.inventory()
    watching = answer["coverage"]["discovery_problem"] is None
    return watching and sorted(ways(answer)) == release.cluster.nodes and not answer["failures"]


@pytest.fixture
def before(release: Release, mode: str) -> Iterator[None]:
    """Every test begins and ends with a whole fleet, no relay, and no socket but the watches'.

    A task that is left over in a gateway holds one of these, or a place in one of its limits.
    """
    wait("a whole fleet", lambda: whole(release), WHOLE_SECONDS)
    wait("idle paths closed", lambda: release.sockets() == WATCHES, WHOLE_SECONDS)
    assert not release.relays()
    yield
    wait("a whole fleet again", lambda: whole(release), WHOLE_SECONDS)
    wait("no relay left in any pod", lambda: not release.relays(), WHOLE_SECONDS)
    wait("no socket left in the gateway", lambda: release.sockets() == WATCHES, WHOLE_SECONDS)


WATCHES = 3
"""Of EndpointSlices, pods and nodes: connections that a gateway always has."""


def calls(agent: Pod) -> float:
    """How many calls of tools that agent has had, by its own account."""
    metrics = agent.run("curl", "-s", "-m", "10", f"http://{agent.address}:8080/metrics")
    lines = [line for line in metrics.splitlines() if line.startswith("mcp_gpu_tool_calls_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def called_during(release: Release, fault: AbstractContextManager[Any]) -> list[dict[str, Any]]:
    """Three answers one after the other while it is broken. One that takes longer than a
    gateway's deadline is cut off, and fails the test."""
    with fault:
        return [release.inventory() for _ in range(3)]


Fault = Callable[[Release], AbstractContextManager[Any]]

FAULTS: dict[str, tuple[Fault, dict[str, dict[str, set[str]]]]] = {
    # The reasons that a lost node may have, by routing mode; a node not named answers.
    "paused agent": (
        lambda r: faults.paused(r.agents()[1]),
        {"auto": {"n2": {"timeout"}}, "exec": {"n2": {"timeout"}}},
    ),
    "kubelet down": (
        lambda r: faults.stopped(r.cluster.node("n2"), "kubelet"),
        {"auto": {}, "exec": {"n2": {"unreachable"}}},
    ),
    "node unplugged": (
        lambda r: faults.unplugged(r.cluster, "n2"),
        {"auto": {"n2": {"unreachable", "timeout"}}, "exec": {"n2": {"unreachable", "timeout"}}},
    ),
    "API server down": (
        lambda r: faults.stopped(r.cluster.control, "kube-apiserver"),
        # A stream that is open when it goes may end, or just fall silent.
        {
            "auto": {},
            "exec": {n: {"unreachable", "timeout", "broken"} for n in ("n1", "n2", "n3")},
        },
    ),
    "etcd down": (
        lambda r: faults.stopped(r.cluster.control, "etcd"),
        # New requests of a service account are refused, since nobody can look its pod up.
        {
            "auto": {},
            "exec": {n: {"denied", "unreachable", "timeout", "broken"} for n in ("n1", "n2", "n3")},
        },
    ),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.usefixtures("before")
def test_a_fault_costs_only_the_nodes_it_breaks(release: Release, mode: str, name: str) -> None:
    fault, expected = FAULTS[name]
    lost, nodes = expected[mode], release.cluster.nodes
    for answer in called_during(release, fault(release)):
        found = ways(answer)
        assert sorted(found) == nodes
        for node, way in found.items():
            assert way in lost.get(node, WELL), (node, answer["failures"])


@pytest.mark.usefixtures("before")
def test_a_killed_agent_is_named_or_back(release: Release) -> None:
    faults.killed(release.agents()[1])
    found = ways(release.inventory())
    assert found["n2"] in WELL | {"unreachable", "not_running", "broken"}
    assert {found["n1"], found["n3"]} <= WELL


@pytest.mark.usefixtures("before")
def test_a_replaced_agent_is_found_after_the_past_was_compacted(release: Release) -> None:
    faults.compact(release.cluster)  # restarts the API server
    new = faults.replaced(release.cluster, release.agents()[2], release.selector("agent"))

    def answers() -> bool:
        return ways(release.inventory()).get("n3") in WELL

    wait("the new agent", answers, WHOLE_SECONDS)
    assert calls(new) > 0


@pytest.mark.usefixtures("before")
def test_streams_cut_in_mid_answer_cost_no_node(release: Release, mode: str) -> None:
    cluster = release.cluster
    # So that one node needs a stream where HTTP is preferred, too.
    check = faults.source_destination_check(cluster) if mode == "auto" else nullcontext()
    with check, ThreadPoolExecutor(1) as pool:
        assert {"portforward", "exec"} & set(ways(release.inventory()).values())
        gateway = release.gateway()
        streams_cut = 0
        for _ in range(10):
            release.inventory()  # opens what was cut while nobody asked: a start is no answer
            call = pool.submit(release.inventory)
            streams_cut += connections_cut(gateway) if mode == "auto" else relays_cut(release)
            answer = call.result()
            assert sorted(ways(answer)) == cluster.nodes
            assert not answer["failures"]
    assert streams_cut


def relays_cut(release: Release) -> int:
    """Kill what exec streams have started in the agents' pods; how many there were."""
    found = [process for pid in release.relays() if (process := Process.of(pid))]
    kill(found)
    return len(found)


def connections_cut(gateway: Pod) -> int:
    """Reset the gateway's connections to the API server, the watches' too; how many there were."""
    return len(gateway.run("ss", "-KHtn", "dst", API_SERVICE_ADDRESS).splitlines())

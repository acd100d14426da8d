"""Whose GPUs and processes are whose is told as real kubelets and a real kernel have it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster import faults
from cluster.cluster import Cluster
from cluster.deviceplugin import DevicePlugin, device_plugin, given_to
from cluster.pods import Pod
from cluster.process import wait
from cluster.release import Release, call, image, installed
from cluster.resourcedriver import DRIVER, published_gpus, resource_driver
from cluster.simulation import Simulation, gpus
from cluster.workload import Workload, workload

NAMESPACE = "allocation"
JOBS = "allocation-jobs"

ON_N2 = "gateway.nodeSelector.kubernetes\\.io/hostname=n2"
"""Away from the node that is cut off."""

GPU = "nvidia.com/gpu"
MIG = "nvidia.com/mig-1g.10gb"
SHARED = "nvidia.com/gpu.shared"

H100 = 'profile = "h100"\ngpus = 4\nload = 0.0'

SIMULATION = Simulation(
    {
        "n1": H100,
        "n2": f'{H100}\n[[nodes.mig]]\ngpu = 0\nprofile = "1g.10gb"\ncount = 3',
        "n3": H100,
    }
)

TOLD_SECONDS = 30
"""Bound for an agent to have asked its kubelet again, which it does every five seconds at most."""

ONLOOKER = Path(__file__).with_name("onlooker.py")

NO_PROCESS = 2**22
"""More than any kernel numbers them to."""

Node = dict[str, Any]


@pytest.fixture(scope="module")
def release(own_cluster: Cluster) -> Iterator[Release]:
    values = ["agent.privileges=root", ON_N2, SIMULATION.value]
    built = image(own_cluster)
    with installed(own_cluster, built, "a", NAMESPACE, *values, level="privileged") as found:
        yield found


@pytest.fixture(scope="module")
def boards(release: Release) -> dict[str, list[dict[str, Any]]]:
    """Node to GPUs, as their agents list them."""
    return gpus(release)


@pytest.fixture(scope="module")
def plugins(
    own_cluster: Cluster, boards: dict[str, list[dict[str, Any]]]
) -> Iterator[dict[tuple[str, str], DevicePlugin]]:
    """Ids in every form that a kubelet gives out: n1's GPUs by UUID; n2's MIG instances, and one
    GPU of it as two replicas; the first two of n3's by index."""
    ids = {
        ("n1", GPU): [board["uuid"] for board in boards["n1"]],
        ("n2", MIG): [mig["uuid"] for mig in boards["n2"][0]["mig_devices"]],
        ("n2", SHARED): [f"{boards['n2'][1]['uuid']}::{replica}" for replica in range(2)],
        ("n3", GPU): ["0", "1"],
    }
    with ExitStack() as stack:
        yield {
            (node, resource): stack.enter_context(
                device_plugin(own_cluster, node, resource, ids[node, resource])
            )
            for node, resource in ids
        }


@pytest.fixture(scope="module")
def jobs(
    own_cluster: Cluster, plugins: dict[tuple[str, str], DevicePlugin]
) -> Iterator[dict[str, Pod]]:
    """Running pods that asked for devices, by name."""
    asked = {
        "two": ("n1", {GPU: "2"}),
        "one": ("n1", {GPU: "1"}),
        "small": ("n2", {MIG: "1"}),
        "smaller": ("n2", {MIG: "1"}),
        "half": ("n2", {SHARED: "1"}),
        "other-half": ("n2", {SHARED: "1"}),
        "by-index": ("n3", {GPU: "1"}),
        "none": ("n1", {"cpu": "1"}),
    }
    with workload(own_cluster, JOBS) as space:
        for name, (node, limits) in asked.items():
            space.start(name, node, limits=limits)
        yield {name: space.running(name) for name in asked}


@pytest.fixture
def space(own_cluster: Cluster, jobs: dict[str, Pod]) -> Workload:
    """To start more of them."""
    return Workload(own_cluster, JOBS)


def allocation(release: Release) -> dict[str, Node]:
    """By node."""
    request = call("get_pod_gpu_allocation", detail="full")
    answer = release.ask(request, token=release.token())["structuredContent"]
    assert not answer["failures"]
    return {node["node"]: node for node in answer["nodes"]}


def held(answer: dict[str, Node]) -> dict[str, list[str]]:
    """Pods of the jobs' namespace that hold devices, to their ids."""
    return {
        pod["pod"]: sorted(
            device["id"] for container in pod["containers"] for device in container["devices"]
        )
        for node in answer.values()
        for pod in node["pods"]
        if pod["namespace"] == JOBS
    }


def allocated(jobs: dict[str, Pod]) -> dict[str, list[str]]:
    """What the kubelets gave to whom, by what the plugins put into the containers."""
    return {name: given for name, pod in jobs.items() if (given := given_to(pod.process.pid))}


def agreed(release: Release, jobs: dict[str, Pod]) -> dict[str, Node]:
    """The answer, once it says what was allocated."""
    truth = allocated(jobs)
    found: dict[str, Node] = {}

    def same() -> bool:
        found.update(allocation(release))
        return held(found) == truth

    wait(f"the allocation of {truth}", same, TOLD_SECONDS)
    return found


def holding(answer: dict[str, Node], node: str) -> dict[int, tuple[int | None, bool | None]]:
    """Index of a GPU to how many hold it, and whether it is free."""
    return {gpu["index"]: (gpu["holders"], gpu["free"]) for gpu in answer[node]["gpus"]}


def test_what_is_told_is_what_kubelets_allocated(
    release: Release, jobs: dict[str, Pod], boards: dict[str, list[dict[str, Any]]]
) -> None:
    answer = agreed(release, jobs)
    assert sorted(held(answer)) == sorted(set(jobs) - {"none"})
    assert {node["source"] for node in answer.values()} == {"pod_resources"}
    assert answer["n1"]["allocatable"] == {GPU: 4}
    assert answer["n2"]["allocatable"] == {MIG: 3, SHARED: 2}
    indices = {node: {b["uuid"]: b["index"] for b in found} for node, found in boards.items()}
    instances = {mig["uuid"] for mig in boards["n2"][0]["mig_devices"]}
    for name, node in answer.items():
        for pod in node["pods"]:
            assert pod["pod_uid"] == jobs[pod["pod"]].uid
            assert (pod["phase"], pod["guess"]) == ("Running", False)
            for device in pod["containers"][0]["devices"]:
                assert device["gpu_index"] == indices[name][device["gpu_uuid"]], device
                assert not device["why"]
                if name == "n1":
                    assert device["id"] == device["gpu_uuid"]
                if device["resource"] == MIG:
                    assert device["id"] == device["mig_uuid"] in instances
                    assert (device["gpu_index"], device["mig_profile"]) == (0, "1g.10gb")
                if device["resource"] == SHARED:
                    assert device["id"] == f"{device['gpu_uuid']}::{device['replica']}"
                if name == "n3":
                    assert device["id"] == str(device["gpu_index"])


def test_all_holders_of_a_gpu_are_told_and_who_holds_none_is_not(
    release: Release, jobs: dict[str, Pod]
) -> None:
    answer = agreed(release, jobs)
    assert sorted(holding(answer, "n1").values()) == [(0, True), (1, False), (1, False), (1, False)]
    assert holding(answer, "n2") == {
        0: (2, False),
        1: (2, False),
        2: (0, True),
        3: (0, True),
    }
    cut, shared, *_ = answer["n2"]["gpus"]
    assert shared["shared"]
    assert sorted(mig["free"] for mig in cut["mig"]) == [False, False, True]
    index = int(allocated(jobs)["by-index"][0])
    assert holding(answer, "n3")[index] == (1, False)


def test_a_kubelet_that_is_started_again_changes_nothing(
    release: Release, jobs: dict[str, Pod], plugins: dict[tuple[str, str], DevicePlugin]
) -> None:
    """It answers before the API server has told it of its pods: here that takes a while."""
    node = release.cluster.node("n1")
    before = agreed(release, jobs)["n1"]["pods"]

    def because(why: str) -> Callable[[], bool]:
        def told() -> bool:
            found = allocation(release)["n1"]
            assert (found["source"], found["pods"]) == ("pod_resources", before)
            return why in found["why"]

        return told

    def as_before() -> bool:
        found = allocation(release)["n1"]
        assert (found["source"], found["pods"]) == ("pod_resources", before)
        return not found["why"] and found["allocatable"] == {GPU: 4}

    with ExitStack() as cut:
        with faults.stopped(node, "kubelet"):
            silent = "kubelet running"
            wait("the silence of the kubelet told", because(silent), TOLD_SECONDS)
            cut.enter_context(faults.cut_from_api_server(release.cluster, "n1"))
        unaware = "does not know its pods yet"
        wait("what the new kubelet lacks told", because(unaware), TOLD_SECONDS)
    plugins["n1", GPU].wait_registered()
    wait("the word of the new kubelet", as_before, TOLD_SECONDS)


def test_a_pod_that_is_over_or_gone_holds_nothing(
    release: Release, jobs: dict[str, Pod], space: Workload
) -> None:
    space.start("done", "n1", command=["true"], limits={GPU: "1"})
    space.start("gone", "n3", limits={GPU: "1"})
    gone = space.running("gone")
    assert held(agreed(release, {**jobs, "gone": gone}))["gone"] == given_to(gone.process.pid)
    space.wait_phase("done", "Succeeded")
    space.delete("gone")
    answer = agreed(release, jobs)
    assert sorted(holding(answer, "n1").values())[0] == (0, True)
    assert sorted(holding(answer, "n3").values()) == [(0, True)] * 3 + [(1, False)]


def test_claims_are_the_gpus_that_their_driver_prepared(
    release: Release, jobs: dict[str, Pod], boards: dict[str, list[dict[str, Any]]], space: Workload
) -> None:
    devices = published_gpus(boards["n3"][2:])
    with resource_driver(release.cluster, "n3", devices) as driver:
        for name in ("claimed", "claimed-too"):
            exactly = {"deviceClassName": DRIVER}
            space.apply(
                {
                    "apiVersion": "resource.k8s.io/v1",
                    "kind": "ResourceClaim",
                    "metadata": {"name": name},
                    "spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}},
                }
            )
            space.start(name, claim=name)
        for name in ("claimed", "claimed-too"):
            space.running(name)
        prepared = driver.prepared()
        assert sorted(prepared.values()) == sorted(each["uuid"] for each in devices.values())
        found: dict[str, Any] = {}

        def told() -> bool:
            answer = allocation(release)
            found.update(
                {
                    pod["pod"]: pod["containers"][0]["claims"][0]
                    for pod in answer["n3"]["pods"]
                    if pod["containers"][0]["claims"]
                }
            )
            return len(found) == len(prepared)

        wait("both claims told", told, TOLD_SECONDS)
        for pod, claim in found.items():
            assert (claim["namespace"], claim["name"], claim["driver"]) == (JOBS, pod, DRIVER)
            assert claim["gpu_uuid"] == prepared[pod], claim
            assert boards["n3"][claim["gpu_index"]]["uuid"] == prepared[pod]
        held_now = holding(allocation(release), "n3")
        assert (held_now[2], held_now[3]) == ((1, False), (1, False))
        space.delete("claimed", "claimed-too")
        space.kubectl("delete", "resourceclaim", "claimed", "claimed-too")


@dataclass(frozen=True)
class Crew:
    """Processes of n1 that a driver might list: GPU index and pid of each."""

    holder: tuple[int, int]
    """On the GPU that its pod was given."""
    stranger: tuple[int, int]
    """Of a pod that was given none."""
    service: tuple[int, int]
    """Of the node: its kubelet."""
    gone: tuple[int, int]


@pytest.fixture
def crew(release: Release, jobs: dict[str, Pod], boards: dict[str, list[dict[str, Any]]]) -> Crew:
    (uuid,) = given_to(jobs["one"].process.pid)
    own = next(board["index"] for board in boards["n1"] if board["uuid"] == uuid)
    other, another, *_ = (index for index in range(4) if index != own)
    kubelet = release.cluster.node("n1").process("kubelet")
    assert kubelet is not None
    return Crew(
        (own, jobs["one"].process.pid),
        (other, jobs["none"].process.pid),
        (another, kubelet.pid),
        (another, NO_PROCESS),
    )


def onlooked(release: Release, crew: Crew) -> dict[str, Any]:
    """What the agent of n1 answers of them."""
    agent = next(pod for pod in release.agents() if pod.node.name == "n1")
    listed = (crew.holder, crew.stranger, crew.service, crew.gone)
    words = [str(number) for pair in listed for number in pair]
    python = ["exec", "-i", agent.name, "-c", "agent", "--", "/opt/mcp-gpu/bin/python", "-"]
    found: dict[str, Any] = json.loads(release.kubectl(*python, *words, stdin=ONLOOKER.read_text()))
    return found


def test_in_a_pid_namespace_of_its_own_an_agent_claims_nothing_of_processes(
    release: Release, crew: Crew
) -> None:
    found = onlooked(release, crew)
    assert (found["host_processes"], found["state"]) == (False, "unknown")
    assert (found["processes_count"], found["strays"], found["attention"]) == (None, None, [])
    for row in found["processes"]:
        for claim in ("command", "pod_uid", "container_id", "namespace", "pod", "stray"):
            assert row[claim] is None, row
            assert row["unavailable"][claim], row


def test_with_the_nodes_pids_each_process_is_its_own_pods(
    release: Release, jobs: dict[str, Pod], crew: Crew
) -> None:
    release.set("agent.privileges=processes", ON_N2, SIMULATION.value)
    found = onlooked(release, crew)
    assert found["host_processes"]
    rows = {row["pid"]: row for row in found["processes"]}
    holder, stranger = rows[crew.holder[1]], rows[crew.stranger[1]]
    assert (holder["pod_uid"], holder["stray"]) == (jobs["one"].uid, False)
    assert (holder["namespace"], holder["pod"], holder["container"]) == (JOBS, "one", "main")
    assert holder["container_id"] == jobs["one"].container
    assert (stranger["pod_uid"], stranger["stray"]) == (jobs["none"].uid, True)
    assert stranger["container_id"] == jobs["none"].container
    service = rows[crew.service[1]]
    assert (service["pod_uid"], service["stray"], service["command"]) == (None, True, "kubelet")
    gone = rows[crew.gone[1]]
    assert (gone["pod_uid"], gone["stray"]) == (None, None)
    assert "ended" in gone["unavailable"]["pod_uid"]

"""Twelve deaths of pods, staged side by side: what each is, and that it has happened.

What Kubernetes does to pods it does here for real. What happens to GPUs is simulated, on the very
GPU that a kubelet has given to the pod.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import faults
from cluster.deviceplugin import given_to
from cluster.process import wait
from cluster.release import Release, call
from cluster.simulation import Simulation, gpus
from cluster.workload import Workload

__all__ = ["DEATHS", "GPU", "JOBS", "NEIGHBOUR", "NEIGHBOURS", "SIMULATION", "Death", "staged"]

JOBS = "deaths"

GPU = "nvidia.com/gpu"

SIMULATION = Simulation(
    {
        "n1": 'profile = "h100"\ngpus = 8\nload = 0.0',
        "n2": 'profile = "h100"\ngpus = 2\nload = 0.0',
        "n3": 'profile = "h100"\ngpus = 1\nload = 0.0',
    }
)

UNTIL_TOLD = ("sh", "-c", "until [ -s /tmp/end ]; do sleep 0.1; done; exit $(cat /tmp/end)")
"""A program that ends when somebody writes its exit code into the file."""

ENDED_SECONDS = 180
"""Bound for all to be dead: a node is given up after 50 seconds, and of an emptyDir a kubelet
measures the size each minute."""

SEEN_SECONDS = 60
"""Bound for agents to have seen what went wrong with their GPUs."""

BACK_SECONDS = 60
"""Bound for the lost node to be ready again."""

AT_ONCE = [{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0}]
"""By default a pod stays with its lost node for five minutes."""


@dataclass(frozen=True)
class Death:
    """How a pod dies, and what is to be said of it.

    Args:
        pod: arguments of `Workload.start`.
        node: where it is; empty: the scheduler's choice.
        faults: of its GPU, as in docs/simulator.md but for the GPU's index.
        xids: that come with them.
        of_node: the faults are of the node's driver, and no GPU's.
        has_happened: by the pod's status.
    """

    category: str
    not_your_code: str
    pod: dict[str, Any]
    node: str = "n1"
    faults: tuple[str, ...] = ()
    xids: tuple[int, ...] = ()
    of_node: bool = False
    has_happened: Callable[[dict[str, Any]], bool] = lambda status: status.get("phase") == "Failed"


def _waits(status: dict[str, Any]) -> bool:
    statuses = status.get("containerStatuses", [])
    reasons = [each["state"].get("waiting", {}).get("reason") for each in statuses]
    return bool({"ErrImagePull", "ImagePullBackOff"} & set(reasons))


def _unplaced(status: dict[str, Any]) -> bool:
    return any(
        (each["type"], each["status"]) == ("PodScheduled", "False")
        for each in status.get("conditions", [])
    )


def _given_up(status: dict[str, Any]) -> bool:
    return any(each["type"] == "DisruptionTarget" for each in status.get("conditions", []))


HOLDER: dict[str, Any] = {"command": UNTIL_TOLD, "limits": {GPU: "1"}}


def _xid(code: int, text: str) -> str:
    return f'kind = "xid"\nxid = {code}\ntext = "{text}"\nprocess = "python3"'


DEATHS = {
    "exit-1": Death("your_code", "false", pod=HOLDER),
    "oom-killed": Death(
        "out_of_memory_host",
        "false",
        pod={
            "command": ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"],
            "limits": {"memory": "16Mi"},
        },
    ),
    "evicted": Death(
        "evicted",
        "false",
        pod={
            "command": ["sh", "-c", "dd if=/dev/zero of=/data/x bs=1M count=8; sleep infinity"],
            "volumes": [{"name": "data", "emptyDir": {"sizeLimit": "1Mi"}}],
            "container": {"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
        },
    ),
    "node-lost": Death(
        "node_lost",
        "true",
        node="n3",
        pod=HOLDER | {"tolerations": AT_ONCE},
        has_happened=_given_up,
    ),
    "xid-79": Death(
        "gpu_hardware",
        "true",
        pod=HOLDER,
        xids=(79,),
        faults=(_xid(79, "GPU has fallen off the bus."), 'kind = "lost"'),
    ),
    "xid-31": Death(
        "your_code",
        "false",
        pod=HOLDER,
        xids=(31,),
        faults=(
            _xid(
                31,
                "Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_0 faulted @ "
                "0x7f2a_00000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ",
            ),
        ),
    ),
    "xid-94-beside": Death("your_code", "false", pod=HOLDER),
    "ecc": Death(
        "gpu_memory_error",
        "true",
        pod=HOLDER,
        xids=(48,),
        faults=(
            _xid(48, "DBE (double bit error) ECC event"),
            'kind = "ecc"\nlocation = "dram"\nuncorrected = 1',
        ),
    ),
    "nvlink": Death(
        "nvlink",
        "true",
        pod=HOLDER,
        xids=(74,),
        faults=(
            _xid(
                74,
                "NVLink: fatal error detected on link 2(0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0)",
            ),
            'kind = "nvlink_down"\nlinks = [2]',
        ),
    ),
    "driver-mismatch": Death(
        "driver", "true", node="n2", pod=HOLDER, faults=('kind = "driver_mismatch"',), of_node=True
    ),
    "image-pull": Death(
        "image",
        "true",
        pod={"image": "localhost/no-such-image:1", "limits": {GPU: "1"}},
        has_happened=_waits,
    ),
    "unschedulable": Death(
        "scheduling", "true", node="", pod={"limits": {GPU: "99"}}, has_happened=_unplaced
    ),
}

NEIGHBOUR = "xid-94"
"""Holds the GPU whose error is not to be blamed for the death beside it."""

NEIGHBOURS = Death(
    "gpu_memory_error",
    "true",
    pod=HOLDER,
    xids=(94,),
    faults=(_xid(94, "Contained: SM (0x1). RST: No, D-RST: No"),),
)

PODS = {**DEATHS, NEIGHBOUR: NEIGHBOURS}


@contextmanager
def staged(release: Release, space: Workload) -> Iterator[None]:
    """All of them are dead in the block, and the agents have seen what befell their GPUs."""
    for name, death in PODS.items():
        space.start(name, death.node, **death.pod)
    told = [name for name, death in PODS.items() if death.pod.get("command") == UNTIL_TOLD]
    running = {name: space.running(name) for name in told}
    boards = gpus(release)
    wrong = dict.fromkeys(boards, "")
    for name, pod in running.items():
        death = PODS[name]
        (uuid,) = given_to(pod.process.pid)
        (index,) = [each["index"] for each in boards[death.node] if each["uuid"] == uuid]
        where = "" if death.of_node else f"gpu = {index}\n"
        for fault in death.faults:
            wrong[death.node] += f"[[nodes.faults]]\n{fault}\n{where}"
    lost = DEATHS["node-lost"].node
    with (
        SIMULATION.faults(release, wrong),
        faults.stopped(release.cluster.node(lost), "kubelet"),
    ):
        wait("the Xids at the agent", lambda: _sees_xids(release), SEEN_SECONDS)
        wait("the driver's mismatch at the agent", lambda: _sees_mismatch(release), SEEN_SECONDS)
        for name, pod in running.items():
            if PODS[name].node != lost:
                Path(f"/proc/{pod.process.pid}/root/tmp/end").write_text("1")
        for name, death in PODS.items():
            _await(space, name, death)
        yield
    ready = ["wait", "--for=condition=Ready", f"node/{lost}", f"--timeout={BACK_SECONDS}s"]
    release.cluster.kubectl(*ready, timeout=BACK_SECONDS + 10)


def _await(space: Workload, name: str, death: Death) -> None:
    def happened() -> bool:
        return death.has_happened(space.status(name))

    wait(f"the death of {name}", happened, ENDED_SECONDS)


def _sees_xids(release: Release) -> bool:
    request = call("analyze_xid_errors", nodes=["n1"], detail="full")
    (node,) = release.ask(request, token=release.token())["structuredContent"]["nodes"]
    wanted = {code for death in PODS.values() for code in death.xids}
    return wanted <= {group["code"] for group in node["groups"]}


def _sees_mismatch(release: Release) -> bool:
    node = DEATHS["driver-mismatch"].node
    request = call("get_gpu_health", nodes=[node], detail="full")
    (found,) = release.ask(request, token=release.token())["structuredContent"]["nodes"]
    return "driver_mismatch" in {finding["code"] for finding in found["findings"]}

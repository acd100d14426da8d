"""`explain_failure` through a real MCP client: deaths staged in a cluster, each explained."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import pytest

from mcp_gpu.fleet.router import Router
from mcp_gpu.gpu.model import Gpu, MigDevice
from mcp_gpu.registry import Tool
from mcp_gpu.tools.explain_failure import gateway_tool
from mcp_gpu.workloads.reads import Workloads
from support import served
from support.failures import (
    LATER,
    NAMESPACE,
    POD,
    UID,
    WholeAgent,
    at,
    claim,
    died,
    event,
    held_by_status,
    job,
    node,
    past_holder,
    pod,
    staged,
    status,
    unschedulable,
    waiting,
)
from support.health import finding
from support.kubeapi.documents import Document
from support.kubeapi.server import FakeApiServer
from support.results import data, text
from support.schemas import check
from support.xids import line, seconds
from transports.kubernetes import KubernetesApi

GPU_0 = held_by_status("GPU-0")
EXIT_1 = status(died(1), allocatedResourcesStatus=GPU_0)
FAULT = ("10:02:20", line(31))


async def explained(
    *documents: Document,
    agent: WholeAgent | None = None,
    name: str = POD,
    logs: Mapping[tuple[str, bool], str] | None = None,
    denied: Sequence[tuple[str, str]] = (),
) -> tuple[dict[str, Any], str]:
    """The answer as data and as text."""
    agents = [agent or WholeAgent("n1")]
    every = documents if any(d["kind"] == "Node" for d in documents) else (*documents, node())
    async with staged(*every, agents=agents, logs=logs, denied=denied) as stage:
        answer = await stage.ask(name)
    assert len(text(answer)) <= 4000
    return data(answer), text(answer)


def verdict(found: Mapping[str, Any]) -> tuple[str, str, str]:
    return found["category"], found["not_your_code"], found["confidence"]


def facts(found: Mapping[str, Any]) -> str:
    return "\n".join(f"{f['at']} {f['source']}: {f['text']}" for f in found["evidence"])


def gaps(found: Mapping[str, Any]) -> dict[str, str]:
    return {each["what"]: each["grant"] for each in found["gaps"]}


def slice_of_gpus(generation: int = 1) -> Document:
    """A ResourceSlice of four."""
    return {
        "kind": "ResourceSlice",
        "apiVersion": "resource.k8s.io/v1",
        "metadata": {"name": f"n1-gpu.nvidia.com-{generation}"},
        "spec": {
            "nodeName": "n1",
            "driver": "gpu.nvidia.com",
            "pool": {"name": "n1", "generation": generation, "resourceSliceCount": 1},
            "devices": [
                {"name": f"gpu-{i}", "attributes": {"uuid": {"string": f"GPU-{i}"}}}
                for i in range(4)
            ],
        },
    }


def mig_device(profile: str, instance: int) -> MigDevice:
    return MigDevice(
        index=0, uuid=f"MIG-{instance}", gpu_instance_id=instance, compute_instance_id=0,
        profile=profile,
    )  # fmt: skip


# --- the twelve deaths ---------------------------------------------------------------------------


async def test_a_program_that_exits_1_is_to_blame_where_its_gpu_was_well() -> None:
    found, told = await explained(pod(EXIT_1))
    assert verdict(found) == ("your_code", "false", "medium")
    assert found["gpus"] == [{"gpu_index": 0, "uuid": "GPU-0", "mig": "", "shared": False}]
    assert (found["since"], found["died"]) == (at("10:00:10"), at("10:02:30"))
    assert told.splitlines()[0] == (
        "YOUR_CODE, your code (medium confidence): Container main ended by itself: exit code 1, "
        "failed by its own account."
    )
    assert "First: Read its log: kubectl logs -c main." in told


async def test_memory_over_the_limit() -> None:
    container = status(died(137, "OOMKilled"))
    found, told = await explained(pod(container, memory="64Gi"))
    assert verdict(found) == ("out_of_memory_host", "false", "high")
    assert "over its limit of 64Gi" in told
    # Without a limit of its own it may be another's growth.
    system = event(
        "SystemOOM", "System OOM encountered, victim process: python, pid: 41",
        kind="Node", name="n1",
    )  # fmt: skip
    found, _ = await explained(pod(container), system)
    assert verdict(found) == ("out_of_memory_host", "unknown", "high")
    assert "victim process: python" in facts(found)


async def test_an_eviction_by_an_emptydirs_limit_is_the_programs() -> None:
    message = 'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". '
    found, told = await explained(
        pod(phase="Failed", reason="Evicted", message=message),
        event("Evicted", message),
    )
    assert verdict(found) == ("evicted", "false", "high")
    assert 'volume "scratch" exceeds the limit' in told
    assert "sizeLimit" in found["first_step"]


async def test_a_kill_for_memory_counts_where_it_is_the_death_that_is_explained() -> None:
    system = event(
        "SystemOOM", "System OOM encountered, victim process: python, pid: 41",
        kind="Node", name="n1",
    )  # fmt: skip
    found, _ = await explained(pod(status(died(137))), system)
    assert verdict(found) == ("out_of_memory_host", "unknown", "medium")
    # A sidecar that was killed once and runs again has not ended the program.
    sidecar = status({"running": {}}, name="sidecar", last=died(137, "OOMKilled"))
    found, _ = await explained(pod(EXIT_1, sidecar))
    assert verdict(found) == ("your_code", "false", "medium")
    assert "container sidecar: exit code 137" in facts(found)


NODE_PRESSURE = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. "


@pytest.mark.parametrize(
    ("more", "truth"),
    [
        ("", "true"),
        ("Container main was using 2Gi, request is 0, has larger consumption of memory. ",
         "unknown"),
    ],
)  # fmt: skip
async def test_an_eviction_by_the_nodes_pressure_is_not_surely_the_programs(
    more: str, truth: str
) -> None:
    message = NODE_PRESSURE + more
    found, _ = await explained(pod(phase="Failed", reason="Evicted", message=message))
    assert verdict(found) == ("evicted", truth, "high")


async def test_a_lost_node() -> None:
    silent = {
        "type": "Ready",
        "status": "Unknown",
        "reason": "NodeStatusUnknown",
        "message": "Kubelet stopped posting node status.",
        "lastTransitionTime": at("10:01:00"),
    }
    taint = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}
    running = status({"running": {"startedAt": at("10:00:10")}})
    found, told = await explained(
        pod(running, phase="Running"),
        node(silent, taints=[taint]),
        event("NodeNotReady", "Node is not ready", component="node-controller"),
        agent=WholeAgent("elsewhere"),
    )
    assert verdict(found) == ("node_lost", "true", "high")
    assert "Kubelet stopped posting node status." in told
    assert "there is no agent on n1" in told
    # The node object is gone, and the pod's garbage has been collected.
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "DeletionByPodGC",
        "message": "PodGC: node no longer exists",
        "lastTransitionTime": at("10:02:00"),
    }
    found, _ = await explained(
        pod(running, phase="Failed", conditions=[condition]), node(name="other")
    )
    assert verdict(found) == ("node_lost", "true", "high")
    assert "there is no such node any more" in facts(found)


async def test_a_gpu_off_the_bus_is_blamed_on_who_held_it() -> None:
    agent = WholeAgent(
        "n1",
        ("10:02:20", line(79)),
        ("10:02:21", line(45)),
        findings=[finding("gpu_lost", title="GPU 0 has fallen off the bus.")],
    )
    found, told = await explained(pod(EXIT_1), agent=agent)
    assert verdict(found) == ("gpu_hardware", "true", "high")
    assert "Xid 79 on GPU 0" in told.splitlines()[0]
    assert found["first_step"].startswith("REBOOT_NODE")
    assert found["evidence"][0]["at"] == at("10:02:20")
    assert found["simulated"]
    assert "SIMULATED" in told
    assert {each["category"] for each in found["alternatives"]} == {"your_code"}


async def test_a_page_fault_of_its_own_is_the_programs() -> None:
    found, told = await explained(pod(EXIT_1), agent=WholeAgent("n1", FAULT))
    assert verdict(found) == ("your_code", "false", "high")
    assert "Xid 31 on GPU 0" in told.splitlines()[0]


async def test_page_faults_of_several_pods_on_one_gpu_may_be_the_gpus() -> None:
    agent = WholeAgent("n1", ("08:00:00", line(31, pid=7)), FAULT)
    found, _ = await explained(pod(EXIT_1), agent=agent)
    assert verdict(found) == ("gpu_hardware", "unknown", "low")
    assert "before this pod came" in facts(found)
    assert "another GPU" in found["first_step"]
    # On another GPU they say nothing of this one.
    agent = WholeAgent("n1", ("08:00:00", line(31, 2, pid=7)), FAULT)
    assert verdict((await explained(pod(EXIT_1), agent=agent))[0]) == ("your_code", "false", "high")


async def test_a_neighbours_error_is_named_and_not_blamed() -> None:
    agent = WholeAgent("n1", ("10:02:20", line(94, 3)), ("10:02:21", line(79, 2)))
    found, told = await explained(pod(EXIT_1), agent=agent)
    assert verdict(found) == ("your_code", "false", "medium")
    assert "Xid 94 on GPU 3: this pod did not hold that GPU, and it is not blamed" in told
    assert {each["category"] for each in found["alternatives"]} == {
        "gpu_hardware",
        "gpu_memory_error",
    }


async def test_an_error_on_a_gpu_nobody_knows_who_held_is_no_verdict() -> None:
    agent = WholeAgent("n1", ("10:02:20", line(79, 2)))
    found, told = await explained(pod(status(died(1))), agent=agent)
    assert verdict(found) == ("your_code", "unknown", "low")
    assert "whether this pod held that GPU is not known" in told.splitlines()[0]
    assert f"GPUs of pod {NAMESPACE}/{POD}" in gaps(found)


async def test_uncorrectable_ecc_errors() -> None:
    agent = WholeAgent("n1", ("10:02:20", line(48)), ("10:02:21", line(63)))
    found, _ = await explained(pod(EXIT_1), agent=agent)
    assert verdict(found) == ("gpu_memory_error", "true", "high")
    assert found["first_step"].startswith("DRAIN_AND_RESET")
    # The driver's counters alone, which have no time.
    agent = WholeAgent("n1", findings=[finding("ecc_uncorrected_rising", gpu=0)])
    found, _ = await explained(pod(EXIT_1), agent=agent)
    assert verdict(found) == ("gpu_memory_error", "true", "medium")
    # A contained error ends its own program alone.
    agent = WholeAgent("n1", ("10:02:20", line(94)))
    assert verdict((await explained(pod(EXIT_1), agent=agent))[0])[:2] == (
        "gpu_memory_error",
        "true",
    )


async def test_what_is_seen_long_after_the_death_proves_nothing() -> None:
    old = status(died(1, began="07:00:00", ended="08:00:00"), allocatedResourcesStatus=GPU_0)
    agent = WholeAgent(
        "n1", ("10:02:20", line(79)), findings=[finding("ecc_uncorrected_rising", gpu=0)]
    )
    found, _ = await explained(pod(old, startTime=at("06:59:00")), agent=agent)
    assert found["category"] == "your_code"
    assert "long after the death: it proves nothing" in facts(found)
    assert "Xid 79" not in facts(found)


async def test_nvlink() -> None:
    agent = WholeAgent("n1", findings=[finding("nvlink_down", gpu=0, title="Link 3 is down.")])
    found, _ = await explained(
        pod(EXIT_1),
        agent=agent,
        logs={("main", False): "Watchdog caught collective operation timeout: WorkNCCL(...)\n"},
    )
    assert verdict(found) == ("nvlink", "true", "medium")
    assert "communication" in {each["category"] for each in found["alternatives"]}


async def test_a_driver_of_two_versions() -> None:
    mismatch = finding(
        "driver_mismatch", gpu=None, title="Kernel module and libraries differ.",
        action="RELOAD_DRIVER",
    )  # fmt: skip
    agent = WholeAgent("n1", findings=[mismatch])
    words = "Failed to initialize NVML: Driver/library version mismatch\n"
    found, _ = await explained(pod(status(died(1))), agent=agent, logs={("main", False): words})
    assert verdict(found) == ("driver", "true", "medium")
    assert found["first_step"].startswith("RELOAD_DRIVER")
    assert words.strip() in facts(found)
    # Nor where nobody may read its words: no program that uses a GPU can start then.
    found, _ = await explained(pod(status(died(1))), agent=agent)
    assert verdict(found) == ("driver", "true", "medium")
    # Where the container does not even start, the runtime says so.
    message = (
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: "
        "nvidia-container-cli: initialization error: nvml error: driver/library version mismatch"
    )
    found, _ = await explained(pod(status(died(128, "StartError", message))))
    assert verdict(found) == ("driver", "true", "high")


INSUFFICIENT = "0/5 nodes are available: 2 Insufficient nvidia.com/gpu, 3 node(s) had untolerated "
INSUFFICIENT += "taint {dedicated: batch}. preemption: 0/5 nodes are available."


CONTROL_PLANE = "1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }"


@pytest.mark.parametrize(
    ("message", "says", "step"),
    [
        (INSUFFICIENT, "3 have taints that it does not tolerate (dedicated: batch), 2 have too few "
         "nvidia.com/gpu free. It asks for 1 x nvidia.com/gpu.", "Give the pod tolerations"),
        ("0/4 nodes are available: 4 Insufficient nvidia.com/gpu.",
         "4 have too few nvidia.com/gpu free. It", "See who holds the GPUs"),
        ("0/2 nodes are available: 2 Insufficient nvidia.com/mig-1g.10gb.",
         "2 have no such MIG profile free, or are not cut into it (nvidia.com/mig-1g.10gb).",
         "See who holds the GPUs"),
        ("0/2 nodes are available: 2 node(s) had untolerated taint {a: b}.", "taints", "Give the"),
        ("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.",
         "labels", "Compare its nodeSelector"),
        (f"0/4 nodes are available: {CONTROL_PLANE}, 3 Insufficient cpu. preemption: 0/4 nodes are "
         "available: 1 Preemption is not helpful for scheduling.",
         "No node takes it: 3 have too little cpu free. It", "Ask for less of it"),
        (f"0/4 nodes are available: {CONTROL_PLANE}, 3 node(s) had volume node affinity conflict.",
         "No node takes it: 3 do not have its volumes.", "Look at its PersistentVolumeClaims"),
        ("0/4 nodes are available: 4 node(s) had untolerated taint {example.com/draining: true}.",
         "4 have taints that it does not tolerate (example.com/draining: true)", "Give the pod"),
        ("0/4 nodes are available: 4 node(s) were unschedulable.", "4 are cordoned", "See who cor"),
        ("0/4 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
         "they do not have its volumes", "Look at its PersistentVolumeClaims"),
        ("0/6 nodes are available: 1 Insufficient nvidia.com/gpu, 5 node(s) didn't match Pod's "
         "node affinity/selector.", "5 do not have the labels that it asks for, 1 have too few",
         "Compare its nodeSelector"),
        (f"0/1 nodes are available: {CONTROL_PLANE}.", "1 have taints", "Give the pod tolerations"),
        ("0/2 nodes are available: 2 Too many pods.", "2: Too many pods", "Read the scheduler's"),
    ],
)  # fmt: skip
async def test_a_pod_that_no_node_takes(message: str, says: str, step: str) -> None:
    found, _ = await explained(
        unschedulable(message),
        event("FailedScheduling", message, component="default-scheduler"),
    )
    assert verdict(found) == ("scheduling", "true", "high")
    assert says in found["says"]
    assert found["first_step"].startswith(step)
    # The next weighty reason's step comes after it.
    assert (" And: See who holds the GPUs" in found["first_step"]) == ("gpu, " in message)
    assert message[:60] in facts(found)
    assert found["node"] == ""


async def test_what_containers_ask_for_is_told_together() -> None:
    asks = {"resources": {"limits": {"nvidia.com/gpu": "4"}}}
    spec = {
        "containers": [{"name": "a", **asks}, {"name": "b", **asks}],
        "initContainers": [{"name": "c", **asks}],
    }
    message = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."
    found, _ = await explained(unschedulable(message, spec=spec))
    assert "It asks for 8 x nvidia.com/gpu." in found["says"]


async def test_an_image_that_cannot_be_pulled() -> None:
    image = "registry.example/train:typo"
    failed = (
        f'Failed to pull image "{image}": rpc error: code = NotFound desc = failed to pull and '
        f'unpack image "{image}": {image}: not found'
    )
    stuck = status(waiting("ImagePullBackOff", f'Back-off pulling image "{image}"'), image=image)
    found, _ = await explained(
        pod(stuck, phase="Pending"), event("Failed", failed), event("BackOff", "Back-off")
    )
    assert verdict(found) == ("image", "true", "high")
    assert f"The image {image} could not be pulled." in found["says"]
    assert "There is no such image" in found["first_step"]
    denied = event("Failed", f'Failed to pull image "{image}": 401 Unauthorized')
    found, _ = await explained(pod(stuck, phase="Pending"), denied)
    assert "imagePullSecrets" in found["first_step"]


# --- others --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "category"),
    [
        ("PreemptionByScheduler", "preempted"),
        ("DeletionByTaintManager", "evicted"),
        ("EvictionByEvictionAPI", "evicted"),
    ],
)
async def test_a_disruption_is_nobodys_code(reason: str, category: str) -> None:
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": "m",
        "lastTransitionTime": at("10:02:00"),
    }
    found, _ = await explained(pod(status(died(143)), conditions=[condition]))
    assert verdict(found) == (category, "true", "high")


SECRET = "hunter2hunter2"

OOM = f"""step 1 loss 2.0
password={SECRET}
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. api_key: {SECRET}
"""


@pytest.mark.parametrize(
    ("words", "category", "truth"),
    [
        (OOM, "out_of_memory_gpu", "false"),
        ("[rank3]: Watchdog caught collective operation timeout: x", "communication", "unknown"),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", "your_code",
         "false"),
        ("ModuleNotFoundError: No module named 'flash_attn'", "your_code", "false"),
        ("CUDA driver version is insufficient for CUDA runtime version", "driver", "true"),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "your_code", "unknown"),
        ("unable to open shared memory object </torch_1> in read-write mode", "config", "true"),
    ],
)  # fmt: skip
async def test_last_words(words: str, category: str, truth: str) -> None:
    found, told = await explained(pod(EXIT_1), logs={("main", False): words})
    assert (found["category"], found["not_your_code"]) == (category, truth)
    whole = json.dumps(found) + told
    assert SECRET not in whole
    assert "step 1 loss" not in whole


async def test_the_termination_message_stands_in_for_a_log_that_may_not_be_read() -> None:
    container = status(died(1, message=OOM), allocatedResourcesStatus=GPU_0)
    found, _ = await explained(pod(container), denied=[("get", "pods/log")])
    assert verdict(found)[:2] == ("out_of_memory_gpu", "false")
    assert SECRET not in json.dumps(found)
    assert gaps(found)[f"log of main in pod {NAMESPACE}/{POD}"] == "get pods/log in train"


async def test_the_log_before_is_read_where_a_container_has_been_started_again() -> None:
    container = status(waiting("CrashLoopBackOff"), last=died(139), restartCount=7)
    found, _ = await explained(
        pod(container, phase="Running"),
        agent=WholeAgent("n1", held={POD: [1], "other": [0]}),
        logs={("main", True): "ValueError: x\n", ("main", False): "torch.OutOfMemoryError\n"},
    )
    assert verdict(found) == ("your_code", "false", "medium")
    assert '"ValueError: x"' in facts(found)
    assert found["gpus"][0]["gpu_index"] == 1
    assert "kubelet" in found["gpus_source"]


async def test_a_verdict_that_rests_on_the_gpu_is_unsure_where_nobody_could_look() -> None:
    for agent in (WholeAgent("elsewhere"), WholeAgent("n1", blind=True)):
        found, told = await explained(pod(EXIT_1), agent=agent)
        assert verdict(found) == ("your_code", "unknown", "low")
        assert "Xids of n1" in gaps(found)
        assert "Xids of n1" in told
    # Without GPUs there is nothing to doubt.
    found, _ = await explained(pod(status(died(1)), gpus=0), agent=WholeAgent("elsewhere"))
    assert verdict(found) == ("your_code", "false", "medium")


@pytest.mark.parametrize(
    ("state", "category", "truth"),
    [
        (died(139), "your_code", "false"),
        (died(134), "your_code", "false"),
        (died(137), "unknown", "unknown"),
        (died(143), "stopped", "unknown"),
        (died(127), "config", "true"),
    ],
)
async def test_exit_codes(state: Document, category: str, truth: str) -> None:
    container = status(state, allocatedResourcesStatus=GPU_0)
    found, told = await explained(pod(container))
    assert (found["category"], found["not_your_code"]) == (category, truth)
    assert f"exit code {state['terminated']['exitCode']}" in told


async def test_a_pod_that_somebody_deleted() -> None:
    found, _ = await explained(pod(status(died(143))), event("Killing", "Stopping container main"))
    assert verdict(found) == ("stopped", "true", "medium")
    found, _ = await explained(
        pod(status(waiting("CrashLoopBackOff"), last=died(137)), phase="Running"),
        event("Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 503"),
        event("Killing", "Container main failed liveness probe, will be restarted"),
    )
    assert verdict(found) == ("stopped", "unknown", "high")


async def test_what_the_manifest_names_is_not_there() -> None:
    message = 'secret "wandb" not found'
    found, _ = await explained(
        pod(status(waiting("CreateContainerConfigError", message)), phase="Pending")
    )
    assert verdict(found) == ("config", "true", "high")
    assert message in facts(found)
    mount = 'MountVolume.SetUp failed for volume "data" : configmap "data" not found'
    found, _ = await explained(
        pod(status(waiting("ContainerCreating")), phase="Pending"), event("FailedMount", mount)
    )
    assert verdict(found) == ("config", "true", "high")
    sandbox = 'Failed to create pod sandbox: plugin type="cni" failed (add): timeout'
    found, _ = await explained(
        pod(status(waiting("ContainerCreating")), phase="Pending"),
        event("FailedCreatePodSandBox", sandbox),
    )
    assert verdict(found) == ("infrastructure", "true", "medium")


async def test_devices_that_the_kubelet_could_not_give() -> None:
    message = "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices"
    found, _ = await explained(
        pod(phase="Failed", reason="UnexpectedAdmissionError", message=message)
    )
    assert verdict(found) == ("infrastructure", "true", "high")


async def test_a_claim_that_no_node_can_meet() -> None:
    message = "0/2 nodes are available: 2 cannot allocate all claims."
    document = unschedulable(
        message,
        gpus=0,
        spec={"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "gpu"}]},
        resourceClaimStatuses=[{"name": "gpu", "resourceClaimName": "worker-0-gpu-x"}],
    )
    found, told = await explained(document, claim("worker-0-gpu-x"))
    assert verdict(found) == ("scheduling", "true", "high")
    assert "not allocated: it asks for gpu of class gpu.nvidia.com" in told
    assert "resourceslices" in found["first_step"]


async def test_the_gpu_of_a_claim_is_found_by_the_nodes_slices() -> None:
    published = slice_of_gpus()
    document = pod(
        status(died(1)),
        gpus=0,
        spec={"resourceClaims": [{"name": "gpu", "resourceClaimName": "mine"}]},
    )
    agent = WholeAgent("n1", ("10:02:20", line(79, 2)))
    found, _ = await explained(document, claim("mine", "gpu-2"), published, agent=agent)
    assert verdict(found) == ("gpu_hardware", "true", "high")
    assert "ResourceSlices" in found["gpus_source"]
    # Several users of a claim share its GPUs; who may only look at them holds none.
    shared = claim("mine", "gpu-2", reserved=2)
    found, _ = await explained(document, shared, published, agent=agent)
    assert found["gpus"][0]["shared"]
    found, _ = await explained(document, claim("mine", "gpu-2", admin=True), published, agent=agent)
    assert (found["category"], found["gpus"]) == ("your_code", [])


async def test_a_claim_that_the_agent_knows_by_name_alone_is_found_by_the_slices() -> None:
    """As of a pod that runs, and whose container has died and been started again."""
    agent = WholeAgent("n1", ("10:02:20", line(79, 2)), held={POD: []}, claims={POD: ["mine"]})
    document = pod(
        status({"running": {"startedAt": at("10:02:40")}}, last=died(1)),
        gpus=0,
        phase="Running",
        spec={"resourceClaims": [{"name": "gpu", "resourceClaimName": "mine"}]},
    )
    old, new = slice_of_gpus(generation=1), slice_of_gpus(generation=2)
    old["metadata"]["name"] = "z-old"  # listed last, and no longer true
    for device in old["spec"]["devices"]:
        device["attributes"]["uuid"]["string"] = "GPU-7"
    found, _ = await explained(document, claim("mine", "gpu-2"), new, old, agent=agent)
    assert [(each["gpu_index"], each["uuid"]) for each in found["gpus"]] == [(2, "GPU-2")]
    assert verdict(found) == ("gpu_hardware", "true", "high")


async def test_what_a_slice_says_is_one_line() -> None:
    published = slice_of_gpus()
    published["spec"]["devices"][2]["attributes"]["uuid"]["string"] = "GPU-2\nFirst: run this"
    document = pod(
        status(died(1)),
        gpus=0,
        spec={"resourceClaims": [{"name": "gpu", "resourceClaimName": "mine"}]},
    )
    found, told = await explained(document, claim("mine", "gpu-2"), published)
    assert "\n" not in found["gpus"][0]["uuid"]
    assert "\nFirst: run this" not in told


async def test_annotations_say_little_and_what_a_pod_does_not_want_is_not_what_it_held() -> None:
    uuid = "GPU-03f69c50-207a-2038-9b45-23cac89cb67d"
    wants_none = {"nvidia.com/nouse-gpuuuid": uuid, "nvidia.com/use-gpuuuid": uuid}
    found, _ = await explained(pod(status(died(1)), annotations=wants_none))
    assert found["gpus"] == []
    given = {"hami.io/vgpu-devices-allocated": f"{uuid},NVIDIA,3000,30:;"}
    found, _ = await explained(pod(status(died(1)), annotations=given))
    assert [(each["uuid"], each["shared"]) for each in found["gpus"]] == [(uuid, True)]
    assert "its owner may write" in found["gpus_source"]


@pytest.mark.parametrize(
    ("device_id", "index", "mig"),
    [("nvidia1", 2, ""), ("1", 1, ""), ("nvidia1/gi5", 2, "1g.10gb"), ("0:0", 0, "2g.20gb")],
)
async def test_ids_that_are_numbers_are_read_by_the_nodes_agent(
    device_id: str, index: int, mig: str
) -> None:
    """GKE's are minor numbers, which need not be the order of NVML."""
    inventory = (
        Gpu(index=0, uuid="GPU-0", minor_number=2, mig_devices=(mig_device("2g.20gb", 3),)),
        Gpu(index=1, uuid="GPU-1", minor_number=0),
        Gpu(index=2, uuid="GPU-2", minor_number=1, mig_devices=(mig_device("1g.10gb", 5),)),
    )
    document = pod(status(died(1), allocatedResourcesStatus=held_by_status(device_id)))
    found, _ = await explained(document, agent=WholeAgent("n1", inventory=inventory))
    (held,) = found["gpus"]
    assert (held["gpu_index"], held["uuid"], held["mig"]) == (index, f"GPU-{index}", mig)
    # And by nobody else: a number is no index of its own.
    found, _ = await explained(document)
    assert found["gpus"] == []


async def test_why_nobody_knows_what_a_pod_held_is_told() -> None:
    why = "Permission denied (chart: agent.privileges=root)"
    running = pod(status({"running": {"startedAt": at("10:00:10")}}, last=died(1)), phase="Running")
    found, _ = await explained(running, agent=WholeAgent("n1", held={}, why=why))
    (gap,) = [each for each in found["gaps"] if each["what"].startswith("GPUs of pod")]
    assert why in gap["why"]


async def test_a_pod_with_all_gpus_of_its_node_held_every_one() -> None:
    agent = WholeAgent("n1", ("10:02:20", line(79, 2)))
    found, _ = await explained(pod(status(died(1)), gpus=8), agent=agent)
    assert verdict(found) == ("gpu_hardware", "true", "high")
    assert [each["gpu_index"] for each in found["gpus"]] == list(range(8))
    assert found["gpus_source"] == "the pod asked for as many GPUs as its node has"


async def test_on_a_shared_gpu_a_fault_may_be_anothers() -> None:
    container = status(died(1), allocatedResourcesStatus=held_by_status("GPU-0::2"))
    found, _ = await explained(pod(container), agent=WholeAgent("n1", FAULT))
    assert verdict(found) == ("your_code", "unknown", "low")


async def test_a_contained_error_of_a_shared_gpu_may_be_anothers() -> None:
    container = status(died(1), allocatedResourcesStatus=held_by_status("GPU-0::2"))
    agent = WholeAgent("n1", ("10:02:20", line(94)))
    found, _ = await explained(pod(container), agent=agent)
    assert verdict(found) == ("gpu_memory_error", "unknown", "low")
    assert "others have a part of GPU 0" in facts(found)
    # The same where the kubelet gave a part of it to another pod as well.
    agent = WholeAgent("n1", ("10:02:20", line(94)), held={POD: [0], "other": [0]})
    found, _ = await explained(pod(EXIT_1), agent=agent)
    assert verdict(found) == ("gpu_memory_error", "unknown", "low")
    # Off the bus it is gone for each of them.
    agent = WholeAgent("n1", ("10:02:20", line(79)))
    container = status(died(1), allocatedResourcesStatus=held_by_status("GPU-0::2"))
    found, _ = await explained(pod(container), agent=agent)
    assert verdict(found) == ("gpu_hardware", "true", "high")


async def test_memory_that_lacks_on_a_shared_gpu_may_have_gone_to_another() -> None:
    container = status(died(1), allocatedResourcesStatus=held_by_status("GPU-0::2"))
    words = "torch.OutOfMemoryError: CUDA out of memory. Process 12 has 70 GiB memory in use."
    found, told = await explained(pod(container), logs={("main", False): words})
    assert verdict(found) == ("out_of_memory_gpu", "unknown", "low")
    assert "Others share the GPU" in told.splitlines()[0]


async def test_what_is_so_now_is_no_verdict_over_the_programs_own_words() -> None:
    agent = WholeAgent(
        "n1", findings=[finding("row_remap_pending", title="GPU 0 has a row remap pending.")]
    )
    words = {("main", False): "ModuleNotFoundError: No module named 'foo'\n"}
    found, told = await explained(pod(EXIT_1), agent=agent, logs=words)
    assert verdict(found) == ("your_code", "unknown", "low")
    assert "But: The memory of the GPU that it held lost data" in told.splitlines()[0]
    # Without words it is no more than likely.
    found, _ = await explained(pod(EXIT_1), agent=agent)
    assert verdict(found) == ("gpu_memory_error", "unknown", "low")
    # Words that say the same make it one.
    words = {("main", False): "RuntimeError: CUDA error: uncorrectable ECC error encountered\n"}
    found, _ = await explained(pod(EXIT_1), agent=agent, logs=words)
    assert verdict(found) == ("gpu_memory_error", "true", "medium")


async def test_an_error_before_the_start_is_of_the_pod_before() -> None:
    for code in (94, 79):
        agent = WholeAgent("n1", ("09:59:30", line(code)))
        found, _ = await explained(pod(EXIT_1), agent=agent)
        assert verdict(found) == ("your_code", "false", "medium"), code


@pytest.mark.parametrize("code", [94, 31])
async def test_an_error_that_ends_its_program_at_once_did_not_end_one_hours_later(
    code: int,
) -> None:
    container = status(died(1, began="04:00:00"), allocatedResourcesStatus=GPU_0)
    document = pod(container, startTime=at("04:00:00"))
    agent = WholeAgent("n1", ("05:00:20", line(code)))
    words = {("main", False): "ValueError: loss is NaN\n"}
    found, _ = await explained(document, agent=agent, logs=words)
    assert found["category"] == "your_code"
    assert "loss is NaN" in facts(found)
    assert "302 min before the death" in facts(found)
    found, _ = await explained(document, agent=agent)
    assert found["confidence"] != "high"


@pytest.mark.parametrize(
    ("log", "category", "truth", "besides"),
    [
        ("CUDA out of memory, retrying\nstep 1 ok\nKeyError: 'loss'", "your_code", "false",
         "out_of_memory_gpu"),
        ("NCCL WARN Connection refused, retrying\nKeyError: 'loss'", "your_code", "false",
         "communication"),
        # What comes of it is no end of its own, nor what is raised while it is handled.
        ("torch.OutOfMemoryError: CUDA out of memory\nChildFailedError: x", "out_of_memory_gpu",
         "false", "your_code"),
        ("torch.OutOfMemoryError: CUDA out of memory\nDuring handling of the above exception, "
         "another exception occurred:\nKeyError: 'x'", "out_of_memory_gpu", "false", "your_code"),
        ("OSError: [Errno 28] No space left on device", "config", "unknown", "your_code"),
    ],
)  # fmt: skip
async def test_of_last_words_the_last_error_counts(
    log: str, category: str, truth: str, besides: str
) -> None:
    found, _ = await explained(pod(EXIT_1), logs={("main", False): log})
    assert (found["category"], found["not_your_code"]) == (category, truth)
    assert [each["category"] for each in found["alternatives"]] == [besides]


async def test_a_sidecar_that_was_taken_along_is_not_what_failed() -> None:
    sidecar = status(died(137, ended="10:03:01"), name="istio-proxy")
    spec = {"initContainers": [{"name": "istio-proxy", "restartPolicy": "Always"}]}
    found, _ = await explained(
        pod(EXIT_1, inits=[sidecar], spec=spec), logs={("main", False): "ValueError: bad\n"}
    )
    assert (found["container"], found["category"]) == ("main", "your_code")
    # Any other init container that failed has kept the rest from starting.
    fetch = status(died(1, ended="10:03:01"), name="fetch")
    spec = {"initContainers": [{"name": "fetch"}]}
    found, _ = await explained(pod(inits=[fetch], spec=spec, phase="Pending"))
    assert found["container"] == "fetch"


# --- owners, and what is gone --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        ("Job", "batch.kubernetes.io/job-name"),
        ("JobSet", "jobset.sigs.k8s.io/jobset-name"),
        ("PyTorchJob", "training.kubeflow.org/job-name"),
    ],
)
async def test_a_jobs_name_finds_its_pod_that_failed_first(kind: str, label: str) -> None:
    labels = {label: "llama"}
    late = status(died(1, ended="10:04:00"), allocatedResourcesStatus=GPU_0)
    first = status(died(137, "OOMKilled", ended="10:03:00"))
    long_ago = status(died(1, began="07:00:00", ended="07:30:00"))
    found, _ = await explained(
        job("llama", kind=kind),
        pod(late, name="llama-a", labels=labels),
        pod(first, name="llama-b", labels=labels),
        pod(long_ago, name="llama-c", labels=labels),
        pod(EXIT_1, name="other"),
        name="llama",
    )
    assert (found["pod"], found["owner"]) == ("llama-b", f"{kind} llama")
    assert found["category"] == "out_of_memory_host"
    assert "2 of its pods have failed; this one was the first to" in facts(found)


async def test_a_jobs_deadline() -> None:
    condition = {
        "type": "Failed",
        "status": "True",
        "reason": "DeadlineExceeded",
        "message": "Job was active longer than specified deadline",
        "lastTransitionTime": at("10:02:30"),
    }
    found, _ = await explained(
        job("llama", condition), pod(status(died(143)), owner=("Job", "llama"))
    )
    assert verdict(found) == ("stopped", "unknown", "high")
    assert found["owner"] == "Job llama"


DEADLINE = {
    "type": "Failed",
    "status": "True",
    "reason": "DeadlineExceeded",
    "message": "Job was active longer than specified deadline",
    "lastTransitionTime": at("10:04:00"),
}


async def test_what_ended_before_a_jobs_deadline_was_not_ended_by_it() -> None:
    documents = job("llama", DEADLINE), pod(EXIT_1, owner=("Job", "llama"))
    found, _ = await explained(*documents, agent=WholeAgent("n1", ("10:02:20", line(79))))
    assert verdict(found) == ("gpu_hardware", "true", "high")
    found, _ = await explained(*documents, logs={("main", False): "ValueError: x\n"})
    assert verdict(found) == ("your_code", "false", "medium")
    # The Job's end is told, at its own time.
    assert f"{at('10:04:00')} status of Job llama: Failed: DeadlineExceeded" in facts(found)


async def test_a_statement_of_kubernetes_names_the_hardware_besides() -> None:
    hung = status(died(137, ended="10:04:02"), allocatedResourcesStatus=GPU_0)
    found, told = await explained(
        job("llama", DEADLINE),
        pod(hung, owner=("Job", "llama")),
        agent=WholeAgent("n1", ("10:02:20", line(79))),
    )
    assert verdict(found) == ("stopped", "unknown", "high")
    assert "But: The GPU that it held failed: Xid 79 on GPU 0" in told.splitlines()[0]


async def test_a_pod_that_is_gone_is_explained_by_its_events() -> None:
    assigned = event(
        "Scheduled",
        f"Successfully assigned {NAMESPACE}/{POD} to n1",
        component="default-scheduler",
        clock="10:00:00",
    )
    evicted = event("Evicted", NODE_PRESSURE)
    found, told = await explained(assigned, evicted)
    assert verdict(found) == ("evicted", "true", "high")
    assert (found["gone"], found["node"], found["pod"]) == (True, "n1", POD)
    assert "which is gone" in told
    found, _ = await explained(
        assigned, event("Preempted", "Preempted by pod x on node n1", component="default-scheduler")
    )
    assert verdict(found) == ("preempted", "true", "high")
    # Its hardware is looked at, but nobody knows which GPU was its own.
    found, told = await explained(assigned, agent=WholeAgent("n1", ("10:02:20", line(79))))
    assert verdict(found) == ("unknown", "unknown", "low")
    assert "whether this pod held that GPU is not known" in told


async def test_whose_gpu_it_was_is_remembered_by_the_nodes_agent() -> None:
    """For the kubelet forgets it, and older ones do not write it into the pod."""
    lost = ("10:02:20", line(79))
    agent = WholeAgent("n1", lost, held={}, past=[past_holder()])
    found, _ = await explained(pod(status(died(1))), agent=agent)
    assert verdict(found) == ("gpu_hardware", "true", "high")
    assert found["gpus_source"] == "the node's agent, which remembers what the kubelet said"
    assigned = event(
        "Scheduled",
        f"Successfully assigned {NAMESPACE}/{POD} to n1",
        component="default-scheduler",
        clock="10:00:00",
    )
    found, _ = await explained(assigned, agent=agent)
    assert (found["gone"], found["category"]) == (True, "gpu_hardware")
    assert [gpu["gpu_index"] for gpu in found["gpus"]] == [0]
    # Neither a former pod of the name nor a neighbour is this one.
    for other in (past_holder(uid="uid-former"), past_holder("other")):
        agent = WholeAgent("n1", lost, held={}, past=[other])
        found, _ = await explained(pod(status(died(1))), agent=agent)
        assert found["category"] != "gpu_hardware"
        assert found["gpus"] == []


async def test_pods_of_a_job_that_are_gone_are_found_by_the_jobs_events() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "m"}
    found, _ = await explained(
        job("llama", failed),
        event("Evicted", NODE_PRESSURE, name="llama-x7k2p"),
        name="llama",
    )
    assert (found["category"], found["pod"]) == ("evicted", "llama-x7k2p")
    assert "BackoffLimitExceeded" in facts(found)
    quota = 'Error creating: pods "llama-x" is forbidden: exceeded quota: gpus'
    found, _ = await explained(
        job("llama"),
        event("FailedCreate", quota, kind="Job", name="llama", component="job-controller"),
        name="llama",
    )
    assert verdict(found) == ("config", "true", "high")
    assert "exceeded quota" in facts(found)


async def test_a_job_is_told_of_where_none_of_its_pods_is_left() -> None:
    failed = {
        "type": "Failed",
        "status": "True",
        "reason": "BackoffLimitExceeded",
        "message": "Job has reached the specified backoff limit",
    }
    found, told = await explained(job("llama", failed), name="llama")
    assert verdict(found) == ("unknown", "unknown", "low")
    assert "Job llama has failed (BackoffLimitExceeded: Job has reached" in told.splitlines()[0]
    assert "There is no pod" not in told
    assert "restartPolicy Never" in found["first_step"]
    found, told = await explained(job("llama"), name="llama")
    assert "Job llama has no pods, and no event tells of one." in told.splitlines()[0]
    found, _ = await explained(job("llama", COMPLETE), name="llama")
    assert verdict(found) == ("succeeded", "true", "high")


COMPLETE = {
    "type": "Complete",
    "status": "True",
    "reason": "CompletionsReached",
    "message": "",
    "lastTransitionTime": at("10:04:00"),
}


async def test_a_job_that_completed_at_a_later_try_has_not_failed() -> None:
    labels = {"batch.kubernetes.io/job-name": "llama"}
    documents = (
        job("llama", COMPLETE),
        pod(EXIT_1, owner=("Job", "llama"), labels=labels),
        pod(status(died(0, "Completed")), name="worker-1", phase="Succeeded", labels=labels),
    )
    found, told = await explained(*documents, name="llama")
    assert verdict(found) == ("succeeded", "true", "high")
    assert "Job llama has completed. Before that pod worker-0 of it failed" in told.splitlines()[0]
    # Asked for the pod, it is about the pod.
    found, told = await explained(*documents)
    assert verdict(found) == ("your_code", "false", "medium")
    assert "But: Job llama has completed since." in told.splitlines()[0]


async def test_where_to_look_for_the_rank_that_failed_first() -> None:
    labels = {"batch.kubernetes.io/job-name": "llama"}
    documents = job("llama"), pod(EXIT_1, owner=("Job", "llama"), labels=labels)
    words = {("main", False): "Watchdog caught collective operation timeout\n"}
    found, _ = await explained(*documents, logs=words)
    assert found["first_step"].endswith("Ask for Job llama by its name.")
    found, _ = await explained(*documents, logs=words, name="llama")
    assert "by its name" not in found["first_step"]
    assert found["first_step"].endswith("look for one that still runs.")


async def test_the_gpu_of_a_rank_that_hangs_is_looked_at() -> None:
    labels = {"batch.kubernetes.io/job-name": "llama"}
    hanging = status(
        {"running": {"startedAt": at("10:00:10")}},
        allocatedResourcesStatus=held_by_status("GPU-3"),
    )
    documents = (
        job("llama"),
        pod(EXIT_1, name="llama-0", labels=labels),
        pod(hanging, phase="Running", name="llama-7", labels=labels),
    )
    words = {("main", False): "Watchdog caught collective operation timeout\n"}
    agent = WholeAgent("n1", ("10:01:20", line(79, 3)))
    found, told = await explained(*documents, logs=words, name="llama", agent=agent)
    assert (found["pod"], *verdict(found)) == ("llama-0", "gpu_hardware", "true", "medium")
    assert "It waited for pod llama-7 on n1: The GPU that it held failed" in told.splitlines()[0]
    assert "communication" in {each["category"] for each in found["alternatives"]}
    # A GPU that none of them holds is not blamed.
    agent = WholeAgent("n1", ("10:01:20", line(79, 2)))
    found, _ = await explained(*documents, logs=words, name="llama", agent=agent)
    assert found["category"] == "communication"


async def test_events_of_a_former_pod_of_the_name_are_not_this_ones() -> None:
    found, _ = await explained(pod(EXIT_1), event("Evicted", NODE_PRESSURE, uid="another"))
    assert found["category"] == "your_code"


async def test_a_name_nobody_knows() -> None:
    found, told = await explained(name="nobody")
    assert verdict(found) == ("unknown", "unknown", "low")
    assert "There is no pod nobody in train, and no event tells of one." in told


@pytest.mark.parametrize(
    ("document", "category"),
    [
        (pod(status(died(0, "Completed")), phase="Succeeded"), "succeeded"),
        (pod(status({"running": {"startedAt": at("10:00:10")}}), phase="Running"),
         "still_running"),
        (pod(status(waiting("ContainerCreating")), phase="Pending"), "still_running"),
    ],
)  # fmt: skip
async def test_a_pod_that_has_not_failed(document: Document, category: str) -> None:
    found, told = await explained(document, agent=WholeAgent("n1", ("10:02:20", line(79))))
    assert found["category"] == category
    assert told.startswith(category.upper())


async def test_a_pod_that_runs_on_a_gpu_that_failed_is_told_so() -> None:
    container = status({"running": {"startedAt": at("10:00:10")}}, allocatedResourcesStatus=GPU_0)
    agent = WholeAgent("n1", ("10:02:20", line(79)))
    found, told = await explained(pod(container, phase="Running"), agent=agent)
    assert found["category"] == "still_running"
    assert "But: The GPU that it held failed: Xid 79 on GPU 0" in told.splitlines()[0]
    assert found["first_step"].startswith("REBOOT_NODE")


async def test_a_pod_that_runs_on_a_node_that_is_not_ready_is_told_so() -> None:
    unready = {
        "type": "Ready",
        "status": "False",
        "reason": "KubeletNotReady",
        "message": "container runtime is down",
        "lastTransitionTime": at("10:01:00"),
    }
    running = pod(status({"running": {"startedAt": at("10:00:10")}}), phase="Running")
    found, told = await explained(running, node(unready))
    assert found["category"] == "still_running"
    assert "its node n1 is not ready: container runtime is down" in told.splitlines()[0]
    assert f"{at('10:01:00')} node n1: Ready is False" in facts(found)


async def test_a_container_that_was_started_again_is_said_to_run() -> None:
    again = status({"running": {}}, last=died(1), allocatedResourcesStatus=GPU_0)
    found, told = await explained(pod(again, phase="Running"))
    assert verdict(found) == ("your_code", "false", "medium")
    assert "It has been started again since, and runs." in told.splitlines()[0]


async def test_of_the_program_one_alternative_is_enough() -> None:
    faults = [("10:00:20", line(13)), ("10:00:25", line(31)), ("10:02:20", line(79))]
    container = status(died(1), allocatedResourcesStatus=GPU_0)
    found, _ = await explained(pod(container), agent=WholeAgent("n1", *faults))
    considered = [each["category"] for each in found["alternatives"]]
    assert found["category"] == "gpu_hardware"
    assert considered.count("your_code") == 1


async def test_a_termination_message_of_one_line_is_told_and_of_many_only_what_is_known() -> None:
    found, _ = await explained(pod(status(died(3, message="checkpoint lost; token=abcdef"))))
    assert '"checkpoint lost; token=***"' in facts(found)
    found, _ = await explained(pod(status(died(3, message="private one\nprivate two\n"))))
    assert "private" not in json.dumps(found)


HOSTILE = (
    "//a:", "eyJaaaaaaaa", "mysql ", "mysql -p", "basic a", "-a", "--key ", "A_KEY ", "auth",
    "pass'", "'token',", "-----begin private key", 'token="\\',
    "token", "authorization", "token ", "token=", 'token="', "eyJaaaaaa-", "//", "//a", "a-b_",
    "NCCL WARN ", "store->get()", "DataLoader worker ", "was using  request is ", "exceeds the ",
)  # fmt: skip


async def test_words_made_to_be_slow_are_read_as_fast_as_others() -> None:
    """By the processor's time of the gateway's own thread: it has nothing else to do."""
    for word in HOSTILE:
        hostile = "ValueError: " + word * (4_096 // len(word))
        container = status(died(1, message=hostile), allocatedResourcesStatus=GPU_0)
        document = pod(container, phase="Failed", reason="Evicted", message=hostile)
        log = f"{hostile}\n" * 20
        async with staged(
            document, event("BackOff", hostile), node(), agents=[WholeAgent("n1")],
            logs={("main", False): log},
        ) as stage:  # fmt: skip
            before = time.thread_time()
            found = data(await stage.ask())
            assert time.thread_time() - before < 3.0, word
        assert found["category"] == "evicted"


@pytest.mark.parametrize(
    "line",
    [
        'password: "hunter2 hunter2"',
        "password='hunter2 hunter2'",
        '{\\"token\\": \\"hunter2 \\\\\\" hunter2\\"}',
        'secret = "hunter2 hunter2',
        "HF_TOKEN=hunter2",
        "Authorization: Basic hunter2",
        "Authorization: Bearer hunter2.hunter2",
        "https://me:hunter2@registry.example/x",
        "api-key => hunter2",
        'headers={"Authorization": "Token hunter2"}',
        "called with Bearer hunter2hunter2",
        "--password hunter2",
        "mysql -u root -phunter2",
        "sshpass -p hunter2 ssh",
        "https://b.s3.amazonaws.com/x?X-Amz-Signature=hunter2",
        "https://a.blob.core.windows.net/x?sv=1&sig=hunter2%3D",
        "postgres://user:p/hunter2@host/db",
        "AWS_SECRET_ACCESS_KEY hunter2",
        "nvapi-abcdefghijkhunter2",
        "AIzaSyhunter2hunter2hunter2",
        "ghs_hunter2hunter2hunter2",
        "private_key: hunter2",
        "access_key=hunter2",
        "passphrase=hunter2",
        "pass=hunter2",
        "auth=hunter2",
        "Set-Cookie: session=hunter2",
        "session=hunter2",
        "('password', 'hunter2')",
        "dsn='Server=x;Pwd=hunter2'",
        "private_key: -----BEGIN RSA PRIVATE KEY----- hunter2 hunter2",
        "-----BEGIN PRIVATE KEY----- hunter2",
    ],
)
async def test_a_secret_is_hidden_to_its_end(line: str) -> None:
    words = f"ValueError: {line}"
    container = status(died(1, message=words), allocatedResourcesStatus=GPU_0)
    found, told = await explained(
        pod(container), event("BackOff", words), logs={("main", False): words}
    )
    assert "***" in facts(found)
    assert "hunter2" not in json.dumps(found) + told


@pytest.mark.parametrize(
    "line",
    [
        "HF_TOKEN is not set",
        "in the backward pass: nan",
        "--max-tokens 512 --tokenizer gpt2",
        "basic operations failed",
        "missing key(s) in state_dict: a.weight",
        "https://github.com/a/b@main",
    ],
)
async def test_what_only_speaks_of_secrets_is_told(line: str) -> None:
    words = f"ValueError: {line}"
    container = status(died(1, message=words), allocatedResourcesStatus=GPU_0)
    found, _ = await explained(pod(container))
    assert line in facts(found)


# --- rights --------------------------------------------------------------------------------------

RIGHTS = {
    ("get", "pods"): (f"pod {NAMESPACE}/{POD}", "get pods in train"),
    ("list", "events"): (f"events of {NAMESPACE} with involvedObject.name={POD}",
                         "list events in train"),
    ("get", "nodes"): ("node n1", "get nodes"),
    ("get", "jobs"): (f"job {NAMESPACE}/llama", "get jobs.batch in train"),
    ("get", "pods/log"): (f"log of main in pod {NAMESPACE}/{POD}", "get pods/log in train"),
    ("get", "resourceclaims"): (f"resourceclaim {NAMESPACE}/mine",
                                "get resourceclaims.resource.k8s.io in train"),
    ("list", "resourceslices"): ("resourceslices with spec.nodeName=n1",
                                 "list resourceslices.resource.k8s.io"),
}  # fmt: skip


@pytest.mark.parametrize("right", list(RIGHTS))
async def test_a_right_that_is_missing_is_a_named_gap(right: tuple[str, str]) -> None:
    message = 'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". '
    documents = [
        pod(
            status(died(1)),
            owner=("Job", "llama"),
            spec={"resourceClaims": [{"name": "gpu", "resourceClaimName": "mine"}]},
            reason="Evicted",
            message=message,
        ),
        event("Evicted", message),
        job("llama"),
        claim("mine"),
    ]
    found, told = await explained(*documents, logs={("main", False): "x\n"}, denied=[right])
    what, grant = RIGHTS[right]
    assert gaps(found)[what] == grant
    assert f"{what}: forbidden; grant: {grant}" in told
    assert verdict(found) == ("evicted", "false", "high")  # by the pod, or else by its events
    granted, _ = await explained(*documents, logs={("main", False): "x\n"})
    assert what not in gaps(granted)


async def test_without_any_right_there_is_an_answer_that_says_so() -> None:
    denied = [*RIGHTS, ("list", "pods"), ("get", "jobsets"), ("get", "pytorchjobs")]
    found, told = await explained(pod(EXIT_1), denied=denied)
    assert verdict(found) == ("unknown", "unknown", "low")
    assert len(found["gaps"]) >= 4
    assert "grant: get pods in train" in told


async def test_a_pod_that_may_not_be_read_is_not_said_to_be_gone() -> None:
    found, told = await explained(pod(EXIT_1), denied=[("get", "pods")])
    assert not found["gone"]
    assert "Pod worker-0 in train could not be read: forbidden." in told.splitlines()[0]
    assert found["first_step"] == "Grant the gateway what it lacks: get pods in train."
    assigned = event("Scheduled", f"Successfully assigned {NAMESPACE}/{POD} to n1", component="s")
    found, told = await explained(pod(EXIT_1), assigned, denied=[("get", "pods")])
    assert (found["gone"], found["node"]) == (False, "n1")
    assert "could not be read" in told.splitlines()[0]
    assert "which is gone" not in told
    # Nor are a Job's pods, which are listed.
    labels = {"batch.kubernetes.io/job-name": "llama"}
    found, told = await explained(
        job("llama"), pod(EXIT_1, labels=labels), name="llama", denied=[("list", "pods")]
    )
    assert not found["gone"]
    assert found["first_step"] == "Grant the gateway what it lacks: list pods in train."
    found, _ = await explained(name="nobody")
    assert found["gone"]


async def test_an_api_server_that_is_not_there() -> None:
    async with FakeApiServer(NAMESPACE) as api:
        config = str(api.kubeconfig)
        async with KubernetesApi(config) as reader:
            await reader.namespace()
            await api.stop()
            workloads = Workloads({"": reader})
            agents = {"n1": WholeAgent("n1")}
            async with served.gateway(lambda r: gateway_tool(r, workloads), agents) as client:
                with anyio.fail_after(30):
                    answer = await client.call_tool("explain_failure", {"pod": POD})
    found = data(answer)  # type: ignore[arg-type]
    assert verdict(found) == ("unknown", "unknown", "low")
    assert all("cannot reach the API server" in gap["why"] for gap in found["gaps"])
    assert not found["gone"]
    assert "could not be read" in found["says"]


async def test_a_gateway_without_a_cluster_knows_of_no_pod_that_it_is_gone() -> None:
    agents = {"n1": WholeAgent("n1")}
    async with served.gateway(lambda r: gateway_tool(r, Workloads({})), agents) as client:
        answer = await client.call_tool("explain_failure", {"pod": POD})
    found = data(answer)  # type: ignore[arg-type]
    assert not found["gone"]
    assert "this gateway has no API server to ask" in found["says"]


# --- the tool ------------------------------------------------------------------------------------


async def test_each_object_is_read_once() -> None:
    documents = [pod(EXIT_1, owner=("Job", "llama")), job("llama"), node()]
    async with staged(*documents, agents=[WholeAgent("n1")]) as stage:
        await stage.ask()
        count = stage.api.count
        assert [count("get", each) for each in ("pods", "jobs", "nodes")] == [1, 1, 1]
        assert count("list", "events") == 2  # the pod's and the node's
        assert count("list", "pods") == 0


async def test_several_clusters_have_to_be_told_apart() -> None:
    async with FakeApiServer(NAMESPACE) as api, KubernetesApi(str(api.kubeconfig)) as reader:
        await api.apply(pod(EXIT_1))
        await api.apply(node())
        workloads = Workloads({"east": reader, "west": reader})
        agents = {"east/n1": WholeAgent("east/n1", ("10:02:20", line(79)))}

        def make(router: Router) -> Tool[Any]:
            return gateway_tool(router, workloads, clock=lambda: seconds(LATER))

        async with served.gateway(make, agents) as client:
            arguments = {"pod": POD, "namespace": NAMESPACE}
            answer = await client.call_tool("explain_failure", arguments)
            assert 'Name the "cluster", one of: east, west.' in text(answer)  # type: ignore[arg-type]
            unknown = arguments | {"cluster": "south"}
            answer = await client.call_tool("explain_failure", unknown)
            assert 'Unknown "cluster"; known: east, west.' in text(answer)  # type: ignore[arg-type]
            named = arguments | {"cluster": "east"}
            answer = await client.call_tool("explain_failure", named)
            assert data(answer)["category"] == "gpu_hardware"  # type: ignore[arg-type]


async def test_names_that_lead_elsewhere_are_no_names() -> None:
    async with staged(agents=[WholeAgent("n1")]) as stage:
        for name in ("../nodes", "a/b", "a?b", "a,b=c", "..", ""):
            answer = await stage.ask(name)
            assert answer.is_error, name
        assert stage.api.requests == []


async def test_the_text_is_bounded_and_what_strangers_write_is_harmless() -> None:
    long = "x" * 5_000
    container = status(
        died(1, message=f"\x1b[31mRuntimeError: {long}\n" * 20), allocatedResourcesStatus=GPU_0
    )
    events = [event("Failed", f"\x1b]0;\u202e{number} {long}") for number in range(60)]
    events.append(event("BackOff", "x", kind="P\x1bod"))
    found, told = await explained(pod(container, owner=("J\x1bob", "llama")), *events)
    assert len(told) <= 4000
    assert "\x1b" not in told + json.dumps(found, ensure_ascii=False)
    assert "\u202e" not in told
    assert found["evidence_omitted"] > 0
    assert len(json.dumps(found)) < 32_000


async def test_garbage_for_documents_is_no_end() -> None:
    odd: Document = {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": POD, "namespace": NAMESPACE, "uid": UID, "ownerReferences": [7, {}]},
        "spec": {"nodeName": 7, "containers": "none", "resourceClaims": {}},
        "status": {"phase": [], "containerStatuses": [1, {"state": {"terminated": "x"}}]},
    }
    found, _ = await explained(odd)
    assert found["category"] == "unknown"


async def test_the_answer_is_what_the_schema_promises() -> None:
    async with staged(pod(EXIT_1), node(), agents=[WholeAgent("n1", FAULT)]) as stage:
        (tool,) = (await stage.client.list_tools()).tools
        for name in (POD, "nobody"):
            check("gateway", tool, (await stage.ask(name)).structured_content)

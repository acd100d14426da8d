"""`why-is-my-job-slow`: whether a pod's GPUs are to blame, before anybody looks at its code."""

from __future__ import annotations

from collections.abc import Set

from pydantic import Field

from mcp_gpu.prompts.arguments import PodName
from mcp_gpu.prompts.guide import Guide
from mcp_gpu.registry import Arguments
from mcp_gpu.registry.prompt import Prompt

__all__ = ["prompt"]


class SlowArguments(Arguments):
    """Whose job."""

    pod: PodName = Field(description="The pod that is slow: NAMESPACE/POD, or POD.")


def prompt(*, fleet: bool) -> Prompt[SlowArguments]:
    """The prompt of an agent or of a gateway."""

    def write(arguments: SlowArguments, tools: Set[str]) -> str:
        return _text(arguments.pod, tools, fleet=fleet)

    return Prompt(
        name="why-is-my-job-slow",
        title="Why is my job slow?",
        description="Find out whether the GPUs of a pod, their links or its neighbours make it "
        "slow: throttling, lost links, sharing, errors, or a GPU that waits for work.",
        arguments=SlowArguments,
        write=write,
    )


def _text(name: str, tools: Set[str], *, fleet: bool) -> str:
    namespace, _, pod = name.rpartition("/")
    names = {"namespace": namespace, "pod": pod} if namespace else {"pod": pod}
    there = "" if namespace else ' with "namespace" NAMESPACE'
    guide = Guide(f"Find out why the job of pod {name} is slow.", tools, fleet=fleet)
    node = "NODE" if fleet else None
    if guide.has("get_pod_gpu_allocation"):
        found = "" if namespace or not fleet else ", and in which namespace, NAMESPACE from here on"
        guide.step(
            text=f"Call {guide.call('get_pod_gpu_allocation', **names)}: which GPUs the pod holds"
            + (" and on which node, NODE from here on" if fleet else " on this node")
            + found
            + ". A guess is marked as one. If it holds none here, its GPUs cannot be what is slow: "
            "ask for the right pod.",
        )
    elif fleet:
        option = f" -n {namespace}" if namespace else " -n NAMESPACE"
        where = "" if namespace else ", and its NAMESPACE"
        guide.step(
            text=f"No tool here says where a pod runs: ask for its node, NODE from here on{where} "
            f"(kubectl get pod {pod}{option} -o wide). Nor which of its GPUs the pod holds: what "
            "you find on another pod's GPU is no reason.",
        )
    else:
        guide.step(
            text="No tool here says which GPUs a pod holds: make sure that it runs on this node, "
            "and take what you find on another pod's GPU for no reason.",
        )
    guide.step(
        "get_gpu_health",
        text=f"{guide.call('get_gpu_health', node, detail='full', severity='info')}: look first "
        "for slowdowns (heat, power), a narrow or slow PCIe link, NVLinks that are down, memory "
        "errors. Only findings of the pod's own GPUs count.",
    )
    guide.step(
        "get_gpu_timeline",
        text=f"{guide.call('get_gpu_timeline', node, window='1h')}: clocks low and throttling "
        "while busy: the GPU is held back. Utilization low and memory held: it waits for data, the "
        "CPU, storage or other nodes. A level that shifted has a moment: look for what happened "
        "then.",
    )
    if not guide.has("get_gpu_timeline"):
        guide.step(
            "get_gpu_inventory",
            text=f"{guide.call('get_gpu_inventory', node, detail='full')}: utilization, clocks and "
            "power now. Busy with low clocks: held back. Idle with memory held: it waits for data, "
            "the CPU, storage or other nodes. One reading is a hint: read it again.",
        )
    guide.step(
        "get_gpu_processes",
        text=f"{guide.call('get_gpu_processes', node)}: who else is on the same GPUs, also outside "
        "of any allocation. An empty list means nothing where processes cannot be seen.",
    )
    guide.step(
        "get_nvlink_topology",
        text=f"{guide.call('get_nvlink_topology', node)}: for several GPUs, whether the pod's are "
        "joined by NVLink or go over SYS and another NUMA node, and which links are down.",
    )
    guide.step(
        "analyze_xid_errors",
        text=f"{guide.call('analyze_xid_errors', node, since='24h')}: errors on the pod's GPUs "
        "that cost time without ending it.",
    )
    if fleet:
        guide.step(
            text="A job over several nodes is as slow as its slowest: look at the other nodes, "
            "too, and compare.",
        )
    guide.step(
        "explain_failure",
        text=f"If the pod was restarted or is dead, {guide.call('explain_failure', **names)}"
        f"{there}: it is not slow, it failed.",
    )
    guide.stop(
        "if the pod's GPUs are healthy, not held back and busy: the GPUs are not the reason. What "
        "is left is the program: batch size, precision, data loading. It cannot be seen from here."
    )
    guide.stop("once one reason explains it and its readings cover the time when it was slow.")
    guide.stop("where the pod's GPUs are not known: say what would be needed to know them.")
    return guide.report(
        "The reason with its confidence, or that the GPUs are not it. The readings behind it, "
        "with their age. What was looked at and is well. The next step: for heat, power and links "
        "whom to tell; for waiting GPUs what to measure in the program."
    )

"""What Kubernetes itself says of a pod's end: evictions, preemption, lost nodes, killed memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from mcp_gpu.workloads.documents import moment, part, parts, word
from mcp_gpu.workloads.failure.endings import ASKED_TO_END, KILLED, Death, deaths, spoken
from mcp_gpu.workloads.failure.model import Cause, Fact, Weight
from mcp_gpu.workloads.failure.scene import Scene, condition

__all__ = ["statements"]

_OWN_LIMIT: Final = re.compile(r"exceed(?:s|ed) (?:the|its)\b.{0,64}?\blimit", re.IGNORECASE)
"""What the kubelet says where the pod has used more disk than it was allowed."""

_OVER_REQUEST: Final = re.compile(
    r"was using [^,]{1,64}+, request is [^,]{1,64}+, has larger consumption", re.IGNORECASE
)

_DISRUPTIONS: Final = {
    "PreemptionByScheduler": "preempted",
    "DeletionByTaintManager": "taint",
    "EvictionByEvictionAPI": "api",
    "DeletionByPodGC": "lost",
    "TerminationByKubelet": "kubelet",
}

_LOST_REASONS: Final = frozenset({"NodeLost", "Shutdown", "NodeShutdown", "Terminated"})
_ADMISSION: Final = frozenset({"UnexpectedAdmissionError"})
_REFUSED: Final = re.compile(r"OutOf.+|NodeAffinity|NodePorts|TopologyAffinityError|PodTooBig.*")

_STOPPED_FIRST: Final = (
    "Find out who ended it: kubectl get events, the Job's deadline and backoff, the autoscaler, "
    "and who deleted it (the API server's audit log)."
)


def statements(scene: Scene) -> Iterator[Cause]:
    """All that Kubernetes says of the end."""
    yield from _evicted(scene)
    yield from _disrupted(scene)
    yield from _lost(scene)
    yield from _refused(scene)
    yield from _killed_for_memory(scene)
    yield from _stopped(scene)


def _evicted(scene: Scene) -> Iterator[Cause]:
    said = [each for each in scene.of_pod if each.reason == "Evicted"]
    reason, message = word(scene.pod, "status", "reason"), word(scene.pod, "status", "message")
    if reason == "Evicted":
        fact = Fact.of("status of pod", f"Evicted: {message}", scene.died)
    elif said:
        message, fact = said[-1].message, said[-1].fact()
    else:
        return
    node = _pressure(scene)
    if _OWN_LIMIT.search(message):
        yield Cause(
            Weight.STATED, "evicted", "false", "high",
            f"The kubelet evicted it for using more disk than it may: {message.strip()}",
            "Write less to the emptyDir or the container's own file system, or raise its "
            "sizeLimit or ephemeral-storage limit; checkpoints belong on a persistent volume.",
            (fact,),
        )  # fmt: skip
        return
    own = _OVER_REQUEST.search(message)
    yield Cause(
        Weight.STATED, "evicted", "unknown" if own else "true", "high",
        f"The kubelet evicted it since its node ran short: {message.strip()}",
        "Give the pod requests as large as what it uses, so that the kubelet picks others first, "
        "and look at what fills the node." if own else
        "Look at what fills the node: kubectl describe node.",
        (fact, *node),
    )  # fmt: skip


def _pressure(scene: Scene) -> Iterator[Fact]:
    for kind in ("MemoryPressure", "DiskPressure", "PIDPressure"):
        found = condition(scene.node, kind)
        if word(found, "status") == "True":
            at = moment(found, "lastTransitionTime")
            yield Fact.of(f"node {scene.node_name}", f"{kind}: {word(found, 'message')}", at)


def _disrupted(scene: Scene) -> Iterator[Cause]:
    found = condition(scene.pod, "DisruptionTarget")
    reason, message = word(found, "reason"), word(found, "message")
    facts: tuple[Fact, ...] = ()
    if word(found, "status") == "True":
        at = moment(found, "lastTransitionTime")
        facts = (Fact.of("condition DisruptionTarget of pod", f"{reason}: {message}", at),)
    what = _DISRUPTIONS.get(reason, "") if facts else ""
    by_events = {
        "Preempted": "preempted",
        "Preempting": "preempted",
        "TaintManagerEviction": "taint",
    }
    for each in scene.of_pod:
        if each.reason in by_events and "Cancelling" not in each.message:
            what = what or by_events[each.reason]
            message = message or each.message
            facts += (each.fact(),)
    if word(scene.pod, "status", "reason") == "Preempting":
        what = "preempted"
    yield from _disruption(scene, what, message, facts)


def _disruption(scene: Scene, what: str, message: str, facts: tuple[Fact, ...]) -> Iterator[Cause]:
    if what == "preempted":
        yield Cause(
            Weight.STATED, "preempted", "true", "high",
            "A pod of higher priority took its place.",
            "Run it again when there is room, or give it a priority class that is not preempted; "
            "save checkpoints often enough.",
            facts,
        )  # fmt: skip
    elif what == "taint" and not _unreachable(scene):
        yield Cause(
            Weight.STATED, "evicted", "true", "high",
            "It was deleted because of a taint that came to its node.",
            f"See which taint and who set it: kubectl describe node {scene.node_name}. A health "
            "controller taints nodes whose GPUs it takes for broken.",
            (*facts, *_taints(scene)),
        )  # fmt: skip
    elif what == "api":
        yield Cause(
            Weight.STATED, "evicted", "true", "high",
            "It was evicted through the API, as kubectl drain and autoscalers do.",
            "Find out who drained the node, and why; a PodDisruptionBudget delays it.",
            facts,
        )  # fmt: skip
    elif what in ("lost", "taint"):
        yield _node_lost(scene, "Its node went away or fell silent.", facts)
    elif what == "kubelet" and word(scene.pod, "status", "reason") not in ("Evicted", ""):
        yield _node_lost(scene, f"Its node's kubelet ended it: {message}", facts)


def _taints(scene: Scene) -> Iterator[Fact]:
    for taint in parts(scene.node, "spec", "taints"):
        text = f"taint {word(taint, 'key')}={word(taint, 'value')}:{word(taint, 'effect')}"
        yield Fact.of(f"node {scene.node_name}", text, moment(taint, "timeAdded"))


def _unreachable(scene: Scene) -> bool:
    return scene.node_gone or word(condition(scene.node, "Ready"), "status") == "Unknown"


def _node_lost(scene: Scene, says: str, facts: tuple[Fact, ...]) -> Cause:
    return Cause(
        Weight.STATED, "node_lost", "true", "high", says,
        f"See whether {scene.node_name or 'the node'} comes back and why it went (console, cloud "
        "provider, kubelet log); run the pod again elsewhere.",
        facts,
    )  # fmt: skip


def _lost(scene: Scene) -> Iterator[Cause]:
    """The node's own state, where the pod was on it and has not ended by itself."""
    reason = word(scene.pod, "status", "reason")
    facts = list(_node_facts(scene))
    facts += [each.fact() for each in scene.of_pod if each.reason == "NodeNotReady"]
    if reason in _LOST_REASONS:
        message = word(scene.pod, "status", "message")
        first = Fact.of("status of pod", f"{reason}: {message}", scene.died)
        yield _node_lost(scene, f"Its node was lost or shut down: {message}", (first, *facts))
        return
    unknown = [each for each in deaths(scene.pod) if each.reason == "ContainerStatusUnknown"]
    ended = scene.death is not None and not unknown
    if facts and not ended and scene.phase != "Succeeded" and (unknown or _silent(scene)):
        yield _node_lost(scene, f"Its node {scene.node_name} is not there any more.", tuple(facts))


def _silent(scene: Scene) -> bool:
    """Whether nobody can say what has become of the pod on its node."""
    gone_quietly = scene.absent and any(each.reason == "NodeNotReady" for each in scene.of_pod)
    return gone_quietly or _unreachable(scene)


def _node_facts(scene: Scene) -> Iterator[Fact]:
    where = f"node {scene.node_name}"
    if scene.node_gone:
        yield Fact.of(where, "there is no such node any more")
        return
    ready = condition(scene.node, "Ready")
    if ready and word(ready, "status") != "True":
        text = f"Ready is {word(ready, 'status')}: {word(ready, 'message')}"
        yield Fact.of(where, text, moment(ready, "lastTransitionTime"))
        yield from _taints(scene)


def _refused(scene: Scene) -> Iterator[Cause]:
    """The kubelet did not take what the scheduler gave it."""
    reason, message = word(scene.pod, "status", "reason"), word(scene.pod, "status", "message")
    fact = Fact.of("status of pod", f"{reason}: {message}", scene.died)
    if reason in _ADMISSION:
        yield Cause(
            Weight.STATED, "infrastructure", "true", "high",
            f"The kubelet could not give it its devices: {message}",
            f"Look at get_gpu_health of {scene.node_name} and at the device plugin's log there: it "
            "takes a GPU for unhealthy, or was restarting.",
            (fact,),
        )  # fmt: skip
    elif _REFUSED.fullmatch(reason):
        yield Cause(
            Weight.STATED, "scheduling", "true", "high",
            f"Its node refused it: {message}",
            "Run it again; if it comes back, the node's kubelet and the scheduler count different "
            "resources: compare the node's allocatable with its pods.",
            (fact,),
        )  # fmt: skip


def _killed_for_memory(scene: Scene) -> Iterator[Cause]:
    death = scene.death  # that another container was killed before, and started again, is no matter
    if death is None:
        return
    begin, end = scene.window
    facts = tuple(
        each.fact()
        for each in scene.events
        if each.reason in ("SystemOOM", "OOMKilling") and begin <= (each.at or end) <= end
    )
    if death.reason == "OOMKilled":
        limit = _memory_limit(scene, death)
        allowed = f", over its limit of {limit}" if limit else ""
        whole = "" if limit else " It has no limit of its own: the node's memory was used up."
        yield Cause(
            Weight.STATED, "out_of_memory_host", "false" if limit else "unknown", "high",
            f"The kernel killed container {death.container} for its memory{allowed}.{whole}",
            "Raise the memory limit or use less host memory: data loader workers, pinned buffers, "
            "caches, and files in /dev/shm and memory-backed emptyDirs count.",
            (Fact.of(f"container {death.container}", spoken(death), death.finished), *facts),
        )  # fmt: skip
    elif facts and death.signal == KILLED:
        yield Cause(
            Weight.STATED, "out_of_memory_host", "unknown", "medium",
            "The node ran out of memory and the kernel killed processes there, as this one died.",
            "Set memory requests and limits on the pods of the node, and see which one grew.",
            facts,
        )  # fmt: skip


def _memory_limit(scene: Scene, death: Death) -> str:
    for kind in ("containers", "initContainers"):
        for container in parts(scene.pod, "spec", kind):
            if word(container, "name") == death.container:
                return word(part(container, "resources", "limits"), "memory")
    return ""


def _by_owners_deadline(scene: Scene) -> bool:
    """Whether its owner ran out of time, and that ended it: not if it had ended before."""
    passed = [
        moment(each, "lastTransitionTime")
        for each in (condition(scene.owner, "FailureTarget"), condition(scene.owner, "Failed"))
        if word(each, "reason") == "DeadlineExceeded" and word(each, "status") == "True"
    ]
    if not passed:
        return False
    known = [at for at in passed if at is not None]
    if scene.death is None or scene.death.finished is None or not known:
        return True
    asked = scene.death.signal in (*ASKED_TO_END, KILLED)
    # Times are of two clocks, and the Job may note its end after that of its pods.
    return scene.death.finished >= min(known) - (60.0 if asked else 5.0)


def _stopped(scene: Scene) -> Iterator[Cause]:
    death = scene.death
    reason, message = word(scene.pod, "status", "reason"), word(scene.pod, "status", "message")
    failed = condition(scene.owner, "Failed")
    late = reason == "DeadlineExceeded" or _by_owners_deadline(scene)
    killing = [each for each in scene.of_pod if each.reason == "Killing"]
    if late:
        told = message or word(failed, "message")
        whose = "status of pod" if reason else f"status of {scene.owner_said}"
        at = scene.died if reason else moment(failed, "lastTransitionTime")
        fact = Fact.of(whose, f"DeadlineExceeded: {told}", at)
        yield Cause(
            Weight.STATED, "stopped", "unknown", "high",
            "It ran longer than its activeDeadlineSeconds and was ended.",
            "Raise the deadline if it was working; if it hung, look at its log for where.",
            (fact,),
        )  # fmt: skip
    probes = [each for each in killing if "probe" in each.message]
    if probes and death is not None:
        unhealthy = [each for each in scene.of_pod if each.reason == "Unhealthy"]
        yield Cause(
            Weight.STATED, "stopped", "unknown", "high",
            f"The kubelet killed container {death.container}: {probes[-1].message}",
            "See why the probe failed: a program that loads a model for minutes needs a startup "
            "probe; one that hangs needs its log read.",
            tuple(each.fact() for each in (*probes[-1:], *unhealthy[-1:])),
        )  # fmt: skip
    deleted = moment(scene.pod, "metadata", "deletionTimestamp")
    asked = death is not None and (death.signal in ASKED_TO_END or death.signal == KILLED)
    if not late and not probes and ((asked and (deleted or killing)) or (scene.absent and killing)):
        facts = [each.fact() for each in killing[-1:]]
        if deleted is not None:
            facts.append(Fact.of("metadata of pod", "it is being deleted", deleted))
        yield Cause(
            Weight.SAID, "stopped", "true", "medium",
            "It was ended from outside: somebody or something deleted it.",
            _STOPPED_FIRST,
            tuple(facts),
        )  # fmt: skip

"""Reads what Kubernetes knows of a pod, or of the pod of a Job that failed first: `gather`."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import anyio

from mcp_gpu.workloads.claims import PATH
from mcp_gpu.workloads.documents import Document, is_path_part, moment, parts, word
from mcp_gpu.workloads.failure.endings import first_death
from mcp_gpu.workloads.failure.scene import Happening, Scene, happenings
from mcp_gpu.workloads.reads import CLUSTER, Gap, Reads

__all__ = ["events_of_node", "gather"]

_OWNERS: Final = {
    "Job": ("/apis/batch/v1", "jobs", "batch.kubernetes.io/job-name"),
    "JobSet": ("/apis/jobset.x-k8s.io/v1alpha2", "jobsets", "jobset.sigs.k8s.io/jobset-name"),
    "PyTorchJob": ("/apis/kubeflow.org/v1", "pytorchjobs", "training.kubeflow.org/job-name"),
}
"""Where each lies, its plural, and the label that its pods have."""

GROUP_SECONDS: Final = 900.0
"""Pods of a Job that died within it died of one cause: NCCL waits for ten minutes by default."""

CLAIMS: Final = 8
"""ResourceClaims read of one pod."""

_ASSIGNED: Final = re.compile(r"Successfully assigned \S+ to (\S+)")


async def gather(reads: Reads, name: str, namespace: str, now: float) -> Scene:
    """What there is to be known. What cannot be read is a gap of `reads`, and nothing raises.

    Args:
        name: of a pod, or of a Job, JobSet or PyTorchJob, whose pod that failed first is taken.
    """
    pod, events = await _both(
        lambda: reads.get("/api/v1", "pods", name, namespace),
        lambda: _events(reads, name, namespace),
    )
    owner: Document = {}
    siblings = 0
    pods: Sequence[Document] = ()
    if pod is None and _may_be_an_owner(reads, name, namespace):
        owner, pods, siblings = await _of_owner(reads, name, namespace)
        pod = pods[0] if pods else None
        if pod is not None:
            events += await _events(reads, word(pod, "metadata", "name"), namespace)
        elif owner:
            events += await _of_lost_pods(reads, name, namespace)
    elif pod is not None:
        owner = await _owner_of(reads, pod, namespace)
    unread = _unread(reads, name, namespace) if pod is None else None
    pod = pod or {}
    uid, found = word(pod, "metadata", "uid"), happenings(events)
    pod_name = word(pod, "metadata", "name") or _latest_pod(found, name)
    # A pod of the same name may have been there before, of a StatefulSet for one.
    own = [
        each
        for each in found
        if each.kind != "Pod" or (each.name == pod_name and (not uid or each.uid in ("", uid)))
    ]
    node_name = word(pod, "spec", "nodeName") or _node_of(own)
    rest = await _rest(reads, pod, node_name, namespace)
    node = rest["node"]
    return Scene(
        now=now,
        name=pod_name,
        namespace=namespace,
        pod=pod,
        node_name=node_name,
        node=node or {},
        node_gone=bool(node_name) and node is None and not _missed(reads, f"node {node_name}"),
        owner=owner,
        events=(*own, *happenings(rest["events"])),
        claims=rest["claims"],
        slices=rest["slices"],
        log=rest["log"],
        unread=unread,
        siblings=siblings,
        peers=tuple(pods[1:]),
    )


def _unread(reads: Reads, name: str, namespace: str) -> Gap | None:
    """Why nobody can say whether there is such a pod, nor pods of an owner of the name."""
    label = {f"pods of {namespace} with {each}={name}" for _, _, each in _OWNERS.values()}
    wanted = (CLUSTER, f"pod {namespace}/{name}", *label)
    return next((gap for gap in reads.gaps if gap.what in wanted), None)


def _may_be_an_owner(reads: Reads, name: str, namespace: str) -> bool:
    """Whether to go on asking: an API server that does not answer will not do so now."""
    what = f"pod {namespace}/{name}"
    return all(gap.grant for gap in reads.gaps if gap.what in (what, CLUSTER))


async def _both(
    one: Callable[[], Awaitable[Any]], other: Callable[[], Awaitable[Any]]
) -> tuple[Any, Any]:
    found: list[Any] = [None, None]

    async def run(place: int, ask: Callable[[], Awaitable[Any]]) -> None:
        found[place] = await ask()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, 0, one)
        tasks.start_soon(run, 1, other)
    return found[0], found[1]


async def _events(reads: Reads, name: str, namespace: str) -> tuple[Document, ...]:
    return await reads.list(
        "/api/v1", "events", namespace, fieldSelector=f"involvedObject.name={name}"
    )


async def _of_lost_pods(reads: Reads, name: str, namespace: str) -> tuple[Document, ...]:
    """Events of the pods that an owner had, whose names begin with its own."""
    found = await reads.list(
        "/api/v1", "events", namespace, fieldSelector="involvedObject.kind=Pod"
    )
    return tuple(
        each for each in found if word(each, "involvedObject", "name").startswith(f"{name}-")
    )


async def _of_owner(
    reads: Reads, name: str, namespace: str
) -> tuple[Document, Sequence[Document], int]:
    """The owner of that name, its pods with the one that failed first of the last to fail before
    the others, and how many have failed."""
    for kind, (path, plural, label) in _OWNERS.items():
        owner = await reads.get(path, plural, name, namespace)
        refused = owner is None and _missed(reads, f"{plural.removesuffix('s')} {namespace}/{name}")
        if owner is None and not refused:
            continue
        pods = await reads.list("/api/v1", "pods", namespace, labelSelector=f"{label}={name}")
        if owner is not None or pods:
            found = owner or {"metadata": {"name": name}}
            pod, failed = _first(pods)
            others = [each for each in pods if each is not pod]
            return {**found, "kind": kind}, [] if pod is None else [pod, *others], failed
    return {}, (), 0


def _first(pods: Sequence[Document]) -> tuple[Document | None, int]:
    """The pod to explain: of those that failed together last the first; else one that has not
    begun; else any. And how many have failed together."""
    ends = [(_end(pod), pod) for pod in pods if _failed(pod)]
    if ends:
        last = max(end for end, _ in ends)
        together = [each for each in ends if each[0] >= last - GROUP_SECONDS]
        return min(together, key=lambda each: each[0])[1], len(together)
    waiting = [pod for pod in pods if word(pod, "status", "phase") == "Pending"]
    return next(iter((*waiting, *pods)), None), 0


def _failed(pod: Document) -> bool:
    return word(pod, "status", "phase") == "Failed" or first_death(pod) is not None


def _end(pod: Document) -> float:
    death = first_death(pod)
    finished = None if death is None else death.finished
    disruptions = [moment(c, "lastTransitionTime") for c in parts(pod, "status", "conditions")]
    return finished or max((each for each in disruptions if each is not None), default=0.0)


async def _owner_of(reads: Reads, pod: Document, namespace: str) -> Document:
    for reference in parts(pod, "metadata", "ownerReferences"):
        kind, name = word(reference, "kind"), word(reference, "name")
        if kind in _OWNERS and name:
            path, plural, _ = _OWNERS[kind]
            found = await reads.get(path, plural, name, namespace)
            return {**(found or {"metadata": {"name": name}}), "kind": kind}
        if kind and reference.get("controller"):
            return {"kind": kind, "metadata": {"name": name}}
    return {}


async def _rest(reads: Reads, pod: Document, node_name: str, namespace: str) -> dict[str, Any]:
    """The node and its events, the pod's claims with the node's slices, and the log: side by
    side."""
    found: dict[str, Any] = {"node": None, "events": (), "claims": (), "slices": (), "log": None}

    async def look(what: str, ask: Callable[[], Awaitable[Any]]) -> None:
        found[what] = await ask()

    async with anyio.create_task_group() as tasks:
        if node_name:
            tasks.start_soon(look, "node", lambda: reads.get("/api/v1", "nodes", node_name))
            tasks.start_soon(look, "events", lambda: events_of_node(reads, node_name))
        names = _claims_of(pod)
        if names:
            tasks.start_soon(look, "claims", lambda: _claims(reads, names, namespace))
            if node_name:
                tasks.start_soon(look, "slices", lambda: _slices(reads, node_name))
        death = first_death(pod)
        if death is not None and not death.never_ran:
            name = word(pod, "metadata", "name")
            tasks.start_soon(
                look,
                "log",
                lambda: reads.log(namespace, name, death.container, previous=death.previous),
            )
    return found


async def events_of_node(reads: Reads, node_name: str) -> tuple[Document, ...]:
    """They lie in the namespace `default`, where the kubelet and the node controller put them."""
    selector = f"involvedObject.kind=Node,involvedObject.name={node_name}"
    return await reads.list("/api/v1", "events", "default", fieldSelector=selector)


def _claims_of(pod: Document) -> tuple[str, ...]:
    statuses = parts(pod, "status", "resourceClaimStatuses")
    named = [word(each, "resourceClaimName") for each in statuses]
    named += [word(each, "resourceClaimName") for each in parts(pod, "spec", "resourceClaims")]
    return tuple(dict.fromkeys(filter(None, named)))[:CLAIMS]


async def _claims(reads: Reads, names: Sequence[str], namespace: str) -> tuple[Document, ...]:
    found: dict[str, Document | None] = {}

    async def look(name: str) -> None:
        found[name] = await reads.get(PATH, "resourceclaims", name, namespace)

    async with anyio.create_task_group() as tasks:  # a slow API server is waited for once
        for name in names:
            tasks.start_soon(look, name)
    return tuple(each for name in names if (each := found[name]) is not None)


async def _slices(reads: Reads, node_name: str) -> tuple[Document, ...]:
    return await reads.list(PATH, "resourceslices", fieldSelector=f"spec.nodeName={node_name}")


def _node_of(events: Sequence[Happening]) -> str:
    """The node of a pod that is gone: where the scheduler put it, or the kubelet told of it."""
    for each in reversed([each for each in events if each.kind == "Pod"]):
        assigned = _ASSIGNED.match(each.message) if each.reason == "Scheduled" else None
        host = each.host if each.source == "kubelet" else ""
        node = host if assigned is None else assigned[1]
        if is_path_part(node):
            return node
    return ""


def _latest_pod(events: Sequence[Happening], name: str) -> str:
    """The pod that events tell of last, where one of a Job's is gone."""
    pods = [each.name for each in events if each.kind == "Pod" and is_path_part(each.name)]
    return name if name in pods or not pods else pods[-1]


def _missed(reads: Reads, what: str) -> bool:
    return any(gap.what == what for gap in reads.gaps)

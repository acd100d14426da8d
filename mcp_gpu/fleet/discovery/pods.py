"""Agents' pods: why one does not answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mcp_gpu.fleet.discovery.slices import CONTAINER
from transports.text import is_name

__all__ = ["Pod", "read_pod"]


@dataclass(frozen=True, slots=True)
class Pod:
    """What is kept of an agent's pod."""

    namespace: str
    name: str
    uid: str
    node: str
    """Where it runs, or is meant to run. Empty where nothing says."""
    created: str
    running: bool
    """Its agent runs, ready or not."""
    ready: bool
    trouble: str
    """What is out of order, in words; empty for nothing."""


def read_pod(document: Mapping[str, Any]) -> Pod:
    """Reduce a pod to what is needed to explain its agent's silence."""
    metadata, spec, status = document["metadata"], document["spec"], document.get("status") or {}
    terminating = bool(metadata.get("deletionTimestamp"))
    running = status.get("phase") == "Running" and "running" in _agent_state(status)
    ready = _condition(status, "Ready").get("status") == "True"
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        node=_name(spec.get("nodeName") or _meant_for(spec)),
        created=metadata.get("creationTimestamp", ""),
        running=running,
        ready=ready and not terminating,
        trouble="is being deleted" if terminating else "" if ready else _trouble(metadata, status),
    )


def _name(node: str) -> str:
    """The node's name; empty for what can be none: whoever makes a pod may write there."""
    return node if is_name(node) else ""


def _trouble(metadata: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """Why the pod is not ready."""
    phase = status.get("phase", "Unknown")
    if phase in ("Failed", "Succeeded"):
        reason = status.get("reason") or phase
        how = status.get("message") or _ending(_agent(status).get("state") or {})
        return _said(f"has ended ({reason})", how)
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        reason = scheduled.get("reason", "not scheduled")
        return _said(f"cannot be scheduled ({reason})", scheduled.get("message"))
    for container in _containers(status):
        waiting = (container.get("state") or {}).get("waiting")
        if waiting is not None:
            fresh = not container.get("restartCount")
            if fresh and waiting.get("reason") == "ContainerCreating":
                return _creating(metadata, status)
            return _waiting(container, waiting)
    agent = _agent(status)
    ending = _ending(_agent_state(status))
    if ending:
        return f"is not running: it {ending}"
    if agent.get("restartCount"):
        return _said(f"is not ready after {_restarts(agent)}", _last_ending(agent))
    if "running" in _agent_state(status):
        return "runs and is not ready"
    return f"has not started ({phase})"


def _creating(metadata: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """What keeps a container from being made is only in events. With the time, since a pod that
    is stuck does not change, and would not be read again after a minute."""
    since = f" since {status['startTime']}" if status.get("startTime") else ""
    return (
        f"is starting (ContainerCreating{since}); after more than a minute its node may not know "
        "its RuntimeClass, or a Secret or volume is missing: "
        f"kubectl -n {metadata['namespace']} describe pod {metadata['name']}"
    )


def _waiting(container: Mapping[str, Any], waiting: Mapping[str, Any]) -> str:
    reason = waiting.get("reason") or "waiting"
    if container.get("restartCount"):
        return _said(
            f"does not stay up ({reason}, {_restarts(container)})", _last_ending(container)
        )
    if reason == "PodInitializing":
        return f"is starting ({reason})"
    return _said(f"cannot start ({reason})", waiting.get("message"))


def _restarts(container: Mapping[str, Any]) -> str:
    count = container["restartCount"]
    return f"{count} restart{'s' if count != 1 else ''}"


def _last_ending(container: Mapping[str, Any]) -> str:
    ending = _ending(container.get("lastState") or {})
    return f"last time it {ending}" if ending else ""


def _ending(state: Mapping[str, Any]) -> str:
    ended = state.get("terminated")
    if ended is None:
        return ""
    how = f"exited {ended.get('exitCode')} ({ended.get('reason') or 'no reason given'})"
    return _said(how, ended.get("message"))


def _said(what: str, more: str | None) -> str:
    return f"{what}: {more.strip()}" if more and more.strip() else what


def _agent_state(status: Mapping[str, Any]) -> Mapping[str, Any]:
    return _agent(status).get("state") or {}


def _agent(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """The status of the agent's container; empty before it has one."""
    listed = status.get("containerStatuses") or ()
    return next((each for each in listed if each.get("name") == CONTAINER), {})


def _containers(status: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Init containers first: the others wait for them. Then the agent."""
    yield from status.get("initContainerStatuses") or ()
    yield _agent(status)


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    listed = status.get("conditions") or ()
    return next((each for each in listed if each.get("type") == kind), {})


def _meant_for(spec: Mapping[str, Any]) -> str:
    """The node that a DaemonSet made a pod for, which no scheduler has placed yet."""
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for field in term.get("matchFields") or ():
            if field.get("key") == "metadata.name" and field.get("values"):
                return str(field["values"][0])
    return ""

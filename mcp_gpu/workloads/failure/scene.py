"""What is known of one failure: `Scene`, of Kubernetes' documents, and `Happening`, an event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mcp_gpu.workloads.documents import Document, moment, number, parts, word
from mcp_gpu.workloads.failure.endings import Death, first_death
from mcp_gpu.workloads.failure.model import Fact
from mcp_gpu.workloads.pods import requested
from mcp_gpu.workloads.reads import Gap
from transports.text import one_line

__all__ = ["Happening", "Scene", "condition", "happenings"]

NAME_CHARS: Final = 160

BEFORE_SECONDS: Final = 2.0
"""An error this long before the container's start still belongs to it: times are of whole seconds.
What is older is of the pod that held the GPU before."""

AFTER_SECONDS: Final = 60.0
"""And so long after its end: the driver may write after the program has met the error."""

UNKNOWN_SECONDS: Final = 3600.0
"""How far the window reaches back where nobody knows when the pod began: events live as long."""


@dataclass(frozen=True, slots=True)
class Happening:
    """An event of Kubernetes, one that came often told once."""

    kind: str
    name: str
    uid: str
    reason: str
    message: str
    at: float | None
    count: int
    source: str
    host: str
    began: float | None
    """When it came first; `at` is when it came last."""

    def fact(self) -> Fact:
        """The event as evidence."""
        times = f" (x{self.count})" if self.count > 1 else ""
        who = f" of {self.kind.lower()} {self.name}"
        return Fact.of(f"event{who}", f"{self.reason}{times}: {self.message}", self.at)


def happenings(documents: tuple[Document, ...]) -> tuple[Happening, ...]:
    """Events by time."""
    found = [_happening(each) for each in documents]
    return tuple(sorted(found, key=lambda each: each.at or 0.0))


def _happening(each: Document) -> Happening:
    first = moment(each, "firstTimestamp") or moment(each, "eventTime")
    last = (
        moment(each, "series", "lastObservedTime")
        or moment(each, "lastTimestamp")
        or moment(each, "eventTime")
        or moment(each, "metadata", "creationTimestamp")
    )
    return Happening(
        kind=word(each, "involvedObject", "kind"),
        name=word(each, "involvedObject", "name"),
        uid=word(each, "involvedObject", "uid"),
        reason=word(each, "reason"),
        message=word(each, "message"),
        at=last,
        count=number(each, "series", "count") or number(each, "count") or 1,
        source=word(each, "source", "component") or word(each, "reportingComponent"),
        host=word(each, "source", "host"),
        began=first or last,
    )


def condition(document: Document, kind: str) -> Document:
    """A condition of an object's status; empty where it has none of the kind."""
    conditions = parts(document, "status", "conditions")
    return next((each for each in conditions if word(each, "type") == kind), {})


@dataclass(frozen=True, slots=True)
class Scene:
    """All that Kubernetes says."""

    now: float
    name: str
    namespace: str
    pod: Document
    """Empty: it is gone, was never there, or could not be read (`unread`)."""
    node_name: str
    node: Document
    """Empty: not read, or gone (`node_gone`)."""
    node_gone: bool
    owner: Document
    """A Job or the like, with its kind; empty: none, or not read."""
    events: tuple[Happening, ...]
    """Of the pod, its owner and its node."""
    claims: tuple[Document, ...] = ()
    """ResourceClaims of the pod."""
    slices: tuple[Document, ...] = ()
    """ResourceSlices of its node, where claims are to be understood."""
    log: tuple[str, ...] | None = None
    """The end of the dead container's; None: not read."""
    unread: Gap | None = None
    """Why the pod could not be read; None: it was, or there is none."""
    siblings: int = 0
    """Pods of the owner that have failed, this one among them; 0: not looked for."""
    peers: tuple[Document, ...] = ()
    """The other pods of the owner, where it was asked for by its name."""

    def of_peer(self, pod: Document) -> Scene:
        """What is known of another pod of the owner, which is its document."""
        return Scene(
            now=self.now,
            name=word(pod, "metadata", "name"),
            namespace=self.namespace,
            pod=pod,
            node_name=word(pod, "spec", "nodeName"),
            node={},
            node_gone=False,
            owner=self.owner,
            events=(),
        )

    @property
    def absent(self) -> bool:
        """Whether there is no more than events to go by."""
        return not self.pod

    @property
    def gone(self) -> bool:
        """Whether the API server says that there is no such pod."""
        return self.absent and self.unread is None

    @property
    def phase(self) -> str:
        return word(self.pod, "status", "phase")

    @property
    def death(self) -> Death | None:
        """The container that explains the pod."""
        return first_death(self.pod)

    @property
    def of_pod(self) -> tuple[Happening, ...]:
        """The pod's own events."""
        return tuple(each for each in self.events if each.kind == "Pod")

    @property
    def owner_said(self) -> str:
        """`Job train`; empty where it is not known."""
        name = word(self.owner, "metadata", "name")
        return one_line(f"{word(self.owner, 'kind')} {name}", NAME_CHARS)

    @property
    def gpus_wanted(self) -> int:
        """Devices that it asks for by name; claims not counted."""
        return sum(self.resources().values())

    @property
    def uses_gpus(self) -> bool:
        """Whether it asks for GPUs, as far as can be known."""
        return self.absent or bool(self.gpus_wanted or parts(self.pod, "spec", "resourceClaims"))

    def resources(self) -> Mapping[str, int]:
        """What GPUs it asks for, by resource."""
        return requested(self.pod)

    @property
    def died(self) -> float | None:
        """When the pod ended, in Unix seconds; None: not known, or it has not."""
        death = self.death
        if death is not None and death.finished is not None:
            return death.finished
        disruption = moment(condition(self.pod, "DisruptionTarget"), "lastTransitionTime")
        if disruption is not None:
            return disruption
        ends = [each.at for each in self.of_pod if each.at is not None and each.reason in _ENDS]
        return max(ends, default=None)

    @property
    def started(self) -> float | None:
        """When the container that died started, or else the pod came to its node."""
        death = self.death
        if death is not None and death.started is not None and not death.never_ran:
            return death.started
        return moment(self.pod, "status", "startTime")

    @property
    def began(self) -> float | None:
        """The same, or for a pod that is gone its first event."""
        if self.started is not None:
            return self.started
        return min((each.at for each in self.of_pod if each.at is not None), default=None)

    @property
    def pod_began(self) -> float | None:
        """When the pod came to its node: what is older is of other pods."""
        return moment(self.pod, "status", "startTime") or self.began

    @property
    def window(self) -> tuple[float, float]:
        """When errors may have been the cause, in Unix seconds."""
        end = self.now if self.died is None else min(self.died + AFTER_SECONDS, self.now)
        begin = end - UNKNOWN_SECONDS if self.began is None else self.began - BEFORE_SECONDS
        return min(begin, end), end


_ENDS: Final = frozenset(
    {"Evicted", "Killing", "Preempted", "TaintManagerEviction", "NodeNotReady", "Preempting"}
)
"""Reasons of events that come when a pod ends."""

"""What Kubernetes' objects say of a node's last hours: events, conditions, ends of containers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from mcp_gpu.gpu.health.model import Severity
from mcp_gpu.gpu.xid.report import utc
from mcp_gpu.workloads.documents import Document, is_path_part, moment, word
from mcp_gpu.workloads.failure.endings import deaths, spoken
from mcp_gpu.workloads.failure.scene import Happening, Scene, condition
from mcp_gpu.workloads.incident.model import AffectedPod, Seen, told

__all__ = ["Held", "Pods", "of_events", "of_node"]

_WRONG: Final[dict[str, Severity]] = {
    "NodeNotReady": "critical",
    "Rebooted": "critical",
    "SystemOOM": "warning",
    "OOMKilling": "warning",
    "EvictionThresholdMet": "warning",
}
"""Events of a node that say that something went wrong. Those of pods stand beside what the pods
themselves say, of which more is known."""

STATE_CHARS: Final = 160


def of_events(happened: Iterable[Happening], namespace: str) -> Iterator[Seen]:
    """Events, each at its first time: the last moves on while it comes again.

    Args:
        namespace: of those of pods.
    """
    for each in happened:
        at = each.began
        if at is None:
            continue
        of_pod = each.kind == "Pod" and is_path_part(each.name) and is_path_part(namespace)
        whose = "" if of_pod else f"{each.kind.lower()} {each.name}: "
        again = ""
        if each.count > 1 and each.at is not None:
            again = f" (x{each.count}, the last {utc(each.at)})"
        yield Seen(
            at=at,
            severity=_WRONG.get(each.reason, "info") if each.kind == "Node" else "info",
            source="kubernetes",
            key=f"event {each.reason}",
            text=told(f"{whose}{each.reason}{again}: {each.message}"),
            pod=(namespace, each.name) if of_pod else None,
        )


def of_node(node: Document, name: str) -> Iterator[Seen]:
    """Conditions of the node that are as they should not be."""
    for kind, well, severity in _CONDITIONS:
        found = condition(node, kind)
        at = moment(found, "lastTransitionTime")
        status = word(found, "status")
        if at is not None and status and status != well:
            text = told(f"node {name}: {kind} is {status}: {word(found, 'message')}")
            yield Seen(at, severity, "kubernetes", f"condition {kind}", text)


_CONDITIONS: Final[tuple[tuple[str, str, Severity], ...]] = (
    ("Ready", "True", "critical"),
    ("MemoryPressure", "False", "warning"),
    ("DiskPressure", "False", "warning"),
    ("PIDPressure", "False", "warning"),
)


SEEN_SECONDS: Final = 15.0
"""A holder may have gone on for so long after it was seen last: an agent looks every ten."""


class Held(NamedTuple):
    """That a pod has held a GPU. Times are Unix seconds."""

    pod: tuple[str, str]
    gpu_index: int | None
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Pods:
    """The pods of a node: which hold or held its GPUs, and which died.

    Args:
        documents: of those that Kubernetes has there.
        held: indices of GPUs by namespace and name, where the node's agent says; None for an
            index that it does not know.
        past: who held them before, where it remembers.
    """

    now: float
    node: str
    documents: Sequence[Document]
    held: Mapping[tuple[str, str], Sequence[int | None]]
    past: Sequence[Held] = ()

    @property
    def _scenes(self) -> Iterator[Scene]:
        for document in self.documents:
            name, namespace = (word(document, "metadata", each) for each in ("name", "namespace"))
            if is_path_part(name) and is_path_part(namespace):
                yield Scene(
                    now=self.now,
                    name=name,
                    namespace=namespace,
                    pod=document,
                    node_name=self.node,
                    node={},
                    node_gone=False,
                    owner={},
                    events=(),
                )

    def _uses_gpus(self, scene: Scene) -> bool:
        name = scene.namespace, scene.name
        return scene.uses_gpus or name in self.held or any(name == each.pod for each in self.past)

    def ends(self) -> Iterator[Seen]:
        """How containers ended. With a pod that has no GPU nothing of GPUs went wrong."""
        for scene in self._scenes:
            severity: Severity = "warning" if self._uses_gpus(scene) else "info"
            pod = scene.namespace, scene.name
            for death in deaths(scene.pod):
                if not death.ended_well and death.finished is not None:
                    text = told(f"container {death.container} ended: {spoken(death)}")
                    yield Seen(death.finished, severity, "container", "end", text, pod=pod)
            reason, at = word(scene.pod, "status", "reason"), scene.died
            if reason and scene.death is None and at is not None:
                text = told(f"{reason}: {word(scene.pod, 'status', 'message')}")
                yield Seen(at, severity, "kubernetes", f"status {reason}", text, pod=pod)

    def affected(self, gpus: Iterable[int], begin: float, end: float) -> tuple[AffectedPod, ...]:
        """Those that hold GPUs, and those with GPUs that died then.

        Args:
            gpus: on which something went wrong.
            begin: Unix seconds, as `end`.
        """
        sick = frozenset(gpus)
        found: list[AffectedPod] = []
        scenes = {(each.namespace, each.name): each for each in self._scenes}
        holding = {name: tuple(indices) for name, indices in self.held.items()}
        for each in self.past:
            if each.since <= end and each.until + SEEN_SECONDS >= begin:
                holding[each.pod] = (*holding.get(each.pod, ()), each.gpu_index)
        for name in dict.fromkeys((*holding, *scenes)):
            scene, held = scenes.get(name), holding.get(name, ())
            died = None if scene is None else scene.died
            fell = died is not None and begin <= died <= end
            if name not in holding and (scene is None or not (fell and scene.uses_gpus)):
                continue
            known = tuple(index for index in held if index is not None)
            hit: bool | None = fell or bool(sick.intersection(known))
            if not hit and (not held or None in held) and sick:
                hit = None
            found.append(
                AffectedPod(
                    namespace=told(name[0]),
                    pod=told(name[1]),
                    gpus=tuple(sorted(set(known))),
                    concerned=hit,
                    state="not known to Kubernetes" if scene is None else _state(scene),
                )
            )
        rank = {True: 0, None: 1, False: 2}
        return tuple(
            sorted(found, key=lambda each: (rank[each.concerned], each.namespace, each.pod))
        )


def _state(scene: Scene) -> str:
    death, died = scene.death, scene.died
    if died is None:
        return told(scene.phase or "phase not known", STATE_CHARS)
    how = word(scene.pod, "status", "reason") if death is None else spoken(death)
    again = ", started again" if death is not None and death.previous else ""
    return told(f"{scene.phase}, died {utc(died)}: {how}{again}", STATE_CHARS)

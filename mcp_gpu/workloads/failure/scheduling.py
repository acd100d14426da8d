"""Why the scheduler finds no node for a pod: each reason that it counts, and the weightiest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from mcp_gpu.workloads.documents import moment, part, parts, word
from mcp_gpu.workloads.failure.model import Cause, Fact, Weight
from mcp_gpu.workloads.failure.scene import Scene, condition

__all__ = ["unscheduled"]

MESSAGE_CHARS: Final = 4_096
REASONS_TOLD: Final = 4
REASON_CHARS: Final = 100

_COUNTED: Final = re.compile(r"(?:^|, )(\d{1,6}) (.+?)(?=, \d{1,6} |$)")
_CONTROL_PLANE: Final = re.compile(r"taint\W+node-role\.kubernetes\.io/(?:control-plane|master)\b")


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of reason.

    Args:
        says: of how many nodes, and what the pattern found: `2 have too few nvidia.com/gpu free`.
    """

    pattern: re.Pattern[str]
    says: Callable[[str, re.Match[str]], str]
    first_step: str


def _kind(pattern: str, says: Callable[[str, re.Match[str]], str], first_step: str) -> _Kind:
    return _Kind(re.compile(pattern, re.IGNORECASE), says, first_step)


_KINDS: Final = (
    _kind(
        r"resource ?claim|cannot allocate all claims|\bDRA\b",
        lambda count, _: f"{count} cannot give it the devices that its ResourceClaim asks for",
        "Compare the claim's selectors with what there is: kubectl get resourceslices; see "
        "whether the DRA driver runs on the nodes.",
    ),
    _kind(
        r"Insufficient (nvidia\.com/mig-[\w-]+(?:\.[\w-]+)*)",
        lambda count, found: (
            f"{count} have no such MIG profile free, or are not cut into it ({found[1]})"
        ),
        "See who holds the GPUs (get_pod_gpu_allocation) and how they are cut "
        "(get_gpu_inventory); it starts by itself once enough are free on one node.",
    ),
    _kind(
        r"Insufficient (nvidia\.com/[\w-]+(?:\.[\w-]+)*)",
        lambda count, found: f"{count} have too few {found[1]} free",
        "See who holds the GPUs (get_pod_gpu_allocation) and whether GPUs are missing "
        "(get_gpu_health); it starts by itself once enough are free on one node.",
    ),
    _kind(
        r"Insufficient ([\w-]+(?:[./][\w-]+)*)",
        lambda count, found: f"{count} have too little {found[1]} free",
        "Ask for less of it, or see what uses it up: kubectl describe node.",
    ),
    _kind(
        r"taint\W+node\.kubernetes\.io/(?:unreachable|not-ready|network-unavailable)",
        lambda count, _: f"{count} are not ready",
        "See why the nodes are not ready: kubectl describe node.",
    ),
    _kind(
        r"were unschedulable|taint\W+node\.kubernetes\.io/unschedulable",
        lambda count, _: f"{count} are cordoned",
        "See who cordoned the nodes and why; kubectl uncordon takes it back.",
    ),
    _kind(
        r"untolerated taints?(?: \{([^{}]{1,80}?):? ?\})?|had taint",
        lambda count, found: (
            f"{count} have taints that it does not tolerate"
            + (f" ({found[1]})" if found[1] else "")
        ),
        "Give the pod tolerations for the nodes that it is to run on (of GPU nodes often "
        "nvidia.com/gpu), or see who tainted them and why.",
    ),
    _kind(
        r"volume node affinity|PersistentVolume|persistentvolumeclaim|volume",
        lambda count, _: f"{count} do not have its volumes",
        "Look at its PersistentVolumeClaims and where their volumes lie: kubectl describe pvc.",
    ),
    _kind(
        r"anti-?affinity|topology spread|pod affinity",
        lambda count, _: f"{count} do not suit its rules about other pods",
        "Look at its pod affinity, anti-affinity and topology spread constraints.",
    ),
    _kind(
        r"affinity|selector",
        lambda count, _: f"{count} do not have the labels that it asks for",
        "Compare its nodeSelector and affinity with kubectl get nodes --show-labels; GPU "
        "feature discovery sets nvidia.com/gpu.product and the like.",
    ),
)


def unscheduled(scene: Scene) -> Iterator[Cause]:
    """That the scheduler finds no node, or was told to wait."""
    found = condition(scene.pod, "PodScheduled")
    refused = [each for each in scene.of_pod if each.reason == "FailedScheduling"]
    if word(found, "status") == "False":
        message = word(found, "message") or (refused[-1].message if refused else "")
        at = moment(found, "lastTransitionTime")
        first = Fact.of("condition PodScheduled", f"{word(found, 'reason')}: {message}", at)
    elif scene.absent and refused and not scene.node_name:
        message, first = refused[-1].message, refused[-1].fact()
    else:
        return
    facts = (first, *(each.fact() for each in refused[-1:] if each.message != message))
    claims = tuple(_pending_claims(scene))
    says, step = _why(scene, word(found, "reason"), message, bool(claims))
    yield Cause(
        Weight.STATED, "scheduling", "true", "high", says, step, (*facts, *claims)
    )  # fmt: skip


def _why(scene: Scene, reason: str, message: str, claims: bool) -> tuple[str, str]:
    if reason == "SchedulingGated":
        return (
            "It is held back by a scheduling gate: a queue such as Kueue has not admitted it yet.",
            "Look at its Workload or queue: kubectl get workloads; quota may be used up.",
        )
    wanted = ", ".join(f"{count} x {name}" for name, count in scene.resources().items())
    asks = f" It asks for {wanted}." if wanted else ""
    told = sorted(_reasons(message), key=lambda each: -each[0])
    kinds = list(dict.fromkeys(kind for _, _, kind in told if kind is not None))
    if claims and _KINDS[0] not in kinds:
        kinds.insert(0, _KINDS[0])
    if not told and claims:
        says = "No node can give it the devices that its ResourceClaim asks for."
    elif not told:
        says = "It has no node to run on."
    else:
        says = f"No node takes it: {', '.join(text for _, text, _ in told[:REASONS_TOLD])}."
    steps = [kind.first_step for kind in kinds[:2]]
    step = " And: ".join(steps) or "Read the scheduler's words and mend what they name."
    return f"{says}{asks}", step


def _reasons(message: str) -> Iterator[tuple[int, str, _Kind | None]]:
    """How many nodes, what of them, and of which kind it is. Nodes of the control plane are none
    where others are told of: they are not for such pods."""
    _, _, counted = message[:MESSAGE_CHARS].partition("nodes are available: ")
    counted = counted.partition(" preemption: ")[0].rstrip(". ")
    found = [(int(each[1]), each[2]) for each in _COUNTED.finditer(counted)]
    if counted and not found:  # of the pod, and not of so many nodes
        found = [(0, counted)]
    workers = [each for each in found if not _CONTROL_PLANE.search(each[1])]
    for count, text in workers or found:
        yield _reason(count, text)


def _reason(count: int, text: str) -> tuple[int, str, _Kind | None]:
    whom = str(count) if count else "they"
    for kind in _KINDS:
        match = kind.pattern.search(text)
        if match is not None:
            return count, kind.says(whom, match), kind
    short = text[:REASON_CHARS].removeprefix("node(s) ")
    return count, f"{count}: {short}" if count else short, None


def _pending_claims(scene: Scene) -> Iterator[Fact]:
    for claim in scene.claims:
        name = word(claim, "metadata", "name")
        if not part(claim, "status", "allocation"):
            classes = ", ".join(_classes(claim)) or "devices"
            yield Fact.of(f"resourceclaim {name}", f"not allocated: it asks for {classes}")
    for status in parts(scene.pod, "status", "resourceClaimStatuses"):
        if not word(status, "resourceClaimName"):
            yield Fact.of("status of pod", f"claim {word(status, 'name')} has not been made yet")


def _classes(claim: object) -> Iterator[str]:
    for request in parts(claim, "spec", "devices", "requests"):
        name = word(request, "exactly", "deviceClassName") or word(request, "deviceClassName")
        yield f"{word(request, 'name')} of class {name}"

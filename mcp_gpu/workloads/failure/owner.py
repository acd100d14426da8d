"""What the Job, or the like, of a pod says of the pod's failure."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_gpu.workloads.documents import Document, moment, parts, word
from mcp_gpu.workloads.failure.model import Cause, Fact, Weight
from mcp_gpu.workloads.failure.scene import Scene, condition

__all__ = ["completed", "owner_failures", "without_pods"]


def without_pods(scene: Scene) -> Cause:
    """A Job or the like of which no pod is left, nor an event of one."""
    done = _done(scene)
    failed = next(owner_failures(scene), None)
    if done:
        at = moment(done, "lastTransitionTime")
        return Cause(
            Weight.STATED, "succeeded", "true", "high", f"{scene.owner_said} has completed.",
            "Nothing has to be done about it.",
            (Fact.of(f"status of {scene.owner_said}", f"completed: {word(done, 'reason')}", at),),
        )  # fmt: skip
    says = f"{scene.owner_said} has no pods, and no event tells of one."
    if failed:
        why = f"{word(failed, 'reason')}: {word(failed, 'message')}"
        says = f"{scene.owner_said} has failed ({why}), and its pods are gone."
    return Cause(
        Weight.STATED, "unknown", "unknown", "low", says,
        "Look at logs kept elsewhere. With restartPolicy Never a Job keeps its failed pods, and "
        "they can be asked about; events live for an hour.",
    )  # fmt: skip


def _done(scene: Scene) -> Document:
    """The condition by which it has ended well, whatever this pod did; empty: none."""
    kinds = ("Complete", "Completed", "Succeeded")
    found = (condition(scene.owner, kind) for kind in kinds)
    return next((each for each in found if word(each, "status") == "True"), {})


def owner_failures(scene: Scene) -> Iterator[Document]:
    """The conditions by which it has failed."""
    for each in parts(scene.owner, "status", "conditions"):
        if word(each, "type") in ("Failed", "FailureTarget") and word(each, "status") == "True":
            yield each


def completed(scene: Scene, verdict: Cause) -> Cause:
    """The same of a pod whose owner has ended well after all."""
    done = _done(scene)
    if not done or verdict.category in ("succeeded", "still_running"):
        return verdict
    at = moment(done, "lastTransitionTime")
    fact = Fact.of(f"status of {scene.owner_said}", f"completed: {word(done, 'reason')}", at)
    if not scene.siblings:
        says = f"{verdict.says} But: {scene.owner_said} has completed since."
        return verdict.but(says=says, facts=(*verdict.facts, fact))
    return Cause(
        Weight.STATED, "succeeded", "true", "high",
        f"{scene.owner_said} has completed. Before that pod {scene.name} of it failed: "
        f"{verdict.says}",
        "Nothing has to be done about it; what made the pod fail: explain_failure of the pod.",
        (fact, *verdict.facts),
    )  # fmt: skip

"""From all that may have ended a pod to one answer, with what speaks for it and what does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from mcp_gpu.gpu.xid.report import utc
from mcp_gpu.workloads.documents import moment, part, parts, word
from mcp_gpu.workloads.failure.beginnings import beginnings
from mcp_gpu.workloads.failure.endings import (
    ASKED_TO_END,
    KILLED,
    OWN_SIGNALS,
    Death,
    deaths,
    spoken,
)
from mcp_gpu.workloads.failure.hardware import Sight, hardware
from mcp_gpu.workloads.failure.model import (
    Alternative,
    Category,
    Cause,
    Explanation,
    Fact,
    HeldGpu,
    Weight,
)
from mcp_gpu.workloads.failure.owner import completed, owner_failures, without_pods
from mcp_gpu.workloads.failure.scene import Scene, condition
from mcp_gpu.workloads.failure.secrets import SCANNED_CHARS, safe_line, without_secrets
from mcp_gpu.workloads.failure.statements import statements
from mcp_gpu.workloads.failure.words import LINE_CHARS, last_words
from mcp_gpu.workloads.reads import Gap
from transports.text import one_line, quoted, visible

__all__ = ["explain"]

EVIDENCE: Final = 24
ALTERNATIVES: Final = 6
GAPS: Final = 16
SAYS_CHARS: Final = 400
STEP_CHARS: Final = 500

_UNSURE: Final = frozenset({"gpu_hardware", "gpu_memory_error", "nvlink", "driver"})
"""What a program's own error may have been brought about by."""


def explain(
    scene: Scene,
    sight: Sight | None,
    held: Sequence[HeldGpu],
    *,
    gpus_source: str,
    gaps: Sequence[Gap],
    peers: Sequence[Cause] = (),
) -> Explanation:
    """The answer.

    Args:
        sight: None: the node's agent was not asked, or did not answer.
        held: the pod's GPUs, with the agent's indices where they are known.
        peers: what befell the GPUs of other pods of its Job, which it may have waited for.
    """
    causes = [*statements(scene), *beginnings(scene)]
    if sight is not None and scene.uses_gpus:
        causes += hardware(scene, sight, held)
    words = tuple(last_words(scene))
    causes = [_agreed(cause, words) for cause in causes]
    if any(each.category == "communication" for each in words):
        causes += peers
    causes += words
    causes += _by_ending(scene)
    verdict = _now(scene, completed(scene, _verdict(scene, sight, held, causes)))
    evidence = tuple(dict.fromkeys(_evidence(scene, verdict, causes)))
    death = scene.death
    return Explanation(
        pod=visible(word(scene.pod, "metadata", "name") or (scene.name if scene.of_pod else "")),
        namespace=scene.namespace,
        uid=visible(word(scene.pod, "metadata", "uid")),
        node=visible(scene.node_name),
        owner=scene.owner_said,
        container="" if death is None else death.container,
        gone=scene.gone,
        category=verdict.category,
        not_your_code=verdict.not_your_code,
        confidence=verdict.confidence,
        says=safe_line(verdict.says, SAYS_CHARS),
        first_step=safe_line(verdict.first_step, STEP_CHARS),
        since=None if scene.started is None else utc(scene.started),
        died=None if scene.died is None else utc(scene.died),
        gpus=tuple(held),
        gpus_source=gpus_source,
        evidence=evidence[:EVIDENCE],
        evidence_omitted=max(len(evidence) - EVIDENCE, 0),
        alternatives=tuple(_alternatives(verdict, causes))[:ALTERNATIVES],
        gaps=tuple(gaps[:GAPS]),
        simulated=sight is not None and sight.simulated,
    )


_AGREE: Final[dict[Category, frozenset[Category]]] = {
    "gpu_hardware": frozenset({"gpu_hardware"}),
    "gpu_memory_error": frozenset({"gpu_memory_error"}),
    "nvlink": frozenset({"nvlink", "communication"}),
    "driver": frozenset({"driver", "gpu_hardware"}),
}
"""What a program says where that has befallen its GPU."""


def _agreed(cause: Cause, words: Sequence[Cause]) -> Cause:
    """What is so now counts as what was so then where the program's last words say the same."""
    said = {each.category for each in words}
    if cause.weight is Weight.SEEN and _AGREE.get(cause.category, frozenset()) & said:
        return cause.but(weight=Weight.HARDWARE, not_your_code="true", confidence="medium")
    return cause


def _verdict(
    scene: Scene, sight: Sight | None, held: Sequence[HeldGpu], causes: Sequence[Cause]
) -> Cause:
    alive = _alive(scene, causes)
    if alive is not None:
        return alive
    told = [cause for cause in causes if cause.weight is not Weight.HINT]
    if not told:
        return _nothing(scene)
    chosen = min(told, key=lambda cause: cause.weight)
    if chosen.weight is Weight.STATED:
        return _beside(chosen, causes)
    if chosen.category == "out_of_memory_gpu" and any(each.shared for each in held):
        says = f"{chosen.says} Others share the GPU, and may have taken it."
        return chosen.but(not_your_code="unknown", confidence="low", says=says)
    if not chosen.rests_on_gpu or not scene.uses_gpus:
        return chosen
    doubt = _doubt(scene, sight, held, causes)
    if not doubt:
        return chosen
    return chosen.but(not_your_code="unknown", confidence="low", says=f"{chosen.says} {doubt}")


def _beside(stated: Cause, causes: Sequence[Cause]) -> Cause:
    """What Kubernetes states, with what befell the pod's own GPU besides."""
    sick = next((each for each in causes if each.weight is Weight.HARDWARE), None)
    return stated if sick is None else stated.but(says=f"{stated.says} But: {sick.says}")


def _doubt(
    scene: Scene, sight: Sight | None, held: Sequence[HeldGpu], causes: Sequence[Cause]
) -> str:
    """Why the GPU's part in it is not known; empty where it was well."""
    if not scene.node_name:
        return "Whether a GPU failed is not known: nobody says on which node it was."
    if sight is None or not sight.sees_xids:
        return f"Whether a GPU failed is not known: {scene.node_name} could not be asked for Xids."
    suspects = [
        cause
        for cause in causes
        if cause.category in _UNSURE
        and (
            cause.weight is Weight.SEEN
            or (cause.weight is Weight.HINT and cause.not_your_code == "unknown")
        )
    ]
    return "" if not suspects else f"But: {suspects[0].says}"


def _alive(scene: Scene, causes: Sequence[Cause]) -> Cause | None:
    """That it has not failed, where it has not."""
    stated = any(cause.weight is Weight.STATED for cause in causes)
    if scene.phase == "Succeeded":
        return Cause(
            Weight.STATED, "succeeded", "true", "high",
            "It has not failed: all its containers ended with exit code 0.",
            "Nothing has to be done about it.", tuple(map(_ended, deaths(scene.pod))),
        )  # fmt: skip
    if stated or scene.death is not None or scene.phase not in ("Running", "Pending"):
        return None
    at = moment(scene.pod, "status", "startTime")
    facts: tuple[Fact, ...] = (Fact.of("status of pod", f"phase {scene.phase}", at),)
    if scene.phase == "Pending":
        return Cause(
            Weight.STATED, "still_running", "unknown", "medium",
            "It is on its way to start, and nothing has failed yet.",
            "Wait a minute, then ask again.", facts,
        )  # fmt: skip
    says = "It runs, and none of its containers has died."
    ready = condition(scene.node, "Ready")
    if ready and word(ready, "status") != "True":
        text = f"Ready is {word(ready, 'status')}: {word(ready, 'message')}"
        since = moment(ready, "lastTransitionTime")
        facts += (Fact.of(f"node {scene.node_name}", text, since),)
        says = f"{says} But: its node {scene.node_name} is not ready: {word(ready, 'message')}"
        step = f"See what its node lacks: kubectl describe node {scene.node_name}."
        return Cause(Weight.STATED, "still_running", "unknown", "high", says, step, facts)
    step = "If it hangs, look at its GPUs: get_gpu_health of its node."
    for sick in causes:
        if sick.weight in (Weight.HARDWARE, Weight.SEEN):
            says, step = f"{says} But: {sick.says}", sick.first_step
            break
    return Cause(Weight.STATED, "still_running", "unknown", "high", says, step, facts)


def _now(scene: Scene, verdict: Cause) -> Cause:
    """The same of a container that has been started again, and runs."""
    death = scene.death
    again = any(
        word(status, "name") == death.container and "running" in part(status, "state")
        for kind in ("containerStatuses", "initContainerStatuses")
        for status in parts(scene.pod, "status", kind)
        if death is not None
    )
    if not again or scene.phase != "Running":
        return verdict
    return verdict.but(says=f"{verdict.says} It has been started again since, and runs.")


def _nothing(scene: Scene) -> Cause:
    if scene.unread is not None:
        grant = scene.unread.grant
        says = f"Pod {scene.name} in {scene.namespace} could not be read: {scene.unread.why}."
        step = (
            f"Grant the gateway what it lacks: {grant}."
            if grant
            else "See why the gateway does not reach the API server, then ask again."
        )
    elif scene.absent and not scene.of_pod and scene.owner:
        return without_pods(scene)
    elif scene.absent and not scene.of_pod:
        says = f"There is no pod {scene.name} in {scene.namespace}, and no event tells of one."
        step = (
            "Check name and namespace. Events live for an hour: of what is longer gone only logs "
            "and metrics kept elsewhere know."
        )
    else:
        says = "Nothing that could be read says why."
        step = "Grant what the gaps name, or look at kubectl describe pod and its log."
    return Cause(Weight.STATED, "unknown", "unknown", "low", says, step)


def _ended(death: Death) -> Fact:
    again = f"; started again, {death.restarts} restarts" if death.previous else ""
    return Fact.of(f"container {death.container}", f"{spoken(death)}{again}", death.finished)


def _by_ending(scene: Scene) -> Iterator[Cause]:
    """What an exit code alone says, which is little."""
    death = scene.death
    if death is None:
        return
    ended, name = spoken(death), f"Container {death.container}"
    facts = (_ended(death),)
    if death.signal == KILLED:
        yield Cause(
            Weight.ENDING, "unknown", "unknown", "low",
            f"{name} was killed (SIGKILL), and nothing says by whom.",
            "Look at the node's kernel log for the out-of-memory killer, which may have taken a "
            "child of it, and at whoever deletes pods.",
            facts,
        )  # fmt: skip
    elif death.signal in ASKED_TO_END:
        yield Cause(
            Weight.ENDING, "stopped", "unknown", "low",
            f"{name} was asked to end ({ended}), and nothing says by whom.",
            "Find out who ended it: kubectl get events, the Job's deadline, the autoscaler.",
            facts,
        )  # fmt: skip
    elif 125 <= death.exit_code <= 128:
        yield Cause(
            Weight.ENDING, "config", "true", "medium", f"{name}: {ended}.",
            "Correct the container's command.", facts,
        )  # fmt: skip
    else:
        own = death.signal in OWN_SIGNALS
        yield Cause(
            Weight.ENDING, "your_code", "false", "medium", f"{name} ended by itself: {ended}.",
            "Read its log: kubectl logs"
            f"{' --previous' if death.previous else ''} -c {death.container}"
            + ("; have it write a core file or a stack trace." if own else "."),
            facts, rests_on_gpu=True,
        )  # fmt: skip


def _evidence(scene: Scene, verdict: Cause, causes: Iterable[Cause]) -> Iterator[Fact]:
    yield from verdict.facts
    every = sorted(causes, key=lambda cause: cause.weight)
    yield from (fact for cause in every for fact in cause.facts)
    for death in deaths(scene.pod):
        if not death.ended_well or death == scene.death:
            yield _ended(death)
            message = death.message.strip()
            # Of several lines, as where the log stands in for it, only those known are told.
            if message and "\n" not in message and not death.never_ran:
                whose = f"termination message of {death.container}"
                text = quoted(without_secrets(message[:SCANNED_CHARS]), LINE_CHARS)
                yield Fact.of(whose, text, death.finished)
    for each in owner_failures(scene):
        text = f"{word(each, 'type')}: {word(each, 'reason')}: {word(each, 'message')}"
        at = moment(each, "lastTransitionTime")
        yield Fact.of(f"status of {scene.owner_said}", text, at)
    if scene.siblings > 1:
        text = f"{scene.siblings} of its pods have failed; this one was the first to"
        yield Fact.of(f"pods of {scene.owner_said}", text)
    # What else happened, the latest first: warnings alone are worth the room.
    told = " ".join(fact.text for cause in every for fact in cause.facts)
    for happening in reversed(scene.of_pod):
        if one_line(happening.message, 200) in told:
            continue
        if happening.reason in ("BackOff", "Failed", "Unhealthy", "FailedScheduling", "Killing"):
            yield happening.fact()


def _alternatives(verdict: Cause, causes: Iterable[Cause]) -> Iterator[Alternative]:
    told: set[str] = {verdict.category, verdict.says, "unknown"}
    listed: set[Category] = set()
    for cause in sorted(causes, key=lambda cause: cause.weight):
        # Of hints each says something of its own; of others one of a category is enough.
        key = cause.says if cause.weight is Weight.HINT else cause.category
        if cause.category == "your_code" and cause.category in listed:
            continue  # of the program it says enough
        if key not in told and cause.category != "unknown":
            told |= {key, cause.says}
            listed.add(cause.category)
            yield Alternative(category=cause.category, why=safe_line(cause.says, SAYS_CHARS))

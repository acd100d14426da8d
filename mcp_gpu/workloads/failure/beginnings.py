"""Why a pod never began: no node, no device, no image, or nothing that starts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from mcp_gpu.workloads.documents import moment, part, parts, word
from mcp_gpu.workloads.failure.model import Cause, Fact, Weight
from mcp_gpu.workloads.failure.scene import Happening, Scene
from mcp_gpu.workloads.failure.scheduling import unscheduled

__all__ = ["TOOLKIT", "beginnings"]

_IMAGE: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_CONFIG: Final = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)

TOOLKIT: Final = re.compile(
    r"nvidia-container-(?:cli|runtime)|libnvidia-|nvml error|driver/library version mismatch"
    r"|unresolvable CDI devices|failed to inject CDI devices|nvidia-smi",
    re.IGNORECASE,
)
"""NVIDIA's container toolkit, in what a runtime says."""

_DENIED: Final = re.compile(r"unauthorized|denied|forbidden|401|403|authentication", re.IGNORECASE)
_ABSENT: Final = re.compile(r"not found|manifest unknown|does not exist|no match for platform")


def beginnings(scene: Scene) -> Iterator[Cause]:
    """All that keeps it from running."""
    yield from unscheduled(scene)
    yield from _images(scene)
    yield from _starts(scene)
    yield from _sandbox(scene)
    yield from _not_made(scene)


def _images(scene: Scene) -> Iterator[Cause]:
    waiting = [
        (word(status, "name"), word(status, "image"), part(status, "state", "waiting"))
        for kind in ("initContainerStatuses", "containerStatuses")
        for status in parts(scene.pod, "status", kind)
    ]
    stuck = [each for each in waiting if word(each[2], "reason") in _IMAGE]
    failed = [
        each
        for each in scene.of_pod
        if each.reason in ("Failed", "InspectFailed") and "ull image" in each.message
    ]
    if stuck:
        name, image, state = stuck[0]
        message = _longer(word(state, "message"), failed)
        where = f"container {name}"
        first = Fact.of(where, f"{word(state, 'reason')}: {word(state, 'message')}")
    elif scene.absent and failed:
        image, message, first = "", failed[-1].message, failed[-1].fact()
    else:
        return
    if _DENIED.search(message):
        step = (
            "The registry refuses: give the pod imagePullSecrets that may read the image, and "
            "check its name."
        )
    elif _ABSENT.search(message):
        step = "There is no such image: check its name, tag and architecture."
    else:
        step = "See whether the node reaches the registry: names, proxy, certificates, rate limits."
    facts = (first, *(each.fact() for each in failed[-1:]))
    says = f"The image {image} could not be pulled." if image else "Its image could not be pulled."
    yield Cause(Weight.STATED, "image", "true", "high", says, step, facts)


def _longer(message: str, failed: list[Happening]) -> str:
    """What the registry said is in the event: back-off has overwritten it in the status."""
    return " ".join((message, *(each.message for each in failed[-1:])))


def _starts(scene: Scene) -> Iterator[Cause]:
    """Containers that the runtime could not make or start."""
    for kind in ("initContainerStatuses", "containerStatuses"):
        for status in parts(scene.pod, "status", kind):
            for state in _failed_starts(status):
                reason, message = word(state, "reason"), word(state, "message")
                where = f"container {word(status, 'name')}"
                fact = Fact.of(where, f"{reason}: {message}", moment(state, "finishedAt"))
                yield _not_started(reason, message, fact)
                return


def _failed_starts(status: object) -> Iterator[object]:
    waiting = part(status, "state", "waiting")
    if word(waiting, "reason") in _CONFIG:
        yield waiting
    for which in ("state", "lastState"):
        ended = part(status, which, "terminated")
        if word(ended, "reason") in ("StartError", "ContainerCannotRun"):
            yield ended


def _not_started(reason: str, message: str, fact: Fact) -> Cause:
    if TOOLKIT.search(message):
        return Cause(
            Weight.STATED, "driver", "true", "high",
            "NVIDIA's container toolkit could not give the container its GPUs.",
            "Look at get_gpu_health of the node: driver and its libraries have to be of one "
            "version; restart the node after a driver update.",
            (fact,),
        )  # fmt: skip
    step = (
        "Make the Secret, ConfigMap or key that it names, or correct the name."
        if reason == "CreateContainerConfigError"
        else "Correct the container's command, its mounts or its security context."
    )
    return Cause(
        Weight.STATED, "config", "true", "high",
        f"The container could not be started ({reason}).", step, (fact,),
    )  # fmt: skip


def _sandbox(scene: Scene) -> Iterator[Cause]:
    """What holds up a pod on its node, which only events tell."""
    if scene.phase not in ("Pending", "") or (scene.absent and not scene.node_name):
        return
    told = {each.reason: each for each in scene.of_pod}
    for reason in ("FailedCreatePodSandBox", "FailedMount", "FailedAttachVolume",
                   "FailedPrepareDynamicResources"):  # fmt: skip
        each = told.get(reason)
        if each is None:
            continue
        named = re.search(r"(?:secret|configmap)s? \"|no runtime for|not found", each.message)
        if TOOLKIT.search(each.message):
            yield _not_started(reason, each.message, each.fact())
        elif reason in ("FailedMount", "FailedCreatePodSandBox") and named:
            yield Cause(
                Weight.STATED, "config", "true", "high",
                "What its manifest names is not there: a Secret, a ConfigMap, a volume or a "
                "RuntimeClass.",
                "Make what the event names, or correct the name.",
                (each.fact(),),
            )  # fmt: skip
        else:
            yield Cause(
                Weight.STATED, "infrastructure", "true", "medium",
                f"Its node cannot set it up ({reason}).",
                "Mend what the event names: the network plugin, the volume's driver, or the DRA "
                "driver on the node.",
                (each.fact(),),
            )  # fmt: skip


def _not_made(scene: Scene) -> Iterator[Cause]:
    """The owner could not even make a pod."""
    if not scene.absent:
        return
    for each in scene.events:
        if each.reason == "FailedCreate" and each.kind != "Pod":
            yield Cause(
                Weight.STATED, "config", "true", "high",
                f"{each.kind} {each.name} could not make its pods.",
                "Mend what the event names: a quota, an admission policy, a missing account.",
                (each.fact(),),
            )  # fmt: skip
            return

"""Deaths of containers: which container died how, and exit codes and signals in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mcp_gpu.workloads.documents import Document, moment, number, part, parts, word

__all__ = ["Death", "deaths", "first_death", "spoken"]

_SIGNALS: Final = {
    1: "SIGHUP",
    2: "SIGINT",
    3: "SIGQUIT",
    4: "SIGILL: an illegal instruction",
    5: "SIGTRAP",
    6: "SIGABRT: it gave itself up (abort, a failed assertion, an uncaught C++ exception)",
    7: "SIGBUS: a bus error, as where shared memory (/dev/shm) is full",
    8: "SIGFPE: an arithmetic error",
    9: "SIGKILL: it was killed from outside",
    11: "SIGSEGV: a segmentation fault",
    13: "SIGPIPE",
    15: "SIGTERM: it was asked to end",
    24: "SIGXCPU",
    25: "SIGXFSZ",
}

OWN_SIGNALS: Final = frozenset({4, 5, 6, 7, 8, 11})
"""What a program brings upon itself."""

KILLED: Final = 9
ASKED_TO_END: Final = (2, 15)

_CODES: Final = {
    0: "ended well",
    1: "failed by its own account",
    2: "failed by its own account (of a shell: wrong usage)",
    125: "did not start: the container's command could not be run",
    126: "did not start: its command may not be executed",
    127: "did not start: its command was not found",
    128: "did not start",
    255: "failed by its own account, or its exit status was out of range",
}


@dataclass(frozen=True, slots=True)
class Death:
    """How a container ended."""

    container: str
    init: bool
    exit_code: int
    reason: str
    message: str
    started: float | None
    finished: float | None
    restarts: int
    previous: bool
    """It has been started again, or is about to."""

    @property
    def signal(self) -> int:
        """The signal that ended it; 0 for none."""
        return self.exit_code - 128 if 128 < self.exit_code < 160 else 0

    @property
    def ended_well(self) -> bool:
        return self.exit_code == 0

    @property
    def never_ran(self) -> bool:
        """The runtime could not start it."""
        return self.reason in ("StartError", "ContainerCannotRun")


def spoken(death: Death) -> str:
    """`exit code 139, SIGSEGV: a segmentation fault`."""
    if death.signal:
        meaning = _SIGNALS.get(death.signal, f"signal {death.signal}")
    else:
        meaning = _CODES.get(death.exit_code, "the program's own")
    reason = "" if death.reason in ("", "Error", "Completed") else f" ({death.reason})"
    return f"exit code {death.exit_code}, {meaning}{reason}"


def deaths(pod: Document) -> Iterator[Death]:
    """The last of each container, init containers first. A sidecar, which is an init container that
    runs beside the others, counts as one of those."""
    sidecars = {
        word(each, "name")
        for each in parts(pod, "spec", "initContainers")
        if word(each, "restartPolicy") == "Always"
    }
    for kind in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        for status in parts(pod, "status", kind):
            now, before = (
                part(status, "state", "terminated"),
                part(status, "lastState", "terminated"),
            )
            ended = now or before
            if ended:
                yield Death(
                    container=word(status, "name"),
                    init=kind.startswith("init") and word(status, "name") not in sidecars,
                    exit_code=number(ended, "exitCode"),
                    reason=word(ended, "reason"),
                    message=word(ended, "message"),
                    started=moment(ended, "startedAt"),
                    finished=moment(ended, "finishedAt"),
                    restarts=number(status, "restartCount"),
                    previous=not now,
                )


def first_death(pod: Document) -> Death | None:
    """The one that explains the pod: of those that failed now the first to, or else the latest
    that has been started again; None if none has failed."""
    failed = [death for death in deaths(pod) if not death.ended_well]
    now = [death for death in failed if not death.previous]
    if now:
        # One that was only taken along has ended after the one that failed.
        return min(now, key=lambda death: (not death.init, death.finished or float("inf")))
    return max(failed, key=lambda death: death.finished or 0.0, default=None)

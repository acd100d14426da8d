"""From all that happened to incidents: what went wrong together, and what it began with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mcp_gpu.gpu.health.model import SEVERITIES, Severity
from mcp_gpu.workloads.incident.model import Moment, Seen

__all__ = ["QUIET_SECONDS", "Incident", "incidents", "moments", "offset", "ordered", "sentence"]

QUIET_SECONDS: Final = 900.0
"""What goes wrong after so long without anything else is another incident. NCCL waits for ten
minutes by default before a pod dies of another one's end."""

LEAD_SECONDS: Final = 900.0
AFTERWARDS_SECONDS: Final = 900.0
"""How long before and after an incident is told what else happened."""

MOMENTS: Final = 60
"""Told of one incident."""


@dataclass(frozen=True, slots=True)
class Incident:
    """What went wrong together."""

    seeds: tuple[Seen, ...]
    """By time; never empty."""

    @property
    def severity(self) -> Severity:
        return min((each.severity for each in self.seeds), key=SEVERITIES.index)

    @property
    def anchor(self) -> Seen:
        """T+0: the first of the gravest."""
        return next(each for each in self.seeds if each.severity == self.severity)

    @property
    def ended(self) -> float:
        return self.seeds[-1].at

    @property
    def gpus(self) -> frozenset[int]:
        """GPUs on which something went wrong."""
        return frozenset(each.gpu_index for each in self.seeds if each.gpu_index is not None)


def incidents(every: Iterable[Seen]) -> tuple[Incident, ...]:
    """By time."""
    seeds = sorted((each for each in every if each.went_wrong), key=_order)
    return tuple(Incident(tuple(run)) for run in _runs(seeds))


def ordered(found: Iterable[Incident]) -> tuple[Incident, ...]:
    """The gravest first, then the newest."""
    return tuple(sorted(found, key=lambda each: (SEVERITIES.index(each.severity), -each.anchor.at)))


def _runs(seeds: Sequence[Seen]) -> Iterator[list[Seen]]:
    run: list[Seen] = []
    for seed in seeds:
        if run and seed.at - run[-1].at > QUIET_SECONDS:
            yield run
            run = []
        run.append(seed)
    if run:
        yield run


def _order(seen: Seen) -> tuple[float, int, str]:
    """Times are of whole seconds: of the same one the gravest first."""
    return float(int(seen.at)), SEVERITIES.index(seen.severity), seen.key


def offset(seconds: float) -> str:
    """`T+0`, `T-120 s`, `T+25 min`."""
    if abs(seconds) < 1:
        return "T+0"
    far = abs(seconds) >= 1200
    return f"T{seconds / 60:+.0f} min" if far else f"T{seconds:+.0f} s"


def sentence(seen: Seen, zero: float) -> str:
    """`T+10 s, pod train/worker-0: container main ended: exit code 1`."""
    whose = "" if seen.gpu_index is None else f"GPU {seen.gpu_index}: "
    if seen.pod is not None:
        whose = f"pod {'/'.join(seen.pod)}: "
    return f"{offset(int(seen.at) - int(zero))}, {whose}{seen.text}"


def moments(
    every: Iterable[Seen], begin: float, zero: float, end: float
) -> tuple[tuple[Moment, ...], int]:
    """What is told around an incident, by time, and how much is left out.

    Args:
        begin: of the incident, Unix seconds as the next two.
        zero: T+0.
    """
    around = [
        each
        for each in dict.fromkeys(every)
        if begin - LEAD_SECONDS <= each.at <= end + AFTERWARDS_SECONDS
    ]
    # What went wrong before all else, then what was near to T+0.
    chosen = sorted(around, key=lambda each: (not each.went_wrong, abs(each.at - zero)))[:MOMENTS]
    told = tuple(
        Moment(
            at=each.second,
            offset_seconds=float(int(each.at) - int(zero)),
            severity=each.severity,
            source=each.source,
            gpu_index=each.gpu_index,
            pod="" if each.pod is None else "/".join(each.pod),
            text=each.text,
        )
        for each in sorted(chosen, key=_order)
    )
    return told, len(around) - len(told)

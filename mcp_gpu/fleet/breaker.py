"""When a path that failed may be tried again.

There are two answers. While another path works, only the background looks, ever more seldom. When
no other path is left, a caller may look much sooner, because the answer is wanted now.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from transports.errors import Reason, Symptom, TransportError

__all__ = ["last_resort_at", "retry_at"]

RETRY_FIRST_SECONDS = 2.0
RETRY_MOST_SECONDS = 20.0
STREAM_RETRY_MOST_SECONDS = 300.0
"""With the 2 s that a probe may take and the time a thousand probes need at the background's pace,
a network that has healed is in use again within 30 s. A path that is not direct costs a stream each
time; once it works for one agent it is tried for the others before that."""

LAST_RESORT_FIRST_SECONDS = 1.0
LAST_RESORT_MOST_SECONDS = 4.0
"""A dead agent that came back is found by the first call made after so long, or a little longer.
Until then callers are told at once what was found last."""

TOGETHER_SECONDS = 2.0
"""Dead agents are due at whole multiples of this, so that one call waits for all of them and not
each call for another one."""

DENIED_SECONDS = 60.0
"""Access that was refused does not mend itself, and each try may stand in somebody's audit log.
Kubernetes renews a mounted Secret about once a minute."""

_BY_THE_AGENT: tuple[Symptom, ...] = ("unauthorized", "forbidden", "credentials")
"""Refused by the agent itself or for want of a credential here: asking again troubles nobody else,
and may be right a moment later."""

_Jitter = Callable[[float], float]


def retry_at(reason: Reason, failures: int, now: float, jitter: _Jitter, *, direct: bool) -> float:
    """When the background is to try a path again that has failed now.

    Args:
        failures: how often it has failed without a call that worked in between; at least 1.
        jitter: picks a pause of at most so many seconds.
        direct: the path costs nobody but the agent.
    """
    if reason == "denied":
        return now + DENIED_SECONDS
    most = RETRY_MOST_SECONDS if direct else STREAM_RETRY_MOST_SECONDS
    longest = min(RETRY_FIRST_SECONDS * _doubled(failures), most)
    return now + longest / 2 + jitter(longest / 2)


def last_resort_at(error: TransportError, failures: int, now: float) -> float:
    """When a caller may try it, for whom no other path is left."""
    if error.reason == "denied" and error.symptom not in _BY_THE_AGENT:
        return now + DENIED_SECONDS
    pause = min(LAST_RESORT_FIRST_SECONDS * _doubled(failures), LAST_RESORT_MOST_SECONDS)
    return math.ceil((now + pause) / TOGETHER_SECONDS) * TOGETHER_SECONDS


def _doubled(failures: int) -> float:
    return 2.0 ** min(failures - 1, 10)  # bounded: 2.0 ** 1024 is an error

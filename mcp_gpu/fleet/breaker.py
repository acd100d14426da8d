"""When a path that failed may be tried again.

There are two answers. While another path works, only the background looks, ever more seldom. When
no other path is left, a caller may look much sooner, because the answer is wanted now.
"""

from __future__ import annotations

from collections.abc import Callable

from transports.errors import Reason

__all__ = ["last_resort_seconds", "retry_seconds"]

RETRY_FIRST_SECONDS = 2.0
RETRY_MOST_SECONDS = 20.0
"""With the 2 s that a probe may take and the time a thousand probes need at the background's pace,
a network that has healed is in use again within 30 s."""

LAST_RESORT_FIRST_SECONDS = 1.0
LAST_RESORT_MOST_SECONDS = 4.0
"""A dead agent that came back is found by the first call made after so long. Until then callers
are told what was found last, at once."""

DENIED_SECONDS = 60.0
"""Access that was refused does not mend itself, and each try may stand in somebody's audit log.
Kubernetes renews a mounted Secret about once a minute."""


def retry_seconds(reason: Reason, failures: int, jitter: Callable[[float], float]) -> float:
    """How long after its failure a path is to be tried again in the background.

    Args:
        failures: how often it has failed without a call that worked in between; at least 1.
        jitter: picks a pause of at most so many seconds.
    """
    if reason == "denied":
        return DENIED_SECONDS
    # The exponent is bounded: 2.0 ** 1024 is an error.
    longest = min(RETRY_FIRST_SECONDS * 2.0 ** min(failures - 1, 10), RETRY_MOST_SECONDS)
    return longest / 2 + jitter(longest / 2)


def last_resort_seconds(reason: Reason, failures: int) -> float:
    """How long after its failure a caller may try a path for whom no other is left."""
    if reason == "denied":
        return DENIED_SECONDS
    return min(LAST_RESORT_FIRST_SECONDS * 2.0 ** min(failures - 1, 10), LAST_RESORT_MOST_SECONDS)

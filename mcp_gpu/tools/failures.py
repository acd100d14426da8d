"""The nodes that did not answer, in an answer about a fleet."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from mcp_gpu.fleet.model import NodeFailure
from mcp_gpu.tools.spans import clipped, counted, spans

__all__ = ["LISTED", "brief", "by_reason", "failure_lines"]

LISTED = 20
"""Failures told one by one; the rest are counted by reason."""

MESSAGE_CHARS = 160
"""Length of one message in a summary; detail full has all of it."""

LINES = 10
"""Lines of the text, each about nodes that failed alike."""


def by_reason(failures: Sequence[NodeFailure]) -> dict[str, int]:
    """How many failed for which reason."""
    return dict(sorted(Counter(failure.reason for failure in failures).items()))


def brief(failure: NodeFailure) -> NodeFailure:
    """The same with shorter messages."""
    attempts = tuple(
        attempt.model_copy(update={"message": clipped(attempt.message, MESSAGE_CHARS)})
        for attempt in failure.attempts
    )
    message = clipped(failure.message, MESSAGE_CHARS)
    return failure.model_copy(update={"message": message, "attempts": attempts})


def failure_lines(counts: Mapping[str, int], failures: Sequence[NodeFailure]) -> list[str]:
    """Every node that did not answer and why, those that failed alike on one line.

    Args:
        counts: all of them, by reason.
        failures: those to name; none on a later page.
    """
    total = sum(counts.values())
    if not total:
        return []
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    end = ":" if failures else "."
    lines = [f"{counted(total)} did not answer ({reasons}); their GPUs are unknown{end}"]
    alike: defaultdict[tuple[str, str], list[NodeFailure]] = defaultdict(list)
    for failure in failures:
        alike[failure.reason, failure.message].append(failure)
    if len(alike) > LINES:
        alike.clear()
        for failure in failures:
            alike[failure.reason, ""].append(failure)
    for (reason, message), failed in alike.items():
        names = spans([failure.node for failure in failed])
        said = message or f"{failed[0].node}: {failed[0].message}"
        lines.append(f"  ! {names}: {reason}: {clipped(said, MESSAGE_CHARS)}")
    return lines

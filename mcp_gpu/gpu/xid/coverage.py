"""What an analysis of Xids may have missed: `missed`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from mcp_gpu.gpu.privileges import KERNEL_LOG
from mcp_gpu.gpu.xid.model import Source, SourceState

__all__ = ["missed"]

_SLACK_SECONDS: Final = 60.0
"""A log that begins so soon after the time asked for lacks nothing that is worth a word."""

_WITHOUT_LOG: Final = (
    "Without a log 79, 119 and 120 may be absent, and every Xid from before the agent started: "
    f"grant {KERNEL_LOG}."
)
"""The driver's events never bring those three, and none comes twice."""

_LOST: Final[Mapping[Source, str]] = {
    "nvml": "Events of the driver were lost.",
    "kernel_log": "Records of the kernel log were overwritten, or damaged, before they could be "
    "read.",
    "journal": "Messages in the journal are compressed or damaged so that they cannot be read: an "
    "Xid may be among them.",
}


def missed(
    sources: Sequence[SourceState], *, since: float, former_boots: bool, dropped: bool
) -> Iterator[str]:
    """Say what Xids there may have been of which nothing is known.

    In the same words on every node, for many to be told at once; figures are in `SourceState`.

    Args:
        since: from when on they were asked for, Unix seconds.
        former_boots: whether those of former boots were asked for.
        dropped: whether some had to be forgotten.
    """
    live = {state.source: state for state in sources if state.live}
    dead = {state.source: state for state in sources if not state.live}
    logs = [live[source] for source in ("kernel_log", "journal") if source in live]
    if not live:
        yield "No source of Xids can be read: that none are told means nothing."
    if not logs:
        yield _WITHOUT_LOG
    if "kernel_log" in dead:
        yield f"{dead['kernel_log'].message}" + (" (the journal is read)" if logs else "")
    if "journal" in dead and former_boots:
        yield f"Xids of former boots may be absent: {dead['journal'].message}"
    if "nvml" in dead:
        yield f"{dead['nvml'].message}: Xids are known from the log alone"
    for state in live.values():
        if state.message:
            yield state.message
        if state.lost_records:
            yield _LOST[state.source]
    begins = [state.covers_since for state in logs if state.covers_since is not None]
    if begins and min(begins) > since + _SLACK_SECONDS:
        yield "The log does not go back to the time asked for: earlier Xids may be absent."
    if dropped:
        yield "Xids of the most frequent code were forgotten to stay within memory."

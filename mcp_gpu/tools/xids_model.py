"""What `analyze_xid_errors` is asked and answers about one node, on the wire."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final, Self

from pydantic import AfterValidator, Field

from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.xid.analysis import analyse
from mcp_gpu.gpu.xid.coverage import missed
from mcp_gpu.gpu.xid.model import SourceState
from mcp_gpu.gpu.xid.present import Present
from mcp_gpu.gpu.xid.report import Analysis, utc
from mcp_gpu.gpu.xid.view import View
from mcp_gpu.tools.moments import moment, seconds

if TYPE_CHECKING:  # a gateway reads no log, and shares only the models
    from mcp_gpu.node.watch import XidWatch

__all__ = ["BOOT", "NAME", "Codes", "NodeXids", "Since"]

NAME: Final = "analyze_xid_errors"

BOOT: Final = "boot"

CODES: Final = 100
"""Most codes that one call may name."""


def _time(since: str, now: float) -> float | None:
    """The time that `since` names, in Unix seconds; None for this boot, whenever that began.

    Raises:
        ValueError: it names none.
    """
    if since == BOOT:
        return None
    ago = seconds(since)
    at = moment(since) if ago is None else now - ago
    if at is not None:
        return at
    raise ValueError(
        'should be "boot", a duration such as "30m", "2h" or "3d", or an ISO 8601 time with its '
        'zone such as "2026-11-26T10:00:00Z"'
    )


def _readable(since: str) -> str:
    _time(since, time.time())
    return since


Since = Annotated[
    str,
    AfterValidator(_readable),
    Field(
        max_length=64,
        description='"boot": this boot of the node; a duration up to now such as 30m, 2h or 3d; or '
        "an ISO 8601 time with its zone. The latter two reach into former boots.",
    ),
]

Codes = Annotated[
    Annotated[
        tuple[Annotated[int, Field(ge=1, le=99_999)], ...], Field(min_length=1, max_length=CODES)
    ]
    | None,
    Field(description="Only these codes, and the chains that hold one of them; default all."),
]


class NodeXids(Analysis):
    """The Xids of one node, and what may be missing among them."""

    node: str
    simulated: bool = Field(description="True: no real hardware stands behind this.")
    driver_version: str | None
    since: str = Field(description="From when on, in UTC; `boot`: this boot.")
    sources: tuple[SourceState, ...]
    blind: bool = Field(
        description="True: no source at all could be read, so that no Xids means nothing."
    )
    missed: tuple[str, ...] = Field(description="What Xids there may have been besides.")

    @classmethod
    def of(
        cls,
        node: str,
        snapshot: Snapshot,
        watch: XidWatch,
        *,
        since: str,
        codes: tuple[int, ...],
        limit: int,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Make the answer of one node from all that is known now."""
        now = clock()
        start = _time(since, now)
        bursts = watch.log.bursts()
        found = analyse(
            bursts,
            Present.of(snapshot, bursts, at=now, boot_id=watch.boot_id),
            view=View(since=start, this_boot=since == BOOT, codes=frozenset(codes)),
            limit=limit,
        )
        sources = watch.sources()
        absent = missed(
            sources,
            since=watch.booted_at if start is None else start,
            former_boots=start is not None and start < watch.booted_at,
            dropped=watch.log.dropped > 0,
        )
        return cls(
            **dict(found),
            node=node,
            simulated=snapshot.simulated,
            driver_version=snapshot.driver_version,
            since=BOOT if start is None else utc(start),
            sources=sources,
            blind=not any(state.live for state in sources),
            missed=tuple(absent),
        )

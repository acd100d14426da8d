"""Which Xids are asked for: `View`."""

from __future__ import annotations

from dataclasses import dataclass

from mcp_gpu.gpu.xid.incidents import Incident

__all__ = ["View"]


@dataclass(frozen=True, slots=True)
class View:
    """Which Xids are asked for. Those left out may still be the cause of others."""

    since: float | None = None
    """Unix seconds. A burst that reaches into this time is told whole."""
    this_boot: bool = False
    """Leave out former boots."""
    codes: frozenset[int] = frozenset()
    """Only these; empty: all."""

    def shows(self, incident: Incident, *, former: bool) -> bool:
        """Whether it is within the time asked for.

        Args:
            former: it was before the present boot.
        """
        if self.this_boot and former:
            return False
        return self.since is None or incident.until >= self.since

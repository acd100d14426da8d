"""The Xids of a node as moments of an incident, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final

from mcp_gpu.gpu.health.model import Severity
from mcp_gpu.gpu.xid.report import DeviceXids, XidGroup
from mcp_gpu.workloads.failure.hardware import grave
from mcp_gpu.workloads.incident.model import Seen, XidMeaning, told

__all__ = ["chains", "key", "meanings", "of_groups", "severity", "unix"]

MEANINGS: Final = 8
CHAINS: Final = 6
EXPLANATION_CHARS: Final = 400


def unix(at: str) -> float:
    """Unix seconds of a time in an answer."""
    return datetime.fromisoformat(at).timestamp()


def key(kind: str, code: int) -> str:
    """The same, whoever tells of it."""
    return f"{kind} {code}"


def severity(group: XidGroup) -> Severity:
    """How bad it was then. What only follows from another went wrong with that."""
    if group.state == "follows":
        return "info"
    return "critical" if grave(group) else "warning"


def of_groups(groups: Iterable[XidGroup]) -> Iterator[Seen]:
    """Each code on each device at its first time."""
    for group in groups:
        noun = "SXid" if group.kind == "sxid" else "Xid"
        named = f"{noun} {group.code} on {group.device}: {group.name}"
        again = f" (x{group.count} until {group.last})" if group.count > 1 else ""
        yield Seen(
            at=unix(group.first),
            severity=severity(group),
            source="xid",
            key=key(group.kind, group.code),
            text=told(f"{named}{again}"),
            gpu_index=group.gpu_index,
        )


def meanings(groups: Iterable[XidGroup], begin: float, end: float) -> tuple[XidMeaning, ...]:
    """Of those that came then, the grave and rare first."""
    found = [each for each in groups if unix(each.first) <= end and unix(each.last) >= begin]
    return tuple(
        XidMeaning(
            code=group.code,
            kind=group.kind,
            device=told(group.device),
            name=told(group.name),
            count=group.count,
            first=group.first,
            last=group.last,
            explanation=told(group.explanation, EXPLANATION_CHARS),
            action=told(group.action),
            follows=group.state == "follows",
        )
        for group in found[:MEANINGS]
    )


def chains(devices: Iterable[DeviceXids], begin: float, end: float) -> tuple[str, ...]:
    """Those of more than one code, as they were told."""
    found = (
        f"{device.device}: {chain.told}"
        for device in devices
        for chain in device.chains
        if len(chain.codes) > 1 and unix(chain.first) <= end and unix(chain.last) >= begin
    )
    return tuple(map(told, found))[:CHAINS]

"""What the Xids of many nodes have in common, each told once: `patterns`, `totals`, `gaps`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from mcp_gpu.gpu.actions import weight
from mcp_gpu.gpu.health.model import SEVERITIES
from mcp_gpu.gpu.xid.model import Kind
from mcp_gpu.gpu.xid.report import FLOOD, Chain, CodeTotal, DeviceXids
from mcp_gpu.tools.fleet_xids_model import FleetNodeXids, Missed, Pattern, XidTotal
from mcp_gpu.tools.spans import places, spans

__all__ = ["gaps", "patterns", "totals"]

TOGETHER_SECONDS: Final = 60.0
"""One event of a fabric shows within this on all that hang on it; clocks of nodes differ by less
than a second where they are kept at all."""

SPANS: Final = 24
"""Ranges of node names or single ones told of one pattern; the rest are counted."""

_Member = tuple[str, DeviceXids, Chain]


def patterns(nodes: Sequence[FleetNodeXids]) -> list[Pattern]:
    """All chains of these nodes, those of one cause and one action together."""
    alike: defaultdict[tuple[Kind, int, str, bool], list[_Member]] = defaultdict(list)
    asked: defaultdict[str, list[tuple[str, DeviceXids]]] = defaultdict(list)
    for node in nodes:
        for device in node.devices:
            if not device.chains:
                asked[device.note].append((node.node, device))
            for chain in device.chains:
                key = (chain.kind, chain.codes[0], chain.action, bool(chain.settled))
                alike[key].append((node.node, device, chain))
    found = [*map(_pattern, alike.values()), *map(_without_xid, asked.values())]
    return sorted(found, key=_order)


def totals(nodes: Sequence[FleetNodeXids]) -> list[XidTotal]:
    """Every code with how often and where it came, the rarest first."""
    alike: defaultdict[tuple[Kind, int], list[CodeTotal]] = defaultdict(list)
    for node in nodes:
        for total in node.totals:
            alike[total.kind, total.code].append(total)
    found = [
        XidTotal(
            kind=kind,
            code=code,
            name=here[0].name,
            count=sum(total.count for total in here),
            nodes=len(here),
            devices=sum(total.devices for total in here),
        )
        for (kind, code), here in alike.items()
    ]
    return sorted(found, key=lambda total: (total.count, total.kind, total.code))


def gaps(nodes: Sequence[FleetNodeXids]) -> list[Missed]:
    """What nodes could not see, what most of them could not first."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for node in nodes:
        for what in node.missed:
            alike[what].append(node.node)
    found = (
        Missed(what=what, nodes=len(names), where=spans(names)) for what, names in alike.items()
    )
    return sorted(found, key=lambda each: (-each.nodes, each.what))


def _pattern(members: Sequence[_Member]) -> Pattern:
    chains = [chain for _, _, chain in members]
    codes = Counter(chain.codes for chain in chains)
    common = max(codes, key=lambda each: (codes[each], len(each)))
    typical = next(chain for chain in chains if chain.codes == common)
    names = {node for node, _, _ in members}
    begun = [datetime.fromisoformat(chain.first) for chain in chains]
    span = max(begun) - min(begun)
    noun = "SXid " if typical.kind == "sxid" else ""
    return Pattern(
        kind=typical.kind,
        code=common[0],
        told=noun + " -> ".join(map(str, common)),
        severity=min((chain.severity for chain in chains), key=SEVERITIES.index),
        action=typical.action,
        advice=typical.advice,
        investigate=typical.investigate,
        settled=bool(typical.settled),
        explanation=typical.explanation,
        xids=sum(chain.xids for chain in chains),
        nodes=len(names),
        devices=len({(node, device.device) for node, device, _ in members}),
        where=_where((node, device) for node, device, _ in members),
        first=min(chain.first for chain in chains),
        last=max(chain.last for chain in chains),
        together=len(names) > 1 and span.total_seconds() <= TOGETHER_SECONDS,
    )


def _where(members: Iterable[tuple[str, DeviceXids]]) -> str:
    named = ((n, d.device if d.gpu_index is None else d.gpu_index) for n, d in members)
    return places(named, most=SPANS)


def _without_xid(members: Sequence[tuple[str, DeviceXids]]) -> Pattern:
    """GPUs whose driver asks for something, and of which no Xid is known."""
    first = members[0][1]
    return Pattern(
        kind="xid",
        code=None,
        told="no Xid",
        severity=first.severity,
        action=first.action,
        advice=first.advice,
        investigate="",
        settled=False,
        explanation=first.note,
        xids=0,
        nodes=len({node for node, _ in members}),
        devices=len(members),
        where=_where(members),
        first="",
        last="",
        together=False,
    )


def _order(pattern: Pattern) -> tuple[object, ...]:
    flood = pattern.xids >= FLOOD and pattern.severity != "critical"
    severity = SEVERITIES.index(pattern.severity)
    weighs = -weight(pattern.action)
    return flood, pattern.settled, severity, weighs, -pattern.devices, pattern.code or 0

"""From bursts of Xids to what happened and what to do first: `analyse`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from mcp_gpu.gpu.actions import advice, heaviest, recovery_severity, weight
from mcp_gpu.gpu.health.model import SEVERITIES
from mcp_gpu.gpu.xid.incidents import Incident, links
from mcp_gpu.gpu.xid.judgement import Judge
from mcp_gpu.gpu.xid.model import Burst, Kind
from mcp_gpu.gpu.xid.present import Present
from mcp_gpu.gpu.xid.report import (
    FLOOD,
    Analysis,
    Chain,
    CodeTotal,
    DeviceXids,
    State,
    XidGroup,
    shown,
    utc,
)
from mcp_gpu.gpu.xid.view import View
from mcp_gpu.gpu.xid.workflows import pattern

__all__ = ["analyse"]

CHAINS: Final = 6
DEVICES: Final = 32
TOTALS: Final = 48
SAMPLES: Final = 2
LINE_CHARS: Final = 300
PROCESSES: Final = 4
NOTES: Final = 3
"""Told one by one of a device, a node, a group; the rest are counted or left out."""

_STATES: Final[tuple[State, ...]] = ("open", "follows", "settled")


def analyse(bursts: Sequence[Burst], present: Present, *, view: View, limit: int) -> Analysis:
    """Say what the Xids of one node mean together.

    Args:
        bursts: all there are, whatever `view` asks for: the cause may lie outside of it.
        limit: most groups to list.
    """
    analyst = _Analyst(Judge(bursts, present), view)
    groups = analyst.groups()
    found = analyst.devices()
    totals = _totals(groups)
    return Analysis(
        xids=sum(group.count for group in groups),
        devices=tuple(found[:DEVICES]),
        devices_omitted=max(len(found) - DEVICES, 0),
        groups=tuple(groups[:limit]),
        groups_omitted=max(len(groups) - limit, 0),
        totals=tuple(totals[:TOTALS]),
        totals_omitted=max(len(totals) - TOTALS, 0),
    )


class _Analyst:
    """The incidents of a node that are asked for, and the parts of the answer."""

    def __init__(self, judge: Judge, view: View) -> None:
        self._judge, self._known = judge, judge.present.devices
        self._shown = [
            each
            for each in judge.scene.incidents
            if view.shows(each, former=judge.present.former(each.boot_id))
            and (not view.codes or each.code in view.codes)
        ]

    def groups(self) -> list[XidGroup]:
        """By device and code, the rare and heavy first."""
        alike: defaultdict[tuple[Kind, str, int], list[Incident]] = defaultdict(list)
        for incident in self._shown:
            alike[incident.kind, incident.bus_id, incident.code].append(incident)
        groups = [self._group(here) for here in alike.values()]
        return sorted(groups, key=_group_order)

    def devices(self) -> list[DeviceXids]:
        """What to do first about each, heaviest first."""
        heads = {each.cause or each for each in self._shown}
        chains: defaultdict[tuple[Kind, str], list[Incident]] = defaultdict(list)
        for head in sorted(heads, key=lambda each: each.at):
            chains[head.kind, head.bus_id].append(head)
        for place in self._known:
            if self._judge.driver_asks(place) != "NONE":
                chains["xid", place]  # without an Xid that tells why
        found = [self._device(*where, here) for where, here in chains.items()]
        return sorted(found, key=_device_order)

    def _group(self, here: Sequence[Incident]) -> XidGroup:
        first, last = here[0], here[-1]
        rulings, of = self._judge.rulings, self._judge.of
        alone = [each for each in here if each.cause is None]
        todo = [each for each in here if not of(each).settled]
        state: State = "settled" if not todo else "open" if alone else "follows"
        telling = max(todo or here, key=lambda each: weight(rulings[each].action))
        said = telling.explanation
        notes = dict.fromkeys(rulings[each].note for each in reversed(todo or here))
        together = pattern(here, self._judge.scene, gpu_count=len(self._known))
        settled = "" if todo else f"Settled: {of(last).settled}."
        doubt = "" if state != "open" else of(alone[-1]).doubt
        events = [sample for each in reversed(here) for sample in each.burst.samples]
        names = (f"{e.process or '?'} ({e.pid})" for e in events if e.pid is not None)
        lines = (shown(event.raw or event.text, LINE_CHARS) for event in events)
        return XidGroup(
            device=self._name(first.kind, first.bus_id),
            gpu_index=self._index(first.kind, first.bus_id),
            pci_bus_id=first.bus_id,
            kind=first.kind,
            code=first.code,
            name=said.name,
            count=sum(each.burst.count for each in here),
            bursts=len(here),
            first=utc(first.at),
            last=utc(max(each.until for each in here)),
            severity=self._judge.severity(telling),
            state=state,
            bucket=said.bucket,
            action=rulings[telling].action if todo else "NONE",
            investigate=said.investigate,
            explanation=_joined(
                said.meaning, *list(filter(None, notes))[:NOTES], together, settled, doubt
            ),
            decoded=said.decoded,
            disagreements=said.disagreements,
            processes=tuple(dict.fromkeys(names))[:PROCESSES],
            sources=tuple(dict.fromkeys(source for each in here for source in each.burst.sources)),
            samples=tuple(filter(None, dict.fromkeys(lines)))[:SAMPLES],
        )

    def _device(self, kind: Kind, bus_id: str, heads: Sequence[Incident]) -> DeviceXids:
        alike: defaultdict[tuple[object, ...], list[Incident]] = defaultdict(list)
        for head in heads:
            codes = tuple(dict.fromkeys(each.code for each in head.chain))
            judged = self._judge.of(head)
            alike[codes, judged.action, bool(judged.settled)].append(head)
        told = sorted(((self._chain(h), h[-1]) for h in alike.values()), key=_chain_order)
        chains = [chain for chain, _ in told]
        device = self._known.get(bus_id) if kind == "xid" else None
        index = None if device is None else device.index
        driver = None if device is None else device.recovery_action
        asked = self._judge.driver_asks(bus_id) if kind == "xid" else "NONE"
        note = ""
        if asked != "NONE":  # Its own word goes before what is said of single Xids.
            note = f"The driver itself asks for {driver} now."
            if not chains:
                note += " No Xid that is known here says why."
            action, words = asked, advice(asked, index)
        else:
            action = heaviest(chain.action for chain in chains if not chain.settled)
            of = self._judge.of
            open_ = [of(head) for chain, head in told if not chain.settled]
            judged_so = next((each for each in open_ if each.action == action), None)
            words = advice(action, index) if judged_so is None else judged_so.advice(index)
        return DeviceXids(
            device=self._name(kind, bus_id),
            gpu_index=self._index(kind, bus_id),
            uuid=None if device is None else device.uuid,
            name=None if device is None else device.name,
            pci_bus_id=bus_id,
            action=action,
            advice=words,
            severity=min(
                (recovery_severity(asked), *(chain.severity for chain in chains)),
                key=SEVERITIES.index,
            ),
            driver_action=driver,
            note=note,
            xids=sum(chain.xids for chain in chains),
            chains=tuple(chains[:CHAINS]),
            chains_omitted=max(len(chains) - CHAINS, 0),
        )

    def _chain(self, heads: Sequence[Incident]) -> Chain:
        last = heads[-1]
        judged = self._judge.of(last)
        every = [each for head in heads for each in head.chain]
        told = " -> ".join(self._link(first, count, last) for first, count in links(every))
        return Chain(
            kind=last.kind,
            codes=tuple(dict.fromkeys(each.code for each in last.chain)),
            told=told,
            times=len(heads),
            xids=sum(each.burst.count for each in every),
            first=utc(heads[0].at),
            last=utc(max(each.until for each in every)),
            severity=judged.severity,
            action=judged.action,
            advice=judged.advice(),
            investigate=last.explanation.investigate,
            settled=judged.settled,
            explanation=_joined(last.explanation.meaning, self._judge.rulings[last].note),
        )

    def _link(self, first: Incident, count: int, head: Incident) -> str:
        """`48 at 2026-11-26T10:02:11Z`, `45 x12`, `137 on GPU 2`."""
        parts = [f"SXid {first.code}" if first.kind == "sxid" else str(first.code)]
        if count > 1:
            parts.append(f"x{count}")
        if first.bus_id != head.bus_id:
            parts.append(f"on {self._name(first.kind, first.bus_id)}")
        elif first.code == head.code:
            parts.append(f"at {utc(head.at)}")
        return " ".join(parts)

    def _index(self, kind: Kind, bus_id: str) -> int | None:
        device = self._known.get(bus_id) if kind == "xid" else None
        return None if device is None else device.index

    def _name(self, kind: Kind, bus_id: str) -> str:
        index = self._index(kind, bus_id)
        if index is not None:
            return f"GPU {index}"
        if not bus_id:
            return "a device not named"
        return f"{'NVSwitch' if kind == 'sxid' else 'GPU at'} {bus_id}"


def _totals(groups: Iterable[XidGroup]) -> list[CodeTotal]:
    alike: defaultdict[tuple[Kind, int], list[XidGroup]] = defaultdict(list)
    for group in groups:
        alike[group.kind, group.code].append(group)
    return [
        CodeTotal(
            kind=kind,
            code=code,
            name=here[0].name,
            count=sum(group.count for group in here),
            devices=len(here),
        )
        for (kind, code), here in alike.items()
    ]


def _joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def _group_order(group: XidGroup) -> tuple[object, ...]:
    flood = group.count >= FLOOD and group.severity != "critical"
    severity = SEVERITIES.index(group.severity)
    state = _STATES.index(group.state)
    return flood, state, severity, -weight(group.action), group.count, group.device, group.code


def _chain_order(told: tuple[Chain, Incident]) -> tuple[object, ...]:
    chain, _ = told
    flood = chain.xids >= FLOOD and chain.severity != "critical"
    severity = SEVERITIES.index(chain.severity)
    return flood, bool(chain.settled), severity, -weight(chain.action), chain.xids, chain.told


def _device_order(device: DeviceXids) -> tuple[object, ...]:
    flood = device.xids >= FLOOD and device.severity != "critical"
    return flood, SEVERITIES.index(device.severity), -weight(device.action), device.device

"""From bursts of Xids to what happened and what to do first: `analyse`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from mcp_gpu.gpu.fields import RECOVERY_ACTIONS
from mcp_gpu.gpu.health.model import SEVERITIES, Severity
from mcp_gpu.gpu.xid.catalogue import advice, entry, weight
from mcp_gpu.gpu.xid.incidents import Incident, Scene, links, relate
from mcp_gpu.gpu.xid.model import Burst, Kind
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
from mcp_gpu.gpu.xid.texts import RECOVERY_TEXTS
from mcp_gpu.gpu.xid.view import Device, View
from mcp_gpu.gpu.xid.workflows import heaviest, pattern, rule

__all__ = ["analyse"]

CHAINS: Final = 6
DEVICES: Final = 32
TOTALS: Final = 48
SAMPLES: Final = 2
LINE_CHARS: Final = 300
PROCESSES: Final = 4
NOTES: Final = 3
"""Told one by one of a device, a node, a group; the rest are counted or left out."""

RECOVERIES: Final[Mapping[str, str]] = {
    name: RECOVERY_TEXTS[number][1] for number, name in RECOVERY_ACTIONS.items()
}
"""The driver's recovery action, by the inventory's name, to the action that it comes to."""

MAYBE_DONE: Final = "The driver asks for nothing now: done, if the GPU was reset since."

_STATES: Final[tuple[State, ...]] = ("open", "follows", "settled")


def analyse(
    bursts: Sequence[Burst],
    *,
    known: Mapping[str, Device],
    view: View,
    limit: int,
    driver_branch: int | None = None,
) -> Analysis:
    """Say what the Xids of one node mean together.

    Args:
        bursts: all there are, whatever `view` asks for: the cause may lie outside of it.
        limit: most groups to list.
    """
    scene = relate(bursts, driver_branch=driver_branch)
    analyst = _Analyst(scene, known, view, driver_branch)
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
    """The incidents of a node, what to do about each, and the parts of the answer."""

    def __init__(
        self, scene: Scene, known: Mapping[str, Device], view: View, branch: int | None
    ) -> None:
        self._scene, self._known, self._view, self._branch = scene, known, view, branch
        self._rulings = {each: rule(each, scene) for each in scene.incidents}
        self._settled = {
            each: self._why_settled(each) for each in scene.incidents if each.cause is None
        }
        codes = view.codes
        self._shown = [
            each
            for each in scene.incidents
            if view.shows(each) and (not codes or each.code in codes)
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
        for place, device in self._known.items():
            if device.recovery_action not in (None, "none"):
                chains["xid", place]  # without an Xid that tells why
        found = [self._device(*where, here) for where, here in chains.items()]
        return sorted(found, key=_device_order)

    def _group(self, here: Sequence[Incident]) -> XidGroup:
        first, last = here[0], here[-1]
        alone = [each for each in here if each.cause is None]
        todo = [each for each in here if not self._settled[each.cause or each]]
        state: State = "settled" if not todo else "open" if alone else "follows"
        action = heaviest(self._rulings[each].action for each in todo)
        telling = max(here, key=lambda each: weight(self._rulings[each].action))
        said = telling.explanation
        notes = dict.fromkeys(self._rulings[each].note for each in reversed(todo or here))
        together = pattern(here, self._scene, gpu_count=len(self._known))
        settled = "" if todo else f"Settled: {self._settled[last.cause or last]}."
        doubt = "" if state != "open" else self._doubt(alone[-1])
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
            severity=self._severity(telling, action, settled=state == "settled"),
            state=state,
            bucket=said.bucket,
            action=action,
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
            alike[codes, self._action(head), bool(self._settled[head])].append(head)
        chains = sorted(map(self._chain, alike.values()), key=_chain_order)
        device = self._known.get(bus_id) if kind == "xid" else None
        driver = None if device is None else device.recovery_action
        action = heaviest(chain.action for chain in chains if not chain.settled)
        note = ""
        if driver not in (None, "none"):
            note = f"The driver itself asks for {driver} now."
            action = heaviest((action, RECOVERIES.get(driver or "", "NONE")))
            if not chains:
                note += " No Xid that is known here says why."
        return DeviceXids(
            device=self._name(kind, bus_id),
            gpu_index=self._index(kind, bus_id),
            uuid=None if device is None else device.uuid,
            name=None if device is None else device.name,
            pci_bus_id=bus_id,
            action=action,
            advice=advice(action),
            severity=min(
                (
                    "critical" if driver not in (None, "none") else "info",
                    *(chain.severity for chain in chains),
                ),
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
        action, settled = self._action(last), self._settled[last]
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
            severity=self._severity(last, action, settled=bool(settled)),
            action=action,
            investigate=last.explanation.investigate,
            settled=settled,
            explanation=_joined(
                last.explanation.meaning, self._rulings[last].note, self._doubt(last)
            ),
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

    def _severity(self, incident: Incident, action: str, *, settled: bool) -> Severity:
        """The catalogue's, unless the action is clearer: registers and company decide that."""
        said = incident.explanation.severity
        follows = incident.cause is not None
        if settled or (follows and action == "NONE"):
            return "info"
        if weight(action) >= weight("RESET_GPU"):
            return "warning" if self._doubt(incident.cause or incident) else "critical"
        return "warning" if weight(action) or said == "warning" else "info"

    def _action(self, head: Incident) -> str:
        """The heaviest in a chain: what is done about the cause is not always enough."""
        return heaviest(self._rulings[each].action for each in head.chain)

    def _why_settled(self, head: Incident) -> str:
        action = self._action(head)
        if weight(action) > weight("REBOOT_NODE"):
            return ""  # neither a reset nor a reboot mends that
        if self._view.former(head):
            return "it was before this boot"
        cleared = self._scene.cleared_at(head)
        if cleared is not None:
            return f"the driver has asked for nothing any more since {utc(cleared)}"
        if self._asks_for_nothing(head):
            asked = self._scene.asked_at(head)
            if asked is not None:
                return f"the driver asked for it at {utc(asked)} and asks for nothing now"
        return ""

    def _doubt(self, head: Incident) -> str:
        """That it may be done already, where the driver says so and has not said it was open."""
        if self._settled[head] or not self._would_ask(head.code):
            return ""
        return MAYBE_DONE if self._asks_for_nothing(head) else ""

    def _asks_for_nothing(self, head: Incident) -> bool:
        """Whether the driver's recovery action is none, read after all of this."""
        device = self._known.get(head.bus_id)
        return (
            device is not None
            and device.recovery_action == "none"
            and all(each.until < device.read_at for each in head.chain)
        )

    def _would_ask(self, code: int) -> bool:
        """Whether this driver says by its recovery action what comes of such an Xid."""
        said = entry(code)
        if said is None or not said.links_154:
            return False
        branch = said.links_154.removeprefix("R").removesuffix("+")
        return not branch.isdecimal() or (self._branch or 0) >= int(branch)

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


def _chain_order(chain: Chain) -> tuple[object, ...]:
    flood = chain.xids >= FLOOD and chain.severity != "critical"
    severity = SEVERITIES.index(chain.severity)
    return flood, bool(chain.settled), severity, -weight(chain.action), chain.xids, chain.told


def _device_order(device: DeviceXids) -> tuple[object, ...]:
    flood = device.xids >= FLOOD and device.severity != "critical"
    return flood, SEVERITIES.index(device.severity), -weight(device.action), device.device

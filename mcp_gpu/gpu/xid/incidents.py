"""Which Xids belong together: `Incident`, a burst with its meaning, and what it follows from.

Where the rules come from: the resolution buckets of NVIDIA's Xid catalogue. Times within which
Xids belong together are this project's own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from mcp_gpu.gpu.actions import weight
from mcp_gpu.gpu.xid.explain import Explanation, decode, explain
from mcp_gpu.gpu.xid.log import BURST_SECONDS
from mcp_gpu.gpu.xid.model import OFF_THE_BUS, Burst, Kind
from mcp_gpu.gpu.xid.present import Present
from mcp_gpu.gpu.xid.texts import RECOVERY_CODE

__all__ = [
    "CLEANUP",
    "CLOSE_SECONDS",
    "MEMORY",
    "MEMORY_DETAILS",
    "NVLINK",
    "PAGE_FAULT",
    "RECOVERY",
    "TEXT_DECIDES",
    "Incident",
    "Scene",
    "links",
    "relate",
]

CLOSE_SECONDS: Final = 60.0
"""How soon after its cause an Xid comes: the driver waits up to 45 s for its firmware before it
goes on with what the first error has set off."""

SKEW_SECONDS: Final = 2.0
"""How much earlier a consequence may seem: two sources have two clocks."""

CLEANUP: Final = 45
NOTHING: Final = "NONE"
RECOVERY: Final = RECOVERY_CODE
PAGE_FAULT: Final = 31
PEER_ACCESS: Final = 137
RPC_TIMEOUT, RPC_ERROR = 119, 120

MEMORY: Final = (48, 95, 94, 140)
"""Uncorrectable memory errors, the one that explains the others first."""

MEMORY_DETAILS: Final = frozenset({63, 64, 92, 156, 157, 171, 172})
"""What the driver does about such an error, or says of it besides."""

NVLINK5: Final = frozenset(range(144, 151))
NVLINK: Final = NVLINK5 | {74, 155}

_FAULTS: Final = frozenset({PAGE_FAULT})

_NO_CAUSE: Final = frozenset({CLEANUP, 92, 93, 106, 107, 121, RECOVERY, 162, 163, 164, 165})
"""They end no application, so that no cleanup follows from them."""

TEXT_DECIDES: Final = NVLINK5 | {74, RECOVERY}
"""Of each such Xid the text is read, and not only the first one's."""


@dataclass(slots=True, eq=False)
class Incident:
    """A burst, what it means, and what it follows from."""

    burst: Burst
    explanation: Explanation
    changes: tuple[tuple[float, str], ...] = ()
    """When and what the driver has asked for, by the samples of an Xid 154, by time."""
    cause: Incident | None = None
    """What set it off in the end, which has no cause itself."""
    followers: list[Incident] = field(default_factory=list)
    """All that follow from it, by time."""
    swept: bool = False
    """It happened on a GPU that was off the bus already."""

    @property
    def code(self) -> int:
        return self.burst.first.code

    @property
    def kind(self) -> Kind:
        return self.burst.first.kind

    @property
    def at(self) -> float:
        return self.burst.first.at

    @property
    def until(self) -> float:
        return self.burst.last_at

    @property
    def bus_id(self) -> str:
        return self.burst.first.bus_id

    @property
    def boot_id(self) -> str:
        return self.burst.first.boot_id

    @property
    def chain(self) -> list[Incident]:
        """It and all that follow from it, by time but for itself."""
        return [self, *self.followers]

    def near(self, other: Incident) -> bool:
        """Whether one begins soon after the other, whichever is first."""
        apart = max(self.at - other.until, other.at - self.until)
        return self is not other and apart <= CLOSE_SECONDS

    @property
    def asked(self) -> str | None:
        """What the driver asks for in the end, if this is an Xid 154 with a text that is known."""
        return self.changes[-1][1] if self.changes else None

    @property
    def unread(self) -> bool:
        """Whether its line decides what it asks for and was not seen, or could not be read."""
        decides = self.kind == "xid" and self.code in TEXT_DECIDES
        return decides and not self.explanation.decoded

    @property
    def unlogged(self) -> bool:
        """Whether only the driver's events told it: then no log was read at that time."""
        return self.burst.sources == ("nvml",)


class _Place:
    """The incidents of one device in one boot."""

    def __init__(self, answered_at: float | None) -> None:
        self.answered_at = answered_at
        """When the GPU here last answered in this boot, Unix seconds; None: not known to."""
        self.by_code: defaultdict[int, list[Incident]] = defaultdict(list)
        """Each by time. Those of one code do not overlap."""
        self.cleared: list[float] = []
        """When the driver said that it needs nothing any more, by time."""

    def before(self, incident: Incident, codes: Collection[int]) -> Incident | None:
        """The last of these codes that began before it had ended, and lasted until shortly before
        it began. A burst of minutes may have begun before its cause did."""
        found = [
            other
            for code in codes
            if (other := self._last(code, incident, incident.until)) is not None
            and other.until >= incident.at - CLOSE_SECONDS
        ]
        return max(found, key=lambda other: other.at, default=None)

    def near(self, incident: Incident, codes: Sequence[int]) -> Incident | None:
        """One of the first of these codes that has any shortly before or after."""
        for code in codes:
            here = self.by_code.get(code, [])
            after = bisect_right(here, incident.at, key=lambda other: other.at)
            for other in here[max(after - 1, 0) : after + 1]:
                if other.near(incident):
                    return other
        return None

    def named(self, incident: Incident, code: int) -> Incident | None:
        """The last of this code, however long ago: the driver itself has named it."""
        return self._last(code, incident, incident.at)

    def off_the_bus(self, incident: Incident) -> Incident | None:
        """The Xid 79 since which this device has been gone, if it was when this happened."""
        gone = self._last(OFF_THE_BUS, incident, incident.at)
        if gone is None:
            return None
        came_back = self.answered_at is not None and self.answered_at > gone.until
        if came_back and incident.at > gone.until + CLOSE_SECONDS:
            return None  # perhaps by then
        return None if any(gone.at < at < incident.at for at in self.cleared) else gone

    def _last(self, code: int, incident: Incident, by: float) -> Incident | None:
        """The last other one of the code that began by then."""
        here = self.by_code.get(code, [])
        after = bisect_right(here, by + SKEW_SECONDS, key=lambda other: other.at)
        for other in reversed(here[max(after - 2, 0) : after]):
            if other is not incident:
                return other
        return None


Codes = frozenset[int]

_Span = tuple[float, float, str, Incident]
"""When an incident began and ended, on which device, and itself."""


class Scene:
    """All incidents of a node, and what each follows from."""

    def __init__(self, incidents: Sequence[Incident], present: Present) -> None:
        self.incidents = incidents
        self._by_code: defaultdict[tuple[str, Kind, int], list[Incident]] = defaultdict(list)
        self._spans: dict[tuple[str, Kind, Codes], list[_Span]] = {}
        self._places: dict[tuple[str, Kind, str], _Place] = {}
        for incident in incidents:
            self._by_code[incident.boot_id, incident.kind, incident.code].append(incident)
            where = incident.boot_id, incident.kind, incident.bus_id
            if where not in self._places:
                self._places[where] = _Place(_answered_at(incident, present))
            place = self._places[where]
            place.by_code[incident.code].append(incident)
            # Samples are but some of a burst: only the last of all tells how it ended.
            place.cleared += [
                at
                for at, action in incident.changes
                if action == NOTHING and at + SKEW_SECONDS >= incident.until
            ]

    def devices(self, incident: Incident) -> frozenset[str]:
        """Bus ids of all devices that have had the same code in the same boot."""
        alike = self._by_code[incident.boot_id, incident.kind, incident.code]
        return frozenset(other.bus_id for other in alike)

    def beside(self, incident: Incident, kind: Kind, codes: Codes = frozenset()) -> list[Incident]:
        """What other devices had at about the same time: of these codes, or of any."""
        here = self._spans_of(incident.boot_id, kind, codes)
        begin, end = incident.at - CLOSE_SECONDS, incident.until + CLOSE_SECONDS
        first = bisect_left(here, begin - BURST_SECONDS, key=itemgetter(0))
        after = bisect_right(here, end, key=itemgetter(0))
        # In a storm this is asked for each of thousands: no property is read on the way.
        bus_id = incident.bus_id
        return [
            other
            for _, until, place, other in here[max(first, after - _LOOK_BACK) : after]
            if until >= begin and place != bus_id
        ]

    def _spans_of(self, boot_id: str, kind: Kind, codes: Codes) -> list[_Span]:
        found = self._spans.get((boot_id, kind, codes))
        if found is None:
            found = self._spans[boot_id, kind, codes] = [
                (each.at, each.until, each.bus_id, each)
                for each in self.incidents
                if (each.boot_id, each.kind) == (boot_id, kind)
                and (not codes or each.code in codes)
            ]
        return found

    def cleared_at(self, incident: Incident) -> float | None:
        """When the driver last said that this device needs nothing any more, if that was after."""
        cleared = self._place(incident).cleared
        return cleared[-1] if cleared and cleared[-1] + SKEW_SECONDS >= incident.until else None

    def asked_at(self, incident: Incident) -> float | None:
        """When the driver asked for something because of it, if it did."""
        return min(
            (
                at
                for other in incident.chain
                for at, action in other.changes
                if action != NOTHING and at >= incident.at - SKEW_SECONDS
            ),
            default=None,
        )

    def link(self) -> None:
        """Find every incident's cause."""
        direct = {incident: self._cause(incident) for incident in self.incidents}
        for incident in self.incidents:
            seen = {incident}
            root = incident
            while (cause := direct[root]) is not None and cause not in seen:
                seen.add(cause)
                root = cause
            if root is not incident:
                incident.cause = root
        for incident in self.incidents:
            if incident.cause is not None and incident.cause.cause is None:
                incident.cause.followers.append(incident)
            else:
                incident.cause = None

    def _cause(self, incident: Incident) -> Incident | None:
        if incident.kind == "sxid":
            return None
        place = self._place(incident)
        gone = place.off_the_bus(incident)
        if gone is not None:
            incident.swept = True
            return gone
        code, named = incident.code, incident.explanation.caused_by
        if named is not None and (cause := place.named(incident, named)) is not None:
            return cause
        if code in (CLEANUP, RECOVERY):
            return place.before(incident, place.by_code.keys() - _NO_CAUSE)
        if code in MEMORY:
            return place.near(incident, MEMORY[: MEMORY.index(code)])
        if code in MEMORY_DETAILS:
            return place.near(incident, MEMORY)
        if code == RPC_ERROR:
            return place.before(incident, (RPC_TIMEOUT,))
        if code == PEER_ACCESS:
            return next(iter(self.beside(incident, "xid", _FAULTS)), None)
        if code in NVLINK5:
            worse = place.near(incident, sorted(NVLINK5 - {code}))
            if worse is not None and _heavier(worse, incident):
                return worse
        return None

    def _place(self, incident: Incident) -> _Place:
        return self._places[incident.boot_id, incident.kind, incident.bus_id]


_LOOK_BACK: Final = 256
"""Incidents looked at for one on another device: more within a minute tell nothing more."""


def links(incidents: Iterable[Incident]) -> list[tuple[Incident, int]]:
    """By device and code, in the order given: the first incident, and how many Xids all have."""
    found: dict[tuple[str, int], tuple[Incident, int]] = {}
    for each in incidents:
        first, count = found.get((each.bus_id, each.code), (each, 0))
        found[each.bus_id, each.code] = (first, count + each.burst.count)
    return list(found.values())


def relate(bursts: Sequence[Burst], present: Present) -> Scene:
    """Say what each burst means, and find which follow from others."""
    branch = present.driver_branch
    incidents = [Incident(burst, _explained(burst, branch), _changes(burst)) for burst in bursts]
    incidents.sort(key=lambda incident: incident.at)
    scene = Scene(incidents, present)
    scene.link()
    return scene


def _answered_at(incident: Incident, present: Present) -> float | None:
    device = present.devices.get(incident.bus_id) if incident.kind == "xid" else None
    return None if device is None or present.former(incident.boot_id) else device.answered_at


def _heavier(one: Incident, other: Incident) -> bool:
    return weight(one.explanation.action) > weight(other.explanation.action)


def _explained(burst: Burst, driver_branch: int | None) -> Explanation:
    first = burst.first
    samples = burst.samples if first.code in TEXT_DECIDES else (first,)
    every = [
        explain(first.code, text=sample.text, kind=first.kind, driver_branch=driver_branch)
        for sample in samples
    ]
    return max(every, key=lambda each: weight(each.action))


def _changes(burst: Burst) -> tuple[tuple[float, str], ...]:
    if burst.first.code != RECOVERY or burst.first.kind != "xid":
        return ()
    told = ((sample.at, decode(RECOVERY, sample.text)) for sample in burst.samples)
    return tuple(sorted((at, said.action) for at, said in told if said and said.action))

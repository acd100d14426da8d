"""What is left to do about Xids now, which every tool tells alike: `Judge` and `Judgement`.

An Xid tells of a moment. What has become of it since is read from what the driver asks for now,
from whether the GPU answers, from its memory's counters, and from its age. docs/xids.md has the
rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mcp_gpu.gpu.actions import advice, grave, heaviest, recovery, recovery_severity, weight
from mcp_gpu.gpu.health.model import SEVERITIES, Severity
from mcp_gpu.gpu.xid.catalogue import entry
from mcp_gpu.gpu.xid.incidents import RECOVERY, Incident, relate
from mcp_gpu.gpu.xid.model import OFF_THE_BUS, Burst
from mcp_gpu.gpu.xid.present import Device, Present
from mcp_gpu.gpu.xid.report import utc
from mcp_gpu.gpu.xid.workflows import Ruling, rule

__all__ = ["Judge", "Judgement"]

RECENT_SECONDS: Final = 600.0
"""A reset is no new boot and leaves no line in the log. Before an Xid is so old it has hardly been
made. UNVERIFIED."""

LAG_SECONDS: Final = 5.0
"""How much later than an Xid a reading has to be to tell what came of it. UNVERIFIED."""

_COUNTED: Final = frozenset({48, 64, 95})
"""Memory errors that NVML counts until the GPU is reset or the driver loaded anew."""

_MEMORY: Final = _COUNTED | {63, 94}
"""Those of the same story: no reset was made while one of its rows waits for it."""

_REBOOTS: Final = frozenset({"REBOOT_NODE", "SYSTEM_REBOOT"})
"""What they ask for would have ended the boot."""

_MENDED: Final = {
    "RESTART_VM": "the virtual machine was restarted since",
    "CHECK_SEATING": "the board was checked since",
    "UPDATE_SW_FW": "the software was updated since",
    "CONTACT_SUPPORT": "the vendor's support has seen to it",
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is left to do about an Xid and all that followed from it."""

    action: str
    """If it is settled, what it asked for."""
    severity: Severity
    settled: str = ""
    """Why nothing is left to do; empty if something may be."""
    doubt: str = ""
    """When it would be done, where nothing tells whether it is; a sentence, or empty."""
    words: str = ""
    """Where it asks for nothing grave: what to do about just this Xid; empty if nothing special."""

    def advice(self, gpu_index: int | None = None) -> str:
        """What to do, in words."""
        words = self.words or advice(self.action, gpu_index)
        return f"{self.doubt} Otherwise: {words[0].lower()}{words[1:]}" if self.doubt else words


@dataclass(frozen=True, slots=True)
class _Contradicted:
    """What is read of a GPU later than a chain."""

    withdrawn: str = ""
    """That the driver asked for something because of it, and asks for nothing now."""
    silent: bool = False
    """The driver asks for nothing."""
    answers: bool = False
    clean: bool = False
    """Its memory has no uncorrected error and no row to be replaced."""
    waits: bool = False
    """A row of its memory waits for a reset."""


class Judge:
    """The Xids of one node, each with what it means there and what is left to do about it."""

    def __init__(self, bursts: Sequence[Burst], present: Present) -> None:
        self.present = present
        self.scene = relate(bursts, present)
        self.rulings: dict[Incident, Ruling] = {
            each: rule(each, self.scene) for each in self.scene.incidents
        }
        self._of: dict[Incident, Judgement] = {}
        self._asked: dict[Incident, Incident] = {}
        for incident in self.scene.incidents:
            if incident.cause is None:
                self._judge(incident)

    @property
    def heads(self) -> list[Incident]:
        """Those that follow from no other, by time."""
        return list(self._of)

    def of(self, incident: Incident) -> Judgement:
        """What is left to do about it, its cause and all that followed from that."""
        return self._of[incident.cause or incident]

    def severity(self, incident: Incident) -> Severity:
        """How bad one Xid by itself is in its company."""
        judged, action = self.of(incident), self.rulings[incident].action
        if judged.settled or (incident.cause is not None and action == "NONE"):
            return "info"
        return judged.severity if grave(action) else self._light(incident)

    def asked(self, head: Incident) -> Incident | None:
        """The Xid 154 in a chain whose word still stands, the last."""
        return self._asked.get(head)

    def driver_asks(self, bus_id: str) -> str:
        """What the driver itself is read to ask for now, as an action; NONE if nothing."""
        device = self.present.devices.get(bus_id)
        return recovery((device and device.recovery_action) or "none")

    def _judge(self, head: Incident) -> None:
        """Of a chain, which is that of the incident at its head."""
        ended = max(each.until for each in head.chain)
        over = self._over(head, ended)
        left = [each for each in head.chain if each not in over]
        words = [each for each in left if each.asked not in (None, "NONE")]
        asks_in_all = heaviest(self.rulings[each].action for each in head.chain)
        asks = heaviest(self.rulings[each].action for each in left)
        if not left or (grave(asks_in_all) and not grave(asks)):
            why = over[max(over, key=lambda each: weight(self.rulings[each].action))]
            self._of[head] = Judgement(asks_in_all, "info", why)
            return
        if words:  # The driver's own word goes before what the catalogue says.
            self._asked[head] = last = max(words, key=lambda each: each.until)
            asks = last.asked or asks
        own = head.explanation
        fits = not grave(asks) and asks in ("NONE", own.action)
        read = self._read(head, ended)
        severity = self._severity(head, left, read)
        doubt = ""
        old = self.present.at - ended > RECENT_SECONDS and asks not in _REBOOTS
        if old and read in (None, "none") and severity != "info":
            severity = "warning"
            device = self._device(head)
            waits = device is not None and device.row_waits and head.code in _MEMORY
            doubt = _doubt(asks) if grave(asks) and not waits else ""
        self._of[head] = Judgement(asks, severity, "", doubt, own.advice if fits else "")

    def _severity(self, head: Incident, left: Sequence[Incident], read: str | None) -> Severity:
        graves = [each for each in left if grave(self.rulings[each].action)]
        own = None if graves else self._light(head)
        if read not in (None, "none") and own in (None, "critical"):
            return recovery_severity(recovery(read or ""))
        if own is not None:
            return own
        if head in self._asked:
            return recovery_severity(self._asked[head].asked or "")
        each_ones = (self.rulings[each].severity or "critical" for each in graves)
        return min(each_ones, key=SEVERITIES.index)

    def _light(self, incident: Incident) -> Severity:
        """Of what asks for nothing grave: the catalogue's, unless its company says otherwise."""
        ruling, said = self.rulings[incident], incident.explanation.severity
        if ruling.severity is not None:
            return ruling.severity
        if ruling.action != "NONE":
            return "warning"
        return "info" if said == "follow" else said

    def _over(self, head: Incident, ended: float) -> dict[Incident, str]:
        """Those of a chain about which nothing is left to do, each with why."""
        contradicted = self._contradicted(head, ended)
        found = {each: self._why_over(each, contradicted) for each in head.chain}
        return {each: why for each, why in found.items() if why}

    def _why_over(self, incident: Incident, contradicted: _Contradicted) -> str:
        action = self.rulings[incident].action
        # Neither a reset nor a reboot mends more.
        mended = weight(action) < weight("CHECK_SEATING")
        if self.present.former(incident.boot_id):
            return "it was before this boot" if mended else ""
        reported = self._reported(incident)
        cleared = self.scene.cleared_at(incident)
        if cleared is not None and (mended or reported):
            return f"the driver has asked for nothing any more since {utc(cleared)}"
        if not grave(action):
            return ""
        if contradicted.waits and incident.code in _MEMORY:
            return ""
        if contradicted.withdrawn:
            return contradicted.withdrawn
        if contradicted.silent and reported:
            return "this driver would ask for what it needs, and asks for nothing now"
        if contradicted.answers and incident.code == OFF_THE_BUS:
            return "the GPU answers again"
        if contradicted.clean and incident.code in _COUNTED:
            return "no uncorrected error of its memory is counted and no row waits"
        return ""

    def _contradicted(self, head: Incident, ended: float) -> _Contradicted:
        """What is read now, some seconds later than a whole chain, that may speak against it."""
        device = self._device(head)
        if device is None or device.recovery_action not in (None, "none"):
            return _Contradicted()  # The driver itself says that something is left to do.
        since = ended + LAG_SECONDS
        silent = device.recovery_action == "none" and device.read_at >= since
        asked_at = self.scene.asked_at(head) if silent else None
        return _Contradicted(
            withdrawn=""
            if asked_at is None
            else f"the driver asked for it at {utc(asked_at)} and asks for nothing now",
            silent=silent,
            answers=(device.answered_at or 0.0) >= since,
            waits=device.row_waits,
            clean=(device.clean_at or 0.0) >= since,
        )

    def _read(self, head: Incident, ended: float) -> str | None:
        """What the driver asks for, or that it was for nothing later than a chain; None: not known.

        What it asks for leads whatever is younger, until that is read anew.
        """
        device = self._device(head)
        if device is None or (device.recovery_action == "none" and device.read_at < ended):
            return None
        return device.recovery_action

    def _device(self, head: Incident) -> Device | None:
        """The GPU that it is of, as it is in the same boot."""
        if head.kind != "xid" or self.present.former(head.boot_id):
            return None
        return self.present.devices.get(head.bus_id)

    def _reported(self, incident: Incident) -> bool:
        """Whether this driver says by its recovery action what comes of such an Xid."""
        if incident.kind != "xid":
            return False
        if incident.code == RECOVERY:
            return True
        said = entry(incident.code)
        if said is None or not said.links_154:
            return False
        branch = said.links_154.removeprefix("R").removesuffix("+")
        return not branch.isdecimal() or (self.present.driver_branch or 0) >= int(branch)


def _doubt(action: str) -> str:
    return f"Done, if {_MENDED.get(action, 'the GPU was reset since')}."

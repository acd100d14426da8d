"""Xids of this boot that ask for more than a restarted program, as `Judge` judges them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from mcp_gpu.gpu.actions import grave, heaviest
from mcp_gpu.gpu.health.codes import CODES
from mcp_gpu.gpu.health.look import Look
from mcp_gpu.gpu.health.model import SEVERITIES, Evidence, Finding
from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.xid.incidents import MEMORY as UNCORRECTABLE
from mcp_gpu.gpu.xid.incidents import MEMORY_DETAILS, NVLINK, RECOVERY, Incident
from mcp_gpu.gpu.xid.judgement import Judge
from mcp_gpu.gpu.xid.line import bus_id
from mcp_gpu.gpu.xid.model import Burst
from mcp_gpu.gpu.xid.present import Present

MEMORY: Final = MEMORY_DETAILS.union(UNCORRECTABLE)
"""Xids of the story that ECC counters and row remapping tell."""

LINKS: Final = NVLINK | {136}
"""Those of the story that NVLinks tell."""

_SHOWN_CODES: Final = 8
_SHOWN_PLACES: Final = 4


def xids(now: Snapshot, bursts: Sequence[Burst], at: float) -> Iterator[Finding]:
    """Per GPU what the driver's last Xid 154 asks for, and at most two findings per story: what
    still stands, and what is over. Fatal errors of NVSwitches are the node's."""
    told = _Told(Judge(bursts, Present.of(now, bursts, at=at)), now, at)
    yield from told.asked()
    yield from told.gpus()
    yield from told.switches()


def bursts_on(bursts: Sequence[Burst], looks: Sequence[Look], gpu_index: int | None) -> list[Burst]:
    """Those of one GPU; with None, or for a GPU whose place is not known, all."""
    for look in looks:
        own = bus_id(look.gpu.pci_bus_id or "")
        if look.index == gpu_index and own:
            return [burst for burst in bursts if burst.first.bus_id == own]
    return list(bursts)


class _Told:
    """The chains of a node as findings."""

    def __init__(self, judge: Judge, now: Snapshot, at: float) -> None:
        self._judge, self._at = judge, at
        self._read = {gpu.index: gpu.recovery_action for gpu in now.gpus}

    def asked(self) -> Iterator[Finding]:
        """Where the driver's recovery action cannot be read, or was read before: its last word."""
        last: dict[str, Incident] = {}
        for head in self._judge.heads:
            word = self._judge.asked(head)
            if word is not None and (head.bus_id not in last or word.at >= last[head.bus_id].at):
                last[head.bus_id] = word
        for place, word in last.items():
            index = self._index(place)
            if index is not None and self._read[index] not in (None, "none"):
                continue  # It is told as what was read.
            judged = self._judge.of(word)
            who = self._who([word])
            yield CODES["recovery_action"].finding(
                index,
                f"The driver asks for a recovery of {who}, by its last Xid 154: {judged.action}.",
                (self._evidence([word], f"asks for {word.asked}"),),
                severity=judged.severity,
                action=judged.action,
                advice=judged.advice(index),
                confidence="medium" if judged.doubt else "high",
            )

    def gpus(self) -> Iterator[Finding]:
        alike: defaultdict[tuple[int | None, frozenset[int] | None, bool], list[Incident]]
        alike = defaultdict(list)
        for head in self._judge.heads:
            if head.kind == "xid" and head.code != RECOVERY and self._sick(head):
                over = bool(self._judge.of(head).settled)
                alike[self._index(head.bus_id), _family(head.code), over].append(head)
        for (_, _, over), heads in alike.items():
            yield (self._past if over else self._standing)(heads)

    def switches(self) -> Iterator[Finding]:
        fatal = [
            head
            for head in self._judge.heads
            if head.kind == "sxid" and self._judge.of(head).severity != "info"
        ]
        if not fatal:
            return
        last = self._judge.of(max(fatal, key=lambda head: head.until))
        where = sorted({head.bus_id or "one not named" for head in fatal})
        yield CODES["sxid"].finding(
            None,
            f"NVSwitch {', '.join(where)} had {_names('SXid', fatal)} in this boot, which its "
            "driver calls fatal.",
            self._every(fatal),
            advice=last.advice(),
            confidence="medium",
        )

    def _sick(self, head: Incident) -> bool:
        """Whether it is more than a program's affair, or was."""
        asked = (self._judge.rulings[each].action for each in head.chain)
        return head.explanation.severity == "critical" or any(map(grave, asked))

    def _standing(self, heads: Sequence[Incident]) -> Finding:
        judged = [self._judge.of(head) for head in heads]
        action = heaviest(each.action for each in judged)
        severity = min((each.severity for each in judged), key=SEVERITIES.index)
        worst = [each for each in judged if each.action == action]
        telling = min(worst, key=lambda each: SEVERITIES.index(each.severity))
        index = self._index(heads[0].bus_id)
        asks = "no action of NVIDIA's is known" if action == "NONE" else f"NVIDIA asks: {action}"
        return CODES["xid"].finding(
            index,
            f"{self._who(heads)} had {_names('Xid', self._grave(heads))} in this boot, for which "
            f"{asks}.",
            self._every(self._grave(heads)),
            severity=severity,
            action=action,
            advice=telling.advice(index),
            confidence="high" if severity == "critical" and action != "NONE" else "medium",
        )

    def _past(self, heads: Sequence[Incident]) -> Finding:
        return CODES["xid_past"].finding(
            self._index(heads[0].bus_id),
            f"{self._who(heads)} had {_names('Xid', self._grave(heads))} in this boot; since "
            "cleared, or it needed nothing.",
            self._every(self._grave(heads), self._judge.of(heads[-1]).settled),
            confidence="medium",
        )

    def _grave(self, heads: Sequence[Incident]) -> list[Incident]:
        """Those of their chains that ask for more than a program; else the causes."""
        every = [each for head in heads for each in head.chain if each.code != RECOVERY]
        rulings = self._judge.rulings
        return [each for each in every if grave(rulings[each].action)] or list(heads)

    def _every(self, some: Sequence[Incident], note: str = "") -> tuple[Evidence, ...]:
        """One per code, with the age of the last."""
        by_code: defaultdict[int, list[Incident]] = defaultdict(list)
        for incident in some:
            by_code[incident.code].append(incident)
        found = []
        for _, alike in sorted(by_code.items())[:_SHOWN_CODES]:
            times = sum(each.burst.count for each in alike)
            last = max(alike, key=lambda each: each.until)
            company = note or self._judge.rulings[last].note
            name = alike[0].explanation.name if last.kind == "xid" else ""
            parts = (name, f"{times} times" if times > 1 else "", company.rstrip("."))
            found.append(self._evidence(alike, "; ".join(part for part in parts if part)))
        return tuple(found)

    def _evidence(self, alike: Sequence[Incident], note: str) -> Evidence:
        youngest = max(each.until for each in alike)
        return Evidence(
            reading=alike[0].kind,
            value=alike[0].code,
            age_seconds=round(max(0.0, self._at - youngest), 1),
            note=note,
        )

    def _index(self, place: str) -> int | None:
        device = self._judge.present.devices.get(place)
        return None if device is None else device.index

    def _who(self, some: Sequence[Incident]) -> str:
        index = self._index(some[0].bus_id)
        if index is not None:
            return f"GPU {index}"
        where = sorted({each.bus_id or "not named" for each in some})
        named = ", ".join(where[:_SHOWN_PLACES])
        left = len(where) - _SHOWN_PLACES
        more = f" and {left} more" if left > 0 else ""
        return f"What is no GPU read here ({named}{more})"


def _family(code: int) -> frozenset[int] | None:
    return next((family for family in (MEMORY, LINKS) if code in family), None)


def _names(noun: str, some: Sequence[Incident]) -> str:
    return f"{noun} " + ", ".join(map(str, sorted({each.code for each in some})))

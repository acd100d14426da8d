"""Xids 144 to 150, whose meaning is in the line's numbers: `decode` by NVIDIA's table.

The table (data/nvlink5.json) matches the bits of the first number, intrInfo, by one of two columns:
V1 for drivers before branch 575, V2 from there on. Within a unit the second number, errorStatus,
picks the case.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from mcp_gpu.gpu.actions import grave, weight
from mcp_gpu.gpu.xid.catalogue import DATA, EntrySeverity, action_of, advise, after_154
from mcp_gpu.gpu.xid.decoded import Decoded

CODES: Final = range(144, 151)

V2_FROM_BRANCH: Final = 575

_NUMBER = r"0x([0-9A-Fa-f]{8}(?![0-9A-Fa-f])|[0-9A-Fa-f]{1,7}(?=[, )]))"
"""Whole: of one that was cut, bits would be made up."""

# RLW_SRC_TRACK Nonfatal XC1 i0 Link 10 (0x04082907 0x00000008 0x00000000 ...)
_TEXT = re.compile(
    r"([A-Za-z0-9_]{1,40}) (Fatal|Non-?fatal) XC[0-9A-Fa-f]{1,4} i[0-9A-Fa-f]{1,4}"
    rf" Link (-?[0-9]{{1,4}}) \({_NUMBER}(?:[, ]{{1,2}}{_NUMBER})?",
    re.IGNORECASE,
)

_BITWISE = range(144, 149)
"""In these, errorStatus is a set of bits, several at once; in 149 and 150 it is one number."""

_COLUMNS = {"V1": "the column for drivers before R575", "V2": "the column for drivers from R575 on"}
_UNDECODED = "WORKFLOW_NVLINK5_ERR"
_LINK_DOWN = "NETIR_LINK_EVT/NETIR_LINK_DOWN"
_ORIGINS = {"HW": "hardware", "SW": "software", "FW": "firmware", "HW/SW": "hardware or software"}


@dataclass(frozen=True, slots=True)
class _Case:
    """A row of the table under one of its two columns, with one of its two actions."""

    code: int
    column: str
    cares: int
    """The bits of intrInfo that matter, and below what they have to be."""
    wants: int
    unit: str
    statuses: frozenset[int]
    """Those of errorStatus; empty: any."""
    bucket: str
    investigate: str
    fatal: bool
    remarks: str

    def explains(self, status: int | None) -> int | None:
        """How much of an errorStatus it is about: some bits, or the number. None: nothing."""
        if not self.statuses:
            return status or 0
        if status is None:
            return None
        if self.code in _BITWISE:
            return next((bit for bit in self.statuses if status & bit), None)
        return status if status in self.statuses else None


def decode(code: int, text: str, driver_branch: int | None) -> Decoded | None:
    """What a line of 144 to 150 says by NVIDIA's table; None if it has no numbers to decode.

    Without a driver branch both columns are tried. Each finding says by which it was made.
    """
    line = _TEXT.search(text) if code in CODES else None
    if line is None:
        return None
    unit, word, told_link, interrupt, errors = line.groups()
    fatal, link = word.lower() == "fatal", int(told_link)
    info, status = int(interrupt, 16), None if errors is None else int(errors, 16)
    fitting = [case for case in _cases() if case.code == code and info & case.cares == case.wants]
    asked = [case for case in fitting if driver_branch is None or case.column == _of(driver_branch)]
    hits = [case for case in asked if case.explains(status) is not None]
    sentences = [
        f"Unit {unit}, {f'link {link}' if link >= 0 else 'no link of its own'}; the driver calls it"
        f" {'fatal' if fatal else 'not fatal'}."
    ]
    if any(case.unit == _LINK_DOWN for case in asked):
        sentences.append(f"The reason given for the link's going down is {info >> 20 & 0x3F}.")
    sentences += _findings(hits, status)
    gap = _gap(info, status, asked, hits)
    if gap:
        sentences.append(gap)
    if not asked and fitting:
        other = fitting[0]
        sentences.append(
            f"By {_COLUMNS[other.column]}, which is not this driver's (branch"
            f" {driver_branch}), it would be unit {other.unit}."
        )
    return _verdict(sentences, hits, unit, link if link >= 0 else None, fatal, certain=not gap)


def _findings(hits: Sequence[_Case], status: int | None) -> list[str]:
    columns: dict[str, list[str]] = {}
    for case in hits:
        picked = "" if not case.statuses else f" with errorStatus {case.explains(status):#010x}"
        what = f"{case.unit}{picked}: {case.bucket}, to look into: {case.investigate}"
        columns.setdefault(f"{what}; {case.remarks}.", []).append(case.column)
    return [
        f"By {_COLUMNS[names[0]] if len(names) == 1 else 'either column'}, {finding}"
        for finding, names in columns.items()
    ]


def _gap(info: int, status: int | None, asked: Sequence[_Case], hits: Sequence[_Case]) -> str:
    """What the table does not explain of a line."""
    if not asked:
        return f"NVIDIA's table has no unit for intrInfo {info:#010x} with this Xid."
    if status is None and not hits:
        return "The line ends before errorStatus, which picks the case."
    if not hits:
        return f"NVIDIA's table has no case for errorStatus {status:#010x} of this unit."
    if status is None or any(not case.statuses for case in hits):
        return ""
    left = status
    for case in hits:
        left &= ~(case.explains(status) or 0)
    if left:
        return f"NVIDIA's table has no case for the bits {left:#010x} of errorStatus."
    return ""


def _verdict(
    sentences: Sequence[str],
    hits: Sequence[_Case],
    unit: str,
    link: int | None,
    fatal: bool,
    *,
    certain: bool,
) -> Decoded:
    """The heaviest of what the cases ask for; a gap asks for what the driver's own word does."""
    worst = max(
        hits,
        key=lambda case: (weight(action_of(case.bucket)), case.investigate != "IGNORE"),
        default=None,
    )
    action = action_of(worst.bucket) if worst else "NONE"
    bucket, investigate = (worst.bucket, worst.investigate) if worst else (_UNDECODED, _UNDECODED)
    if not certain and fatal and not grave(action):
        action, bucket, investigate = "RESET_GPU", _UNDECODED, _UNDECODED
    advice = advise(action, investigate)
    if bucket == _UNDECODED and action == "NONE":
        advice = after_154("Look at what comes with it: the line alone does not say what to do.")
    elif bucket in {"XID_154_EVAL", _UNDECODED}:
        advice = after_154(advice)
    severity: EntrySeverity = "critical" if grave(action) else "info"
    if severity == "info" and (action != "NONE" or not certain or any(hit.fatal for hit in hits)):
        severity = "warning"
    return Decoded(
        sentences=tuple(sentences),
        unit=unit,
        link=link,
        bucket=bucket,
        action=action,
        advice=advice,
        investigate=investigate,
        severity=severity,
        certain=certain,
    )


def _of(driver_branch: int) -> str:
    return "V1" if driver_branch < V2_FROM_BRANCH else "V2"


@cache
def _cases() -> tuple[_Case, ...]:
    rows: list[dict[str, Any]] = json.loads((DATA / "nvlink5.json").read_text(encoding="utf-8"))
    return tuple(case for row in rows for column in ("v1", "v2") for case in _of_row(row, column))


def _of_row(row: dict[str, Any], column: str) -> list[_Case]:
    patterns = [(row[column], row["immediate"]), (row[f"{column}_action2"], row["action2"])]
    return [
        _Case(
            code=row["xid"],
            column=column.upper(),
            cares=int("".join("0" if bit == "-" else "1" for bit in pattern), 2),
            wants=int(pattern.replace("-", "0"), 2),
            unit=row["unit"],
            statuses=frozenset(int(one, 16) for one in row["status"].split("/") if one),
            bucket=bucket,
            investigate=row["investigatory"],
            fatal=not row["severity"].startswith("Non-fatal"),
            remarks=_remarks(row),
        )
        for pattern, bucket in patterns
        if pattern
    ]


def _remarks(row: dict[str, Any]) -> str:
    """Severity, origin and effects as the table has them, without the marks of its footnotes."""
    remarks: str = row["severity"].rstrip("*?")
    if row["hwsw"] in _ORIGINS:
        remarks += f", {_ORIGINS[row['hwsw']]}"
    if row["scope"] != "Local: none; Remote: none":
        remarks += f"; {row['scope'].replace('*', '')}"
    return remarks

"""One Xid in words: `explain`, from its code alone or with what its line says."""

from __future__ import annotations

import re
from typing import Final

from pydantic import Field

from mcp_gpu.gpu.health.model import Confidence
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.gpu.xid import line, nvlink5, nvlink_registers, texts
from mcp_gpu.gpu.xid.catalogue import PROVENANCE, EntrySeverity, XidEntry, entry
from mcp_gpu.gpu.xid.decoded import Decoded
from mcp_gpu.gpu.xid.model import Kind

_DEPENDS_ON_MORE: Final[dict[str, Confidence]] = {
    "WORKFLOW_XID_45": "medium",
    "WORKFLOW_XID_48": "medium",
    "CHECK_UVM": "medium",
    "WORKFLOW_NVLINK_ERR": "low",
    "WORKFLOW_NVLINK5_ERR": "low",
    "XID_154": "low",
    "": "low",
}
"""Buckets by which the code alone does not decide, and how far it can be followed all the same."""

_FOLLOWS = "WORKFLOW_XID_45"
"""The bucket of what asks for nothing itself if it has a cause; `XidEntry.action` is NONE."""

_SWITCH_TEXT = re.compile(r"(Non-?fatal|Fatal)(?:,? Link ([0-9]{1,4}))?", re.IGNORECASE)


class Explanation(Wire):
    """What an Xid or SXid says."""

    code: int
    kind: Kind
    name: str = Field(description="NVIDIA's words for it.")
    mnemonic: str = Field(description="NVIDIA's symbol for it; empty: none is known.")
    meaning: str = Field(description="What it says, in one sentence.")
    bucket: str = Field(
        description="What NVIDIA's catalogue says to do at once, spelled as there; that of the"
        " case where the line was decoded. Empty: nothing is said."
    )
    action: str = Field(description="What that asks for, from NONE to CONTACT_SUPPORT.")
    advice: str = Field(description="What to do, in words.")
    severity: EntrySeverity = Field(description="follow: what comes with it decides.")
    investigate: str = Field(description="What NVIDIA says to look into, spelled as there.")
    decoded: tuple[str, ...] = Field(description="What the line says beyond the code.")
    caused_by: int | None = Field(description="The Xid that the line names as the cause.")
    disagreements: tuple[str, ...] = Field(description="Who says otherwise.")
    note: str
    provenance: str = Field(description="Whose word it is.")
    confidence: Confidence
    known: bool = Field(description="Whether anything is known of the code.")


def explain(
    code: int, *, text: str = "", kind: Kind = "xid", driver_branch: int | None = None
) -> Explanation:
    """What a code says, and its line as far as `text` has it. Never raises.

    Args:
        text: what the line says after code, pid and process name; the whole line will do.
        driver_branch: such as 580, by which 144 to 150 are decoded.
    """
    whole = line.parse(text)
    if whole is not None and whole.code == code and whole.kind == kind:
        text = whole.text
    text = text[: line.TEXT_LIMIT]
    if kind == "sxid":
        return _of_switch(code, text)
    found = entry(code)
    if found is None:
        return _unknown(code, text)
    decoded = decode(code, text, driver_branch)
    return _of_entry(found, decoded, line.caused_by(text))


def decode(code: int, text: str, driver_branch: int | None = None) -> Decoded | None:
    """What the text of a line says beyond its code; None where nothing in it was recognised."""
    if code in nvlink5.CODES:
        return nvlink5.decode(code, text, driver_branch)
    if code == nvlink_registers.CODE:
        return nvlink_registers.decode(text)
    return texts.decode(code, text)


def _of_entry(found: XidEntry, decoded: Decoded | None, cause: int | None) -> Explanation:
    said = decoded or Decoded(())
    advice, severity = said.advice or found.advice, said.severity or found.severity
    sentences = said.sentences
    if cause is not None:
        sentences += (f"The driver names Xid {cause} as its cause.",)
    explained = cause is not None and found.bucket == _FOLLOWS
    if explained:
        advice = f"Follow Xid {cause}, its cause; about this one itself nothing has to be done."
        severity = "info"
    return Explanation(
        code=found.code,
        kind="xid",
        name=found.name,
        mnemonic=found.mnemonic,
        meaning=found.meaning,
        bucket=found.bucket if said.bucket is None else said.bucket,
        action=said.action or found.action,
        advice=advice,
        severity=severity,
        investigate=found.investigate if said.investigate is None else said.investigate,
        decoded=sentences,
        caused_by=cause,
        disagreements=found.disagreements,
        note=found.note,
        provenance=found.provenance,
        confidence=_confidence(found, said, explained=explained),
        known=True,
    )


def _confidence(found: XidEntry, said: Decoded, *, explained: bool) -> Confidence:
    if not said.certain or found.unused or found.provenance != PROVENANCE:
        return "low"
    if said.action is not None or explained:
        return "high"
    return _DEPENDS_ON_MORE.get(found.bucket, "high")


def _unknown(code: int, text: str) -> Explanation:
    return Explanation(
        code=code,
        kind="xid",
        name=f"Xid {code}",
        mnemonic="",
        meaning="Nothing is known of this code here: NVIDIA's catalogue of 2025-09-30 lacks it.",
        bucket="",
        action="NONE",
        advice=(
            "What it asks for is not known. Follow a 154 for the same GPU if there is one, and the"
            " driver's recovery action; look the code up in NVIDIA's current catalogue."
        ),
        severity="warning",
        investigate="",
        decoded=(),
        caused_by=line.caused_by(text),
        disagreements=(),
        note="It may be newer than the catalogue.",
        provenance=f"not in {PROVENANCE}",
        confidence="low",
        known=False,
    )


def _of_switch(code: int, text: str) -> Explanation:
    found = _SWITCH_TEXT.search(text)
    decoded: tuple[str, ...] = ()
    severity: EntrySeverity = "info"
    if found is not None:
        fatal = found[1].lower() == "fatal"
        # What it asks for is not known here, and a switch calls a link fatal whose GPU was reset.
        severity = "warning" if fatal else "info"
        where = f", on its link {int(found[2])}" if found[2] else ""
        decoded = (f"The switch's driver calls it {'fatal' if fatal else 'not fatal'}{where}.",)
    return Explanation(
        code=code,
        kind="sxid",
        name=f"SXid {code}",
        mnemonic="",
        meaning="An NVSwitch reports an error; SXids are numbered apart from the GPUs' Xids.",
        bucket="",
        action="NONE",
        advice=(
            "Look the number up in the list of SXids in NVIDIA's Fabric Manager user guide, which"
            " says what it asks for, and look for NVLink errors (74, 144 to 150) of the same time"
            " on the GPUs at its other ends."
        ),
        severity=severity,
        investigate="",
        decoded=decoded,
        caused_by=None,
        disagreements=(),
        note="What each SXid means is not part of this project's data.",
        provenance="the line alone",
        confidence="low",
        known=False,
    )

"""NVIDIA's catalogue of Xids: `entry`, `entries`, and what its buckets ask for in words.

The data is in data/codes.json, column by column as NVIDIA and others publish it; what this project
says of a code in its own words is in data/words.json. docs/xids.md tells where both come from.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from mcp_gpu.gpu.actions import advice
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.gpu.xid import authorities

PROVENANCE: Final = (
    "NVIDIA's Xid catalogue (Xid-Catalog.xlsx, last modified 2025-09-30), causes from NVIDIA's"
    " Xid document of driver branch 555"
)

EntrySeverity = Literal["critical", "warning", "info", "follow"]
"""follow: the code alone does not say; the line it came with, or what came with it, does."""

DATA: Final = Path(__file__).with_name("data")

_BUCKETS = {
    "": "NONE",
    "IGNORE": "NONE",
    "RESTART_APP": "RESTART_APP",
    "RESET_GPU": "RESET_GPU",
    "RESTART_VM": "RESTART_VM",
    "RESTART_BM": "REBOOT_NODE",
    "CHECK_MECHANICALS": "CHECK_SEATING",
    "UPDATE_SWFW": "UPDATE_SW_FW",
    "CONTACT_SUPPORT": "CONTACT_SUPPORT",
    # Those that depend on more than the code: what holds while nothing more is known.
    "WORKFLOW_XID_45": "NONE",
    "WORKFLOW_XID_48": "RESET_GPU",
    "WORKFLOW_NVLINK_ERR": "RESET_GPU",
    "WORKFLOW_NVLINK5_ERR": "RESET_GPU",
    "XID_154": "NONE",
    "XID_154_EVAL": "RESTART_APP",
    "CHECK_UVM": "RESET_GPU",
}

_INVESTIGATIONS = {
    "": "",
    "IGNORE": "",
    "IGNORE (sympathetic)": "It follows from another error: look for the Xids before it.",
    "CONTACT_SUPPORT": "If it comes back, contact the vendor's support.",
    "CHECK_APP/CUDA": (
        "If it comes back, look at the application first (compute-sanitizer, cuda-gdb), and at the"
        " versions of CUDA and driver."
    ),
    "INVESTIGATE_SW": "If it comes back, look at driver and software: versions, release notes.",
    "INVESTIGATE_SW_USER": (
        "Find out whether somebody or some software took the link down on purpose."
    ),
    "INVESTIGATE_SW/USER": (
        "Find out whether somebody or some software took the link down on purpose."
    ),
    "INVESTIGATE_SW_USER_LINK_SI": (
        "Find out whether software or somebody took the link down on purpose; if not, look at the"
        " quality of the link's signal."
    ),
    "INVESTIGATE_HOST": "Look at the host: what happened to it when the link went down.",
    "INVESTIGATE_LINK_SI": "Look at the quality of the link's signal: error counters, connections.",
    "INVESTIGATE_LINK_SI_AND_CABLES": (
        "Look at the quality of the link's signal: error counters, cables, connectors."
    ),
    "INVESTIGATE_PEER_DEVICE": (
        "Look at the device at the other end of the link: its own errors, whether it was reset or"
        " its port disabled, and its temperature and cooling."
    ),
    "CHECK_NVLINK_FAILURE_FLOW": "Look for the failure of a link that it follows from.",
    "SYMPATHETIC_REPORT_SOLO": (
        "It commonly follows from another error: look for that one; alone, it is worth a report"
        " to the vendor's support."
    ),
    "REPORT_ISSUE (if seen >1 per day)": (
        "If it is seen more than once a day, report it to the vendor's support."
    ),
    "UPDATE_SWFW": "If it comes back, compare the versions again.",
}
"""What words.json does not say better for a code."""


class XidEntry(Wire):
    """One code of the catalogue."""

    code: int
    mnemonic: str = Field(description="NVIDIA's symbol for it.")
    name: str = Field(description="NVIDIA's words for it.")
    meaning: str = Field(description="What it says, in one sentence.")
    category: str = Field(description="What kind of error it is.")
    causes: tuple[str, ...] = Field(description="What NVIDIA names as possible causes.")
    architectures: tuple[str, ...] = Field(description="Where the catalogue says it can occur.")
    bucket: str = Field(
        description="What NVIDIA's catalogue says to do at once, spelled as there; empty: nothing"
        " is said yet."
    )
    action: str = Field(description="What the bucket asks for, one of `actions.ACTIONS`.")
    advice: str = Field(description="What to do, in words.")
    investigate: str = Field(description="What it says to look into, spelled as there.")
    severity: EntrySeverity
    links_154: str = Field(
        description='From which driver branch on a 154 comes with it, such as "R565+"; "yes": since'
        " there is the code; empty: none is known to."
    )
    disagreements: tuple[str, ...] = Field(description="Who says otherwise.")
    note: str
    unused: bool = Field(description="The catalogue lists it as unused on every architecture.")
    provenance: str = PROVENANCE


def entry(code: int) -> XidEntry | None:
    """What is known of a code; None: nothing is.

    173 and 999 have one and are in no catalogue of NVIDIA's that this project knows: `provenance`
    says where they are from.
    """
    return _load().get(code)


@cache
def entries() -> tuple[XidEntry, ...]:
    """The catalogue, by code. What is known only from elsewhere is not in it."""
    return tuple(found for found in _load().values() if found.provenance == PROVENANCE)


def action_of(bucket: str) -> str:
    """The action that a bucket of the catalogue asks for."""
    return _BUCKETS[bucket]


def advise(action: str, investigate: str) -> str:
    """What to do, in words, with what the investigatory bucket asks for."""
    look_into = _INVESTIGATIONS.get(investigate, "")
    if action == "CONTACT_SUPPORT":
        look_into = ""  # said already
    return f"{advice(action)} {look_into}".rstrip()


def after_154(words: str) -> str:
    """That advice for when no 154 comes with the Xid: the driver's own word goes before it."""
    first, rest = words[0].lower(), words[1:]
    return f"Follow a 154 for the same GPU if there is one. Without one: {first}{rest}"


_CAUSES = {
    "hw": "hardware",
    "drv": "driver",
    "app": "application",
    "sysmem": "system memory corruption",
    "bus": "bus error",
    "therm": "thermal",
    "fb": "framebuffer corruption",
}
_ARCHITECTURES = {"A": "A100", "H": "H100", "B": "B100", "G": "GB200"}
_SEVERITIES: dict[str, EntrySeverity] = {
    "critical": "critical",
    "warning": "warning",
    "info": "info",
    "unknown": "warning",
    "decode": "follow",
    "follow-text": "follow",
}
_UNUSED_PREFIX = "(unused in current catalogue) "


@cache
def _load() -> dict[int, XidEntry]:
    words: dict[str, dict[str, Any]] = _read("words.json")
    rows: list[dict[str, Any]] = _read("codes.json")
    known = {row["code"]: _entry(row, words.get(str(row["code"]), {})) for row in rows}
    elsewhere = [XidEntry(**row) for row in _read("elsewhere.json")]
    return known | {found.code: found for found in elsewhere}


def _read(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def _entry(row: dict[str, Any], words: dict[str, Any]) -> XidEntry:
    bucket, investigate = row["immediate"], row["investigatory"]
    action = words.get("action") or action_of(bucket)
    name = row["name"].removeprefix(_UNUSED_PREFIX)
    return XidEntry(
        code=row["code"],
        mnemonic=row["mnemonic"],
        name=name,
        meaning=words.get("meaning") or _meaning_of_unused(name),
        category=row["cls"],
        causes=tuple(_CAUSES[cause] for cause in row["flags"]),
        architectures=tuple(
            _ARCHITECTURES[letter] for letter in row["applies"] if letter in _ARCHITECTURES
        ),
        bucket=bucket,
        action=action,
        advice=words.get("advice") or _advise(row, action),
        investigate=investigate,
        severity=_SEVERITIES[row["sev"]],
        links_154=row["m154"],
        disagreements=(
            *words.get("disagreements", ()),
            *authorities.disagreements(row["others"], bucket, action, unused=row["unused"]),
        ),
        note=words.get("note", ""),
        unused=row["unused"],
    )


def _advise(row: dict[str, Any], action: str) -> str:
    if row["unused"]:
        return (
            "It is not expected on today's boards, and the catalogue's action for every such code"
            " is to contact support. Follow a 154 for the same GPU if there is one; without one,"
            " and if it comes back, give the vendor's support what nvidia-bug-report.sh collects."
        )
    if not row["immediate"]:
        return (
            "NVIDIA's catalogue does not say yet what to do about it. Follow a 154 for the same GPU"
            " if there is one, and the driver's recovery action; if it comes back, contact the"
            " vendor's support."
        )
    return advise(action, row["investigatory"])


def _meaning_of_unused(name: str) -> str:
    if name in {"Unused", "Reserved"}:
        return (
            "The driver has the code, and NVIDIA's catalogue says of no architecture that it"
            " occurs there."
        )
    return (
        f"NVIDIA's catalogue lists it as unused on every architecture from Ampere on; on older"
        f" boards and drivers it was: {name}."
    )

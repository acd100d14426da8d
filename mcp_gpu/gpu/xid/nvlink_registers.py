"""Xid 74, an NVLink before NVLink 5: `decode` of the seven registers in its line.

By NVIDIA's workflow WORKFLOW_NVLINK_ERR: the first, third, fourth and fifth register count, and
each bit asks for something of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mcp_gpu.gpu.actions import advice, weight
from mcp_gpu.gpu.xid.catalogue import EntrySeverity, after_154
from mcp_gpu.gpu.xid.decoded import Decoded

CODE: Final = 74

# NVLink: fatal error detected on link 14(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)
_TEXT = re.compile(r"link ([0-9]{1,4}) ?\((0x[0-9A-Fa-f]{1,16}(?:, ?0x[0-9A-Fa-f]{1,16}){6})\)")


@dataclass(frozen=True, slots=True)
class _Group:
    """What some bits have in common."""

    says: str
    action: str
    severity: EntrySeverity


_IGNORED = _Group("can be ignored", "NONE", "info")
_THRESHOLD = _Group(
    "corrected errors passed a threshold; go on, and have a field diagnosis made if it suits",
    "NONE",
    "info",
)
_SYMPATHETIC = _Group(
    "mostly follows from another error: follow the other bits, Xids and SXids of the same time;"
    " alone, report it",
    "NONE",
    "warning",
)
_ECC = _Group(
    "probably an ECC or parity error of the hardware: more than two on the same link are to be"
    " reported",
    "RESTART_APP",
    "warning",
)
_REPEATED = _Group("if it repeats, report it", "RESTART_APP", "warning")
_REPEATED_DIAGNOSIS = _Group(
    "if it repeats, have a field diagnosis made and report it", "RESTART_APP", "warning"
)
_FABRIC_RESET = _Group(
    "mostly follows from another error, and the fabric has to be reset all the same",
    "RESET_GPU",
    "critical",
)
_UNLISTED = _Group("is in no list of NVIDIA's workflow: report it", "RESET_GPU", "critical")
_HARDWARE = _Group(
    "may be the hardware: check the link's connections and seating, then run diagnostics if it"
    " persists",
    "CHECK_SEATING",
    "critical",
)
_MARGINAL = _Group(
    "a marginal signal: follow other errors of the same time first; without any, check the link's"
    " connections and have a field diagnosis made",
    "CHECK_SEATING",
    "critical",
)
_UNEXPECTED = _Group("is not expected in the field: report it", "CONTACT_SUPPORT", "critical")

_BITS: dict[int, tuple[tuple[_Group, tuple[int, ...]], ...]] = {
    1: (
        (_IGNORED, (0, 23, 30)),
        (_SYMPATHETIC, (1, 20)),
        (_ECC, (4, 5)),
        (_HARDWARE, (8, 9, 12, 16, 17, 24, 28)),
        (_MARGINAL, (21, 22)),
        (_REPEATED, (27, 29)),
    ),
    3: (
        (_ECC, (0, 1, 2, 6)),
        (_UNEXPECTED, (13,)),
        (_REPEATED_DIAGNOSIS, (16, 19)),
        (_REPEATED, (17, 18)),
    ),
    4: ((_SYMPATHETIC, (16, 17)), (_FABRIC_RESET, (18,))),
    5: ((_ECC, (18, 19, 21, 22, 24, 25, 27, 28)), (_THRESHOLD, (20, 23, 26, 29))),
}
_GROUP_OF = {
    (register, bit): group
    for register, groups in _BITS.items()
    for group, bits in groups
    for bit in bits
}


def decode(text: str) -> Decoded | None:
    """What a line of Xid 74 says by its registers; None if it has not all seven.

    What depends on how often a link met the same is said, not counted: one line is looked at.
    """
    found = _TEXT.search(text)
    if found is None:
        return None
    link = int(found[1])
    registers = [int(number, 16) for number in found[2].split(",")]
    groups: dict[_Group, list[tuple[int, int]]] = {}
    for register in _BITS:
        value = registers[register - 1]
        for bit in range(value.bit_length()):
            if value >> bit & 1:
                group = _GROUP_OF.get((register, bit), _UNLISTED)
                groups.setdefault(group, []).append((register, bit))
    told = f"Link {link}."
    if not groups:
        return Decoded(
            (f"{told} No register that NVIDIA's workflow reads has a bit set.",),
            link=link,
            certain=False,
        )
    worst = max(groups, key=lambda group: weight(group.action))
    return Decoded(
        sentences=(told, *(f"{_listed(bits)}: {group.says}." for group, bits in groups.items())),
        link=link,
        action=worst.action,
        advice=f"{after_154(advice(worst.action))} Look at the other end of the link for an Xid or"
        " SXid of the same time.",
        severity=worst.severity,
        certain=_UNLISTED not in groups,
    )


def _listed(bits: Sequence[tuple[int, int]]) -> str:
    told = ", ".join(f"bit {bit} of register {register}" for register, bit in bits)
    return told[0].upper() + told[1:]

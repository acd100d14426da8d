"""What the texts of other Xids say that changes or sharpens their meaning: `decode`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from mcp_gpu.gpu.actions import advice, recovery, recovery_severity
from mcp_gpu.gpu.fields import RECOVERY_ACTIONS
from mcp_gpu.gpu.xid.decoded import Decoded

RECOVERY_CODE: Final = 154
"""The Xid whose text is NVIDIA's own verdict."""

_UNIT = re.compile(r"\(GPC ([0-9]{1,3}), ?TPC ([0-9]{1,3})(?:, ?SM ([0-9]{1,3}))?\)")
_FAULT = re.compile(
    r"MMU Fault: ENGINE ([A-Z0-9_]{1,40})(?: [A-Z0-9_]{1,40})? faulted @ ([0-9A-Fa-fx_]{1,40})\."
    r" Fault is of type ([A-Z0-9_]{1,40})(?: ACCESS_TYPE_([A-Z0-9_]{1,40}))?"
)
_RPC = re.compile(
    r"Timeout after ([0-9]{1,5})s of waiting for RPC response from GPU([0-9]{1,4}) GSP!"
    r" Expected function ([0-9]{1,6}) \(([A-Z0-9_]{1,64})\)"
)
_RECOVERY = re.compile(
    r"from (?:0x[0-9a-f]{1,8} ?)?\(([^)]{1,40})\) to (?:(0x[0-9a-f]{1,8}) ?)?\(([^)]{1,40})\)",
    re.IGNORECASE,
)

_ASKED = {
    "none": "none",
    "gpu reset required": "gpu_reset",
    "node reboot required": "node_reboot",
    "drain p2p": "drain_p2p",
    "drain and reset": "drain_and_reset",
    "recover imex domain": "recover_imex",
    "bus reset": "bus_reset",
    "system reboot": "system_reboot",
}
"""What the driver's text names a recovery action, and what the inventory does. A number that comes
with it is nvml.h's."""


def decode(code: int, text: str) -> Decoded | None:
    """What a line says beyond its code; None where nothing in it was recognised."""
    reader = _READERS.get(code)
    return reader(text) if reader else None


def _exception(text: str) -> Decoded | None:
    found = _UNIT.search(text)
    if found is None:
        return None
    parts = zip(("GPC", "TPC", "SM"), found.groups(), strict=True)
    unit = " ".join(f"{name} {number}" for name, number in parts if number is not None)
    return Decoded((f"It happened on {unit}.",), unit=unit)


def _page_fault(text: str) -> Decoded | None:
    found = _FAULT.search(text)
    if found is None:
        return None
    engine, address, fault, access = found.groups()
    kind = f" on {access}" if access else ""
    return Decoded((f"Engine {engine} at address {address}: {fault}{kind}.",), unit=engine)


def _double_bit(text: str) -> Decoded | None:
    lower = text.lower()
    if "framebuffer" in lower or "dram" in lower:
        return Decoded(
            ("The error is in the board's memory (DRAM): look for 63 or 64, and follow those.",),
            unit="DRAM",
        )
    if "sram" in lower:
        return Decoded(
            (
                "The error is in memory on the chip (SRAM): what counts is whether the driver's"
                " threshold for SRAM errors is exceeded.",
            ),
            unit="SRAM",
        )
    return None


def _remapping(text: str) -> Decoded | None:
    lower = text.lower()
    if "row remap" in lower:
        return Decoded(
            ("Row remapping, as boards from Ampere on have it: spare rows stand in for bad ones.",)
        )
    if "page retire" in lower or "page is" in lower or "retired" in lower:
        return Decoded(
            (
                "Page retirement, as boards before Ampere have it: bad pages are left out from the"
                " next load of the driver on.",
            )
        )
    return None


def _rpc_timeout(text: str) -> Decoded | None:
    found = _RPC.search(text)
    if found is None:
        return None
    seconds, gpu, number, name = found.groups()
    return Decoded(
        (
            f"The GSP of the driver's GPU {gpu} did not answer function {number} ({name}) in"
            f" {seconds} s.",
        )
    )


def _recovery(text: str) -> Decoded | None:
    found = _RECOVERY.search(text)
    if found is None:
        return None
    before, number, after = found.groups()
    changed = f'The driver\'s recommendation went from "{before}" to "{after}".'
    by_number = RECOVERY_ACTIONS.get(int(number, 16), "") if number else ""
    asked = _ASKED.get(after.strip().lower(), by_number)
    action = recovery(asked)
    severity = recovery_severity(action)
    if not asked:
        unknown = f"What that asks for is not known here. {advice(action)}"
        sentences = (changed, "What that asks for is not known here.")
        return Decoded(sentences, action=action, advice=unknown, severity=severity, certain=False)
    if action == "NONE":
        words = "Nothing more has to be done: the driver takes its recommendation back."
    else:
        words = f"{advice(action)} Another Xid of the same time says why."
    return Decoded((changed,), action=action, advice=words, severity=severity)


_READERS: dict[int, Callable[[str], Decoded | None]] = {
    13: _exception,
    31: _page_fault,
    48: _double_bit,
    63: _remapping,
    64: _remapping,
    119: _rpc_timeout,
    RECOVERY_CODE: _recovery,
}

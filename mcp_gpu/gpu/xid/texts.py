"""What the texts of other Xids say that changes or sharpens their meaning: `decode`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from mcp_gpu.gpu.xid.catalogue import EntrySeverity, advice, weight
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

# By nvml.h's number for it: how the driver's text names it, and what that asks for.
RECOVERY_TEXTS: Final[dict[int, tuple[str, str, str]]] = {
    0: ("none", "NONE", "Nothing more has to be done: the driver takes its recommendation back."),
    1: ("gpu reset required", "RESET_GPU", advice("RESET_GPU")),
    2: ("node reboot required", "REBOOT_NODE", advice("REBOOT_NODE")),
    3: (
        "drain p2p",
        "RESTART_APP",
        "End the programs that use the memory of other GPUs. Then read the driver's recovery"
        " action again: it names what remains to be done.",
    ),
    4: ("drain and reset", "DRAIN_AND_RESET", advice("DRAIN_AND_RESET")),
    5: (
        "recover imex domain",
        "RESTART_FM",
        "Recover the IMEX domain that the GPU belongs to (the nvidia-imex services).",
    ),
    6: ("bus reset", "RESET_GPU", "Stop everything that uses the GPU, then reset it by its bus."),
    7: ("system reboot", "REBOOT_NODE", advice("REBOOT_NODE")),
}


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
    by_name = {name: (action, words) for name, action, words in RECOVERY_TEXTS.values()}
    by_number = RECOVERY_TEXTS.get(int(number, 16)) if number else None
    known = by_name.get(after.strip().lower()) or (by_number and by_number[1:])
    if not known:
        return Decoded((changed, "What that asks for is not known here."), certain=False)
    action, words = known
    severity: EntrySeverity = "critical" if weight(action) >= weight("RESET_GPU") else "warning"
    if action == "NONE":
        return Decoded((changed,), action=action, advice=words, severity="info")
    words = f"{words} Another Xid of the same time says why."
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

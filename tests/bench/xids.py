"""What it costs to make sense of a kernel log full of Xids."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench.figures import Section
from mcp_gpu.gpu.xid.analysis import analyse
from mcp_gpu.gpu.xid.log import XidLog
from mcp_gpu.gpu.xid.present import Device, Present
from mcp_gpu.gpu.xid.view import View
from mcp_gpu.node.lines import XidLines

__all__ = ["analysis"]

LINES = 100_000

SECONDS = 1.0

ANALYSED_SECONDS = 0.5
"""So long a call holds up all others of the agent."""

MIXED = 10
"""One line in so many is an Xid in an ordinary log of a node in trouble: all kinds on all GPUs."""

STORM = 10_000
"""In a storm every line is one, and all but one in so many are Xid 45 of one GPU."""

BOOT = "b" * 32

STARTED_AT = 1_790_000_000.0

APART_SECONDS = 2.0
"""Between two lines: all of them take two days."""

FABRIC = (144, 145, 146, 147, 148, 149, 150, 45, 137)
"""What every GPU says again and again where the links have failed."""

FABRIC_SECONDS = 60.0
"""In which each of them has said all of it: every one has all others' beside it."""

BUS_IDS = [f"0000:{0x10 + 8 * index:02x}:00" for index in range(8)]

GPUS = {bus_id: Device(index, f"GPU-{index}", "H100") for index, bus_id in enumerate(BUS_IDS)}

OF_LINES = 3
"""One line in so many is an Xid then."""

FABRIC_LINES = OF_LINES * len(FABRIC) * len(BUS_IDS)

CODES = (13, 31, 43, 45, 45, 45, 45, 45, 48, 63, 94, 119, 145, 149, 154)

TEXTS = {
    13: "Graphics SM Warp Exception on (GPC {gpc}, TPC 1, SM 0): Out Of Range Address",
    145: "RLW_SRC_TRACK Nonfatal XC1 i0 Link 10 (0x04082907 0x00000008 0x{n:x} 0x0 0x0 0x0 0x0)",
    149: "NETIR_LINK_EVT Fatal XC0 i0 Link 03 (0x00400091 0x00000000 0x{n:x} 0x0 0x0 0x0 0x0)",
    154: "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
}
ANY_TEXT = "pid={n}, name=python, Ch {n:08x}"

LINKS = (144, 146, 147, 148, 150)
"""They say what 145 says."""

OTHER = "docker0: port 2(veth{n:04x}) entered forwarding state"


async def analysis(repetitions: int) -> Section:
    """From lines to the answer's data: what an agent does from its start to the first call."""
    section = Section(f"analyze_xid_errors over {LINES:,} lines of the kernel log, processor time")
    for name, line, apart in (
        ("one line in ten an Xid", _mixed, APART_SECONDS),
        ("a storm of Xid 45", _storm, APART_SECONDS),
        ("a storm over all NVLinks", _fabric, FABRIC_SECONDS / FABRIC_LINES),
    ):
        lines = [line(number) for number in range(LINES)]
        taken = [_round(lines, apart) for _ in range(repetitions)]
        read, told, bursts = min(taken, key=lambda each: each[0] + each[1])
        section.add(f"{name}: read into {bursts:,} bursts", read, "s")
        section.add(f"{name}: analysed", told, "s", ANALYSED_SECONDS)
        section.add(f"{name}: both", read + told, "s", SECONDS)
    return section


def _round(lines: Sequence[str], apart_seconds: float) -> tuple[float, float, int]:
    """Seconds of processor time for reading and for analysing, and how many bursts there were."""
    started = time.process_time()
    log, reader = XidLog(), XidLines("kernel_log")
    for number, line in enumerate(lines):
        event = reader.event(line, STARTED_AT + number * apart_seconds, BOOT)
        if event is not None:
            log.add(event)
    read = time.process_time()
    bursts = log.bursts()
    analyse(bursts, Present(STARTED_AT, GPUS, 580, BOOT), view=View(), limit=20)
    return read - started, time.process_time() - read, len(bursts)


def _mixed(number: int) -> str:
    if number % MIXED:
        return OTHER.format(n=number % 65_536)
    code = CODES[number * 7 // MIXED % len(CODES)]
    return _xid(code, BUS_IDS[number // MIXED % len(BUS_IDS)], number)


def _storm(number: int) -> str:
    return _xid(45 if number % STORM else 119, BUS_IDS[0], number)


def _fabric(number: int) -> str:
    xid, other = divmod(number, OF_LINES)
    if other:
        return OTHER.format(n=number % 65_536)
    return _xid(FABRIC[xid % len(FABRIC)], BUS_IDS[xid // len(FABRIC) % len(BUS_IDS)], number)


def _xid(code: int, bus_id: str, number: int) -> str:
    text = TEXTS.get(145 if code in LINKS else code, ANY_TEXT).format(n=number, gpc=number % 7)
    return f"NVRM: Xid (PCI:{bus_id}): {code}, {text}"

"""What it costs to make sense of a kernel log full of Xids."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from bench.figures import Section
from mcp_gpu.gpu.simulator import Node
from mcp_gpu.node.boot import Boot
from mcp_gpu.node.lines import XidLines
from mcp_gpu.node.watch import XidWatch
from mcp_gpu.tools.xids import agent_tool
from mcp_gpu.tools.xids_model import NAME
from support import served
from support.results import data, text

__all__ = ["analysis"]

LINES = 100_000

SECONDS = 1.0

ANSWERED_SECONDS = 0.5
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

NODE = Node("one", "h100")

BUS_IDS = [
    gpu.answer("nvmlDeviceGetPciInfo_v3")["busId"].lower()[4:].removesuffix(".0")
    for gpu in NODE.gpus
]

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
    """From lines to the encoded answer: what an agent does from its start to the first call."""
    section = Section(f"analyze_xid_errors over {LINES:,} lines of the kernel log, processor time")
    for name, line, apart in (
        ("one line in ten an Xid", _mixed, APART_SECONDS),
        ("a storm of Xid 45", _storm, APART_SECONDS),
        ("a storm over all NVLinks", _fabric, FABRIC_SECONDS / FABRIC_LINES),
    ):
        lines = [line(number) for number in range(LINES)]
        taken = [await _round(lines, apart) for _ in range(repetitions)]
        read, told, bursts = min(taken, key=lambda each: each[0] + each[1])
        section.add(f"{name}: read into {bursts:,} bursts", read, "s")
        section.add(f"{name}: asked and answered", told, "s", ANSWERED_SECONDS)
        section.add(f"{name}: both", read + told, "s", SECONDS)
    return section


async def _round(lines: Sequence[str], apart_seconds: float) -> tuple[float, float, int]:
    """Seconds of processor time for reading and for a whole call, and how many bursts there were.

    The call is that of a client in this process: analysis, text, encoding, and the client's
    decoding.
    """
    watch = XidWatch(
        lambda: os.open(os.devnull, os.O_RDONLY), boot=Boot(BOOT, STARTED_AT)
    )  # not run: the lines come from here
    async with served.agent(NODE, lambda collector: agent_tool("one", collector, watch)) as client:
        started = time.process_time()
        reader = XidLines("kernel_log")
        for number, line in enumerate(lines):
            event = reader.event(line, STARTED_AT + number * apart_seconds, BOOT)
            if event is not None:
                watch.log.add(event)
        read = time.process_time()
        answer = await client.call_tool(NAME, {})
        done = time.process_time()
    found = data(answer)
    if not found["xids"] or not text(answer):
        raise RuntimeError(f"{NAME} told of {found['xids']} Xids")
    return read - started, done - read, len(watch.log.bursts())


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

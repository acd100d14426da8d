"""Lines of the kernel log as NVIDIA's driver writes them, and what the log makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from mcp_gpu.gpu.xid.analysis import analyse
from mcp_gpu.gpu.xid.log import XidLog
from mcp_gpu.gpu.xid.model import Burst, SourceState
from mcp_gpu.gpu.xid.present import Device, Present
from mcp_gpu.gpu.xid.view import View
from mcp_gpu.node.lines import XidLines
from mcp_gpu.registry import Arguments
from mcp_gpu.tools.xids import AgentArguments
from mcp_gpu.tools.xids_model import NodeXids
from support.fleet import Agent

NOW, BEFORE = "b" * 32, "a" * 32
"""Boots."""

BUS = tuple(f"0000:{number:02x}:00" for number in (0x53, 0x64, 0x75, 0x86))
GPUS = {bus_id: Device(index, f"GPU-{index}", "H100") for index, bus_id in enumerate(BUS)}
SWITCH = "0000:c1:00"

JUST_AFTER = "10:05:00"
"""When most tests look, by the clock: what happened about ten is recent then."""

LINES = {
    13: "pid={pid}, name=python, Graphics SM Warp Exception on (GPC {gpc}, TPC {tpc}, SM 0): "
    "Out Of Range Address",
    31: "pid={pid}, name=python, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_"
    "T1_0 faulted @ 0x7f58_9c000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ",
    43: "pid=41, name=python, Ch 00000010",
    45: "pid=41, name=python, Ch {ch:08x}",
    48: "pid='<unknown>', name=<unknown>, An uncorrectable double bit error (DBE) has been detected"
    " on GPU in the framebuffer at partition 6, subpartition 0.",
    63: "pid='<unknown>', name=<unknown>, Row Remapper: New row marked for remapping, reset gpu to "
    "activate.",
    64: "pid='<unknown>', name=<unknown>, Row Remapper: Remapping failed",
    79: "pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
    94: "pid=41, name=python, Contained: SM (0x1). RST: No, D-RST: No",
    95: "pid=41, name=python, Uncontained: LTC TAG (0x2,0x0). RST: Yes, D-RST: No",
    109: "pid=41, name=python, Ch 00000008, errorString CTX SWITCH TIMEOUT, Info 0x3c046",
    119: "pid=41, name=python, Timeout after 6s of waiting for RPC response from GPU0 GSP! Expected"
    " function 76 (GSP_RM_CONTROL) (0x20800a6a 0x1c).",
    120: "pid=41, name=python, GSP task timeout @ pc:0xbad000, task: 1",
    137: "pid=41, name=python, Nvlink Privilege Error on link 3",
    171: "pid='<unknown>', name=<unknown>, DRAM",
    172: "pid='<unknown>', name=<unknown>, SRAM",
}
"""What follows the code, with some of its figures to be filled in."""

RESET = "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"
REBOOT = "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"
DRAIN = "GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)"
CLEARED = "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"


def line(code: int, gpu: int = 0, text: str = "", **figures: object) -> str:
    """A line of the driver."""
    said = text or LINES[code].format(**({"pid": 41, "ch": 8, "gpc": 1, "tpc": 2} | figures))
    return f"NVRM: Xid (PCI:{BUS[gpu]}): {code}, {said}"


def seconds(clock: str) -> float:
    return datetime.fromisoformat(f"2026-11-26T{clock}Z").timestamp()


def bursts(lines: Iterable[tuple[str, str]], boot_id: str = NOW) -> tuple[Burst, ...]:
    """What the log makes of lines, each with its time."""
    log, reader = XidLog(), XidLines("kernel_log")
    for clock, text in lines:
        event = reader.event(text, seconds(clock), boot_id)
        assert event is not None, text
        log.add(event)
    return log.bursts()


READ = SourceState(source="kernel_log", live=True, message="", covers_since=None, lost_records=0)
"""A log that is read from its beginning."""

UNREAD = SourceState(
    source="kernel_log",
    live=False,
    message="kernel log not readable: 79, 119 and 120 may be absent: grant CAP_SYSLOG",
    covers_since=None,
    lost_records=0,
)


class XidAgent(Agent):
    """An agent that answers for these lines as a real one does."""

    def __init__(
        self,
        node: str,
        *lines: tuple[str, str],
        source: SourceState = READ,
        missed: tuple[str, ...] = (),
        known: Mapping[str, Device] = GPUS,
        **changes: Any,
    ) -> None:
        self.bursts, self.source, self.missed = bursts(lines), source, missed
        self.known = known
        settings = {
            "tool": "analyze_xid_errors",
            "arguments": AgentArguments,
            "result": NodeXids,
            "data": source,
        }
        super().__init__(node, **(settings | changes))

    def answer(self, arguments: Arguments) -> BaseModel:
        assert isinstance(arguments, AgentArguments)
        found = analyse(
            self.bursts,
            Present(seconds(JUST_AFTER), self.known, 580, NOW),
            view=View(codes=frozenset(arguments.codes or ())),
            limit=arguments.limit,
        )
        return NodeXids(
            **dict(found),
            node=self.node,
            simulated=True,
            driver_version="580.105.08",
            since=arguments.since,
            sources=(self.source,),
            blind=not self.source.live,
            missed=self.missed,
        )

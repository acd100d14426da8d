"""`analyze_xid_errors` as an agent serves it: what the Xids of its own node mean together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from mcp_gpu.gpu.xid.report import Chain, CodeTotal, DeviceXids, XidGroup
from mcp_gpu.registry import Answer, Arguments, Call, Tool
from mcp_gpu.tools.spans import clipped, counted, numbers
from mcp_gpu.tools.xids_model import BOOT, NAME, Codes, NodeXids, Since
from transports.text import quoted

if TYPE_CHECKING:  # a gateway runs where there is no NVML, and shares only the words
    from mcp_gpu.gpu.collector import Collector
    from mcp_gpu.node.watch import XidWatch

__all__ = ["AgentArguments", "agent_tool", "group_lines", "others", "then", "within", "xids_line"]

TEXT_CHARS = 8_000
"""The text of one node is never longer, whatever its log holds."""

TOTALS_TOLD = 24
"""Codes counted in the text."""

LINE_CHARS = 480
"""Length of one line."""

SAMPLE_CHARS = 400
"""Length of a line of the log in it."""

PROCESS_CHARS = 80
"""Length of a process's name and number."""


class AgentArguments(Arguments):
    """What an agent may be asked about the Xids of its node."""

    since: Since = BOOT
    codes: Codes = None
    limit: int = Field(
        default=20, ge=0, le=200, description="Most groups of Xids to list; the rest are counted."
    )


def agent_tool(node: str, collector: Collector, watch: XidWatch) -> Tool[AgentArguments]:
    """The tool over one node. It waits for nothing: an NVML that hangs does not hold it up."""

    async def run(arguments: AgentArguments, call: Call) -> Answer:
        found = NodeXids.of(
            node,
            collector.snapshot,
            watch,
            since=arguments.since,
            codes=arguments.codes or (),
            limit=arguments.limit,
        )
        return Answer("\n".join(within(_lines(found, arguments.codes), TEXT_CHARS)), found)

    return Tool(
        name=NAME,
        title="Xid errors of this node",
        description=(
            "Say what this node's Xid errors mean together: what to do first for each GPU by "
            "NVIDIA's name and in words, causes with what followed from them (48 -> 63 -> 45), "
            "rare and grave codes before floods, lines of the log as samples, and which Xids "
            "could not be seen. explain_xid explains a code or a pasted line."
        ),
        arguments=AgentArguments,
        result=NodeXids,
        run=run,
    )


def within(lines: Iterable[str], room: int, line_chars: int = LINE_CHARS) -> Iterator[str]:
    """As many of the lines as fit, and how many are left out."""
    every = [clipped(line, line_chars) for line in lines]
    room -= 80  # for the line that counts
    for position, line in enumerate(every):
        room -= len(line) + 1
        if room < 0:
            yield f"{counted(len(every) - position, 'more line')} in the structured content."
            return
        yield line


def _lines(found: NodeXids, codes: Codes) -> Iterator[str]:
    """One node as text: what to do first, what happened, and what may be missing."""
    where = "since this boot" if found.since == BOOT else f"since {found.since}"
    driver = f"  driver {found.driver_version}" if found.driver_version else ""
    unknown = found.blind and not found.xids
    count = "Xids UNKNOWN" if unknown else xids_line(found.xids, codes)
    yield f"{found.node}: {count} {where}{driver}"
    if found.simulated:
        yield "SIMULATED: no real hardware stands behind this."
    yield from (f"! {text}" for text in found.missed)
    yield from _devices(found.devices)
    if found.devices_omitted:
        yield f"{counted(found.devices_omitted, 'more device')} not told"
    if found.totals:
        yield f"By code: {', '.join(map(_total, found.totals[:TOTALS_TOLD]))}"
    if found.groups:
        yield "Xids, the rare and grave first:"
    yield from group_lines(found.groups)
    if found.groups_omitted:
        more = counted(found.groups_omitted, "more group")
        yield f"{more}: ask with a higher limit, or for some codes"


def _total(total: CodeTotal) -> str:
    """`45 x168000`, `SXid 20034 x3`."""
    return f"{'SXid ' if total.kind == 'sxid' else ''}{total.code} x{total.count}"


def _devices(devices: Sequence[DeviceXids]) -> Iterator[str]:
    """What to do about each device; those alike, as all of one fabric's, are told once."""
    alike: defaultdict[tuple[object, ...], list[DeviceXids]] = defaultdict(list)
    for device in devices:
        chains = tuple((c.codes, c.action, bool(c.settled)) for c in device.chains)
        alike[device.action, device.driver_action, chains].append(device)
    for here in alike.values():
        yield from _device(here)


def _device(here: Sequence[DeviceXids]) -> Iterator[str]:
    first = here[0]
    yield f"{first.severity.upper()} {_named(here)}: {first.action}: {first.advice}"
    if first.note:
        yield f"  {first.note}"
    for chain in first.chains:
        yield from _chain(chain, more=len(here) - 1)
    if first.chains_omitted:
        yield f"  {counted(first.chains_omitted, 'more chain')}"


def _chain(chain: Chain, *, more: int = 0) -> Iterator[str]:
    """A chain and what it means.

    Args:
        more: other devices that have had the same.
    """
    times = f"  ({chain.times} times, first {chain.first})" if chain.times > 1 else ""
    others = f"  (and on {more} more)" if more else ""
    yield f"  {chain.told}{times}{others}"
    settled = f" Settled: {chain.settled}." if chain.settled else ""
    yield f"    {chain.explanation}{settled or then(chain.investigate)}"


def then(investigate: str) -> str:
    """What NVIDIA has one look into afterwards, in its own words; empty if nothing."""
    return "" if investigate in ("", "IGNORE") else f" NVIDIA, to look into: {investigate}."


def others(disagreements: Iterable[str]) -> str:
    """Who says otherwise, what all of them contradict told once: `NVIDIA says A; B does not; C
    does not.`"""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for sentence in disagreements:
        contradicted, _, other = sentence.partition("; ")
        alike[contradicted].append(other)
    return " ".join(_against(contradicted, said) for contradicted, said in alike.items())


def _against(contradicted: str, said: Sequence[str]) -> str:
    every = [contradicted, *(each.removesuffix(".") for each in said if each)]
    return "; ".join(every).removesuffix(".") + "."


def xids_line(count: int, codes: Sequence[int] | None) -> str:
    """`301 Xids`; `1 Xid of code 79` where only some codes were asked for."""
    of = f" of {'code' if len(codes) == 1 else 'codes'} {numbers(codes)}" if codes else ""
    return f"{counted(count, 'Xid') if count else 'no Xids'}{of}"


def _named(here: Sequence[DeviceXids]) -> str:
    first = here[0]
    about = ", ".join(filter(None, (first.pci_bus_id, first.name, first.uuid)))
    if len(here) == 1 and first.gpu_index is not None and about:
        return f"{first.device} ({about})"
    return _places(here)


def group_lines(groups: Sequence[XidGroup]) -> Iterator[str]:
    """Codes with what they mean and a line of the log, those alike of several GPUs told once."""
    alike: defaultdict[tuple[object, ...], list[XidGroup]] = defaultdict(list)
    for group in groups:
        alike[group.kind, group.code, group.state, group.action, group.bucket].append(group)
    for here in alike.values():
        yield from _group(here)


def _group(here: Sequence[XidGroup]) -> Iterator[str]:
    group = here[0]
    noun = "SXid" if group.kind == "sxid" else "Xid"
    first, last = min(each.first for each in here), max(each.last for each in here)
    when = last if first == last else f"{first} to {last}"
    state = "" if group.state == "open" else group.state
    bucket = f"NVIDIA: {group.bucket}" if group.bucket else ""
    remarks = ", ".join(filter(None, (state, bucket)))
    came = f"{noun} {group.code} x{sum(each.count for each in here)}"
    yield f"  {_places(here)} {came} {when}: {group.name}" + (f" ({remarks})" if remarks else "")
    yield f"    {group.action}: {group.explanation}"
    if group.decoded:
        yield f"    registers: {' '.join(group.decoded)}"
    if group.disagreements:
        yield f"    others say: {others(group.disagreements)}"
    if group.processes:
        names = (quoted(each, PROCESS_CHARS) for each in group.processes)
        yield f"    processes: {', '.join(names)}"
    if group.samples:
        yield f"    line: {quoted(group.samples[0], SAMPLE_CHARS)}"


def _places(here: Sequence[XidGroup | DeviceXids]) -> str:
    """`GPU 0-3`, `NVSwitch 0000:c1:00 and 2 more`."""
    indices = [each.gpu_index for each in here if each.gpu_index is not None]
    if len(indices) == len(here):
        return f"GPU {numbers(indices)}"
    return here[0].device + (f" and {len(here) - 1} more" if len(here) > 1 else "")

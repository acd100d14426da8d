"""`get_gpu_processes` as a gateway serves it: what runs on the GPUs of the fleet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from pydantic import Field

from mcp_gpu.fleet.router import FanOut, Router
from mcp_gpu.registry import Answer, Call, Tool
from mcp_gpu.tools.failures import failure_lines
from mcp_gpu.tools.fleet_answer import Place, begin, of_fleet, shared
from mcp_gpu.tools.fleet_arguments import FleetArguments, asked
from mcp_gpu.tools.fleet_processes_model import FleetNodeProcesses, FleetProcesses
from mcp_gpu.tools.inventory import Detail
from mcp_gpu.tools.pages import page
from mcp_gpu.tools.processes_model import NAME, STATES, NodeProcesses
from mcp_gpu.tools.processes_text import headline, process_count, process_lines, unread_lines
from mcp_gpu.tools.spans import clipped, counted, spans
from mcp_gpu.tools.ways import ways_line
from mcp_gpu.tools.xids import within

__all__ = ["GatewayArguments", "gateway_tool"]

RANKS: Final[dict[str, int]] = {state: rank for rank, state in enumerate(STATES)}

TEXT_CHARS: Final[dict[Detail, int]] = {"summary": 7_000, "full": 30_000}
"""Room for single nodes. With all that stands around them a summary stays under 8,000
characters."""

LINE_CHARS: Final = 300

ASKED: Final[dict[Detail, int]] = {"summary": 16, "full": 200}
"""Processes asked of each node, the most remarkable first."""

TOLD: Final = 6
"""Processes of one node in the text of a summary."""

GPUS_LISTED: Final = 16
"""GPUs per node in a summary: what is unaccounted for comes first."""

ATTENTION_TOLD: Final = 4

REASONS: Final = 4
"""Reasons told why nodes cannot be seen."""


class GatewayArguments(FleetArguments):
    """What a gateway may be asked about the fleet's processes."""

    detail: Detail = Field(
        default="summary",
        description="full: idle nodes too, and up to 200 processes of each node instead of 16.",
    )


def gateway_tool(router: Router) -> Tool[GatewayArguments]:
    """The tool as a gateway serves it: all agents asked at once, one answer."""

    async def run(arguments: GatewayArguments, call: Call) -> Answer:
        start = begin(arguments.cursor, RANKS, tool=NAME)
        found = await asked(
            router, NAME, {"limit": ASKED[arguments.detail]}, NodeProcesses, arguments, call
        )
        everything = _whole(found, every_node=arguments.detail == "full" or bool(arguments.only))
        told = page(
            everything,
            [node for node in everything.nodes if start is None or _order(node) > start],
            first=start is None,
            limit=arguments.limit,
            detail=arguments.detail,
            shortened=_shortened,
            cursor=lambda node: f"{node.state} {node.node}",
        )
        return Answer("\n".join(_lines(told, arguments.detail, first=start is None)), told)

    return Tool(
        name=NAME,
        title="Processes on the fleet's GPUs",
        description=(
            "List the processes on the NVIDIA GPUs of all nodes: pid, program, memory, share of "
            "the GPU's time, and the pod and container they are of; first those outside of any "
            "allocation, and GPU memory that no process accounts for. Nodes whose processes cannot "
            "be seen, or that did not answer, are unknown and named."
        ),
        arguments=GatewayArguments,
        result=FleetProcesses,
        run=run,
    )


def _whole(found: FanOut[NodeProcesses], *, every_node: bool) -> FleetProcesses:
    """All of the fleet at once.

    Args:
        every_node: list idle nodes, too.
    """
    nodes = sorted((of_fleet(FleetNodeProcesses, each) for each in found.answers), key=_order)
    states = Counter(node.state for node in nodes)
    states["unknown"] += len(found.failures)
    return FleetProcesses(
        **shared(found),
        nodes_by_state={state: states[state] for state in STATES},
        processes_count=sum(node.processes_count or 0 for node in nodes),
        strays=sum(node.strays or 0 for node in nodes),
        unaccounted_memory_bytes=sum(
            gpu.unaccounted_memory_bytes or 0 for node in nodes for gpu in node.gpus
        ),
        nodes=tuple(node for node in nodes if every_node or node.state != "idle"),
    )


def _order(node: FleetNodeProcesses) -> Place:
    return RANKS[node.state], node.node


def _shortened(node: FleetNodeProcesses) -> FleetNodeProcesses:
    if not node.host_processes:  # each of which would give the node's reason
        return node.model_copy(update={"gpus": (), "attention": node.attention[:ATTENTION_TOLD]})
    gpus = sorted(node.gpus, key=lambda gpu: (-(gpu.unaccounted_memory_bytes or 0), gpu.index))
    return node.model_copy(
        update={"gpus": tuple(gpus[:GPUS_LISTED]), "attention": node.attention[:ATTENTION_TOLD]}
    )


def _lines(told: FleetProcesses, detail: Detail, *, first: bool) -> Iterator[str]:
    states = ", ".join(f"{count} {state}" for state, count in told.nodes_by_state.items() if count)
    every = counted(sum(told.nodes_by_state.values()))
    strays = f", {told.strays} outside of any allocation" if told.strays else ""
    yield f"{every}: {states or 'none'}; {process_count(told.processes_count)} seen{strays}"
    if told.simulated:
        yield "SIMULATED: some or all of these processes are invented."
    if told.coverage.said_of_discovery:
        yield told.coverage.said_of_discovery
    yield from failure_lines(told.failures_by_reason, told.failures if first else ())
    blind = [node for node in told.nodes if not node.host_processes]
    yield from _blind(blind)
    yield from within(_nodes(told.nodes, detail), TEXT_CHARS[detail], LINE_CHARS)
    if told.passed_over:
        yield ways_line(told, see="check_connectivity")
    if told.next_cursor is not None:
        omitted = counted(told.nodes_omitted, "more node")
        yield f'{omitted} in detail: call again with cursor "{told.next_cursor}".'


def _blind(nodes: Sequence[FleetNodeProcesses]) -> Iterator[str]:
    """Nodes whose processes cannot be seen, those alike on one line."""
    alike: dict[str, list[str]] = {}
    for node in nodes:
        alike.setdefault(node.unavailable.get("processes", ""), []).append(node.node)
    for why, names in list(alike.items())[:REASONS]:
        yield clipped(f"! {spans(names)}: processes unknown: {why}", LINE_CHARS)
    if len(alike) > REASONS:
        yield f"! {len(alike) - REASONS} more reasons in the structured content."


def _nodes(nodes: Iterable[FleetNodeProcesses], detail: Detail) -> Iterator[str]:
    for node in nodes:
        if not (node.host_processes or node.attention or node.message):
            continue  # which is told already
        yield f"{node.node}: {headline(node)}  via {node.via}"
        if node.message is not None:
            yield f"  ! {node.message}"
        yield from (f"  ! {text}" for text in node.attention)
        yield from (f"  {line}" for line in unread_lines(node))
        lines = list(process_lines(node.processes))
        shown = lines if detail == "full" else lines[:TOLD]
        yield from shown
        more = len(lines) - len(shown)
        if more > 0 or node.processes_omitted:
            yield "  more: ask with nodes and detail full"

"""Which pods of a fleet hold which GPUs, for a model's or a person's eye."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from mcp_gpu.fleet.model import NodeFailure
from mcp_gpu.tools.allocation_model import AllocationTotals
from mcp_gpu.tools.allocation_text import gpu_notes, headline, notes, pod_lines, pod_name
from mcp_gpu.tools.failures import failure_lines
from mcp_gpu.tools.fleet_allocation_model import FleetAllocation, FleetNodeAllocation, FleetPod
from mcp_gpu.tools.spans import clipped, counted
from mcp_gpu.tools.ways import ways_line
from mcp_gpu.tools.xids import within

__all__ = ["gap_lines", "lines", "nothing", "pod_words", "totals_line", "unattributed_lines"]

TEXT_CHARS: Final = 6_000
"""Room for nodes. With all that stands around them the text stays under 8,000 characters."""

LINE_CHARS: Final = 400

GAPS: Final = 4
GAP_CHARS: Final = 200


def lines(told: FleetAllocation, failures: Sequence[NodeFailure]) -> Iterator[str]:
    """The text.

    Args:
        failures: nodes without an answer to name.
    """
    coverage = told.coverage
    answered = f"{coverage.nodes_answered} of {coverage.nodes_asked} nodes answered"
    yield f"{answered}: {totals_line(told.totals)}"
    if told.simulated:
        yield "SIMULATED: no real hardware stands behind some or all of these figures."
    if coverage.said_of_discovery:
        yield coverage.said_of_discovery
    yield from unattributed_lines(told)
    yield from within(_node_lines(told.nodes), TEXT_CHARS, LINE_CHARS)
    yield from failure_lines(told.failures_by_reason, failures)
    yield from gap_lines(told)
    if told.passed_over:
        yield ways_line(told, see="check_connectivity")
    if told.next_cursor is not None:
        omitted = counted(told.nodes_omitted, "more node")
        yield f'{omitted}: call again with cursor "{told.next_cursor}".'


def nothing(told: FleetAllocation, *, named: bool) -> str:
    """What is known where no pod is told.

    Args:
        named: whether only some pods were asked for.
    """
    answered = told.coverage.nodes_answered
    if not answered:
        return "Who holds the GPUs is unknown: no node answered."
    if told.nodes_unattributed == answered:
        return "Who holds the GPUs is unknown on every node that answered."
    which = "No such pod" if named else "No pod"
    return f"{which} holds a GPU, as far as the nodes that answered can say."


def totals_line(totals: AllocationTotals) -> str:
    """`3 pods on 5 of 8 GPUs, 1 of them idle; 3 free`."""
    parts = [f"{counted(totals.pods, 'pod')} on {totals.held} of {counted(totals.gpus, 'GPU')}"]
    parts += [f"{totals.idle} of them idle"] if totals.idle else []
    parts += [f"{totals.free} free"]
    parts += [f"{totals.unknown} unknown"] if totals.unknown else []
    parts += [counted(totals.strays, "stray process")] if totals.strays == 1 else []
    parts += [f"{totals.strays} stray processes"] if totals.strays > 1 else []
    return ", ".join(parts)


def gap_lines(told: FleetAllocation) -> Iterator[str]:
    """What Kubernetes did not tell, and the right that is missing."""
    for gap in told.gaps[:GAPS]:
        grant = f" (grant: {gap.grant})" if gap.grant else ""
        yield clipped(f"Not known: {gap.what}: {gap.why}{grant}", GAP_CHARS)
    left = len(told.gaps) - GAPS + told.gaps_omitted
    if left > 0:
        yield f"{counted(left, 'more thing')} not known"


def pod_words(pod: FleetPod) -> str:
    """`train/worker-0 (Job/train, Running)`."""
    about = [each for each in (pod.owner, pod.phase) if each]
    about += ["a GUESS by what it asks for"] if pod.guess else []
    return pod_name(pod) + (f" ({', '.join(about)})" if about else "")


def unattributed_lines(told: FleetAllocation) -> Iterator[str]:
    """The nodes that cannot say who holds their GPUs, those alike on one line."""
    for each in told.unattributed:
        yield clipped(f"! {each.names}: holders unknown: {each.why}", LINE_CHARS)
    if told.unattributed_omitted:
        yield f"! {counted(told.unattributed_omitted, 'more reason')} why holders are unknown"


def _node_lines(nodes: Iterable[FleetNodeAllocation]) -> Iterator[str]:
    for node in nodes:
        if node.source == "none" and not node.pods and node.message is None:
            continue  # which is told already
        yield headline(node)
        yield from (f"  {note}" for note in notes(node, whys=node.source != "none"))
        yield from (f"  {line}" for line in pod_lines(node, node.pods, pod_words))
        if node.pods_omitted:
            yield f"  {counted(node.pods_omitted, 'more pod')}: ask with nodes and detail full"
        if node.terminated:
            yield f"  {counted(node.terminated, 'pod')} left out: over, but still listed"
        yield from (f"  {note}" for note in gpu_notes(node))

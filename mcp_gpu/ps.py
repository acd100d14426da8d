"""`mcp-gpu ps`: which pods hold which GPUs of the fleet, for a person at a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import anyio
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mcp_gpu.node.holdings import Device
from mcp_gpu.settings import PsSettings
from mcp_gpu.terminal import (
    LIMIT,
    agents,
    all_pages,
    explained,
    gateway,
    notes,
    print_block,
    progress_bar,
    standard_output,
)
from mcp_gpu.tools.allocation_model import (
    NAME,
    AllocatedGpu,
    ContainerAllocation,
    HeldClaim,
    NodeAllocation,
)
from mcp_gpu.tools.allocation_text import device_words, gib, idle_words, pod_name, stray_words
from mcp_gpu.tools.failures import failure_lines
from mcp_gpu.tools.fleet_allocation import GatewayArguments, whole
from mcp_gpu.tools.fleet_allocation_model import FleetAllocation, FleetNodeAllocation, FleetPod
from mcp_gpu.tools.fleet_allocation_text import (
    gap_lines,
    nothing,
    totals_line,
    unattributed_lines,
)
from mcp_gpu.tools.spans import numbers, spans

__all__ = ["render", "run"]


def run(settings: PsSettings) -> int:
    """Print the allocations. Returns 0 when every node answered and said who holds its GPUs."""
    found = anyio.run(_fetch, settings)
    if settings.json_output:
        print(found.model_dump_json(indent=2))
    else:
        with standard_output() as console:
            render(found, console, named=bool(settings.pod or settings.pod_namespace))
    return 1 if found.failures_by_reason or found.nodes_unattributed else 0


async def _fetch(settings: PsSettings) -> FleetAllocation:
    arguments = GatewayArguments(
        nodes=settings.nodes or None,
        namespace=settings.pod_namespace or None,
        pod=settings.pod or None,
        detail="full",
        limit=LIMIT,
    )
    with progress_bar("asking the nodes") as report:
        if settings.url:
            async with gateway(settings, NAME, FleetAllocation, report) as ask:
                return await all_pages(ask, arguments)
        async with agents(settings) as fleet:
            with explained():
                found = await fleet.router.fan_out(
                    NAME,
                    arguments.model_dump(include={"namespace", "pod"}, exclude_none=True),
                    NodeAllocation,
                    nodes=arguments.nodes,
                    progress=report,
                )
            return await whole(found, arguments, fleet.workloads)


def render(found: FleetAllocation, console: Console, *, named: bool) -> None:
    """Print a row for each GPU that a container holds, what is free, and what is not known.

    Args:
        named: whether only some pods were asked for.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NODE", "POD", "CONTAINER", "GPU", "BUSY", "MEMORY (GiB)", "STATE", "OWNER"):
        table.add_column(heading, overflow="fold")
    for node in found.nodes:
        for row in _rows(node):
            table.add_row(*row)
    if table.row_count:
        console.print(table)
    else:
        console.print(nothing(found, named=named))
    print_block(_free(found), console, "green")
    print_block(_unknown(found), console, "magenta")
    print_block(failure_lines(found.failures_by_reason, found.failures), console, "magenta")
    coverage = found.coverage
    answered = f"{coverage.nodes_answered} of {coverage.nodes_asked} nodes answered"
    console.print(f"\n{answered}: {totals_line(found.totals)}", soft_wrap=True)
    print_block((*gap_lines(found), *notes(found)), console, "dim")
    if found.simulated:
        console.print("[magenta]simulated: no real hardware stands behind some of these GPUs[/]")


def _rows(node: FleetNodeAllocation) -> Iterator[tuple[str, ...]]:
    gpus = {gpu.index: gpu for gpu in node.gpus}
    for pod in node.pods:
        for container in pod.containers:
            for what, busy, memory, state in _held(container, gpus):
                yield (
                    escape(node.node),
                    escape(pod_name(pod)),
                    escape(container.container),
                    escape(what),
                    busy,
                    memory,
                    state or _state(pod),
                    escape(pod.owner or "-"),
                )


def _held(
    container: ContainerAllocation, gpus: dict[int, AllocatedGpu]
) -> Iterator[tuple[str, str, str, str]]:
    held: list[Device | HeldClaim] = [*container.devices, *container.claims]
    for each in held:
        gpu = None if each.gpu_index is None else gpus.get(each.gpu_index)
        if gpu is None or (isinstance(each, HeldClaim) and each.admin):
            yield device_words(each), "-", "-", ""
            continue
        part = next((mig for mig in gpu.mig if mig.uuid and mig.uuid == each.mig_uuid), None)
        whole = each.mig_profile is None
        busy = gpu.utilization_percent if whole else None
        memory = gpu if whole else part
        yield (
            f"{device_words(each)} {gpu.name or '?'}",
            "-" if busy is None else f"{busy} %",
            "-" if memory is None else _memory(memory.memory_used_bytes, memory.memory_total_bytes),
            f"[yellow]{idle_words(gpu)}[/]" if gpu.idle else "",
        )
    for resource, count in container.requested.items():
        yield f"{count} {resource}", "-", "-", "[yellow]guess[/]"


def _memory(used: int | None, total: int | None) -> str:
    return "-" if used is None or total is None else f"{gib(used)}/{gib(total)}"


def _state(pod: FleetPod) -> str:
    return escape(pod.phase or "-")


def _free(found: FleetAllocation) -> Iterator[str]:
    for node in found.nodes:
        free = [gpu.index for gpu in node.gpus if gpu.free]
        if free:
            yield f"free on {node.node}: GPU {numbers(free)}"


def _unknown(found: FleetAllocation) -> Iterator[str]:
    yield from unattributed_lines(found)
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for node in found.nodes:
        if node.why and node.source != "none":
            alike[node.why].append(node.node)
    yield from (f"! {spans(names)}: {why}" for why, names in alike.items())
    for node in found.nodes:
        yield from (f"! {node.node}: {stray_words(stray)}" for stray in node.strays)

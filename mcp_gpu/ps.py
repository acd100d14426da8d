"""`mcp-gpu ps`: which pods hold which GPUs of the fleet, for a person at a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import anyio
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from mcp_gpu.node.holdings import Device
from mcp_gpu.settings.terminal import PsSettings
from mcp_gpu.terminal import (
    LIMIT,
    WHOLE,
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
    AllocatedMig,
    ContainerAllocation,
    HeldClaim,
    NodeAllocation,
)
from mcp_gpu.tools.allocation_text import device_words, gib, idle_words, pod_name, stray_words
from mcp_gpu.tools.failures import failure_lines
from mcp_gpu.tools.fleet_allocation import GatewayArguments, whole
from mcp_gpu.tools.fleet_allocation_model import FleetAllocation, FleetPod
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
    """Print a row for each container that holds GPUs, what is free, and what is not known.

    Args:
        named: whether only some pods were asked for.
    """
    table = _table(found, {node.node: node.node for node in found.nodes}, owners=True)
    room = console.options.update(max_width=WHOLE)
    if Measurement.get(console, room, table).maximum > console.width:
        table = _table(found, _short_names(found), owners=False)
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


def _table(found: FleetAllocation, names: Mapping[str, str], *, owners: bool) -> Table:
    """A row for each container.

    Args:
        names: what nodes are called in it.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NODE", "POD", "CONTAINER", "GPU"):
        table.add_column(heading, overflow="fold")
    for heading in ("BUSY", "MEMORY (GiB)", "STATE"):
        table.add_column(heading, no_wrap=True)
    if owners:
        table.add_column("OWNER", overflow="fold")
    for node in found.nodes:
        gpus = {gpu.index: gpu for gpu in node.gpus}
        for pod in node.pods:
            for container in pod.containers:
                what, busy, memory, state = _held(container, gpus)
                about = (names[node.node], pod_name(pod), container.container, what)
                owner = [escape(pod.owner or "-")] if owners else []
                table.add_row(*map(escape, about), busy, memory, state or _state(pod), *owner)
    return table


def _short_names(found: FleetAllocation) -> dict[str, str]:
    """Nodes without their domain, where that leaves them apart."""
    names = {node.node: node.node.partition(".")[0] for node in found.nodes}
    apart = len(set(names.values())) == len(names)
    return names if apart else {name: name for name in names}


def _held(
    container: ContainerAllocation, gpus: Mapping[int, AllocatedGpu]
) -> tuple[str, str, str, str]:
    """What a container holds, how busy that is, its memory and its state, if that is known."""
    whole: dict[int, AllocatedGpu] = {}
    cut: dict[int, AllocatedGpu] = {}
    parts: dict[str, AllocatedMig] = {}
    alone: set[int] = set()
    others: list[str] = []
    held: list[Device | HeldClaim] = [*container.devices, *container.claims]
    for each in held:
        gpu = None if each.gpu_index is None else gpus.get(each.gpu_index)
        words = device_words(each)
        if gpu is None or (isinstance(each, HeldClaim) and each.admin):
            others.append(words)
        elif each.mig_profile is not None:
            others.append(words)
            cut[gpu.index] = gpu
            parts |= {mig.uuid: mig for mig in gpu.mig if mig.uuid and mig.uuid == each.mig_uuid}
        elif words == f"GPU {gpu.index}":
            alone.add(gpu.index)
            whole[gpu.index] = gpu
        else:  # a share of it, which is one of several
            others.append(words)
            whole[gpu.index] = gpu
    told = [f"GPU {numbers(alone)}"] if alone else []
    told += [*others, *(f"{count} {name}" for name, count in container.requested.items())]
    state = "[yellow]guess[/]" if container.requested else _idle([*(whole | cut).values()])
    busy = [each.utilization_percent for each in whole.values()]
    return ", ".join(told), _range(busy), _memory([*whole.values(), *parts.values()]), state


def _idle(gpus: Sequence[AllocatedGpu]) -> str:
    """How many of a container's GPUs are idle; empty: none is."""
    idle = [gpu for gpu in gpus if gpu.idle]
    if not idle:
        return ""
    latest = idle_words(min(idle, key=lambda gpu: gpu.quiet_seconds or 0.0))
    return f"[yellow]{latest if len(idle) == len(gpus) else f'{len(idle)} of {len(gpus)} IDLE'}[/]"


def _range(percents: Iterable[int | None]) -> str:
    known = [each for each in percents if each is not None]
    if not known:
        return "-"
    low, high = min(known), max(known)
    return f"{low} %" if low == high else f"{low}-{high} %"


def _memory(held: Sequence[AllocatedGpu | AllocatedMig]) -> str:
    """What is used of all that a container holds, and how much that is."""
    used = [each.memory_used_bytes for each in held if each.memory_used_bytes is not None]
    total = [each.memory_total_bytes for each in held if each.memory_total_bytes is not None]
    if not held or len(used) < len(held) or len(total) < len(held):
        return "-"
    return f"{gib(sum(used))}/{gib(sum(total))}"


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

"""All who count beside each other, and each disagreement by name: `compare`, `rows`. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mcp_gpu.workloads.counts import cluster, hardware
from mcp_gpu.workloads.counts.model import COUNT_LABEL, Count, Counted, Disagreement

__all__ = ["compare", "rows"]


def compare(counted: Counted) -> tuple[Disagreement, ...]:
    """What cannot be right at once: the hardware first, then what follows from it."""
    return (*hardware.disagreements(counted), *cluster.disagreements(counted))


def rows(counted: Counted) -> tuple[Count, ...]:
    """Every source with what it counts, or why that is not known."""
    return tuple(_rows(counted))


def _rows(counted: Counted) -> Iterator[Count]:
    driver, bus = counted.driver, counted.bus
    if driver is None:
        yield Count(source="nvml", count=None, note=counted.agent_why)
    else:
        lost = sum(board.lost for board in driver.boards) if driver.count is not None else 0
        note = f"{lost} of them lost" if lost else driver.why
        yield Count(source="nvml", count=driver.count, note=note)
    if bus is None or bus.gpus is None:
        why = counted.agent_why if bus is None else bus.why
        yield Count(source="pci_bus", count=None, note=why)
    else:
        passed_on = sum(gpu.passed_on for gpu in bus.gpus)
        note = f"{passed_on} of them for virtual machines" if passed_on else ""
        yield Count(source="pci_bus", count=len(bus.gpus), note=note)
    if driver is not None and driver.wanted is not None:
        yield Count(source="expected", count=driver.wanted, note="--expected-gpus")
    seen = counted.advertised
    if seen is None:
        for source in ("capacity", "allocatable", "gfd_label"):
            yield Count.model_validate({"source": source, "count": None, "note": counted.node_why})
    else:
        shares = cluster.replicas(seen.labels)
        each = f"each GPU as {shares} replicas" if shares is not None and shares > 1 else ""
        capacity, allocatable = _told(seen.capacity), _told(seen.allocatable)
        note = "; ".join(filter(None, (capacity, each)))
        yield Count(source="capacity", count=sum(seen.capacity.values()), note=note)
        yield Count(source="allocatable", count=sum(seen.allocatable.values()), note=allocatable)
        label = seen.labels.get(COUNT_LABEL, "")
        count = int(label) if label.isascii() and label.isdecimal() else None
        yield Count(source="gfd_label", count=count, note=COUNT_LABEL if label else "no such label")
    yield _slices(counted)


def _slices(counted: Counted) -> Count:
    sliced = counted.sliced
    if sliced is None:
        return Count(source="resource_slices", count=None, note=counted.slices_why)
    if not sliced.published:
        others = f"drivers that publish here: {', '.join(sliced.drivers)}"
        note = others if sliced.drivers else "nobody publishes any of this node"
        return Count(source="resource_slices", count=0, note=note)
    note = f"not to be given out: {'; '.join(sliced.tainted)}" if sliced.tainted else ""
    return Count(source="resource_slices", count=sliced.gpus, note=note)


def _told(resources: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(resources.items()))

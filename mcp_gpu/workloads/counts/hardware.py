"""The bus against the driver: GPUs that are there and that NVML does not count, or calls lost."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_gpu.gpu.pci import PciGpu
from mcp_gpu.workloads.counts.model import Board, Counted, Disagreement

__all__ = ["disagreements", "fallen"]

PLACES_TOLD = 16

_REBOOT = (
    "Cordon and drain the node, then reboot it; power-cycle it if the GPU does not come back. "
    "Should it happen again, have the board and its slot checked."
)


def disagreements(counted: Counted) -> Iterator[Disagreement]:
    """What the driver's word and the bus say of each other."""
    yield from _not_loaded(counted)
    yield from _fallen(counted)
    yield from _not_started(counted)
    yield from _fewer(counted)


def fallen(counted: Counted) -> tuple[Board, ...]:
    """The GPUs that NVML lists and that are off the bus."""
    if counted.driver is None or counted.driver.count is None:
        return ()
    silent = {gpu.address for gpu in _own(counted) if gpu.answers is False}
    return tuple(board for board in counted.driver.boards if board.lost or board.address in silent)


def _own(counted: Counted) -> tuple[PciGpu, ...]:
    """Those on the bus that are this node's to use."""
    gpus = counted.bus.gpus if counted.bus is not None else None
    return tuple(gpu for gpu in gpus or () if not gpu.passed_on)


def _not_loaded(counted: Counted) -> Iterator[Disagreement]:
    driver, gpus = counted.driver, _own(counted)
    unbound = [gpu for gpu in gpus if gpu.driver != "nvidia"]
    if driver is None or driver.count is not None or not gpus or len(unbound) < len(gpus):
        return  # a driver that is bound to them is there, and why NVML refuses is not of counts
    others = sorted({gpu.driver for gpu in gpus if gpu.driver is not None})
    held = f" They are bound to {', '.join(others)}." if others else ""
    yield Disagreement(
        code="driver_not_loaded",
        gpus=(),
        title=f"The PCI bus has {_gpus(len(gpus))} and no NVIDIA driver is loaded.",
        cause=f"The driver is missing on the node, or it failed to start.{held}",
        evidence=(f"on the bus: {_places(gpus)}", f"NVML: {driver.why or 'cannot be asked'}"),
        fix="Look at the GPU operator's driver pod on this node, or on the node at modprobe nvidia "
        "and dmesg.",
        confidence="high",
    )


def _fallen(counted: Counted) -> Iterator[Disagreement]:
    boards = fallen(counted)
    known = {board.address for board in boards}
    silent = [gpu for gpu in _own(counted) if gpu.answers is False and gpu.address not in known]
    # One that was lost before it could say where it is, is one of these.
    nameless = sum(board.address is None for board in boards)
    count = len(boards) + max(len(silent) - nameless, 0)
    if not count:
        return
    evidence = [
        f"GPU {board.index} ({board.address or 'bus address unknown'}): "
        + ("NVML calls it lost" if board.lost else "NVML still reads it")
        + _on_bus(counted, board)
        for board in boards[:PLACES_TOLD]
    ]
    if silent:
        evidence.append(f"on the bus, and its configuration reads as all ones: {_places(silent)}")
    yield Disagreement(
        code="fallen_off_bus",
        gpus=tuple(board.index for board in boards),
        title=f"{_gpus(count)} {'has' if count == 1 else 'have'} fallen off the PCI bus.",
        cause="The board no longer answers on PCIe, as after Xid 79: power, heat, the board or its "
        "slot. What counted before (the device plugin, the label) may count it still.",
        evidence=tuple(evidence),
        fix=_REBOOT,
        confidence="high",
    )


def _on_bus(counted: Counted, board: Board) -> str:
    if counted.bus is None or counted.bus.gpus is None or board.address is None:
        return ""
    found = next((gpu for gpu in counted.bus.gpus if gpu.address == board.address), None)
    if found is None:
        return ", and the bus has it no more"
    return ", and its configuration reads as all ones" if found.answers is False else ""


def _not_started(counted: Counted) -> Iterator[Disagreement]:
    """On the bus, answering there, the driver bound to it: and not among NVML's."""
    driver = counted.driver
    if driver is None or driver.count is None:
        return
    bound = [gpu for gpu in _own(counted) if gpu.driver == "nvidia"]
    listed = {board.address for board in driver.boards}
    absent = [gpu for gpu in bound if gpu.answers is not False and gpu.address not in listed]
    # A board that NVML lists without its address may be any of them.
    missing = min(len(absent), len(bound) - driver.count)
    if missing <= 0:
        return
    yield Disagreement(
        code="not_started",
        gpus=(),
        title=f"{_gpus(missing)} on the PCI bus {'is' if missing == 1 else 'are'} not counted by "
        "NVML.",
        cause="The driver is bound to it and could not start it (dmesg: RmInitAdapter failed), or "
        "the agent's container was given only some of the node's GPUs.",
        evidence=(
            f"on the bus: {len(bound)} bound to the driver; NVML counts {driver.count}",
            f"not among NVML's: {_places(absent)}",
        ),
        fix="On the node: dmesg for RmInitAdapter and Xids. If nvidia-smi there counts all of "
        "them, give the agent all GPUs (gpu.access); else drain the node and power-cycle it.",
        confidence="medium",
    )


def _fewer(counted: Counted) -> Iterator[Disagreement]:
    """Fewer than somebody has said, or than NVML has counted before, less what is told already."""
    driver = counted.driver
    if driver is None or driver.count is None:
        return
    wanted = max(driver.wanted or 0, driver.most or 0)
    gpus = counted.bus.gpus if counted.bus is not None else None
    there = max(driver.count, len(gpus or ()))
    if wanted <= there:
        return
    told = "--expected-gpus" if wanted == driver.wanted else "NVML had counted them before"
    yield Disagreement(
        code="fewer_than_expected",
        gpus=(),
        title=f"{_gpus(wanted - there)} of {wanted} {'is' if wanted - there == 1 else 'are'} "
        "neither on the PCI bus nor known to NVML.",
        cause="The board is dead, unseated or without power, so that the firmware did not find it; "
        "or the number that is expected is wrong.",
        evidence=(
            f"expected: {wanted} ({told})",
            f"NVML counts {driver.count}",
            "the bus is not known" if gpus is None else f"on the bus: {len(gpus)}",
        ),
        fix="Power-cycle the node. If the GPU does not come back, have the board and its slot "
        "checked; the machine's management controller may name the slot.",
        confidence="medium",
    )


def _places(gpus: list[PciGpu] | tuple[PciGpu, ...]) -> str:
    told = ", ".join(gpu.address for gpu in gpus[:PLACES_TOLD])
    left = len(gpus) - PLACES_TOLD
    return told + (f" and {left} more" if left > 0 else "")


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"

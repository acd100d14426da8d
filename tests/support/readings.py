"""Readings of real boards, changed by hand: for what no simulated fault does."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.health.assess import assess
from mcp_gpu.gpu.health.model import Assessment
from mcp_gpu.gpu.history import History, Past
from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.gpu.vitals import Vitals
from mcp_gpu.gpu.xid.model import Burst, Kind, XidEvent

T0 = 1_764_000_000.0
"""When the first readings of every test are taken."""

Holder = TypeVar("Holder", Gpu, Vitals)

PERIOD = 30.0
"""Between slow readings."""


@cache
def board(profile: str, *, gpus: int = 4, load: float = 0.0, **node: Any) -> Snapshot:
    """A node as a shipped profile describes it, read at T0."""
    machine = simulator.Node(profile, profile, gpus=gpus, load=load, clock=lambda: T0, **node)
    return simulator.snapshot(machine, clock=lambda: T0)


def changed(
    snapshot: Snapshot, gpu: int | None = 0, link: int | None = None, **values: Any
) -> Snapshot:
    """With these readings of `Gpu`, `Vitals` or one `Link`; gpu None: on every GPU."""
    gpus, vitals = list(snapshot.gpus), list(snapshot.vitals)
    for index in range(len(gpus)) if gpu is None else [gpu]:
        if link is not None:
            links = list(vitals[index].links)
            links[link] = links[link].model_copy(update=values)
            vitals[index] = vitals[index].model_copy(update={"links": tuple(links)})
            continue
        own = {name: value for name, value in values.items() if name in Gpu.model_fields}
        gpus[index] = gpus[index].model_copy(update=own)
        rest = {name: value for name, value in values.items() if name not in own}
        vitals[index] = vitals[index].model_copy(update=rest)
    return snapshot.model_copy(update={"gpus": tuple(gpus), "vitals": tuple(vitals)})


def wired(snapshot: Snapshot, **values: Any) -> Snapshot:
    """With these readings on every NVLink."""
    for gpu, vitals in enumerate(snapshot.vitals):
        for link in range(len(vitals.links)):
            snapshot = changed(snapshot, gpu, link, **values)
    return snapshot


def without(snapshot: Snapshot, reason: str, *names: str, gpu: int | None = 0) -> Snapshot:
    """With these readings missing for a reason."""
    snapshot = changed(snapshot, gpu, **dict.fromkeys(names))
    reasons = dict.fromkeys(names, reason)
    return snapshot.model_copy(
        update={
            "gpus": tuple(_refused(one, reasons) for one in snapshot.gpus),
            "vitals": tuple(_refused(one, reasons) for one in snapshot.vitals),
        }
    )


def _refused(holder: Holder, reasons: dict[str, str]) -> Holder:
    """A reason is only looked at where there is no value, so it may stand on every GPU."""
    return holder.model_copy(update={"unavailable": {**holder.unavailable, **reasons}})


def later(snapshot: Snapshot, seconds: float) -> Snapshot:
    """The same, read later."""
    times = {"slow_at": T0 + seconds, "fast_at": T0 + seconds}
    return snapshot.model_copy(update=times)


def watched(*snapshots: Snapshot, bursts: tuple[Burst, ...] = (), **arguments: Any) -> Assessment:
    """The verdict after these were read, half a minute apart; one second after the last."""
    history = History()
    for index, snapshot in enumerate(snapshots):
        now = later(snapshot, PERIOD * index)
        history.add(now)
    at = T0 + PERIOD * (len(snapshots) - 1) + 1.0
    return assess(now, history.of(now.generation), bursts=bursts, clock=lambda: at, **arguments)


def seen(snapshot: Snapshot, **arguments: Any) -> Assessment:
    """The verdict on one reading, one second old, without history."""
    return assess(snapshot, Past(), clock=lambda: T0 + 1.0, **arguments)


def burst(
    code: int, snapshot: Snapshot, gpu: int = 0, *, at: float = T0, count: int = 1,
    kind: Kind = "xid", bus_id: str = "",
) -> Burst:  # fmt: skip
    """Xids of one code on a GPU, as the kernel log names it."""
    place = bus_id or (snapshot.gpus[gpu].pci_bus_id or "")[4:-2].lower()
    event = XidEvent(code=code, at=at, source="kernel_log", bus_id=place, kind=kind)
    return Burst(event, at, count, ("kernel_log",), (event,))

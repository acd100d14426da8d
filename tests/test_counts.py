"""Which counts of a node's GPUs disagree, and above all which do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from mcp_gpu.gpu.pci import PciBus, PciGpu, address
from mcp_gpu.workloads.counts.comparison import compare, rows
from mcp_gpu.workloads.counts.model import Advertised, Board, Counted, Driver, Sliced

GPU = "nvidia.com/gpu"
ONE = {f"{GPU}.replicas": "1"}


def place(index: int) -> str:
    return f"0000:{index + 16:02x}:00.0"


def board(index: int, **changes: Any) -> Board:
    fields = {"uuid": f"GPU-{index}", "address": place(index)} | changes
    return Board(index=index, **fields)


def boards(count: int = 8, **one: Any) -> tuple[Board, ...]:
    """`one` is of GPU 3."""
    return tuple(board(index, **(one if index == 3 else {})) for index in range(count))


def driver(*own: Board, **changes: Any) -> Driver:
    fields: dict[str, Any] = {"count": len(own), "boards": own, "most": len(own)}
    return Driver(**(fields | changes))


def pci(count: int = 8, **one: Any) -> PciBus:
    """`one` is of GPU 3."""
    plain = {"device_id": "2330", "driver": "nvidia", "answers": True}
    gpus = [
        PciGpu(address=place(index), **(plain | (one if index == 3 else {})))
        for index in range(count)
    ]
    return PciBus(gpus=tuple(gpus), why="")


def node(
    capacity: Mapping[str, int] | int = 8,
    allocatable: Mapping[str, int] | int | None = None,
    **labels: str,
) -> Advertised:
    """A node; labels are named by what comes after `nvidia.com/`, with `_` for a point."""
    handed = {GPU: capacity} if isinstance(capacity, int) else capacity
    free = {GPU: allocatable} if isinstance(allocatable, int) else allocatable or handed
    told = {"gpu_count": "8", "gpu_replicas": "1"} | labels
    return Advertised(
        handed, free, {f"nvidia.com/{k.replace('_', '.')}": v for k, v in told.items() if v}
    )


NOBODY = Sliced()


def found(
    nvml: Driver | None = None,
    bus: PciBus | None = None,
    advertised: Advertised | None = None,
    sliced: Sliced | None = NOBODY,
) -> list[str]:
    """Codes of the disagreements of a node of 8 GPUs, all well but for what is said."""
    counted = Counted(
        driver=nvml or driver(*boards()),
        bus=bus or pci(),
        advertised=advertised or node(),
        sliced=sliced,
    )
    told = compare(counted)
    for each in told:
        assert each.title.endswith(".")
        assert each.evidence
        assert all((each.cause, each.fix, *each.evidence))
    return [each.code for each in told]


CUT = boards(mig=True, profiles={"1g.10gb": 7})
ALL_CUT = tuple(board(index, mig=True, profiles={"3g.40gb": 2}) for index in range(8))
ATTRIBUTED = boards(mig=True, profiles={"1g.10gb+me": 1, "1g.10gb": 6})
EMPTY = boards(mig=True)
PARENTS = frozenset(f"GPU-{index}" for index in range(8))

AGREE: dict[str, dict[str, Any]] = {
    "all alike": {},
    "time-slicing": {"advertised": node(32, gpu_replicas="4")},
    "time-slicing under a name of its own": {
        "advertised": node({GPU: 0, f"{GPU}.shared": 32}, gpu_replicas="4")
    },
    "sharing that no label tells of": {"advertised": node(80, gpu_count="", gpu_replicas="")},
    "sharing by another plugin beside discovery": {"advertised": node(80)},
    "sharing by a provider": {
        "advertised": Advertised(
            {GPU: 16}, {GPU: 16}, {"cloud.google.com/gke-max-shared-clients-per-gpu": "2"}
        )
    },
    "MIG, mixed": {
        "nvml": driver(*CUT),
        "advertised": node({GPU: 7, "nvidia.com/mig-1g.10gb": 7}, mig_strategy="mixed"),
    },
    "MIG, mixed, with attributes": {
        "nvml": driver(*ATTRIBUTED),
        "advertised": node(
            {GPU: 7, "nvidia.com/mig-1g.10gb": 6, "nvidia.com/mig-1g.10gb.me": 1},
            mig_strategy="mixed",
        ),
    },
    "MIG, mixed, shared": {
        "nvml": driver(*CUT),
        "advertised": Advertised(
            {GPU: 7, "nvidia.com/mig-1g.10gb.shared": 14},
            {GPU: 7, "nvidia.com/mig-1g.10gb.shared": 14},
            {"nvidia.com/mig-1g.10gb.replicas": "2", f"{GPU}.count": "8", **ONE},
        ),
    },
    "MIG, single": {
        "nvml": driver(*ALL_CUT),
        "advertised": node(16, mig_strategy="single", gpu_count="16"),
    },
    "MIG, single, shared": {
        "nvml": driver(*ALL_CUT),
        "advertised": node(32, mig_strategy="single", gpu_count="16", gpu_replicas="2"),
    },
    "MIG, whole GPUs counted by the label": {
        "nvml": driver(*CUT),
        "advertised": node({GPU: 7, "nvidia.com/mig-1g.10gb": 7}, gpu_count="7"),
    },
    "MIG with instances that may not be listed": {
        "nvml": driver(*EMPTY, instances_known=False),
        "advertised": node({GPU: 7, "nvidia.com/mig-1g.10gb": 7}),
        "sliced": Sliced(gpus=3, uuids=frozenset({"GPU-0"}), published=True),
    },
    "one GPU for a virtual machine": {
        "nvml": driver(*boards(7), most=8, wanted=8),
        "bus": PciBus(
            gpus=(
                *(pci(7).gpus or ()),
                PciGpu(
                    address=place(7),
                    device_id="2330",
                    driver="vfio-pci",
                    answers=None,
                ),
            ),
            why="",
        ),
        "advertised": node(7, gpu_count="7"),
    },
    "all GPUs for virtual machines": {
        "nvml": driver(count=None, why="NVML DriverNotLoaded"),
        "bus": PciBus(
            gpus=tuple(
                gpu.model_copy(update={"driver": "nvgrace_gpu_vfio_pci", "answers": None})
                for gpu in pci().gpus or ()
            ),
            why="",
        ),
        "advertised": node({"nvidia.com/GH100": 8}, gpu_count=""),
    },
    "GPUs of which virtual machines are given parts": {
        "nvml": driver(*boards(), for_machines=True),
        "advertised": node({}),
    },
    "a node for virtual machines": {
        "advertised": node({}, gpu_workload_config="vm-vgpu"),
    },
    "NVML refuses for another reason, the driver is there": {
        "nvml": driver(count=None, why="no permission"),
    },
    "the bus is not seen": {"bus": PciBus(gpus=None, why="no /sys")},
    "a bus that has none, as in a small virtual machine": {"bus": PciBus(gpus=(), why="")},
    "DRA alone": {
        "advertised": node({}, gpu_count=""),
        "sliced": Sliced(gpus=8, uuids=PARENTS, published=True),
    },
    "DRA of MIG devices, one GPU in MIG mode without any": {
        "nvml": driver(*EMPTY),
        "advertised": node({}, gpu_count=""),
        "sliced": Sliced(gpus=7, uuids=PARENTS - {"GPU-3"}, published=True),
    },
    "DRA that does not tell which GPU a device is": {
        "sliced": Sliced(gpus=8, published=True),
    },
    "allocatable that is not told": {"advertised": Advertised({GPU: 8}, {}, ONE)},
    "more GPUs than expected": {"nvml": driver(*boards(), wanted=4)},
}


@pytest.mark.parametrize("case", AGREE)
def test_what_can_be_right_at_once_is_no_disagreement(case: str) -> None:
    assert found(**AGREE[case]) == []


DISAGREE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "lost, says NVML": (
        {"nvml": driver(*boards(lost=True, sound=False))},
        ["fallen_off_bus"],
    ),
    "as all ones, says the bus": ({"bus": pci(answers=False)}, ["fallen_off_bus"]),
    "lost before it said where it is": (
        {
            "nvml": driver(*boards(lost=True, sound=False, uuid=None, address=None)),
            "bus": pci(answers=False),
        },
        ["fallen_off_bus"],
    ),
    "lost, and gone from the bus": (
        {"nvml": driver(*boards(lost=True)), "bus": pci(7)},
        ["fallen_off_bus"],
    ),
    "fallen off, and the driver started again without it": (
        {
            "nvml": driver(*(each for each in boards() if each.index != 3)),
            "bus": pci(answers=False),
            "advertised": node(7, gpu_count="7"),
        },
        ["fallen_off_bus"],
    ),
    "vanished while the agent looked, the cluster none the wiser": (
        {"nvml": driver(*boards(7), most=8), "bus": pci(7)},
        ["fewer_than_expected", "device_plugin_outdated", "gfd_label_stale"],
    ),
    "one of two is gone, which sharing cannot explain": (
        {
            "nvml": driver(board(0), most=2),
            "bus": pci(2, answers=True),
            "advertised": node(2, gpu_count="2"),
        },
        ["not_started", "device_plugin_outdated", "gfd_label_stale"],
    ),
    "not bound to any driver": (
        {
            "nvml": driver(count=None, why="NVML LibraryNotFound"),
            "bus": PciBus(
                gpus=tuple(
                    gpu.model_copy(update={"driver": "nouveau"}) for gpu in pci().gpus or ()
                ),
                why="",
            ),
            "advertised": node({}, gpu_count=""),
        },
        ["driver_not_loaded"],
    ),
    "one replica of one GPU unhealthy": (
        {"advertised": node(32, 31, gpu_replicas="4")},
        ["device_never_recovered"],
    ),
    "all unhealthy at once, as where the plugin has just ended": (
        {"advertised": node(8, 0)},
        ["device_plugin_absent"],
    ),
    "the only GPU unhealthy": (
        {
            "nvml": driver(board(0)),
            "bus": pci(1),
            "advertised": node(1, 0, gpu_count="1"),
        },
        ["device_never_recovered"],
    ),
    "unhealthy, and so it is": (
        {"nvml": driver(*boards(sound=False)), "advertised": node(8, 7)},
        ["device_unhealthy"],
    ),
    "unhealthy, and nobody to ask": (
        {"nvml": driver(count=None, why="hangs"), "advertised": node(8, 7)},
        ["device_unhealthy"],
    ),
    "a MIG device unhealthy": (
        {
            "nvml": driver(*CUT),
            "advertised": node(
                {GPU: 7, "nvidia.com/mig-1g.10gb": 7}, {GPU: 7, "nvidia.com/mig-1g.10gb": 6}
            ),
        },
        ["device_never_recovered"],
    ),
    "nobody hands out": ({"advertised": node({}, gpu_count="")}, ["device_plugin_absent"]),
    "nobody hands out any more": ({"advertised": node(0)}, ["device_plugin_absent"]),
    "nobody hands out, for all that may be read": (
        {"advertised": node({}), "sliced": None},
        ["device_plugin_absent"],
    ),
    "another driver publishes here, of domains": (
        {"advertised": node({}), "sliced": Sliced(drivers=("compute-domain.nvidia.com",))},
        ["device_plugin_absent"],
    ),
    "cut anew since the plugin looked": (
        {
            "nvml": driver(*CUT),
            "advertised": node({GPU: 7, "nvidia.com/mig-2g.20gb": 3}),
        },
        ["device_plugin_outdated"],
    ),
    "a layout that `single` does not take": (
        {
            "nvml": driver(*CUT),
            "advertised": node(0, gpu_product="NVIDIA-H100-80GB-HBM3-MIG-INVALID"),
        },
        ["mig_layout_refused"],
    ),
    "a label of another machine": ({"advertised": node(8, gpu_count="4")}, ["gfd_label_stale"]),
    "fewer than expected": ({"nvml": driver(*boards(), wanted=9)}, ["fewer_than_expected"]),
    "slices of a GPU that is no more": (
        {"sliced": Sliced(gpus=9, uuids=PARENTS | {"GPU-old"}, published=True)},
        ["resource_slices_stale"],
    ),
    "slices without a GPU": (
        {"sliced": Sliced(gpus=7, uuids=PARENTS - {"GPU-3"}, published=True)},
        ["resource_slices_stale"],
    ),
    "slices without a GPU, of which none says who it is": (
        {"sliced": Sliced(gpus=7, published=True)},
        ["resource_slices_stale"],
    ),
    "slices that are not all there": (
        {"sliced": Sliced(gpus=4, missing=("pool n1: 1 of 2 slices",), published=True)},
        ["resource_slices_incomplete"],
    ),
}


@pytest.mark.parametrize("case", DISAGREE)
def test_what_cannot_be_right_at_once_is_named(case: str) -> None:
    sources, codes = DISAGREE[case]
    assert found(**sources) == codes


HALF = driver(*boards(4), wanted=4)


@pytest.mark.parametrize(
    ("advertised", "nvml", "confidence"),
    [
        (node(8, gpu_count="4"), HALF, "low"),
        (node(8, gpu_count="4", gpu_replicas=""), HALF, "low"),
        (node(8, gpu_count="8"), HALF, "medium"),
        (node(32, gpu_count="4", gpu_replicas="4"), HALF, "low"),
        (node(32, gpu_count="8", gpu_replicas="4"), HALF, "medium"),
        (node(8, gpu_count="4"), driver(*boards(4), most=8), "medium"),
        (node(8, gpu_replicas="4"), driver(*boards()), "low"),
        (node(6, gpu_count="4"), HALF, "medium"),
    ],
)
def test_twice_as_many_devices_as_gpus_are_no_sharing_where_labels_deny_it(
    advertised: Advertised, nvml: Driver, confidence: str
) -> None:
    counted = Counted(driver=nvml, advertised=advertised, sliced=NOBODY)
    (outdated,) = [each for each in compare(counted) if each.code == "device_plugin_outdated"]
    assert outdated.confidence == confidence
    assert ("another plugin shares" in outdated.cause) is (confidence == "low")
    (evidence,) = outdated.evidence
    assert evidence.startswith(f"capacity: {advertised.capacity[GPU]} of nvidia.com/gpu")


def test_each_source_says_what_it_counts_or_why_it_does_not() -> None:
    nobody = Counted(agent_why="silent", node_why="forbidden: get nodes", slices_why="forbidden")
    assert compare(nobody) == ()
    assert {each.source: (each.count, each.note) for each in rows(nobody)} == {
        "nvml": (None, "silent"),
        "pci_bus": (None, "silent"),
        "capacity": (None, "forbidden: get nodes"),
        "allocatable": (None, "forbidden: get nodes"),
        "gfd_label": (None, "forbidden: get nodes"),
        "resource_slices": (None, "forbidden"),
    }
    told = rows(
        Counted(
            driver=driver(*boards(lost=True), wanted=8),
            bus=pci(driver="vfio-pci", answers=None),
            advertised=node(32, 28, gpu_replicas="4", gpu_count=""),
            sliced=Sliced(drivers=("compute-domain.nvidia.com",)),
        )
    )
    assert {each.source: (each.count, each.note) for each in told} == {
        "nvml": (8, "1 of them lost"),
        "pci_bus": (8, "1 of them for virtual machines"),
        "expected": (8, "--expected-gpus"),
        "capacity": (32, "nvidia.com/gpu 32; each GPU as 4 replicas"),
        "allocatable": (28, "nvidia.com/gpu 28"),
        "gfd_label": (None, "no such label"),
        "resource_slices": (0, "drivers that publish here: compute-domain.nvidia.com"),
    }


def test_an_address_is_written_as_the_kernel_writes_it() -> None:
    assert address("00000000:86:00.0") == "0000:86:00.0"
    assert address("0001:C1:00.0") == "0001:c1:00.0"

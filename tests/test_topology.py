"""How GPUs are joined, read through the binding: the matrix, and what differs in it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.asymmetry import Asymmetry, asymmetries
from mcp_gpu.gpu.history import Past
from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.reader import Reader
from mcp_gpu.gpu.record import record
from mcp_gpu.gpu.simulator.faults import Fault
from mcp_gpu.gpu.topology import Matrix

FAULT: TypeAdapter[Any] = TypeAdapter(Fault)

NOON = 1_800_000_000.0


def fault(kind: str, gpu: int, **keys: object) -> Any:
    return FAULT.validate_python({"kind": kind, "gpu": gpu, **keys})


def read(profile: str, *faults: Any, **options: Any) -> Snapshot:
    return simulator.snapshot(simulator.Node("one", profile, faults=faults, **options))


def odd(snapshot: Snapshot) -> list[Asymmetry]:
    return asymmetries(snapshot, Past(), Matrix(snapshot), at=NOON)


def bridged(*pairs: tuple[int, int], links: int = 12, profile: str = "a100-80") -> simulator.Node:
    """PCIe boards of which some are joined in pairs by bridges."""
    node = simulator.Node("one", profile)
    bus = [gpu.answers["nvmlDeviceGetPciInfo_v3"]["busId"] for gpu in node.gpus]
    for gpu in node.gpus:
        peers = [b if a == gpu.index else a for a, b in pairs if gpu.index in (a, b)]
        count = links if peers else 0
        ends = [{"busId": bus[peers[0]]}] * count if peers else []
        gpu.answers = {
            **gpu.answers,
            "nvmlDeviceGetNvLinkState": [1] * count + [0] * (links - count),
            "nvmlDeviceGetNvLinkRemoteDeviceType": [0] * count + [{"error": 3}] * (links - count),
            "nvmlDeviceGetNvLinkRemotePciInfo_v2": ends,
            "fields": {
                **gpu.answers["fields"],
                "91": links,
                "147": 0,
                "165": 1 if peers else 0,
            },
        }
    return node


@pytest.mark.parametrize(
    ("profile", "same_side", "across"),
    [
        ("h100", "NV18", "NV18"),
        ("h200", "NV18", "NV18"),
        ("b200", "NV18", "NV18"),
        ("gb200", "NV18", "NV18"),
        ("a100-40", "NV12", "NV12"),
        ("a100-80", "NV12", "NV12"),
        ("l4", "NODE", "SYS"),
        ("l40s", "NODE", "SYS"),
        ("rtx4090", "PHB", "SYS"),
        ("t4", "PHB", "PHB"),
    ],
)
def test_every_board_has_its_matrix_and_nothing_odd(
    profile: str, same_side: str, across: str
) -> None:
    snapshot = read(profile)
    matrix = Matrix(snapshot)
    count = len(snapshot.gpus)
    assert matrix.unknown == {}
    assert [row[index] for index, row in enumerate(matrix.rows)] == ["X"] * count
    assert matrix.rows == tuple(zip(*matrix.rows, strict=True))
    assert (matrix.rows[0][1], matrix.rows[0][-1]) == (same_side, across)
    assert odd(snapshot) == []


def test_the_wiring_is_read_once_in_a_generation() -> None:
    node = simulator.Node("one", "h100")
    calls = Counter[str]()
    enter = node.enter

    def counted(call: str, gpu_index: int | None) -> None:
        calls[call] += 1
        enter(call, gpu_index)

    node.enter = counted  # type: ignore[method-assign]
    with simulator.installed(node):
        reader = Reader(Nvml())
        reader.open()
        reader.read_slow()
        reader.read_fast()
        for _ in range(3):
            reader.read_rest()
        reader.close()
    # Each call enters once for either GPU.
    assert calls["nvmlDeviceGetTopologyCommonAncestor"] == 2 * 28
    assert calls["nvmlDeviceGetP2PStatus"] == 2 * 4 * 28
    assert calls["nvmlDeviceGetNvLinkRemotePciInfo_v2"] == 0


def test_bridges_join_the_pairs_they_join_and_alarm_nobody() -> None:
    snapshot = simulator.snapshot(bridged((0, 1), (2, 3)))
    matrix = Matrix(snapshot)
    assert (matrix.rows[0][1], matrix.rows[1][0], matrix.rows[2][3]) == ("NV12",) * 3
    assert (matrix.rows[0][2], matrix.rows[4][5], matrix.rows[4][6]) == ("NODE", "PXB", "NODE")
    assert matrix.unknown == {}
    assert odd(snapshot) == []


def test_boards_without_a_bridge_alarm_nobody() -> None:
    snapshot = simulator.snapshot(bridged())
    assert Matrix(snapshot).rows[0][1] == "PXB"
    assert odd(snapshot) == []


def test_a_link_whose_end_nobody_tells_is_unknown_and_no_guess() -> None:
    node = bridged((0, 1), (2, 3))
    for gpu in node.gpus:
        gpu.answers = {**gpu.answers, "nvmlDeviceGetNvLinkRemotePciInfo_v2": {"error": 3}}
    matrix = Matrix(simulator.snapshot(node))
    assert matrix.rows[0][1] == "?"
    assert matrix.unknown["0-1"] == "not_supported"
    assert matrix.rows[4][5] == "PXB"


def test_links_that_are_down_count_less_and_are_odd() -> None:
    snapshot = read("h100", fault("nvlink_down", 1, links=(2, 3)))
    matrix = Matrix(snapshot)
    assert (matrix.rows[1][0], matrix.rows[0][1], matrix.rows[0][2]) == ("NV16", "NV16", "NV18")
    (only,) = odd(snapshot)
    assert (only.kind, only.gpus) == ("links_down", (1,))
    assert "16 NVLinks up and should have 18" in only.text


def test_a_lost_gpu_is_a_row_of_question_marks_with_the_reason() -> None:
    snapshot = read("h100", fault("lost", 3))
    matrix = Matrix(snapshot)
    assert matrix.rows[3] == ("?", "?", "?", "X", "?", "?", "?", "?")
    assert matrix.rows[0][3] == "?"
    assert matrix.unknown == {"3": "gpu_lost"}
    assert matrix.rows[0][1] == "NV18"


def test_what_a_driver_refuses_of_a_pair_is_unknown_with_the_reason() -> None:
    call = "nvmlDeviceGetTopologyCommonAncestor"
    refused = fault("refused", 0, call=call, return_code=4)
    matrix = Matrix(read("l4", refused, gpus=3))
    assert matrix.rows == (("X", "?", "?"), ("?", "X", "NODE"), ("?", "NODE", "X"))
    assert matrix.unknown == {"0-1": "no_permission", "0-2": "no_permission"}


@pytest.mark.parametrize("gpu", [0, 1, 3])
def test_a_gpu_on_the_wrong_side_is_named(gpu: int) -> None:
    snapshot = read("l40s", fault("numa_side", gpu))
    assert snapshot.gpus[gpu].cpu_affinity == "48-95,144-191"
    found = odd(snapshot)
    if gpu == 3:  # next to the other side's: the sides are uneven, and nobody is between strangers
        assert [each.kind for each in found] == ["numa_side"]
        assert "unevenly over NUMA nodes: node 0 has 3, node 1 has 5" in found[0].text
        return
    assert [(each.kind, each.gpus) for each in found] == [("numa_side", (gpu,))]
    assert Matrix(snapshot).rows[gpu][7] == "NODE"
    assert Matrix(snapshot).rows[2][gpu] == "SYS"


def test_gpus_all_on_one_side_or_half_on_each_are_not_odd() -> None:
    assert odd(read("l40s", gpus=4)) == []
    assert odd(read("l40s", gpus=5)) == []
    assert odd(read("l40s", fault("numa_side", 1), fault("numa_side", 3), gpus=4)) == []


def test_a_gpu_behind_other_switches_than_its_peers_is_named() -> None:
    node = simulator.Node("one", "l4", gpus=4)
    for gpu in node.gpus:
        near = [10] * 4 if gpu.index != 2 else [40] * 4
        near[2] = 40
        gpu.answers = {**gpu.answers, "nvmlDeviceGetTopologyCommonAncestor": near}
    (only,) = odd(simulator.snapshot(node))
    assert (only.kind, only.gpus) == ("pcie_path", (2,))
    assert only.text == "GPU 2: over PCIe NODE to 3; its peers: NODE to 1, PIX to 2."


def test_a_missing_peer_access_is_named_by_pair() -> None:
    snapshot = read("h100", fault("peer_access", 2, peer=5, capabilities=["read"]))
    (only,) = odd(snapshot)
    assert (only.kind, only.gpus) == ("peer_access", (2, 5))
    assert only.text == (
        "GPU pairs 2-5: no peer read (topology_not_supported); the other 27 pairs joined by "
        "NVLink have it."
    )


def test_peer_access_that_no_pair_has_is_not_odd() -> None:
    pair = Matrix(read("t4", gpus=2)).pairs[0, 1]
    assert (pair.read, pair.atomics) == ("chipset_not_supported", "chipset_not_supported")
    assert odd(read("t4")) == odd(read("rtx4090")) == []


def test_a_gpu_outside_its_peers_fabric_is_named() -> None:
    snapshot = read("gb200", fault("fabric", 2, state="in_progress"))
    found = [each for each in odd(snapshot) if each.kind == "fabric"]
    assert [each.gpus for each in found] == [(2,)]
    assert found[0].text.startswith("GPU 2: fabric registration in_progress; its peers: fabric")


def test_two_cliques_on_one_node_are_told_and_joined_by_pcie_alone() -> None:
    node = simulator.Node("one", "gb200")
    for gpu in node.gpus[2:]:
        told = {**gpu.answers["nvmlDeviceGetGpuFabricInfoV"], "cliqueId": 9}
        gpu.answers = {**gpu.answers, "nvmlDeviceGetGpuFabricInfoV": told}
    snapshot = simulator.snapshot(node)
    matrix = Matrix(snapshot)
    assert (matrix.rows[0][1], matrix.rows[0][2], matrix.rows[2][3]) == ("NV18", "SYS", "NV18")
    assert [(each.kind, each.gpus) for each in odd(snapshot)] == [
        ("fabric", (0, 1)),
        ("fabric", (2, 3)),
    ]


def test_a_gpu_that_mig_cuts_is_not_held_against_its_peers() -> None:
    assert odd(read("h100", mig={0: ("1g.10gb",)})) == []


def test_a_recording_has_the_wiring_and_the_gpm(tmp_path: Path) -> None:
    path = tmp_path / "real.json"
    faults = [fault("numa_side", 1), fault("peer_access", 2, peer=5)]
    real = simulator.Node("real", "h100", faults=faults, load=0.5, clock=lambda: NOON)
    with simulator.installed(real):
        path.write_text(json.dumps(record()))
    replayed = simulator.Node("replayed", str(path))
    assert simulator.snapshot(replayed).wiring == simulator.snapshot(real).wiring
    metrics = [gpu.answer("nvmlGpmMetricsGet", "2") for gpu in (*replayed.gpus, *real.gpus)]
    assert metrics[:8] == metrics[8:]
    with simulator.installed(bridged((0, 1))):
        path.write_text(json.dumps(record()))
    simulator.profiles.load_profile.cache_clear()
    again = simulator.snapshot(simulator.Node("replayed", str(path)))
    assert Matrix(again).rows[0][1] == "NV12"

"""A recording of a machine, replayed by the simulator, is that machine."""

import json
from pathlib import Path

import pytest

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.errors import NvmlUnavailable
from mcp_gpu.gpu.record import record
from mcp_gpu.gpu.simulator.faults import (
    Ecc,
    Fault,
    Lost,
    MissingSymbol,
    NvlinkBer,
    NvlinkDown,
    NvlinkErrors,
    PcieReplays,
    RemapExhausted,
    RepairPending,
    RetiredPages,
    RowRemap,
    SramThreshold,
    Temperature,
    UnrepairableMemory,
    WholeNode,
)


def recorded(node: simulator.Node, path: Path, *, pseudonyms: bool = False) -> simulator.Node:
    with simulator.installed(node):
        path.write_text(json.dumps(record(pseudonyms=pseudonyms)))
    return simulator.Node("replayed", str(path))


def noon() -> float:
    return 1_800_000_000.0


@pytest.mark.parametrize("profile", simulator.shipped_profiles())
def test_a_replayed_recording_gives_the_same_snapshot(profile: str, tmp_path: Path) -> None:
    node = simulator.Node("real", profile, load=0.5, clock=noon)
    replayed = recorded(node, tmp_path / "real.json")
    assert simulator.snapshot(replayed, clock=noon) == simulator.snapshot(node, clock=noon)


def test_mig_devices_lost_gpus_and_missing_symbols_are_recorded_too(tmp_path: Path) -> None:
    node = simulator.Node(
        "real",
        "h100",
        driver="550.54.15",
        mig={0: ("1g.10gb",) * 3},
        faults=[
            Lost(kind="lost", gpu=2),
            MissingSymbol(kind="missing_symbol", call="nvmlDeviceGetSerial"),
        ],
    )
    replayed = recorded(node, tmp_path / "real.json")
    snapshot = simulator.snapshot(replayed, clock=noon)
    assert snapshot == simulator.snapshot(node, clock=noon)
    assert len(snapshot.gpus[0].mig_devices) == 3
    assert snapshot.gpus[2].state == "lost"


@pytest.mark.parametrize(
    ("profile", "faults"),
    [
        ("t4", [RetiredPages(kind="retired_pages", gpu=0, corrected=3, pending=True)]),
        (
            "h100",
            [
                Ecc(kind="ecc", gpu=0, location="sram", uncorrected=2),
                SramThreshold(kind="sram_threshold", gpu=0),
                RowRemap(kind="row_remap", gpu=0, corrected=2),
                RemapExhausted(kind="remap_exhausted", gpu=0),
                RepairPending(kind="repair_pending", gpu=0),
                Temperature(kind="temperature", gpu=0, margin=-1),
                PcieReplays(kind="pcie_replays", gpu=0, count=7),
                NvlinkDown(kind="nvlink_down", gpu=0, links=(0, 5)),
                NvlinkErrors(kind="nvlink_errors", gpu=0, error="crc", links=(0, 17), count=9),
            ],
        ),
        (
            "gb200",
            [
                UnrepairableMemory(kind="unrepairable_memory", gpu=0),
                NvlinkBer(kind="nvlink_ber", gpu=0, links=(3,)),
                NvlinkErrors(kind="nvlink_errors", gpu=0, error="symbol", count=5),
            ],
        ),
    ],
)
def test_what_is_wrong_with_a_board_is_recorded(
    profile: str, faults: list[Fault], tmp_path: Path
) -> None:
    node = simulator.Node("real", profile, gpus=2, faults=faults, clock=noon)
    replayed = simulator.snapshot(recorded(node, tmp_path / "real.json"), clock=noon)
    assert replayed == simulator.snapshot(node, clock=noon)
    assert replayed.vitals[0] != replayed.vitals[1].model_copy(update={"index": 0})


def test_a_recording_of_link_errors_that_only_the_getter_tells_keeps_them(tmp_path: Path) -> None:
    node = simulator.Node("real", "h100", gpus=1, clock=noon)
    board = node.gpus[0]
    fields = {**board.answers["fields"], **{str(n): {"error": 2} for n in (161, 162, 163)}}
    counters = {f"{link},{kind}": link + kind for link in range(18) for kind in range(3)}
    call = "nvmlDeviceGetNvLinkErrorCounter"
    board.answers = {**board.answers, "fields": fields, call: counters}
    replayed = simulator.snapshot(recorded(node, tmp_path / "real.json"), clock=noon)
    assert replayed == simulator.snapshot(node, clock=noon)
    assert replayed.vitals[0].links[17].crc_errors == 19


def test_a_recording_of_an_old_driver_keeps_the_older_functions(tmp_path: Path) -> None:
    node = simulator.Node("real", "a100-80", gpus=1, driver="470.256.02", clock=noon)
    replayed = simulator.snapshot(recorded(node, tmp_path / "real.json"), clock=noon)
    assert replayed == simulator.snapshot(node, clock=noon)
    assert replayed.gpus[0].memory_total_bytes is not None
    assert replayed.gpus[0].throttle_reasons == ()


def test_identities_are_replaced_unless_asked_for(tmp_path: Path) -> None:
    node = simulator.Node("real", "gb200", mig=None)
    originals = simulator.snapshot(node).gpus
    document = (tmp_path / "real.json", tmp_path / "again.json")
    first = simulator.snapshot(recorded(node, document[0], pseudonyms=True)).gpus
    again = simulator.snapshot(recorded(node, document[1], pseudonyms=True)).gpus
    for gpu in originals:
        for secret in (gpu.uuid, gpu.serial, gpu.chassis_serial, gpu.fabric_cluster_uuid):
            assert secret is not None
            assert secret not in document[0].read_text()
    assert len({gpu.uuid for gpu in first}) == 4
    assert first[0].uuid != again[0].uuid
    assert first[0].uuid is not None
    assert first[0].uuid.startswith("GPU-")
    assert len(first[0].uuid) == len(originals[0].uuid or "")
    assert first[0].fabric_cluster_uuid == first[1].fabric_cluster_uuid


def test_a_recording_says_how_long_the_calls_took(tmp_path: Path) -> None:
    with simulator.installed(simulator.Node("real", "t4", gpus=1)):
        document = record()
    median, longest = document["microseconds"]["nvmlDeviceGetPowerUsage"]
    assert 0 < median <= longest


def test_only_getters_are_called() -> None:
    with simulator.installed(simulator.Node("real", "h100", gpus=1)):
        document = record()
    others = {"nvmlGpmQueryDeviceSupport", "nvmlGpmSampleFree"}
    for call in document["microseconds"].keys() - others:
        assert "Get" in call
        assert "Set" not in call


def test_without_nvml_there_is_nothing_to_record() -> None:
    node = simulator.Node("none", "t4", faults=[WholeNode(kind="driver_not_loaded")])
    with simulator.installed(node), pytest.raises(NvmlUnavailable):
        record()

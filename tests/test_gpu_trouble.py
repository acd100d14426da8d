"""One GPU in trouble costs itself, and is told as what it is: blocked, refused, odd or partial."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from mcp_gpu.gpu import nvml as nvml_module
from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.reader import Reader
from mcp_gpu.gpu.simulator.faults import Hang, Lost, MissingSymbol, Refused, WholeNode

WEDGED_SECONDS = 0.4
HANG_SECONDS = 0.5


@pytest.fixture
def node() -> Iterator[simulator.Node]:
    with simulator.installed(simulator.Node("one", "h100", gpus=4)) as node:
        yield node


@pytest.fixture
def soon_wedged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml_module, "WEDGED_SECONDS", WEDGED_SECONDS)


def read(reader: Reader) -> Snapshot:
    reader.read_slow()
    return reader.read_fast()


def opened(nvml: Nvml | None = None) -> Reader:
    reader = Reader(nvml or Nvml())
    reader.open()
    return reader


def answering(profile: str = "h100", **answers: object) -> Gpu:
    """The only GPU of a node, with some answers changed; of `fields` only those named."""
    node = simulator.Node("one", profile, gpus=1)
    board = node.gpus[0]
    fields = {**board.answers["fields"], **answers.pop("fields", {})}  # type: ignore[dict-item]
    board.answers = {**board.answers, **answers, "fields": fields}
    return simulator.snapshot(node).gpus[0]


# --- blocked --------------------------------------------------------------------------------


@pytest.mark.usefixtures("soon_wedged")
@pytest.mark.parametrize("call", ["*", "nvmlDeviceGetMigMode", "nvmlDeviceGetPowerUsage"])
def test_a_gpu_that_blocks_is_asked_once_and_hides_no_other(
    node: simulator.Node, call: str
) -> None:
    nvml = Nvml()
    blocked = set()

    def watch() -> None:
        calling = nvml.calling
        if calling is not None and calling.gpu_index == 2 and node.faults:
            blocked.add(calling)

    reader = opened(nvml)
    before = read(reader)
    node.on_call = watch
    node.faults = [Hang(kind="hang", gpu=2, seconds=HANG_SECONDS, call=call)]
    read(reader)
    asked = len(blocked)
    for _ in range(3):
        snapshot = read(reader)
    assert [gpu.state for gpu in snapshot.gpus] == ["ok", "ok", "unreadable", "ok"]
    assert snapshot.gpus[2].uuid == before.gpus[2].uuid
    assert snapshot.gpus[2].unavailable["temperature_celsius"] == "timeout"
    assert reader.impaired
    assert len(blocked) == asked, "left alone within its generation"
    assert call != "*" or asked == 1

    node.faults = ()
    reader.close()
    reader.open()
    assert [gpu.state for gpu in read(reader).gpus] == ["ok"] * 4


@pytest.mark.usefixtures("soon_wedged")
def test_a_gpu_that_blocks_from_the_start_costs_one_call(node: simulator.Node) -> None:
    node.faults = [Hang(kind="hang", gpu=0, seconds=HANG_SECONDS)]
    nvml = Nvml()
    asked = set()
    node.on_call = lambda: asked.add(nvml.calling)
    snapshot = read(opened(nvml))
    assert [gpu.state for gpu in snapshot.gpus] == ["unreadable", "ok", "ok", "ok"]
    assert len([calling for calling in asked if calling and calling.gpu_index == 0]) == 1


@pytest.mark.usefixtures("soon_wedged")
def test_a_slow_answer_that_a_gpu_is_lost_is_still_that(node: simulator.Node) -> None:
    node.faults = [
        Hang(kind="hang", gpu=1, seconds=HANG_SECONDS),
        Lost(kind="lost", gpu=1),
    ]
    assert read(opened()).gpus[1].state == "lost"


@pytest.mark.usefixtures("soon_wedged")
def test_a_gpu_that_names_itself_and_then_blocks_is_tried_ever_more_rarely(
    node: simulator.Node,
) -> None:
    node.faults = [Hang(kind="hang", gpu=1, seconds=HANG_SECONDS, call="nvmlDeviceGetPowerUsage")]
    collector = Collector(retry_seconds=1)
    pauses = []
    for faults in (node.faults, node.faults, node.faults, ()):
        node.faults = faults
        collector._open_due = -float("inf")
        collector._turn()
        pauses.append(collector._pause)
    assert pauses == [2, 4, 8, 1]
    assert [gpu.state for gpu in collector.snapshot.gpus] == ["ok"] * 4


@pytest.mark.usefixtures("soon_wedged")
def test_a_shutdown_that_was_left_out_is_made_up_for(node: simulator.Node) -> None:
    reader = opened()
    node.faults = [Hang(kind="hang", gpu=0, seconds=HANG_SECONDS, call="nvmlDeviceGetPowerUsage")]
    read(reader)
    node.faults = ()
    reader.close()
    del node.gpus[3]
    reader.open()
    assert read(reader).gpu_count == 4, "NVML was never shut down, and shows its old state"
    reader.close()
    reader.open()
    assert read(reader).gpu_count == 3


# --- refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [999, 2, 6, 10, 17, 16])
def test_a_gpu_that_refuses_every_reading_is_unreadable_until_it_answers(
    node: simulator.Node, code: int
) -> None:
    reader = opened()
    before = read(reader)
    node.faults = [Refused(kind="refused", gpu=1, return_code=code)]
    snapshot = read(reader)
    assert [gpu.state for gpu in snapshot.gpus] == ["ok", "unreadable", "ok", "ok"]
    assert snapshot.gpus[1].error
    assert reader.impaired
    reader.close()
    reader.open()
    assert read(reader).gpus[1].uuid == before.gpus[1].uuid, "its identity stays"
    node.faults = ()
    reader.close()
    reader.open()
    assert read(reader) == before.model_copy(
        update={**reader._snapshot.model_dump(include={"static_at", "slow_at", "fast_at"}),
                "generation": 3}
    )  # fmt: skip
    assert not reader.impaired


@pytest.mark.parametrize("code", [3, 4, 13, 26])
def test_a_board_that_lacks_every_reading_is_no_trouble(node: simulator.Node, code: int) -> None:
    reader = opened()
    node.faults = [Refused(kind="refused", gpu=1, return_code=code)]
    snapshot = read(reader)
    assert snapshot.gpus[1].state == "ok"
    assert not reader.impaired


@pytest.mark.parametrize("code", [10, 16, 999])
@pytest.mark.parametrize("call", ["*", "nvmlDeviceGetSerial"])
def test_what_was_refused_at_the_start_is_asked_for_again(
    node: simulator.Node, code: int, call: str
) -> None:
    node.faults = [Refused(kind="refused", gpu=1, return_code=code, call=call)]
    reader = opened()
    assert read(reader).gpus[1].serial is None
    node.faults = ()
    gpu = (read(reader), read(reader))[1].gpus[1]
    if code == 10 and call == "*":
        assert gpu.state == "unreadable", "only a new generation asks after a timeout"
        reader.close()
        reader.open()
        gpu = read(reader).gpus[1]
    assert (gpu.state, gpu.error) == ("ok", None)
    assert gpu.serial is not None
    assert "serial" not in gpu.unavailable


def test_a_recovery_that_needs_a_reset_says_that_this_agent_must_stop_first() -> None:
    fault = Refused(kind="refused", gpu=0, return_code=16)
    gpu = simulator.snapshot(simulator.Node("one", "h100", gpus=1, faults=[fault])).gpus[0]
    assert "this agent included" in (gpu.error or "")


def test_after_a_failure_a_gpu_that_vanished_is_still_missed(node: simulator.Node) -> None:
    collector = Collector(retry_seconds=0)
    collector._turn()
    node.faults = [WholeNode(kind="driver_not_loaded")]
    collector._fast_due = -float("inf")
    collector._turn()
    assert collector.snapshot.gpu_count is None
    node.faults = ()
    del node.gpus[3]
    collector._turn()
    assert [gpu.state for gpu in collector.snapshot.gpus] == ["ok", "ok", "ok", "lost"]


# --- odd ------------------------------------------------------------------------------------


def test_a_fraction_where_a_whole_number_belongs_is_cut() -> None:
    assert answering(fields={"164": 26562.5}).nvlink_speed_mbps == 26562


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_field_value_that_is_no_number_costs_one_field(value: float) -> None:
    gpu = answering(fields={"164": value})
    assert gpu.unavailable["nvlink_speed_mbps"] == "error(-1)"
    assert gpu.temperature_celsius == 29


def test_a_value_that_the_model_refuses_costs_one_field(
    node: simulator.Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original: Callable[..., object] = nvml_module._answer

    def odd(call: str, args: tuple[object, ...]) -> object:
        return 0.5 if call == "nvmlDeviceGetMinorNumber" else original(call, args)

    monkeypatch.setattr(nvml_module, "_answer", odd)
    gpu = read(opened()).gpus[0]
    assert gpu.unavailable["minor_number"] == "error(-1)"
    assert (gpu.state, gpu.temperature_celsius) == ("ok", 29)
    assert "minor_number: 0.5" in caplog.text


# --- partial --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [4, 999])
def test_mig_devices_that_may_not_be_opened_are_not_no_mig_devices(code: int) -> None:
    fault = Refused(
        kind="refused", gpu=0, return_code=code, call="nvmlDeviceGetMigDeviceHandleByIndex"
    )
    node = simulator.Node("cut", "h100", gpus=1, mig={0: ("1g.10gb",) * 2}, faults=[fault])
    gpu = simulator.snapshot(node).gpus[0]
    assert gpu.mig_devices == ()
    assert gpu.unavailable["mig_devices"] == {4: "no_permission", 999: "error(999)"}[code]


def test_a_hole_among_the_mig_devices_is_only_a_hole() -> None:
    node = simulator.Node("cut", "h100", gpus=1, mig={0: ("1g.10gb",) * 3})
    board = node.gpus[0]
    first, _, last = board.answers["nvmlDeviceGetMigDeviceHandleByIndex"]
    board.answers = {**board.answers, "nvmlDeviceGetMigDeviceHandleByIndex": [first, None, last]}
    gpu = simulator.snapshot(node).gpus[0]
    assert [device.index for device in gpu.mig_devices] == [0, 2]
    assert "mig_devices" not in gpu.unavailable


def test_a_mig_device_says_why_it_lacks_a_reading() -> None:
    fault = Refused(kind="refused", gpu=0, return_code=4, call="nvmlDeviceGetAttributes_v2")
    node = simulator.Node("cut", "h100", gpus=1, mig={0: ("1g.10gb",)}, faults=[fault])
    (device,) = simulator.snapshot(node).gpus[0].mig_devices
    assert device.unavailable == {"gpm": "first_sample", "multiprocessor_count": "no_permission"}


def test_volatile_memory_errors_are_not_told_of_a_gpu_cut_into_instances() -> None:
    node = simulator.Node("cut", "h100", gpus=1, mig={0: ("1g.10gb",)})
    gpu = simulator.snapshot(node).gpus[0]
    assert gpu.ecc_uncorrected_volatile is None
    assert gpu.unavailable["ecc_uncorrected_volatile"] == "mig_active"


@pytest.mark.parametrize(("code", "active"), [(3, 17), (2, 17), (999, None), (10, None)])
def test_one_link_that_gives_no_state_does_not_make_the_others_inactive(
    code: int, active: int | None
) -> None:
    gpu = answering(fields={"165,3": {"error": code}})
    assert (gpu.nvlink_count, gpu.nvlink_active) == (18, active)
    assert ("nvlink_active" in gpu.unavailable) == (active is None)


def test_an_argument_that_is_invalid_is_not_always_an_old_driver() -> None:
    gpu = answering(fields={"192,1": {"error": 2}, "147": {"error": 2}, "230": {"error": 2}})
    assert gpu.unavailable["module_power_limit_watts"] == "not_supported"
    assert gpu.unavailable["nvswitch_link_count"] == "error(2)"
    assert gpu.unavailable["recovery_action"] == "driver_too_old"


def test_a_fabric_that_is_not_registered_yet_is_not_ready() -> None:
    gpu = answering(nvmlDeviceGetGpuFabricInfoV={"state": 2, "status": 0})
    assert gpu.fabric_state == "in_progress"
    assert gpu.unavailable["fabric_clique_id"] == gpu.unavailable["fabric_health"] == "error(27)"


# --- old ------------------------------------------------------------------------------------


def test_a_driver_before_r510_still_tells_its_memory_and_why_it_is_slow() -> None:
    node = simulator.Node("old", "a100-80", gpus=1, driver="470.256.02")
    gpu = simulator.snapshot(node).gpus[0]
    assert gpu.memory_total_bytes == 80 << 30
    assert gpu.memory_used_bytes == 911_212_544
    assert gpu.unavailable["memory_reserved_bytes"] == "driver_too_old"
    assert gpu.throttle_reasons == ()
    assert gpu.unavailable["recovery_action"] == "driver_too_old"


def test_a_library_with_neither_name_of_a_function_is_too_old() -> None:
    faults = [
        MissingSymbol(kind="missing_symbol", call=f"nvmlDeviceGetCurrentClocks{word}Reasons")
        for word in ("Event", "Throttle")
    ]
    gpu = simulator.snapshot(simulator.Node("old", "h100", gpus=1, faults=faults)).gpus[0]
    assert gpu.unavailable["throttle_reasons"] == "driver_too_old"

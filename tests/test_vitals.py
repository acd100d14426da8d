"""Health readings and NVLinks: what each board tells, in few calls, and how faults show."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pynvml
import pytest
from pydantic import TypeAdapter, ValidationError

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.errors import NvmlUnavailable
from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.reader import Reader
from mcp_gpu.gpu.simulator.faults import (
    Ecc,
    Fault,
    Lost,
    MissingSymbol,
    NvlinkDown,
    NvlinkErrors,
    Refused,
    RowRemap,
    Temperature,
    Throttle,
    Vanished,
    WholeNode,
)
from mcp_gpu.gpu.vitals import LINK_READINGS, VITALS_READINGS, Link, Vitals

LASTING = {"not_supported", "driver_too_old", "mig_active", "deprecated"}

FAULT: TypeAdapter[Any] = TypeAdapter(Fault)


def fault(**keys: object) -> Any:
    """One as a fleet file would have it; of the first GPU unless it says more."""
    return FAULT.validate_python({"gpu": 0, **keys})


def first(profile: str, *faults: Any, **options: Any) -> tuple[Gpu, Vitals]:
    snapshot = simulator.snapshot(simulator.Node("one", profile, gpus=1, faults=faults, **options))
    return snapshot.gpus[0], snapshot.vitals[0]


def answering(profile: str, *, fields: dict[str, object], **answers: object) -> Vitals:
    """The vitals of a board that answers some calls and field ids otherwise."""
    node = simulator.Node("one", profile, gpus=1)
    board = node.gpus[0]
    board.answers = {
        **board.answers, **answers, "fields": {**board.answers["fields"], **fields},
    }  # fmt: skip
    return simulator.snapshot(node).vitals[0]


@pytest.fixture
def opened() -> Iterator[Callable[..., Reader]]:
    """Readers of nodes whose calls are counted in `Reader.calls`."""

    def open_(node: simulator.Node, calls: Counter[str] | None = None) -> Reader:
        nvml = Nvml()

        def count() -> None:
            if calls is not None and nvml.calling is not None:
                calls[nvml.calling.call] += 1

        node.on_call = count
        simulator.install(node)
        reader = Reader(nvml)
        reader.open()
        return reader

    yield open_
    simulator.uninstall()


def read(reader: Reader) -> Snapshot:
    reader.read_slow()
    return reader.read_fast()


# --- what boards tell -----------------------------------------------------------------------


@pytest.mark.parametrize("profile", simulator.shipped_profiles())
@pytest.mark.parametrize("driver", [None, "470.256.02", "615.10"])
def test_every_null_of_every_board_has_a_lasting_reason(profile: str, driver: str | None) -> None:
    snapshot = simulator.snapshot(simulator.Node("all", profile, driver=driver))
    assert [v.index for v in snapshot.vitals] == [gpu.index for gpu in snapshot.gpus]
    for vitals in snapshot.vitals:
        nulls = {name for name in VITALS_READINGS if getattr(vitals, name) is None}
        assert nulls == set(vitals.unavailable)
        assert set(vitals.unavailable.values()) <= LASTING
        for link in vitals.links:
            assert {n for n in LINK_READINGS if getattr(link, n) is None} == set(link.unavailable)
            assert set(link.unavailable.values()) <= LASTING


def test_an_h100_reads_as_the_captured_one() -> None:
    gpu, vitals = first("h100")
    assert (vitals.pcie_replays, vitals.slowed_by_power_cap_seconds) == (150, 7015.662857)
    assert (vitals.temperature_margin_celsius, vitals.margin_shutdown_celsius) == (58, -8)
    assert (vitals.margin_slowdown_celsius, vitals.margin_memory_max_celsius) == (-2, 0)
    assert vitals.temperature_shutdown_celsius is None
    assert vitals.remap_banks_full == 2560
    assert (vitals.sram_threshold_exceeded, vitals.channel_repair_pending) == (False, False)
    # The capture's driver is of the branch that brought it, and older.
    assert vitals.unavailable["unrepairable_memory"] == "driver_too_old"
    assert (gpu.nvlink_active, len(vitals.links)) == (18, 18)
    assert {(link.state, link.remote, link.crc_errors) for link in vitals.links} == {
        ("active", "switch", 0)
    }
    assert vitals.links[0].unavailable["symbol_ber"] == "not_supported"


def test_a_t4_has_retired_pages_degrees_and_an_error_in_its_life() -> None:
    gpu, vitals = first("t4")
    assert vitals.ecc_dram_corrected_lifetime == 1
    assert (vitals.ecc_dram_corrected, vitals.ecc_sram_uncorrected) == (0, 0)
    assert (vitals.retired_pages_uncorrected, vitals.retired_pages_pending) == (0, False)
    assert vitals.temperature_slowdown_celsius == 93
    assert vitals.unavailable["remap_banks_none"] == "not_supported"
    assert (gpu.nvlink_active, vitals.links, "links" in vitals.unavailable) == (None, (), False)


def test_links_of_the_fifth_generation_have_counters_of_their_own() -> None:
    gpu, vitals = first("gb200")
    assert gpu.nvlink_active == len(vitals.links) == 18
    link = vitals.links[17]
    assert (link.receive_errors, link.recoveries_failed, link.symbol_errors) == (0, 0, 0)
    assert link.effective_ber == link.symbol_ber == pytest.approx(15e-255)
    assert link.unavailable == dict.fromkeys(
        ("replay_errors", "recovery_errors", "crc_errors"), "not_supported"
    )
    assert vitals.unrepairable_memory is False


def test_a_resting_geforce_is_capped_and_on_a_slow_link_and_a_busy_one_is_not() -> None:
    node = simulator.Node("desk", "rtx4090", gpus=1)
    (handle,) = _handles(node)
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & 0x4
    gpu, _ = first("rtx4090")
    assert (gpu.pcie_generation_current, gpu.pcie_generation_max) == (1, 4)
    busy, _ = first("rtx4090", load=0.5)
    assert busy.pcie_generation_current == 4
    simulator.uninstall()


def _handles(node: simulator.Node) -> list[object]:
    simulator.install(node)
    pynvml.nvmlInit()
    return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]


def test_with_mig_on_what_the_board_hides_is_not_called_unsupported() -> None:
    _, vitals = first("h100", mig={0: ("1g.10gb",)})
    for name in ("ecc_dram_uncorrected", "remap_banks_none", "row_remaps_corrected"):
        assert vitals.unavailable[name] == "mig_active"
    assert vitals.ecc_dram_uncorrected_lifetime == 0
    assert vitals.unavailable["retired_pages_pending"] == "not_supported"


# --- older ways -----------------------------------------------------------------------------


def test_without_field_values_getters_tell_what_they_can() -> None:
    missing = MissingSymbol(kind="missing_symbol", call="nvmlDeviceGetFieldValues")
    _, t4 = first("t4", missing, fault(kind="retired_pages", corrected=2, pending=True))
    assert (t4.retired_pages_corrected, t4.retired_pages_uncorrected) == (2, 1)
    assert t4.retired_pages_pending is True
    assert t4.unavailable["pcie_fatal_errors"] == "driver_too_old"
    gpu, h100 = first("h100", missing, RowRemap(kind="row_remap", gpu=0, corrected=3))
    assert (h100.pcie_replays, h100.row_remaps_corrected) == (150, 3)
    # The number of links is a field value: they are looked for until there is none.
    assert (gpu.nvlink_count, gpu.nvlink_active, len(h100.links)) == (None, 18, 18)
    assert h100.links[3].crc_errors == 0


@pytest.mark.parametrize("code", [2, 3])
def test_a_driver_that_counts_link_errors_only_one_by_one_is_asked_so(code: int) -> None:
    fields: dict[str, object] = {key: {"error": code} for key in ("161", "162", "163")}
    counters = {f"{link},{kind}": 10 * link + kind for link in range(18) for kind in range(3)}
    vitals = answering("h100", fields=fields, nvmlDeviceGetNvLinkErrorCounter=counters)
    link = vitals.links[17]
    assert (link.replay_errors, link.recovery_errors, link.crc_errors) == (170, 171, 172)
    assert "crc_errors" not in link.unavailable


def test_link_counters_that_no_call_has_are_not_asked_for_again(
    opened: Callable[..., Reader],
) -> None:
    node = simulator.Node("one", "h100", gpus=1)
    board = node.gpus[0]
    gone = {key: {"error": 3} for key in ("161", "162", "163")}
    board.answers = {**board.answers, "fields": {**board.answers["fields"], **gone}}
    calls: Counter[str] = Counter()
    reader = opened(node, calls)
    (vitals,) = read(reader).vitals
    read(reader)
    assert calls["nvmlDeviceGetNvLinkErrorCounter"] == 1
    assert {link.unavailable["crc_errors"] for link in vitals.links} == {"not_supported"}


def test_an_unmarked_negative_limit_is_still_negative() -> None:
    vitals = answering("h100", fields={"193": 2**32 - 8})
    assert vitals.margin_shutdown_celsius == -8


def test_links_whose_version_nobody_tells_are_asked_for_everything() -> None:
    vitals = answering("h100", fields={}, nvmlDeviceGetNvLinkVersion={"error": 3})
    assert vitals.links[0].replay_errors == 0
    assert vitals.links[0].unavailable["receive_errors"] == "not_supported"


@pytest.mark.parametrize(("code", "known"), [(3, 17), (2, 17), (999, 0), (10, 0)])
def test_some_of_the_links_never_look_like_all(code: int, known: int) -> None:
    vitals = answering("h100", fields={"165,3": {"error": code}})
    assert len(vitals.links) == known
    assert ("links" in vitals.unavailable) == (known == 0)
    assert 3 not in {link.index for link in vitals.links}


def test_a_number_of_links_beyond_all_reason_is_not_believed(
    opened: Callable[..., Reader],
) -> None:
    node = simulator.Node("one", "h100", gpus=1)
    board = node.gpus[0]
    board.answers = {**board.answers, "fields": {**board.answers["fields"], "91": 4_000_000_000}}
    calls: Counter[str] = Counter()
    (vitals,) = read(opened(node, calls)).vitals
    assert len(vitals.links) == 36
    assert calls["nvmlDeviceGetFieldValues"] < 10


def test_an_answer_that_does_not_fit_costs_one_field_of_one_link() -> None:
    vitals = answering("h100", fields={"163,5": -1.5, "163,6": 7})
    assert [link.crc_errors for link in vitals.links[4:8]] == [0, -1, 7, 0]


def test_who_may_not_see_the_sram_threshold_says_so() -> None:
    call = "nvmlDeviceGetSramEccErrorStatus"
    _, vitals = first("h100", Refused(kind="refused", gpu=0, return_code=4, call=call))
    assert vitals.unavailable["sram_threshold_exceeded"] == "no_permission"
    assert vitals.ecc_sram_uncorrected == 0


def test_what_the_library_lacks_is_listed() -> None:
    snapshot = simulator.snapshot(simulator.Node("old", "a100-80", driver="470.256.02", gpus=1))
    assert "nvmlDeviceGetMemoryInfo_v2" in snapshot.missing_symbols
    assert "nvmlDeviceGetRepairStatus" in snapshot.missing_symbols
    assert snapshot.missing_symbols == tuple(sorted(snapshot.missing_symbols))
    assert simulator.snapshot(simulator.Node("new", "gb200")).missing_symbols == ()


# --- in few calls ---------------------------------------------------------------------------


@pytest.mark.parametrize(("profile", "batches"), [("h100", 4), ("b200", 5), ("t4", 3)])
def test_all_links_of_a_gpu_take_two_or_three_calls(
    profile: str, batches: int, opened: Callable[..., Reader]
) -> None:
    calls: Counter[str] = Counter()
    reader = opened(simulator.Node("one", profile, gpus=1), calls)
    read(reader)
    calls.clear()
    reader.read_slow()
    # One for the inventory and one for the vitals of the board itself.
    assert calls["nvmlDeviceGetFieldValues"] == batches
    assert calls["nvmlDeviceGetNvLinkState"] == (profile == "t4")
    assert calls["nvmlDeviceGetNvLinkRemoteDeviceType"] == 0
    assert sum(calls.values()) < 60


def test_what_a_link_leads_to_is_asked_again_where_it_was_down(
    opened: Callable[..., Reader],
) -> None:
    node = simulator.Node("one", "h100", gpus=1)
    far = "nvmlDeviceGetNvLinkRemoteDeviceType"
    states = [0] + [1] * 17
    board = node.gpus[0]
    whole = dict(board.answers)
    board.answers = {
        **whole,
        far: [{"error": 3}] + [2] * 17,
        "fields": {**whole["fields"], "165,0": states[0]},
    }
    calls: Counter[str] = Counter()
    reader = opened(node, calls)
    assert read(reader).vitals[0].links[0].unavailable["remote"] == "not_supported"
    board.answers = whole
    calls.clear()
    assert read(reader).vitals[0].links[0].remote == "switch"
    assert calls[far] == 1


def test_what_has_not_changed_is_the_same_object(opened: Callable[..., Reader]) -> None:
    node = simulator.Node("two", "h100", gpus=2)
    reader = opened(node)
    before = read(reader)
    node.faults = [NvlinkErrors(kind="nvlink_errors", gpu=1, error="crc", links=(4,), count=1)]
    after = read(reader)
    assert after.vitals[0] is before.vitals[0]
    assert after.vitals[1] is not before.vitals[1]
    pairs = list(zip(before.vitals[1].links, after.vitals[1].links, strict=True))
    assert [index for index, (old, new) in enumerate(pairs) if old is not new] == [4]


# --- GPUs in trouble ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (Lost(kind="lost", gpu=1), "gpu_lost"),
        (fault(kind="unreadable", gpu=1), "error(999)"),
        (fault(kind="no_permission", gpu=1), "no_permission"),
        (Refused(kind="refused", gpu=1, return_code=999), "error(999)"),
        (Refused(kind="refused", gpu=1, return_code=15), "gpu_lost"),
    ],
)
def test_a_gpu_in_trouble_has_vitals_without_readings_and_hides_no_other(
    trouble: Any, reason: str
) -> None:
    snapshot = simulator.snapshot(simulator.Node("four", "h100", gpus=4, faults=[trouble]))
    assert [v.index for v in snapshot.vitals] == [0, 1, 2, 3]
    ill = snapshot.vitals[1]
    assert snapshot.gpus[1].state in {"lost", "unreadable"}
    assert {getattr(ill, name) for name in VITALS_READINGS} == {None}
    assert ill.unavailable == dict.fromkeys((*VITALS_READINGS, "links"), reason)
    assert all(v.pcie_replays is not None for v in snapshot.vitals if v is not ill)


def test_a_gpu_that_vanished_keeps_its_place(opened: Callable[..., Reader]) -> None:
    node = simulator.Node("four", "h100", gpus=4)
    reader = opened(node)
    before = read(reader)
    node.faults = [Vanished(kind="vanished", gpu=1)]
    assert read(reader).gpus[1].state == "lost"
    reader.close()
    reader.open()
    after = read(reader)
    assert (after.gpu_count, after.gpu_count_expected) == (3, 4)
    assert after.gpus[3].uuid == before.gpus[1].uuid
    assert [v.index for v in after.vitals] == [0, 1, 2, 3]
    assert after.vitals[3].unavailable["pcie_replays"] == "gpu_lost"
    reader.close()
    node.faults = ()
    reader.open()
    assert read(reader).gpu_count == 4


def test_between_two_generations_and_after_a_failure_they_stay_aligned(
    opened: Callable[..., Reader],
) -> None:
    node = simulator.Node("two", "h100", gpus=2)
    reader = opened(node)
    known = read(reader)
    failing = reader.failed(NvmlUnavailable(18, "nvmlInit"))
    assert len(failing.vitals) == len(failing.gpus) == 2
    assert failing.vitals[0].unavailable["links"] == "error(18)"
    assert known.vitals[0].pcie_replays == 150
    node.faults = [WholeNode(kind="driver_not_loaded")]
    assert simulator.snapshot(node).vitals == ()


# --- faults ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "keys", "shown"),
    [
        ("h100", {"kind": "ecc", "uncorrected": 5}, {"ecc_dram_uncorrected": 5}),
        ("h100", {"kind": "ecc", "uncorrected": 5}, {"ecc_dram_uncorrected_lifetime": 5}),
        (
            "t4",
            {"kind": "ecc", "uncorrected": 0, "corrected_lifetime": 40},
            {"ecc_dram_corrected": 0, "ecc_dram_corrected_lifetime": 41},
        ),
        (
            "h100",
            {"kind": "ecc", "location": "sram", "uncorrected": 2, "corrected": 3},
            {"ecc_sram_uncorrected": 2, "ecc_sram_corrected": 3, "ecc_dram_uncorrected": 0},
        ),
        ("h100", {"kind": "sram_threshold"}, {"sram_threshold_exceeded": True}),
        (
            "h100",
            {"kind": "row_remap", "corrected": 2, "uncorrected": 3},
            {"row_remaps_corrected": 2, "row_remaps_uncorrected": 3},
        ),
        (
            "h100",
            {"kind": "remap_exhausted", "banks": 4},
            {"remap_banks_none": 4, "remap_banks_full": 2556},
        ),
        ("h100", {"kind": "remap_exhausted", "left": "low"}, {"remap_banks_low": 1}),
        (
            "t4",
            {"kind": "retired_pages", "uncorrected": 60, "pending": True},
            {"retired_pages_uncorrected": 60, "retired_pages_pending": True},
        ),
        (
            "h100",
            {"kind": "repair_pending", "tpc": True},
            {"channel_repair_pending": True, "tpc_repair_pending": True},
        ),
        ("gb200", {"kind": "unrepairable_memory"}, {"unrepairable_memory": True}),
        ("h100", {"kind": "temperature", "celsius": 89}, {"temperature_margin_celsius": -2}),
        ("h100", {"kind": "temperature", "margin": 3}, {"temperature_margin_celsius": 3}),
        ("h100", {"kind": "pcie_replays", "count": 9, "per_second": 0}, {"pcie_replays": 159}),
        (
            "h100",
            {"kind": "pcie_errors", "error": "fatal", "count": 1, "per_second": 0},
            {"pcie_fatal_errors": 1},
        ),
        ("h100", {"kind": "throttle"}, {"slowed_by_power_cap_seconds": 7015.662857}),
        # What a board or its driver does not report, a fault does not give it.
        ("h100", {"kind": "retired_pages"}, {"retired_pages_uncorrected": None}),
        ("t4", {"kind": "row_remap"}, {"row_remaps_uncorrected": None}),
        ("h100", {"kind": "unrepairable_memory"}, {"unrepairable_memory": None}),
        ("rtx4090", {"kind": "ecc"}, {"ecc_dram_uncorrected": None}),
        ("h100", {"kind": "nvlink_ber"}, {"pcie_replays": 150}),
    ],
)
def test_a_fault_shows_in_the_vitals(
    profile: str, keys: dict[str, object], shown: dict[str, object]
) -> None:
    _, vitals = first(profile, fault(**keys), clock=lambda: 1_000.0)
    assert {name: getattr(vitals, name) for name in shown} == shown


@pytest.mark.parametrize(
    ("profile", "keys", "shown"),
    [
        ("h100", {"kind": "ecc", "uncorrected": 5}, {"ecc_uncorrected_volatile": 5}),
        ("h100", {"kind": "row_remap", "failure": True}, {"row_remap_failure": True}),
        ("h100", {"kind": "temperature", "celsius": 89}, {"temperature_celsius": 89}),
        ("h100", {"kind": "temperature", "margin": 3}, {"temperature_celsius": 84}),
        ("t4", {"kind": "temperature", "celsius": 95}, {"temperature_celsius": 95}),
        (
            "h100",
            {"kind": "memory_temperature", "celsius": 99},
            {"memory_temperature_celsius": 99},
        ),
        ("h100", {"kind": "power_brake"}, {"throttle_reasons": ("hw_slowdown", "hw_power_brake")}),
        ("h100", {"kind": "throttle", "now": False}, {"throttle_reasons": ()}),
        ("h100", {"kind": "throttle", "reasons": ("sw_power_cap",)}, {"throttle_reasons": ()}),
        ("h100", {"kind": "pcie_link", "width": 4}, {"pcie_width_current": 4}),
        (
            "h100",
            {"kind": "pcie_link", "generation": 1},
            {"pcie_generation_current": 1, "pcie_width_current": 16},
        ),
        ("h100", {"kind": "nvlink_down", "links": (0, 7)}, {"nvlink_active": 16}),
        ("gb200", {"kind": "fabric", "health": "unhealthy"}, {"fabric_health": "unhealthy"}),
        ("h100", {"kind": "fabric", "state": "in_progress"}, {"fabric_state": "in_progress"}),
        ("h100", {"kind": "fabric", "status": 999}, {"fabric_status": "error(999)"}),
        ("h100", {"kind": "mig_pending"}, {"mig_mode_current": False, "mig_mode_pending": True}),
        ("h100", {"kind": "ecc_pending"}, {"ecc_mode_current": True, "ecc_mode_pending": False}),
        ("h100", {"kind": "persistence_off"}, {"persistence_mode": False}),
        ("h100", {"kind": "recovery_action", "action": 2}, {"recovery_action": "node_reboot"}),
        ("h200", {"kind": "recovery_action", "action": 2}, {"recovery_action": None}),
    ],
)
def test_a_fault_shows_in_the_inventory(
    profile: str, keys: dict[str, object], shown: dict[str, object]
) -> None:
    for load in (0.0, 0.7):
        gpu, _ = first(profile, fault(**keys), load=load, clock=lambda: 1_000.0)
        assert {name: getattr(gpu, name) for name in shown} == shown


def test_faults_of_links_show_on_those_links() -> None:
    faults = [
        NvlinkDown(kind="nvlink_down", gpu=0, links=(0,), state="sleep"),
        fault(kind="nvlink_errors", error="crc", links=(2,), count=5, per_second=0),
        fault(kind="nvlink_errors", error="replay", count=1, per_second=0),
    ]
    _, vitals = first("h100", *faults)
    assert [link.state for link in vitals.links[:2]] == ["sleep", "active"]
    assert [link.crc_errors for link in vitals.links[:4]] == [0, 0, 5, 0]
    assert {link.replay_errors for link in vitals.links} == {1}
    _, fifth = first("b200", fault(kind="nvlink_ber", links=(1,), mantissa=3, exponent=7))
    assert fifth.links[1].effective_ber == 3e-7
    assert fifth.links[1].symbol_ber == fifth.links[0].effective_ber == pytest.approx(15e-255)


def test_counters_grow_with_the_node_s_clock_from_when_the_fault_appears(
    opened: Callable[..., Reader],
) -> None:
    now = 1_000.0
    node = simulator.Node("one", "h100", gpus=1, clock=lambda: now)
    reader = opened(node)
    now = 2_000.0
    growing = [
        Throttle(kind="throttle", gpu=0, reasons=("hw_thermal_slowdown",), share=0.25),
        fault(kind="pcie_replays", per_second=2.5),
        fault(kind="nvlink_errors", error="crc", links=(4,), per_second=0.5),
    ]
    node.faults = growing

    def grown() -> tuple[object, ...]:
        (vitals,) = read(reader).vitals
        link = vitals.links[4]
        return vitals.slowed_by_hw_thermal_seconds, vitals.pcie_replays, link.crc_errors

    assert grown() == (0.0, 150, 0)
    now = 2_010.0
    # Another fault does not make these begin anew.
    node.faults = [*growing, Ecc(kind="ecc", gpu=0)]
    assert grown() == (2.5, 175, 5)
    node.faults = ()
    assert grown() == (0.0, 150, 0)


def test_a_getter_and_a_field_value_of_one_reading_agree() -> None:
    faults = [
        fault(kind="pcie_replays", count=3, per_second=0),
        fault(kind="row_remap", corrected=4),
        fault(kind="nvlink_down", links=(3,)),
        fault(kind="nvlink_errors", error="crc", links=(3,), count=6, per_second=0),
    ]
    (handle,) = _handles(simulator.Node("one", "h100", gpus=1, faults=faults))

    def value(number: int, scope: int = 0) -> int:
        (answer,) = pynvml.nvmlDeviceGetFieldValues(handle, [(number, scope)])
        assert answer.nvmlReturn == 0
        return int(answer.value.uiVal)

    assert pynvml.nvmlDeviceGetPcieReplayCounter(handle) == value(94) == 153
    assert pynvml.nvmlDeviceGetRemappedRows(handle) == tuple(value(n) for n in range(142, 146))
    assert pynvml.nvmlDeviceGetNvLinkState(handle, 3) == value(165, 3) == 0
    assert pynvml.nvmlDeviceGetNvLinkErrorCounter(handle, 3, 2) == value(163, 3) == 6
    simulator.uninstall()


def test_retired_pages_have_addresses_in_both_versions() -> None:
    pages = fault(kind="retired_pages", uncorrected=2)
    (handle,) = _handles(simulator.Node("one", "t4", gpus=1, faults=[pages]))
    addresses = pynvml.nvmlDeviceGetRetiredPages(handle, 1)
    assert len(set(addresses)) == 2
    newer = pynvml.nvmlDeviceGetRetiredPages_v2(handle, 1)
    assert [page["address"] for page in newer] == addresses
    assert pynvml.nvmlDeviceGetRetiredPages(handle, 0) == []
    simulator.uninstall()


def test_a_temperature_is_told_in_one_way() -> None:
    with pytest.raises(ValidationError, match="either celsius or margin"):
        Temperature(kind="temperature", gpu=0, celsius=80, margin=3)


def test_a_link_and_vitals_from_elsewhere_have_a_reason_for_every_null() -> None:
    assert Link(index=0).unavailable == dict.fromkeys(LINK_READINGS, "not_reported")
    assert Vitals(index=0).unavailable == dict.fromkeys(VITALS_READINGS, "not_reported")

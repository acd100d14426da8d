"""The simulated library as any user of the binding meets it, and the fleet file."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pynvml
import pytest

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.model import Gpu
from mcp_gpu.gpu.simulator import fleet as fleet_module
from mcp_gpu.gpu.simulator.faults import Fault, Hang, Lost, MissingSymbol, NoPermission, Xid


@pytest.fixture(autouse=True)
def _no_machine_is_left() -> Iterator[None]:
    yield
    simulator.uninstall()


def opened(node: simulator.Node) -> list[object]:
    """Handles of all GPUs, as a foreign program would get them."""
    simulator.install(node)
    pynvml.nvmlInit()
    return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]


def code_of(function: object, *args: object) -> int:
    with pytest.raises(pynvml.NVMLError) as caught:
        function(*args)  # type: ignore[operator]
    return int(caught.value.value)


def field(handle: object, field_id: int, scope: int = 0) -> tuple[int, int]:
    """(return code, signed value) of one field value."""
    (value,) = pynvml.nvmlDeviceGetFieldValues(handle, [(field_id, scope)])
    return value.nvmlReturn, value.value.siVal


# --- the library ----------------------------------------------------------------------------


def test_nothing_answers_before_initialisation() -> None:
    simulator.install(simulator.Node("one", "t4", gpus=1))
    assert code_of(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_UNINITIALIZED


def test_what_is_no_handle_is_an_invalid_argument() -> None:
    opened(simulator.Node("one", "t4", gpus=1))
    assert code_of(pynvml.nvmlDeviceGetName, None) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert code_of(pynvml.nvmlDeviceGetHandleByIndex, 1) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_a_function_nobody_wrote_answers_not_supported() -> None:
    (handle,) = opened(simulator.Node("one", "t4", gpus=1))
    for function in (pynvml.nvmlDeviceGetEncoderUtilization, pynvml.nvmlDeviceGetGpuOperationMode):
        assert code_of(function, handle) == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_gpus_are_found_by_uuid_and_by_bus_id() -> None:
    handles = opened(simulator.Node("two", "h100", gpus=2))
    uuid = pynvml.nvmlDeviceGetUUID(handles[1])
    bus_id = pynvml.nvmlDeviceGetPciInfo_v3(handles[1]).busId
    assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(uuid)) == 1
    assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByPciBusId(bus_id)) == 1


def test_a_struct_of_the_wrong_version_is_refused() -> None:
    (handle,) = opened(simulator.Node("one", "h100", gpus=1))
    code = code_of(pynvml.nvmlDeviceGetMemoryInfo, handle, 2)
    assert code == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH


def test_memory_of_version_1_counts_the_reserved_part_as_used() -> None:
    (handle,) = opened(simulator.Node("one", "h100", gpus=1))
    old = pynvml.nvmlDeviceGetMemoryInfo(handle)
    new = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    assert old.used == new.used + new.reserved


def test_binary_guids_are_what_breaks_the_binding_s_own_attribute() -> None:
    (handle,) = opened(simulator.Node("one", "gb200", gpus=1))
    info = pynvml.c_nvmlPlatformInfo_v2_t()
    pynvml.nvmlDeviceGetPlatformInfo(handle, pynvml.byref(info))
    with pytest.raises(UnicodeDecodeError):
        _ = info.ibGuid


def test_a_defect_in_an_implementation_is_an_error_code_not_a_crash(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = simulator.Node("one", "h100", gpus=1)
    (handle,) = opened(node)
    node.gpus[0].answers = {**node.gpus[0].answers, "nvmlDeviceGetBrand": "not a number"}
    assert code_of(pynvml.nvmlDeviceGetBrand, handle) == pynvml.NVML_ERROR_UNKNOWN
    assert "nvmlDeviceGetBrand" in caplog.text


def test_idle_processes_are_an_empty_list() -> None:
    (handle,) = opened(simulator.Node("one", "h100", gpus=1))
    assert pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle) == []


def test_processes_come_in_two_steps_and_memory_may_be_unknown() -> None:
    node = simulator.Node("one", "h100", gpus=1)
    (handle,) = opened(node)
    call = "nvmlDeviceGetComputeRunningProcesses_v3"
    node.gpus[0].answers = {**node.gpus[0].answers, call: [[7, 1 << 30], [8, None]]}
    running = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    assert [(p.pid, p.usedGpuMemory) for p in running] == [(7, 1 << 30), (8, None)]


# --- what real boards do --------------------------------------------------------------------


def test_old_boards_have_absolute_thresholds_and_new_ones_a_limit_to_count_from() -> None:
    (t4,) = opened(simulator.Node("one", "t4", gpus=1))
    thresholds = [pynvml.nvmlDeviceGetTemperatureThreshold(t4, kind) for kind in (0, 1, 3)]
    assert thresholds == [96, 93, 85]
    assert field(t4, pynvml.NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT)[0] == 3
    (h100,) = opened(simulator.Node("one", "h100", gpus=1))
    assert code_of(pynvml.nvmlDeviceGetTemperatureThreshold, h100, 0) == 3
    assert field(h100, pynvml.NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT) == (0, -8)
    assert pynvml.nvmlDeviceGetMarginTemperature(h100) == 58


def test_healthy_h100s_have_replays_and_a_power_cap_counter() -> None:
    handles = opened(simulator.Node("eight", "h100"))
    replays = [pynvml.nvmlDeviceGetPcieReplayCounter(handle) for handle in handles]
    assert (min(replays), max(replays)) == (106, 174)
    (value,) = pynvml.nvmlDeviceGetFieldValues(
        handles[0], [pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP]
    )
    assert value.value.ullVal == 7_015_662_857_000


@pytest.mark.parametrize("profile", ["t4", "l40s"])
def test_some_clouds_give_half_the_lanes(profile: str) -> None:
    gpu = simulator.snapshot(simulator.Node("one", profile, gpus=1)).gpus[0]
    assert (gpu.pcie_width_current, gpu.pcie_width_max) == (8, 16)


def test_past_the_last_link_the_driver_refuses_the_argument() -> None:
    (handle,) = opened(simulator.Node("one", "gb200", gpus=1))
    assert pynvml.nvmlDeviceGetNvLinkState(handle, 17) == 1
    assert code_of(pynvml.nvmlDeviceGetNvLinkState, handle, 18) == 2


def test_drivers_from_580_deprecate_the_display_mode() -> None:
    (new,) = opened(simulator.Node("one", "h100", gpus=1))
    assert code_of(pynvml.nvmlDeviceGetDisplayMode, new) == pynvml.NVML_ERROR_DEPRECATED
    (old,) = opened(simulator.Node("one", "h100", gpus=1, driver="570.86.15"))
    assert pynvml.nvmlDeviceGetDisplayMode(old) == 1


@pytest.mark.parametrize("name", simulator.shipped_profiles())
def test_every_profile_names_its_source_and_what_is_not_verified(name: str) -> None:
    profile = simulator.load_profile(name)
    assert profile["source"]
    assert profile["unverified"]
    bus_ids = {gpu["nvmlDeviceGetPciInfo_v3"]["busId"] for gpu in profile["gpus"]}
    assert len(bus_ids) == len(profile["gpus"])
    memory = profile["gpu"]["nvmlDeviceGetMemoryInfo_v2"]
    assert memory["total"] == memory["reserved"] + memory["used"] + memory["free"]


# --- time, seed, faults ---------------------------------------------------------------------


def reading_at(seconds: float, *, seed: int = 0) -> Gpu:
    node = simulator.Node("one", "h100", gpus=1, load=0.6, seed=seed, clock=lambda: seconds)
    return simulator.snapshot(node, clock=lambda: seconds).gpus[0]


def test_readings_move_with_time_and_are_the_same_for_the_same_time() -> None:
    now, later = reading_at(1_800_000_000), reading_at(1_800_000_030)
    assert reading_at(1_800_000_000) == now
    assert now.power_draw_watts != later.power_draw_watts
    assert (later.energy_joules or 0) > (now.energy_joules or 0)
    assert 0 < (now.utilization_gpu_percent or 0) <= 100


def test_the_seed_and_the_name_make_the_identity() -> None:
    assert reading_at(0).uuid == reading_at(0).uuid
    assert reading_at(0).uuid != reading_at(0, seed=1).uuid


def test_a_hang_ends_when_its_fault_is_lifted() -> None:
    node = simulator.Node("one", "h100", gpus=1)
    (handle,) = opened(node)
    node.faults = [Hang(kind="hang", seconds=600, call="nvmlDeviceGet*Usage")]
    entered = threading.Event()
    node.on_call = entered.set
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(pynvml.nvmlDeviceGetPowerUsage(handle)))
    thread.start()
    assert entered.wait(20)
    assert answers == []
    node.faults = ()
    thread.join(20)
    assert answers == [68_570]


def test_other_calls_pass_while_one_hangs() -> None:
    node = simulator.Node("two", "h100", gpus=2)
    handles = opened(node)
    node.faults = [Hang(kind="hang", gpu=0, seconds=600, call="nvmlDeviceGetPowerUsage")]
    assert pynvml.nvmlDeviceGetTemperatureV(handles[0], 0) == 29
    assert pynvml.nvmlDeviceGetPowerUsage(handles[1]) == 68_570


def test_a_symbol_can_go_missing_after_it_was_used() -> None:
    node = simulator.Node("one", "h100", gpus=1)
    (handle,) = opened(node)
    assert pynvml.nvmlDeviceGetSerial(handle)
    node.faults = [MissingSymbol(kind="missing_symbol", call="nvmlDeviceGetSerial")]
    assert code_of(pynvml.nvmlDeviceGetSerial, handle) == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    node.faults = ()
    assert pynvml.nvmlDeviceGetSerial(handle)


def test_a_gpu_without_permission_is_still_counted() -> None:
    simulator.install(
        simulator.Node("two", "h100", gpus=2, faults=[NoPermission(kind="no_permission", gpu=1)])
    )
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 2
    assert code_of(pynvml.nvmlDeviceGetHandleByIndex, 1) == pynvml.NVML_ERROR_NO_PERMISSION


def test_an_xid_reaches_whoever_registered_for_it() -> None:
    node = simulator.Node("two", "h100", gpus=2)
    handles = opened(node)
    event_set = pynvml.nvmlEventSetCreate()
    for handle in handles:
        pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, event_set)
    assert code_of(pynvml.nvmlEventSetWait_v2, event_set, 1) == pynvml.NVML_ERROR_TIMEOUT
    node.faults = [Xid(kind="xid", gpu=1, xid=94)]
    event = pynvml.nvmlEventSetWait_v2(event_set, 20_000)
    assert (event.eventType, event.eventData) == (pynvml.nvmlEventTypeXidCriticalError, 94)
    assert pynvml.nvmlDeviceGetUUID(event.device) == pynvml.nvmlDeviceGetUUID(handles[1])
    assert event.gpuInstanceId == 0xFFFFFFFF
    pynvml.nvmlEventSetFree(event_set)
    assert code_of(pynvml.nvmlEventSetFree, event_set) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_nvml_tells_nothing_that_is_past() -> None:
    node = simulator.Node("one", "h100", gpus=1, faults=[Xid(kind="xid", gpu=0, xid=94)])
    (handle,) = opened(node)
    event_set = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, event_set)
    node.faults = [Xid(kind="xid", gpu=0, xid=94, seconds_ago=60)]
    assert code_of(pynvml.nvmlEventSetWait_v2, event_set, 1) == pynvml.NVML_ERROR_TIMEOUT


def test_a_node_has_a_kernel_log_from_its_boot_on() -> None:
    noon = 1_790_000_000.0
    node = simulator.Node("one", "h100", gpus=2, driver="580.105.08", clock=lambda: noon)
    node.faults = [
        Xid(kind="xid", gpu=1, xid=31, pid=42, process="python3", text="Ch 8", seconds_ago=60),
        Xid(kind="xid", gpu=1, xid=79, count=2),
        Xid(kind="xid", gpu=0, xid=13, sources=("nvml",)),
    ]
    reader = node.kernel_log.open()
    os.set_blocking(reader, True)
    with open(reader, encoding="ascii") as log:
        loaded, fault, *fallen = [log.readline().rstrip() for _ in range(4)]
    assert loaded == "3,0,0,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.105.08"
    head, _, message = fault.partition(";")
    assert message == "NVRM: Xid (PCI:0000:64:00): 31, pid=42, name=python3, Ch 8"
    microseconds = int(head.split(",")[2])
    assert [line.partition(";")[2] for line in fallen] == [
        "NVRM: Xid (PCI:0000:64:00): 79, pid='<unknown>', name=<unknown>, simulated"
    ] * 2
    assert [line.split(",")[1] for line in fallen] == ["2", "3"]
    now = int(fallen[0].split(",")[2])
    assert now - microseconds == 60_000_000


def test_who_reads_a_kernel_log_too_late_misses_what_was_overwritten() -> None:
    node = simulator.Node("one", "t4", gpus=1)
    node.faults = [Xid(kind="xid", gpu=0, xid=45, count=20_000)]
    reader = node.kernel_log.open()
    os.set_blocking(reader, True)
    with open(reader, encoding="ascii") as log:
        numbers = [int(log.readline().split(",")[1]) for _ in range(16_384)]
    assert numbers == list(range(20_001 - 16_384, 20_001))


def test_an_event_type_the_board_lacks_registers_nothing() -> None:
    node = simulator.Node("one", "t4", gpus=1)
    (handle,) = opened(node)
    event_set = pynvml.nvmlEventSetCreate()
    assert code_of(pynvml.nvmlDeviceRegisterEvents, handle, 0x8 | 0x100, event_set) == 3
    node.faults = [Xid(kind="xid", gpu=0, xid=48)]
    assert code_of(pynvml.nvmlEventSetWait_v2, event_set, 1) == pynvml.NVML_ERROR_TIMEOUT


# --- fleets ---------------------------------------------------------------------------------


def test_the_demo_fleet_is_the_one_promised() -> None:
    fleet = simulator.default_fleet()
    shape = {name: (node.profile, len(node.gpus)) for name, node in fleet.nodes.items()}
    assert shape == {
        "h100-a": ("h100", 8),
        "h100-b": ("h100", 8),
        "gb200-a": ("gb200", 4),
        "t4-a": ("t4", 1),
        "l40s-a": ("l40s", 4),
    }
    (lost,) = [gpu for gpu in simulator.snapshot(fleet.node("h100-b")).gpus if gpu.state == "lost"]
    assert lost.uuid is not None, "an agent that was there before knows which GPU it was"
    uuids = {gpu.answer("nvmlDeviceGetUUID") for node in fleet.nodes.values() for gpu in node.gpus}
    assert len(uuids) == 25


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_group_of_nodes_is_numbered_and_its_options_reach_the_gpus(tmp_path: Path) -> None:
    path = written(
        tmp_path / "fleet.toml",
        """
        seed = 7
        [[nodes]]
        name = "train"
        profile = "a100-80"
        count = 3
        gpus = 2
        driver = "550.54.15"
        load = 0.0
        [[nodes.mig]]
        gpu = 1
        profile = "1g.10gb"
        count = 7
        """,
    )
    fleet = simulator.load_fleet(path)
    assert list(fleet.nodes) == ["train-1", "train-2", "train-3"]
    snapshot = simulator.snapshot(fleet.node("train-2"))
    assert (snapshot.driver_version, snapshot.cuda_version) == ("550.54.15", "12.4")
    assert [len(gpu.mig_devices) for gpu in snapshot.gpus] == [0, 7]
    with pytest.raises(simulator.FleetError, match="no node 'train', only train-1"):
        fleet.node("train")


NODE = '[[nodes]]\nname = "a"\nprofile = "h100"\n'


def test_faults_of_a_board_come_from_the_file(tmp_path: Path) -> None:
    path = written(
        tmp_path / "fleet.toml",
        """
        [[nodes]]
        name = "a"
        profile = "h100"
        [[nodes.faults]]
        kind = "throttle"
        gpu = 0
        reasons = ["hw_thermal_slowdown"]
        share = 0.1
        [[nodes.faults]]
        kind = "nvlink_down"
        gpu = 1
        links = [2, 3]
        """,
    )
    snapshot = simulator.snapshot(simulator.load_fleet(path).node("a"))
    assert snapshot.gpus[0].throttle_reasons == ("hw_thermal_slowdown",)
    assert [gpu.nvlink_active for gpu in snapshot.gpus[:3]] == [18, 16, 18]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("nodes = [", "at end of document"),
        ("[[nodes]]\nname = 'a'\n", r"nodes\[0\].profile: Field required"),
        ("[[nodes]]\nname = 'a'\nprofile = 'h1000'\n", r"nodes\[0\].profile: no profile 'h1000'"),
        (NODE + "gpus = 9\n", r"nodes\[0\].gpus: profile 'h100' describes 8 GPUs"),
        (NODE + NODE, r"nodes\[1\].name: 'a' is taken"),
        (
            "[[nodes]]\nname = '*'\nprofile = 'h100'\ncount = 2\n",
            r"nodes\[0\].count: '\*' is every node without a group",
        ),
        (2 * "[[nodes]]\nname = '*'\nprofile = 'h100'\n", r"nodes\[1\].name: '\*' is taken"),
        (NODE + "colour = 1\n", r"nodes\[0\].colour: Extra inputs"),
        (NODE + "[[nodes.faults]]\nkind = 'rust'\n", r"nodes\[0\].faults\[0\]: .*'rust'"),
        (NODE + "[[nodes.faults]]\nkind = 'lost'\n", r"nodes\[0\].faults\[0\].gpu: Field required"),
        (
            NODE + "[[nodes.faults]]\nkind = 'lost'\ngpu = 8\n",
            r"nodes\[0\].faults\[0\].gpu: a has 8 GPUs",
        ),
        (
            NODE + "[[nodes.faults]]\nkind = 'temperature'\ngpu = 0\n",
            r"nodes\[0\].faults\[0\]: .*either celsius or margin",
        ),
        (
            NODE + "[[nodes.faults]]\nkind = 'nvlink_down'\ngpu = 0\nlinks = [36]\n",
            r"nodes\[0\].faults\[0\].links\[0\]: Input should be less than 36",
        ),
        (NODE + "[[nodes.mig]]\ngpu = 0\nprofile = '9g'\n", r"nodes\[0\].mig\[0\]: .*1g.10gb"),
    ],
)
def test_a_bad_fleet_file_is_refused_with_its_place(text: str, place: str, tmp_path: Path) -> None:
    path = written(tmp_path / "fleet.toml", text)
    with pytest.raises(simulator.FleetError, match=place) as caught:
        simulator.load_fleet(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_fleet_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(simulator.FleetError, match=r"nowhere\.toml"):
        simulator.load_fleet(tmp_path / "nowhere.toml")


def test_faults_are_taken_from_the_file_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fleet_module, "CHECK_SECONDS", 0.0)
    path = written(tmp_path / "fleet.toml", NODE)
    node = simulator.load_fleet(path).node("a")
    handles = opened(node)

    def rewrite(text: str) -> None:
        path.write_text(text)
        # Two writes within one tick of the file system's clock would look like one.
        rewrite.ticks += 1  # type: ignore[attr-defined]
        os.utime(path, (rewrite.ticks, rewrite.ticks))  # type: ignore[attr-defined]

    rewrite.ticks = 1_000  # type: ignore[attr-defined]
    assert pynvml.nvmlDeviceGetPowerUsage(handles[2])
    rewrite(NODE + "[[nodes.faults]]\nkind = 'lost'\ngpu = 2\n")
    assert code_of(pynvml.nvmlDeviceGetPowerUsage, handles[2]) == pynvml.NVML_ERROR_GPU_IS_LOST
    rewrite("nonsense")
    assert code_of(pynvml.nvmlDeviceGetPowerUsage, handles[2]) == pynvml.NVML_ERROR_GPU_IS_LOST
    assert caplog.text.count("fleet file ignored") == 1
    path.unlink()
    assert code_of(pynvml.nvmlDeviceGetPowerUsage, handles[2]) == pynvml.NVML_ERROR_GPU_IS_LOST
    rewrite(NODE)
    assert pynvml.nvmlDeviceGetPowerUsage(handles[2])
    assert node.faults == ()


ANY = '[[nodes]]\nname = "*"\nprofile = "t4"\n'


def test_a_group_named_star_is_every_node_without_a_group_of_its_own(tmp_path: Path) -> None:
    fleet = simulator.load_fleet(written(tmp_path / "fleet.toml", NODE + ANY + "gpus = 2\n"))
    assert list(fleet.nodes) == ["a"]
    assert fleet.node("a").profile == "h100"
    one, other = fleet.node("ip-10-0-0-81"), fleet.node("ip-10-0-0-236")
    assert [(node.profile, len(node.gpus)) for node in (one, other)] == [("t4", 2)] * 2
    assert fleet.node("ip-10-0-0-81") is one
    uuids = {gpu.answer("nvmlDeviceGetUUID") for node in (one, other) for gpu in node.gpus}
    assert len(uuids) == 4


def test_faults_of_the_star_group_reach_its_nodes_while_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "CHECK_SECONDS", 0.0)
    path = written(tmp_path / "fleet.toml", NODE + ANY)
    fleet = simulator.load_fleet(path)
    handle = opened(fleet.node("anywhere"))[0]
    assert pynvml.nvmlDeviceGetPowerUsage(handle)
    written(path, NODE + ANY + "[[nodes.faults]]\nkind = 'lost'\ngpu = 0\n")
    os.utime(path, (1_000, 1_000))
    assert code_of(pynvml.nvmlDeviceGetPowerUsage, handle) == pynvml.NVML_ERROR_GPU_IS_LOST
    assert fleet.node("a").faults == ()


def test_faults_set_by_hand_outlast_a_file_that_does_not_change(tmp_path: Path) -> None:
    node = simulator.load_fleet(written(tmp_path / "fleet.toml", NODE)).node("a")
    node.faults = [Lost(kind="lost", gpu=0)]
    assert simulator.snapshot(node).gpus[0].state == "lost"


def test_a_thousand_snapshots_have_names_and_identities_of_their_own() -> None:
    nodes = simulator.default_fleet().nodes.values()
    made = list(simulator.snapshots(nodes, 1000))
    assert len({name for name, _ in made}) == 1000
    uuids = [gpu.uuid for _, snapshot in made for gpu in snapshot.gpus if gpu.uuid]
    assert len(set(uuids)) == len(uuids) == 5000


def test_the_fleet_in_the_docs_loads(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "simulator.md").read_text()
    text = page.partition("```toml\n")[2].partition("```")[0]
    fleet = simulator.load_fleet(written(tmp_path / "fleet.toml", text))
    assert list(fleet.nodes) == ["h100-a", "a100-1", "a100-2", "a100-3"]


def test_the_docs_know_every_fault_and_every_profile() -> None:
    page = (Path(__file__).parents[1] / "docs" / "simulator.md").read_text()
    union = get_args(get_args(Fault)[0])
    kinds = {k for model in union for k in get_args(model.model_fields["kind"].annotation)}
    for name in kinds | set(simulator.shipped_profiles()):
        assert f"`{name}`" in page

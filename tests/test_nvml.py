"""`Nvml` through the real binding: what real boards, old drivers and refusals make of a field."""

import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.errors import Code, NvmlUnavailable, error_name
from mcp_gpu.gpu.fields import bit_list
from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.simulator.faults import (
    Ecc,
    Hang,
    Lost,
    MissingSymbol,
    NoPermission,
    RecoveryAction,
    RowRemap,
    Throttle,
    Unreadable,
    WholeNode,
)

GIB = 1 << 30


def first_gpu(profile: str, **options: object) -> Gpu:
    return simulator.snapshot(simulator.Node("one", profile, gpus=1, **options)).gpus[0]  # type: ignore[arg-type]


def test_the_error_codes_are_the_binding_s_own() -> None:
    theirs = {
        name.removeprefix("NVML_ERROR_"): value
        for name, value in vars(pynvml).items()
        if name.startswith("NVML_ERROR_")
    }
    assert {code.name: code.value for code in Code if code > 0} == theirs
    for value in theirs.values():
        assert f"NVMLError_{error_name(value)}" == pynvml.nvmlExceptionClass(value).__name__


def test_an_idle_h100_reads_as_the_captured_one() -> None:
    gpu = first_gpu("h100")
    assert (gpu.name, gpu.architecture, gpu.compute_capability) == (
        "NVIDIA H100 80GB HBM3",
        "Hopper",
        "9.0",
    )
    assert (gpu.pci_bus_id, gpu.pci_device_id) == ("00000000:53:00.0", "233010DE")
    assert (gpu.power_draw_watts, gpu.power_limit_max_watts) == (68.57, 700.0)
    assert (gpu.temperature_celsius, gpu.memory_temperature_celsius) == (29, 37)
    assert (gpu.nvlink_active, gpu.nvlink_version, gpu.nvlink_speed_mbps) == (18, "4.0", 26562)
    assert (gpu.fabric_state, gpu.fabric_status) == ("completed", "success")
    assert gpu.unavailable["fabric_health"] == "not_supported"
    assert gpu.throttle_reasons == ()
    assert gpu.recovery_action == "none"


def test_used_memory_leaves_out_what_the_driver_reserves() -> None:
    gpu = first_gpu("h100", load=0.5)
    assert gpu.memory_reserved_bytes == 480 << 20
    assert gpu.memory_used_bytes is not None
    assert gpu.memory_used_bytes > GIB
    assert gpu.memory_total_bytes == (
        gpu.memory_reserved_bytes + gpu.memory_used_bytes + (gpu.memory_free_bytes or 0)
    )


def test_a_grace_blackwell_board_tells_its_rack_its_module_and_its_fabric() -> None:
    gpu = first_gpu("gb200")
    assert (gpu.chassis_serial, gpu.slot_number, gpu.tray_index) == ("1820000000001", 14, 4)
    assert (gpu.module_power_limit_watts, gpu.c2c_mode, gpu.addressing_mode) == (
        2500.0,
        True,
        "ats",
    )
    assert (gpu.fabric_clique_id, gpu.fabric_health) == (2, "healthy")
    assert gpu.fabric_cluster_uuid == "00000001-0000-0000-0000-000000000000"


@pytest.mark.parametrize(
    ("profile", "field", "reason"),
    [
        ("t4", "memory_temperature_celsius", "not_supported"),
        ("t4", "row_remap_pending", "not_supported"),
        ("t4", "nvlink_active", "not_supported"),
        ("l4", "memory_temperature_celsius", "not_supported"),
        ("rtx4090", "serial", "not_supported"),
        ("rtx4090", "ecc_mode_current", "not_supported"),
        ("a100-80", "fabric_state", "driver_too_old"),
        ("h200", "recovery_action", "driver_too_old"),
        ("b200", "slot_number", "not_supported"),
    ],
)
def test_what_a_board_or_its_driver_lacks_is_null(profile: str, field: str, reason: str) -> None:
    gpu = first_gpu(profile)
    assert getattr(gpu, field) is None
    assert gpu.unavailable[field] == reason


def test_an_old_driver_still_tells_the_temperature() -> None:
    gpu = first_gpu("h100", driver="535.183.06")
    assert gpu.temperature_celsius == 29
    assert gpu.unavailable["addressing_mode"] == "driver_too_old"


def test_a_struct_of_an_older_version_is_tried_when_the_newest_is_refused() -> None:
    gpu = first_gpu("b200", driver="570.133.20")
    assert gpu.fabric_state == "completed"
    assert gpu.unavailable["fabric_health"] == "driver_too_old"


def test_with_mig_on_a_refusal_says_so_and_the_instances_are_listed() -> None:
    node = simulator.Node("cut", "h100", mig={1: ("1g.10gb", "3g.40gb")})
    plain, cut = simulator.snapshot(node).gpus[:2]
    assert cut.unavailable["utilization_gpu_percent"] == "mig_active"
    assert cut.unavailable["row_remap_pending"] == "mig_active"
    assert [device.profile for device in cut.mig_devices] == ["1g.10gb", "3g.40gb"]
    assert cut.mig_devices[1].multiprocessor_count == 60
    assert cut.mig_devices[0].uuid != cut.mig_devices[1].uuid
    assert (plain.mig_mode_current, plain.mig_devices) == (False, ())
    assert plain.utilization_gpu_percent == 0


def test_one_lost_gpu_hides_none_of_its_siblings() -> None:
    node = simulator.Node("eight", "h100", faults=[Lost(kind="lost", gpu=3)])
    snapshot = simulator.snapshot(node)
    assert [gpu.state for gpu in snapshot.gpus] == ["ok"] * 3 + ["lost"] + ["ok"] * 4
    assert snapshot.gpus[3].unavailable["temperature_celsius"] == "gpu_lost"
    assert "power-cycle" in (snapshot.gpus[3].error or "")
    assert snapshot.gpu_count == 8


@pytest.mark.parametrize(("code", "reason"), [(999, "error(999)"), (17, "error(17)")])
def test_a_gpu_without_a_handle_is_unreadable(code: int, reason: str) -> None:
    fault = Unreadable(kind="unreadable", gpu=0, return_code=code)
    gpu = simulator.snapshot(simulator.Node("one", "h100", faults=[fault])).gpus[0]
    assert (gpu.state, gpu.unavailable["uuid"]) == ("unreadable", reason)


def test_a_gpu_that_may_not_be_opened_says_so() -> None:
    fault = NoPermission(kind="no_permission", gpu=1)
    snapshot = simulator.snapshot(simulator.Node("two", "h100", gpus=2, faults=[fault]))
    assert [gpu.state for gpu in snapshot.gpus] == ["ok", "unreadable"]
    assert snapshot.gpus[1].unavailable["name"] == "no_permission"


def test_faults_of_the_hardware_show_in_the_readings() -> None:
    faults = [
        Ecc(kind="ecc", gpu=0, uncorrected=5),
        RowRemap(kind="row_remap", gpu=0, pending=True, failure=True),
        Throttle(kind="throttle", gpu=0, reasons=("hw_slowdown", "hw_power_brake")),
        RecoveryAction(kind="recovery_action", gpu=0, action=4),
    ]
    gpu = first_gpu("h100", faults=faults)
    assert gpu.ecc_uncorrected_volatile == 5
    assert (gpu.row_remap_pending, gpu.row_remap_failure) == (True, True)
    assert gpu.throttle_reasons == ("hw_slowdown", "hw_power_brake")
    assert gpu.recovery_action == "drain_and_reset"


def test_a_power_cap_is_no_fault() -> None:
    assert first_gpu("rtx4090").throttle_reasons == ()


def test_a_missing_symbol_costs_one_field() -> None:
    fault = MissingSymbol(kind="missing_symbol", call="nvmlDeviceGetSerial")
    gpu = first_gpu("h100", faults=[fault])
    assert [n for n, r in gpu.unavailable.items() if r == "driver_too_old"] == ["serial"]


def test_a_defect_of_the_binding_costs_one_field(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: object, *args: object) -> None:
        raise TypeError("as nvmlDeviceGetRunningProcessDetailList does")

    from mcp_gpu.gpu import nvml

    nvml._function.cache_clear()
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", broken)
    gpu = first_gpu("h100")
    nvml._function.cache_clear()
    assert gpu.unavailable["power_draw_watts"] == "error(-1)"
    assert gpu.temperature_celsius == 29


def test_a_name_that_is_not_utf8_is_still_a_name() -> None:
    node = simulator.Node("odd", "h100", gpus=1)
    gpu = node.gpus[0]
    gpu.answers = {**gpu.answers, "nvmlDeviceGetSerial": "1650\udcff"}
    snapshot = simulator.snapshot(node)
    assert (snapshot.gpus[0].serial or "").startswith("1650")


@pytest.mark.parametrize(
    ("kind", "state", "code", "words"),
    [
        ("library_missing", "absent", 12, "runtimeClassName nvidia"),
        ("driver_not_loaded", "absent", 9, "kernel module is not loaded"),
        ("driver_mismatch", "failing", 18, "Restart this pod"),
        ("device_cgroup", "failing", 999, "cannot reach its GPU devices"),
    ],
)
def test_a_refused_init_says_what_to_do(kind: str, state: str, code: int, words: str) -> None:
    fault = WholeNode(kind=kind)  # type: ignore[arg-type]
    snapshot = simulator.snapshot(simulator.Node("none", "h100", faults=[fault]))
    assert (snapshot.state, snapshot.gpus) == (state, ())
    assert snapshot.failure is not None
    assert snapshot.failure.code == code
    assert words in snapshot.failure.message


def test_no_permission_on_the_control_device_is_a_failure_not_an_absence() -> None:
    node = simulator.Node("none", "h100", faults=[NoPermission(kind="no_permission")])
    snapshot = simulator.snapshot(node)
    assert snapshot.state == "failing"
    assert snapshot.failure is not None
    assert "nvidiactl" in snapshot.failure.message


def test_a_library_that_cannot_be_loaded_is_named_with_the_loader_s_own_words(
    tmp_path: Path,
) -> None:
    simulator.uninstall()
    fake = tmp_path / "libnvidia-ml.so.1"
    fake.write_text("not a library")
    with pytest.raises(NvmlUnavailable) as caught:
        Nvml(library_path=str(fake)).open()
    assert caught.value.state == "absent"
    assert "file too short" in str(caught.value) or "invalid ELF" in str(caught.value)


def test_a_package_that_shadows_the_binding_is_named(tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("class NVMLError(Exception): pass\n")
    program = (
        "from mcp_gpu.gpu.errors import NvmlUnavailable\n"
        "from mcp_gpu.gpu.nvml import Nvml\n"
        "try: Nvml().open()\n"
        "except NvmlUnavailable as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "shadows nvidia-ml-py" in result.stdout


def test_the_limit_on_open_files_is_lowered_before_the_driver_s_daemon_sees_it() -> None:
    program = (
        "import resource\n"
        "from mcp_gpu.gpu import nvml, simulator\n"
        "nvml.MAX_OPEN_FILES = 500\n"
        "before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "simulator.snapshot(simulator.Node('one', 't4', gpus=1))\n"
        "after = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "print(after[0], after[1] == before[1])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "500 True\n"


def test_the_call_in_progress_is_named_while_it_lasts() -> None:
    seen = []
    node = simulator.Node("one", "h100", gpus=1)
    nvml = Nvml()
    node.on_call = lambda: seen.append(nvml.calling)
    with simulator.installed(node):
        nvml.open()
        nvml.call("nvmlDeviceGetPowerUsage", 0, nvml.handle(0))
    assert [(c.call, c.gpu_index) for c in seen if c] == [
        ("nvmlInit", None),
        ("nvmlDeviceGetHandleByIndex", 0),
        ("nvmlDeviceGetPowerUsage", 0),
    ]
    assert nvml.calling is None


def test_after_a_call_that_took_too_long_nvml_is_not_shut_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mcp_gpu.gpu import nvml as module

    monkeypatch.setattr(module, "WEDGED_SECONDS", 0.005)
    node = simulator.Node("one", "h100", gpus=1)
    node.faults = [Hang(kind="hang", seconds=0.02, call="nvmlDeviceGetCount_v2")]
    calls: list[str] = []
    nvml = Nvml()
    node.on_call = lambda: calls.append(nvml.calling.call if nvml.calling else "")
    with simulator.installed(node):
        nvml.open()
        nvml.count()
        nvml.close()
    assert "nvmlShutdown" not in calls


@pytest.mark.parametrize(
    ("words", "text"), [((0,), ""), ((0b1011,), "0-1,3"), ((1 << 63, 1), "63-64"), ((0, 1), "64")]
)
def test_a_mask_reads_as_the_kernel_writes_it(words: tuple[int, ...], text: str) -> None:
    assert bit_list(words) == text


def test_versions_of_driver_nvml_and_cuda_are_told() -> None:
    snapshot = simulator.snapshot(simulator.Node("one", "h100", gpus=1))
    assert isinstance(snapshot, Snapshot)
    assert (snapshot.driver_version, snapshot.cuda_version) == ("580.105.08", "13.0")
    assert (snapshot.driver_branch, snapshot.confidential_compute) == ("r580_00", False)
    assert snapshot.simulated

"""One node, two tools: `get_gpu_health` and `analyze_xid_errors` say the same of its Xids.

Boards are simulated and read by the real reader, lines are the driver's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pytest

from mcp_gpu.gpu.actions import grave
from mcp_gpu.gpu.health.assess import assess
from mcp_gpu.gpu.health.model import Assessment, Finding
from mcp_gpu.gpu.history import Past
from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.gpu.xid.analysis import analyse
from mcp_gpu.gpu.xid.catalogue import entries, entry
from mcp_gpu.gpu.xid.log import XidLog
from mcp_gpu.gpu.xid.present import Present
from mcp_gpu.gpu.xid.report import Analysis, DeviceXids
from mcp_gpu.gpu.xid.view import View
from mcp_gpu.node.lines import XidLines
from support.readings import T0, board, changed, later, without
from support.xids import BUS, REBOOT, RESET, line

READ: Final = T0 + 100
"""When the boards are read; both tools look a second later."""

DRIVERS: Final = {535: "535.54.03", 565: "565.57.01", 570: "570.86.15", 580: "580.105.08"}

MEMORY: Final = ("ecc_uncorrected_volatile", "row_remap_pending", "row_remap_failure")


def node(branch: int, recovery: str | None, *, memory: bool = False) -> Snapshot:
    """A board whose driver asks for this, None: does not tell; its memory's counters told or not.

    Without them nothing but the driver and the age of an Xid says what came of it.
    """
    snapshot = later(board("h100", driver=DRIVERS[branch]), READ - T0)
    if recovery is None:
        snapshot = without(snapshot, "driver_too_old", "recovery_action", gpu=None)
    else:
        snapshot = changed(snapshot, None, recovery_action="none")
        snapshot = changed(snapshot, 0, recovery_action=recovery)
    return snapshot if memory else without(snapshot, "not_supported", *MEMORY, gpu=None)


@dataclass(frozen=True)
class Both:
    """What the two tools say of GPU 0 of one node."""

    health: Assessment
    analysis: Analysis

    @property
    def finding(self) -> Finding | None:
        """Of the health of GPU 0, that which comes of Xids or the driver's word."""
        of_xids = {"xid", "xid_past", "recovery_action"}
        found = [f for f in self.health.findings if f.gpu_index == 0 and f.code in of_xids]
        assert len(found) <= 1, found
        return found[0] if found else None

    @property
    def device(self) -> DeviceXids:
        (device,) = (each for each in self.analysis.devices if each.gpu_index == 0)
        return device

    def agree(self) -> bool:
        """Whether both say the same of what is left to do about GPU 0, and how bad it is."""
        finding, device = self.finding, self.device
        codes = (chain.codes[0] for chain in device.chains if not chain.settled)
        known = (found for code in codes if (found := entry(code)) and not found.unused)
        nameless = any(found.severity == "critical" and found.action == "NONE" for found in known)
        if grave(device.action) or nameless:
            told = finding and (finding.action, finding.severity, finding.advice)
            return told == (device.action, device.severity, device.advice)
        if any(chain.settled and grave(chain.action) for chain in device.chains):
            return finding is not None and finding.code == "xid_past"
        return finding is None


def both(snapshot: Snapshot, *lines: tuple[float, str], later_by: float = 1.0) -> Both:
    """Both tools, asked at once.

    Args:
        lines: seconds before the reading, and what the kernel log says.
    """
    log, reader = XidLog(), XidLines("kernel_log")
    for ago, text in lines:
        event = reader.event(text, READ - ago, "")
        assert event is not None, text
        log.add(event)
    at = READ + later_by
    present = Present.of(snapshot, log.bursts(), at=at)
    return Both(
        assess(snapshot, Past(), bursts=log.bursts(), clock=lambda: at),
        analyse(log.bursts(), present, view=View(), limit=50),
    )


def any_line(code: int) -> str:
    return line(code, text="pid=41, name=python, Ch 00000008")


@pytest.mark.parametrize("ago", [-0.5, 1.0, 15.0, 7200.0], ids=["after", "just", "recent", "old"])
@pytest.mark.parametrize("recovery", [None, "none", "gpu_reset", "drain_and_reset"])
@pytest.mark.parametrize("branch", [535, 570, 580])
def test_health_and_analysis_agree_on_every_code(
    branch: int, recovery: str | None, ago: float
) -> None:
    snapshot = node(branch, recovery)
    codes = [*(each.code for each in entries()), 173, 777, 999]
    for code in codes:
        said = both(snapshot, (ago, any_line(code)))
        assert said.agree(), (code, said.finding, said.device)


def standing(code: int, branch: int, recovery: str | None, ago: float) -> tuple[str, str]:
    said = both(node(branch, recovery), (ago, any_line(code)))
    assert said.agree()
    finding = said.finding
    return ("", "") if finding is None else (finding.code, finding.severity)


@pytest.mark.parametrize("code", [46, 54, 78, 119, 140, 142, 151])
@pytest.mark.parametrize("recovery", [None, "none"])
def test_what_the_driver_never_reports_stands(code: int, recovery: str | None) -> None:
    """The catalogue links no Xid 154 to them: that the driver asks for nothing says nothing."""
    assert standing(code, 580, recovery, 20) == ("xid", "critical")
    assert standing(code, 580, recovery, 7200) == ("xid", "warning")


@pytest.mark.parametrize(
    ("code", "branch", "over"),
    [(95, 535, False), (95, 570, True), (109, 565, False), (109, 570, True),
     (143, 570, False), (143, 580, True)],
)  # fmt: skip
def test_what_the_driver_would_report_is_over_where_it_asks_for_nothing(
    code: int, branch: int, over: bool
) -> None:
    stands = ("xid", "critical")
    assert standing(code, branch, "none", 20) == (("xid_past", "info") if over else stands)
    # The field may be read before the driver has made up its mind.
    assert standing(code, branch, "none", 0.1) == stands


@pytest.mark.parametrize("branch", [535, 580])
def test_a_gpu_that_answers_is_not_off_the_bus(branch: int) -> None:
    said = both(node(branch, None), (7200, line(79)))
    assert said.agree()
    assert said.device.action == "NONE"
    gone = both(node(branch, None), (0, line(79)))
    assert gone.agree()
    assert (gone.device.action, gone.device.severity) == ("REBOOT_NODE", "critical")


def test_memory_that_counts_no_error_has_been_reset() -> None:
    said = both(node(535, None, memory=True), (7200, line(95)), (7200, line(45)))
    assert said.agree()
    assert said.finding is not None
    assert said.finding.code == "xid_past"
    assert "no uncorrected error" in said.device.chains[0].settled


def test_the_drivers_word_in_the_log_counts_where_it_cannot_be_read() -> None:
    """Drivers of branch 565 write Xid 154 and do not tell the recovery action."""
    lines = (20.0, line(95)), (19.5, line(154, text=REBOOT))
    said = both(node(565, None), *lines)
    assert said.agree()
    assert said.finding is not None
    assert (said.finding.code, said.finding.action) == ("recovery_action", "REBOOT_NODE")
    assert said.finding.includes == ("xid",)
    assert [each.value for each in said.finding.evidence] == [154, 95]
    alone = both(node(565, None), (20.0, line(154, text=REBOOT)))
    assert alone.agree()
    assert alone.health.verdict == "failed"
    back = both(node(565, None), *lines, (5, line(154, text=RESET.replace("0x1", "0x0")
                .replace("GPU Reset Required", "None"))))  # fmt: skip
    assert back.agree()
    assert back.device.action == "NONE"


def test_what_was_read_of_the_driver_is_told_once() -> None:
    said = both(node(580, "gpu_reset"), (20, line(95)), (19.5, line(154, text=RESET)))
    assert said.agree()
    assert said.finding is not None
    assert said.finding.evidence[0].reading == "recovery_action"


HARMLESS: Final = (
    "NVLink: fatal error detected on link 14(0x800000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)",
    "SAW_MVB Nonfatal XC0 i0 Link 0 (0x00000001 0x00000004 0x0 0x0 0x0 0x0 0x0)",
)
FATAL: Final = "NETIR_LINK_EVT Fatal XC0 i0 Link 03 (0x004000c6 0x0 0x0 0x0 0x0 0x0 0x0)"


@pytest.mark.parametrize(("code", "text"), [(74, HARMLESS[0]), (144, HARMLESS[1])])
def test_a_link_error_that_can_be_ignored_is_ignored(code: int, text: str) -> None:
    said = both(node(535, None), (20, line(code, text=text)))
    assert said.agree()
    assert said.health.verdict == "healthy"


def test_a_fatal_link_error_is_critical() -> None:
    said = both(node(570, None), (20, line(149, text=FATAL)))
    assert said.agree()
    assert (said.device.action, said.device.severity) == ("RESET_GPU", "critical")


def test_a_row_that_is_remapped_with_the_error_asks_to_drain_first() -> None:
    said = both(node(535, None), (20, line(48)), (20, line(63)))
    assert said.agree()
    assert said.device.action == "DRAIN_AND_RESET"


def test_what_counters_show_besides_is_dealt_with_in_the_same_way() -> None:
    snapshot = changed(node(535, None, memory=True), 0, ecc_uncorrected_volatile=1,
                       row_remap_pending=True)  # fmt: skip
    said = both(snapshot, (20, line(48)), (20, line(63)))
    (finding,) = said.health.findings
    assert set(finding.includes) == {"xid", "row_remap_pending"}
    assert (finding.action, finding.severity, finding.advice) == (
        said.device.action, said.device.severity, said.device.advice,
    )  # fmt: skip


def test_a_gpu_cut_by_mig_counts_nothing_that_would_contradict() -> None:
    snapshot = changed(node(535, None, memory=True), None, mig_mode_current=True)
    assert both(snapshot, (7200, line(95))).device.severity == "warning"


def test_a_fatal_error_of_a_switch_is_the_nodes() -> None:
    text = "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, {}, Link 30 LTSSM Fault Up"
    said = both(node(580, "none"), (20, text.format("Fatal")))
    (finding,) = said.health.findings
    (device,) = said.analysis.devices
    assert (finding.code, finding.gpu_index) == ("sxid", None)
    assert (finding.severity, finding.action, finding.advice) == (
        device.severity, device.action, device.advice,
    )  # fmt: skip
    assert "0000:c1:00" in finding.title
    assert both(node(580, "none"), (20, text.format("Non-fatal"))).health.findings == ()


def test_readings_that_are_old_or_hang_contradict_nothing() -> None:
    snapshot = node(580, "none")
    old = both(snapshot, (20, line(95)), later_by=600.0)
    assert (old.device.action, old.device.severity) == ("RESET_GPU", "warning")
    lost = snapshot.model_copy(update={"gpus": tuple(
        gpu.model_copy(update={"state": "lost"}) for gpu in snapshot.gpus)})  # fmt: skip
    assert both(lost, (20, line(79))).device.action == "REBOOT_NODE"
    assert BUS[0] in Present.of(snapshot, (), at=READ).devices


def lost_before_it_was_read(*indices: int) -> Snapshot:
    """GPUs that were off the bus when the agent started: NVML has told nothing of them."""
    snapshot = node(580, "none")
    return snapshot.model_copy(update={"gpus": tuple(
        Gpu(index=gpu.index, state="lost") if gpu.index in indices else gpu
        for gpu in snapshot.gpus)})  # fmt: skip


def test_the_kernel_log_says_where_a_gpu_was_that_nobody_has_read() -> None:
    said = both(lost_before_it_was_read(0), (20, line(79)))
    (finding,) = said.health.findings
    assert (finding.code, finding.gpu_index, finding.includes) == ("gpu_lost", 0, ("xid",))
    assert said.device.action == "REBOOT_NODE"


def test_of_several_nobody_guesses_which_was_where() -> None:
    said = both(lost_before_it_was_read(0, 1), (20, line(79)))
    assert {(f.code, f.gpu_index) for f in said.health.findings} == {
        ("gpu_lost", 0), ("gpu_lost", 1), ("xid", None),
    }  # fmt: skip
    assert [device.gpu_index for device in said.analysis.devices] == [None]


def test_xids_of_many_strange_devices_are_one_finding() -> None:
    lines = [
        (20.0, f"NVRM: Xid (PCI:0001:{bus:02x}:00): 119, pid=1, name=p, Timeout")
        for bus in range(40)
    ]
    (finding,) = both(node(580, "none"), *lines).health.findings
    assert finding.gpu_index is None
    assert "(0001:00:00, 0001:01:00, 0001:02:00, 0001:03:00 and 36 more)" in finding.title


@pytest.mark.parametrize("ago", [20.0, 7200.0])
def test_a_row_that_waits_says_that_no_reset_was_made(ago: float) -> None:
    snapshot = node(580, "none")
    waits = snapshot.model_copy(update={"gpus": tuple(
        gpu.model_copy(update={"row_remap_pending": True}) for gpu in snapshot.gpus)})  # fmt: skip
    lines = ((ago, line(48)), (ago, line(63, text="Row Remapper: New row marked for remapping")))
    device = both(waits, *lines).device
    assert (device.action, device.chains[0].settled) == ("DRAIN_AND_RESET", "")
    assert "if the GPU was reset since" not in device.advice
    assert both(snapshot, *lines).device.chains[0].settled

"""Xids together: lines as the driver writes them in, chains and what to do first out.

The lines' forms are those of NVIDIA's driver; what is expected of each company of Xids is NVIDIA's
workflow for it (the resolution buckets of its Xid catalogue).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_gpu.gpu.actions import advice
from mcp_gpu.gpu.xid.analysis import analyse
from mcp_gpu.gpu.xid.log import XidLog
from mcp_gpu.gpu.xid.model import Burst, XidEvent
from mcp_gpu.gpu.xid.present import Device, Present
from mcp_gpu.gpu.xid.report import Analysis, DeviceXids, XidGroup
from mcp_gpu.gpu.xid.view import View
from support.xids import (
    BEFORE,
    BUS,
    CLEARED,
    DRAIN,
    GPUS,
    JUST_AFTER,
    NOW,
    REBOOT,
    RESET,
    SWITCH,
    bursts,
    line,
    seconds,
)

EVERYTHING = View()


def by_nvml(code: int) -> tuple[Burst, ...]:
    """An Xid that the driver's events alone tell: without its line."""
    event = XidEvent(code, seconds("10:00:00"), "nvml", bus_id=BUS[0], boot_id=NOW)
    return (Burst(event, event.at, 1, ("nvml",), (event,)),)


def analysed(
    *lines: tuple[str, str],
    driver: int | None = 580,
    known: Mapping[str, Device] = GPUS,
    former: Iterable[tuple[str, str]] = (),
    view: View = EVERYTHING,
    limit: int = 50,
    at: str = JUST_AFTER,
) -> Analysis:
    """What these lines mean together, at that time of the day."""
    every = (*bursts(former, BEFORE), *bursts(lines))
    return analyse(every, Present(seconds(at), known, driver, NOW), view=view, limit=limit)


def told(found: Analysis) -> list[tuple[str, str, list[str]]]:
    """Per device: what to do, and its chains without their times."""
    return [
        (each.device, each.action, [_plain(c.told) for c in each.chains]) for each in found.devices
    ]


def _plain(chain: str) -> str:
    return " ".join(part for part in chain.replace(" at ", " @").split(" ") if part[0] != "@")


def of(found: Analysis, code: int, device: str = "GPU 0") -> XidGroup:
    (group,) = (each for each in found.groups if each.code == code and each.device == device)
    return group


def only(found: Analysis) -> DeviceXids:
    (device,) = found.devices
    return device


def test_a_cleanup_after_another_xid_collapses_under_it() -> None:
    found = analysed(
        ("10:02:11", line(48)),
        ("10:02:11", line(63)),
        *(("10:02:12", line(45, ch=ch)) for ch in range(12)),
    )
    assert only(found).chains[0].told == "48 at 2026-11-26T10:02:11Z -> 63 -> 45 x12"
    assert told(found) == [("GPU 0", "DRAIN_AND_RESET", ["48 -> 63 -> 45 x12"])]
    cleanup = of(found, 45)
    assert (cleanup.state, cleanup.action, cleanup.severity) == ("follows", "NONE", "info")
    assert "Goes with Xid 48" in cleanup.explanation


def test_a_cleanup_alone_asks_for_nothing() -> None:
    """A job that is killed leaves one on each of its GPUs; what NVIDIA asks besides is told."""
    lines = [("10:02:11", line(45, gpu=gpu, ch=ch)) for gpu in range(4) for ch in range(8)]
    found = analysed(*lines)
    assert [(each.action, each.severity) for each in found.devices] == [("NONE", "info")] * 4
    assert "Alone it commonly means that the program was killed" in found.devices[0].advice
    group = of(found, 45)
    assert (group.state, group.severity, group.bucket) == ("open", "info", "WORKFLOW_XID_45")
    assert group.investigate.startswith("Solo: RESTART_FM")
    assert "No other Xid on this GPU in the 60 s before." in group.explanation


def test_a_cleanup_that_no_log_tells_says_what_could_not_be_seen() -> None:
    found = analyse(by_nvml(45), Present(seconds(JUST_AFTER), GPUS), view=EVERYTHING, limit=5)
    assert "no log was read, and 79 and 119 come in it alone" in of(found, 45).explanation


@pytest.mark.parametrize("later", ["10:03:12", "11:00:00"])
def test_a_cleanup_long_after_another_xid_is_alone(later: str) -> None:
    found = analysed(("10:02:11", line(13)), (later, line(45)))
    assert of(found, 45).state == "open"


def test_a_cleanup_on_another_gpu_is_alone() -> None:
    found = analysed(("10:02:11", line(48, gpu=1)), ("10:02:12", line(45, gpu=0)))
    assert of(found, 45).state == "open"


def test_a_cause_that_the_driver_names_is_found_however_long_ago() -> None:
    caused = "pid=41, name=python, Ch 00000001 caused by previous Xid 119"
    found = analysed(("10:02:11", line(119)), ("10:30:00", line(45, text=caused)))
    assert told(found) == [("GPU 0", "RESET_GPU", ["119 -> 45"])]
    assert "names Xid 119" in of(found, 45).explanation


def test_a_cause_that_the_driver_names_and_nobody_has_told_is_no_reason_to_act() -> None:
    caused = "pid=41, name=python, Ch 00000001 caused by previous Xid 149"
    found = analysed(("10:02:11", line(45, text=caused)))
    assert only(found).action == "NONE"
    assert "Xid 149 as its cause, which no source has told" in of(found, 45).explanation


def test_an_exception_again_and_again_on_one_unit_may_be_the_hardware() -> None:
    found = analysed(*((f"1{hour}:00:00", line(13, pid=hour + 1)) for hour in range(3)))
    group = of(found, 13)
    assert (group.action, group.count, group.bursts) == ("RESTART_APP", 3, 3)
    assert "GPC 1 TPC 2 in each of 3 runs, long after each other" in group.explanation
    assert "run the same on another GPU first; if the error stays" in group.explanation


@pytest.mark.parametrize("code", [13, 31])
@pytest.mark.parametrize(
    "lines",
    [
        [(f"10:{minute:02}:00", 0, 100 + minute) for minute in (0, 2, 4, 9, 14, 19)],
        [(f"1{hour}:00:00", 0, 7) for hour in range(6)],
        [(f"1{hour}:00:00", gpu, 10 * hour + gpu) for hour in range(2) for gpu in range(4)],
    ],
    ids=["restarts soon after each other", "one program", "all GPUs alike"],
)
def test_a_program_that_fails_again_and_again_is_not_the_hardware(
    code: int, lines: list[tuple[str, int, int]]
) -> None:
    found = analysed(*((clock, line(code, gpu=gpu, pid=pid)) for clock, gpu, pid in lines))
    for group in found.groups:
        assert "look at the application" in group.explanation
        assert "EUD" not in group.explanation


def test_exceptions_on_different_units_are_the_application() -> None:
    found = analysed(("10:00:00", line(13)), ("11:00:00", line(13, gpc=4)))
    assert "2 different units: look at the application" in of(found, 13).explanation
    assert "suspect" not in of(found, 13).explanation


def test_one_run_of_exceptions_is_the_application() -> None:
    found = analysed(("10:00:00", line(13)), ("10:00:00", line(13)), ("10:00:01", line(13)))
    assert "Too few separate runs to suspect the unit" in of(found, 13).explanation


def test_page_faults_on_one_gpu_only_may_be_the_hardware() -> None:
    found = analysed(*((f"1{hour}:00:00", line(31, pid=hour)) for hour in range(3)))
    assert "3 runs, long after each other, on this GPU" in of(found, 31).explanation
    assert "run the same on another GPU first" in of(found, 31).explanation


def test_page_faults_spread_over_gpus_are_the_application() -> None:
    lines = [(f"1{hour}:00:00", line(31, gpu=hour, pid=hour)) for hour in range(3)]
    found = analysed(*lines, ("15:00:00", line(31, pid=9)), ("17:00:00", line(31, pid=10)))
    assert "On 3 GPUs of this node: look at the application" in of(found, 31).explanation
    assert [each.action for each in found.devices] == ["RESTART_APP"] * 3


def test_page_faults_where_there_is_but_one_gpu_prove_nothing() -> None:
    lines = [(f"1{hour}:00:00", line(31, pid=hour)) for hour in range(3)]
    found = analysed(*lines, known={BUS[0]: GPUS[BUS[0]]})
    assert "no other GPU here to compare with" in of(found, 31).explanation


def test_a_double_bit_error_alone_asks_for_a_reset() -> None:
    found = analysed(("10:02:11", line(48)))
    assert (only(found).action, only(found).severity) == ("RESET_GPU", "critical")
    assert of(found, 48).bucket == "WORKFLOW_XID_48"


def test_a_double_bit_error_with_a_failed_remapping_is_drained_and_watched() -> None:
    found = analysed(("10:02:12", line(64)), ("10:02:13", line(48)))
    assert told(found) == [("GPU 0", "DRAIN_AND_RESET", ["48 -> 64"])]
    assert "contact support" in of(found, 48).explanation


@pytest.mark.parametrize(("code", "where"), [(171, "In DRAM"), (172, "In SRAM")])
def test_the_detail_of_a_double_bit_error_is_told_with_it(code: int, where: str) -> None:
    found = analysed(("10:02:11", line(48)), ("10:02:11", line(code)))
    assert told(found) == [("GPU 0", "RESET_GPU", [f"48 -> {code}"])]
    assert where in of(found, 48).explanation


def test_contained_and_uncontained_memory_errors() -> None:
    found = analysed(("10:00:00", line(94, gpu=0)), ("10:00:00", line(95, gpu=1)))
    assert told(found) == [
        ("GPU 1", "RESET_GPU", ["95"]),
        ("GPU 0", "RESTART_APP", ["94"]),
    ]


def test_an_uncontained_error_goes_with_the_double_bit_error_before_it() -> None:
    found = analysed(("10:00:00", line(48)), ("10:00:01", line(95)), ("10:00:01", line(45)))
    assert told(found) == [("GPU 0", "RESET_GPU", ["48 -> 95 -> 45"])]


def test_a_context_switch_timeout_tells_who_sees_it_otherwise() -> None:
    found = analysed(("10:00:00", line(109)))
    assert only(found).action == "RESET_GPU"
    assert of(found, 109).disagreements


def test_a_gsp_that_times_out_and_fails_is_one_story() -> None:
    found = analysed(("10:00:00", line(119)), ("10:00:45", line(119)), ("10:01:10", line(120)))
    assert told(found) == [("GPU 0", "RESET_GPU", ["119 x2 -> 120"])]


def test_a_peer_that_was_accessed_explains_the_fault_on_the_other_gpu() -> None:
    found = analysed(("10:00:00", line(137, gpu=2)), ("10:00:01", line(31, gpu=1)))
    assert told(found) == [("GPU 1", "RESTART_APP", ["31 -> 137 on GPU 2"])]
    assert of(found, 137, "GPU 2").state == "follows"
    assert f"Xid 31 on {BUS[1]}" in of(found, 137, "GPU 2").explanation


def test_a_gpu_off_the_bus_sweeps_what_comes_later() -> None:
    found = analysed(
        ("10:00:00", line(79)),
        ("10:00:05", line(154, text=REBOOT)),
        ("10:20:00", line(119)),
        ("13:00:00", line(45)),
        ("13:00:00", line(13, gpu=1)),
    )
    assert told(found) == [
        ("GPU 0", "REBOOT_NODE", ["79 -> 154 -> 119 -> 45"]),
        ("GPU 1", "RESTART_APP", ["13"]),
    ]
    assert "off the bus" in of(found, 119).explanation
    assert of(found, 119).severity == "info"


def test_the_drivers_word_goes_with_the_xid_before_it_and_may_ask_for_more() -> None:
    found = analysed(("10:00:00", line(48)), ("10:00:01", line(154, text=DRAIN)))
    assert told(found) == [("GPU 0", "DRAIN_AND_RESET", ["48 -> 154"])]
    assert "It says what Xid 48 asks for" in of(found, 154).explanation


def test_the_drivers_word_alone_stands_for_itself() -> None:
    found = analysed(("10:00:00", line(154, text=RESET)))
    assert told(found) == [("GPU 0", "RESET_GPU", ["154"])]


@pytest.mark.parametrize("text", ["GPU recovery action changed", "", "to 0x63 (Something New)"])
def test_a_word_of_the_driver_that_nobody_understands_asks_for_nothing(text: str) -> None:
    found = analysed(("10:00:00", line(154, text=text or "Ch 1")))
    assert only(found).action == "NONE"


def test_what_a_reset_has_settled_is_no_longer_to_be_done() -> None:
    found = analysed(
        ("10:00:00", line(48)),
        ("10:00:01", line(154, text=RESET)),
        ("10:30:00", line(154, text=CLEARED)),
    )
    device = only(found)
    assert (device.action, device.severity) == ("NONE", "info")
    settled = next(chain for chain in device.chains if chain.codes[0] == 48)
    assert "nothing any more since 2026-11-26T10:30:00Z" in settled.settled
    assert of(found, 48).state == "settled"
    again = analysed(
        ("10:00:00", line(48)), ("10:30:00", line(154, text=CLEARED)), ("11:00:00", line(48))
    )
    assert only(again).action == "RESET_GPU"


def test_what_the_driver_asks_for_now_is_told_first() -> None:
    known = GPUS | {BUS[0]: Device(0, "GPU-0", "H100", "drain_and_reset", seconds("10:10:00"))}
    found = analysed(("10:00:00", line(94)), known=known)
    device = only(found)
    assert (device.action, device.driver_action) == ("DRAIN_AND_RESET", "drain_and_reset")
    assert device.note.startswith("The driver itself asks for drain_and_reset now.")
    alone = analysed(known=known)
    assert only(alone).note.endswith("No Xid that is known here says why.")


def test_a_driver_that_asked_and_asks_for_nothing_now_has_settled_it() -> None:
    known = GPUS | {BUS[0]: Device(0, "GPU-0", "H100", "none", seconds("10:10:00"))}
    lines = [("10:00:00", line(48)), ("10:00:01", line(154, text=RESET))]
    found = analysed(*lines, known=known)
    assert (only(found).action, only(found).severity) == ("NONE", "info")
    assert "asked for it at 2026-11-26T10:00:01Z" in only(found).chains[0].settled
    later = analysed(*lines, ("10:10:30", line(48)), known=known)
    assert only(later).action == "RESET_GPU"


@pytest.mark.parametrize(
    ("code", "driver", "settled"),
    [(48, 580, True), (48, 550, False), (119, 580, False), (109, 565, False), (109, 570, True)],
)
def test_a_driver_that_would_ask_and_does_not_has_settled_it(
    code: int, driver: int, settled: bool
) -> None:
    """Which codes it would ask for, and from which branch on, the catalogue says."""
    known = GPUS | {BUS[0]: Device(0, "GPU-0", "H100", "none", seconds("10:00:10"))}
    found = analysed(("10:00:00", line(code)), known=known, driver=driver)
    expected = ("NONE", "info") if settled else ("RESET_GPU", "critical")
    assert (only(found).action, only(found).severity) == expected
    assert (of(found, code).state == "settled") == settled
    at_once = analysed(("10:00:08", line(code)), known=known, driver=driver)
    assert (only(at_once).action, only(at_once).severity) == ("RESET_GPU", "critical")


def test_what_happened_long_ago_may_be_done() -> None:
    found = analysed(("10:00:00", line(119)), at="12:00:00")
    assert (only(found).action, only(found).severity) == ("RESET_GPU", "warning")
    assert only(found).advice.startswith("Done, if the GPU was reset since. Otherwise: drain ")
    assert of(found, 119).explanation.endswith("Done, if the GPU was reset since.")
    # What asks for no reset is not done by one.
    light = analysed(("10:00:00", line(94)), ("10:00:00", line(63)), at="12:00:00")
    assert "reset since" not in light.model_dump_json()


def test_a_gpu_that_came_back_does_not_hide_what_it_had_later() -> None:
    back = Device(0, "GPU-0", "A100", None, seconds("11:00:30"), seconds("11:00:30"))
    lines = [("10:00:00", line(79)), ("10:00:05", line(45)), ("11:00:00", line(95))]
    found = analysed(*lines, known={BUS[0]: back}, driver=535, at="11:00:31")
    assert (only(found).action, only(found).severity) == ("RESET_GPU", "critical")
    assert "the GPU answers again" in [chain.settled for chain in only(found).chains]


@pytest.mark.parametrize("code", [74, 144, 145, 149])
def test_a_link_error_whose_line_nobody_has_seen_is_no_more_than_a_warning(code: int) -> None:
    found = analyse(by_nvml(code), Present(seconds(JUST_AFTER), GPUS, 580, NOW),
                    view=EVERYTHING, limit=5)  # fmt: skip
    assert (only(found).action, only(found).severity) == ("RESET_GPU", "warning")
    assert "What its line says decides, and no log told it." in of(found, code).explanation


def test_a_double_bit_error_that_no_log_tells_is_not_said_to_be_alone() -> None:
    found = analyse(by_nvml(48), Present(seconds(JUST_AFTER), GPUS), view=EVERYTHING, limit=5)
    assert "was seen with it, and no log was read" in of(found, 48).explanation
    assert "a reset is enough" in of(analysed(("10:00:00", line(48))), 48).explanation


def test_a_fatal_error_of_a_switch_stands_before_one_that_is_not() -> None:
    said = "nvidia-nvswitch3: SXid (PCI:0000:{bus}:00.0): 20034, {word}, Link 30 LTSSM Fault Up"
    found = analysed(
        ("10:00:00", said.format(bus="c2", word="Non-fatal")),
        ("10:00:00", said.format(bus="c1", word="Fatal")),
    )
    first, second = found.devices
    assert (first.device, first.severity) == ("NVSwitch 0000:c1:00", "warning")
    assert second.severity == "info"
    assert "Fabric Manager user guide" in first.advice


def test_a_grave_code_without_a_known_action_is_grave() -> None:
    found = analysed(("10:00:00", line(173, text="C2C fatal link failure")))
    assert (only(found).action, only(found).severity) == ("NONE", "critical")
    assert "Follow a 154 for the same GPU" in only(found).advice


@pytest.mark.parametrize(
    ("asked", "action", "severity"),
    [
        ("drain_p2p", "DRAIN_P2P", "critical"),
        ("recover_imex", "RECOVER_IMEX", "critical"),
        ("bus_reset", "BUS_RESET", "critical"),
        ("system_reboot", "SYSTEM_REBOOT", "critical"),
        ("drain_and_reset", "DRAIN_AND_RESET", "warning"),
        ("unknown(9)", "UNKNOWN", "warning"),
    ],
)
def test_what_the_driver_asks_for_keeps_its_name(asked: str, action: str, severity: str) -> None:
    known = {BUS[0]: Device(0, "GPU-0", "GB200", asked, seconds("10:04:00"))}
    found = analysed(("10:00:00", line(95)), known=known)
    assert (only(found).action, only(found).severity) == (action, severity)
    assert only(found).advice == advice(action, 0)


LINK_DOWN = "149, NETIR_LINK_EVT Fatal XC0 i0 Link 03 ({info} 0x00000000 0x0 0x0 0x0 0x0 0x0)"
OLD, NEW = "0x026001c6", "0x02600091"
"""intrInfo of a link that went down for reason 38, which asks for nothing, by the columns for
drivers before R575 and from there on; reason 4 instead of 38 asks for a reset."""

TRACKER = "145, RLW_SRC_TRACK Nonfatal XC1 i0 Link 10 (0x04082907 0x00000008 0x0 0x0 0x0 0x0 0x0)"


def nvlink5(text: str, gpu: int = 0, info: str = "") -> str:
    return f"NVRM: Xid (PCI:{BUS[gpu]}): {text.format(info=info)}"


@pytest.mark.parametrize(
    ("driver", "info", "action"),
    [
        (570, OLD, "NONE"),
        (570, OLD.replace("026", "004"), "RESET_GPU"),
        (575, NEW, "NONE"),
        (575, NEW.replace("026", "004"), "RESET_GPU"),
        (570, NEW, "RESET_GPU"),
        (575, OLD, "RESET_GPU"),
    ],
)
def test_registers_are_read_by_the_drivers_branch(driver: int, info: str, action: str) -> None:
    """By the other branch's column a line has no case, and then the driver's own word counts."""
    found = analysed(("10:00:00", nvlink5(LINK_DOWN, info=info)), driver=driver)
    assert only(found).action == action


def test_a_link_error_that_is_left_to_the_drivers_word() -> None:
    alone = analysed(("10:00:00", nvlink5(TRACKER)))
    assert (only(alone).action, of(alone, 145).bucket) == ("RESTART_APP", "XID_154_EVAL")
    assert "No Xid 154" in of(alone, 145).explanation
    decided = analysed(("10:00:00", nvlink5(TRACKER)), ("10:00:01", line(154, text=RESET)))
    assert told(decided) == [("GPU 0", "RESET_GPU", ["145 -> 154"])]
    assert "154 that came with it decides" in of(decided, 145).explanation


def test_a_lesser_link_error_goes_with_the_one_that_took_the_link_down() -> None:
    down = nvlink5(LINK_DOWN, info=NEW.replace("026", "004"))
    found = analysed(
        ("10:00:00", nvlink5(TRACKER)),
        ("10:00:00", down),
        ("10:00:01", line(154, text=RESET)),
        ("10:00:02", line(45)),
    )
    assert told(found) == [("GPU 0", "RESET_GPU", ["149 -> 145 -> 154 -> 45"])]
    (chain,) = only(found).chains
    assert chain.investigate == "INVESTIGATE_LINK_SI"


def test_a_fatal_link_error_is_not_lost_among_many_that_are_not() -> None:
    harmless = (
        "149, NETIR_BER_EVENT Nonfatal XC0 i0 Link 03 (0x00000013 0x00000000 0x{n:x} 0x0 0x0)"
    )
    down = LINK_DOWN.format(info=NEW.replace("026", "004"))
    lines = [("10:00:00", nvlink5(harmless.replace("{n:x}", f"{n:x}"))) for n in range(200)]
    quiet = analysed(*lines)
    assert only(quiet).action == "NONE"
    found = analysed(*lines[:100], ("10:00:00", nvlink5(down)), *lines[100:])
    assert only(found).action == "RESET_GPU"


def test_switches_and_the_gpus_at_their_links_are_told_of_each_other() -> None:
    switch = f"nvidia-nvswitch3: SXid (PCI:{SWITCH}.0): 20034, Fatal, Link 30 LTSSM Fault Up"
    registers = "NVLink: fatal error detected on link 14(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"
    found = analysed(
        ("10:00:00", switch),
        ("10:00:01", line(74, text=registers)),
        ("10:00:01", line(74, gpu=1, text=registers)),
        ("12:00:00", line(74, gpu=2, text=registers)),
    )
    link = of(found, 74)
    assert f"SXid 20034 on {SWITCH}" in link.explanation
    assert f"Xid 74 on {BUS[1]}: look at both ends" in link.explanation
    assert "16 of register 1" in " ".join(link.decoded)
    assert "SXid" not in of(found, 74, "GPU 2").explanation
    sxid = of(found, 20034, f"NVSwitch {SWITCH}")
    assert (sxid.kind, sxid.action) == ("sxid", "NONE")
    assert f"Xid 74 on {BUS[0]} and 1 more" in sxid.explanation
    reset = analysed(("10:00:01", line(74, text=registers)), ("10:00:02", line(154, text=RESET)))
    assert only(reset).action == "RESET_GPU"


def test_former_boots_are_told_only_when_they_are_asked_for_and_ask_for_nothing() -> None:
    former = [("02:00:00", line(79)), ("02:00:00", line(54, gpu=1, text="Auxiliary power"))]
    assert analysed(former=former, view=View(this_boot=True)).devices == ()
    found = analysed(former=former)
    assert told(found) == [("GPU 1", "CHECK_SEATING", ["54"]), ("GPU 0", "NONE", ["79"])]
    assert of(found, 79).state == "settled"
    assert "before this boot" in of(found, 79).explanation


def test_a_cause_from_before_the_time_asked_for_is_still_a_cause() -> None:
    view = View(since=seconds("10:02:12"))
    found = analysed(("10:02:10", line(48)), ("10:02:13", line(45)), view=view)
    assert [group.code for group in found.groups] == [45]
    assert told(found) == [("GPU 0", "RESET_GPU", ["48 -> 45"])]


def test_codes_pick_what_is_shown_and_nothing_of_what_it_means() -> None:
    view = View(codes=frozenset({45}))
    lines = [("10:02:10", line(48)), ("10:02:13", line(45)), ("10:02:14", line(13, gpu=1))]
    found = analysed(*lines, view=view)
    assert [(group.code, group.state) for group in found.groups] == [(45, "follows")]
    assert told(found) == [("GPU 0", "RESET_GPU", ["48 -> 45"])]
    assert found.xids == 1


def test_the_same_chain_again_and_again_is_told_once() -> None:
    lines = [
        (f"{hour:02}:00:0{n}", line(code)) for hour in range(20) for n, code in ((0, 13), (1, 45))
    ]
    (chain,) = only(analysed(*lines)).chains
    assert (chain.times, chain.xids, chain.codes) == (20, 40, (13, 45))
    assert (chain.first, chain.last) == ("2026-11-26T00:00:00Z", "2026-11-26T19:00:01Z")


def test_groups_beyond_the_limit_are_counted() -> None:
    found = analysed(*(("10:00:00", line(13, gpu=gpu)) for gpu in range(4)), limit=3)
    assert (len(found.groups), found.groups_omitted, found.xids) == (3, 1, 4)
    assert [(total.code, total.count, total.devices) for total in found.totals] == [(13, 4, 4)]


def test_a_code_that_nobody_knows_is_told_as_that() -> None:
    found = analysed(("10:00:00", line(777, text="something new")))
    assert (only(found).action, of(found, 777).bucket) == ("NONE", "")


def test_a_device_that_is_no_gpu_of_this_node_is_told_by_its_place() -> None:
    found = analysed(("10:00:00", "NVRM: Xid (PCI:0000:ff:00): 62, pid=1, name=a, halt"))
    assert (only(found).device, only(found).gpu_index) == ("GPU at 0000:ff:00", None)


def test_a_code_that_the_catalogue_calls_unused_sends_nobody_to_the_vendor() -> None:
    found = analysed(("10:00:00", line(61, text="Internal micro-controller breakpoint")))
    assert (only(found).action, only(found).severity) == ("NONE", "warning")
    assert of(found, 61).bucket == "CONTACT_SUPPORT"
    assert "unused on today's boards" in of(found, 61).explanation


def test_a_line_can_do_nothing_to_a_terminal() -> None:
    found = analysed(("10:00:00", line(13, text="\x1b[2J" + "x" * 2000)))
    (sample,) = of(found, 13).samples
    assert sample.isprintable()
    assert len(sample) <= 300


def test_a_time_that_cannot_be_told_breaks_nothing() -> None:
    ages = [replace(burst, first=replace(burst.first, at=at), last_at=at, samples=())
            for burst in bursts([("10:00:00", line(48))]) for at in (-1e18, 1e18)]  # fmt: skip
    found = analyse(ages, Present(seconds(JUST_AFTER), GPUS), view=EVERYTHING, limit=5)
    assert (found.groups[0].first, found.groups[0].last) == (
        "1970-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
    )


ANY_EVENT = st.builds(
    XidEvent,
    code=st.sampled_from([13, 31, 45, 48, 61, 63, 74, 79, 94, 119, 120, 137, 145, 149, 154, 777]),
    at=st.integers(0, 400).map(float),
    source=st.sampled_from(["nvml", "kernel_log", "journal"]),
    kind=st.sampled_from(["xid", "xid", "sxid"]),
    bus_id=st.sampled_from([*BUS[:2], SWITCH, ""]),
    boot_id=st.sampled_from([NOW, BEFORE, ""]),
    pid=st.sampled_from([None, 41, 42]),
    text=st.sampled_from(
        ["", "Ch 1 caused by previous Xid 45", "Ch 1 caused by previous Xid 79", RESET, CLEARED]
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ANY_EVENT, max_size=40))
def test_every_xid_is_told_in_one_chain_and_one_group(events: list[XidEvent]) -> None:
    log = XidLog()
    for event in events:
        log.add(event)
    every = log.bursts()
    found = analyse(every, Present(100.0, GPUS, 580, NOW), view=EVERYTHING, limit=1000)
    count = sum(burst.count for burst in every)
    assert found.xids == sum(group.count for group in found.groups) == count
    assert sum(total.count for total in found.totals) == count
    assert sum(device.xids for device in found.devices) == count

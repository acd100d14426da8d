"""What lines from the field mean, written by hand: the answers that have to be right."""

from __future__ import annotations

from typing import Final, NamedTuple

import pytest

from mcp_gpu.gpu.actions import advice, grave
from mcp_gpu.gpu.xid.analysis import analyse
from mcp_gpu.gpu.xid.excerpt import read
from mcp_gpu.gpu.xid.explain import Explanation, explain
from mcp_gpu.gpu.xid.line import parse
from mcp_gpu.gpu.xid.present import Present
from mcp_gpu.gpu.xid.view import View
from mcp_gpu.tools.explain_xid import rows
from support.xids import BUS, GPUS, JUST_AFTER, NOW, bursts, seconds

SHEET = "NVIDIA Xid catalogue 2025-09-30, sheet Xids"
FLOW = "NVIDIA Xid catalogue 2025-09-30, sheet Resolution Buckets"
TABLE = "NVIDIA Xid catalogue 2025-09-30, sheet Xid 144-150 Decode"
NVML = "nvml.h, nvmlDeviceGetGpuRecoveryAction; NVIDIA GPU memory error management"

WHO = "pid='<unknown>', name=<unknown>"
APP = "pid=4242, name=python3"


class Row(NamedTuple):
    says: str
    """From the code on."""
    name: str
    bucket: str
    action: str
    severity: str
    source: str
    branch: int | None = None


MISTAKEN: Final = [
    # Eleven that are often told wrongly.
    Row(f"8, {APP}, Ch 00000010", "GPU stopped processing",
        "RESTART_APP", "RESTART_APP", "warning", SHEET),
    Row(f"31, {APP}, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_3 faulted"
        " @ 0x7f2d_ab000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ",
        "GPU memory page fault", "RESTART_APP", "RESTART_APP", "warning", SHEET),
    Row(f"32, {APP}, Channel ID 00000010 intr 00040000",
        "Invalid or corrupted push buffer stream", "RESTART_APP", "RESTART_APP", "warning", SHEET),
    Row(f"43, {APP}, Ch 00000008", "GPU stopped processing", "IGNORE", "NONE", "info", SHEET),
    Row(f"45, {APP}, Ch 00000010",
        "Preemptive cleanup, due to previous errors -- Most likely to see when running multiple"
        " cuda applications and hitting a DBE", "WORKFLOW_XID_45", "NONE", "warning", FLOW),
    Row(f"48, {WHO}, An uncorrectable double bit error (DBE) has been detected on GPU in the"
        " framebuffer at partition 6, subpartition 0.",
        "Double Bit ECC Error", "WORKFLOW_XID_48", "RESET_GPU", "critical", FLOW),
    Row(f"63, {WHO}, Row Remapper: New row marked for remapping, reset gpu to activate.",
        "GPU memory remapping event", "IGNORE", "NONE", "warning", SHEET),
    Row(f"64, {WHO}, Row Remapper: Failed to remap a row.",
        "GPU memory remapping failure", "RESET_GPU", "RESET_GPU", "critical", SHEET),
    Row(f"68, {APP}, Ch 00000020", "NVDEC0 Exception",
        "RESTART_APP", "RESTART_APP", "warning", SHEET),
    Row(f"69, {APP}, Class Error: ChId 0008, Class 0000c7c0", "Graphics Engine class error",
        "RESTART_APP", "RESTART_APP", "warning", SHEET),
    Row(f"95, {WHO}, Uncontained: LTC TAG (0x1,0x0). Unrecovered", "Uncontained memory error",
        "RESET_GPU", "RESET_GPU", "critical", SHEET),
]  # fmt: skip

COMMON: Final = [
    Row(f"11, {APP}, Ch 00000010", "Invalid or corrupted push buffer stream",
        "RESTART_APP", "RESTART_APP", "warning", SHEET),
    Row(f"13, {APP}, Graphics SM Warp Exception on (GPC 1, TPC 2, SM 0): Out Of Range Address",
        "Graphics Engine Exception", "RESTART_APP", "RESTART_APP", "warning", SHEET),
    Row(f"38, {WHO}, Ch 00000010", "Driver firmware error", "IGNORE", "NONE", "info", SHEET),
    Row(f"44, {WHO}, Ch 00000010", "Graphics Engine fault during context switch",
        "IGNORE", "NONE", "info", SHEET),
    Row(f"46, {WHO}, Ch 00000010", "GPU stopped processing",
        "RESET_GPU", "RESET_GPU", "critical", SHEET),
    Row(f"54, {WHO}, ", "Auxiliary power is not connected to the GPU board",
        "CHECK_MECHANICALS", "CHECK_SEATING", "critical", SHEET),
    Row(f"61, {WHO}, 0cf8(3568) 00000000 00000000",
        "Internal micro-controller breakpoint/warning (newer drivers)",
        "CONTACT_SUPPORT", "CONTACT_SUPPORT", "warning", SHEET),
    Row(f"62, {WHO}, 20ea(2ea0) 00000000 00000000",
        "Internal micro-controller halt (newer drivers)",
        "RESET_GPU", "RESET_GPU", "critical", SHEET),
    Row(f"78, {WHO}, vGPU start error", "vGPU Start Error",
        "UPDATE_SWFW", "UPDATE_SW_FW", "critical", FLOW),
    Row("79, GPU has fallen off the bus.", "GPU has fallen off the bus",
        "RESTART_BM", "REBOOT_NODE", "critical", SHEET),
    Row(f"92, {WHO}, High single-bit ECC error rate", "High single-bit ECC error rate",
        "IGNORE", "NONE", "warning", SHEET),
    Row(f"94, {APP}, Contained: SM (0x1). RST: No, D-RST: No", "Contained memory error",
        "RESTART_APP", "RESTART_APP", "warning", SHEET),
    Row(f"109, {APP}, Ch 00000008, errorString CTX SWITCH TIMEOUT", "Context Switch Timeout Error",
        "RESET_GPU", "RESET_GPU", "critical", SHEET),
    Row(f"110, {WHO}, ", "Security Fault Error", "RESET_GPU", "RESET_GPU", "critical", SHEET),
    Row("119, pid=1346198, name=nvidia-smi, Timeout after 6s of waiting for RPC response from GPU1"
        " GSP! Expected function 76 (GSP_RM_CONTROL) (0x2080014b 0x5).",
        "GSP RPC Timeout", "RESET_GPU", "RESET_GPU", "critical", SHEET),
    Row(f"120, {WHO}, GSP Error: Task 1 raised error code 0x5", "GSP Error",
        "RESET_GPU", "RESET_GPU", "critical", SHEET),
    Row(f"121, {WHO}, C2C", "C2C Error", "IGNORE", "NONE", "warning", SHEET),
    Row(f"136, {WHO}, ", "Link Training Failed", "RESET_GPU", "RESET_GPU", "critical", SHEET),
    Row(f"137, {APP}, NVLink privilege error", "NVLink Privilege Error",
        "IGNORE", "NONE", "info", FLOW),
    Row(f"140, {WHO}, ", "ECC Unrecovered Error", "RESET_GPU", "RESET_GPU", "critical", SHEET),
    Row(f"143, {WHO}, ", "GPU Initialization Error", "RESET_GPU", "RESET_GPU", "critical", SHEET),
    Row(f"151, {WHO}, ", "Key rotation Error", "RESTART_VM", "RESTART_VM", "critical", SHEET),
    Row(f"155, {WHO}, ", "NVLINK: SW Defined Error", "RESET_GPU", "RESET_GPU", "critical", SHEET),
    Row(f"156, {WHO}, ", "Resource Retirement Event", "RESET_GPU", "RESET_GPU", "critical", SHEET),
    Row(f"157, {WHO}, ", "Resource Retirement Failure", "IGNORE", "NONE", "warning", SHEET),
    Row(f"158, {WHO}, ", "GPU Fatal Timeout", "RESET_GPU", "RESET_GPU", "critical", SHEET),
    Row(f"159, {WHO}, ", "CHI Non-Data Error", "CHECK_UVM", "RESET_GPU", "warning", FLOW),
    Row(f"162, {WHO}, ", "Power Smoothing HW Circuitry capability reengaged",
        "", "NONE", "info", SHEET),
    Row(f"167, {WHO}, ", "PCIE_FATAL_TIMEOUT", "", "NONE", "warning", SHEET),
    Row(f"172, {WHO}, ", "Additional to Xid 48 providing more details on particulars of fault to"
        " differentiate DRAM/SRAM", "", "NONE", "warning", SHEET),
]  # fmt: skip

DECODED: Final = [
    Row(f"45, {APP}, Ch 00000001 caused by previous Xid 149",
        "Preemptive cleanup, due to previous errors -- Most likely to see when running multiple"
        " cuda applications and hitting a DBE", "WORKFLOW_XID_45", "NONE", "info", FLOW),
    # The first, third, fourth and fifth of 74's registers.
    Row(f"74, {WHO}, NVLink: fatal error detected on link 6(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)",
        "NVLINK Error", "WORKFLOW_NVLINK_ERR", "CHECK_SEATING", "critical", FLOW),
    Row(f"74, {WHO}, NVLink: fatal error detected on link 1(0x1, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)",
        "NVLINK Error", "WORKFLOW_NVLINK_ERR", "NONE", "info", FLOW),
    Row(f"74, {WHO}, NVLink: fatal error detected on link 1(0x20, 0xff, 0x0, 0x0, 0x0, 0xf, 0xf)",
        "NVLINK Error", "WORKFLOW_NVLINK_ERR", "RESTART_APP", "warning", FLOW),
    Row(f"74, {WHO}, NVLink: fatal error detected on link 14(0x0,0x0,0x10000,0x0,0x0,0x0,0x0)",
        "NVLINK Error", "WORKFLOW_NVLINK_ERR", "RESTART_APP", "warning", FLOW),
    Row(f"74, {WHO}, NVLink: fatal error detected on link 14(0x0, 0x0, 0x2000, 0x0, 0x0, 0x0, 0x0)",
        "NVLINK Error", "WORKFLOW_NVLINK_ERR", "CONTACT_SUPPORT", "critical", FLOW),
    Row(f"74, {WHO}, NVLink: fatal error detected on link 14(0x0, 0x0, 0x0, 0x40000, 0x0, 0x0,"
        " 0x0)", "NVLINK Error", "WORKFLOW_NVLINK_ERR", "RESET_GPU", "critical", FLOW),
    Row(f"74, {WHO}, NVLink: fatal error detected on link 14(0x0, 0x0, 0x0, 0x0, 0x100000, 0x0,"
        " 0x0)", "NVLINK Error", "WORKFLOW_NVLINK_ERR", "NONE", "info", FLOW),
    Row(f"74, {WHO}, NVLink: fatal error detected on link 14", "NVLINK Error",
        "WORKFLOW_NVLINK_ERR", "RESET_GPU", "critical", FLOW),
    # 144 to 150 by the driver's branch.
    Row("144, SAW_MVB Nonfatal XC0 i0 Link 0 (0x00000001 0x00000008 0x00000000)",
        "NVLINK: SAW Error", "IGNORE", "NONE", "info", TABLE, 580),
    Row("144, SAW_MVB Fatal XC0 i0 Link 0 (0x00000001 0x00000002 0x00000000)",
        "NVLINK: SAW Error", "RESET_GPU", "RESET_GPU", "critical", TABLE, 580),
    Row("145, RLW_SRC_TRACK Nonfatal XC1 i0 Link 10 (0x04082907 0x00000008 0x00000000)",
        "NVLINK: RLW Error", "XID_154_EVAL", "RESTART_APP", "warning", TABLE, 580),
    Row("145, RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x0409a0c2 0x00000008 0x00000000)",
        "NVLINK: RLW Error", "IGNORE", "NONE", "info", TABLE, 570),
    Row("145, RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x0409a0c2 0x00000008 0x00000000)",
        "NVLINK: RLW Error", "IGNORE", "NONE", "info", TABLE),
    Row("145, RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x0409a0c2 0x00000008 0x00000000)",
        "NVLINK: RLW Error", "WORKFLOW_NVLINK5_ERR", "NONE", "warning", TABLE, 580),
    Row("147, TREX Nonfatal XC0 i0 Link 4 (0x0000000e 0x00000001 0x00000000)",
        "NVLINK: TREX Error", "IGNORE", "NONE", "info", TABLE, 580),
    Row("149, NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x026001c6 0x00000000 0x00000000)",
        "NVLINK: NETIR Error", "IGNORE", "NONE", "warning", TABLE),
    Row("149, NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x004505c6 0x00000000)",
        "NVLINK: NETIR Error", "RESET_GPU", "RESET_GPU", "critical", TABLE, 570),
    Row("149, NETIR Fatal XC0 i0 Link -1 (0x000fe406 0x00000000)",
        "NVLINK: NETIR Error", "RESET_GPU", "RESET_GPU", "critical", TABLE, 570),
    Row("150, MSE_WATCHDOG Fatal XC0 i0 Link -1 (0x00000000 0x00000000 0x00000000)",
        "NVLINK: MSE Error", "RESET_GPU", "RESET_GPU", "critical", TABLE, 580),
    # The driver's own verdict.
    *(
        Row(f"154, {WHO}, GPU recovery action changed from 0x0 (None) to {after}",
            "GPU Recovery Action Changed", "XID_154", action, severity, NVML)
        for after, action, severity in (
            ("0x1 (GPU Reset Required)", "RESET_GPU", "critical"),
            ("0x2 (Node Reboot Required)", "REBOOT_NODE", "critical"),
            ("0x3 (Drain P2P)", "DRAIN_P2P", "critical"),
            ("0x4 (Drain and Reset)", "DRAIN_AND_RESET", "warning"),
            ("0x5 (new words)", "RECOVER_IMEX", "critical"),
            ("0x6 (Bus Reset)", "BUS_RESET", "critical"),
            ("0x7 (System Reboot)", "SYSTEM_REBOOT", "critical"),
            ("0x99 (new words)", "UNKNOWN", "warning"),
        )
    ),
    Row(f"154, {WHO}, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)",
        "GPU Recovery Action Changed", "XID_154", "NONE", "info", NVML),
]  # fmt: skip

ROWS: Final = [*MISTAKEN, *COMMON, *DECODED]


def told(says: str, branch: int | None = None) -> Explanation:
    said = parse(f"6,1,1,-;NVRM: Xid (PCI:0000:53:00): {says}")
    assert said is not None
    return explain(said.code, text=said.text, kind=said.kind, driver_branch=branch)


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.says[:40]}-{row.branch}" for row in ROWS])
def test_a_line_means(row: Row) -> None:
    found = told(row.says, row.branch)
    assert (found.name, found.bucket, found.action, found.severity) == (
        row.name, row.bucket, row.action, row.severity,
    ), row.source  # fmt: skip


SAID: Final = {
    # What each means and what to do about it: the words that must not be missing.
    8: ("channel of the GPU made no progress", "Restart the application"),
    31: ("touched GPU memory that is not mapped", "look for the bug in it first"),
    32: ("corrupted or invalid command stream", "Restart the application"),
    43: ("the GPU is well", "Nothing has to be done to the GPU"),
    45: ("a consequence, not a cause", "Look for the Xid before it"),
    48: ("ECC could see but not repair", "no reason to replace the board"),
    63: ("to be replaced by spare memory", "takes effect at the next reset"),
    64: ("could not be replaced", "Reset the GPU. If a row remapping still counts as failed"),
    68: ("video decoder", "Restart the application"),
    69: ("a command that its class does not allow", "look at the application first"),
    95: ("every program on the GPU is affected", "reset it before it is used again"),
    11: ("command stream (push buffer) that makes no sense", "Restart the application"),
    13: ("illegal address or instruction", "look for the bug in its kernels first"),
    38: ("firmware that switches contexts", "Nothing has to be done"),
    44: ("switching it from one program to another", "Nothing has to be done"),
    46: ("stopped answering the driver", "nvidia-smi --gpu-reset"),
    54: ("does not get the power it needs", "power cables checked"),
    61: ("breakpoint or a warning of its firmware", "nvidia-bug-report.sh"),
    62: ("has halted", "nvidia-smi --gpu-reset"),
    78: ("virtual GPU could not be started", "host and guest software"),
    79: ("no longer answers on the PCIe bus", "a GPU that is off the bus cannot be reset"),
    92: ("no data is lost", "Nothing has to be done"),
    94: ("only the program that used that memory", "others on the GPU are not affected"),
    109: ("could not switch the GPU", "Once is often the application's"),
    110: ("security check of the GPU failed", "nvidia-smi --gpu-reset"),
    119: ("did not answer a request in time", "nvidia-smi --gpu-reset"),
    120: ("reported an error of its firmware", "nvidia-smi --gpu-reset"),
    121: ("an error that was corrected", "Nothing has to be done"),
    136: ("NVLink did not come up", "quality of the link's signal"),
    137: ("refused an access over NVLink", "Nothing has to be done to the GPU"),
    140: ("could see but not repair", "nvidia-smi --gpu-reset"),
    143: ("could not be initialised", "nvidia-smi --gpu-reset"),
    151: ("keys of a GPU in confidential computing", "the virtual machine that has the GPU"),
    155: ("took an NVLink down, which may be on purpose", "took the link down on purpose"),
    156: ("out of use for good", "nvidia-smi --gpu-reset"),
    157: ("nothing left to replace it with", "contact the vendor's support"),
    158: ("no program can go on with it until it is reset", "nvidia-smi --gpu-reset"),
    159: ("Grace CPU and its GPU", "reset the GPU; otherwise nothing has to be done"),
    162: ("power smoothing circuit is at work again", "for information"),
    167: ("PCIe was not answered in time", "does not say yet what to do"),
    172: ("memory on the chip", "Follow the 48"),
}


@pytest.mark.parametrize("row", [*MISTAKEN, *COMMON], ids=lambda row: row.says.partition(",")[0])
def test_a_code_says_what_it_means_and_what_to_do(row: Row) -> None:
    found = told(row.says)
    meaning, advised = SAID[found.code]
    assert meaning in found.meaning
    assert advised in found.advice


@pytest.mark.parametrize("row", [*MISTAKEN, *COMMON], ids=lambda row: row.says.partition(",")[0])
def test_what_explains_a_line_and_what_analyses_a_node_advise_the_same(row: Row) -> None:
    """Where a GPU is to be reset or more, a node's answer names that GPU in its commands."""
    said = f"NVRM: Xid (PCI:{BUS[0]}): {row.says}"
    (explained,) = read([said], driver_branch=580).explained
    shown = dict(rows(explained))
    (burst,) = bursts([("10:02:11", said)])
    found = analyse([burst], Present(seconds(JUST_AFTER), GPUS, 580, NOW), view=View(), limit=1)
    ((device,), (group,)) = found.devices, found.groups
    (chain,) = device.chains
    assert device.action == chain.action == group.action == explained.action
    words = explained.explanation.advice
    if grave(explained.action):
        assert (device.advice, chain.advice) == (
            advice(explained.action, 0),
            advice(explained.action),
        )
    else:
        assert device.advice == chain.advice == words
    assert shown["do"] == f"{explained.action}: {words}"


@pytest.mark.parametrize(
    ("says", "decoded"),
    [
        (MISTAKEN[1].says, "Engine GRAPHICS at address 0x7f2d_ab000000: FAULT_PDE on VIRT_READ."),
        (MISTAKEN[5].says, "The error is in the board's memory (DRAM)"),
        (f"48, {WHO}, uncorrectable error in SRAM", "The error is in memory on the chip (SRAM)"),
        (MISTAKEN[6].says, "Row remapping, as boards from Ampere on have it"),
        (f"63, {WHO}, Dynamic Page Retirement: New page retired, reboot to activate (0x1234).",
         "Page retirement, as boards before Ampere have it"),
        (COMMON[1].says, "It happened on GPC 1 TPC 2 SM 0."),
        (COMMON[14].says, "The GSP of the driver's GPU 1 did not answer function 76"),
        (DECODED[0].says, "The driver names Xid 149 as its cause."),
        (DECODED[1].says, "Bit 16 of register 1: may be the hardware"),
        (DECODED[3].says, "Bit 5 of register 1: probably an ECC or parity error"),
        ("149, NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x026001c6 0x00000000)",
         "The reason given for the link's going down is 38."),
    ],
)  # fmt: skip
def test_what_a_line_says_beyond_its_code_is_told(says: str, decoded: str) -> None:
    assert any(sentence.startswith(decoded) for sentence in told(says).decoded)


def test_registers_of_74_that_the_workflow_does_not_read_are_not_judged() -> None:
    judged = told(DECODED[3].says)
    assert judged.decoded[0] == "Link 1."
    assert len(judged.decoded) == 2
    empty = told(f"74, {WHO}, NVLink: error on link 3(0x0, 0xffff, 0x0, 0x0, 0x0, 0x0, 0x1)")
    assert empty.confidence == "low"
    assert "No register that NVIDIA's workflow reads has a bit set." in empty.decoded[0]


def test_a_bit_of_74_that_the_workflow_does_not_list_is_to_be_reported() -> None:
    found = told(f"74, {WHO}, NVLink: error on link 3(0x3, 0x0, 0x0, 0x0, 0x80, 0x0, 0x0)")
    assert (found.action, found.confidence) == ("RESET_GPU", "low")
    assert "Bit 7 of register 5: is in no list of NVIDIA's workflow: report it." in found.decoded


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (32, "NVIDIA's catalogue says RESTART_APP; gpud suggests to reboot the node and have the"
             " hardware inspected."),
        (38, "NVIDIA's DCGM files 38, 39 and 42 under PCIe errors; NVIDIA's catalogue says FECS"
             " firmware, copy engine and video processor."),
        (44, "NVIDIA's catalogue says IGNORE; gpud suggests to reboot the node and have the"
             " hardware inspected."),
        (63, "NVIDIA's catalogue says IGNORE; Amazon EKS's node monitoring takes it for fatal."),
        (68, "NVIDIA's catalogue says RESTART_APP; Azure's node health check fails the node."),
        (74, "NVIDIA's DCGM fails its health check for every 74; NVIDIA's workflow depends on the"
             " registers, of which some bits are safely ignored."),
        (92, "NVIDIA's catalogue says IGNORE; Azure's node health check fails the node."),
        (109, "NVIDIA's catalogue says RESET_GPU; NVIDIA's Kubernetes device plugin and DRA driver"
              " take it for the application's error and leave the GPU in service."),
        (123, "NVIDIA's catalogue lists it as unused; gpud suggests to reboot the node and have"
              " the hardware inspected."),
        (57, "NVIDIA's catalogue lists it as unused; Azure's node health check fails the node."),
        (149, "NVIDIA's catalogue decodes the line, often to no action; gpud suggests to reboot"
              " the node."),
    ],
)  # fmt: skip
def test_who_says_otherwise_is_told(code: int, says: str) -> None:
    assert says in explain(code).disagreements


@pytest.mark.parametrize("code", [79, 46, 8])
def test_where_all_agree_nobody_is_said_to_differ(code: int) -> None:
    assert explain(code).disagreements == ()


@pytest.mark.parametrize(
    ("text", "severity", "decoded"),
    [
        ("Fatal, Link 30 LTSSM Fault Up", "warning", "calls it fatal, on its link 30."),
        ("Non-fatal, Link 28 RX Short Error Rate", "info", "calls it not fatal, on its link 28"),
        ("Fatal, ingress invalid command", "warning", "calls it fatal."),
    ],
)
def test_a_switchs_error_is_no_xid_of_the_same_number(
    text: str, severity: str, decoded: str
) -> None:
    said = parse(f"nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 79, {text}")
    assert said is not None
    found = explain(said.code, text=said.text, kind=said.kind)
    assert (found.kind, found.name, found.known) == ("sxid", "SXid 79", False)
    assert (found.severity, found.action, found.bucket) == (severity, "NONE", "")
    assert decoded in found.decoded[0]
    assert "Fabric Manager" in found.advice

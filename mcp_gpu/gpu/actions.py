"""What can be asked for, by whatever tool: the closed list of actions, and how each is done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mcp_gpu.gpu.health.model import Severity

__all__ = ["ACTIONS", "advice", "grave", "heaviest", "recovery", "recovery_severity", "weight"]

ACTIONS: Final[dict[str, str]] = {
    "NONE": "nothing to do",
    "RESTART_APP": "restart the application that met it",
    "RESTART_FM": "restart the fabric manager",
    "UNKNOWN": "ask the driver's documentation: the answer is newer than this program",
    "DRAIN_P2P": "end what uses peer-to-peer traffic, then ask the driver again",
    "RECOVER_IMEX": "recover the IMEX domain",
    "RESET_GPU": "drain the GPU and reset it",
    "BUS_RESET": "drain the GPU and have its bus reset",
    "DRAIN_AND_RESET": "let the GPU's work end, give it no new one, then reset it",
    "RESTART_VM": "restart the virtual machine that has the GPU",
    "REBOOT_NODE": "drain the node and reboot it",
    "SYSTEM_REBOOT": "drain the node and restart the whole system",
    "CHECK_SEATING": "have the board, its slot, riser and power cables checked",
    "UPDATE_SW_FW": "update driver, firmware or vGPU software",
    "CONTACT_SUPPORT": "ask the vendor's support",
    "INVESTIGATE_LINK_SI": "have the links' signal quality investigated",
    "RUN_FIELD_DIAG": "run the field diagnostic that decides on a replacement",
    "CHECK_COOLING": "check air flow, fans, cold plates and intake temperature",
    "CHECK_POWER": "check power supplies and what asks for the power brake",
    "RELOAD_DRIVER": "load the driver, or bring its two halves to one version",
    "CHECK_ACCESS": "check what the agent's container may open",
}
"""All that can be asked for. Names to INVESTIGATE_LINK_SI are NVIDIA's own, of the Xid catalogue's
buckets and of nvml.h's recovery actions, but for UNKNOWN; the others are ours, where it has none.
To CONTACT_SUPPORT they stand from the lightest to the heaviest; the others come of readings alone,
never of an Xid, and are not weighed."""

_WEIGHTS: Final = {action: place for place, action in enumerate(ACTIONS)}
_HEAVIEST: Final = _WEIGHTS["CONTACT_SUPPORT"]

_RECOVERIES: Final = {
    "none": "NONE",
    "gpu_reset": "RESET_GPU",
    "node_reboot": "REBOOT_NODE",
    "drain_p2p": "DRAIN_P2P",
    "drain_and_reset": "DRAIN_AND_RESET",
    "recover_imex": "RECOVER_IMEX",
    "bus_reset": "BUS_RESET",
    "system_reboot": "SYSTEM_REBOOT",
}

_STILL_WORKING: Final = frozenset({"DRAIN_AND_RESET", "UNKNOWN"})
"""nvidia-smi's manual: with the first the GPU works at reduced capacity, and jobs may end."""


def weight(action: str) -> int:
    """How heavy an action is; one that is not weighed, or not known, is as light as none."""
    place = _WEIGHTS.get(action, 0)
    return place if place <= _HEAVIEST else 0


def heaviest(actions: Iterable[str]) -> str:
    """The one that covers the others."""
    return max(actions, key=weight, default="NONE")


def grave(action: str) -> bool:
    """Whether it asks for more than the restart of a program or a service."""
    return weight(action) > weight("RESTART_FM")


def recovery(asked: str) -> str:
    """The driver's recovery action, by the inventory's name, as an action."""
    return _RECOVERIES.get(asked, "UNKNOWN")


def recovery_severity(action: str) -> Severity:
    """How bad it is that the driver itself asks for an action."""
    if action == "NONE":
        return "info"
    return "warning" if action in _STILL_WORKING else "critical"


def advice(action: str, gpu_index: int | None = None) -> str:
    """What to do, in words for who runs the node. Empty for what is not in `ACTIONS`.

    Args:
        gpu_index: as NVML counts; None: of any GPU.
    """
    gpu = "the GPU" if gpu_index is None else f"GPU {gpu_index}"
    reset = "nvidia-smi --gpu-reset" + ("" if gpu_index is None else f" --id={gpu_index}")
    resetting = (
        "stop what else has it open (exporters, DCGM, the mcp-gpu agent too), then run "
        f"{reset} on the node, for boards joined by NVLink all together; where that is refused, "
        "reboot the node."
    )
    return {
        "NONE": "Nothing has to be done about it.",
        "RESTART_APP": f"Restart the application that met it; {gpu} can go on working.",
        "RESTART_FM": "Look at the fabric manager: systemctl status nvidia-fabricmanager on the "
        "node, or its pod, and its log; restart it and see whether the fabric completes.",
        "UNKNOWN": "Look at nvidia-smi -q on the node and at the driver's documentation.",
        "DRAIN_P2P": f"End the processes that exchange data between {gpu} and its peers and turn "
        "UVM persistence mode off; then look here again: the driver will name the next step.",
        "RECOVER_IMEX": "Drain the jobs that share memory across nodes, then restart the IMEX "
        "domain (nvidia-imex on each of its nodes).",
        "RESET_GPU": f"Drain the pods that use {gpu}, {resetting}",
        "BUS_RESET": f"Drain the pods that use {gpu}, stop what else keeps it open, the mcp-gpu "
        "agent too, and have its PCIe bus reset; where that is not possible, power-cycle the node.",
        "DRAIN_AND_RESET": f"Give {gpu} no new work (cordon the node); what runs there may end. "
        f"Then {resetting}",
        "RESTART_VM": "Drain what runs in the virtual machine that has the GPU and restart it.",
        "REBOOT_NODE": "Cordon and drain the node, then reboot it; power-cycle it if the GPU "
        "does not come back. Should it happen again, have the board and its slot checked.",
        "SYSTEM_REBOOT": "Cordon and drain every node of this system, then power-cycle the "
        "whole of it.",
        "CHECK_SEATING": f"Drain the node and have {gpu}, its slot, riser, links and power cables "
        "checked and reseated.",
        "UPDATE_SW_FW": "Bring driver, firmware and, in a vGPU guest, host and guest software to "
        "versions that belong together.",
        "CONTACT_SUPPORT": f"Drain {gpu}, run nvidia-bug-report.sh on the node and give its file "
        "to the vendor's support.",
        "INVESTIGATE_LINK_SI": f"Drain {gpu} when its work allows, and have its NVLink "
        "connections (bridge, tray, cables, switch ports) checked; a reset trains the links anew.",
        "RUN_FIELD_DIAG": f"Drain {gpu} and run NVIDIA's field diagnostic on it: that decides "
        "whether the board is replaced. Keep work away from it until then.",
        "CHECK_COOLING": "Check intake temperature, air flow, fans or coolant of the node, and "
        "whether neighbours suffer alike. No reset will help.",
        "CHECK_POWER": "Check the node's power supplies, their redundancy and the rack's power "
        "limit: something pulls the brake that makes GPUs slow. No reset will help.",
        "RELOAD_DRIVER": "Restart this agent's pod, so that it gets the libraries of the driver "
        "that is loaded. If it stays: drain the node and reload the kernel module or reboot.",
        "CHECK_ACCESS": "Check the user id of this agent's container, its device permissions and "
        "device cgroup: what it may not open it cannot judge.",
    }.get(action, "")

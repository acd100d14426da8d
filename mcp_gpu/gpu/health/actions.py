"""What a finding asks for: the closed list of actions, and how each is done."""

from __future__ import annotations

from typing import Final

ACTIONS: Final[dict[str, str]] = {
    "NONE": "nothing to do",
    "RESTART_FM": "restart the fabric manager",
    "RESET_GPU": "drain the GPU and reset it",
    "DRAIN_AND_RESET": "let the GPU's work end, give it no new one, then reset it",
    "DRAIN_P2P": "end what uses peer-to-peer traffic, then ask the driver again",
    "RECOVER_IMEX": "recover the IMEX domain",
    "BUS_RESET": "drain the GPU and have its bus reset",
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
    "UNKNOWN": "ask the driver's documentation: the answer is newer than this program",
}
"""What a finding can ask for. The first to INVESTIGATE_LINK_SI are NVIDIA's own names, of the Xid
catalogue's buckets and of nvml.h's recovery actions; the others are ours, where it has none."""


def steps(action: str, gpu_index: int | None) -> str:
    """What to do, in words for who runs the node."""
    if gpu_index is None:
        gpu, reset = "the GPUs", "nvidia-smi --gpu-reset"
    else:
        gpu, reset = f"GPU {gpu_index}", f"nvidia-smi --gpu-reset --id={gpu_index}"
    resetting = (
        f"stop what else keeps {gpu} open (exporters, DCGM, this agent too: a reset is refused "
        f"while any process has the GPU open), then run {reset} on the node; boards joined by "
        "NVLink may only be reset all together. Where that is not possible, reboot the node."
    )
    return {
        "NONE": "Nothing to do now.",
        "RESTART_FM": "Look at the fabric manager: systemctl status nvidia-fabricmanager on the "
        "node, or its pod, and its log; restart it and see whether the fabric completes.",
        "RESET_GPU": f"Drain the pods that use {gpu}, {resetting}",
        "DRAIN_AND_RESET": f"Give {gpu} no new work (cordon the node); what runs there may end. "
        f"Then {resetting}",
        "DRAIN_P2P": f"End the processes that exchange data between {gpu} and its peers and turn "
        "UVM persistence mode off; then look here again: the driver will name the next step.",
        "RECOVER_IMEX": "Drain the jobs that share memory across nodes, then restart the IMEX "
        "domain (nvidia-imex on each of its nodes).",
        "BUS_RESET": f"Drain the pods that use {gpu}, stop what else keeps it open, this agent "
        "too, and have its PCIe bus reset; where that is not possible, power-cycle the node.",
        "REBOOT_NODE": "Cordon and drain the node, then reboot it; power-cycle it if the GPU "
        "does not come back. Should it happen again, have the board and its slot checked.",
        "SYSTEM_REBOOT": "Cordon and drain every node of this system, then power-cycle the "
        "whole of it.",
        "CHECK_SEATING": f"Drain the node and have {gpu}, its slot, riser and power cables "
        "checked and reseated.",
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
        "RESTART_VM": "Drain what runs in the virtual machine that has the GPU and restart it.",
        "UPDATE_SW_FW": "Bring driver, firmware and, in a vGPU guest, host and guest software to "
        "versions that belong together.",
        "CONTACT_SUPPORT": f"Drain {gpu}, run nvidia-bug-report.sh on the node and give its file "
        "to the vendor's support.",
    }.get(action, "Look at nvidia-smi -q on the node and at the driver's documentation.")

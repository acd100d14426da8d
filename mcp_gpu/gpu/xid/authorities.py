"""Who else judges Xids, and where one of them says otherwise than NVIDIA: `disagreements`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mcp_gpu.gpu.actions import grave

Stance = Literal["mild", "grave", "open"]
"""mild: the application's matter, if anything; grave: the GPU or its node is not to be used on;
open: watched, without a judgement."""

_AUTHORITIES: dict[str, tuple[str, Stance]] = {
    "DPskip": (
        "NVIDIA's Kubernetes device plugin and DRA driver take it for the application's error and"
        " leave the GPU in service",
        "mild",
    ),
    "EKS!": ("Amazon EKS's node monitoring takes it for fatal", "grave"),
    "GKE!": ("Google GKE's device plugin takes it for critical by default", "grave"),
    "GKE": ("Google GKE can be told to watch for it", "open"),
    "AZ": ("Azure's node health check fails the node", "grave"),
    "DCGM-F": ("NVIDIA's DCGM fails its health check", "grave"),
    "DCGM-w": ("NVIDIA's DCGM warns", "open"),
    "GCM-nc": ("Meta's GPU cluster monitoring counts it as not critical", "mild"),
    "gpud:reboot": ("gpud suggests to reboot the node", "grave"),
    "gpud:reboot+hw-inspect": (
        "gpud suggests to reboot the node and have the hardware inspected",
        "grave",
    ),
    "gpud:reboot+ignore": ("gpud suggests to reboot the node, or to ignore it", "open"),
    "gpud:hw-inspect": ("gpud suggests to have the hardware inspected", "grave"),
    "gpud:check-app": ("gpud suggests to check the application", "mild"),
    "gpud:check-app+hw-inspect": (
        "gpud suggests to check the application and have the hardware inspected",
        "open",
    ),
    "gpud:ignore": ("gpud ignores it", "mild"),
}
"""What each of them is known to do, as data/codes.json abbreviates it."""


def disagreements(
    others: Sequence[str], bucket: str, action: str, *, unused: bool
) -> tuple[str, ...]:
    """One sentence for each who judges otherwise than NVIDIA's catalogue does by its bucket."""
    if unused:
        catalogue, stance = "NVIDIA's catalogue lists it as unused", None
    elif bucket == "WORKFLOW_NVLINK5_ERR":
        catalogue, stance = "NVIDIA's catalogue decodes the line, often to no action", None
    elif not bucket:
        catalogue, stance = "NVIDIA's catalogue has no bucket for it yet", None
    else:
        catalogue = f"NVIDIA's catalogue says {bucket}"
        stance = "grave" if grave(action) else "mild"
    return tuple(
        f"{catalogue}; {says}."
        for says, theirs in (_AUTHORITIES[other] for other in others)
        if theirs not in ("open", stance)
    )

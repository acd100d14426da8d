"""`diagnose-xid-errors`: what the Xids of a stretch of time say together."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Final

from pydantic import Field

from mcp_gpu.prompts.guide import Guide
from mcp_gpu.registry import Arguments
from mcp_gpu.registry.completion import Completer
from mcp_gpu.registry.prompt import Prompt
from mcp_gpu.tools.xids_model import Since

__all__ = ["prompt"]

RANGES: Final = ("boot", "1h", "6h", "24h", "3d", "7d")
"""Offered while one is being typed."""


class XidArguments(Arguments):
    """How far back to look."""

    time_range: Since = Field(
        default="24h",
        description="How far back: a duration such as 1h, 24h or 3d, an ISO 8601 time with its "
        "zone, or boot; default 24h.",
    )


async def _ranges(given: Mapping[str, str]) -> tuple[str, ...]:
    return RANGES


def prompt(*, fleet: bool) -> Prompt[XidArguments]:
    """The prompt of an agent or of a gateway."""

    def write(arguments: XidArguments, tools: Set[str]) -> str:
        return _text(arguments.time_range, tools, fleet=fleet)

    return Prompt(
        name="diagnose-xid-errors",
        title="Diagnose Xid errors",
        description="Find out what the GPUs' Xid errors of a stretch of time mean together, which "
        "of them matter, and what to do.",
        arguments=XidArguments,
        write=write,
        completes={"time_range": Completer(_ranges)},
    )


def _text(since: str, tools: Set[str], *, fleet: bool) -> str:
    words = "since the last boot" if since == "boot" else f"of the time range {since}"
    guide = Guide(f"Diagnose the NVIDIA Xid errors {words}.", tools, fleet=fleet)
    guide.step(
        "analyze_xid_errors",
        text=f"Call {guide.call('analyze_xid_errors', since=since)} first. It tells causes with "
        "what followed from them (48 -> 63 -> 45): what follows is not an error of its own. Per "
        "GPU it says what to do first. Rare and grave codes come before floods; a high count "
        "alone proves nothing.",
    )
    guide.step(
        "analyze_xid_errors",
        text="Read what it could not see before you conclude that there was nothing: sources that "
        "are not readable"
        + (", nodes that are blind, nodes that did not answer" if fleet else "")
        + ".",
    )
    guide.step(
        "check_connectivity",
        text="For nodes that did not answer, `check_connectivity` says why.",
    )
    guide.step(
        "explain_xid",
        text="`explain_xid` with the code, or with the line of the log as it stands, for codes "
        "that decide. Keep apart what a program does (such as 13, 31, 43), what only follows (45), "
        "and what is the GPU, its memory or its links (such as 48, 63, 64, 79, 94, 95, 119, 120, "
        "144 to 150). Where authorities disagree it says so: tell both.",
    )
    guide.step(
        "get_gpu_health",
        text=f"`get_gpu_health`{' of the nodes concerned' if fleet else ''}: what is left of it "
        "now. An Xid may be over; a pending row remap, a recovery action or a lost GPU is not.",
    )
    if fleet:
        guide.step(
            "analyze_xid_errors",
            text="The same code on many nodes at one time points at what they share (a program, a "
            "driver version, a fabric), not at so many boards.",
        )
    guide.step(
        "get_nvlink_topology",
        text="For 74 and 144 to 150, `get_nvlink_topology` shows which links are down and what is "
        "at their other ends.",
    )
    guide.step(
        "get_gpu_timeline",
        text="`get_gpu_timeline` shows what temperature, power and clocks did at that time.",
    )
    guide.step(
        "get_pod_gpu_allocation",
        text="`get_pod_gpu_allocation` says whose pods hold those GPUs now; an Xid's own process "
        "is in its line.",
    )
    guide.step(
        "explain_failure",
        text=f"{guide.call('explain_failure', pod='its-name', namespace='its-own')} for "
        "a pod that died then says whether its own code is to blame.",
    )
    guide.stop("if there were no Xids and every source was readable: say so, and how far back.")
    guide.stop("once each chain has its cause, its action and what is left of it now.")
    guide.stop("with codes whose action is NONE or that a program's restart settles: count them.")
    return guide.report(
        "Grave chains first: where, when, the cause and what followed, what it means, NVIDIA's "
        "action, what is left of it now. Then what belongs to programs, in one line each. Then "
        "what could not be seen."
    )

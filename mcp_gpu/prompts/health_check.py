"""`gpu-health-check`: what is wrong with the GPUs, and who is hit by it."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Final

from pydantic import Field

from mcp_gpu.prompts.arguments import NodeName
from mcp_gpu.prompts.guide import Guide
from mcp_gpu.registry import Arguments
from mcp_gpu.registry.completion import Completer
from mcp_gpu.registry.prompt import Prompt

__all__ = ["VERDICTS", "agent_prompt", "gateway_prompt"]

NAME: Final = "gpu-health-check"
TITLE: Final = "Check GPU health"

VERDICTS: Final = (
    "Verdicts: `failed` is something critical, `degraded` a warning, `unknown` could not be looked "
    "at, `healthy` was looked at and has nothing above info. Findings come worst first, each with "
    "evidence, NVIDIA's action, advice in words and a confidence. The driver's own recovery action "
    "weighs more than any rule."
)


class GatewayArguments(Arguments):
    """Where to look."""

    node: NodeName | None = Field(default=None, description="Node to check; left out: all nodes.")


class AgentArguments(Arguments):
    """Nothing: an agent's node is its own."""


def gateway_prompt(completes: Mapping[str, Completer]) -> Prompt[GatewayArguments]:
    """The prompt of a gateway."""

    def write(arguments: GatewayArguments, tools: Set[str]) -> str:
        return _text(arguments.node, tools, fleet=True)

    return Prompt(
        name=NAME,
        title=TITLE,
        description="Check the GPUs of a node or of the whole fleet: verdicts, what is behind "
        "them, who is hit, and what to do.",
        arguments=GatewayArguments,
        write=write,
        completes=completes,
    )


def agent_prompt() -> Prompt[AgentArguments]:
    """The prompt of an agent."""

    def write(arguments: AgentArguments, tools: Set[str]) -> str:
        return _text(None, tools, fleet=False)

    return Prompt(
        name=NAME,
        title=TITLE,
        description="Check the GPUs of this node: verdicts, what is behind them, who is hit, and "
        "what to do.",
        arguments=AgentArguments,
        write=write,
    )


def _text(node: str | None, tools: Set[str], *, fleet: bool) -> str:
    where = f"node {node}" if node else "the whole fleet" if fleet else "this node"
    guide = Guide(f"Check the health of the NVIDIA GPUs of {where}.", tools, fleet=fleet)
    guide.step(
        "get_gpu_health", text=f"Call {guide.call('get_gpu_health', node)} first. {VERDICTS}"
    )
    guide.step(
        "check_connectivity",
        text="Nodes among its `failures` did not answer: "
        f"{guide.call('check_connectivity', node)} says why, and what mends it.",
    )
    guide.step(
        "describe_gpu_node",
        text="Where GPUs are missing or a node is `unknown`, "
        + guide.call("describe_gpu_node", node or "its-name")
        + " compares what NVML, the bus and Kubernetes count.",
    )
    if not guide.has("describe_gpu_node"):
        guide.step(
            "get_gpu_inventory",
            text="Where GPUs are missing, "
            f"{guide.call('get_gpu_inventory', node, detail='full')} lists those there are, with "
            "driver, bus address and state.",
        )
    guide.step(
        "analyze_xid_errors",
        "explain_xid",
        text="Where a finding rests on Xids, "
        f"{guide.call('analyze_xid_errors', node, since='24h')} says what caused what; "
        "`explain_xid` explains one code.",
    )
    guide.step(
        "get_gpu_timeline",
        text="For a sick GPU, `get_gpu_timeline` shows when it began. A moment that is shared by "
        "several GPUs points at what they share.",
    )
    guide.step(
        "get_pod_gpu_allocation",
        text=f"{guide.call('get_pod_gpu_allocation', node)} says whose pods hold the sick GPUs.",
    )
    answered = "every node answered" if fleet else "the readings are recent"
    guide.stop(f"at once if everything is `healthy`, {answered} and nothing is a gap.")
    guide.stop("once each finding above info has its evidence and those whom it hits are named.")
    guide.stop("where tools cannot see further: say what would have to be looked at on the node.")
    return guide.report(
        "The verdict first, with how many GPUs it speaks for. Then each finding: where, "
        "the reading behind it, what to do in NVIDIA's words, how sure, who is hit. Then what "
        "could not be checked. A healthy answer takes two sentences."
    )

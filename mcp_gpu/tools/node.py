"""`describe_gpu_node` as an agent serves it: all that it knows of its own node."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mcp_gpu.gpu.xid.report import utc
from mcp_gpu.node.aside import Aside, Blocked
from mcp_gpu.node.surroundings import Surroundings
from mcp_gpu.registry import Answer, Arguments, Call, Tool
from mcp_gpu.tools.health_model import NodeHealth
from mcp_gpu.tools.inventory import MAX_AGE_SECONDS, reading_age, trouble
from mcp_gpu.tools.node_model import NAME, XIDS, NodeDescription, NodeGpu, NodeVerdict, RecentXids
from mcp_gpu.tools.node_text import agent_lines
from mcp_gpu.tools.xids import within
from mcp_gpu.tools.xids_model import NodeXids

if TYPE_CHECKING:  # a gateway runs where there is no NVML, and shares only the models
    from mcp_gpu.gpu.collector import Collector
    from mcp_gpu.gpu.model import Snapshot
    from mcp_gpu.node.sight import Sight
    from mcp_gpu.node.watch import XidWatch

__all__ = ["AgentArguments", "agent_tool"]

FRESH_TIMEOUT_SECONDS = 0.5
"""As `get_gpu_health` waits."""

LOOK_SECONDS = 2.0
"""For what stands around the GPUs: a slot whose device is dead may take some tens of milliseconds
for each read."""

XIDS_SINCE = "24h"
"""Which Xids are recent."""

TEXT_CHARS = 8_000
"""The text is never longer."""


class AgentArguments(Arguments):
    """None: an agent has one node."""


def agent_tool(
    node: str,
    collector: Collector,
    watch: XidWatch,
    sight: Callable[[], Sight],
    surroundings: Callable[[], Surroundings],
    *,
    expected_gpus: int | None = None,
) -> Tool[AgentArguments]:
    """The tool over one node.

    Args:
        sight: what the agent can look at now.
        surroundings: looks at what stands around the GPUs; may block.
        expected_gpus: how many GPUs the node should have, where somebody has said so.
    """
    from mcp_gpu.gpu.health.assess import assess

    def described(snapshot: Snapshot, around: Surroundings) -> NodeDescription:
        found = assess(
            snapshot,
            collector.past(),
            bursts=watch.log.bursts(boot_id=watch.boot_id),
            expected_gpus=expected_gpus,
        )
        looked = sight()
        health = NodeHealth.of(node, snapshot, found, looked, detail="summary", severity="warning")
        xids = NodeXids.of(node, snapshot, watch, since=XIDS_SINCE, codes=(), limit=XIDS)
        verdicts = {each.gpu_index: each.verdict for each in found.gpus}
        up = time.time() - watch.booted_at
        return NodeDescription(
            node=node,
            simulated=snapshot.simulated,
            state=snapshot.state,
            message=trouble(snapshot),
            surroundings=around,
            booted_at=utc(watch.booted_at),
            uptime_seconds=round(up) if up >= 0 else None,
            driver_version=snapshot.driver_version,
            nvml_version=snapshot.nvml_version,
            cuda_version=snapshot.cuda_version,
            gpu_count=snapshot.gpu_count if snapshot.state == "ok" else None,
            gpu_count_most=snapshot.gpu_count_expected,
            gpu_count_wanted=expected_gpus,
            gpus=tuple(
                NodeGpu.of(gpu, verdicts.get(gpu.index, "unknown")) for gpu in snapshot.gpus
            ),
            health=NodeVerdict.of(health),
            xids=RecentXids.of(xids),
            sight=looked,
            age_seconds=reading_age(snapshot.fast_at),
        )

    aside = Aside("surroundings")

    async def run(arguments: AgentArguments, call: Call) -> Answer:
        snapshot = collector.snapshot
        if snapshot.waiting is None:
            snapshot = await collector.fresh(
                max_age_seconds=MAX_AGE_SECONDS, timeout_seconds=FRESH_TIMEOUT_SECONDS
            )
        description = described(snapshot, await _look(surroundings, aside))
        return Answer("\n".join(within(agent_lines(description), TEXT_CHARS)), description)

    return Tool(
        name=NAME,
        title="This GPU node on one page",
        description=(
            "Describe this node: its kernel, driver and CUDA, module and library versions, the "
            "NVIDIA GPUs on its PCI bus beside those that NVML counts, the health verdict with "
            "its worst findings, Xids of the last day, and what the agent may see and why not. "
            "A null has its reason in `unavailable`."
        ),
        arguments=AgentArguments,
        result=NodeDescription,
        run=run,
    )


async def _look(surroundings: Callable[[], Surroundings], aside: Aside) -> Surroundings:
    """On a thread, of which there is one: where it is stuck, later calls have none of it."""
    try:
        return await aside.run(surroundings, LOOK_SECONDS)
    except Blocked:
        return Surroundings.unseen(
            f"not answered for {LOOK_SECONDS:g} s: a device on the PCI bus is dead or being reset"
        )

"""Which role has which prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mcp_gpu.prompts import health_check, slow_job, triage, xid_errors
from mcp_gpu.registry.completion import Completer
from mcp_gpu.registry.prompt import Prompt

__all__ = ["agent_prompts", "gateway_prompts"]


def gateway_prompts(completes: Mapping[str, Completer]) -> Sequence[Prompt[Any]]:
    """All of them, for a fleet.

    Args:
        completes: where the names of nodes come from, under `node`.
    """
    return (
        xid_errors.prompt(fleet=True),
        health_check.gateway_prompt(completes),
        triage.prompt(completes),
        slow_job.prompt(fleet=True),
    )


def agent_prompts() -> Sequence[Prompt[Any]]:
    """Those that make sense on one node. Incidents are a gateway's: an agent sees neither
    Kubernetes nor its neighbours."""
    return (
        xid_errors.prompt(fleet=False),
        health_check.agent_prompt(),
        slow_job.prompt(fleet=False),
    )

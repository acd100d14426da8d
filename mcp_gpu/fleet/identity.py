"""Whether who answered is the agent that was meant."""

from __future__ import annotations

from transports.base import Identity, Target

__all__ = ["mismatch"]

AGENT_NAME = "mcp-gpu"
"""What an agent calls itself; anything else on its port is somebody else."""


def mismatch(target: Target, identity: Identity) -> str | None:
    """What shows that somebody else answered; None for the agent that was meant.

    Addresses are reused: an old one may lead to another node's agent by now.
    """
    if identity.name != AGENT_NAME:
        return f"the server there is {identity.name!r}, not {AGENT_NAME!r}"
    if target.uid and identity.uid and identity.uid != target.uid:
        return f"pod {identity.uid} answers where pod {target.uid} was expected"
    if target.node and identity.node != target.node:
        return f"the agent there says it is on node {identity.node!r}, not {target.node!r}"
    return None

"""Proving that a path leads to the agent that was meant."""

from __future__ import annotations

import logging

import anyio

from mcp_gpu.fleet.patience import Patience
from transports.base import Identity, Target, Transport
from transports.errors import BadPeer, Broken, TimedOut, TransportError

__all__ = ["PROVEN_WITHOUT_TOKEN", "mismatch", "prove"]

logger = logging.getLogger(__name__)

PROVEN_WITHOUT_TOKEN = frozenset({"http", "portforward"})
"""Paths whose probe shows no token, and whose calls show the same one to the same endpoint: that
calls are let in takes a request of its own, and a token refused on one is refused on the other."""

AGENT_NAME = "mcp-gpu"
"""What an agent calls itself; anything else on its port is somebody else."""


async def prove(
    transport: Transport, target: Target, timeout_seconds: float, patience: Patience
) -> Identity:
    """Ask now who answers on this path.

    Args:
        timeout_seconds: by `patience`.

    Raises:
        TransportError: the path does not work, or leads to somebody else (`BadPeer`). `Broken`
            too for a defect of the transport: one met on one path costs that path.
    """
    with anyio.CancelScope() as scope:
        alarm = patience.after(timeout_seconds, scope.cancel)
        try:
            identity = await transport.probe(target)
        except TransportError:
            raise
        except Exception as error:
            logger.exception("trying %s for %s failed", transport.name, target)
            text = f"internal error: {type(error).__name__}; see the log"
            raise Broken(text, target=target, transport=transport.name) from error
        finally:
            alarm.cancel()
        wrong = mismatch(target, identity)
        if wrong is not None:
            raise BadPeer(wrong, target=target, transport=transport.name)
        return identity
    raise TimedOut(
        f"no answer to the probe within {timeout_seconds:g} s",
        target=target,
        transport=transport.name,
    )


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

"""What is known of each path to each agent, and how to find out more.

Knowledge is earned by a probe that proves identity, is kept per agent (its pod uid where
discovery knows it), expires, and is dropped at the first failure, so that nobody waits
twice for a dead path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import anyio

from transports.base import Identity, Target, Transport
from transports.errors import BadPeer, TimedOut

__all__ = ["Reachability"]

AGENT_NAME = "mcp-gpu"
"""What an agent calls itself; anything else on its port is somebody else."""


@dataclass(frozen=True, slots=True)
class _Proof:
    identity: Identity
    path: str
    expires: float


class Reachability:
    """The paths to every agent, best first.

    Args:
        transports: in order of preference, already entered by the caller.
        probe_timeout_seconds: how long a probe may take on a path, by transport name.
            A path that is dead costs this once.
        default_probe_timeout_seconds: for transports not named there. Longer than HTTP's,
            because a stream is opened by starting a process (an exec stream was measured at
            0.6 s, ssh takes seconds).
        ttl_seconds: how long a proof counts. Each call over the preferred path renews it.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        *,
        probe_timeout_seconds: Mapping[str, float] | None = None,
        default_probe_timeout_seconds: float = 5.0,
        ttl_seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.transports = tuple(transports)
        self._timeouts = dict(probe_timeout_seconds or {})
        self._default_timeout_seconds = default_probe_timeout_seconds
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._proofs: dict[str, _Proof] = {}
        self._nodes: dict[str, str] = {}
        self._suspects: set[str] = set()

    def node(self, target: Target) -> str:
        """The agent's node: as discovery says, else as its last probe said, else empty."""
        return target.node or self._nodes.get(target.key, "")

    def paths(self, target: Target) -> list[Transport]:
        """The transports that apply to the target: the proven one first, then by preference."""
        proof = self._proof(target)
        fitting = [t for t in self.transports if t.applies(target)]
        if proof is not None:
            fitting.sort(key=lambda t: t.name != proof.path)
        return fitting

    def is_suspect(self, target: Target) -> bool:
        """Whether the last thing heard of the agent was a failure on every path."""
        return target.key in self._suspects

    def proven(self, target: Target, transport: Transport) -> Identity | None:
        """Who answered on this path last, while that still counts."""
        proof = self._proof(target)
        return proof.identity if proof is not None and proof.path == transport.name else None

    async def probe(self, target: Target, transport: Transport) -> Identity:
        """Ask now who answers on this path, and remember it.

        Raises:
            TransportError: the path does not work, or leads to somebody else (`BadPeer`).
        """
        timeout_seconds = self._timeouts.get(transport.name, self._default_timeout_seconds)
        try:
            with anyio.fail_after(timeout_seconds):
                identity = await transport.probe(target)
        except TimeoutError:
            raise TimedOut(
                f"no answer to the probe within {timeout_seconds:g} s",
                target=target,
                transport=transport.name,
            ) from None
        _compare(target, identity, transport.name)
        self._proofs[target.key] = _Proof(identity, transport.name, self._expiry())
        self._nodes[target.key] = identity.node
        return identity

    def succeeded(self, target: Target, transport: Transport) -> None:
        """A call went through. On the preferred path that is as good as a new probe; a path that
        is second choice expires all the same, so that a healed better one is found again."""
        self._suspects.discard(target.key)
        preferred = next((t for t in self.transports if t.applies(target)), None)
        proof = self._proofs.get(target.key)
        if proof is not None and proof.path == transport.name and transport is preferred:
            self._proofs[target.key] = replace(proof, expires=self._expiry())

    def failed(self, target: Target, transport: Transport) -> None:
        """A call failed on this path: the next one looks for a path anew."""
        proof = self._proofs.get(target.key)
        if proof is not None and proof.path == transport.name:
            del self._proofs[target.key]

    def exhausted(self, target: Target) -> None:
        """Every path failed."""
        self._suspects.add(target.key)

    def retain(self, targets: Collection[Target]) -> None:
        """Forget agents that discovery no longer knows."""
        keys = {target.key for target in targets}
        self._proofs = {k: proof for k, proof in self._proofs.items() if k in keys}
        self._nodes = {k: node for k, node in self._nodes.items() if k in keys}
        self._suspects &= keys

    def _proof(self, target: Target) -> _Proof | None:
        proof = self._proofs.get(target.key)
        return proof if proof is not None and proof.expires > self._clock() else None

    def _expiry(self) -> float:
        return self._clock() + self._ttl_seconds


def _compare(target: Target, identity: Identity, transport: str) -> None:
    """Refuse an answer from anybody but the agent that was meant.

    Addresses are reused: an old one may lead to another node's agent by now.
    """
    wrong = None
    if identity.name != AGENT_NAME:
        wrong = f"the server there is {identity.name!r}, not {AGENT_NAME!r}"
    elif target.uid and identity.uid and identity.uid != target.uid:
        wrong = f"pod {identity.uid} answers where pod {target.uid} was expected"
    elif target.node and identity.node != target.node:
        wrong = f"the agent there says it is on node {identity.node!r}, not {target.node!r}"
    if wrong is not None:
        raise BadPeer(wrong, target=target, transport=transport)

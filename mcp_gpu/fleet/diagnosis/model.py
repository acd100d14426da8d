"""What a diagnosis says, as an answer carries it."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["CODES", "Cause", "Code", "Confidence", "Diagnosis", "Unread", "Verdict"]

Verdict = Literal["healthy", "degraded", "broken", "unknown"]

Confidence = Literal["high", "medium", "low"]

Code = Literal[
    "crosssubnet-source-check",
    "network-policy",
    "cni-policy",
    "overlay-blocked",
    "checksum-offload",
    "mtu",
    "mesh-mtls",
    "reverse-path",
    "vpc-cni-snat",
    "pod-security-group",
    "security-group",
    "agent-absent",
    "agent-down",
    "agent-not-listening",
    "agent-on-loopback",
    "stale-address",
    "address-family",
    "name-resolution",
    "node-down",
    "node-network",
    "kubelet-unreachable",
    "api-unreachable",
    "api-credentials",
    "stream-rbac",
    "stream-admission",
    "no-relay",
    "token-rejected",
    "host-not-allowed",
    "certificate-untrusted",
    "certificate-name",
    "certificate-expired",
    "tls-scheme",
    "tls",
    "kernel-regression",
    "unknown",
]
"""The closed list of causes. docs/troubleshooting/cross-node-networking.md explains each."""

CODES: tuple[Code, ...] = get_args(Code)


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True)


class Cause(_Wire):
    """Why some paths fail."""

    code: Code
    title: str = Field(description="The cause in one line.")
    confidence: Confidence = Field(
        description="high: pattern and evidence both say so; medium: one does; low: a guess."
    )
    node_count: int = Field(description="How many nodes it concerns.")
    nodes: tuple[str, ...] = Field(description="The first few of them.")
    evidence: tuple[str, ...] = ()
    fix: tuple[str, ...] = Field(
        default=(), description="Commands, and remarks that begin with #; ways out in order."
    )


class Unread(_Wire):
    """Something that would have told more and could not be read."""

    what: str
    why: str
    grant: str = Field(description="What to permit; empty where that is not what is missing.")


class Diagnosis(_Wire):
    """What is wrong between the gateway and its agents."""

    verdict: Verdict = Field(
        description="healthy: every node answers on its preferred path; degraded: another path "
        "carries; broken: some node is reached by no path; unknown: time was up before all "
        "had been looked at."
    )
    headline: str
    causes: tuple[Cause, ...] = Field(default=(), description="Likeliest first.")
    patterns: tuple[str, ...] = Field(default=(), description="Who answers, n of m.")
    ruled_out: tuple[str, ...] = ()
    unread: tuple[Unread, ...] = ()

"""What is asked of callers, and who they turn out to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

__all__ = ["AccessPolicy", "Caller", "KubernetesTokens", "OAuth", "Unverifiable", "Verifier"]

KubernetesTokens = Literal["off", "review", "jwks"]
"""How a Kubernetes token is checked: by asking the API server each time (TokenReview), which knows
of deleted accounts and pods, or by the cluster's public keys, which asks it once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuth:
    """The authorization server whose access tokens are believed (MCP authorization)."""

    issuer: str
    """Its issuer identifier, an https URL."""
    resource: str
    """This server's own URL, as clients call it: the audience that tokens must be made for."""
    scopes: tuple[str, ...] = ()
    """What a token must permit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessPolicy:
    """What a caller over HTTP has to show. Any one kind of token that is on will do."""

    token_file: Path | None = None
    """Static bearer tokens, one per line. Their holders may call every tool."""
    kubernetes_tokens: KubernetesTokens = "off"
    token_audiences: tuple[str, ...] = ()
    """A Kubernetes token must be made for one of these."""
    token_subjects: tuple[str, ...] = ()
    """User names that a Kubernetes token may be of; empty for all."""
    access_review: bool = False
    """Whether cluster RBAC decides which tools a caller may call (SubjectAccessReview: verb call,
    API group gpu.mcp, resource tools, the tool's name)."""
    access_namespace: str = ""
    """Namespace in which it is asked. Empty: the pod's own."""
    oauth: OAuth | None = None
    anonymous: bool = False
    """Whether it was said on purpose that callers need no token."""

    @property
    def wants_token(self) -> bool:
        """Whether a caller has to show a token at all."""
        return (
            self.token_file is not None or self.kubernetes_tokens != "off" or self.oauth is not None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who showed a token."""

    kind: Literal["static", "kubernetes", "oauth"]
    name: str
    """A user name, such as `system:serviceaccount:NAMESPACE:NAME`; of a static token `static`."""
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Unverifiable(Exception):
    """Whether a token is good cannot be found out now. The text says why and shows no token."""


class Verifier(Protocol):
    """Knows one kind of token."""

    async def verify(self, token: str) -> Caller | None:
        """Whose token it is; None for one that is not valid here.

        Raises:
            Unverifiable: what has to be asked does not answer.
        """

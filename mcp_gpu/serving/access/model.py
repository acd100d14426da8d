"""What is asked of callers, and who they turn out to be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, Self
from urllib.parse import urlsplit

from transports.hosts import is_loopback

__all__ = [
    "AccessPolicy",
    "Caller",
    "InsufficientScope",
    "KubernetesTokens",
    "OAuth",
    "Unverifiable",
    "Verifier",
    "is_secure",
]

KubernetesTokens = Literal["off", "review", "jwks"]
"""How a Kubernetes token is checked: by asking the API server (TokenReview), which knows of deleted
accounts and pods, or by the cluster's public keys, which need no asking."""


_SCOPE = re.compile(r"[!#-\[\]-~]+")
"""RFC 6749, section 3.3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuth:
    """The authorization server whose access tokens are believed (MCP authorization)."""

    issuer: str
    """Its issuer identifier, an https URL."""
    resource: str
    """This server's own URL, as clients call it: the audience that tokens must be made for."""
    scopes: tuple[str, ...] = ()
    """What a token must permit."""

    @classmethod
    def chosen(cls, issuer: str, resource: str, scopes: tuple[str, ...]) -> Self | None:
        """What these settings choose; None where all are empty."""
        if not (issuer or resource or scopes):
            return None
        return cls(issuer=issuer, resource=resource, scopes=scopes)

    def __post_init__(self) -> None:
        """Raises ValueError: a URL or a scope cannot be one. The text names the setting."""
        if not self.issuer or not self.resource:
            raise ValueError(
                "--oauth-issuer and --oauth-resource go together: who makes the access tokens, "
                "and this server's URL, for which they must be made"
            )
        if not (is_secure(self.issuer) and _is_url(self.issuer)):
            raise ValueError("--oauth-issuer must be an https URL without query and fragment")
        if not _is_url(self.resource):
            raise ValueError(
                "--oauth-resource must be this server's URL as clients call it, such as "
                "https://gpu.example.com/mcp"
            )
        for scope in self.scopes:
            if not _SCOPE.fullmatch(scope):
                raise ValueError(f"--oauth-scopes: {scope!r} cannot be a scope")


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

    def __post_init__(self) -> None:
        """Raises ValueError: settings contradict each other. The text says what to do."""
        if self.kubernetes_tokens == "off" and (self.token_audiences or self.token_subjects):
            raise ValueError(
                "--token-audiences and --token-subjects choose among Kubernetes tokens: set "
                "--kubernetes-tokens to review or jwks"
            )
        if self.kubernetes_tokens != "off" and not self.token_audiences:
            raise ValueError(
                "--kubernetes-tokens needs --token-audiences: a token made for another server must "
                "not be good here, nor one shown here elsewhere"
            )
        if self.access_review and self.kubernetes_tokens == "off" and self.oauth is None:
            raise ValueError(
                "--access-review asks what a user may do, and static tokens name none: set "
                "--kubernetes-tokens or --oauth-issuer"
            )
        if self.access_namespace and not self.access_review:
            raise ValueError("--access-namespace goes with --access-review only")
        if self.anonymous and self.wants_token:
            raise ValueError("--allow-anonymous contradicts the kinds of token that are wanted")

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


class InsufficientScope(Exception):
    """A token is good, and does not permit what is wanted here."""


class Unverifiable(Exception):
    """Whether a token is good cannot be found out now. The text says why and shows no token."""


class Verifier(Protocol):
    """Knows one kind of token."""

    async def verify(self, token: str) -> Caller | None:
        """Whose token it is; None for one that is not valid here.

        Raises:
            Unverifiable: what has to be asked does not answer.
            InsufficientScope: it is good, and does not permit enough.
        """


def is_secure(url: str) -> bool:
    """Whether what is read there is its owner's: https, or http on loopback."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return bool(host) if parts.scheme == "https" else parts.scheme == "http" and is_loopback(host)


def _is_url(url: str) -> bool:
    """Whether it is a web server's plain URL, fit to be quoted in a header."""
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    plain = re.fullmatch(r"[!#-\[\]-~]+", url) is not None  # no blank, quote or backslash
    return named and plain and not parts.query and not parts.fragment and "@" not in parts.netloc

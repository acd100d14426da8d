"""Kubernetes tokens of ServiceAccounts, checked by the cluster's public keys.

The API server is asked for the keys alone, so it may be away. What it costs: a token counts until
it ends, though its pod or account is deleted before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp_gpu.serving.access.cluster_api import SERVER, ClusterApi
from mcp_gpu.serving.access.keys import IssuerKeys, Published
from mcp_gpu.serving.access.model import Caller, Unverifiable

__all__ = ["SignedTokens"]

PRIVATE_CLAIM = "kubernetes.io"
"""What a projected token says of where it belongs."""


class SignedTokens:
    """ServiceAccounts' tokens of these audiences, and of these users if any are named."""

    def __init__(
        self, cluster: ClusterApi, *, audiences: tuple[str, ...], subjects: tuple[str, ...]
    ) -> None:
        self._cluster = cluster
        self._subjects = frozenset(subjects)
        self._keys = IssuerKeys(self._fetch, audiences)

    async def verify(self, token: str) -> Caller | None:
        """See `Verifier`."""
        claims = await self._keys.claims(token)
        caller = None if claims is None else _caller(claims)
        if caller is None or (self._subjects and caller.name not in self._subjects):
            return None
        return caller

    async def keep(self) -> None:
        """See `IssuerKeys`."""
        await self._keys.keep()

    async def _fetch(self) -> Published:
        # Not where the document says: that may be a place for others, outside of the cluster.
        said = await self._cluster.get("/.well-known/openid-configuration")
        issuer = said.get("issuer") if isinstance(said, dict) else None
        if not isinstance(issuer, str) or not issuer:
            raise Unverifiable(f"{SERVER} does not say who issues its tokens")
        return Published(issuer, await self._cluster.get("/openid/v1/jwks"))


def _caller(claims: Mapping[str, Any]) -> Caller | None:
    """Whose token it is, as the API server names accounts (its `serviceaccount.UserInfo`)."""
    private = claims.get(PRIVATE_CLAIM)
    private = private if isinstance(private, dict) else {}
    account = private.get("serviceaccount")
    account = account if isinstance(account, dict) else {}
    namespace, name, uid = private.get("namespace"), account.get("name"), account.get("uid")
    if claims.get("sub") != f"system:serviceaccount:{namespace}:{name}":
        return None
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")
    return Caller(
        kind="kubernetes",
        name=claims["sub"],
        uid=uid if isinstance(uid, str) else "",
        groups=(*groups, "system:authenticated"),
    )

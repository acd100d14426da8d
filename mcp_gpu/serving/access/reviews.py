"""Kubernetes tokens, checked by asking the API server (TokenReview).

It knows what no signature tells: of accounts, pods and secrets that are deleted, and of tokens that
are revoked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from typing import Any

from mcp_gpu.serving.access.answers import Answers
from mcp_gpu.serving.access.claims import expiry, plausible, strings
from mcp_gpu.serving.access.cluster_api import ClusterApi
from mcp_gpu.serving.access.model import Caller

__all__ = ["ReviewedTokens"]

GOOD_SECONDS = 60.0
"""How long a token that was good counts as good: a revoked one is refused after this."""

BAD_SECONDS = 10.0
"""How long one that was not counts as bad."""


class ReviewedTokens:
    """Kubernetes tokens of these audiences, and of these users if any are named."""

    def __init__(
        self, cluster: ClusterApi, *, audiences: tuple[str, ...], subjects: tuple[str, ...]
    ) -> None:
        self._cluster = cluster
        self._audiences = audiences
        self._subjects = frozenset(subjects)
        self._answers = Answers[Caller | None]()

    async def verify(self, token: str) -> Caller | None:
        """See `Verifier`."""
        claims = plausible(token, self._audiences)
        if claims is None:
            return None
        remaining_seconds = expiry(claims) - time.time()
        ask = partial(self._ask, token, remaining_seconds)
        return await self._answers.get(sha256(token.encode()).digest(), ask)

    async def _ask(self, token: str, remaining_seconds: float) -> tuple[Caller | None, float]:
        spec = {"token": token, "audiences": list(self._audiences)}
        status = await self._cluster.review("authentication.k8s.io/v1", "tokenreviews", spec)
        caller = self._caller(status)
        if caller is None:
            return None, BAD_SECONDS
        # The claim is the token's own, which by now has been found good.
        return caller, min(GOOD_SECONDS, remaining_seconds)

    def _caller(self, status: Mapping[str, Any]) -> Caller | None:
        user = status.get("user")
        if status.get("authenticated") is not True or not isinstance(user, dict):
            return None
        # A server that knows no audiences believes a token for anybody and names none.
        if not strings(status.get("audiences")) & set(self._audiences):
            return None
        name = user.get("username")
        if not isinstance(name, str) or not name or (self._subjects and name not in self._subjects):
            return None
        uid, extra = user.get("uid"), user.get("extra")
        return Caller(
            kind="kubernetes",
            name=name,
            uid=uid if isinstance(uid, str) else "",
            groups=tuple(sorted(strings(user.get("groups")))),
            extra={key: tuple(sorted(strings(values))) for key, values in extra.items()}
            if isinstance(extra, dict)
            else {},
        )

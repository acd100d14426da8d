"""The gate in front of `/mcp`: lets callers in, or says what they lack."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack
from time import monotonic
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl

import anyio
from mcp_types import JSONRPCMessage, JSONRPCNotification, JSONRPCRequest
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from mcp_gpu.serving.access.model import (
    AccessPolicy,
    Caller,
    InsufficientScope,
    Unverifiable,
    Verifier,
)
from mcp_gpu.serving.access.tokens import StaticTokens, read_tokens
from mcp_gpu.serving.endpoint import ListenError
from mcp_gpu.serving.pages import Page
from mcp_gpu.serving.security import refusal

if TYPE_CHECKING:
    from mcp_gpu.serving.access.rights import Rights

__all__ = ["Gate"]

logger = logging.getLogger(__name__)

TOKEN_CHARS = 16_384
"""Longest token that is looked at."""

RETRY_SECONDS = 5
"""When it is worth asking again, where a token could not be checked."""

QUIET_SECONDS = 60.0
"""How often the log repeats that tokens cannot be checked."""

QUERY_NAMES = frozenset({"access_token", "token"})

_TOKEN = re.compile(r"[!-~]+")

Needs = Callable[[str, Mapping[str, Any]], Iterable[str]]
Reads = Callable[[str, Mapping[str, Any]], Iterable[tuple[str, str, str, bool]]]

_NOTHING: frozenset[str] = frozenset()


class Gate:
    """Applies an `AccessPolicy`. Enter it before the first caller is admitted.

    Args:
        needs: the tools whose content a request would be shown, by its method and parameters.
        reads: what its caller has to be allowed to read in Kubernetes: verb, resource, namespace,
            and whether nothing is told without it.

    Raises:
        ListenError: the token file cannot be used, or this is no pod and has to be one.
    """

    def __init__(self, policy: AccessPolicy, needs: Needs, reads: Reads) -> None:
        self._needs, self._reads = needs, reads
        self._verifiers: list[Verifier] = []
        self._rights: Rights | None = None
        self._challenge: dict[str, str] = {}
        self.pages: dict[str, Page] = {}
        """What is answered beside `/mcp`, by path."""
        self._chores: list[Callable[[], Coroutine[Any, Any, None]]] = []
        """What runs beside the calls."""
        self._resources = AsyncExitStack()
        self._quiet_until = 0.0
        if policy.token_file is not None:
            try:
                read_tokens(policy.token_file)
            except (OSError, ValueError) as error:
                raise ListenError(f"--token-file: {error}") from error
            self._verifiers.append(StaticTokens(policy.token_file))
        # Each kind is imported when it is asked for: PyJWT's cryptography costs 100 ms.
        if policy.oauth is not None:
            from mcp_gpu.serving.access.oauth import AccessTokens, Resource

            resource = Resource(policy.oauth)
            document = resource.metadata
            self.pages = dict.fromkeys(resource.paths, lambda scope: JSONResponse(document))
            self._challenge = resource.challenge
            tokens = AccessTokens(policy.oauth)
            self._verifiers.append(tokens)
            self._chores.append(tokens.keep)
            self._resources.push_async_callback(tokens.aclose)
        if policy.kubernetes_tokens != "off" or policy.access_review:
            self._ask_cluster(policy)

    def _ask_cluster(self, policy: AccessPolicy) -> None:
        from mcp_gpu.serving.access.cluster_api import ClusterApi, NotInPod

        try:
            cluster = ClusterApi()
        except NotInPod as error:
            raise ListenError(
                "--kubernetes-tokens and --access-review ask the Kubernetes API server with the "
                f"credentials of a pod, and this is none: {error}. Run it in a pod whose "
                "ServiceAccount token is mounted, or use --token-file or --oauth-issuer alone"
            ) from error
        self._resources.push_async_callback(cluster.aclose)
        chosen = {"audiences": policy.token_audiences, "subjects": policy.token_subjects}
        if policy.kubernetes_tokens == "review":
            from mcp_gpu.serving.access.reviews import ReviewedTokens

            self._verifiers.append(ReviewedTokens(cluster, **chosen))
        elif policy.kubernetes_tokens == "jwks":
            from mcp_gpu.serving.access.cluster_keys import SignedTokens

            signed = SignedTokens(cluster, **chosen)
            self._verifiers.append(signed)
            self._chores.append(signed.keep)
        if policy.access_review:
            from mcp_gpu.serving.access.rights import Rights

            self._rights = Rights(cluster, policy.access_namespace)

    async def __aenter__(self) -> Self:
        if self._chores:
            tasks = await self._resources.enter_async_context(anyio.create_task_group())
            self._resources.callback(tasks.cancel_scope.cancel)
            for chore in self._chores:
                tasks.start_soon(chore)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._resources.aclose()

    async def admit(self, scope: Scope) -> Caller | Response | None:
        """Who calls; None where nobody has to say; or the refusal."""
        query = scope["query_string"].decode("latin-1")
        if any(name.lower() in QUERY_NAMES for name, _ in parse_qsl(query, keep_blank_values=True)):
            return refusal(
                400,
                "A token in the URL ends up in the logs of proxies: it is not read, and should be "
                "replaced. Send it as a header (Authorization: Bearer TOKEN).",
            )
        if not self._verifiers:
            return None
        shown = Headers(scope=scope).getlist("authorization")
        scheme, _, token = (shown[0] if len(shown) == 1 else "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return self._refuse(
                401, "A bearer token is needed (Authorization: Bearer TOKEN).", error=""
            )
        caller: Caller | None = None
        if len(token) <= TOKEN_CHARS and _TOKEN.fullmatch(token):
            try:
                caller = await self._known(token)
            except InsufficientScope:
                scopes = self._challenge["scope"]
                return self._refuse(
                    403, f"The token lacks a scope of: {scopes}.", error="insufficient_scope"
                )
            except Unverifiable as error:
                return self._unverifiable("whether the token is good", error)
        if caller is None:
            return self._refuse(
                401, "The bearer token is not one that is served here.", error="invalid_token"
            )
        return caller

    async def permit(
        self, caller: Caller | None, message: JSONRPCMessage
    ) -> Response | frozenset[str]:
        """The refusal of a message that this caller may not send; or what is to be withheld from
        the answer, as resources of Kubernetes."""
        if (
            self._rights is None
            or caller is None
            or caller.kind == "static"
            or not isinstance(message, JSONRPCRequest | JSONRPCNotification)
        ):
            return _NOTHING
        asked = message.params or {}
        for tool in sorted(self._needs(message.method, asked)):
            try:
                if await self._rights.may_call(caller, tool):
                    continue
            except Unverifiable as error:
                return self._unverifiable("whether you may call this tool", error)
            logger.info("%.200r lacks the right to call %.100r", caller.name, tool)
            return refusal(403, self._rights.missing(caller, tool))
        withheld = set()
        for verb, resource, namespace, needed in self._reads(message.method, asked):
            try:
                if await self._rights.may_read(caller, verb, resource, namespace):
                    continue
            except Unverifiable as error:
                return self._unverifiable("whether you may read what this tool tells", error)
            if needed:
                logger.info("%.200r lacks %s %s in %.253r", caller.name, verb, resource, namespace)
                return refusal(403, self._rights.unread(caller, verb, resource, namespace))
            withheld.add(resource)
        return frozenset(withheld)

    async def _known(self, token: str) -> Caller | None:
        """Whose token it is. Kinds that need not ask come first, and one that cannot be asked is
        told only where no other knows the token."""
        failure: Unverifiable | None = None
        for verifier in self._verifiers:
            try:
                caller = await verifier.verify(token)
            except Unverifiable as error:
                failure = error
            else:
                if caller is not None:
                    return caller
        if failure is not None:
            raise failure
        return None

    def _refuse(self, status: int, message: str, *, error: str) -> Response:
        told = {"error": error, **self._challenge} if error else self._challenge
        challenge = ", ".join(f'{name}="{value}"' for name, value in told.items())
        return refusal(status, message, {"WWW-Authenticate": f"Bearer {challenge}".rstrip()})

    def _unverifiable(self, what: str, error: Unverifiable) -> Response:
        """The log says why; a caller whom nobody knows is told less."""
        if monotonic() >= self._quiet_until:
            self._quiet_until = monotonic() + QUIET_SECONDS
            logger.warning("a caller is put off; unknown is %s: %s", what, error)
        return refusal(
            503,
            f"It cannot be found out now {what}. Try again.",
            {"Retry-After": str(RETRY_SECONDS)},
        )

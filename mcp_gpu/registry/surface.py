"""What a server shows beside its tools: prompts, resources, completion and subscriptions.

A resource is what a tool answers, so who may not call the tool may not read it: `needs` says which
tools a request would show something of, to the gate that asks for rights.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    BlobResourceContents,
    CallToolResult,
    CompleteRequestParams,
    CompleteResult,
    EmptyResult,
    GetPromptRequestParams,
    GetPromptResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    PaginatedRequestParams,
    PromptReference,
    ReadResourceRequestParams,
    ReadResourceResult,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
    UnsubscribeRequestParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from mcp_gpu.registry.tool import UnknownResource
from mcp_gpu.registry.updates import Look, Updates, connection_of

if TYPE_CHECKING:  # imported when they are asked for: a start has no use for them
    from mcp_gpu.registry.completion import Completer
    from mcp_gpu.registry.prompt import Prompt, Prompts
    from mcp_gpu.registry.resource import Found, Resource, Resources

__all__ = ["Surface", "SurfaceServer"]

RESOURCE_NOT_FOUND = -32002
"""What the protocol says of an unknown resource until 2025-11-25; since then INVALID_PARAMS."""

Context = ServerRequestContext[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What a role shows beside its tools. Made when it is first asked for."""

    prompts: Callable[[], Sequence[Prompt[Any]]]
    resources: Callable[[], Sequence[Resource]]
    """The closest match first: a URI is of the first that it fits."""
    look: Look
    """For resources, by URI, what differs once they have changed. Bounded in time."""
    period_seconds: float
    """Between one look and the next, for all who subscribe together."""


Ask = Callable[["Found", Context], Awaitable[CallToolResult]]
"""Calls a resource's tool for what the resource shows. Raises `UnknownResource`."""


class SurfaceServer:
    """Answers for a `Surface` on one server.

    Args:
        tools: the names of the server's tools.
    """

    def __init__(self, surface: Surface, tools: Set[str], ask: Ask) -> None:
        self._surface, self._tools, self._ask = surface, tools, ask
        self.updates = Updates(
            surface.look, surface.period_seconds, lambda uri: self._resources.match(uri)
        )

    @cached_property
    def _prompts(self) -> Prompts:
        from mcp_gpu.registry.prompt import Prompts

        return Prompts(self._surface.prompts(), self._tools)

    @cached_property
    def _resources(self) -> Resources:
        from mcp_gpu.registry.resource import Resources

        return Resources([each for each in self._surface.resources() if each.tool in self._tools])

    def join(self, server: Server[Any]) -> None:
        """Answer on this server."""
        answer = server.add_request_handler
        answer("prompts/list", PaginatedRequestParams, self._list_prompts)
        answer("prompts/get", GetPromptRequestParams, self._get_prompt)
        answer("resources/list", PaginatedRequestParams, self._list_resources)
        answer("resources/templates/list", PaginatedRequestParams, self._list_templates)
        answer("resources/read", ReadResourceRequestParams, self._read)
        answer("resources/subscribe", SubscribeRequestParams, self._subscribe)
        answer("resources/unsubscribe", UnsubscribeRequestParams, self._unsubscribe)
        answer("completion/complete", CompleteRequestParams, self._complete)
        server.middleware.append(self._say_what_can_be_told)

    def needs(self, method: str, params: Mapping[str, Any]) -> Iterator[str]:
        """The tools whose content a request would be shown."""
        match method:
            case "resources/read" | "resources/subscribe":
                uris = [params.get("uri")]
            case "subscriptions/listen":
                uris = list(_listened(params.get("notifications")))
            case "completion/complete":
                completer = self._completer_needed(params)
                yield from [completer.tool] if completer and completer.tool else []
                return
            case _:
                return
        for uri in uris:
            found = self._resources.match(uri) if isinstance(uri, str) else None
            if found is not None:
                yield found.resource.tool

    def _completer_needed(self, params: Mapping[str, Any]) -> Completer | None:
        try:
            asked = CompleteRequestParams.model_validate(dict(params))
            return self._completer(asked)
        except (ValueError, MCPError):
            return None  # which the answer says

    async def _say_what_can_be_told(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """A subscription of the handshake's era is of no use where answers are all that is sent."""
        result = await call_next(ctx)
        if (
            ctx.method == "initialize"
            and isinstance(result, dict)
            and not connection_of(ctx).has_standalone_channel
        ):
            result["capabilities"]["resources"]["subscribe"] = False
        return result

    async def _list_prompts(
        self, context: Context, params: PaginatedRequestParams
    ) -> ListPromptsResult:
        return self._prompts.listing

    async def _get_prompt(
        self, context: Context, params: GetPromptRequestParams
    ) -> GetPromptResult:
        return self._prompts.written(params.name, params.arguments)

    async def _list_resources(
        self, context: Context, params: PaginatedRequestParams
    ) -> ListResourcesResult:
        return self._resources.listing

    async def _list_templates(
        self, context: Context, params: PaginatedRequestParams
    ) -> ListResourceTemplatesResult:
        return self._resources.templates

    async def _read(
        self, context: Context, params: ReadResourceRequestParams
    ) -> ReadResourceResult:
        try:
            found = self._resources.find(params.uri)
            told = await self._ask(found, context)
        except UnknownResource as error:
            raise _not_found(context, params.uri, error) from None
        texts = [part.text for part in told.content if isinstance(part, TextContent)]
        if told.is_error:
            raise MCPError(INTERNAL_ERROR, "\n".join(texts), {"uri": params.uri})
        contents: list[TextResourceContents | BlobResourceContents] = [
            TextResourceContents(
                uri=params.uri,
                mime_type=found.resource.mime_type,
                text=json.dumps(told.structured_content, ensure_ascii=False, separators=(",", ":")),
            )
        ]
        if found.resource.with_text:
            contents += [
                TextResourceContents(uri=params.uri, mime_type="text/plain", text=text)
                for text in texts
            ]
        ttl_ms = found.resource.ttl_ms
        return ReadResourceResult(
            contents=contents, ttl_ms=ttl_ms, cache_scope="public" if ttl_ms else "private"
        )

    async def _subscribe(self, context: Context, params: SubscribeRequestParams) -> EmptyResult:
        try:
            await self.updates.subscribe(context, self._resources.find(params.uri))
        except UnknownResource as error:
            raise _not_found(context, params.uri, error) from None
        return EmptyResult()

    async def _unsubscribe(self, context: Context, params: UnsubscribeRequestParams) -> EmptyResult:
        self.updates.unsubscribe(context, params.uri)
        return EmptyResult()

    async def _complete(self, context: Context, params: CompleteRequestParams) -> CompleteResult:
        from mcp_gpu.registry.completion import complete

        completer = self._completer(params)
        given = (params.context.arguments if params.context else None) or {}
        return CompleteResult(completion=await complete(completer, params.argument.value, given))

    def _completer(self, params: CompleteRequestParams) -> Completer | None:
        """Where the values of an argument come from; None: anything goes.

        Raises:
            MCPError: there is no such prompt or resource, or it has no such argument.
        """
        argument = params.argument.name
        if isinstance(params.ref, PromptReference):
            prompt = self._prompts.named(params.ref.name)
            names, completes = set(prompt.arguments.model_fields), prompt.completes
        else:
            try:
                resource = self._resources.listed(params.ref.uri)
            except UnknownResource as error:
                raise MCPError(INVALID_PARAMS, str(error)) from None
            names, completes = set(resource.names), resource.completes
        if argument not in names:
            known = ", ".join(sorted(names)) or "none"
            raise MCPError(INVALID_PARAMS, f"No such argument here. Known: {known}")
        completer = completes.get(argument)
        if completer is not None and completer.tool is not None:
            return completer if completer.tool in self._tools else None
        return completer


def _listened(notifications: object) -> Iterator[object]:
    """The URIs that a client wants to hear of, by either spelling that the SDK knows."""
    if isinstance(notifications, Mapping):
        for name in ("resourceSubscriptions", "resource_subscriptions"):
            uris = notifications.get(name)
            yield from uris if isinstance(uris, list) else ()


def _not_found(context: Context, uri: str, error: UnknownResource) -> MCPError:
    modern = context.protocol_version in MODERN_PROTOCOL_VERSIONS
    return MCPError(INVALID_PARAMS if modern else RESOURCE_NOT_FOUND, str(error), {"uri": uri})

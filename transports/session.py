"""One request to one agent, over any transport: a result, or one `TransportError`.

What the SDK's client adds on its own is kept off the wire: no handshake (the session
is pinned to 2026-07-28), and no `tools/list` after a call (its `validate_tool_result`
would list an unlisted tool to find the output schema). One request is one message.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, TypeVar, cast

import anyio
from mcp import ClientSession, MCPError
from mcp.shared.dispatcher import ProgressFnT
from mcp.types import (
    CONNECTION_CLOSED,
    CallToolResult,
    DiscoverRequest,
    DiscoverResult,
    Implementation,
    RequestParams,
    RequestParamsMeta,
    ServerCapabilities,
)
from mcp.types.version import LATEST_MODERN_VERSION
from pydantic import ValidationError

from transports.base import (
    CALL_META_KEY,
    IDENTITY_META_KEY,
    PAD_CHARS,
    PAD_META_KEY,
    Identity,
    Target,
    Transport,
    TransportStreams,
)
from transports.errors import BadPeer, Broken, TimedOut, TransportError, Unreachable, mapped

__all__ = ["CLIENT_INFO", "ProgressFnT", "call_tool", "discover", "request_identity"]

CLIENT_INFO = Implementation(name="mcp-gpu-transports", version="1")
"""Who we say we are where the caller does not."""

_PINNED = DiscoverResult(
    supported_versions=[LATEST_MODERN_VERSION],
    capabilities=ServerCapabilities(),
    ttl_ms=0,
    cache_scope="public",
)

_FOREIGN: Mapping[type[Exception], type[TransportError]] = {
    anyio.BrokenResourceError: Broken,
    anyio.ClosedResourceError: Broken,
    anyio.EndOfStream: Broken,
    OSError: Unreachable,
    ValidationError: BadPeer,
}
"""What a transport of a third party may let slip, and what the SDK says of a malformed result."""

_Answer = TypeVar("_Answer")


class _Session(ClientSession):
    async def validate_tool_result(self, name: str, result: CallToolResult) -> None:
        # The caller knows the schema of what it called; the SDK would ask the peer for it.
        return None


async def call_tool(
    transport: Transport,
    target: Target,
    name: str,
    arguments: Mapping[str, Any],
    *,
    timeout_seconds: float,
    progress: ProgressFnT | None = None,
    call_id: str = "",
    client_info: Implementation = CLIENT_INFO,
) -> CallToolResult:
    """Call one tool of one agent. A tool that failed is a result with `is_error`, not an exception.

    Args:
        timeout_seconds: for everything: opening the path, the call, the answer.
        progress: awaited with (progress, total, message) for each progress notification.
        call_id: names the call in the agent's logs; empty lets the agent name it.

    Raises:
        TransportError: `TimedOut` when the time is over, `BadPeer` with the peer's message when
            it answers with a JSON-RPC error, otherwise what the transport found. Never a group.
    """

    async def call(session: ClientSession) -> CallToolResult:
        result = await session.call_tool(
            name,
            dict(arguments),
            progress_callback=progress,
            meta=cast("RequestParamsMeta", {CALL_META_KEY: call_id}) if call_id else None,
            allow_input_required=True,
        )
        if not isinstance(result, CallToolResult):
            raise BadPeer(
                f"{name} asks for input, which nobody here can give",
                target=target,
                transport=transport.name,
            )
        return result

    return await _ask(transport, target, call, timeout_seconds, client_info)


async def discover(
    transport: Transport,
    target: Target,
    *,
    pad_chars: int = PAD_CHARS,
    timeout_seconds: float = math.inf,
    client_info: Implementation = CLIENT_INFO,
) -> Identity:
    """Ask an agent who it is by `server/discover`, with an answer of `pad_chars`.

    Args:
        timeout_seconds: infinite for a caller that bounds the wait with a scope of its own.

    Raises:
        TransportError: as `call_tool`; `BadPeer` too when the answer names no mcp-gpu agent
            or its padding did not arrive whole.
    """

    async def ask(session: ClientSession) -> Identity:
        return await _identity(session, pad_chars)

    return await _ask(transport, target, ask, timeout_seconds, client_info)


async def request_identity(
    streams: TransportStreams, *, pad_chars: int, client_info: Implementation = CLIENT_INFO
) -> Identity:
    """`server/discover` over streams that are open already. The caller bounds the wait.

    Raises:
        MCPError: the connection closed, or the peer answered with an error.
        ValueError: the answer names no mcp-gpu agent, or the padding is not whole.
    """
    outcome: Identity | Exception
    async with _Session(*streams, client_info=client_info) as session:
        session.adopt(_PINNED)
        try:
            outcome = await _identity(session, pad_chars)
        except (MCPError, ValueError) as error:  # the session's task group would wrap it
            outcome = error
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def _identity(session: ClientSession, pad_chars: int) -> Identity:
    request = DiscoverRequest(params=RequestParams(_meta={PAD_META_KEY: pad_chars}))
    result = await session.send_request(request, DiscoverResult)
    meta = result.meta or {}
    identity = Identity.from_wire(meta.get(IDENTITY_META_KEY))
    padding = meta.get(PAD_META_KEY, "")
    if not isinstance(padding, str) or len(padding) != pad_chars:
        raise ValueError(f"the answer does not carry the {pad_chars} characters of padding asked")
    return identity


async def _ask(
    transport: Transport,
    target: Target,
    request: Callable[[ClientSession], Awaitable[_Answer]],
    timeout_seconds: float,
    client_info: Implementation,
) -> _Answer:
    try:
        with anyio.fail_after(timeout_seconds):
            with mapped(_FOREIGN, target=target, transport=transport.name):
                return await _exchange(transport, target, request, client_info)
    except TimeoutError:
        raise TimedOut(
            f"no answer within {timeout_seconds:g} s", target=target, transport=transport.name
        ) from None


async def _exchange(
    transport: Transport,
    target: Target,
    request: Callable[[ClientSession], Awaitable[_Answer]],
    client_info: Implementation,
) -> _Answer:
    answer: list[_Answer] = []
    failure: Exception | None = None
    async with (
        transport.connect(target) as (read, write),
        _Session(read, write, client_info=client_info) as session,
    ):
        session.adopt(_PINNED)
        try:
            answer.append(await request(session))
        # Every exception: the session's task group would wrap it, and the transport,
        # which leaves next, knows better than the SDK why the connection closed.
        except Exception as error:
            failure = error
    if failure is not None:
        _raise(failure, target, transport.name)
    return answer[0]


def _raise(failure: Exception, target: Target, transport: str) -> NoReturn:
    match failure:
        case MCPError() if failure.code == CONNECTION_CLOSED:
            raise Broken(failure.message, target=target, transport=transport) from failure
        case MCPError():
            message = f"answered with error {failure.code}: {failure.message}"
            raise BadPeer(message, target=target, transport=transport) from failure
        case ValidationError():
            raise BadPeer(
                f"the answer is not a valid {failure.title}", target=target, transport=transport
            ) from failure
        case ValueError():
            raise BadPeer(str(failure), target=target, transport=transport) from failure
        case _:
            raise failure

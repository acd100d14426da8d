"""One message as a client sends it, or what is wrong with it."""

from __future__ import annotations

from typing import Any

from mcp.shared.dispatcher import as_request_id
from mcp_types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    RequestId,
)
from pydantic_core import from_json

from transports.framing import decode

__all__ = ["NESTING", "Malformed", "error", "fault", "read"]

NESTING = 32
"""How deep objects and lists may lie in one another. No argument of ours, nor what clients add to
it, takes a third of that; each further level costs whatever walks through it a call of a function.
"""

TOO_DEEP = f"nested more than {NESTING} levels deep"


class Malformed(Exception):
    """Bytes that are no message, or none that is taken."""

    def __init__(self, answer: JSONRPCError) -> None:
        super().__init__(answer.error.message)
        self.answer = answer
        """What to say to it."""


def read(raw: bytes) -> JSONRPCMessage:
    """The message that a client has sent.

    Raises:
        Malformed: it is none.
    """
    try:
        message = decode(raw)
    except ValueError:
        raise Malformed(fault(raw)) from None
    # So many brackets first: the bytes are counted a thousand times as fast as values are walked.
    if raw.count(b"[") + raw.count(b"{") > NESTING:
        value = from_json(raw)
        if _is_deep(value):
            text = f"Invalid Request: {TOO_DEEP}"
            raise Malformed(error(_id_of(value), INVALID_REQUEST, text))
    return message


def fault(raw: bytes) -> JSONRPCError:
    """What is wrong with bytes that are no message."""
    try:
        value = from_json(raw)  # the parser of `decode`: half a surrogate pair is no text
    except ValueError as failure:
        deep = "recursion limit" in str(failure)
        text = TOO_DEEP if deep else "not one JSON text"
        return error(None, PARSE_ERROR, f"Parse error: {text}")
    return error(_id_of(value), INVALID_REQUEST, "Invalid Request: not one JSON-RPC 2.0 message")


def error(request: RequestId | None, code: int, text: str) -> JSONRPCError:
    """An error as the answer to this request."""
    return JSONRPCError(jsonrpc="2.0", id=request, error=ErrorData(code=code, message=text))


def _id_of(value: Any) -> RequestId | None:
    return as_request_id(value.get("id")) if isinstance(value, dict) else None


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(NESTING):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += each.values()
            elif isinstance(each, list):
                below += each
        level = below
    return any(isinstance(each, dict | list) for each in level)

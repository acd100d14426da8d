"""`xid://{code}`: the explanation of a code, the same on an agent and on a gateway."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mcp_gpu.registry import UnknownResource
from mcp_gpu.registry.completion import Completer
from mcp_gpu.registry.resource import Resource
from transports.text import quoted

__all__ = ["xid_resource"]

TTL_MS = 300_000
"""It is data of this version; five minutes bound what an upgrade leaves."""

TOLD_CHARS = 40
"""How much of an unknown code is repeated."""


def xid_resource() -> Resource:
    """One Xid's explanation."""
    return Resource(
        uri="xid://{code}",
        name="xid",
        title="Xid explained",
        description="What an NVIDIA Xid means, from the catalogue: bucket, action, what to do, "
        "where authorities disagree. The answer of explain_xid, with its text.",
        tool="explain_xid",
        arguments=_arguments,
        with_text=True,
        ttl_ms=TTL_MS,
        completes={"code": Completer(_codes)},
    )


def _arguments(variables: Mapping[str, str]) -> Mapping[str, Any]:
    from mcp_gpu.gpu.xid.catalogue import entries, entry  # which only readers pay for

    code = variables["code"]
    number = int(code) if code.isascii() and code.isdecimal() and len(code) <= 5 else None
    if number is None or str(number) != code or entry(number) is None:
        codes = [found.code for found in entries()]
        raise UnknownResource(
            f"Unknown Xid: {quoted(code, TOLD_CHARS)}. Known: {len(codes)} codes from {codes[0]} "
            f"to {codes[-1]}, as completion of xid://{{code}} lists them. explain_xid says what "
            "can be said of any other, and of an NVSwitch's SXids."
        )
    return {"code": number}


async def _codes(given: Mapping[str, str]) -> Iterable[str]:
    from mcp_gpu.gpu.xid.catalogue import entries

    return [str(found.code) for found in entries()]

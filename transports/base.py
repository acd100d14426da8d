"""What a transport is: `Target` says where an agent lives, `Transport` how to reach it.

A transport opens the message streams of the MCP SDK towards one agent, so that
the SDK's own `ClientSession` works over all of them alike. It knows nothing of GPUs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

# The SDK has no public name for the pair its transports yield.
from mcp.client._transport import TransportStreams

from transports.text import is_name

__all__ = ["Identity", "Target", "Transport", "TransportStreams"]

IDENTITY_META_KEY = "mcp-gpu/identity"
"""`_meta` key under which an agent's `server/discover` result carries its identity."""

INSTANCE_META_KEY = "mcp-gpu/instance"
"""`_meta` key of every tool result: the identity's `instance`. An address may lead to another
agent since it was probed, and an agent may have been replaced behind it."""

CALL_META_KEY = "mcp-gpu/call"
"""`_meta` key of a tool call: the id that names it in the caller's logs, and so in the agent's."""

PAD_META_KEY = "mcp-gpu/pad"
"""`_meta` key of a `server/discover` request: how many characters of padding to answer with;
in the result, the padding itself."""

PAD_CHARS = 16_384
"""Longer than any MTU, jumbo frames (9,001 bytes on AWS) included: a path that carries small
answers and swallows large ones (an MTU black hole) fails the probe instead of the first call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where one agent lives, as far as discovery knows. Empty means not known."""

    node: str = ""
    """Kubernetes node name. Empty until a probe has told: DNS discovery finds addresses only."""
    cluster: str = ""
    namespace: str = ""
    pod: str = ""
    uid: str = ""
    """Pod uid: what knowledge about paths is keyed by, since names and addresses are reused."""
    container: str = ""
    addresses: tuple[str, ...] = ()
    """IP literals (IPv6 without brackets) or DNS names, in order of preference."""
    port: int = 8080
    """TCP port of the agent's HTTP endpoint."""
    ready: bool = True
    """What Kubernetes says. An agent that is not ready is still called: it may know why."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    """Per transport name, settings for this agent alone, such as
    `{"command": {"argv": ["ssh", "node-7", "mcp-gpu", "attach", "--relay-only"]}}`."""

    @property
    def key(self) -> str:
        """A name that is this agent's alone, for caches: uid where known, else what there is. A
        cluster restored from another's backup has pods of the same uids."""
        if self.uid:
            return f"{self.cluster}/{self.uid}" if self.cluster else self.uid
        if self.pod:
            return f"{self.cluster}/{self.namespace}/{self.pod}"
        if self.node:
            return f"{self.cluster}/{self.node}"
        if self.addresses:
            return ",".join(f"{address}:{self.port}" for address in self.addresses)
        return repr(sorted((name, sorted(own.items())) for name, own in self.options.items()))

    def __str__(self) -> str:
        return self.node or self.pod or self.key


TEXT_CHARS = 256
"""Longest field of an identity: Kubernetes names take 253. A gateway keeps one per agent."""

TOOLS_CHARS = 16_384
"""Most that an identity may say of its tools: 50 of them, with their argument names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who answered a probe. Proof that a path leads to the agent that was meant."""

    name: str
    """The server's name: `mcp-gpu` for our agents."""
    version: str
    node: str
    pod: str = ""
    uid: str = ""
    instance: str = ""
    """Random per process: tells two agents of one node apart and shows a restart."""
    started_at: float = 0.0
    """Unix seconds at which the agent process started; the newest of two wins."""
    simulated: bool = False
    tools: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """Tool name to the argument names it takes: a gateway sends an agent nothing else."""

    @classmethod
    def from_wire(cls, data: object) -> Identity:
        """Read the identity document of `/version` or of `server/discover`.

        Raises:
            ValueError: it is not the identity document of an mcp-gpu agent.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("tools"), Mapping):
            raise ValueError("no mcp-gpu identity in the answer")
        fields: dict[str, Any] = {}
        for key, kind in _IDENTITY_FIELDS.items():
            value = data.get(key, kind())
            if not isinstance(value, kind) and not (kind is float and isinstance(value, int)):
                raise ValueError(f"identity field {key!r} is not a {kind.__name__}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"identity field {key!r} is no number")
            if len(str(value)) > TEXT_CHARS:
                raise ValueError(f"identity field {key!r} is longer than {TEXT_CHARS} characters")
            if value != "" and not is_name(str(value)):  # they are shown, in terminals too
                raise ValueError(f"identity field {key!r} is not one word that can be shown")
            fields[key] = value
        if not fields["name"] or not fields["node"]:
            raise ValueError("the identity names no server or no node")
        if len(json.dumps(data["tools"])) > TOOLS_CHARS:
            raise ValueError(f"the identity lists more than {TOOLS_CHARS} characters of tools")
        tools: dict[str, tuple[str, ...]] = {}
        for tool, arguments in data["tools"].items():
            if not isinstance(arguments, list) or not all(isinstance(a, str) for a in arguments):
                raise ValueError(f"identity lists no argument names for tool {tool!r}")
            tools[str(tool)] = tuple(arguments)
        return cls(**fields, tools=tools)

    def to_wire(self) -> dict[str, Any]:
        """The identity document, ready for JSON."""
        document: dict[str, Any] = {key: getattr(self, key) for key in _IDENTITY_FIELDS}
        document["tools"] = {tool: list(arguments) for tool, arguments in self.tools.items()}
        return document


_IDENTITY_FIELDS: dict[str, type] = {
    "name": str,
    "version": str,
    "node": str,
    "pod": str,
    "uid": str,
    "instance": str,
    "started_at": float,
    "simulated": bool,
}


@runtime_checkable
class Transport(Protocol):
    """One way to reach an agent.

    Constructing is free; `async with transport:` opens what it shares between calls
    (connection pools, warm streams) and on leaving closes all of it within a bound.
    The with-block is entered and left by one task; `probe` and `connect` may be used
    by any number of tasks inside it.
    """

    @property
    def name(self) -> str:
        """The path's name in settings, answers and metrics: `http`, `command`, ..."""

    def applies(self, target: Target) -> bool:
        """Whether the target says enough for this transport to try. No I/O."""

    async def probe(self, target: Target, *, pad_chars: int = PAD_CHARS) -> Identity:
        """Prove that the path works and whom it leads to, with an answer of `pad_chars`.

        With 0 it proves less: a path may carry that answer and swallow a call's. The caller
        bounds the wait with a cancel scope. Identity is not compared with the target here: the
        caller decides what a mismatch means.

        Raises:
            TransportError: the path does not work; the class says how.
        """

    def connect(self, target: Target) -> AbstractAsyncContextManager[TransportStreams]:
        """Open message streams for one or more calls at protocol 2026-07-28.

        When the connection fails under the caller, pending requests end with the SDK's
        CONNECTION_CLOSED, and leaving the context raises the `TransportError` that says why.

        Raises:
            TransportError: on entering, the path could not be opened; on leaving, it broke.
        """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...

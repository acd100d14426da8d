"""How to reach an MCP server in a pod: one contract, several ways. Knows nothing of GPUs."""

from transports.base import Identity, Target, Transport
from transports.errors import (
    BadPeer,
    Broken,
    Denied,
    Gone,
    TimedOut,
    TransportError,
    Unreachable,
)

__all__ = [
    "BadPeer",
    "Broken",
    "Denied",
    "Gone",
    "Identity",
    "Target",
    "TimedOut",
    "Transport",
    "TransportError",
    "Unreachable",
]

"""The HTTP connections to one agent."""

from __future__ import annotations

import ssl

import anyio
import httpcore2
import httpx2

__all__ = ["Pool"]

KEEPALIVE_SECONDS = 60.0
"""How long a connection is kept between calls: less than the 75 s of the agent's server, so
that it is we who close it, and no call meets a connection that is being closed."""

CLOSE_SECONDS = 2.0
"""How long closing an agent's connections may take; TLS says goodbye."""


class Pool(httpx2.AsyncHTTPTransport):
    """The connections to one agent, each opened by `network`, or over TCP without one.

    httpx2 has no option for that; httpcore2, of which it is made, has.
    """

    def __init__(
        self,
        tls: ssl.SSLContext,
        max_connections: int,
        network: httpcore2.AsyncNetworkBackend | None,
    ) -> None:
        super().__init__(verify=tls, trust_env=False)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=max_connections,
            keepalive_expiry=KEEPALIVE_SECONDS,
            network_backend=network,
        )

    async def close(self) -> None:
        """Close them, within a bound even while the caller is cancelled."""
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await self.aclose()

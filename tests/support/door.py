"""The HTTP door of a server that asks who calls, and a plain client in front of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from mcp_gpu.serving.access import answers, keys, tokens
from mcp_gpu.serving.access.model import AccessPolicy
from mcp_gpu.serving.server import HttpEndpoint, Served
from support.demo_server import registry
from support.wire import PATIENCE_SECONDS, call, serving

__all__ = ["Clock", "Door", "door"]


class Clock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        for module in (answers, keys, tokens):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)


class Door:
    """Calls the server, and remembers what was shown and what came back."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self.client = client
        self.secrets: set[str] = set()
        self.told: list[str] = []

    async def call(
        self, token: str | None, tool: str = "echo", *, accept: str = "*/*"
    ) -> httpx.Response:
        """Call a tool with a bearer token or without one."""
        arguments = {"text": "hi"} if tool == "echo" else {}
        return await self.post(token, call(tool, **arguments), accept=accept)

    async def post(self, token: str | None, message: Any, *, accept: str = "*/*") -> httpx.Response:
        headers = {"Accept": accept}
        if token is not None:
            self.secrets.add(token)
            headers["Authorization"] = f"Bearer {token}"
        whole = {"content": message} if isinstance(message, bytes) else {"json": message}
        return self.note(await self.client.post(f"{self.url}/mcp", headers=headers, **whole))

    def note(self, answer: httpx.Response) -> httpx.Response:
        self.told.append(f"{answer.headers} {answer.text}")
        return answer


@asynccontextmanager
async def door(
    policy: AccessPolicy,
    caplog: pytest.LogCaptureFixture,
    *secrets: str,
    port: int = 0,
    served: Served | None = None,
) -> AsyncIterator[Door]:
    """A server with this policy. In the end no token may be in any answer, nor in any log.

    Args:
        served: behind it; by default the demo server.
    """
    caplog.set_level(logging.DEBUG)
    async with (
        serving(served or registry(), http=HttpEndpoint(port=port, access=policy)) as listening,
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
    ):
        opened = Door(f"http://127.0.0.1:{listening.http[0][1]}", client)
        yield opened
    # A token is recognised by its signature, the part that makes it one. Short ones are none.
    signatures = {each.rpartition(".")[2] or each for each in opened.secrets if len(each) > 20}
    for secret in signatures | {*secrets}:
        assert secret not in caplog.text
        assert not any(secret in told for told in opened.told)

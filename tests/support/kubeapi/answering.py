"""A server whose every answer is one handler's, and what our client makes of it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from support.peer import listen
from transports.kubernetes import KubernetesApi, KubernetesError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SECRET = "s3cret-token"


@asynccontextmanager
async def answering(handler: Handler, **options: Any) -> AsyncIterator[int]:
    """A server whose every path is the handler's; yields its port."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    listener = listen("127.0.0.1")
    await web.SockSite(runner, listener, **options).start()
    try:
        yield listener.getsockname()[1]
    finally:
        with anyio.CancelScope(shield=True):
            await runner.cleanup()


async def who(request: web.Request) -> web.Response:
    """What the server has been shown."""
    assert request.transport is not None
    certificate = request.transport.get_extra_info("peercert") or {}
    subject = dict(pair for part in certificate.get("subject", ()) for pair in part)
    return web.json_response(
        {
            "authorization": request.headers.get("Authorization", ""),
            "certificate": subject.get("commonName", ""),
            "path": request.path_qs,
        }
    )


async def asked(kubeconfig: Path, path: str = "/api", **options: Any) -> Any:
    with anyio.fail_after(20):
        async with KubernetesApi(str(kubeconfig), **options) as api:
            return await api.get(path)


async def failure(kubeconfig: Path, **options: Any) -> KubernetesError:
    """What a request fails with. It holds no secret."""
    with pytest.raises(KubernetesError) as caught:
        await asked(kubeconfig, **options)
    error: BaseException | None = caught.value
    while error is not None:
        assert "s3cret" not in f"{error!r}"
        error = error.__cause__
    assert len(str(caught.value)) <= 500
    assert str(caught.value).isprintable()
    return caught.value


def program(folder: Path, body: str) -> dict[str, Any]:
    """A user whose credentials a program prints."""
    script = folder / "login.py"
    script.write_text(body)
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": ["-I", "-S", str(script)],
            "interactiveMode": "Never",
        }
    }


PRINT = """
import json, os, sys
print(json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
                  "status": json.load(open(os.path.join(os.path.dirname(__file__), "status")))}))
"""

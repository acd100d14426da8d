"""The streams of the fake API server: exec and port-forward of its pods, and who may open them.

`stream_routes` are for whatever server has more to offer; `StreamsServer` has nothing else.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import pytest
from aiohttp import web

from support.kubeapi.credentials import write_kubeconfig
from support.kubeapi.exec import exec_handler
from support.kubeapi.pods import Faults, May, Pod, Pods, status
from support.kubeapi.portforward import portforward_handler
from support.peer import listen
from transports.base import Target, Transport
from transports.channels import PROTOCOLS
from transports.errors import TransportError

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

__all__ = [
    "AGENT",
    "Faults",
    "Pod",
    "StreamsServer",
    "exec_handler",
    "one_pod",
    "portforward_handler",
    "probe_refused",
    "stream_routes",
]


def stream_routes(
    pods: Pods,
    *,
    may: May = lambda verb, resource: True,
    protocols: Sequence[str] = PROTOCOLS,
) -> list[web.RouteDef]:
    """Both subresources of pods and access reviews, for an application's router."""

    async def exec_(request: web.Request) -> web.StreamResponse:
        return await exec_handler(request, pods, may=may, protocols=protocols)

    async def portforward(request: web.Request) -> web.StreamResponse:
        return await portforward_handler(request, pods, may=may)

    async def review(request: web.Request) -> web.StreamResponse:
        document = await request.json()
        asked = document["spec"]["resourceAttributes"]
        resource = f"{asked['resource']}/{asked['subresource']}"
        document["status"] = {"allowed": may(asked["verb"], resource)}
        return web.json_response(document, status=201)

    pod = "/api/v1/namespaces/{namespace}/pods/{name}"
    return [
        web.get(f"{pod}/exec", exec_),
        web.get(f"{pod}/portforward", portforward),
        web.post(REVIEWS, review),
    ]


class StreamsServer:
    """An API server of exec and port-forward alone, with one bearer token.

    Args:
        protocols: those of exec that it speaks; `("v4.channel.k8s.io",)` for one before 1.30.
        tls: a server's context; plain HTTP without one.
    """

    def __init__(
        self,
        pods: Pods,
        *,
        protocols: Sequence[str] = PROTOCOLS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.pods = pods
        self.token = "s3cret-token"
        """What callers must show now."""
        self.denied: set[tuple[str, str]] = set()
        """Verbs on resources that the caller's role lacks."""
        self.requests: list[str] = []
        """Method and path of each, the refused ones too."""
        self.review: Callable[[], web.Response] | None = None
        """What is said to an access review, instead of the truth."""
        self._protocols = protocols
        self._tls = tls
        self.port = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def kubeconfig(self, path: Path, **more: Any) -> Path:
        """Write one that leads here, with the token that is valid now."""
        return write_kubeconfig(path, self.url, **{"token": self.token, **more})

    @property
    def reviews(self) -> int:
        """How often somebody has asked what they may do."""
        return self.requests.count(f"POST {REVIEWS}")

    @property
    def streams(self) -> int:
        """How many streams have been asked for."""
        return len(self.requests) - self.reviews

    def may(self, verb: str, resource: str) -> bool:
        return (verb, resource) not in self.denied

    def drop(self) -> None:
        """Cut every connection."""
        for protocol in self._runner.server.connections if self._runner.server else ():
            if protocol.transport is not None:
                protocol.transport.abort()

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._authenticate])
        app.add_routes(stream_routes(self.pods, may=self.may, protocols=self._protocols))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        listener = listen("127.0.0.1", self.port)
        self.port = listener.getsockname()[1]
        await web.SockSite(self._runner, listener, ssl_context=self._tls).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self._runner.cleanup()

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return status(401, "Unauthorized", "Unauthorized")
        if self.review is not None and request.path == REVIEWS:
            return self.review()
        return await handler(request)


@asynccontextmanager
async def one_pod(folder: Path, pod: Pod, **options: Any) -> AsyncIterator[StreamsServer]:
    """A server with the pod `gpu/agent-1`; its kubeconfig is `folder/kubeconfig`."""
    async with StreamsServer({("gpu", "agent-1"): pod}, **options) as server:
        server.kubeconfig(folder / "kubeconfig")
        yield server


AGENT = Target(namespace="gpu", pod="agent-1")
"""The pod of `one_pod`."""


async def probe_refused(transport: Transport, target: Target = AGENT) -> TransportError:
    """What a probe over the transport, entered for it, fails with. It holds no secret."""
    with anyio.fail_after(20), pytest.raises(TransportError) as caught:
        async with transport:
            await transport.probe(target)
    assert "s3cret" not in f"{caught.value!r} {caught.value.__cause__!r} {transport!r}"
    return caught.value

"""The part of the API server that says who is who and who may what."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from aiohttp import web

from mcp_gpu.serving.access import cluster_api
from support.kubeapi.answering import answering
from support.kubeapi.credentials import Authority
from support.signer import CLUSTER_ISSUER, Signer

__all__ = ["POD_TOKEN", "FakeCluster"]

POD_TOKEN = "token-of-this-pod"

Fault = int | Literal["hang", "drop", "garbage", "list", "endless"] | None


class FakeCluster:
    """A cluster whose answers a test decides.

    Args:
        folder: where the credentials that Kubernetes mounts into a pod lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.pod_token = POD_TOKEN
        self.signers = [Signer()]
        self.issuer = CLUSTER_ISSUER
        self.key_set: Any = None
        """Published instead of the signers' keys."""
        self.users: dict[str, dict[str, Any]] = {}
        """Valid tokens, and whose they are."""
        self.knows_audiences = True
        self.granted: set[tuple[str, str]] = set()
        """User and tool."""
        self.readable: set[tuple[str, str, str]] = set()
        """User, resource of the core group, and namespace: empty for all."""
        self.fault: Fault = None
        self.asked: Counter[str] = Counter()
        self.specs: list[Any] = []
        self.under_way = 0
        self.most_under_way = 0
        self.held: anyio.Event | None = None
        """Reviews are answered once it is set."""

    def mount(self) -> None:
        (self.folder / "token").write_text(f"{POD_TOKEN}\n")
        (self.folder / "namespace").write_text("gpu\n")
        (self.folder / "ca.crt").write_bytes(self.authority.certificate.read_bytes())

    @asynccontextmanager
    async def running(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
        """Serve over TLS, as this process's own API server."""
        self.mount()
        tls = self.authority.server("127.0.0.1")
        async with answering(self._answer, ssl_context=tls) as port:
            monkeypatch.setattr(cluster_api, "SERVICE_ACCOUNT", self.folder)
            monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
            yield

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.path.rpartition("/")[2]] += 1
        match self.fault:
            case "hang":
                await anyio.sleep_forever()
            case "drop":
                assert request.transport is not None
                request.transport.abort()
            case "garbage":
                return web.Response(text="<html>", content_type="application/json")
            case "list":
                return web.json_response([])
            case "endless":
                return web.Response(body=b" " * (2 << 20))
            case int(status):
                return web.json_response({"message": POD_TOKEN}, status=status)
        if request.headers.get("Authorization") != f"Bearer {self.pod_token}":
            return web.json_response({}, status=401)
        match request.method, request.path:
            case "GET", "/.well-known/openid-configuration":
                elsewhere = "https://192.0.2.1/openid/v1/jwks"
                return web.json_response({"issuer": self.issuer, "jwks_uri": elsewhere})
            case "GET", "/openid/v1/jwks":
                keys = {"keys": [signer.jwk for signer in self.signers]}
                body = json.dumps(keys if self.key_set is None else self.key_set)
                return web.Response(text=body, content_type="application/jwk-set+json")
            case "POST", "/apis/authentication.k8s.io/v1/tokenreviews":
                review = self._token
            case "POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews":
                review = self._right
            case _:
                return web.json_response({}, status=404)
        document = await request.json()
        self.specs.append(document["spec"])
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.held is not None:
                await self.held.wait()
        finally:
            self.under_way -= 1
        return web.json_response({**document, "status": review(document["spec"])}, status=201)

    def _token(self, spec: Any) -> dict[str, Any]:
        user = self.users.get(spec["token"])
        if user is None:
            return {"user": {}, "error": "[invalid bearer token]"}
        audiences = {"audiences": spec["audiences"][:1]} if self.knows_audiences else {}
        return {"authenticated": True, "user": user, **audiences}

    def _right(self, spec: Any) -> dict[str, Any]:
        wanted = spec["resourceAttributes"]
        if wanted["group"] == "":
            assert wanted["verb"] == "get"
            resource = "/".join(filter(None, (wanted["resource"], wanted.get("subresource", ""))))
            granted = {(spec["user"], resource, each) for each in (wanted["namespace"], "")}
            return {"allowed": bool(granted & self.readable)}
        right = {"group": "gpu.mcp", "resource": "tools", "verb": "call", "namespace": "gpu"}
        fits = wanted == {**right, "name": wanted["name"]}
        return {"allowed": fits and (spec["user"], wanted["name"]) in self.granted}

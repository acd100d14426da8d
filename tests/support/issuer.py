"""An authorization server on a TLS socket: metadata, keys, and tokens for whoever asks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from support.kubeapi.answering import answering
from support.kubeapi.credentials import Authority
from support.signer import Signer

__all__ = ["FakeIssuer"]

OAUTH = "/.well-known/oauth-authorization-server"
OPENID = "/.well-known/openid-configuration"


class FakeIssuer:
    """Believes everybody, and signs for whatever resource is asked for.

    Args:
        path: of the issuer's URL.
    """

    def __init__(self, folder: Path, path: str = "") -> None:
        self.authority = Authority(folder, "issuer-ca")
        self.path = path
        self.signer = Signer("issuer")
        self.metadata_path = OAUTH + path
        self.metadata: dict[str, Any] = {}
        """Said instead of what is true."""
        self.status = 200
        self.asked: list[str] = []
        self.scope: str | None = None
        """What the last client asked for."""
        self._port = 0

    @property
    def origin(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        return self.origin + self.path

    @asynccontextmanager
    async def running(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
        """Serve, trusted as the system's authorities are."""
        monkeypatch.setenv("SSL_CERT_FILE", str(self.authority.certificate))
        tls = self.authority.server("127.0.0.1")
        async with answering(self._answer, ssl_context=tls) as self._port:
            yield

    def token(self, resource: str, scope: str | None = None, **claims: Any) -> str:
        """An access token; a claim that is None is left out."""
        said = {
            "iss": self.url,
            "sub": "ann@example.com",
            "aud": resource,
            "exp": int(time.time()) + 600,
            "iat": int(time.time()),
            "client_id": "a-client",
            "scope": scope,
            **claims,
        }
        return self.signer.sign({name: each for name, each in said.items() if each is not None})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if self.status != 200:
            headers = {"Location": f"{self.origin}/elsewhere"}
            return web.json_response({}, status=self.status, headers=headers)
        match request.path:
            case self.metadata_path:
                truth = {
                    "issuer": self.url,
                    "jwks_uri": f"{self.origin}/keys?version=1",
                    "authorization_endpoint": f"{self.origin}/authorize",
                    "token_endpoint": f"{self.origin}/token",
                    "registration_endpoint": f"{self.origin}/register",
                    "response_types_supported": ["code"],
                    "code_challenge_methods_supported": ["S256"],
                }
                return web.json_response({**truth, **self.metadata})
            case "/keys":
                return web.json_response({"keys": [self.signer.jwk]})
            case "/register":
                client = {"client_id": "a-client", "token_endpoint_auth_method": "none"}
                return web.json_response({**await request.json(), **client}, status=201)
            case "/token":
                form = await request.post()
                token = self.token(str(form["resource"]), self.scope)
                return web.json_response({"access_token": token, "token_type": "Bearer"})
        return web.json_response({}, status=404)

"""OAuth access tokens of one authorization server, and what this server publishes about itself.

RFC 8414 (the issuer's metadata), RFC 9728 (ours), RFC 6750 and RFC 9068 (tokens), as MCP asks for
them.
"""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import urlsplit

from mcp_gpu.serving.access.claims import strings
from mcp_gpu.serving.access.documents import Documents
from mcp_gpu.serving.access.keys import IssuerKeys, Published
from mcp_gpu.serving.access.model import Caller, InsufficientScope, OAuth, Unverifiable, is_secure

__all__ = ["AccessTokens", "Resource"]

METADATA_PATH = "/.well-known/oauth-protected-resource"


class Resource:
    """This server as a protected resource."""

    def __init__(self, oauth: OAuth) -> None:
        self._oauth = oauth
        url = urlsplit(oauth.resource)
        self._path = METADATA_PATH + url.path.rstrip("/")
        self._metadata_url = url._replace(path=self._path).geturl()

    @property
    def paths(self) -> frozenset[str]:
        """Where clients look for the metadata: what the challenge names, and what they guess."""
        return frozenset({METADATA_PATH, f"{METADATA_PATH}/mcp", self._path})

    @property
    def metadata(self) -> dict[str, Any]:
        """The document."""
        scopes = {"scopes_supported": list(self._oauth.scopes)} if self._oauth.scopes else {}
        return {
            "resource": self._oauth.resource,
            "authorization_servers": [self._oauth.issuer],
            "bearer_methods_supported": ["header"],
            "resource_name": "mcp-gpu",
            **scopes,
        }

    @property
    def challenge(self) -> dict[str, str]:
        """What a refusal tells a client about getting a token."""
        scopes = {"scope": " ".join(self._oauth.scopes)} if self._oauth.scopes else {}
        return {"resource_metadata": self._metadata_url, **scopes}


class AccessTokens:
    """JWT access tokens that the issuer has made for this server."""

    def __init__(self, oauth: OAuth) -> None:
        self._oauth = oauth
        self._host = urlsplit(oauth.issuer).hostname
        self._documents = Documents(
            f"the authorization server {self._host}", ssl.create_default_context(), proxies=True
        )
        # Clients differ in whether they end it with a slash.
        bare = oauth.resource.removesuffix("/")
        self._keys = IssuerKeys(self._fetch, (bare, f"{bare}/"))

    async def verify(self, token: str) -> Caller | None:
        """See `Verifier`.

        Raises:
            InsufficientScope: it is good and lacks a scope.
        """
        issuer = self._oauth.issuer
        claims = await self._keys.claims(token, issuer)
        if claims is None or not claims["sub"]:
            return None
        said = claims.get("scope", claims.get("scp"))
        scopes = set(said.split()) if isinstance(said, str) else strings(said)
        if not scopes.issuperset(self._oauth.scopes):
            raise InsufficientScope
        # As Kubernetes names the users of an OpenID provider, so that RBAC can name them.
        name = f"{issuer}#{claims['sub']}"
        return Caller(kind="oauth", name=name, groups=("system:authenticated",))

    async def keep(self) -> None:
        """See `IssuerKeys`."""
        await self._keys.keep()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._documents.aclose()

    async def _fetch(self) -> Published:
        issuer = self._oauth.issuer
        for url in metadata_urls(issuer):
            status, said = await self._documents.ask("GET", url)
            if status == 200:
                break
            if status >= 500:
                raise Unverifiable(f"the authorization server {self._host}: HTTP {status}")
        else:
            raise Unverifiable(f"the authorization server {self._host} publishes no metadata")
        said = said if isinstance(said, dict) else {}
        if said.get("issuer") != issuer:
            raise Unverifiable(f"the metadata at {url} is not of the issuer {issuer}")
        place = said.get("jwks_uri")
        if not isinstance(place, str) or not is_secure(place):
            raise Unverifiable(f"the metadata at {url} names no key set over https")
        status, key_set = await self._documents.ask("GET", place)
        if status != 200:
            raise Unverifiable(f"the key set of {self._host}: HTTP {status}")
        return Published(issuer, key_set)


def metadata_urls(issuer: str) -> list[str]:
    """Where an issuer's metadata may lie, in the order that MCP names."""
    url = urlsplit(issuer)
    path = url.path.rstrip("/")
    oauth, openid = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"
    places = [oauth + path, openid + path, path + openid]
    return [url._replace(path=place).geturl() for place in dict.fromkeys(places)]

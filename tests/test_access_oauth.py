"""Access tokens of an authorization server, and what a client learns of where to get one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthToken,
)

from mcp_gpu.serving.access.model import AccessPolicy, OAuth
from support.door import Clock, Door, door
from support.issuer import OPENID, FakeIssuer
from support.kubeapi.access import FakeCluster
from support.ports import free_ports
from support.signer import Signer, kubernetes_claims, with_public_key, without_signature

RESOURCE = "https://gpu.example.com/mcp"
METADATA = "/.well-known/oauth-protected-resource"


@pytest.fixture
async def issuer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeIssuer]:
    fake = FakeIssuer(tmp_path)
    async with fake.running(monkeypatch):
        yield fake


@pytest.fixture
def opening(issuer: FakeIssuer, clock: Clock, caplog: pytest.LogCaptureFixture) -> Any:
    @asynccontextmanager
    async def opened(*scopes: str, resource: str = RESOURCE) -> AsyncIterator[Door]:
        oauth = OAuth(issuer=issuer.url, resource=resource, scopes=scopes)
        async with door(AccessPolicy(oauth=oauth), caplog) as found:
            yield found

    return opened


async def test_a_client_learns_where_to_get_a_token(issuer: FakeIssuer, opening: Any) -> None:
    async with opening("gpu:read", "gpu:list") as opened:
        challenge = (await opened.call(None)).headers["www-authenticate"]
        place = "https://gpu.example.com/.well-known/oauth-protected-resource/mcp"
        assert challenge == f'Bearer resource_metadata="{place}", scope="gpu:read gpu:list"'
        for path in (METADATA, f"{METADATA}/mcp"):
            answer = await opened.client.get(opened.url + path)
            assert answer.status_code == 200
            assert answer.json() == {
                "resource": RESOURCE,
                "authorization_servers": [issuer.url],
                "bearer_methods_supported": ["header"],
                "resource_name": "mcp-gpu",
                "scopes_supported": ["gpu:read", "gpu:list"],
            }
        assert (await opened.client.post(opened.url + METADATA)).status_code == 405
    async with opening(resource="https://gpu.example.com/team/mcp/") as opened:
        challenge = (await opened.call(None)).headers["www-authenticate"]
        place = "https://gpu.example.com/.well-known/oauth-protected-resource/team/mcp"
        assert challenge == f'Bearer resource_metadata="{place}"'
        answer = await opened.client.get(f"{opened.url}{METADATA}/team/mcp")
        assert "scopes_supported" not in answer.json()
    assert issuer.asked == []


async def test_without_an_issuer_there_is_nothing_to_learn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with door(AccessPolicy(), caplog) as opened:
        assert (await opened.client.get(opened.url + METADATA)).status_code == 404


@pytest.mark.parametrize(
    "claims",
    [
        {"scope": "openid gpu:read gpu:list"},
        {"scope": None, "scp": ["gpu:list", "gpu:read"]},
        {"scope": None, "scp": "gpu:list gpu:read"},
        {"scope": "gpu:read gpu:list", "aud": ["account", RESOURCE]},
        {"scope": "gpu:read gpu:list", "aud": f"{RESOURCE}/"},
    ],
)
async def test_an_access_token_opens(
    issuer: FakeIssuer, opening: Any, claims: dict[str, Any]
) -> None:
    async with opening("gpu:read", "gpu:list") as opened:
        for _ in range(3):
            answer = await opened.call(issuer.token(RESOURCE, **claims))
            assert answer.status_code == 200
    assert issuer.asked == ["/.well-known/oauth-authorization-server", "/keys"]


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"scope": "gpu:read"},
        {"scp": ["gpu:read", 1]},
        {"scope": 7},
        {"scope": "gpu:readgpu:list"},
    ],
)
async def test_a_token_without_the_scopes_is_told_so(
    issuer: FakeIssuer, opening: Any, claims: dict[str, Any]
) -> None:
    async with opening("gpu:read", "gpu:list") as opened:
        answer = await opened.call(issuer.token(RESOURCE, **claims))
    assert answer.status_code == 403
    assert answer.headers["www-authenticate"] == (
        'Bearer error="insufficient_scope", resource_metadata='
        '"https://gpu.example.com/.well-known/oauth-protected-resource/mcp", '
        'scope="gpu:read gpu:list"'
    )
    assert "gpu:read gpu:list" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "https://gpu.example.com"},
        {"aud": "https://gpu.example.com/mcp2"},
        {"aud": "a-client"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"exp": 1},
        {"exp": None},
        {"nbf": 4_000_000_000},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
    ],
)
async def test_a_token_that_is_not_for_us_is_not_good(
    issuer: FakeIssuer, opening: Any, claims: dict[str, Any]
) -> None:
    async with opening() as opened:
        answer = await opened.call(issuer.token(RESOURCE, **claims))
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith('Bearer error="invalid_token", ')
        assert (await opened.call(issuer.token(RESOURCE))).status_code == 200


async def test_a_token_that_the_issuer_has_not_signed_is_not_good(
    issuer: FakeIssuer, opening: Any, clock: Clock
) -> None:
    claims = kubernetes_claims(iss=issuer.url, aud=RESOURCE)
    async with opening() as opened:
        for forged in (
            without_signature(claims, issuer.signer),
            with_public_key(claims, issuer.signer),
            Signer("forger").sign(claims, kid="issuer"),
            Signer("forger").sign(claims),
        ):
            clock.now += 6  # the keys may be read again
            assert (await opened.call(forged)).status_code == 401
        assert (await opened.call(issuer.signer.sign(claims))).status_code == 200


@pytest.mark.parametrize("place", ["/realms/gpu" + OPENID, OPENID + "/realms/gpu"])
async def test_the_metadata_of_an_issuer_with_a_path_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    issuer = FakeIssuer(tmp_path, "/realms/gpu")
    issuer.metadata_path = place
    async with issuer.running(monkeypatch):
        oauth = OAuth(issuer=issuer.url, resource=RESOURCE)
        async with door(AccessPolicy(oauth=oauth), caplog) as opened:
            assert (await opened.call(issuer.token(RESOURCE))).status_code == 200
    assert issuer.asked[0] == "/.well-known/oauth-authorization-server/realms/gpu"
    assert issuer.asked[-2:] == [place, "/keys"]


@pytest.mark.parametrize(
    ("metadata", "status", "words"),
    [
        ({"issuer": "https://127.0.0.1"}, 200, "is not of the issuer"),
        ({"issuer": None}, 200, "is not of the issuer"),
        ({"jwks_uri": "http://192.0.2.1/keys"}, 200, "names no key set over https"),
        ({"jwks_uri": None}, 200, "names no key set over https"),
        ({"jwks_uri": "file:///etc/keys"}, 200, "names no key set over https"),
        ({}, 500, "HTTP 500"),
        ({}, 404, "publishes no metadata"),
        ({}, 302, "publishes no metadata"),
    ],
)
async def test_an_issuer_that_cannot_be_believed_opens_nothing(
    issuer: FakeIssuer,
    opening: Any,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    metadata: dict[str, Any],
    status: int,
    words: str,
) -> None:
    issuer.metadata, issuer.status = metadata, status
    async with opening() as opened:
        answer = await opened.call(issuer.token(RESOURCE))
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert words in caplog.text
        assert not {"/keys", "/elsewhere"} & set(issuer.asked)
        issuer.metadata, issuer.status = {}, 200
        clock.now += 6
        assert (await opened.call(issuer.token(RESOURCE))).status_code == 200


async def test_an_issuer_whose_certificate_is_not_trusted_opens_nothing(
    issuer: FakeIssuer, opening: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    async with opening() as opened:
        assert (await opened.call(issuer.token(RESOURCE))).status_code == 503
    assert "cannot be reached: TLS: " in caplog.text


async def test_each_kind_of_token_is_good_beside_the_others(
    issuer: FakeIssuer,
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "static").write_text("a-static-token-of-this-test")
    (tmp_path / "pod").mkdir()
    cluster = FakeCluster(tmp_path / "pod")
    policy = AccessPolicy(
        token_file=tmp_path / "static",
        kubernetes_tokens="jwks",
        token_audiences=("gpu",),
        access_review=True,
        oauth=OAuth(issuer=issuer.url, resource=RESOURCE),
    )
    of_pod = Signer().sign(kubernetes_claims())
    cluster.granted = {
        ("system:serviceaccount:apps:caller", "echo"),
        (f"{issuer.url}#ann@example.com", "who"),
    }
    static = "a-static-token-of-this-test"
    async with cluster.running(monkeypatch), door(policy, caplog, static) as opened:
        wanted = {of_pod: (200, 403), issuer.token(RESOURCE): (403, 200), static: (200, 200)}
        for shown, statuses in wanted.items():
            for tool, status in zip(("echo", "who"), statuses, strict=True):
                assert (await opened.call(shown, tool)).status_code == status
        for mixed in (
            Signer().sign(kubernetes_claims(iss=issuer.url, aud=RESOURCE)),
            issuer.signer.sign(kubernetes_claims()),
        ):
            clock.now += 6
            assert (await opened.call(mixed)).status_code == 401


class Storage:
    """What the SDK's client keeps between runs."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


async def test_the_sdks_own_client_finds_its_way(
    issuer: FakeIssuer, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/mcp"
    sent: list[str] = []

    async def redirect(to: str) -> None:
        sent.append(to)
        issuer.scope = parse_qs(urlsplit(to).query)["scope"][0]

    async def come_back() -> AuthorizationCodeResult:
        state = parse_qs(urlsplit(sent[-1]).query)["state"][0]
        return AuthorizationCodeResult(code="a-code", state=state)

    storage = Storage()
    provider = OAuthClientProvider(
        url,
        OAuthClientMetadata(redirect_uris=["http://127.0.0.1/back"], client_name="a client"),
        storage,
        redirect,
        come_back,
    )
    oauth = OAuth(issuer=issuer.url, resource=url, scopes=("gpu:read",))
    async with (
        door(AccessPolicy(oauth=oauth), caplog, port=port),
        httpx2.AsyncClient(auth=provider, trust_env=True, timeout=20) as http,
        Client(streamable_http_client(url, http_client=http), mode="2026-07-28") as client,
    ):
        answer = await client.call_tool("echo", {"text": "hi"})
        assert answer.structured_content == {"title": "hi", "nothing": None}
    assert issuer.scope == "gpu:read"
    assert parse_qs(urlsplit(sent[0]).query)["resource"] == [url]
    assert storage.tokens is not None
    assert storage.tokens.access_token.rpartition(".")[2] not in caplog.text

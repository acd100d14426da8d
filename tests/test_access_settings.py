"""Settings of who may call, and those that contradict each other."""

import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest

from mcp_gpu.cli import main
from mcp_gpu.serving.access.model import AccessPolicy, OAuth
from mcp_gpu.settings.agent import AgentSettings
from mcp_gpu.settings.base import SettingError
from mcp_gpu.settings.fleet import GatewaySettings
from mcp_gpu.settings.serve import ServeSettings
from support.cluster import PROGRAM
from support.demo_server import registry
from support.wire import PATIENCE_SECONDS, serving

METADATA = "/.well-known/oauth-protected-resource"

OAUTH = {
    "oauth_issuer": "https://id.example.com/x",
    "oauth_resource": "https://gpu.example.com/mcp",
}
REVIEW = {"kubernetes_tokens": "review", "token_audiences": ("gpu",)}


def chosen(**settings: Any) -> AccessPolicy:
    endpoint = ServeSettings(**settings).endpoint()
    assert endpoint is not None
    return endpoint.access


def test_every_setting_arrives() -> None:
    assert chosen() == AccessPolicy()
    assert chosen(allow_anonymous=True) == AccessPolicy(anonymous=True)
    everything = chosen(
        token_file="tokens",
        kubernetes_tokens="jwks",
        token_audiences="a,b",
        token_subjects="system:serviceaccount:n:s",
        access_review=True,
        access_namespace="n",
        oauth_scopes="one two",
        **OAUTH,
    )
    assert everything == AccessPolicy(
        token_file=Path("tokens"),
        kubernetes_tokens="jwks",
        token_audiences=("a", "b"),
        token_subjects=("system:serviceaccount:n:s",),
        access_review=True,
        access_namespace="n",
        oauth=OAuth(
            issuer=OAUTH["oauth_issuer"],
            resource=OAUTH["oauth_resource"],
            scopes=("one", "two"),
        ),
    )
    assert chosen(**OAUTH, access_review=True).wants_token


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kubernetes_tokens": "review"}, "--kubernetes-tokens needs --token-audiences"),
        ({"kubernetes_tokens": "jwks"}, "--kubernetes-tokens needs --token-audiences"),
        ({"token_audiences": ("gpu",)}, "set --kubernetes-tokens to review or jwks"),
        ({"token_subjects": ("system:x",)}, "set --kubernetes-tokens to review or jwks"),
        ({"access_review": True}, "static tokens name none: set --kubernetes-tokens or"),
        (
            {"access_review": True, "token_file": Path("tokens")},
            "static tokens name none: set --kubernetes-tokens or",
        ),
        ({"access_namespace": "gpu", **REVIEW}, "--access-namespace goes with --access-review"),
        ({"allow_anonymous": True, **REVIEW}, "--allow-anonymous contradicts"),
        ({"allow_anonymous": True, "token_file": Path("t")}, "--allow-anonymous contradicts"),
        ({"oauth_issuer": "https://id.example.com"}, "--oauth-resource go together"),
        ({"oauth_resource": "https://gpu.example.com/mcp"}, "--oauth-resource go together"),
        ({"oauth_scopes": ("gpu",)}, "--oauth-resource go together"),
        ({**OAUTH, "oauth_scopes": ('a"b',)}, "cannot be a scope"),
        *(
            ({**OAUTH, "oauth_issuer": url}, "--oauth-issuer must be an https URL")
            for url in (
                "http://id.example.com",
                "http://192.0.2.1",
                "id.example.com",
                "https://",
                "https://id.example.com?x=1",
                "https://id.example.com#x",
                "https://user:secret@id.example.com",
                'https://id.example.com/"',
                "https://id.example.com:x",
                "https://[::1",
            )
        ),
        *(
            ({**OAUTH, "oauth_resource": url}, "--oauth-resource must be this server's URL")
            for url in (
                "gpu.example.com/mcp",
                "/mcp",
                "https://gpu.example.com/mcp#x",
                'http://x/"',
            )
        ),
    ],
)
def test_a_contradiction_is_one_clear_error(settings: dict[str, Any], words: str) -> None:
    for role in (GatewaySettings, AgentSettings):
        with pytest.raises(SettingError, match=words) as caught:
            role(**settings).endpoint()
        assert "secret" not in str(caught.value)
        # Without HTTP none of it counts.
        assert role(**settings, stdio=True).endpoint() is None


async def test_the_documented_way_to_log_in_is_served_under_its_own_name() -> None:
    told = AgentSettings(**OAUTH, allowed_hosts=("other.example",), http_port=0).endpoint()
    assert told is not None
    name = urlsplit(OAUTH["oauth_resource"]).hostname
    async with (
        serving(registry(), http=told) as listening,
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
    ):
        where = f"http://127.0.0.1:{listening.http[0][1]}"
        for host, statuses in ((name, (401, 200)), ("other.example", (401, 200))):
            for path, status in zip(("/mcp", METADATA), statuses, strict=True):
                answer = await client.get(where + path, headers={"Host": str(host)})
                assert answer.status_code == status, answer.text
        foreign = await client.get(where + METADATA, headers={"Host": "evil.example"})
        assert foreign.status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_on_loopback_an_issuer_needs_no_certificate(host: str) -> None:
    assert chosen(**{**OAUTH, "oauth_issuer": f"http://{host}:9000"}).oauth is not None


@pytest.mark.parametrize("role", [["gateway", "--agents-file"], ["agent", "--simulate"]])
async def test_the_program_says_so_in_one_line_before_it_starts_anything(role: list[str]) -> None:
    """Even before it finds that a file which it needs for the rest is not there."""
    with anyio.fail_after(60):
        done = await anyio.run_process(
            [*PROGRAM, *role, "/nowhere", "--kubernetes-tokens", "review"],
            check=False,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"mcp-gpu {role[0]}: --kubernetes-tokens needs --token-audiences: ")


@pytest.mark.parametrize(
    "flags",
    [
        ["--token-file", "x"],
        ["--allow-anonymous"],
        ["--kubernetes-tokens", "jwks", "--token-audiences", "gpu"],
        ["--tls-cert-file", "x", "--tls-key-file", "y"],
    ],
)
def test_without_http_nobody_is_asked_for_a_token_in_vain(
    flags: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["agent", "--simulate", "/nowhere", "--no-http", *flags]) == 2
    named = ", ".join(each for each in flags if each.startswith("--"))
    assert capfd.readouterr().err == f"mcp-gpu agent: --no-http leaves nothing to do for {named}\n"
    # In a pod the same variables are there for an agent that serves standard input alone.
    assert main(["agent", "--simulate", "/nowhere", "--no-http", "--stdio", *flags]) == 2
    assert "--simulate: " in capfd.readouterr().err

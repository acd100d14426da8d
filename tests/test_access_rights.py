"""Cluster RBAC decides who may call which tool (SubjectAccessReview)."""

import json
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from mcp_gpu.serving.access.model import AccessPolicy
from support.door import Clock, Door, door
from support.kubeapi.access import POD_TOKEN, FakeCluster, Fault
from support.signer import Signer, kubernetes_claims
from support.wire import ERAS, call, headers, request

USER = "system:serviceaccount:apps:caller"
STATIC = "a-static-token-of-this-test"


def token(name: str = "caller") -> str:
    return Signer().sign(kubernetes_claims(name=name))


@pytest.fixture
def policy(tmp_path: Path) -> AccessPolicy:
    (tmp_path / "static").write_text(STATIC)
    return AccessPolicy(
        token_file=tmp_path / "static",
        kubernetes_tokens="jwks",
        token_audiences=("gpu",),
        access_review=True,
    )


@pytest.fixture
async def opened(
    cluster: FakeCluster, policy: AccessPolicy, clock: Clock, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Door]:
    cluster.granted = {(USER, "echo")}
    async with door(policy, caplog, POD_TOKEN, STATIC) as found:
        yield found


@pytest.mark.parametrize("accept", ["*/*", "application/json, text/event-stream"])
async def test_a_right_is_for_one_tool(cluster: FakeCluster, opened: Door, accept: str) -> None:
    assert (await opened.call(token(), "echo", accept=accept)).status_code == 200
    refused = await opened.call(token(), "who", accept=accept)
    assert refused.status_code == 403
    message = refused.json()["error"]["message"]
    assert message.startswith(
        f"'{USER}' may not call the tool 'who': the right 'call' on 'tools.gpu.mcp/who' in "
        "namespace gpu is missing. If there is such a tool (tools/list), "
        "it is granted by: printf %s "
    )
    assert cluster.specs[0] == {
        "user": USER,
        "uid": "uid-of-caller",
        "groups": [
            "system:serviceaccounts",
            "system:serviceaccounts:apps",
            "system:authenticated",
        ],
        "extra": {},
        "resourceAttributes": {
            "group": "gpu.mcp",
            "resource": "tools",
            "verb": "call",
            "name": "echo",
            "namespace": "gpu",
        },
    }
    other = await opened.call(token("other"), "echo", accept=accept)
    assert other.status_code == 403


def granted_by(message: str) -> tuple[dict[str, Any], list[str]]:
    """What the command in a refusal applies, and its other words."""
    words = shlex.split(message.partition("it is granted by: ")[2])
    assert words[:2] == ["printf", "%s"]
    return json.loads(words[2]), words[3:]


async def test_the_refusal_holds_the_command_that_grants_the_right(
    cluster: FakeCluster, opened: Door
) -> None:
    refused = await opened.call(token(), "who")
    document, rest = granted_by(refused.json()["error"]["message"])
    assert rest == ["|", "kubectl", "-n", "gpu", "apply", "-f", "-"]
    role, binding = document["items"]
    assert role["kind"] == "Role"
    assert role["rules"] == [
        {
            "apiGroups": ["gpu.mcp"],
            "resources": ["tools"],
            "resourceNames": ["who"],
            "verbs": ["call"],
        }
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "namespace": "apps", "name": "caller"}
    ]


async def test_nothing_is_asked_for_what_is_no_call(cluster: FakeCluster, opened: Door) -> None:
    mine = await opened.post(token(), request("tools/list"))
    anybodys = await opened.post(STATIC, request("tools/list"))
    assert mine.status_code == 200
    assert mine.json()["result"]["tools"] == anybodys.json()["result"]["tools"]
    assert (await opened.post(token(), request("server/discover"))).status_code == 200
    assert "subjectaccessreviews" not in cluster.asked


async def test_holders_of_a_static_token_may_call_all(cluster: FakeCluster, opened: Door) -> None:
    assert (await opened.call(STATIC, "who")).status_code == 200
    assert not cluster.asked


@pytest.mark.parametrize(
    "body",
    [
        b'{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call","params":%s}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools\\u002fcall","params":%s}',
        b'{"id":1,"params":{"name":"echo"},"params":%s,"method":"tools/call","jsonrpc":"2.0"}',
    ],
)
async def test_there_is_no_way_around_by_spelling(
    cluster: FakeCluster, opened: Door, body: bytes
) -> None:
    called = json.dumps({**call("who")["params"], "name": "echo"}).encode()
    twice = called.removesuffix(b"}") + b', "n\\u0061me": "who"}'
    assert (await opened.post(token(), body % twice)).status_code == 403
    assert (await opened.post(token(), b"[" + body % twice + b"]")).status_code == 400


async def test_a_notification_is_no_way_around(cluster: FakeCluster, opened: Door) -> None:
    message = call("who")
    del message["id"]
    assert (await opened.post(token(), message)).status_code == 403


ANSWERS = {"result": {}, "error": {"code": 1, "message": "x", "data": 1}}


@pytest.mark.parametrize("accept", ["*/*", "application/json, text/event-stream"])
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("members", [["result"], ["error"], ["result", "error"]])
async def test_a_request_that_is_an_answer_too_is_no_way_around(
    cluster: FakeCluster, opened: Door, accept: str, era: str, members: list[str]
) -> None:
    """Whichever of both it is taken for, it is not judged as the one and run as the other."""
    message = call("who") | {name: ANSWERS[name] for name in members}
    told = headers(message, accept) if era != "legacy" else {"Accept": accept}
    for spelt in (message, dict(reversed(message.items()))):
        answer = await opened.client.post(
            f"{opened.url}/mcp",
            json=spelt,
            headers=told | {"Authorization": f"Bearer {token()}"},
        )
        assert answer.status_code in (400, 403), answer.text


@pytest.mark.parametrize("name", ["", "nothing", "x" * 5000, "\x1b[2Jwho", "who'; rm -rf /; '"])
async def test_a_name_that_is_no_tools_is_not_granted(
    cluster: FakeCluster, opened: Door, name: str
) -> None:
    refused = await opened.post(token(), call(name))
    assert refused.status_code == 403
    message = refused.json()["error"]["message"]
    assert message.isprintable()
    assert len(message) < 2000
    document, _ = granted_by(message)
    assert document["items"][0]["rules"][0]["resourceNames"] == [name[:128]]
    assert len(cluster.specs) == (len(name) <= 128)


@pytest.mark.parametrize("name", [None, 7, ["who"], {"who": 1}])
async def test_a_name_that_is_no_text_calls_nothing(
    cluster: FakeCluster, opened: Door, name: Any
) -> None:
    message = call("who")
    message["params"]["name"] = name
    assert "error" in (await opened.post(token(), message)).json()


async def test_rights_are_remembered_for_a_while(
    cluster: FakeCluster, opened: Door, clock: Clock
) -> None:
    for _ in range(100):
        assert (await opened.call(token(), "echo")).status_code == 200
    for _ in range(5):
        assert (await opened.call(token(), "who")).status_code == 403
    assert cluster.asked["subjectaccessreviews"] == 2
    cluster.granted = {(USER, "who")}
    clock.now += 6
    assert (await opened.call(token(), "who")).status_code == 200
    assert (await opened.call(token(), "echo")).status_code == 200
    clock.now += 25
    assert (await opened.call(token(), "echo")).status_code == 403


@pytest.mark.parametrize("fault", [500, 403, "drop", "garbage", "list"])
async def test_a_right_that_cannot_be_checked_is_none_yet(
    cluster: FakeCluster, opened: Door, clock: Clock, fault: Fault
) -> None:
    assert (await opened.call(token(), "echo")).status_code == 200
    cluster.fault = fault
    assert (await opened.call(token(), "echo")).status_code == 200
    clock.now += 31
    answer = await opened.call(token(), "echo")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert (await opened.call(STATIC, "echo")).status_code == 200
    cluster.fault = None
    clock.now += 2
    assert (await opened.call(token(), "echo")).status_code == 200


async def test_another_namespace_may_be_asked_about(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    policy = AccessPolicy(
        kubernetes_tokens="review",
        token_audiences=("gpu",),
        access_review=True,
        access_namespace="elsewhere",
    )
    shown = token()
    extra = {"authentication.kubernetes.io/pod-name": ["p"]}
    cluster.users[shown] = {"username": "bob", "groups": ["g2", "g1"], "extra": extra}
    async with door(policy, caplog, POD_TOKEN) as opened:
        refused = await opened.call(shown)
    assert refused.status_code == 403
    document, rest = granted_by(refused.json()["error"]["message"])
    assert document["items"][1]["subjects"][0]["name"] == "bob"
    assert rest[3] == "elsewhere"
    spec = cluster.specs[-1]
    assert spec["resourceAttributes"]["namespace"] == "elsewhere"
    assert (spec["user"], spec["groups"], spec["extra"]) == ("bob", ["g1", "g2"], extra)


@pytest.mark.parametrize("era", ERAS)
async def test_an_mcp_client_goes_on_after_a_refusal(
    cluster: FakeCluster, opened: Door, era: str
) -> None:
    headers = {"Authorization": f"Bearer {token()}"}
    async with (
        httpx2.AsyncClient(headers=headers, trust_env=False, timeout=20) as http,
        Client(streamable_http_client(f"{opened.url}/mcp", http_client=http), mode=era) as client,
    ):
        assert len((await client.list_tools()).tools) > 2
        with pytest.raises(MCPError):
            await client.call_tool("who", {})
        answer = await client.call_tool("echo", {"text": "hi"})
        assert answer.structured_content == {"title": "hi", "nothing": None}

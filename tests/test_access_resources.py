"""Rights to tools hold for what resources show of them; prompts show nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from mcp_gpu.registry import Answer, Arguments, Call, Registry, Surface, Tool, UnknownResource
from mcp_gpu.registry.completion import Completer
from mcp_gpu.registry.prompt import Prompt
from mcp_gpu.registry.resource import Resource
from mcp_gpu.serving.access.model import AccessPolicy
from support.demo_server import IDENTITY, Text
from support.door import Clock, Door, door
from support.kubeapi.access import POD_TOKEN, FakeCluster
from support.signer import Signer, kubernetes_claims
from support.wire import call, request

USER = "system:serviceaccount:apps:caller"
STATIC = "a-static-token-of-this-test"
SECRET = "what only those with the right may see"


class NodeArguments(Arguments):
    node: str = ""


async def run(arguments: NodeArguments, called: Call) -> Answer:
    return Answer(SECRET, Text(title=SECRET))


async def names(given: Mapping[str, str]) -> Iterable[str]:
    return [SECRET]


async def codes(given: Mapping[str, str]) -> Iterable[str]:
    return ["79"]


async def look(found: Sequence[object]) -> Mapping[str, int]:
    return {}


def known(variables: Mapping[str, str]) -> Mapping[str, Any]:
    if variables["node"] != "a":
        raise UnknownResource(f"Unknown node. Known: {SECRET}")
    return {}


def write(arguments: NodeArguments, tools: object) -> str:
    return f"Look at {arguments.node}."


def tool(name: str) -> Tool[NodeArguments]:
    return Tool(
        name=name, title="T", description="D.", arguments=NodeArguments, result=Text, run=run
    )


def resource(uri: str, of: str, **more: Any) -> Resource:
    return Resource(uri=uri, name=of, title="T", description="D.", tool=of, **more)


@pytest.fixture
def registry() -> Registry:
    """Three tools; of the health of nodes there are resources."""
    node = Completer(names, "inventory")
    return Registry(
        name="demo",
        version="9.9",
        instructions="",
        tools=[tool("health"), tool("inventory"), tool("explain")],
        identity=lambda: IDENTITY,
        surface=Surface(
            prompts=lambda: [
                Prompt(
                    name="check",
                    title="T",
                    description="D.",
                    arguments=NodeArguments,
                    write=write,
                    completes={"node": node},
                )
            ],
            resources=lambda: [
                resource("gpu://fleet", "health", arguments=lambda v: {}, watched=True),
                resource(
                    "gpu://node/{node}",
                    "health",
                    arguments=known,
                    watched=True,
                    completes={"node": node},
                ),
                resource(
                    "xid://{code}",
                    "explain",
                    arguments=lambda v: {},
                    completes={"code": Completer(codes)},
                ),
            ],
            look=look,
            period_seconds=60.0,
        ),
    )


@pytest.fixture
async def opened(
    cluster: FakeCluster,
    registry: Registry,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> AsyncIterator[Door]:
    (tmp_path / "static").write_text(STATIC)
    policy = AccessPolicy(
        token_file=tmp_path / "static",
        kubernetes_tokens="jwks",
        token_audiences=("gpu",),
        access_review=True,
    )
    cluster.granted = {(USER, "explain")}
    async with door(policy, caplog, POD_TOKEN, STATIC, served=registry) as found:
        yield found


def token() -> str:
    return Signer().sign(kubernetes_claims(name="caller"))


def read(uri: str) -> dict[str, Any]:
    return request("resources/read", uri=uri)


def listen(**wanted: Any) -> dict[str, Any]:
    return request("subscriptions/listen", notifications=wanted)


def completing(ref: dict[str, Any], argument: str) -> dict[str, Any]:
    return request("completion/complete", ref=ref, argument={"name": argument, "value": ""})


def legacy(message: dict[str, Any]) -> dict[str, Any]:
    """The same before 2026-07-28."""
    params = {key: value for key, value in message["params"].items() if key != "_meta"}
    return {**message, "params": params}


OF_PROMPT = {"type": "ref/prompt", "name": "check"}
OF_NODE = {"type": "ref/resource", "uri": "gpu://node/{node}"}

REFUSED = {
    "a fleet": (read("gpu://fleet"), "health"),
    "a node": (read("gpu://node/a"), "health"),
    "a node with a sign": (read("gpu://node/%61"), "health"),
    "an unknown node": (read("gpu://node/b"), "health"),
    "a subscription": (request("resources/subscribe", uri="gpu://fleet"), "health"),
    "a stream": (listen(resourceSubscriptions=["gpu://x", "gpu://node/a"]), "health"),
    "a stream in Python": (listen(resource_subscriptions=["gpu://fleet"]), "health"),
    "names of nodes for a prompt": (completing(OF_PROMPT, "node"), "inventory"),
    "names of nodes for a resource": (completing(OF_NODE, "node"), "inventory"),
}


@pytest.mark.parametrize("era", [dict, legacy])
@pytest.mark.parametrize("accept", ["*/*", "application/json, text/event-stream"])
@pytest.mark.parametrize("what", REFUSED)
async def test_a_resource_is_no_way_around_the_right_to_its_tool(
    what: str, accept: str, era: Any, opened: Door
) -> None:
    message, needed = REFUSED[what]
    refused = await opened.post(token(), era(message), accept=accept)
    assert refused.status_code == 403
    assert f"may not call the tool '{needed}'" in refused.json()["error"]["message"]
    assert SECRET not in refused.text


async def test_with_the_right_it_is_shown(cluster: FakeCluster, opened: Door) -> None:
    cluster.granted = {(USER, "health"), (USER, "inventory")}
    shown = await opened.post(token(), read("gpu://fleet"))
    assert shown.status_code == 200
    assert SECRET in shown.text
    assert SECRET in (await opened.post(token(), completing(OF_NODE, "node"))).text
    # Of its own, and of no other.
    assert (await opened.post(token(), read("xid://79"))).status_code == 403
    assert (await opened.call(token(), "explain")).status_code == 403


async def test_a_right_to_one_resource_is_none_to_another(opened: Door) -> None:
    assert SECRET in (await opened.post(token(), read("xid://79"))).text
    assert (await opened.post(token(), call("health"))).status_code == 403
    assert (await opened.post(token(), read("gpu://fleet"))).status_code == 403


@pytest.mark.parametrize(
    "message",
    [
        request("prompts/list"),
        request("prompts/get", name="check", arguments={"node": "a"}),
        request("resources/list"),
        request("resources/templates/list"),
        read("gpu://unknown"),
        completing({"type": "ref/resource", "uri": "xid://{code}"}, "code"),
        completing({"type": "ref/resource", "uri": "gpu://unknown"}, "node"),
        completing(OF_PROMPT, "unknown"),
    ],
)
async def test_what_shows_nothing_needs_no_right(
    message: dict[str, Any], cluster: FakeCluster, opened: Door
) -> None:
    answer = await opened.post(token(), message)
    assert answer.status_code in (200, 400)
    assert SECRET not in answer.text
    assert "subjectaccessreviews" not in cluster.asked


@pytest.mark.parametrize(
    "params",
    [
        {"uri": None},
        {"uri": ["gpu://fleet"]},
        {"notifications": 7},
        {"notifications": {"resourceSubscriptions": "gpu://fleet"}},
        {"notifications": {"resourceSubscriptions": [7, None, ["gpu://fleet"]]}},
        {"ref": 7, "argument": {"name": "node", "value": ""}},
        {"ref": {"type": "ref/other", "name": "check"}, "argument": {"name": "node", "value": ""}},
    ],
)
@pytest.mark.parametrize(
    "method", ["resources/read", "subscriptions/listen", "completion/complete"]
)
async def test_what_is_no_request_is_told_so_and_shows_nothing(
    method: str, params: dict[str, Any], opened: Door
) -> None:
    answer = await opened.post(token(), request(method, **params))
    assert SECRET not in answer.text
    assert "error" in answer.json()


async def test_a_second_spelling_of_a_name_is_no_way_around(opened: Door) -> None:
    meta = json.dumps(read("x")["params"]["_meta"]).encode()
    twice = b'{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"_meta":' + meta
    twice += b',"uri":"xid://79","u\\u0072i":"gpu://fleet"}}'
    refused = await opened.post(token(), twice)
    assert refused.status_code == 403


async def test_holders_of_a_static_token_read_all(cluster: FakeCluster, opened: Door) -> None:
    shown: httpx.Response = await opened.post(STATIC, read("gpu://node/a"))
    assert SECRET in shown.text
    assert not cluster.asked

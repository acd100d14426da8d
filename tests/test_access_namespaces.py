"""What a caller may not read in Kubernetes, no tool reads for it with the gateway's rights."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from mcp_gpu.registry import Tool
from mcp_gpu.serving.access.model import AccessPolicy
from mcp_gpu.tools import explain_failure, incident
from support import served
from support.door import Door, door
from support.failures import NAMESPACE, POD, died, pod, staged, status
from support.kubeapi.access import POD_TOKEN, FakeCluster
from support.signer import Signer, kubernetes_claims
from support.wire import call

USER = "system:serviceaccount:apps:caller"
ANSWERS = ["*/*", "application/json, text/event-stream"]
STATIC = "a-static-token-of-this-test"
INCIDENT = "inc-20261126T100220Z-1b8ca1-n1"


@pytest.fixture
async def opened(cluster: FakeCluster, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Door]:
    """A gateway whose account may read all, and a caller who may call its tools."""
    made: list[Tool[Any]] = []

    def make(*arguments: Any, **options: Any) -> Tool[Any]:
        made.extend(
            module.gateway_tool(*arguments, **options) for module in (explain_failure, incident)
        )
        return made[0]

    (cluster.folder / "static").write_text(STATIC)
    policy = AccessPolicy(
        token_file=cluster.folder / "static",
        kubernetes_tokens="jwks",
        token_audiences=("gpu",),
        access_review=True,
    )
    cluster.granted = {(USER, "explain_failure"), (USER, "get_incident_report")}
    document = pod(status(died(1, message="told of others")))
    logs = {("main", False): "KeyError: of the log"}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(staged(document, logs=logs, make=make))
        registry = served.registry(made[0], "here", made[1])
        yield await stack.enter_async_context(
            door(policy, caplog, POD_TOKEN, STATIC, served=registry)
        )


async def ask(opened: Door, tool: str, accept: str, **arguments: str) -> httpx.Response:
    token = Signer().sign(kubernetes_claims(name="caller"))
    return await opened.post(token, call(tool, **arguments), accept=accept)


@pytest.mark.parametrize("accept", ANSWERS)
async def test_a_pod_is_explained_to_whom_may_read_pods_of_its_namespace(
    cluster: FakeCluster, opened: Door, accept: str
) -> None:
    cluster.readable = {(USER, "pods", "elsewhere"), (USER, "pods/log", NAMESPACE)}
    where = {"pod": POD, "namespace": NAMESPACE}
    refused = await ask(opened, "explain_failure", accept, **where)
    assert refused.status_code == 403
    assert refused.json()["error"]["message"].startswith(
        f"'{USER}' may call this tool, and not read what it tells: the right 'get' on 'pods' in "
        f"namespace {NAMESPACE} is missing."
    )
    assert cluster.specs[-1]["resourceAttributes"] == {
        "group": "", "resource": "pods", "verb": "get", "namespace": NAMESPACE,
    }  # fmt: skip
    # What is left out is the namespace "default".
    assert (await ask(opened, "explain_failure", accept, pod=POD)).status_code == 403
    answer = await ask(opened, "explain_failure", accept, pod=POD, namespace="elsewhere")
    assert answer.status_code == 200
    assert "of others" not in answer.text
    # Whose arguments are no good is told so, whoever asks.
    answer = await ask(opened, "explain_failure", accept, pod="-", namespace=NAMESPACE)
    assert answer.status_code == 200
    assert "isError" in answer.text


@pytest.mark.parametrize("accept", ANSWERS)
@pytest.mark.parametrize("may", [False, True])
async def test_of_a_log_nothing_is_told_to_whom_may_not_read_it(
    cluster: FakeCluster, opened: Door, accept: str, may: bool
) -> None:
    cluster.readable = {(USER, "pods", NAMESPACE)}
    cluster.readable |= {(USER, "pods/log", NAMESPACE)} if may else set()
    answer = await ask(opened, "explain_failure", accept, pod=POD, namespace=NAMESPACE)
    assert answer.status_code == 200
    assert "of others" in answer.text
    assert ("of the log" in answer.text) is may
    assert ("forbidden to the caller" in answer.text) is not may
    assert ("get pods/log in train" in answer.text) is not may


@pytest.mark.parametrize("accept", ANSWERS)
@pytest.mark.parametrize(
    "what",
    [{"pod": POD, "namespace": NAMESPACE}, {"node": "n1"}, {"incident_id": INCIDENT}],
    ids=lambda what: next(iter(what)),
)
async def test_a_report_is_for_whom_may_read_pods_of_all_namespaces(
    cluster: FakeCluster, opened: Door, accept: str, what: dict[str, str]
) -> None:
    cluster.readable = {(USER, "pods", NAMESPACE), (USER, "pods", "default")}
    refused = await ask(opened, "get_incident_report", accept, **what)
    assert refused.status_code == 403
    assert "on 'pods' in all namespaces is missing" in refused.json()["error"]["message"]


async def test_a_report_is_told_and_nothing_of_a_log_that_may_not_be_read(
    cluster: FakeCluster, opened: Door
) -> None:
    cluster.readable = {(USER, "pods", "")}
    what = {"pod": POD, "namespace": NAMESPACE}
    answer = await ask(opened, "get_incident_report", "*/*", **what)
    assert answer.status_code == 200
    told = json.dumps(answer.json()["result"])
    assert "of others" in told
    assert "of the log" not in told
    assert "forbidden to the caller" in told


async def test_who_has_a_static_token_is_nobody_whose_rights_could_be_asked(
    cluster: FakeCluster, opened: Door
) -> None:
    asked = call("explain_failure", pod=POD, namespace=NAMESPACE)
    answer = await opened.post(STATIC, asked)
    assert "of the log" in answer.text
    assert cluster.specs == []

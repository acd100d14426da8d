"""Whether streams into pods are ours to open: asked once, believed for a while, by both paths."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from mcp_gpu.settings.fleet import FleetSettings
from support.kubeapi.answering import PRINT, answering, program
from support.kubeapi.credentials import write_kubeconfig
from support.kubeapi.pods import Faults, status
from support.kubeapi.streams import AGENT, REVIEWS, Pod, StreamsServer, one_pod
from support.peer import Peer, relayed, serve_http, swallowing
from transports import pods
from transports.base import Target, Transport
from transports.errors import BadPeer, Denied, Gone, TransportError, Unreachable
from transports.exec import ExecSettings, ExecTransport
from transports.portforward import PortForwardSettings, PortForwardTransport

RBAC = 'pods "agent-1" is forbidden: User "u" cannot create resource "{}" in API group "" in the n'
POLICY = (
    "pods \"agent-1\" is forbidden: ValidatingAdmissionPolicy 'gpu-exec' with binding 'gpu-exec' "
    "denied request: only mcp-gpu attach may be started"
)
WEBHOOK = 'admission webhook "exec.example.org" denied the request: not here'


@dataclass(frozen=True)
class Way:
    """One of the two paths, and the pod at its end."""

    make: Callable[..., Transport]
    pod: Pod
    resource: str


@asynccontextmanager
async def path_of(kind: str, folder: Path) -> AsyncIterator[Way]:
    peer = Peer()
    async with AsyncExitStack() as stack:
        kubeconfig = str(folder / "kubeconfig")
        if kind == "exec":
            argv = tuple(await stack.enter_async_context(relayed(peer.serve_bytes, folder)))

            def make(**options: Any) -> Transport:
                return ExecTransport(
                    ExecSettings(**{"argv": argv, "kubeconfig": kubeconfig, **options})
                )

            pod = Pod()
        else:
            port = await stack.enter_async_context(serve_http(peer.app()))

            def make(**options: Any) -> Transport:
                return PortForwardTransport(
                    PortForwardSettings(**{"kubeconfig": kubeconfig, **options})
                )

            pod = Pod(ports={8080: port})
        yield Way(make, pod, f"pods/{kind}")


@pytest.fixture(params=["exec", "portforward"])
async def path(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Way]:
    async with path_of(request.param, tmp_path) as found:
        yield found


@pytest.fixture
async def server(path: Way, tmp_path: Path) -> AsyncIterator[StreamsServer]:
    async with one_pod(tmp_path, path.pod) as found:
        yield found


async def refused(transport: Transport, target: Target = AGENT) -> TransportError:
    """What a probe fails with."""
    with anyio.fail_after(20), pytest.raises(TransportError) as caught:
        await transport.probe(target)
    return caught.value


@pytest.mark.parametrize(
    ("lacking", "told"),
    [({"get"}, "get"), ({"create"}, "create"), ({"get", "create"}, "get and create")],
)
async def test_what_a_review_denies_is_not_tried(
    lacking: set[str], told: str, path: Way, server: StreamsServer
) -> None:
    server.denied |= {(verb, path.resource) for verb in lacking}
    async with path.make() as transport:
        found: list[TransportError] = []

        async def probe() -> None:
            found.append(await refused(transport))

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(probe)
        await probe()
    words = f"grant get and create on {path.resource}: an access review denies {told} in "
    assert {(type(error), error.symptom) for error in found} == {(Denied, "rbac")}
    assert {error.message for error in found} == {f"{words}namespace gpu"}
    assert (server.reviews, server.streams) == (2, 0)


async def test_a_denial_is_asked_about_again_in_a_while(
    path: Way, server: StreamsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.denied.add(("create", path.resource))
    monkeypatch.setitem(pods.BELIEVED_SECONDS, "rbac", 0.0)
    async with path.make() as transport:
        for _ in range(3):
            assert (await refused(transport)).symptom == "rbac"
        assert (server.reviews, server.streams) == (6, 0)
        server.denied.clear()
        await transport.probe(AGENT)
        await transport.probe(AGENT)
    assert (server.reviews, server.streams) == (8, 1)


async def test_a_right_that_is_taken_away_is_not_tried_in_a_loop(
    path: Way, server: StreamsServer
) -> None:
    async with path.make() as transport:
        await transport.probe(AGENT)
        nobody = replace(AGENT, pod="nobody")
        assert (await refused(transport, nobody)).reason == "not_running"
        assert (server.reviews, server.streams) == (2, 2)
        path.pod.faults.refuse = (403, "Forbidden", RBAC.format(path.resource))
        others = [replace(AGENT, uid=str(number)) for number in range(20)]
        first = await refused(transport, others[0])
        assert first.message.startswith(f"grant get and create on {path.resource}: HTTP 403")
        for other in others[1:]:
            assert (await refused(transport, other)).message == first.message
    assert (server.reviews, server.streams) == (2, 3)


@pytest.mark.parametrize(
    "refusal", [(422, "Invalid", POLICY), (403, "Forbidden", POLICY), (400, "", WEBHOOK)]
)
async def test_admission_refuses_in_its_own_words_and_for_one_pod(
    refusal: tuple[int, str, str], path: Way, server: StreamsServer
) -> None:
    path.pod.faults.refuse = refusal
    async with path.make() as transport:
        for _ in range(2):
            error = await refused(transport)
            assert (type(error), error.symptom) == (Denied, "admission")
            assert error.message.startswith(f"HTTP {refusal[0]} ")
            assert error.message.endswith(refusal[2])
        path.pod.faults.refuse = None
        await transport.probe(AGENT)
    assert (server.reviews, server.streams) == (2, 3)


@pytest.mark.parametrize(
    ("refusal", "kind", "words"),
    [
        ((401, "Unauthorized", "Unauthorized"), Denied, "HTTP 401 Unauthorized: Unauthorized"),
        ((403, "", ""), Denied, "HTTP 403 Forbidden"),
        ((404, "NotFound", 'pods "a" not found'), Gone, 'HTTP 404 Not Found: pods "a" not found'),
        (
            (400, "BadRequest", "pod a does not have a host assigned"),
            Gone,
            "HTTP 400 Bad Request: pod a does not have a host assigned",
        ),
        ((404, "", "<html>nginx</html>"), BadPeer, "HTTP 404 Not Found"),
        ((404, "", "pod does not exist"), Gone, "HTTP 404 Not Found: pod does not exist"),
        (
            (400, "BadRequest", "container x is not valid for pod a"),
            Gone,
            "HTTP 400 Bad Request: container x is not valid for pod a",
        ),
        (  # something on the way does not carry WebSockets
            (400, "BadRequest", "Upgrade request required"),
            Unreachable,
            "HTTP 400 Bad Request: Upgrade request required",
        ),
        (
            (500, "", 'container not found ("agent")'),
            Gone,
            'HTTP 500 Internal Server Error: container not found ("agent")',
        ),
        (
            (500, "InternalError", "error dialing backend: dial tcp 10.0.0.1:10250: refused"),
            Unreachable,
            "HTTP 500 Internal Server Error: error dialing backend: dial tcp 10.0.0.1:10250: "
            "refused",
        ),
        ((502, "", "<html>nginx</html>"), Unreachable, "HTTP 502 Bad Gateway"),
        ((503, "", ""), Unreachable, "HTTP 503 Service Unavailable"),
        ((504, "Timeout", "too slow"), Unreachable, "HTTP 504 Gateway Timeout: too slow"),
        ((429, "TooManyRequests", "later"), Unreachable, "HTTP 429 Too Many Requests: later"),
        ((302, "", ""), BadPeer, "HTTP 302 Found"),
        ((200, "", "hello"), BadPeer, "HTTP 200 without the WebSocket that was asked for"),
    ],
)
async def test_a_refusal_is_told_in_the_servers_words(
    refusal: tuple[int, str, str],
    kind: type[TransportError],
    words: str,
    path: Way,
    server: StreamsServer,
) -> None:
    path.pod.faults.refuse = refusal
    async with path.make() as transport:
        error = await refused(transport)
    assert type(error) is kind
    assert error.message.endswith(words)


@pytest.mark.parametrize("field", ["namespace", "pod"])
@pytest.mark.parametrize("name", ["..", "a/b", "a?x=1", "A", "-a", "a%2e", "ä", "a\n"])
async def test_a_name_that_is_none_reaches_no_server(
    field: str, name: str, path: Way, server: StreamsServer
) -> None:
    async with path.make() as transport:
        error = await refused(transport, replace(AGENT, **{field: name}))
    assert type(error) is BadPeer
    assert server.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        lambda: status(403, "Forbidden", "selfsubjectaccessreviews is forbidden"),
        lambda: web.json_response({"status": {"allowed": False, "evaluationError": "no webhook"}}),
        lambda: web.json_response([]),
        lambda: web.json_response({"status": None}),
        lambda: web.Response(status=502, text="bad gateway"),
    ],
    ids=["forbidden", "failed", "list", "null", "gateway"],
)
async def test_where_reviews_say_nothing_trying_does(
    answer: Callable[[], web.Response], path: Way, server: StreamsServer
) -> None:
    server.review = answer
    async with path.make() as transport:
        await transport.probe(AGENT)
        await transport.probe(AGENT)
    assert (server.reviews, server.streams) == (2, 1)


async def test_each_namespace_has_its_own_answer(path: Way, tmp_path: Path) -> None:
    other = replace(AGENT, namespace="other")
    both = {("gpu", "agent-1"): path.pod, ("other", "agent-1"): path.pod}
    async with StreamsServer(both) as server, path.make() as transport:
        server.kubeconfig(tmp_path / "kubeconfig")
        server.denied.add(("get", path.resource))
        assert "namespace gpu" in (await refused(transport)).message
        server.denied.clear()
        await transport.probe(other)
        assert "namespace gpu" in (await refused(transport)).message
        assert (server.reviews, server.streams) == (4, 1)


async def test_an_api_server_that_is_not_there_is_asked_nothing_more(
    path: Way, tmp_path: Path
) -> None:
    async with one_pod(tmp_path, path.pod):
        pass
    async with path.make() as transport:
        error = await refused(transport)
    assert (type(error), error.symptom) == (Unreachable, "api_unreachable")


async def test_an_api_server_that_does_not_answer_is_given_up_by_all_who_wait(
    path: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods, "REVIEW_SECONDS", 0.2)
    asked: list[str] = []
    found: list[TransportError] = []

    async def hang(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        await anyio.sleep_forever()
        raise AssertionError

    async def probe(target: Target) -> None:
        found.append(await refused(transport, target))

    async with answering(hang) as port:
        write_kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{port}")
        async with path.make() as transport, anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(probe, replace(AGENT, uid=str(number)))
    assert {(type(error), error.symptom) for error in found} == {(Unreachable, "api_unreachable")}
    assert {"did not answer" in error.message for error in found} == {True}
    assert asked == [REVIEWS, REVIEWS]


async def test_an_api_server_that_drops_packets_is_told_while_a_probe_lasts(
    path: Way, tmp_path: Path
) -> None:
    async with swallowing() as port, path.make() as transport:
        write_kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{port}")
        with anyio.fail_after(FleetSettings.model_fields["stream_timeout_seconds"].default):
            error = await refused(transport)
    assert (type(error), error.symptom) == (Unreachable, "api_unreachable")


async def test_both_paths_share_what_a_program_gives_as_credentials(tmp_path: Path) -> None:
    counted = PRINT + "open(os.path.join(os.path.dirname(__file__), 'runs'), 'a').write('x')\n"
    (tmp_path / "status").write_text(json.dumps({"token": "s3cret-token"}))
    async with AsyncExitStack() as stack:
        exec_, forward = [
            await stack.enter_async_context(path_of(kind, tmp_path))
            for kind in ("exec", "portforward")
        ]
        server = await stack.enter_async_context(one_pod(tmp_path, forward.pod))
        write_kubeconfig(tmp_path / "kubeconfig", server.url, user=program(tmp_path, counted))
        for runs in ("x", "xx"):  # once while anybody is there, and anew after that
            async with exec_.make() as one, forward.make() as other:
                await one.probe(AGENT)
                await other.probe(AGENT)
            assert (tmp_path / "runs").read_text() == runs


async def test_credentials_that_are_refused_are_not_renewed_for_each_stream(
    path: Way, server: StreamsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, runs = tmp_path / "status", tmp_path / "runs"
    session.write_text(json.dumps({"token": server.token}))
    body = f"open({str(runs)!r}, 'a').write('x')\n{PRINT}"
    write_kubeconfig(tmp_path / "kubeconfig", server.url, user=program(tmp_path, body))

    async def meet(transport: Transport) -> None:
        for number in range(20):
            error = await refused(transport, replace(AGENT, uid=str(number)))
            assert (type(error), error.symptom) == (Denied, "credentials")
            assert error.message == "HTTP 401 Unauthorized: Unauthorized"

    monkeypatch.setitem(pods.BELIEVED_SECONDS, "credentials", 60.0)
    async with path.make() as transport:
        await transport.probe(AGENT)
        server.token = "s3cret-second"
        await meet(transport)
        assert (server.reviews, server.streams, runs.read_text()) == (2, 1 + 2, "x" + "x")
    async with path.make() as transport:
        await meet(transport)
        assert (server.reviews, server.streams, runs.read_text()) == (2 + 4, 3, "xx" + "xx")
    monkeypatch.setitem(pods.BELIEVED_SECONDS, "credentials", 0.0)
    async with path.make() as transport:
        assert (await refused(transport)).symptom == "credentials"
        session.write_text(json.dumps({"token": server.token}))  # somebody has logged in
        await transport.probe(AGENT)


async def test_the_targets_cluster_picks_the_context(path: Way, tmp_path: Path) -> None:
    lost = Pod(faults=Faults(refuse=(404, "NotFound", 'pods "agent-1" not found')))
    pods = {("gpu", "agent-1"): lost}
    async with one_pod(tmp_path, path.pod) as server, StreamsServer(pods) as elsewhere:
        one = json.loads((tmp_path / "kubeconfig").read_text())
        one["clusters"].append({"name": "other", "cluster": {"server": elsewhere.url}})
        one["contexts"] = [
            {"name": name, "context": {"cluster": cluster, "user": "tester"}}
            for name, cluster in (("here", "fake"), ("there", "other"))
        ]
        one["current-context"] = "there"
        (tmp_path / "kubeconfig").write_text(json.dumps(one))
        here, there = replace(AGENT, cluster="here"), replace(AGENT, cluster="there")
        async with path.make(contexts=("here", "there")) as transport:
            assert not transport.applies(replace(AGENT, cluster="nowhere"))
            assert transport.applies(AGENT)
            await transport.probe(here)
            assert (await refused(transport, there)).reason == "not_running"
            assert (await refused(transport)).reason == "not_running"  # the current one
        async with path.make(contexts=("here",)) as transport:
            await transport.probe(AGENT)  # the only one
        async with path.make() as transport:
            assert transport.applies(there)
            assert (await refused(transport, there)).reason == "not_running"
        assert (server.streams, elsewhere.streams) == (2, 3)

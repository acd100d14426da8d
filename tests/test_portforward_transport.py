"""Port-forward through a fake API server to real HTTP servers; the cases hold on a cluster too."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream

from mcp_gpu.serving.access.model import AccessPolicy
from mcp_gpu.serving.endpoint import TlsFiles
from mcp_gpu.serving.server import HttpEndpoint
from support.demo_server import registry
from support.forwardcases import CASES, ForwardSite
from support.kubeapi.credentials import Authority
from support.kubeapi.pods import Faults
from support.kubeapi.streams import AGENT, Pod, StreamsServer, one_pod, probe_refused
from support.peer import Peer, connections_to, serve_http, speaking, text_of, until
from support.wire import serving
from transports import turns
from transports.base import Target
from transports.errors import BadPeer, Broken, Gone, TimedOut, TransportError, Unreachable
from transports.portforward import PortForwardSettings, PortForwardTransport
from transports.registry import load
from transports.session import call_tool


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[ForwardSite]:
    """A pod with a real server on a port, and nobody on the others."""
    token_file = tmp_path / "token"
    token_file.write_text("s3cret")
    authority = Authority(tmp_path)
    certificate, key = authority.issue("agent", "agent.gpu.svc")
    endpoint = HttpEndpoint(
        port=0,
        access=AccessPolicy(token_file=token_file),
        tls=TlsFiles(cert_file=certificate, key_file=key),
    )
    async with serving(registry(), http=endpoint) as listening:
        pods = {("gpu", "agent-1"): Pod(ports={8080: listening.http[0][1]})}
        async with StreamsServer(pods) as server, StreamsServer(pods) as strict:
            strict.denied.add(("create", "pods/portforward"))
            yield ForwardSite(
                kubeconfig=str(server.kubeconfig(tmp_path / "kubeconfig")),
                stranger=str(strict.kubeconfig(tmp_path / "stranger")),
                token_file=str(token_file),
                target=AGENT,
                trust={"ca_file": str(authority.certificate), "server_name": "agent.gpu.svc"},
                tool="echo",
                arguments={"text": "x"},
            )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_portforward(
    case: Callable[[ForwardSite], Awaitable[None]], site: ForwardSite
) -> None:
    await case(site)


class Reached:
    """A peer in the pod `gpu/agent-1`, and a transport that leads there."""

    def __init__(self, folder: Path, port: int) -> None:
        self.peer = Peer()
        self.pod = Pod(ports={8080: port})
        self.server: StreamsServer
        self._folder = folder

    def transport(self, **settings: Any) -> PortForwardTransport:
        kubeconfig = str(self._folder / "kubeconfig")
        return PortForwardTransport(PortForwardSettings(kubeconfig=kubeconfig, **settings))


@asynccontextmanager
async def reach(folder: Path, **config: Any) -> AsyncIterator[Reached]:
    """`config` is uvicorn's, for the server in the pod."""
    found = Reached(folder, 0)
    async with serve_http(found.peer.app(), **config) as port:
        found.pod.ports = {8080: port}
        async with one_pod(folder, found.pod) as found.server:
            yield found


@pytest.fixture
async def reached(tmp_path: Path) -> AsyncIterator[Reached]:
    async with reach(tmp_path) as found:
        yield found


async def call(
    transport: PortForwardTransport, tool: str, *, seconds: float = 20, **arguments: Any
) -> str:
    result = await call_tool(transport, AGENT, tool, arguments, timeout_seconds=seconds)
    return text_of(result)


async def test_one_connection_serves_calls_that_follow_each_other(reached: Reached) -> None:
    async with reached.transport() as transport:
        await transport.probe(AGENT)
        for number in range(10):
            assert await call(transport, "echo", text=str(number)) == str(number)
        assert reached.pod.asked == [{"ports": "8080", "protocol": "v4.channel.k8s.io"}]
        assert reached.pod.forwarding == 1
    await until(lambda: reached.pod.forwarding == 0)


async def test_calls_at_once_have_a_connection_each_up_to_the_limit(reached: Reached) -> None:
    async with reached.transport(max_connections=5) as transport:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(call, transport, "wait")
            tasks.cancel_scope.cancel()
        done: list[str] = []

        async def echo(text: str) -> None:
            done.append(await call(transport, "echo", text=text))

        asked = len(reached.pod.asked)
        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(echo, str(number))
        assert sorted(done, key=int) == [str(number) for number in range(40)]
        assert len(reached.pod.asked) - asked <= 5
        await until(lambda: reached.pod.forwarding <= 5)


@pytest.mark.parametrize("frame_bytes", [7, 1024, 1 << 20])
async def test_large_answers_arrive_whole_however_they_are_cut(
    frame_bytes: int, reached: Reached
) -> None:
    reached.pod.faults.frame_bytes = frame_bytes
    text = "grüß dich\n\u2028😀" * 12_000  # a good 256 KiB
    async with reached.transport() as transport, anyio.create_task_group() as tasks:

        async def echo(text: str) -> None:
            assert await call(transport, "echo", text=text) == text

        for each in ("", text[:20_000] if frame_bytes < 1024 else text, "x"):
            tasks.start_soon(echo, each)


async def test_a_connection_cut_in_mid_answer_is_broken_and_the_next_call_works(
    reached: Reached,
) -> None:
    async with reached.transport() as transport:
        await transport.probe(AGENT)
        reached.pod.faults.drop_after_bytes = 100_000
        with pytest.raises(Broken, match="closed before the answer was complete"):
            await call(transport, "big", chars=500_000)
        reached.pod.faults.drop_after_bytes = None
        assert len(await call(transport, "big", chars=500_000)) == 500_000


async def test_a_kept_connection_that_has_ended_is_not_used_again(reached: Reached) -> None:
    async with reached.transport() as transport:
        await transport.probe(AGENT)
        (agent,) = transport._agents.values()
        (kept,) = agent.pool._pool.connections
        assert not kept.has_expired()
        reached.server.drop()
        await until(kept.has_expired)
        assert await call(transport, "echo", text="anew") == "anew"
    assert len(reached.pod.asked) == 2


WORDS = "error forwarding port 8080 to pod 0a1b, uid : "


@pytest.mark.parametrize(
    ("words", "kind", "symptom"),
    [
        (
            'failed to execute portforward in network namespace "/var/run/netns/cni-1": failed to '
            'connect to localhost:8080 inside namespace "0a1b", IPv4: dial tcp4 127.0.0.1:8080: '
            "connect: connection refused IPv6 dial tcp6: address localhost: no suitable address",
            Unreachable,
            "refused",
        ),
        ("exit status 1: socat[7] E connect(5, 127.0.0.1:8080): Connection refused",
         Unreachable, "refused"),
        ("unable to do port forwarding: socat not found", Unreachable, "other"),
        ("error dialing backend: dial tcp 10.0.0.1:10250: i/o timeout",
         Unreachable, "kubelet_unreachable"),
        ('failed to find sandbox "0a1b" in store: not found', Gone, "not_running"),
        ('sandbox container "0a1b" is not running', Gone, "not_running"),
        ('network namespace for sandbox "0a1b" is closed', Gone, "not_running"),
        ("read tcp4 127.0.0.1:4->127.0.0.1:8080: connection reset by peer", Broken, "reset"),
    ],
)  # fmt: skip
async def test_what_the_error_channel_says_is_told(
    words: str, kind: type[TransportError], symptom: str, reached: Reached
) -> None:
    reached.pod.faults.fail = WORDS + words
    error = await probe_refused(reached.transport())
    assert (type(error), error.symptom) == (kind, symptom)
    assert error.message == WORDS + words
    async with reached.transport() as transport:
        with pytest.raises(kind) as caught:
            await call(transport, "echo", text="x")
    assert caught.value.message == error.message


async def test_a_server_that_says_nothing_is_unreachable(reached: Reached) -> None:
    reached.pod.faults.hold = anyio.Event()
    error = await probe_refused(reached.transport(connect_timeout_seconds=0.3))
    assert (type(error), error.symptom) == (Unreachable, "silent")
    assert error.message == "not open within 0.3 s"


async def test_a_far_side_that_reads_nothing_is_given_up(reached: Reached) -> None:
    reached.pod.faults.deaf = True
    async with reached.transport(write_timeout_seconds=0.3) as transport:
        with pytest.raises(Broken, match=r"the far side has read nothing for 0\.3 s"):
            await call(transport, "echo", text="x" * 15_000_000)
        # Gone, though megabytes were never sent and the server has not said good-bye. What is
        # left is of an access review.
        await until(lambda: len(connections_to(reached.server.port)) == 1)


async def test_a_peer_that_says_nothing_is_left_at_the_deadline(reached: Reached) -> None:
    async with reached.transport() as transport:
        await transport.probe(AGENT)
        with pytest.raises(TimedOut):
            await call(transport, "wait", name="never", seconds=0.2)
        await until(lambda: reached.peer.waiting == 0)
        await call(transport, "echo", text="x")


async def test_what_does_not_speak_http_is_a_bad_peer(tmp_path: Path) -> None:
    async def banner(stream: ByteStream) -> None:
        await stream.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        await stream.receive()

    async with speaking(banner) as other, one_pod(tmp_path, Pod(ports={8080: other.port})):
        error = await probe_refused(Reached(tmp_path, 0).transport())
    assert (type(error), error.message) == (BadPeer, "what answers does not speak HTTP")


async def test_connections_that_nobody_uses_are_closed(reached: Reached) -> None:
    async with reached.transport(idle_seconds=0.2) as transport:
        await call(transport, "whoami")
        await until(lambda: reached.pod.forwarding == 0)
        assert await call(transport, "echo", text="anew") == "anew"
        assert len(reached.pod.asked) == 2


async def test_forty_pods_are_opened_sixteen_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 60)
    hold = anyio.Event()
    shared = Faults(hold=hold)
    async with serve_http(Peer().app()) as port:
        pods = {
            ("gpu", f"agent-{number}"): Pod(faults=shared, ports={8080: port})
            for number in range(40)
        }
        async with (
            StreamsServer(pods) as server,
            Reached(tmp_path, 0).transport() as transport,
            anyio.create_task_group() as tasks,
        ):
            server.kubeconfig(tmp_path / "kubeconfig")
            for _, name in pods:
                tasks.start_soon(transport.probe, replace(AGENT, pod=name))
            await until(lambda: shared.held == 16)
            hold.set()
    assert shared.most_held == 16
    assert server.reviews == 2


async def test_dead_kubelets_hold_up_the_living_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.1)
    dead = Faults(hold=anyio.Event())
    async with serve_http(Peer().app()) as port:
        pods = {("gpu", f"dead-{number}"): Pod(faults=dead) for number in range(6)}
        async with (
            StreamsServer(pods | {("gpu", "agent-1"): Pod(ports={8080: port})}) as server,
            Reached(tmp_path, 0).transport(max_opening=2, connect_timeout_seconds=60) as transport,
            anyio.create_task_group() as tasks,
        ):
            server.kubeconfig(tmp_path / "kubeconfig")
            for _, name in pods:
                tasks.start_soon(transport.probe, replace(AGENT, pod=name))
            await until(lambda: dead.held >= 2)
            with anyio.fail_after(20):
                await transport.probe(AGENT)
            tasks.cancel_scope.cancel()


async def test_openings_that_are_cancelled_leave_nothing_behind(reached: Reached) -> None:
    def held() -> int:
        return len(asyncio.all_tasks()) + len(os.listdir("/proc/self/fd"))

    async with reached.transport() as transport:
        await transport.probe(AGENT)
    await until(lambda: reached.pod.forwarding == 0)
    before = held()
    for number in range(25):
        async with reached.transport() as transport:
            with anyio.move_on_after(number / 1000):
                await transport.probe(AGENT)
    await until(lambda: held() <= before and reached.pod.forwarding == 0)


@pytest.mark.parametrize(
    ("named", "addresses", "words"),
    [
        ("10.0.0.7", ("10.0.0.7", "fd00::7"), ""),
        ("agent.example.org", ("agent.example.org",), ""),
        ("localhost", (), ""),
        (
            "10.0.0.8",
            ("10.0.0.7",),
            "10.0.0.7:8080: TLS: the certificate is not for 10.0.0.7",
        ),
    ],
)
async def test_certificates_name_what_agents_are_called_by(
    named: str, addresses: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("agent", named)
    target = replace(AGENT, addresses=addresses)
    async with (
        reach(tmp_path, ssl_certfile=certificate, ssl_keyfile=key) as reached,
        reached.transport(scheme="https", ca_file=str(authority.certificate)) as transport,
    ):
        if words:
            with pytest.raises(BadPeer, match=words) as caught:
                await transport.probe(target)
            assert caught.value.symptom == "tls_name"
        else:
            for _ in range(2):
                await transport.probe(target)
            assert len(reached.pod.asked) == 1  # kept, with TLS too
        nobody = replace(target, port=9)
        with pytest.raises(Unreachable, match="connection refused"):
            await transport.probe(nobody)


def test_it_applies_to_a_pod_in_a_namespace() -> None:
    transport = PortForwardTransport()
    assert transport.applies(AGENT)
    assert not transport.applies(Target(node="n", pod="agent-1"))
    assert not transport.applies(Target(node="n", namespace="gpu", addresses=("10.0.0.1",)))


def test_options_are_checked() -> None:
    options = {"kubeconfig": "~/other", "contexts": ["prod"], "scheme": "https", "max_opening": 3}
    transport = load("portforward", options)
    assert isinstance(transport, PortForwardTransport)
    assert transport.settings.max_opening == 3
    with pytest.raises(ValueError, match="ca_file needs the scheme https"):
        load("portforward", {"ca_file": "/ca.pem"})

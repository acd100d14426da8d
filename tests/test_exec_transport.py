"""Exec through a fake API server that starts real processes; the cases hold on a cluster too."""

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from support.demo_server import registry
from support.execcases import CASES, ExecSite
from support.kubeapi.credentials import Authority
from support.kubeapi.streams import AGENT, Faults, Pod, StreamsServer, one_pod, probe_refused
from support.peer import Peer, children, connections_to, relayed, text_of, until
from support.wire import serving
from transports import turns
from transports.base import Target
from transports.channels import V4, V5
from transports.errors import BadPeer, Broken, Denied, Gone, TransportError, Unreachable
from transports.exec import ExecSettings, ExecTransport
from transports.registry import load
from transports.session import call_tool


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[ExecSite]:
    """A pod with a real server behind the real `mcp-gpu attach`."""
    path = tmp_path / "own" / "agent.sock"
    pod = Pod(env={"MCP_GPU_SOCKET": str(path)})
    pods = {("gpu", "agent-1"): pod}
    async with (
        serving(registry(), socket_path=path),
        StreamsServer(pods) as server,
        StreamsServer(pods) as strict,
    ):
        strict.denied.add(("create", "pods/exec"))
        yield ExecSite(
            kubeconfig=str(server.kubeconfig(tmp_path / "kubeconfig")),
            stranger=str(strict.kubeconfig(tmp_path / "stranger")),
            namespace="gpu",
            pod="agent-1",
            tool="echo",
            arguments={"text": "x"},
        )
    assert pod.alive == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_exec(case: Callable[[ExecSite], Awaitable[None]], site: ExecSite) -> None:
    await case(site)


class Reached:
    """A peer in the pod `gpu/agent-1`, and an exec transport that leads there."""

    def __init__(self, folder: Path, argv: Sequence[str]) -> None:
        self.folder = folder
        self.argv = tuple(argv)
        self.peer = Peer()
        self.pod = Pod()
        self.server: StreamsServer

    def transport(self, *argv: str, **settings: Any) -> ExecTransport:
        kubeconfig = str(self.folder / "kubeconfig")
        return ExecTransport(
            ExecSettings(argv=argv or self.argv, kubeconfig=kubeconfig, **settings)
        )


@asynccontextmanager
async def reach(folder: Path, *, encrypted: bool = False, **options: Any) -> AsyncIterator[Reached]:
    found = Reached(folder, ())
    authority = Authority(folder)
    if encrypted:
        options["tls"] = authority.server("127.0.0.1")
    async with relayed(found.peer.serve_bytes, folder) as argv:
        found.argv = tuple(argv)
        async with one_pod(folder, found.pod, **options) as found.server:
            if encrypted:
                trust = {"certificate-authority": str(authority.certificate)}
                found.server.kubeconfig(folder / "kubeconfig", cluster=trust)
            yield found


@pytest.fixture
async def reached(tmp_path: Path) -> AsyncIterator[Reached]:
    async with reach(tmp_path) as found:
        yield found


async def call(
    transport: ExecTransport, tool: str, target: Target = AGENT, **arguments: Any
) -> str:
    result = await call_tool(transport, target, tool, arguments, timeout_seconds=20)
    return text_of(result)


@pytest.mark.parametrize(("spoken", "chosen"), [((V5, V4), V5), ((V4,), V4)])
async def test_the_newest_protocol_that_both_speak_is_used(
    spoken: tuple[str, ...], chosen: str, tmp_path: Path
) -> None:
    async with reach(tmp_path, protocols=spoken) as reached:
        async with reached.transport() as transport:
            text = "ä" * 1_000_000
            assert await call(transport, "echo", text=text) == text
        (asked,) = reached.pod.asked
        await until(lambda: reached.pod.alive == [])
        assert [process.returncode for process in reached.pod.processes] == [0]
        assert reached.pod.inputs_ended == int(chosen == V5)
    assert asked == {
        "protocol": chosen,
        "container": "agent",
        "command": list(reached.argv),
        "stdin": "true",
        "stdout": "true",
        "stderr": "true",
        "tty": "false",
    }


async def test_the_targets_own_container_is_named(reached: Reached) -> None:
    reached.pod.containers = ("sidecar", "gpu-agent")
    async with reached.transport() as transport:
        target = Target(namespace="gpu", pod="agent-1", container="gpu-agent")
        await call(transport, "whoami", target)
    assert reached.pod.asked[0]["container"] == "gpu-agent"


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("error dialing backend: dial tcp: i/o timeout", Unreachable, "error dialing backend"),
        ('unable to upgrade connection: container not found ("agent")', Gone, "not found"),
        ("container is in CONTAINER_EXITED state", Gone, "CONTAINER_EXITED"),
        ("container is not created or running", Gone, "not created or running"),
        ("failed to load task: no running task found: task 7 not found", Gone, "no running task"),
        ("runtime error: cannot exec in a stopped container", Gone, "stopped container"),
        ("Error: No such container: 0a1b", Gone, "No such container"),
        ("Container 0a1b is not running", Gone, "is not running"),
        ("error dialing backend: tunnel is not running", Unreachable, "tunnel"),
    ],
)
async def test_a_failure_after_the_upgrade_is_one_of_opening(
    fault: str, kind: type[TransportError], words: str, reached: Reached
) -> None:
    reached.pod.faults.fail = fault
    error = await probe_refused(reached.transport())
    assert type(error) is kind
    assert words in error.message


async def test_a_container_that_is_not_running_is_gone(reached: Reached) -> None:
    reached.pod.running = False
    assert type(await probe_refused(reached.transport())) is Gone


async def test_a_server_that_speaks_none_of_our_protocols_is_told(tmp_path: Path) -> None:
    async with reach(tmp_path, protocols=("v9.channel.k8s.io",)) as reached:
        error = await probe_refused(reached.transport())
    assert (type(error), error.message) == (Denied, "HTTP 403 Forbidden")


async def test_a_server_that_says_nothing_is_unreachable(reached: Reached) -> None:
    reached.pod.faults.hold = anyio.Event()
    error = await probe_refused(reached.transport(open_timeout_seconds=0.2))
    assert (type(error), error.message) == (Unreachable, "not open within 0.2 s")


async def test_a_container_whose_name_is_none_reaches_no_server(reached: Reached) -> None:
    target = Target(namespace="gpu", pod="agent-1", container="a/b")
    error = await probe_refused(reached.transport(), target)
    assert type(error) is BadPeer
    assert reached.server.requests == []


async def test_without_credentials_it_is_denied(reached: Reached) -> None:
    (reached.folder / "kubeconfig").unlink()
    error = await probe_refused(reached.transport())
    assert type(error) is Denied
    assert error.message.endswith("kubeconfig: no such kubeconfig")


async def test_new_credentials_are_read_when_the_old_have_expired(reached: Reached) -> None:
    async with reached.transport() as transport:
        await call(transport, "whoami")
        reached.server.token = "s3cret-second"
        reached.server.kubeconfig(reached.folder / "kubeconfig")
        await call(transport, "whoami")  # a stream that is open keeps its identity
        for process in reached.pod.alive:
            process.kill()
        await until(lambda: not transport._streams)
        await call(transport, "whoami")
        assert reached.server.streams == 3
        reached.server.token = "s3cret-third"
    error = await probe_refused(reached.transport())
    assert (type(error), error.message) == (Denied, "HTTP 401 Unauthorized: Unauthorized")
    assert reached.server.streams == 3  # not to be had by those whom nobody knows


async def test_only_the_tail_of_standard_error_is_quoted(reached: Reached) -> None:
    script = "head -c 3000000 /dev/zero | tr '\\0' 'x' >&2; printf '\\033[2Jthe end' >&2; exit 1"
    error = await probe_refused(reached.transport("sh", "-c", script))
    assert error.message.startswith("ended with exit status 1 before it answered: xxx")
    assert error.message.endswith("[2Jthe end")
    assert len(error.message) <= 500


@pytest.mark.parametrize("frame_bytes", [1, 2, 3])
async def test_answers_arrive_whole_however_they_are_cut(
    frame_bytes: int, reached: Reached
) -> None:
    reached.pod.faults.frame_bytes = frame_bytes
    text = "grüß dich\n\u2028😀" * 500
    async with reached.transport() as transport:
        assert await call(transport, "echo", text=text) == text


async def test_a_slow_stream_is_no_dead_one(reached: Reached) -> None:
    reached.pod.faults.frame_bytes = 50
    reached.pod.faults.pause_seconds = 0.02
    async with reached.transport(keepalive_seconds=0.1) as transport:
        assert await call(transport, "echo", text="x" * 1000) == "x" * 1000
    assert len(reached.pod.processes) == 1


async def test_a_stream_cut_in_mid_answer_is_broken_and_the_next_call_works(
    reached: Reached,
) -> None:
    reached.pod.faults.drop_after_bytes = 100_000
    async with reached.transport() as transport:
        await transport.probe(AGENT)
        with pytest.raises(Broken, match="the stream closed"):
            await call(transport, "big", chars=500_000)
        reached.pod.faults.drop_after_bytes = None
        assert len(await call(transport, "big", chars=500_000)) == 500_000
    await until(lambda: reached.pod.alive == [])


async def test_a_relay_killed_in_mid_call_is_broken_and_the_next_call_works(
    reached: Reached,
) -> None:
    async with reached.transport() as transport, anyio.create_task_group() as tasks:

        async def wait() -> None:
            with pytest.raises(Broken, match="ended with exit status 137"):
                await call(transport, "wait", name="never")

        await transport.probe(AGENT)
        tasks.start_soon(wait)
        await until(lambda: reached.peer.waiting == 1)
        reached.pod.processes[0].kill()
        await until(lambda: not transport._streams)
        assert await call(transport, "echo", text="anew") == "anew"


async def test_a_server_that_goes_away_in_mid_call_leaves_it_broken(tmp_path: Path) -> None:
    peer = Peer()
    async with relayed(peer.serve_bytes, tmp_path) as argv:
        settings = ExecSettings(argv=tuple(argv), kubeconfig=str(tmp_path / "kubeconfig"))
        async with ExecTransport(settings) as transport, anyio.create_task_group() as tasks:

            async def wait() -> None:
                with pytest.raises(Broken, match="the stream closed"):
                    await call(transport, "wait", name="never")

            async with one_pod(tmp_path, Pod()):
                await transport.probe(AGENT)
                tasks.start_soon(wait)
                await until(lambda: peer.waiting == 1)
            await until(lambda: not transport._streams)
            with pytest.raises(Unreachable, match="cannot reach the API server"):
                await call(transport, "whoami")


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_far_side_that_stops_reading_is_declared_dead_and_let_go(
    encrypted: bool, tmp_path: Path
) -> None:
    async with (
        reach(tmp_path, encrypted=encrypted) as reached,
        reached.transport(write_timeout_seconds=0.3) as transport,
    ):
        reached.pod.faults.deaf = True
        for _ in range(2):
            with pytest.raises(Broken, match=r"read nothing for 0\.3 s"):
                await call(transport, "echo", text="x" * 15_000_000)
        reached.pod.faults.deaf = False
        assert await call(transport, "echo", text="anew") == "anew"
        # Gone, though megabytes were never sent and the server has not said good-bye.
        await until(lambda: len(connections_to(reached.server.port)) == 1)


async def test_a_quiet_stream_is_kept_alive(reached: Reached) -> None:
    async with reached.transport(keepalive_seconds=0.1) as transport:
        await call(transport, "whoami")
        await until(lambda: reached.peer.requests.count("server/discover") >= 3)
        await call(transport, "whoami")
    assert reached.peer.connections == 1


async def test_a_stream_that_gives_no_sign_of_life_is_declared_dead(reached: Reached) -> None:
    settings = {"keepalive_seconds": 0.2, "keepalive_timeout_seconds": 0.2}
    async with reached.transport(**settings) as transport:
        await call(transport, "whoami")
        (relay,) = reached.pod.alive
        os.kill(relay.pid, signal.SIGSTOP)
        with pytest.raises(Broken, match=r"silent for 0\.4 s"):
            await call(transport, "whoami")
        assert await call(transport, "echo", text="anew") == "anew"
        os.kill(relay.pid, signal.SIGCONT)
        await until(lambda: relay.returncode is not None)


async def test_a_stream_nobody_uses_is_closed_and_leaves_no_process(reached: Reached) -> None:
    before = children()
    async with reached.transport(idle_seconds=0.2) as transport:
        await call(transport, "whoami")
        await until(lambda: reached.pod.alive == [])
        assert [process.returncode for process in reached.pod.processes] == [0]
        assert children() == before
        assert await call(transport, "echo", text="anew") == "anew"


async def test_forty_pods_are_opened_sixteen_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 60)
    peer = Peer()
    hold = anyio.Event()
    shared = Faults(hold=hold)
    pods = {("gpu", f"agent-{number}"): Pod(faults=shared) for number in range(40)}
    async with relayed(peer.serve_bytes, tmp_path) as argv, StreamsServer(pods) as server:
        kubeconfig = str(server.kubeconfig(tmp_path / "kubeconfig"))
        settings = ExecSettings(argv=tuple(argv), kubeconfig=kubeconfig)
        async with ExecTransport(settings) as transport:
            async with anyio.create_task_group() as tasks:
                for _, name in pods:
                    tasks.start_soon(call, transport, "whoami", Target(namespace="gpu", pod=name))
                await until(lambda: shared.held == 16)
                hold.set()
            assert peer.connections == 40
    assert shared.most_held == 16
    assert all(pod.alive == [] for pod in pods.values())


@pytest.mark.parametrize("encrypted", [False, True])
async def test_cancelled_openings_leave_nothing_behind(encrypted: bool, tmp_path: Path) -> None:
    before = children()
    async with reach(tmp_path, encrypted=encrypted) as reached:
        for number in range(25):
            async with reached.transport() as transport:
                with anyio.move_on_after(number / 500):
                    await transport.probe(AGENT)
        await until(lambda: children() == before)
        await until(lambda: connections_to(reached.server.port) == [])
        assert reached.pod.alive == []


def test_it_applies_to_a_pod_in_a_namespace() -> None:
    transport = ExecTransport()
    assert transport.applies(AGENT)
    assert not transport.applies(Target(node="n", pod="agent-1"))
    assert not transport.applies(Target(node="n", namespace="gpu", addresses=("10.0.0.1",)))


def test_options_are_checked() -> None:
    options = {"kubeconfig": "~/other", "contexts": ["prod", "lab"], "max_open": 10}
    transport = load("exec", options)
    assert isinstance(transport, ExecTransport)
    assert transport.settings.max_open == 10
    with pytest.raises(ValueError, match=r"unknown option 'contxts'; known: .*contexts"):
        load("exec", {"contxts": ["prod"]})
    with pytest.raises(ValueError, match="argv names no command"):
        load("exec", {"argv": []})

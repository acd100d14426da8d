"""What holds for exec through any API server: the fake one, and a real cluster.

Each case takes an `ExecSite` and is a test body; `CASES` are all of them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from mcp import Client

from support.wire import ERAS, byte_transport
from transports import channels
from transports.base import Target
from transports.errors import Denied, Gone, TransportError, Unreachable
from transports.exec import ExecSettings, ExecTransport
from transports.kubernetes import KubernetesApi
from transports.session import call_tool
from transports.stream import Pipe

SECONDS = 60.0
"""Bounds every case; a real cluster starts a Python in a container for each stream."""

RELAYS = """
import os
def env(pid):
    with open(f"/proc/{pid}/environ") as file:
        return "MCP_GPU_SOCKET=" + dict(
            part.partition("=")[::2] for part in file.read().split("\\0")
        ).get("MCP_GPU_SOCKET", "")
for pid in filter(str.isdecimal, os.listdir("/proc")):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            argv = file.read().split("\\0")
        if {"attach", "--relay-only"} <= set(argv) and env(pid) == env("self"):
            print(pid)
    except OSError:
        pass
"""
"""Prints the process ids of the relays beside it."""


@dataclass(frozen=True, kw_only=True)
class ExecSite:
    """An agent's pod, and who may reach it."""

    kubeconfig: str
    """Of a caller with `get` and `create` on `pods/exec` in the namespace."""
    stranger: str
    """A kubeconfig of one without."""
    namespace: str
    pod: str
    tool: str = "get_gpu_inventory"
    """One that the agent answers at once."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    python: str = "python3"
    """The interpreter's name inside the container."""

    @property
    def target(self) -> Target:
        return Target(namespace=self.namespace, pod=self.pod)

    def transport(self, *argv: str, **settings: Any) -> ExecTransport:
        """One with the settings; starts the relay unless `argv` is given."""
        if argv:
            settings["argv"] = argv
        return ExecTransport(ExecSettings(**{"kubeconfig": self.kubeconfig, **settings}))

    async def call(self, transport: ExecTransport) -> None:
        """A call that must be answered."""
        result = await call_tool(
            transport, self.target, self.tool, dict(self.arguments), timeout_seconds=SECONDS
        )
        assert not result.is_error

    async def run(self, *argv: str, stdin: bytes = b"") -> tuple[int | None, bytes]:
        """Run a command in the container; its exit status and standard output."""
        with anyio.fail_after(SECONDS):
            async with KubernetesApi(self.kubeconfig) as api:
                socket = await api.websocket(
                    f"/api/v1/namespaces/{self.namespace}/pods/{self.pod}/exec",
                    [
                        *(("command", part) for part in argv),
                        *((name, "true") for name in ("stdin", "stdout", "stderr")),
                        ("container", "agent"),
                    ],
                    [channels.V5],
                )
                try:
                    async with anyio.create_task_group() as tasks:

                        async def feed() -> None:
                            for frame in channels.frames(channels.STDIN, stdin):
                                await socket.send(frame)
                            await socket.send(channels.closing(channels.STDIN))

                        tasks.start_soon(feed)
                        stdout = bytearray()
                        while True:
                            match channels.parse(await socket.receive()):
                                case (channels.STDOUT, data):
                                    stdout += data
                                case (channels.ERROR, data):
                                    return channels.read_exit(data).code, bytes(stdout)
                finally:
                    await socket.aclose()
        raise AssertionError

    async def relays(self) -> list[int]:
        """Process ids of the relays in the container."""
        status, found = await self.run(self.python, "-c", RELAYS)
        assert status == 0
        return [int(pid) for pid in found.split()]

    async def until_relays(self, count: int) -> None:
        """Wait until there are so many."""
        with anyio.fail_after(SECONDS):
            while len(await self.relays()) != count:
                await anyio.sleep(0.05)


async def a_call_is_answered_and_no_relay_is_left(site: ExecSite) -> None:
    async with site.transport() as transport:
        with anyio.fail_after(SECONDS):
            assert (await transport.probe(site.target)).node
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(site.call, transport)
        assert len(await site.relays()) == 1
    await site.until_relays(0)


async def a_relay_that_is_killed_is_replaced(site: ExecSite) -> None:
    async with site.transport() as transport:
        await site.call(transport)
        (relay,) = await site.relays()
        kill = f"import os; os.kill({relay}, 9)"
        assert await site.run(site.python, "-c", kill) == (0, b"")
        with anyio.fail_after(SECONDS):
            while transport._streams:
                await anyio.sleep(0.01)
        await site.call(transport)
        (other,) = await site.relays()
        assert other != relay


async def exit_statuses_and_last_words_are_told(site: ExecSite) -> None:
    unable = re.escape(f"cannot run {site.python!r} in container 'agent': exit status 127")
    expected: list[tuple[str, type[TransportError], str]] = [
        ("", Unreachable, "exit status 0 before it answered"),
        (
            "import sys; sys.stderr.write('last words'); sys.exit(7)",
            Unreachable,
            "exit status 7 before it answered: last wo",
        ),
        ("raise SystemExit(3)", Gone, "exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", Unreachable, "exit status 137"),
        ("raise SystemExit(127)", Unreachable, unable),  # as a shell says of what it cannot find
    ]
    for script, kind, words in expected:
        await _fails(site, site.transport(site.python, "-c", script), kind, words)


async def a_command_that_the_image_lacks_is_named(site: ExecSite) -> None:
    transport = site.transport("no-such-program", "attach")
    await _fails(site, transport, Unreachable, "cannot run 'no-such-program' in container 'agent'")


async def what_is_not_there_is_gone(site: ExecSite) -> None:
    nobody = Target(namespace=site.namespace, pod="nobody")
    await _fails(site, site.transport(), Gone, r'HTTP 404.*pods "nobody" not found', nobody)
    other = Target(namespace=site.namespace, pod=site.pod, container="other")
    await _fails(site, site.transport(), Gone, "HTTP 400.*container other is not valid", other)


async def a_caller_without_the_role_is_denied(site: ExecSite) -> None:
    transport = site.transport(kubeconfig=site.stranger)
    words = r"^grant get and create on pods/exec: an access review denies (get and )?create in "
    await _fails(site, transport, Denied, words)


async def the_end_of_input_reaches_a_program(site: ExecSite) -> None:
    data = "größe ".encode() * 400_000
    cat = "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"
    assert await site.run(site.python, "-c", cat, stdin=data) == (0, data)
    read = "import sys; sys.stdin.read(); sys.exit(5)"
    assert await site.run(site.python, "-c", read, stdin=b"x") == (5, b"")


async def a_persons_session_may_be_of_either_era(site: ExecSite) -> None:
    async with site.transport() as gateways:
        await site.call(gateways)
        for mode in ERAS:
            async with site.transport("mcp-gpu", "attach") as transport:
                conversation = byte_transport(by_hand(transport, site.target))
                async with Client(conversation, mode=mode, read_timeout_seconds=SECONDS) as client:
                    assert site.tool in {tool.name for tool in (await client.list_tools()).tools}
                    result = await client.call_tool(site.tool, dict(site.arguments))
                    assert not result.is_error
            await site.call(gateways)


CASES = (
    a_call_is_answered_and_no_relay_is_left,
    a_relay_that_is_killed_is_replaced,
    exit_statuses_and_last_words_are_told,
    a_command_that_the_image_lacks_is_named,
    what_is_not_there_is_gone,
    a_caller_without_the_role_is_denied,
    the_end_of_input_reaches_a_program,
    a_persons_session_may_be_of_either_era,
)


async def _fails(
    site: ExecSite,
    transport: ExecTransport,
    kind: type[TransportError],
    words: str,
    target: Target | None = None,
) -> None:
    async with transport:
        with anyio.fail_after(SECONDS), pytest.raises(kind, match=words) as caught:
            await transport.probe(target or site.target)
    assert type(caught.value) is kind


@asynccontextmanager
async def by_hand(transport: ExecTransport, target: Target) -> AsyncIterator[Pipe]:
    """A stream as `kubectl exec -i` gives it to a person's client."""
    async with anyio.create_task_group() as tasks:
        pipe = await transport.open_pipe(target, tasks)
        try:
            yield pipe
        finally:
            with anyio.CancelScope(shield=True):
                await pipe.aclose()

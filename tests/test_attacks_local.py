"""Another user of the same machine, and whoever chooses the names that end up in commands."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import mcp_gpu.serving.unixsocket
from mcp_gpu.serving.server import ListenError, serve
from support.demo_server import registry
from support.wire import call, serving, unix_lines
from transports.base import Target
from transports.command import CommandTransport
from transports.errors import BadPeer, TransportError
from transports.exec import ExecTransport
from transports.http import HttpTransport
from transports.portforward import PortForwardTransport
from transports.session import call_tool

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

NOBODY = 65_534


@pytest.fixture
def path() -> Iterator[Path]:
    """Where a socket fits, in a folder that others may pass through."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        yield Path(directory) / "own" / "agent.sock"


def as_nobody(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a program of another user gets to see."""
    become = f"import os, socket, sys; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", become + code, *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


CONNECT = """
try:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(sys.argv[1])
        one.sendall(sys.argv[2].encode() + b"\\n")
        print(one.recv(100))
except OSError as error:
    print(type(error).__name__)
"""

MEDDLE = """
for what in (os.listdir, os.unlink, os.rmdir):
    for path in sys.argv[1:]:
        try:
            print(what(path))
        except OSError as error:
            print(type(error).__name__)
"""


def modes(path: Path) -> tuple[int, int]:
    """Of the folder and of the socket."""
    return stat.S_IMODE(path.parent.stat().st_mode), stat.S_IMODE(path.stat().st_mode)


def let_in(path: Path, opened: str) -> None:
    if opened != "nothing":
        path.parent.chmod(0o711)
    if opened == "the folder and the socket":
        path.chmod(0o666)


async def still_serves(path: Path) -> None:
    async with unix_lines(path) as lines:
        await lines.send(call("echo", text="ours"))
        assert (await lines.receive())["result"]["content"][0]["text"] == "ours"


@ROOT
@pytest.mark.parametrize("opened", ["nothing", "the folder", "the folder and the socket"])
async def test_another_user_gets_no_answer(opened: str, path: Path) -> None:
    async with serving(registry(), socket_path=path):
        assert modes(path) == (0o700, 0o600)
        let_in(path, opened)
        said = json.dumps(call("echo", text="theirs"))
        tried = await anyio.to_thread.run_sync(as_nobody, CONNECT, str(path), said)
        if opened == "the folder and the socket":
            # The door may close on it before or after it has spoken, but never answers.
            assert tried.stdout.strip() in ("b''", "BrokenPipeError", "ConnectionResetError")
        else:
            assert tried.stdout.strip() == "PermissionError"
        await still_serves(path)


@ROOT
async def test_another_user_neither_sees_nor_removes_the_socket(path: Path) -> None:
    async with serving(registry(), socket_path=path):
        tried = await anyio.to_thread.run_sync(as_nobody, MEDDLE, str(path), str(path.parent))
        assert set(tried.stdout.split()) == {"PermissionError"}
        await still_serves(path)


@ROOT
@pytest.mark.parametrize("left", ["folder", "link"])
async def test_what_another_user_left_in_the_way_is_not_used(left: str, path: Path) -> None:
    """A folder of theirs, or a link to one of ours, where the agent's is to be."""
    if left == "folder":
        path.parent.mkdir(mode=0o700)
        os.chown(path.parent, NOBODY, NOBODY)
    else:
        elsewhere = path.parent.with_name("elsewhere")
        elsewhere.mkdir(mode=0o700)
        path.parent.symlink_to(elsewhere)
    with pytest.raises(ListenError):
        await serve(registry(), socket_path=path, signals=False)
    assert not await anyio.Path(path).exists()


@pytest.mark.parametrize("uid", [1, NOBODY, 2**32 - 1])
async def test_the_uid_that_the_kernel_tells_decides(
    uid: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without root, as far as that goes: the kernel's word on the peer is put in its mouth."""
    if uid == os.geteuid():
        pytest.skip("this is us")
    asked = socket.socket.getsockopt

    def getsockopt(self: socket.socket, level: int, option: int, *size: int) -> Any:
        if option == socket.SO_PEERCRED:
            return struct.pack("3I", 1, uid, uid)
        return asked(self, level, option, *size)

    async with serving(registry(), socket_path=path):
        with monkeypatch.context() as patched:
            patched.setattr(socket.socket, "getsockopt", getsockopt)
            async with unix_lines(path) as lines:
                assert await lines.rest() == []
        await still_serves(path)


LISTEN = """
with socket.socket(socket.AF_UNIX) as one:
    one.bind(sys.argv[1])
    os.chmod(sys.argv[1], 0o666)
    one.listen()
    print("listens", flush=True)
    print(one.accept()[0].recv(100) if sys.stdin.readline() else None)
"""

ATTACH = """
import os, socket, struct, sys
from mcp_gpu.attach import main
asked, uid = socket.socket.getsockopt, int(sys.argv.pop(1))
own = int(sys.argv.pop(1))
def getsockopt(self, level, option, *size):
    if option == socket.SO_PEERCRED:
        return struct.pack("3I", 1, uid, uid)
    return asked(self, level, option, *size)
socket.socket.getsockopt, os.geteuid = getsockopt, lambda: own
sys.exit(main(sys.argv[1:]))
"""

SESSION = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'


@pytest.mark.parametrize(
    ("uid", "own", "named", "believed"),
    [
        (1000, 1000, False, True),
        (1000, 1000, True, True),
        (0, 1000, False, True),
        (1001, 1000, False, False),
        (1001, 1000, True, False),
        (2**32 - 1, 1000, False, False),
        (0, 0, False, True),
        (1001, 0, False, False),
        (1001, 0, True, True),
    ],
)
def test_who_listens_decides_whether_attach_speaks(
    uid: int, own: int, named: bool, believed: bool, path: Path
) -> None:
    """The uids of both are put in the kernel's mouth."""
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind(str(path))
        impostor.listen()
        impostor.settimeout(20)
        there = ["--socket", str(path)] if named else []
        with subprocess.Popen(
            [sys.executable, "-c", ATTACH, str(uid), str(own), "--relay-only", *there],
            env=os.environ | {"MCP_GPU_SOCKET": str(path)},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as attached:
            assert attached.stdin is not None
            assert attached.stderr is not None
            attached.stdin.write(SESSION)
            attached.stdin.close()
            connection, _ = impostor.accept()
            with connection:
                connection.settimeout(20)
                heard = connection.recv(100)
            said = attached.stderr.read().decode()
    assert heard == (SESSION if believed else b"")
    assert attached.returncode == (0 if believed else 3)
    assert (f"another user's, uid {uid}" in said) is not believed


@ROOT
def test_an_impostor_at_the_agents_place_hears_nothing(path: Path) -> None:
    """As the kernel tells it: user 1 was there first."""
    path.parent.mkdir()
    path.parent.chmod(0o777)
    become = "import os, socket, sys; os.setgroups([]); os.setgid(1); os.setuid(1)\n"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", become + LISTEN, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as impostor:
        assert impostor.stdout is not None
        assert impostor.stdout.readline() == "listens\n"
        attach = (
            "import os, sys; from mcp_gpu.attach import main\n"
            f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
            "sys.exit(main(sys.argv[1:]))"
        )
        refused = subprocess.run(
            [sys.executable, "-c", attach, "--relay-only", "--socket", str(path)],
            input=SESSION,
            capture_output=True,
            timeout=20,
            check=False,
        )
        heard, _ = impostor.communicate("now\n", timeout=20)
    assert refused.returncode == 3
    assert b"another user's, uid 1" in refused.stderr
    assert heard.strip() == "b''"


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707, 0o710, 0o701])
def test_a_folder_that_others_may_enter_is_not_used(mode: int, path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(mode)
    with pytest.raises(ListenError, match="open to others"), mcp_gpu.serving.unixsocket.bind(path):
        pass
    assert not path.exists()


NAMES = [
    "-oProxyCommand=id",
    "--help",
    "n; touch {file}",
    "$(touch {file})",
    "`touch {file}`",
    "n\ntouch {file}",
    "n|touch {file}",
    "n&&touch {file}",
    "n%0atouch",
    "{{node}}",
    "../../../api/v1/namespaces/kube-system/pods/x",
    "x/exec?command=id#",
    "x?command=id",
    "x\r\nAuthorization: Bearer stolen",
    "x\x00y",
    "x y",
    "~root",
    "*",
    "user@host",
    "\u202egnp.exe",
    "",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["node", "namespace", "pod", "container", "address"])
async def test_no_name_turns_a_command_into_another(name: str, field: str, tmp_path: Path) -> None:
    """Neither here nor in a shell on the far side of ssh: it is not even started."""
    started = tmp_path / "started"
    program = f"import pathlib; pathlib.Path({str(started)!r}).touch()"
    argv = [sys.executable, "-c", program, f"{{{field}}}"]
    called = name.replace("{file}", str(started))
    named = {"addresses": (called,)} if field == "address" else {field: called}
    async with CommandTransport(argv) as transport:
        target = Target(**{"node": "n", **named})
        assert transport.applies(target) == bool(called)
        with pytest.raises(BadPeer, match=f"the {field} .* may not stand in a command"):
            await call_tool(transport, target, "x", {}, timeout_seconds=20)
    assert not started.exists()


@pytest.mark.parametrize("name", [name for name in NAMES if name])
@pytest.mark.parametrize("field", ["namespace", "pod", "container"])
@pytest.mark.parametrize("made", [ExecTransport, PortForwardTransport])
async def test_no_name_turns_a_pods_path_into_another(made: Any, field: str, name: str) -> None:
    named = {"namespace": "gpu", "pod": "agent-1", "container": "agent", field: name}
    if made is PortForwardTransport and field == "container":
        named["pod"] = name  # it has no use for a container
    async with made() as transport:
        with pytest.raises(BadPeer, match="is no name of a namespace, pod or container"):
            await call_tool(transport, Target(**named), "x", {}, timeout_seconds=20)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1/x", "127.0.0.1@127.0.0.1", "127.0.0.1#", "127.0.0.1?x", "127.0.0.1\r\nX: y", "x y"],
)
async def test_no_address_turns_a_request_into_another(address: str) -> None:
    heard: list[bytes] = []

    async def hear(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            heard.append(await stream.receive())

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, hear)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with HttpTransport() as transport:
            with pytest.raises(TransportError):
                await transport.probe(Target(addresses=(address,), port=port))
        assert heard == []
        tasks.cancel_scope.cancel()

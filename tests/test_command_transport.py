"""What only a child process can show: its command line, its environment, and its end."""

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest
from mcp.types import TextContent

from support.peer import PEER, Peer, children, relayed, until
from transports.base import Target
from transports.command import CommandTransport
from transports.errors import BadPeer, TimedOut, Unreachable
from transports.session import call_tool

WRITE_ARGV = "import sys; sys.stderr.write(' '.join(map(repr, sys.argv[1:]))); sys.exit(1)"


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script, *arguments]


def reached_by(argv: list[str]) -> Target:
    return Target(node="n", options={"command": {"argv": argv}})


async def probe(transport: CommandTransport, target: Target) -> None:
    with anyio.fail_after(20):
        await transport.probe(target)


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_the_template_takes_in_what_the_target_says() -> None:
    target = Target(
        node="node-7", namespace="gpu", pod="agent-x1", container="agent", addresses=("fd00::7",)
    )
    fields = "{namespace}/{pod}", "{container}", "root@{node}", "{address}", "{{literal}}"
    async with CommandTransport(python(WRITE_ARGV, *fields)) as transport:
        assert transport.applies(target)
        words = r"'gpu/agent-x1' 'agent' 'root@node-7' 'fd00::7' '\{literal\}'"
        with pytest.raises(Unreachable, match=words):
            await probe(transport, target)


async def test_a_targets_own_command_is_taken_literally() -> None:
    target = reached_by(python(WRITE_ARGV, "{node}", "; ls"))
    async with CommandTransport(["no-such-command"]) as transport:
        assert transport.applies(target)
        with pytest.raises(Unreachable, match=r"'\{node\}' '; ls'"):
            await probe(transport, target)


def test_it_applies_where_the_template_can_be_filled() -> None:
    transport = CommandTransport(["ssh", "{node}"])
    assert transport.applies(Target(node="n"))
    assert not transport.applies(Target(addresses=("10.0.0.1",)))
    assert not CommandTransport().applies(Target(node="n"))


@pytest.mark.parametrize(
    "name",
    [
        "-oProxyCommand=reboot",
        "--",
        "n;reboot",
        "$(reboot)",
        "a b",
        "n\nm",
        "n\0",
        "näh",
        "a|b",
        "'",
    ],
)
async def test_a_name_that_could_be_more_than_a_name_is_refused(name: str, tmp_path: Path) -> None:
    witness = tmp_path / "started"
    script = f"open({str(witness)!r}, 'w')"
    async with CommandTransport(python(script, "{node}")) as transport:
        with pytest.raises(BadPeer, match="may not stand in a command"):
            await probe(transport, Target(node=name))
    assert not witness.exists()


@pytest.mark.parametrize(
    "part", ["{host}", "{}", "{0}", "{node", "{node!r}", "{node:>9}", "{node.x}"]
)
def test_a_template_with_an_unknown_field_is_refused_at_once(part: str) -> None:
    with pytest.raises(ValueError, match="command template"):
        CommandTransport(["ssh", part])


async def test_a_command_that_cannot_be_started_is_unreachable(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("not executable")
    for argv, words in [
        (["no-such-command"], r"cannot start no-such-command: .*No such file"),
        ([str(plain)], "Permission denied"),
        ([sys.executable, "a\0b"], "null byte"),
    ]:
        target = reached_by(argv)
        async with CommandTransport() as transport:
            with pytest.raises(Unreachable, match=words):
                await probe(transport, target)


async def test_the_environment_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEER_NODE", "from-the-environment")
    async with CommandTransport([sys.executable, str(PEER), "stdio"]) as transport:
        with anyio.fail_after(20):
            identity = await transport.probe(Target(node="n"))
    assert identity.node == "from-the-environment"


async def test_a_child_that_floods_standard_error_is_not_blocked(tmp_path: Path) -> None:
    peer = Peer()
    async with relayed(peer.serve_bytes, tmp_path) as relay:
        script = (
            "import os, sys; sys.stderr.buffer.write(b'x' * 5_000_000); sys.stderr.flush();"
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        async with CommandTransport(python(script, *relay)) as transport:
            result = await call_tool(
                transport, Target(node="n"), "echo", {"text": "x"}, timeout_seconds=20
            )
    assert isinstance(result.content[0], TextContent)
    assert result.content[0].text == "x"


async def test_a_well_behaved_child_ends_by_the_end_of_its_input(tmp_path: Path) -> None:
    peer = Peer()
    witness = tmp_path / "ended"
    async with relayed(peer.serve_bytes, tmp_path) as relay:
        script = (
            "import subprocess, sys; code = subprocess.run(sys.argv[2:]).returncode;"
            "open(sys.argv[1], 'w').write(str(code))"
        )
        async with CommandTransport(python(script, str(witness), *relay)) as transport:
            await probe(transport, Target(node="n"))
    assert witness.read_text() == "0"


async def test_a_stubborn_child_and_its_own_children_are_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        "if child: open(sys.argv[1], 'w').write(f'{os.getpid()} {child}\\n')\n"
        "while True: time.sleep(60)\n"
    )
    async with CommandTransport() as transport:
        target = reached_by(python(script, str(pids)))
        with pytest.raises(TimedOut):
            await call_tool(transport, target, "x", {}, timeout_seconds=0.1)
        await until(lambda: pids.exists() and pids.read_text().endswith("\n"))
        found = [int(pid) for pid in pids.read_text().split()]
        assert all(alive(pid) for pid in found)
    await until(lambda: not any(alive(pid) for pid in found))


async def test_a_child_that_leaves_and_its_child_that_stays_are_both_gone(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = (
        "import os, sys, time\n"
        "child = os.fork()\n"
        "if child: open(sys.argv[1], 'w').write(f'{child}\\n'); sys.exit(9)\n"
        "os.close(0); os.close(1); os.close(2); time.sleep(60)\n"
    )
    async with CommandTransport() as transport:
        with pytest.raises(Unreachable, match="exit status 9"):
            await probe(transport, reached_by(python(script, str(pids))))
        found = int(pids.read_text())
        await until(lambda: not alive(found))


async def test_a_stopped_child_is_killed_too() -> None:
    before = children()
    async with CommandTransport(python("import time; time.sleep(60)")) as transport:
        with pytest.raises(TimedOut):
            await call_tool(transport, Target(node="n"), "x", {}, timeout_seconds=0.1)
        (child,) = children() - before
        os.kill(child, signal.SIGSTOP)
    await until(lambda: children() == before)


async def test_an_interrupt_of_ours_is_not_the_childs() -> None:
    before = children()
    async with CommandTransport(python("import time; time.sleep(60)")) as transport:
        with pytest.raises(TimedOut):
            await call_tool(transport, Target(node="n"), "x", {}, timeout_seconds=0.1)
        (child,) = children() - before
        assert os.getpgid(child) == os.getsid(child) == child != os.getpgid(0)


async def test_cancelled_openings_leave_nothing_behind() -> None:
    before = children()
    async with CommandTransport(python("import time; time.sleep(60)")) as transport:
        for number in range(20):
            with anyio.move_on_after(number / 2000):
                await transport.probe(Target(node=f"n{number}"))
    await until(lambda: children() == before)

"""`mcp-gpu demo` and `mcp-gpu status`, as a person runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from mcp_gpu.cli import main
from support.cluster import ask
from support.ports import free_ports

DEMO = [sys.executable, "-m", "mcp_gpu", "demo"]
NODES = {"h100-a", "h100-b", "gb200-a", "l40s-a", "t4-a"}
SECONDS = 120
"""Bound for a demo to come up on a busy machine."""


def environment(folder: Path) -> dict[str, str]:
    # A variable of the caller's must not lead the demo astray.
    return {**os.environ, "TMPDIR": str(folder), "MCP_GPU_AGENTS": "203.0.113.1"}


class Screen:
    """What a running demo has printed."""

    def __init__(self, process: Process, port: int) -> None:
        assert process.stdout is not None
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.text = ""
        self._stdout = TextReceiveStream(process.stdout)

    async def until(self, words: str) -> None:
        with anyio.fail_after(SECONDS):
            while words not in self.text:
                self.text += await self._stdout.receive()


@asynccontextmanager
async def demo(folder: Path) -> AsyncIterator[Screen]:
    (port,) = free_ports(1)
    process = await anyio.open_process(
        [*DEMO, "--http-port", str(port)],
        stderr=subprocess.STDOUT,
        env=environment(folder),
    )
    try:
        screen = Screen(process, port)
        await screen.until("Ctrl-C ends it.")
        yield screen
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.aclose()


def left_in(folder: Path) -> list[Path]:
    return list(folder.glob("mcp-gpu-demo-*"))


async def agents_of(folder: Path) -> set[int]:
    done = await anyio.run_process(["ps", "-ww", "-eo", "pid,args"])
    return {
        int(line.split()[0])
        for line in done.stdout.decode().splitlines()
        if "mcp_gpu agent" in line and str(folder) in line
    }


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: a Unix socket's path has to be shorter than pytest makes them.
    with tempfile.TemporaryDirectory(prefix="demo-") as made:
        yield Path(made)


async def test_once_shows_every_node_and_the_way_to_the_cut_one(folder: Path) -> None:
    with anyio.fail_after(SECONDS):
        done = await anyio.run_process([*DEMO, "--once"], check=False, env=environment(folder))
    screen = done.stdout.decode()
    assert done.returncode == 0, screen + done.stderr.decode()
    rows = {line.split()[0]: line for line in screen.splitlines() if line[:1].isalpha()}
    assert rows.keys() >= NODES
    assert re.search(r"\bcommand\b", rows["l40s-a"])
    for node in NODES - {"l40s-a"}:
        assert re.search(r"\bhttp\b", rows[node])
    assert "8x NVIDIA H100 80GB HBM3 (1 lost)" in screen
    assert re.search(r"! h100-b: GPU 3 lost \(0{8}:[0-9a-f]{2}:00\.0\)", screen)
    assert "health: FAILED: 5 nodes: 1 failed, 4 healthy; 25 GPUs: 1 failed, 24 healthy" in screen
    assert "simulated: no real hardware" in screen
    assert done.stderr == b""
    assert left_in(folder) == []


async def test_a_demo_serves_until_ctrl_c_and_leaves_nothing(folder: Path) -> None:
    async with demo(folder) as screen:
        assert f"claude mcp add --transport http gpu {screen.url}/mcp" in screen.text
        found = await ask(screen.url)
        assert {node["node"]: node["via"] for node in found["nodes"]} == {
            node: "command" if node == "l40s-a" else "http" for node in NODES
        }
        assert len(await agents_of(folder)) == len(NODES)
        screen.process.send_signal(signal.SIGINT)
        with anyio.fail_after(SECONDS):
            assert await screen.process.wait() == 0
        assert await agents_of(folder) == set()
        assert left_in(folder) == []
        assert "Traceback" not in screen.text


async def test_what_is_wrong_in_the_demo_is_told_with_its_causes(folder: Path) -> None:
    async with demo(folder) as screen:
        url = f"{screen.url}/mcp"
        with anyio.fail_after(SECONDS):
            health, xids = [
                await anyio.run_process(
                    [sys.executable, "-m", "mcp_gpu", command, "--url", url, "--json"], check=False
                )
                for command in ("health", "xid")
            ]
    (finding,) = json.loads(health.stdout)["findings"]
    assert (finding["code"], finding["action"]) == ("gpu_lost", "REBOOT_NODE")
    (node,) = json.loads(health.stdout)["nodes"]
    (told,) = node["findings"]
    assert (node["node"], told["gpu_index"], told["includes"]) == ("h100-b", 3, ["xid"])
    told_xids = [(each["told"], each["where"]) for each in json.loads(xids.stdout)["patterns"]]
    assert told_xids == [("79 -> 45", "h100-b GPU 3"), ("31", "l40s-a GPU 1")]


async def test_a_killed_agent_is_told_and_shows_as_a_failure(folder: Path) -> None:
    async with demo(folder) as screen:
        victims = await agents_of(folder)
        os.kill(min(victims), signal.SIGKILL)
        await screen.until("was ended by SIGKILL; its node now shows among the failures")
        found = await ask(screen.url)
        (failure,) = found["failures"]
        assert failure["reason"] == "not_running"
        assert len(found["nodes"]) == len(NODES) - 1


async def test_a_killed_demo_takes_its_agents_with_it(folder: Path) -> None:
    async with demo(folder) as screen:
        assert len(await agents_of(folder)) == len(NODES)
        screen.process.kill()
        with anyio.fail_after(SECONDS):
            while await agents_of(folder):
                await anyio.sleep(0.1)


async def test_faults_may_be_set_while_the_demo_runs(folder: Path) -> None:
    async with demo(folder) as screen:
        (made,) = left_in(folder)
        fleet = made / "fleet.toml"
        fault = '\n[[nodes.faults]]\nkind = "lost"\ngpu = 0\n'
        fleet.write_text(fleet.read_text() + fault)  # of the last node in the file
        with anyio.fail_after(SECONDS):
            while (await ask(screen.url))["totals"]["gpus_lost"] < 2:
                await anyio.sleep(0.2)


def test_a_busy_port_is_one_clear_line(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--http-port", str(port)]) == 2
        demo_says = capfd.readouterr()
        assert main(["gateway", "--agents", "127.0.0.1", "--http-port", str(port)]) == 2
        gateway_says = capfd.readouterr()
    for said in (demo_says.err, gateway_says.err):
        assert f"port {port} on 127.0.0.1 is taken by another process" in said
        assert "Traceback" not in said
    assert demo_says.out == ""


async def test_status_finds_agents_by_dns(folder: Path) -> None:
    async with demo(folder):
        (made,) = left_in(folder)
        port = re.search(
            r'node = "t4-a"\naddress = "127.0.0.1:(\d+)"', (made / "agents.toml").read_text()
        )
        assert port is not None
        program = [sys.executable, "-m", "mcp_gpu", "status"]
        with anyio.fail_after(SECONDS):
            done = await anyio.run_process([*program, "--agents-dns", f"localhost:{port[1]}"])
    assert "1 of 1 nodes answered: 1 GPUs: 1x Tesla T4" in done.stdout.decode()


async def test_status_shows_the_fleet_from_a_gateway_and_from_the_agents(folder: Path) -> None:
    async with demo(folder) as screen:
        (made,) = left_in(folder)
        program = [sys.executable, "-m", "mcp_gpu", "status"]
        with anyio.fail_after(SECONDS):
            by_url = await anyio.run_process([*program, "--url", f"{screen.url}/mcp"])
            direct = await anyio.run_process([*program, "--agents-file", made / "agents.toml"])
            as_json = await anyio.run_process(
                [*program, "--url", f"{screen.url}/mcp", "--json", "--nodes", "t4-a,h100-b"]
            )
    for done in (by_url, direct):
        shown = done.stdout.decode()
        assert all(node in shown for node in NODES)
        assert "5 of 5 nodes answered: 25 GPUs, 1 lost" in shown
        assert "\x1b" not in shown  # colours are for terminals
        assert done.stderr == b""
    found = json.loads(as_json.stdout)
    assert [node["node"] for node in found["nodes"]] == ["h100-b", "t4-a"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--kubeconfig", "/nowhere"], "--kubeconfig: no file /nowhere"),
        (["--agents", "a", "--agents-dns", "b"], "--agents and --agents-dns given together"),
        (["--agents", "a:b"], "'b' is not a port number"),
        (["--agents", "a", "--transports", "pigeon"], "unknown transport 'pigeon'; known: "),
        (["--agents", "a", "--transports", "http,http"], "--transports"),
        (["--agents", "a", "--transport-options", '{"x": {}}'], "x is not among --transports"),
        (["--agents", "a", "--transport-options", '{"http": {"x": 1}}'], "unknown option 'x'"),
        (["--url", "http://127.0.0.1:1/mcp"], "no answer from http://127.0.0.1:1/mcp"),
        (["--agents", "a", "--concurrency", "0"], "--concurrency: input should be greater"),
        (["--agents", "a=127.0.0.1", "--nodes", "z"], "unknown nodes: z; known: a"),
        (["--agents", "127.0.0.1:80:80"], "'127.0.0.1:80' is neither a name nor an address"),
        (["--agents-dns", "nowhere.invalid"], "no agents are known: DNS nowhere.invalid: cannot"),
        (
            ["--agents", "a", "--agent-scheme", "https", "--agent-ca-file", "/nowhere.pem"],
            "transport 'http': ca_file '/nowhere.pem'",
        ),
        (
            ["--agents", "a", "--agent-ca-file", "x", "--agent-server-name", "y"],
            "--agent-ca-file and --agent-server-name need --agent-scheme https",
        ),
        (["--agents", "a", "--ca-file", "x"], "--ca-file goes with --url only"),
        (["--agents", "a", "--plain-token"], "--plain-token goes with --url only"),
        (["--url", "ftp://127.0.0.1/mcp"], "it looks like http://127.0.0.1:8080/mcp"),
        (["--url", "http:///mcp"], "no host in it; it looks like http://127.0.0.1:8080/mcp"),
        (
            ["--url", "http://127.0.0.1:1/mcp", "--ca-file", "x"],
            "--ca-file is for --url https://..., which http://127.0.0.1:1/mcp is not",
        ),
        (
            ["--url", "https://127.0.0.1:1/mcp", "--ca-file", "/nowhere.pem"],
            "--url https://127.0.0.1:1/mcp: ca_file '/nowhere.pem': ",
        ),
        (["--agents", "a", "--transport-options", '{"http": ["secret"]}'], "--transport-options"),
    ],
)
def test_wrong_usage_is_one_clear_line(
    flags: list[str], complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", *flags]) in (1, 2)
    said = capfd.readouterr()
    assert complaint in said.err
    assert "Traceback" not in said.err
    assert "secret" not in said.err


def test_status_exits_1_when_a_node_did_not_answer(capfd: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    assert main(["status", "--agents", f"gone=127.0.0.1:{port}"]) == 1
    shown = capfd.readouterr().out
    assert "gone: unreachable: " in shown
    assert "0 of 1 nodes answered" in shown

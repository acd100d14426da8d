"""`mcp-gpu demo`: real agents on a simulated fleet, a gateway over them, and a cut network.

One node's HTTP port swallows packets, as a pod network does that routes to a node and drops
what arrives. The gateway has to find the stream path to it by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import Process, TaskStatus
from rich.console import Console
from rich.markup import escape

from mcp_gpu.fleet.router import Router
from mcp_gpu.gateway import open_fleet, serve_gateway
from mcp_gpu.gpu.simulator import default_fleet
from mcp_gpu.registry import Call
from mcp_gpu.serving.endpoint import HttpEndpoint, ListenError, bind
from mcp_gpu.serving.server import Listening
from mcp_gpu.settings.base import SettingError
from mcp_gpu.settings.fleet import GatewaySettings
from mcp_gpu.settings.local import DemoSettings
from mcp_gpu.status import render
from mcp_gpu.terminal import obey_interrupts, standard_output
from mcp_gpu.tools import fleet_health
from mcp_gpu.tools.fleet_inventory import FleetInventory, GatewayArguments, gateway_tool

__all__ = ["run"]

CUT_NODE = "l40s-a"
"""The node whose HTTP port swallows packets."""

START_SECONDS = 60.0
"""Longest wait for the agents. Each takes under a second of processor time to start."""

STOP_SECONDS = 6.0
"""How long agents may take to end by themselves: what an agent promises for SIGTERM."""

PROBE_SECONDS = 0.5
"""On loopback an answer takes milliseconds: the cut port need not hold anybody up longer."""

LOG_TAIL_LINES = 5


def run(settings: DemoSettings) -> int:
    """Start the fleet, show it, serve it. Returns 0 when every node answered."""
    # Until the server takes both over.
    obey_interrupts()
    try:
        return anyio.run(_demo, settings)
    except PermissionError as error:
        raise SettingError(f"not permitted: {error}") from error


async def _demo(settings: DemoSettings) -> int:
    console = Console()
    if not settings.once:
        _check_port(settings.http_port)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mcp-gpu-demo-")))
        fleet_file = folder / "fleet.toml"
        fleet = default_fleet()
        shutil.copyfile(fleet.path, fleet_file)
        cut_port = stack.enter_context(_swallowing_port())
        async with _agents(list(fleet.nodes), folder, fleet_file) as agents:
            agents_file = _write_agents(folder, agents, cut_port)
            gateway = _gateway_settings(settings, agents_file)
            async with open_fleet(gateway) as opened:
                inventory = await _whole(opened.router, agents, folder)
                with standard_output() as shown:
                    render(inventory, shown)
                console.print(await _verdict(opened.router), soft_wrap=True, highlight=False)
                if settings.once:
                    return 1 if inventory.failures_by_reason else 0
                async with anyio.create_task_group() as tasks:

                    async def serve(*, task_status: TaskStatus[Listening]) -> None:
                        await serve_gateway(opened, gateway.endpoint(), task_status=task_status)
                        tasks.cancel_scope.cancel()

                    listening = await tasks.start(serve)
                    _explain(console, listening, folder)
                    for agent in agents:
                        tasks.start_soon(_watch, agent, console)
    return 0


def _check_port(port: int) -> None:
    """Complain about a busy port before everything else is started."""
    try:
        for opened in bind(HttpEndpoint(hosts=("127.0.0.1",), port=port)):
            opened.close()
    except ListenError as error:
        raise SettingError(f"{error}, with --http-port") from error


@dataclass(frozen=True, slots=True)
class _Agent:
    node: str
    process: Process
    port: int
    socket_path: Path
    log: Path

    @property
    def attach(self) -> list[str]:
        """The command that a stream to this agent starts, as `kubectl exec` would in its pod."""
        program = [sys.executable, "-m", "mcp_gpu", "attach"]
        return [*program, "--socket", str(self.socket_path), "--relay-only"]


@asynccontextmanager
async def _agents(
    nodes: Sequence[str], folder: Path, fleet_file: Path
) -> AsyncIterator[list[_Agent]]:
    """One agent process a node. They end with the context, and with this process if it dies."""
    agents: list[_Agent] = []
    try:
        for node, port in zip(nodes, _free_ports(len(nodes)), strict=True):
            agents.append(await _start(node, port, folder, fleet_file))
        yield agents
    finally:
        with anyio.CancelScope(shield=True):
            await _stop([agent.process for agent in agents])


async def _start(node: str, port: int, folder: Path, fleet_file: Path) -> _Agent:
    socket_path = folder / node / "agent.sock"
    log = folder / f"{node}.log"
    command = [sys.executable, "-m", "mcp_gpu", "agent", "--node-name", node]
    command += ["--simulate", str(fleet_file), "--http-host", "127.0.0.1"]
    command += ["--http-port", str(port), "--socket", str(socket_path)]
    # With --stdio the agent ends when its standard input does: however this process ends,
    # it leaves nothing running.
    command.append("--stdio")
    with log.open("wb") as stderr:
        process = await anyio.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={k: v for k, v in os.environ.items() if not k.startswith("MCP_GPU_")},
            # Ctrl-C at the terminal is for the demo, which ends its agents in order.
            start_new_session=True,
        )
    return _Agent(node, process, port, socket_path, log)


async def _stop(processes: Sequence[Process]) -> None:
    for process in processes:
        if process.returncode is None:
            process.terminate()
    with anyio.move_on_after(STOP_SECONDS):
        for process in processes:
            await process.wait()
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.aclose()


def _free_ports(count: int) -> list[int]:
    """Ports that are free now. All are held until all are known, so that none comes twice."""
    with ExitStack() as held:
        ports = []
        for _ in range(count):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
        return ports


@contextmanager
def _swallowing_port() -> Iterator[int]:
    """A port of this machine where connection attempts vanish.

    Nobody accepts, and once the queue of the listener is full the kernel drops what comes.
    """
    with ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(8):
            filler = held.enter_context(socket.socket())
            filler.settimeout(0.1)
            try:
                filler.connect(address)
            except TimeoutError:
                break
        yield address[1]


def _write_agents(folder: Path, agents: Sequence[_Agent], cut_port: int) -> Path:
    entries = []
    for agent in agents:
        port = cut_port if agent.node == CUT_NODE else agent.port
        # A JSON string or list of strings is a TOML one too.
        entries.append(
            "[[agents]]\n"
            f"node = {json.dumps(agent.node)}\n"
            f'address = "127.0.0.1:{port}"\n'
            f"command = {{ argv = {json.dumps(agent.attach)} }}\n"
        )
    path = folder / "agents.toml"
    path.write_text("\n".join(entries), encoding="utf-8")
    return path


def _gateway_settings(settings: DemoSettings, agents_file: Path) -> GatewaySettings:
    # All that a variable in the caller's environment could turn elsewhere is said here.
    return GatewaySettings(
        log_level=settings.log_level,
        log_format=settings.log_format,
        http_host=("127.0.0.1",),
        http_port=settings.http_port,
        stdio=False,
        agents="",
        agents_dns="",
        agents_file=agents_file,
        transports=("http", "command"),
        transport_options={},
        probe_timeout_seconds=PROBE_SECONDS,
    )


async def _whole(router: Router, agents: Sequence[_Agent], folder: Path) -> FleetInventory:
    """The inventory once every node answers, or what there is after `START_SECONDS`.

    Raises:
        SettingError: an agent did not survive its start; with the last lines of its log.
    """
    tool = gateway_tool(router)
    give_up = anyio.current_time() + START_SECONDS
    while True:
        for agent in agents:
            if agent.process.returncode is not None:
                raise SettingError(f"the agent of {agent.node} ended at once: {_tail(agent.log)}")
        if all(agent.socket_path.exists() for agent in agents) or anyio.current_time() > give_up:
            answer = await tool.run(GatewayArguments(), Call())
            assert isinstance(answer.data, FleetInventory)
            settled = all(node.state != "starting" for node in answer.data.nodes)
            if (settled and not answer.data.failures) or anyio.current_time() > give_up:
                return answer.data
        await anyio.sleep(0.1)


async def _verdict(router: Router) -> str:
    """The fleet's health in one line: the first of what get_gpu_health tells."""
    answer = await fleet_health.gateway_tool(router).run(fleet_health.GatewayArguments(), Call())
    return escape(f"health: {answer.text.splitlines()[0]}")


async def _watch(agent: _Agent, console: Console) -> None:
    """Say when an agent ends: its node shows as a failure from then on."""
    status = await agent.process.wait()
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited {status}"
    console.print(
        f"[yellow]the agent of {agent.node} (pid {agent.process.pid}) {how}; its node now shows "
        f"among the failures[/]",
        soft_wrap=True,
    )


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " | ".join(lines[-LOG_TAIL_LINES:]) or "it said nothing"


def _explain(console: Console, listening: Listening, folder: Path) -> None:
    """What to paste where."""
    port = listening.http[0][1]
    url = f"http://127.0.0.1:{port}/mcp"
    by_url = json.dumps({"mcpServers": {"gpu": {"url": url}}}, indent=2)
    program = shutil.which("mcp-gpu") or str(Path(sys.executable).with_name("mcp-gpu"))
    arguments = ["gateway", "--stdio", "--agents-file", str(folder / "agents.toml")]
    by_command = json.dumps(
        {"mcpServers": {"gpu": {"command": program, "args": arguments}}}, indent=2
    )
    ask = json.dumps(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "get_gpu_inventory", "arguments": {}},
        }
    )
    lines = [
        "",
        f"MCP endpoint: {url}",
        "",
        "Claude Code:",
        f"  claude mcp add --transport http gpu {url}",
        "",
        "Cursor (.cursor/mcp.json):",
        by_url,
        "",
        "Claude Desktop (claude_desktop_config.json), a gateway of its own over the same agents:",
        by_command,
        "",
        'Ask it "what is wrong with my GPUs?", or by hand:',
        f"  mcp-gpu health --url {url}",
        f"  mcp-gpu xid --url {url}",
        f"  mcp-gpu status --url {url}",
        f"  curl -s -X POST {url} -H 'Content-Type: application/json' -d '{ask}'",
        "",
        f"Break something: edit {folder / 'fleet.toml'} while it runs (docs/simulator.md).",
        "Ctrl-C ends it.",
    ]
    console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)

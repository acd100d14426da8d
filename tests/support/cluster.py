"""Real agent processes on simulated nodes and a real gateway process over them."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
from anyio.abc import Process

from mcp_gpu.gpu.simulator import load_fleet
from support.kubeapi.credentials import Authority
from support.ports import free_ports

PROGRAM = [sys.executable, "-m", "mcp_gpu"]

SERVER_NAME = "agents.gpu.svc"
"""What the certificates of agents are for."""

START_SECONDS = 60
"""Bound for a process to come up on a busy machine."""

END_SECONDS = 30
"""Bound for one to end."""


@dataclass
class Running:
    """A process of the program and where it listens."""

    arguments: Sequence[str]
    port: int
    log: Path
    process: Process | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    program: Sequence[str] = tuple(PROGRAM)
    authority: Authority | None = None
    """Whose certificate it serves HTTPS with; without one it serves HTTP."""

    @property
    def url(self) -> str:
        return f"{'http' if self.authority is None else 'https'}://127.0.0.1:{self.port}"

    @property
    def trust(self) -> ssl.SSLContext | bool:
        """What a client checks its certificate by."""
        if self.authority is None:
            return True
        return ssl.create_default_context(cafile=self.authority.certificate)

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        with self.log.open("ab") as log:
            self.process = await anyio.open_process(
                [*self.program, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={k: v for k, v in os.environ.items() if not k.startswith("MCP_GPU_")}
                | dict(self.environment),
            )
        with anyio.fail_after(START_SECONDS):
            await self._ready()

    async def _ready(self) -> None:
        async with httpx2.AsyncClient(verify=self.trust, trust_env=False, timeout=5) as client:
            while True:
                assert self.process is not None
                assert self.process.returncode is None, self.log.read_text()
                try:
                    answer = await client.get(f"{self.url}/readyz")
                    if answer.status_code == 200:
                        return
                except httpx2.TransportError:
                    pass
                await anyio.sleep(0.05)  # a port has no event to wait for

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it and return its exit status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
        with anyio.fail_after(END_SECONDS):
            return await self.process.wait()


async def start_all(stack: AsyncExitStack, runnings: Iterable[Running]) -> None:
    """Start them side by side, and end with the stack what is left of them."""
    async with anyio.create_task_group() as starting:
        for running in runnings:
            stack.push_async_callback(clean_up, running)
            starting.start_soon(running.start)


@dataclass
class Cluster:
    """Agents by node, and a gateway over them."""

    agents: Mapping[str, Running]
    gateway: Running
    fleet_file: Path
    faults: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    async def ask(self, **arguments: Any) -> dict[str, Any]:
        """The gateway's inventory, as a plain HTTP client gets it."""
        return await ask(self.gateway.url, **arguments)


async def ask(url: str, **arguments: Any) -> dict[str, Any]:
    call = {"name": "get_gpu_inventory", "arguments": arguments}
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
        answer = await client.post(f"{url}/mcp", json=request)
    result = answer.json()["result"]
    assert not result.get("isError"), result
    found: dict[str, Any] = result["structuredContent"]
    return found


@asynccontextmanager
async def cluster(
    folder: Path,
    fleet: str,
    *flags: str,
    agent_flags: Sequence[str] = (),
    authority: Authority | None = None,
    gateway_authority: Authority | None = None,
) -> AsyncIterator[Cluster]:
    """A cluster of the fleet file's nodes. Each can be reached over HTTP and over a command.

    Args:
        authority: has agents serve HTTPS with a certificate of its.
        gateway_authority: has signed the certificate that `flags` name, if they do.
    """
    fleet_file = folder / "fleet.toml"
    fleet_file.write_text(fleet)
    nodes = list(load_fleet(fleet_file).nodes)
    *ports, gateway_port = free_ports(len(nodes) + 1)
    agents: dict[str, Running] = {}
    entries = []
    for node, port in zip(nodes, ports, strict=True):
        socket_path = folder / node / "agent.sock"
        arguments = ["agent", "--node-name", node, "--simulate", str(fleet_file)]
        arguments += ["--http-port", str(port), "--socket", str(socket_path), *agent_flags]
        arguments += served_with(authority)
        agents[node] = Running(arguments, port, folder / f"{node}.log", authority=authority)
        attach = [*PROGRAM, "attach", "--socket", str(socket_path), "--relay-only"]
        entries.append(
            f'[[agents]]\nnode = "{node}"\naddress = "127.0.0.1:{port}"\n'
            f"command = {{ argv = {json.dumps(attach)} }}\n"
        )
    agents_file = folder / "agents.toml"
    agents_file.write_text("\n".join(entries))
    arguments = ["gateway", "--agents-file", str(agents_file), "--http-port", str(gateway_port)]
    arguments += [*trusting(authority), *flags]
    log = folder / "gateway.log"
    gateway = Running(arguments, gateway_port, log, authority=gateway_authority)
    async with AsyncExitStack() as stack:
        await start_all(stack, [*agents.values(), gateway])
        yield Cluster(agents, gateway, fleet_file)


def served_with(authority: Authority | None) -> list[str]:
    """Flags of an agent whose certificate is the authority's: for a name, and for 127.0.0.1, which
    tests call it by."""
    if authority is None:
        return []
    certificate, key = authority.issue("agent", SERVER_NAME, "127.0.0.1")
    return ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]


def trusting(authority: Authority | None) -> list[str]:
    """Flags of a gateway over such agents."""
    if authority is None:
        return []
    flags = ["--agent-scheme", "https", "--agent-ca-file", str(authority.certificate)]
    return [*flags, "--agent-server-name", SERVER_NAME]


async def clean_up(running: Running) -> None:
    if running.process is None:
        return
    with anyio.CancelScope(shield=True):
        if running.process.returncode is None:
            await running.end(signal.SIGKILL)
        await running.process.aclose()

"""One call is one trace, from the gateway over whatever path to the agent and back."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support.cluster import PROGRAM, Running, start_all
from support.collector import Collector, Span, collecting, lineage
from support.kubeapi.streams import Pod, StreamsServer
from support.peer import until
from support.ports import free_ports
from support.wire import request

FLEET = 'seed = 7\n[[nodes]]\nname = "a"\nprofile = "h100"\n'

TOOL = "get_gpu_inventory"

ABOVE_THE_AGENT = [
    f"mcp-gpu: tools/call {TOOL}",
    f"mcp-gpu-gateway: MCP send tools/call {TOOL}",
    "mcp-gpu-gateway: attempt",
    "mcp-gpu-gateway: fan_out",
    f"mcp-gpu-gateway: tools/call {TOOL}",
]
"""The agent's own span and those above it."""


@dataclass
class Way:
    """A gateway that has one path to the agent, and their logs."""

    path: str
    gateway: Running
    agent: Running
    collector: Collector

    async def ask(self, trace: str = "", **arguments: Any) -> dict[str, Any]:
        """Call the gateway, as part of the client's own trace if it has one."""
        meta = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"} if trace else {}
        message = request("tools/call", name=TOOL, arguments=arguments, meta=meta)
        async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
            answer = await client.post(f"{self.gateway.url}/mcp", json=message)
        result: dict[str, Any] = answer.json()["result"]
        return result

    async def spans(self, trace: str) -> list[Span]:
        """All of a trace, once the gateway's part of it has ended, which is the last."""

        def whole() -> bool:
            found = self.collector.trace(trace)
            return {"mcp-gpu", "mcp-gpu-gateway"} <= {
                each.service for each in found if each.name == f"tools/call {TOOL}"
            }

        await until(whole)
        return self.collector.trace(trace)


def logged(running: Running, words: str) -> list[dict[str, Any]]:
    """The lines of a process whose message begins so."""
    lines = [json.loads(line) for line in running.log.read_text().splitlines()]
    return [line for line in lines if line["message"].startswith(words)]


@asynccontextmanager
async def way(path: str, folder: Path, collector: Collector, *flags: str) -> AsyncIterator[Way]:
    """An agent process, and a gateway process with this path to it alone."""
    fleet_file = folder / "fleet.toml"
    fleet_file.write_text(FLEET)
    port, gateway_port = free_ports(2)
    socket_path = folder / "a" / "agent.sock"
    pods = {("gpu", "agent-a"): Pod(env={"MCP_GPU_SOCKET": str(socket_path)}, ports={port: port})}
    attach = [*PROGRAM, "attach", "--socket", str(socket_path), "--relay-only"]
    agents_file = folder / "agents.toml"
    agents_file.write_text(
        f'[[agents]]\nnode = "a"\naddress = "127.0.0.1:{port}"\n'
        'namespace = "gpu"\npod = "agent-a"\n'
        f"command = {{ argv = {json.dumps(attach)} }}\n"
    )
    async with StreamsServer(pods) as server, AsyncExitStack() as stack:
        options = {}
        if path in ("exec", "portforward"):
            options = {path: {"kubeconfig": str(server.kubeconfig(folder / "kubeconfig"))}}
        arguments = ["agent", "--node-name", "a", "--simulate", str(fleet_file), "--pod-uid", "u-1"]
        arguments += ["--http-port", str(port), "--socket", str(socket_path), *flags]
        agent = Running(arguments, port, folder / "a.log", environment=collector.environment)
        arguments = ["gateway", "--agents-file", str(agents_file), "--http-port", str(gateway_port)]
        arguments += ["--transports", path, "--transport-options", json.dumps(options), *flags]
        log = folder / "gateway.log"
        gateway = Running(arguments, gateway_port, log, environment=collector.environment)
        await start_all(stack, [agent, gateway])
        yield Way(path, gateway, agent, collector)


@pytest.mark.parametrize("path", ["http", "exec", "portforward", "command"])
async def test_a_call_is_one_trace_from_the_gateway_to_the_agent_and_back(
    path: str, tmp_path: Path
) -> None:
    with collecting() as collector:
        async with way(path, tmp_path, collector, "--log-format", "json") as here:
            mine = secrets.token_hex(16)
            found = (await here.ask(mine))["structuredContent"]
            assert [node["via"] for node in found["nodes"]] == [path]
            spans = await here.spans(mine)

            # Every span of the call is of the one trace that the client began.
            (agents,) = [s for s in spans if s.service == "mcp-gpu" and s.name.endswith(TOOL)]
            assert lineage(agents, spans) == ABOVE_THE_AGENT
            by_name = {f"{span.service}: {span.name}": span for span in spans}
            served = by_name[f"mcp-gpu-gateway: tools/call {TOOL}"].attributes
            asked = by_name["mcp-gpu-gateway: fan_out"].attributes
            attempt = by_name["mcp-gpu-gateway: attempt"].attributes
            probe = by_name["mcp-gpu-gateway: probe"].attributes
            assert (served["mcp_gpu.tool"], served["mcp_gpu.outcome"]) == (TOOL, "ok")
            assert (asked["mcp_gpu.nodes_asked"], asked["mcp_gpu.nodes_answered"]) == (1, 1)
            assert asked["mcp_gpu.outcome"] == "ok"
            assert (attempt["mcp_gpu.node"], attempt["mcp_gpu.path"]) == ("a", path)
            assert (attempt["mcp_gpu.outcome"], probe["mcp_gpu.path"]) == ("ok", path)
            assert agents.attributes["mcp_gpu.snapshot_state"] == "ok"
            assert 0 <= agents.attributes["mcp_gpu.snapshot_age_seconds"] < 60
            assert agents.resource["k8s.node.name"] == "a"
            assert agents.resource["k8s.pod.uid"] == "u-1"
            assert not any(span.failed for span in spans)

            # The same call and trace are on the lines of both logs.
            call = served["mcp_gpu.call"]
            assert agents.attributes["mcp_gpu.call"] == call
            for running in (here.gateway, here.agent):
                (ended,) = logged(running, "call ended")
                assert (ended["call"], ended["trace"]) == (call, mine)
            # A client without a trace begins none; the gateway does.
            await here.ask()
            await until(lambda: len({span.trace for span in collector.spans}) == 2)
            (other,) = {span.trace for span in collector.spans} - {mine}
            await here.spans(other)
            roots = [span for span in collector.trace(other) if not span.parent]
            assert [root.name for root in roots] == [f"tools/call {TOOL}"]

            # The last spans are sent before the end.
            last = secrets.token_hex(16)
            await here.ask(last)
            assert await here.gateway.end() == 0
            assert any(span.service == "mcp-gpu-gateway" for span in collector.trace(last))


async def test_a_stream_that_outlives_its_first_call_is_no_part_of_it(tmp_path: Path) -> None:
    with collecting() as collector:
        async with way("exec", tmp_path, collector, "--log-format", "json") as here:
            mine = secrets.token_hex(16)
            await here.ask(mine)
            await here.agent.end()
            await until(lambda: logged(here.gateway, "stream to a"))
            (died,) = logged(here.gateway, "stream to a")
            assert not {"call", "trace"} & set(died)
            assert [line["trace"] for line in logged(here.gateway, "call ended")] == [mine]


async def test_a_path_that_fails_is_seen_in_the_trace(tmp_path: Path) -> None:
    with collecting() as collector:
        async with way("http", tmp_path, collector) as here:
            await here.ask()
            await here.agent.end(signal.SIGKILL)
            mine = secrets.token_hex(16)
            found = (await here.ask(mine))["structuredContent"]
            assert found["failures"]

            def ended() -> bool:
                return any(
                    span.name == f"tools/call {TOOL}" and span.service == "mcp-gpu-gateway"
                    for span in collector.trace(mine)
                )

            await until(ended)
            spans = collector.trace(mine)
            (fan_out,) = [span for span in spans if span.name == "fan_out"]
            assert fan_out.attributes["mcp_gpu.outcome"] == "no_answer"
            failed = [span for span in spans if span.failed and span.name == "attempt"]
            # Refused, or reset where the dying process still listened.
            assert {span.attributes["error.type"] for span in failed} <= {"unreachable", "broken"}
            assert [span.attributes["mcp_gpu.path"] for span in failed][:1] == ["http"]


def run(*flags: str, hidden: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """An agent that ends at once with its input.

    Args:
        hidden: a package that it cannot find.
    """
    hide = f"import sys; sys.modules[{hidden!r}] = None; " if hidden else ""
    program = f"{hide}import sys; from mcp_gpu.__main__ import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, "agent", "--simulate", "demo", "--stdio", *flags],
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "MCP_GPU_NODE_NAME": "h100-a", **variables},
        check=False,
    )


OTLP = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
"""Nobody is there."""


def test_traces_that_cannot_be_sent_are_a_clear_error_where_they_were_asked_for() -> None:
    asked = run("--traces", "on", hidden="opentelemetry.sdk")
    assert asked.returncode == 2
    assert asked.stderr == (
        "mcp-gpu agent: --traces on: OpenTelemetry's SDK and exporter are not installed: "
        "pip install 'mcp-gpu[otel]'\n"
    )
    grpc = run("--traces", "on", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert grpc.returncode == 2
    assert "OTEL_EXPORTER_OTLP_PROTOCOL asks for grpc, and http/protobuf is spoken" in grpc.stderr


def test_a_variable_that_a_client_hands_on_ends_nothing() -> None:
    missing = run(hidden="opentelemetry.sdk", **OTLP)
    assert (missing.returncode, missing.stdout) == (0, "")
    assert "no traces are sent, though OTEL_EXPORTER_OTLP_ENDPOINT is set" in missing.stderr
    for quiet in (
        run("--traces", "off", hidden="opentelemetry.sdk", **OTLP),
        run(hidden="opentelemetry.sdk", OTEL_TRACES_EXPORTER="none", **OTLP),
        run(hidden="opentelemetry.sdk"),
    ):
        assert (quiet.returncode, "traces" in quiet.stderr) == (0, False)


def test_a_collector_that_is_not_there_ends_nothing() -> None:
    alone = run(**OTLP)
    assert (alone.returncode, alone.stdout) == (0, "")

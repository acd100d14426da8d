"""`mcp-gpu health` as a person runs it: over real agents and gateways, at 80 columns."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcp_gpu.cli import main
from support.cluster import PROGRAM, Cluster, cluster

WIDTH = 80

FLEET = """
seed = 7
[[nodes]]
name = "a"
profile = "t4"
gpus = 1
[[nodes]]
name = "b"
profile = "h100"
gpus = 2
"""

LOST = """
[[nodes.faults]]
kind = "lost"
gpu = 1
"""


@dataclass(frozen=True)
class Run:
    """What the command did."""

    status: int
    shown: str
    said: str

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.shown.splitlines()]

    @property
    def answer(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(self.shown)
        return found


async def health(*flags: str) -> Run:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MCP_GPU_")}
    with anyio.fail_after(120):
        done = await anyio.run_process(
            [*PROGRAM, "health", *flags], check=False, env=inherited | {"COLUMNS": str(WIDTH)}
        )
    run = Run(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert run.said == ""
    assert "\x1b" not in run.shown  # colours are for terminals
    return run


def ways(here: Cluster) -> list[list[str]]:
    """How the command may be told where the agents are."""
    agents_file = str(here.fleet_file.with_name("agents.toml"))
    return [["--url", f"{here.gateway.url}/mcp"], ["--agents-file", agents_file]]


async def test_a_gateway_and_the_agents_themselves_tell_the_same(tmp_path: Path) -> None:
    async with cluster(tmp_path, FLEET) as here:
        for way in ways(here):
            well = await health(*way)
            assert well.status == 0
            assert well.lines[:2] == ["HEALTHY  2 nodes: 2 healthy", f"{'':9}3 GPUs: 3 healthy"]
            assert well.lines[-1].startswith("simulated: ")
        here.fleet_file.write_text(FLEET + LOST)
        while (sick := await health(*ways(here)[0])).status == 0:
            await anyio.sleep(0.1)  # a fault has no event to wait for
        for way in ways(here):
            sick = await health(*way)
            assert sick.status == 1
            assert sick.lines[0] == "FAILED  2 nodes: 1 failed, 1 healthy"
            assert sick.lines[1].startswith("        3 GPUs: 1 failed")
            assert "   where  b GPU 1" in sick.lines
            assert [line for line in sick.lines if len(line) > WIDTH] == []
            answer = (await health(*way, "--json", "--nodes", "b", "--severity", "critical")).answer
            assert (answer["verdict"], answer["nodes_by_verdict"]["failed"]) == ("failed", 1)
            (node,) = answer["nodes"]
            assert node["node"] == "b"
            assert {each["severity"] for each in node["findings"]} == {"critical"}
        await here.agents["a"].end(signal.SIGKILL)
        for way in ways(here):
            gone = await health(*way, "--nodes", "a")
            assert gone.status == 1
            assert gone.lines[:2] == ["UNKNOWN  1 node: 1 unknown", f"{'':9}no GPUs known"]
            assert "1 node did not answer (1 not_running); their GPUs are unknown:" in gone.lines
            assert "mcp-gpu doctor says why nodes do not answer, and what mends it." in gone.lines


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--url", "http://127.0.0.1:1/mcp"], "no answer from http://127.0.0.1:1/mcp"),
        (["--agents", "a=127.0.0.1", "--nodes", "z"], "unknown nodes: z; known: a"),
        (["--agents", "a", "--severity", "fatal"], "--severity: input should be 'critical'"),
    ],
)
def test_wrong_usage_is_one_clear_line(
    flags: list[str], complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["health", *flags]) == 2
    said = capfd.readouterr()
    assert complaint in said.err
    assert "Traceback" not in said.err
    assert said.out == ""

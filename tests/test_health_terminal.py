"""`mcp-gpu health` as a person runs it: over real agents and gateways, at 80 columns."""

from __future__ import annotations

import signal
from pathlib import Path

import anyio
import pytest

from mcp_gpu.cli import main
from support.cluster import cluster
from support.terminal import WIDTH, Run, run, ways

LIMIT_SECONDS = 60

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


async def health(*flags: str, terminal: bool = False) -> Run:
    found = await run("health", *flags, terminal=terminal)
    assert found.said == ""
    return found


async def test_a_gateway_and_the_agents_themselves_tell_the_same(tmp_path: Path) -> None:
    async with cluster(tmp_path, FLEET) as here:
        for way in ways(here):
            well = await health(*way)
            assert well.status == 0
            assert well.lines[:2] == ["HEALTHY  2 nodes: 2 healthy", f"{'':9}3 GPUs: 3 healthy"]
            assert well.lines[-1].startswith("simulated: ")
        here.fleet_file.write_text(FLEET + LOST)
        with anyio.fail_after(LIMIT_SECONDS):
            while (await health(*ways(here)[0])).status == 0:
                await anyio.sleep(0.1)  # a fault has no event to wait for
        for way in ways(here):
            sick = await health(*way)
            assert sick.status == 1
            assert sick.lines[0] == "FAILED  2 nodes: 1 failed, 1 healthy"
            assert sick.lines[1].startswith("        3 GPUs: 1 failed")
            assert "   where  b GPU 1" in sick.lines
            assert any(line.endswith("drain the node and power-cycle it.)") for line in sick.lines)
            assert " \n" not in sick.shown
            shown = await health(*way, terminal=True)
            assert shown.status == 1
            assert [line for line in shown.lines if len(line) > WIDTH] == []
            assert len(shown.lines) > len(sick.lines)
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

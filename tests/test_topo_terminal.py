"""`mcp-gpu topo` as a person runs it: over real agents and gateways, at 80 columns."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from mcp_gpu.cli import main
from support.cluster import cluster
from support.terminal import Run, run, ways

FLEET = """
seed = 7
[[nodes]]
name = "a"
profile = "l40s"
gpus = 2
[[nodes]]
name = "b"
profile = "h100"
[[nodes]]
name = "c"
profile = "h100"
"""

DOWN = """
[[nodes.faults]]
kind = "nvlink_down"
gpu = 1
links = [2]
"""

MATRIX = "GPU0  X     NV18  NV18  NV18  NV18  NV18  NV18  NV18  0-47,96-143    0"


async def topo(*flags: str, terminal: bool = False) -> Run:
    found = await run("topo", *flags, terminal=terminal)
    assert found.said == ""
    return found


async def test_a_gateway_and_the_agents_themselves_tell_the_same(tmp_path: Path) -> None:
    async with cluster(tmp_path, FLEET) as here:
        for way in ways(here):
            well = await topo(*way)
            assert well.status == 0
            assert well.lines[0] == "3 of 3 nodes answered, 0 odd nodes"
            alike = "2 nodes alike: 8x NVIDIA H100 80GB HBM3; NV18 everywhere through NVSwitch; "
            assert any(line.startswith(alike) and line.endswith(": b, c") for line in well.lines)
            assert well.lines.count(MATRIX) == 1  # of those wired alike
            assert "GPU0  X     NODE  0-47,96-143  0" in well.lines
            assert well.lines[-1].startswith("simulated: ")


async def test_nodes_that_are_named_are_shown_each(tmp_path: Path) -> None:
    async with cluster(tmp_path, FLEET) as here:
        way, _ = ways(here)
        both = await topo(*way, "--nodes", "b,c", terminal=True)
        assert both.lines.count(MATRIX) == 2
        answer = (await topo(*way, "--json", "--nodes", "a")).answer
        assert answer["nodes"][0]["matrix"] == [["X", "NODE"], ["NODE", "X"]]


async def test_what_is_odd_and_who_is_away_is_told_first(tmp_path: Path) -> None:
    async with cluster(tmp_path, FLEET + DOWN) as here:
        way, _ = ways(here)
        await here.agents["a"].end(signal.SIGKILL)
        odd = await topo(*way)
        assert odd.status == 1
        assert odd.lines[0] == "2 of 3 nodes answered, 1 odd node"
        assert odd.lines[2].startswith("! c: GPU 1 has 17 NVLinks up and should have 18")
        assert "1 node did not answer (1 not_running); their GPUs are unknown:" in odd.lines


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--url", "http://127.0.0.1:1/mcp"], "no answer from http://127.0.0.1:1/mcp"),
        (["--agents", "a=127.0.0.1", "--nodes", "z"], "unknown nodes: z; known: a"),
    ],
)
def test_wrong_usage_is_one_clear_line(
    flags: list[str], complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["topo", *flags]) == 2
    said = capfd.readouterr()
    assert complaint in said.err
    assert "Traceback" not in said.err
    assert said.out == ""

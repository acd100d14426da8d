"""The official MCP conformance suite against this project's serving, at both revisions."""

import subprocess
from pathlib import Path

import anyio
import httpx
import pytest

from support import node
from support.cluster import cluster
from support.wire import child

FOLDER = Path(__file__).parent / "conformance"
REVISIONS = ("2026-07-28", "2025-11-25")

RUN_SECONDS = 240
"""The suite takes 5 s here; a scenario that hangs is given up by the suite after 30."""


@pytest.fixture(scope="module", autouse=True)
def suite(pytestconfig: pytest.Config) -> None:
    node.require(pytestconfig, node.CONFORMANCE)


async def run_suite(url: str, revision: str, baseline: Path | None, folder: Path) -> str:
    """The suite's summary; the test fails with it if anything but the baseline fails."""
    command = [str(node.NODE), str(node.CONFORMANCE), "server", "--url", url]
    command += ["--requirements", revision, "--output-dir", str(folder)]
    if baseline is not None:
        command += ["--expected-failures", str(baseline)]
    with anyio.fail_after(RUN_SECONDS):
        run = await anyio.run_process(
            command, check=False, env=node.environment(folder), stderr=subprocess.STDOUT
        )
    summary = run.stdout.decode().partition("=== SUMMARY ===")[2]
    assert run.returncode == 0, summary or run.stdout.decode()
    return summary


@pytest.mark.node
@pytest.mark.parametrize("revision", REVISIONS)
async def test_every_required_scenario_passes_but_those_the_baseline_names(
    revision: str, tmp_path: Path
) -> None:
    """The suite's own tools and resources, served by this project's serving."""
    async with child(
        program=FOLDER / "fixtures.py", stderr=subprocess.DEVNULL, patience_seconds=RUN_SECONDS
    ) as server:
        assert server.stdout is not None
        url = (await server.stdout.receive()).decode().strip()
        baseline = FOLDER / f"baseline-{revision}.yml"
        summary = await run_suite(url, revision, baseline if baseline.exists() else None, tmp_path)
    assert summary.count("✓") > 20, summary


@pytest.mark.node
async def test_the_real_gateway_and_agent_pass_what_needs_no_fixtures(tmp_path: Path) -> None:
    fleet = '[[nodes]]\nname = "a"\nprofile = "t4"\n'
    async with cluster(tmp_path, fleet) as running:
        for role in (running.gateway, running.agents["a"]):
            for revision in REVISIONS:
                summary = await run_suite(
                    f"{role.url}/mcp", revision, FOLDER / f"roles-{revision}.yml", tmp_path
                )
                assert "✓ tools-list" in summary
                assert "✓ dns-rebinding-protection" in summary


@pytest.mark.node
async def test_several_streams_at_once_are_served_without_a_session() -> None:
    """What the scenario server-sse-multiple-streams of 2025-11-25 does not get to."""
    headers = {
        "Accept": "text/event-stream, application/json",
        "MCP-Protocol-Version": "2025-11-25",
    }
    async with child(program=FOLDER / "fixtures.py", stderr=subprocess.DEVNULL) as server:
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

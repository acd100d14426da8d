"""`mcp-gpu why` as a person runs it: of a gateway process, and straight from a kubeconfig."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support import terminal
from support.cluster import Running, start_all
from support.failures import NAMESPACE, POD, node, pod, status
from support.kubeapi.documents import endpoint, endpoint_slice, running
from support.kubeapi.documents import pod as agents_pod
from support.kubeapi.server import FakeApiServer
from support.ports import free_ports

NODE = "n1"

FLEET = f"""seed = 7
[[nodes]]
name = "{NODE}"
profile = "h100"
[[nodes.faults]]
kind = "xid"
gpu = 3
xid = 79
seconds_ago = 60
text = "GPU has fallen off the bus."
"""

PATHS = ["--transports", "http"]


def ago(seconds: int) -> str:
    """A time of Kubernetes', before now."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[tuple[FakeApiServer, Running]]:
    """An agent on a node whose GPU 3 fell off the bus a minute ago, a pod that had all of its GPUs
    and died then, and a gateway."""
    fleet_file = folder / "fleet.toml"
    fleet_file.write_text(FLEET)
    port, gateway_port = free_ports(2)
    async with FakeApiServer() as api, AsyncExitStack() as stack:
        arguments = ["agent", "--node-name", NODE, "--simulate", str(fleet_file)]
        arguments += ["--socket", str(folder / "agent.sock"), "--http-port", str(port)]
        arguments += ["--pod-name", f"agent-{NODE}", "--pod-uid", f"uid-{NODE}"]
        agent = Running(arguments, port, folder / "agent.log")
        await api.apply(endpoint_slice("slice", [endpoint("127.0.0.1", NODE)], port=port))
        await api.apply(agents_pod(NODE, state=running(), ready=True))
        await api.apply(node(name=NODE))
        ended = {
            "exitCode": 1,
            "reason": "Error",
            "startedAt": ago(600),
            "finishedAt": ago(30),
        }
        container = status({"terminated": ended})
        await api.apply(pod(container, gpus=8, startTime=ago(601)))
        await api.apply(pod(status({"running": {}}), name="well", phase="Running"))
        arguments = ["gateway", "--kubeconfig", str(api.kubeconfig), *PATHS]
        arguments += ["--http-port", str(gateway_port)]
        gateway = Running(arguments, gateway_port, folder / "gateway.log")
        await start_all(stack, [agent, gateway])
        yield api, gateway


async def test_a_person_is_told_why(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (api, gateway):
        direct = ["--kubeconfig", str(api.kubeconfig), *PATHS]
        for way in (["--url", f"{gateway.url}/mcp"], direct):
            done = await terminal.run("why", POD, "-n", NAMESPACE, *way)
            assert (done.status, done.said) == (1, "")
            assert done.lines[0].startswith(
                "GPU_HARDWARE, not your code (high confidence): The GPU that it held failed: "
                "Xid 79 on GPU 3"
            )
            assert "simulated: no real hardware stands behind some of this" in done.lines
            # The simulated driver asks for nothing any more.
            assert "Run it again: the GPU has been reset since" in done.shown
            assert f"Xids, agent of {NODE}: Xid 79 on GPU 3" in done.shown
            found = (await terminal.run("why", POD, "-n", NAMESPACE, "--json", *way)).answer
            assert (found["category"], found["not_your_code"]) == ("gpu_hardware", "true")
            assert len(found["gpus"]) == 8
        well = await terminal.run("why", "well", "-n", NAMESPACE, *direct)
        assert (well.status, well.lines[0].partition(":")[0]) == (0, "STILL_RUNNING")
        wide = await terminal.run("why", POD, "-n", NAMESPACE, *direct, terminal=True)
        assert all(len(line) <= terminal.WIDTH for line in wide.lines)
        assert await gateway.end() == 0
        assert "Traceback" not in gateway.log.read_text()


async def test_a_report_is_printed_to_be_pasted(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (api, gateway):
        direct = ["--kubeconfig", str(api.kubeconfig), *PATHS]
        identities = set()
        for way in (["--url", f"{gateway.url}/mcp"], direct):
            done = await terminal.run("why", POD, "-n", NAMESPACE, "--report", *way)
            assert (done.status, done.said) == (1, "")
            assert "SIMULATED: no real hardware stands behind some or all of this." in done.lines
            first = next(each for each in done.lines if each.startswith("Came first:"))
            assert first.startswith("Came first: T+0, GPU 3: Xid 79")
            assert f"pod {NAMESPACE}/{POD}: container main ended: exit code 1" in done.shown
            identities.add(done.lines[0])
            words = ["why", POD, "-n", NAMESPACE, "--report", "--json", *way]
            found = (await terminal.run(*words)).answer
            assert found["explanation"]["category"] == "gpu_hardware"
            assert f"### Incident {found['incident_id']}" == done.lines[0]
            metrics = {each["metric"] for each in found["snapshots"][0]["levels"]}
            assert "temperature_celsius" in metrics
        assert len(identities) == 1
        well = await terminal.run("why", "well", "-n", NAMESPACE, "--report", *direct)
        assert (well.status, well.lines[0]) == (0, "### No incident of this pod")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a pod: mcp-gpu why POD -n NAMESPACE"),
        (["../x"], "POD: String should match pattern"),
        (["x", "-n", "A"], "-n: String should match pattern"),
        (["x", "--nodes", "n1"], "--nodes: the pod's own node is asked, and no other"),
        (["x", "--url", "http://127.0.0.1:1/mcp"], "no answer from http://127.0.0.1:1/mcp"),
    ],
)
async def test_wrong_usage_is_said_in_one_line(arguments: list[str], said: str) -> None:
    done = await terminal.run("why", *arguments)
    assert (done.status, done.shown) == (2, "")
    assert said in done.said
    assert len(done.said.splitlines()) == 1


async def test_without_a_cluster_the_answer_says_what_is_missing(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    done = await terminal.run("why", "x", "--agents", f"n1=127.0.0.1:{port}")
    assert done.status == 1
    assert "! Kubernetes: this gateway has no API server to ask" in done.shown

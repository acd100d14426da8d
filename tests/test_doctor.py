"""`mcp-gpu doctor` as a person and as a Helm test run it: over real agents and gateways."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from mcp_gpu.cli import main
from support.cluster import Running, cluster, start_all, trusting
from support.kubeapi.credentials import Authority
from support.kubeapi.documents import endpoint, endpoint_slice, node, pod, running, waiting
from support.kubeapi.pods import Pod
from support.kubeapi.server import FakeApiServer
from support.kubeapi.streams import stream_routes
from support.ports import free_ports
from support.terminal import WIDTH, Run, run, ways

NODES = ("a", "b")
FLEET = "seed = 7\n" + "".join(f'[[nodes]]\nname = "{n}"\nprofile = "t4"\n' for n in NODES)


async def doctor(*flags: str, terminal: bool = False) -> Run:
    return await run("doctor", *flags, terminal=terminal)


async def test_a_gateway_and_the_agents_themselves_tell_the_same(tmp_path: Path) -> None:
    async with cluster(tmp_path, FLEET) as here:
        for way in ways(here):
            well = await doctor(*way)
            assert (well.status, well.said) == (0, "")
            assert well.lines[0].startswith("HEALTHY  ")
            assert "2 of 2 nodes healthy: 2 over http" in well.lines
        await here.agents["b"].end(signal.SIGKILL)
        for way in ways(here):
            ill = await doctor(*way)
            assert (ill.status, ill.said) == (1, "")
            assert ill.lines[0].startswith("BROKEN  ")
            assert "1 of 2 nodes healthy: 1 over http" in ill.lines
            assert "   b: http refused, command not_running; no path works" in ill.lines
            port = here.agents["b"].port
            assert f"     b http: 127.0.0.1:{port}: connection refused" in ill.lines
        report = (await doctor(*ways(here)[0], "--json", "--nodes", "b")).answer
        assert (report["verdict"], report["nodes_healthy"]) == ("broken", 0)
        assert [each["node"] for each in report["nodes"]] == ["b"]
        assert [p["outcome"] for p in report["nodes"][0]["paths"]] == ["refused", "not_running"]


async def test_a_gateway_without_the_token_says_so(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("s3cret\n")
    wrong = tmp_path / "wrong"
    wrong.write_text("gu3ss\n")
    authority = Authority(tmp_path)
    agent_flags = ["--token-file", str(tokens)]
    async with cluster(tmp_path, FLEET, agent_flags=agent_flags, authority=authority) as here:
        shown = [*trusting(authority), "--agent-token-file", str(wrong)]
        found = await doctor(*ways(here)[1], *shown, "--json")
    assert found.status == 1
    for row in found.answer["nodes"]:
        http, command = row["paths"]
        assert (http["outcome"], command["outcome"]) == ("unauthorized", "ok")
        assert http["message"].startswith("answers probes but no calls: HTTP 401")
    assert "gu3ss" not in found.shown


@dataclass
class Kubernetes:
    """Agents on the nodes a and b as an API server knows them; HTTP does not lead to b."""

    api: FakeApiServer
    pods: Mapping[tuple[str, str], Pod]

    async def doctor(self, *flags: str, terminal: bool = False) -> Run:
        kubeconfig = str(self.api.kubeconfig)
        return await doctor("--kubeconfig", kubeconfig, *PATHS, *flags, terminal=terminal)


PATHS = ("--transports", "http,exec", "--stream-timeout-seconds", "30")
"""A relay takes long to start on a busy machine."""


@asynccontextmanager
async def kubernetes(folder: Path) -> AsyncIterator[Kubernetes]:
    fleet_file = folder / "fleet.toml"
    fleet_file.write_text(FLEET)
    *ports, dead = free_ports(len(NODES) + 1)
    pods = {
        ("gpu", f"agent-{name}"): Pod(env={"MCP_GPU_SOCKET": str(folder / name / "agent.sock")})
        for name in NODES
    }

    def may(verb: str, resource: str) -> bool:
        return api.may(verb, resource)

    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(FakeApiServer(routes=stream_routes(pods, may=may)))
        agents = []
        for name, port in zip(NODES, ports, strict=True):
            arguments = ["agent", "--node-name", name, "--simulate", str(fleet_file)]
            arguments += ["--pod-name", f"agent-{name}", "--pod-uid", f"uid-{name}"]
            arguments += ["--socket", str(folder / name / "agent.sock")]
            agents.append(
                Running([*arguments, "--http-port", str(port)], port, folder / f"{name}.log")
            )
            said = dead if name == "b" else port
            here = [endpoint("127.0.0.1", name)]
            await api.apply(endpoint_slice(f"slice-{name}", here, port=said))
            await api.apply(pod(name, state=running(), ready=True))
            await api.apply(node(name))
        await start_all(stack, agents)
        yield Kubernetes(api, pods)


async def test_a_cluster_where_streams_carry_what_http_does_not(tmp_path: Path) -> None:
    async with kubernetes(tmp_path) as here:
        found = await here.doctor()
        assert (found.status, found.said) == (1, "")
        assert found.lines[0].startswith("DEGRADED  ")
        assert any(line.startswith("   b: http refused, exec ok (") for line in found.lines)
        assert " \n" not in found.shown
        shown = await here.doctor(terminal=True)
        prose = [line for line in shown.lines if not line.startswith("   kubectl ")]
        assert [line for line in prose if len(line) > WIDTH] == []

        here.api.deny("create", "pods/exec")
        found = await here.doctor("--json")
        assert (found.status, found.answer["verdict"]) == (1, "broken")
        (row,) = found.answer["nodes"]
        assert [path["outcome"] for path in row["paths"]] == ["refused", "rbac"]
        exec_totals = found.answer["paths"][1]
        assert (exec_totals["via"], exec_totals["outcomes"]) == ("exec", {"rbac": 2})


async def test_a_pre_flight_warns_and_fails_only_when_told_to(tmp_path: Path) -> None:
    async with kubernetes(tmp_path) as here:
        found = await here.doctor("--in-cluster", "--strict")
        assert found.status == 0
        assert found.lines[0].startswith("DEGRADED  ")
        assert found.lines[-1] == "pre-flight passed: 2 nodes reached, 1 the best way"

        here.api.deny("create", "pods/exec")
        found = await here.doctor("--in-cluster")
        assert found.status == 0
        assert found.lines[0].startswith("BROKEN  ")
        last = "pre-flight warning: no path leads to 1 of 2 nodes; with --strict this would fail"
        assert found.lines[-1] == last
        found = await here.doctor("--in-cluster", "--strict")
        assert found.status == 1
        assert found.lines[-1] == "pre-flight failed: no path leads to 1 of 2 nodes"
        assert (await here.doctor("--in-cluster", "--strict", "--json")).answer[
            "verdict"
        ] == "broken"


async def test_a_pre_flight_waits_for_agents_to_be_ready(tmp_path: Path) -> None:
    async with kubernetes(tmp_path) as here:
        await here.api.apply(pod("c", phase="Pending", state=waiting("ContainerCreating")))
        await here.api.apply(node("c"))

        async def come_up() -> None:
            with anyio.fail_after(60):
                while not here.api.open_watches("pods"):
                    await anyio.sleep(0.05)
            await here.api.delete("Pod", "agent-c")
            await here.api.delete("Node", "c")

        async with anyio.create_task_group() as group:
            group.start_soon(come_up)
            found = await here.doctor("--in-cluster", "--strict", "--wait-seconds", "120")
        assert found.lines[-1] == "pre-flight passed: 2 nodes reached, 1 the best way"

        await here.api.apply(pod("c", phase="Pending", state=waiting("ImagePullBackOff", "no x")))
        found = await here.doctor("--in-cluster", "--strict", "--wait-seconds", "0.1")
        assert found.status == 1
        assert found.lines[-1] == "pre-flight failed: no path leads to 1 of 3 nodes"
        assert "ImagePullBackOff" in found.shown


@pytest.mark.parametrize(("flags", "status"), [([], 0), (["--strict"], 1)])
async def test_a_pre_flight_without_agents(flags: Sequence[str], status: int) -> None:
    async with FakeApiServer() as api:
        where = ["--kubeconfig", str(api.kubeconfig), "--wait-seconds", "0.1", *PATHS]
        found = await doctor("--in-cluster", *where, *flags)
        assert found.status == status
        assert "no agents are known: Kubernetes, all namespaces: no agent" in found.lines[-1]
        assert len(found.lines) == 1
        usual = await doctor("--kubeconfig", str(api.kubeconfig), *PATHS)
        assert usual.status == 2
        assert usual.said.startswith("mcp-gpu doctor: no agents are known: Kubernetes")


async def test_several_clusters_are_diagnosed_one_by_one(tmp_path: Path) -> None:
    (dead,) = free_ports(1)
    async with FakeApiServer() as one, FakeApiServer() as two:
        for api in (one, two):
            await api.apply(endpoint_slice("slice-a", [endpoint("127.0.0.1", "a")], port=dead))
            await api.apply(pod("a", state=running(), ready=True))
            await api.apply(node("a"))
        two.deny("list", "nodes")
        config = json.loads(one.kubeconfig.read_text())
        for name, api in (("one", one), ("two", two)):
            config["clusters"].append({"name": name, "cluster": {"server": api.url}})
            own = {"cluster": name, "user": "gateway", "namespace": "gpu"}
            config["contexts"].append({"name": name, "context": own})
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(config))
        where = ["--kubeconfig", str(kubeconfig), "--context", "one,two"]
        found = await doctor(*where, "--transports", "http,portforward", "--json")
    assert found.status == 1
    assert found.answer["verdict"] == "broken"
    assert found.answer["headline"].startswith("broken: one broken: ")
    assert found.answer["coverage"]["nodes_known"] == 2
    assert [each["node"] for each in found.answer["nodes"]] == ["one/a", "two/a"]
    named = {node for cause in found.answer["causes"] for node in cause["nodes"]}
    assert named == {"one/a", "two/a"}
    unread = [each["what"] for each in found.answer["unread"]]
    assert "two: nodes" in unread
    assert "one: nodes" not in unread


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--agents", "a=127.0.0.1", "--strict"], "--strict goes with --in-cluster only"),
        (["--agents", "a", "--wait-seconds", "9"], "--wait-seconds goes with --in-cluster only"),
        (["--agents", "a=127.0.0.1", "--plain-token"], "--plain-token goes with --url only"),
        (["--agents", "a", "--in-cluster", "--ca-file", "x"], "--ca-file goes with --url only"),
        (["--in-cluster", "--url", "http://x/mcp"], "--in-cluster and --url given together"),
        (["--in-cluster", "--wait-seconds", "601"], "--wait-seconds: input should be less"),
        (["--url", "http://127.0.0.1:1/mcp"], "no answer from http://127.0.0.1:1/mcp"),
        (["--agents", "a=127.0.0.1", "--nodes", "z"], "unknown nodes: z; known: a"),
        (["--agents", "a:b"], "'b' is not a port number"),
    ],
)
def test_wrong_usage_is_one_clear_line(
    flags: list[str], complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *flags]) == 2
    said = capfd.readouterr()
    assert complaint in said.err
    assert "Traceback" not in said.err
    assert said.out == ""

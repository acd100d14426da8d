"""A gateway as Claude or Cursor starts it on a laptop: a kubeconfig, standard streams, no more."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters, stdio_client
from mcp_types import CallToolResult, TextContent

from support.cluster import Running, start_all
from support.kubeapi.answering import program
from support.kubeapi.documents import endpoint, endpoint_slice, node, pod, running
from support.kubeapi.pods import Pod
from support.kubeapi.server import TOKEN, FakeApiServer
from support.kubeapi.streams import stream_routes
from support.ports import free_ports

FLEET = 'seed = 7\n[[nodes]]\nname = "n1"\nprofile = "h100"\n'

AS_IT_IS = ("-m", "mcp_gpu")
AS_ON_WINDOWS = (str(Path(__file__).parent / "support" / "windows.py"),)


@dataclass
class Cluster:
    """An API server, and the pods of its agents by namespace."""

    api: FakeApiServer
    pods: Mapping[tuple[str, str], Pod]


@dataclass
class Laptop:
    """A home with a kubeconfig in it; `users` and `contexts` may be changed until it is used."""

    home: Path
    clusters: Mapping[str, Cluster]
    users: dict[str, dict[str, Any]] = field(default_factory=dict)

    @asynccontextmanager
    async def client(self, *flags: str, program: Sequence[str] = AS_IT_IS) -> AsyncIterator[Client]:
        """The SDK's client over a gateway with the environment that clients give, started
        where they start it."""
        (self.home / ".kube").mkdir(exist_ok=True)
        (self.home / ".kube" / "config").write_text(json.dumps(self._kubeconfig()))
        server = StdioServerParameters(
            command=sys.executable,
            args=[*program, "gateway", "--stdio", *flags],
            env={"HOME": str(self.home), "PATH": "/usr/bin:/bin"},
            cwd="/",
        )
        with (self.home / "stderr").open("w") as errors, anyio.fail_after(120):
            async with Client(stdio_client(server, errors), read_timeout_seconds=60) as client:
                yield client

    def log(self) -> str:
        return (self.home / "stderr").read_text()

    def _kubeconfig(self) -> dict[str, Any]:
        names = list(self.clusters)
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": names[0],
            "clusters": [
                {"name": name, "cluster": {"server": each.api.url}}
                for name, each in self.clusters.items()
            ],
            "users": [
                {"name": name, "user": self.users.get(name, {"token": TOKEN})} for name in names
            ],
            "contexts": [
                {"name": name, "context": {"cluster": name, "user": name}} for name in names
            ],
        }


@asynccontextmanager
async def laptop(folder: Path, **clusters: Sequence[str]) -> AsyncIterator[Laptop]:
    """Clusters of one node n1 each, with an agent in each of the namespaces given. No agent has a
    port, so that no address leads to it."""
    fleet_file = folder / "fleet.toml"
    fleet_file.write_text(FLEET)
    (folder / "home").mkdir()
    agents: list[Running] = []
    found: dict[str, Cluster] = {}
    async with AsyncExitStack() as stack:
        ports = iter(free_ports(sum(map(len, clusters.values()))))
        for name, namespaces in clusters.items():
            pods: dict[tuple[str, str], Pod] = {}
            api = FakeApiServer(routes=stream_routes(pods))
            found[name] = Cluster(await stack.enter_async_context(api), pods)
            await api.apply(node("n1"))
            for namespace in namespaces:
                who = f"{name}-{namespace}"
                socket_path = folder / f"{who}.d" / "agent.sock"
                pods[namespace, "agent-n1"] = Pod(env={"MCP_GPU_SOCKET": str(socket_path)})
                port = next(ports)
                arguments = ["agent", "--node-name", "n1", "--simulate", str(fleet_file)]
                arguments += ["--pod-name", "agent-n1", "--pod-uid", who]
                arguments += ["--socket", str(socket_path), "--http-port", str(port)]
                agents.append(Running(arguments, port, folder / f"{who}.log"))
                here = endpoint("127.0.0.1", "n1", uid=who)
                for document in (
                    endpoint_slice("agents", [here], port=None),
                    pod("n1", uid=who, state=running(), ready=True),
                ):
                    placed = document["metadata"] | {"namespace": namespace}
                    await api.apply(document | {"metadata": placed})
        await start_all(stack, agents)
        yield Laptop(folder / "home", found)


async def ask(client: Client, **arguments: Any) -> CallToolResult:
    return await client.call_tool("get_gpu_inventory", arguments)


async def inventory(client: Client, **arguments: Any) -> Any:
    result = await ask(client, **arguments)
    assert not result.is_error, result.content
    return result.structured_content


def text(result: CallToolResult) -> str:
    return " ".join(block.text for block in result.content if isinstance(block, TextContent))


def ways(found: Any) -> dict[str, str]:
    return {each["node"]: each["via"] for each in found["nodes"]}


@pytest.mark.parametrize("program", [AS_IT_IS, AS_ON_WINDOWS], ids=["here", "as on Windows"])
async def test_a_kubeconfig_in_the_home_is_all_that_a_gateway_needs(
    program: Sequence[str], tmp_path: Path
) -> None:
    async with laptop(tmp_path, east=["gpu"]) as here:
        async with here.client(program=program) as client:
            found = await inventory(client)
            assert ways(found) == {"n1": "exec"}
            assert found["coverage"]["discovery_problem"] is None
        (relay,) = here.clusters["east"].pods["gpu", "agent-n1"].processes
        with anyio.fail_after(30):
            await relay.wait()
        assert "Traceback" not in here.log()


@pytest.mark.parametrize("program", [AS_IT_IS, AS_ON_WINDOWS], ids=["here", "as on Windows"])
async def test_contexts_are_all_that_a_gateway_over_several_clusters_needs(
    program: Sequence[str], tmp_path: Path
) -> None:
    async with laptop(tmp_path, east=["gpu"], west=["other"]) as here:
        async with here.client("--context", "east,west", program=program) as client:
            found = await inventory(client)
            assert ways(found) == {"east/n1": "exec", "west/n1": "exec"}
            assert found["coverage"]["nodes_known"] == 2
            assert found["coverage"]["discovery"] == (
                "east: Kubernetes, all namespaces; west: Kubernetes, all namespaces"
            )
            assert found["coverage"]["discovery_problem"] is None
            one = await inventory(client, nodes=["west/n1"])
            assert set(ways(one)) == {"west/n1"}
            assert "Known: east/n1, west/n1." in text(await ask(client, nodes=["n1"]))
            first = await inventory(client, limit=1)
            second = await inventory(client, limit=1, cursor=first["next_cursor"])
            assert [*ways(first), *ways(second)] == ["east/n1", "west/n1"]

            # A node without an agent has its cluster's name too.
            await here.clusters["west"].api.apply(node("n2"))
            with anyio.fail_after(30):
                while not (found := await inventory(client))["failures"]:
                    pass
            assert [each["node"] for each in found["failures"]] == ["west/n2"]
            assert set(ways(await inventory(client, nodes=["east/n1", "west/n2"]))) == {"east/n1"}
        for cluster in here.clusters.values():
            for agent in cluster.pods.values():
                assert len(agent.processes) == 1
                with anyio.fail_after(30):
                    await agent.processes[0].wait()
        assert "Traceback" not in here.log()


async def test_a_cluster_that_is_down_costs_the_other_nothing(tmp_path: Path) -> None:
    async with laptop(tmp_path, east=["gpu"], west=["gpu"]) as here:
        await here.clusters["west"].api.stop()
        async with here.client("--context", "east,west") as client:
            found = await inventory(client)
            assert ways(found) == {"east/n1": "exec"}
            problem = found["coverage"]["discovery_problem"]
            assert problem.startswith("west: ")
            assert "cannot reach the API server" in problem
            await here.clusters["west"].api.start()
            with anyio.fail_after(60):
                while len(ways(found := await inventory(client))) < 2:
                    await anyio.sleep(0.1)  # a watch of another process has no event to wait for


async def test_two_releases_on_one_node_are_one_node(tmp_path: Path) -> None:
    async with laptop(tmp_path, east=["blue", "green"]) as here:
        async with here.client() as client:
            found = await inventory(client)
            assert ways(found) == {"n1": "exec"}
            assert found["totals"]["gpus"] == 8
            assert found["failures"] == []
            assert found["coverage"]["nodes_known"] == 1
        pods = here.clusters["east"].pods
        assert [len(each.processes) for each in pods.values()] == [1, 1]
        # One release's agent is away: the node has answered all the same.
        pods["blue", "agent-n1"].running = False
        async with here.client() as client:
            found = await inventory(client)
            assert (ways(found), found["failures"]) == ({"n1": "exec"}, [])
        async with here.client("--namespace", "blue") as client:
            found = await inventory(client)
            assert [each["node"] for each in found["failures"]] == ["n1"]


def login(here: Laptop, folder: Path) -> Path:
    """Let the program log in that prints this file's token, and fails where there is none. Each
    run adds a character to `runs` beside it."""
    file = folder / "session"
    body = (
        "import json, sys\n"
        f"open({str(folder / 'runs')!r}, 'a').write('x')\n"
        f"token = open({str(file)!r}).read()\n"
        "print(json.dumps({'status': {'token': token}}))\n"
    )
    here.users["east"] = program(folder, body)
    return file


async def test_a_program_for_credentials_is_run_once_for_all_that_needs_them(
    tmp_path: Path,
) -> None:
    async with laptop(tmp_path, east=["gpu"]) as here:
        login(here, tmp_path).write_text(TOKEN)
        async with here.client() as client:
            assert ways(await inventory(client)) == {"n1": "exec"}
            checked = await client.call_tool("check_connectivity", {})
            assert not checked.is_error
    assert (tmp_path / "runs").read_text() == "x"


async def test_a_login_that_has_expired_is_told_and_once_renewed_all_goes_on(
    tmp_path: Path,
) -> None:
    async with laptop(tmp_path, east=["gpu"]) as here:
        session = login(here, tmp_path)
        east, agent = here.clusters["east"].api, here.clusters["east"].pods["gpu", "agent-n1"]
        async with here.client("--context", "east") as client:
            # It has started, and its client shows why there is nothing to be had.
            refused = await ask(client)
            assert refused.is_error
            assert text(refused) == (
                "No agents are known: Kubernetes, all namespaces: no usable Kubernetes "
                f"credentials: the program for credentials {sys.executable!r} failed with exit "
                "status 1 (context east); run `kubectl --context east version` in a terminal, "
                "which shows what it says and lets you log in"
            )
            warnings = [line for line in here.log().splitlines() if "WARNING" in line]
            assert len(warnings) == 1
            assert "kubectl --context east version" in warnings[0]

            session.write_text(TOKEN)
            with anyio.fail_after(60):
                while (result := await ask(client)).is_error:
                    await anyio.sleep(0.1)  # a login has no event to wait for
            assert ways(result.structured_content) == {"n1": "exec"}

            # The token expires while the gateway runs: the program is asked for the next one, for
            # the watches and for a new stream.
            session.write_text("fresh")
            east.tokens = {"fresh"}
            (relay,) = agent.processes
            relay.kill()
            assert ways(await inventory(client)) == {"n1": "exec"}
            assert len(agent.processes) == 2
            east.end_watches()
            await east.apply(node("n2"))
            with anyio.fail_after(60):
                # Each watch has its own pause behind it: the last to log in clears the problem.
                while (
                    not (found := await inventory(client))["failures"]
                    or found["coverage"]["discovery_problem"] is not None
                ):
                    await anyio.sleep(0.1)  # as above
            assert [each["node"] for each in found["failures"]] == ["n2"]

            # The login expires while it runs: what is known stays, and says what to run.
            session.unlink()
            east.tokens = set()
            agent.processes[-1].kill()
            found = await inventory(client)
            failed = {each["node"]: each for each in found["failures"]}
            assert set(failed) == {"n1", "n2"}
            assert failed["n1"]["reason"] == "denied"
            assert "(context east)" in failed["n1"]["message"]
        assert "Traceback" not in here.log()
        assert TOKEN not in here.log()


async def test_a_token_that_is_refused_says_what_to_run(tmp_path: Path) -> None:
    async with laptop(tmp_path, east=[]) as here:
        here.clusters["east"].api.tokens.clear()
        async with here.client() as client:
            refused = text(await ask(client))
    assert refused == (
        "No agents are known: Kubernetes, all namespaces: cannot watch EndpointSlices: HTTP 401 "
        "Unauthorized: Unauthorized; the credentials have expired or are not accepted: run "
        "`kubectl version` in a terminal"
    )

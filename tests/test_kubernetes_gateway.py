"""The whole program on a cluster: agent processes, and a gateway that a kubeconfig is all for."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from mcp_gpu.cli import main
from mcp_gpu.fleet.discovery import DiscoveryError
from mcp_gpu.gateway import make_discovery, make_transports
from mcp_gpu.settings.base import SettingError
from mcp_gpu.settings.fleet import GatewaySettings
from support.cluster import PROGRAM, Running, cluster, served_with, start_all, trusting
from support.kubeapi.credentials import Authority, write_kubeconfig
from support.kubeapi.documents import endpoint, endpoint_slice, node, pod, running, waiting
from support.kubeapi.pods import Pod
from support.kubeapi.server import TOKEN, FakeApiServer
from support.kubeapi.streams import stream_routes
from support.ports import free_ports
from support.wire import request

NODES = ("a", "b")
FLEET = "seed = 7\n" + "".join(f'[[nodes]]\nname = "{n}"\nprofile = "h100"\n' for n in NODES)

PATHS = ["--transports", "http,command"]
"""Without exec, which has pods to start something in."""


@dataclass
class Fleet:
    api: FakeApiServer
    agents: Mapping[str, Running]
    gateway: Running

    async def ask(self, tool: str = "get_gpu_inventory", **arguments: Any) -> Mapping[str, Any]:
        call = {"name": tool, "arguments": arguments}
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
            answer = await client.post(f"{self.gateway.url}/mcp", json=request)
        result: Mapping[str, Any] = answer.json()["result"]
        return result

    async def inventory(self, **arguments: Any) -> Mapping[str, Any]:
        result = await self.ask(**arguments)
        assert not result.get("isError"), result
        found: Mapping[str, Any] = result["structuredContent"]
        return found


@asynccontextmanager
async def fleet(folder: Path) -> AsyncIterator[Fleet]:
    """Agents on the nodes a and b, as the API server knows them, and a gateway."""
    fleet_file = folder / "fleet.toml"
    fleet_file.write_text(FLEET)
    *ports, gateway_port = free_ports(len(NODES) + 1)
    agents = {}
    async with FakeApiServer() as api, AsyncExitStack() as stack:
        for name, port in zip(NODES, ports, strict=True):
            arguments = ["agent", "--node-name", name, "--simulate", str(fleet_file)]
            arguments += ["--pod-name", f"agent-{name}", "--pod-uid", f"uid-{name}"]
            arguments += ["--socket", str(folder / name / "agent.sock"), "--http-port", str(port)]
            agents[name] = Running(arguments, port, folder / f"{name}.log")
            here = endpoint("127.0.0.1", name)
            await api.apply(endpoint_slice(f"slice-{name}", [here], port=port))
            await api.apply(pod(name, state=running(), ready=True))
            await api.apply(node(name))
        arguments = ["gateway", "--kubeconfig", str(api.kubeconfig), *PATHS]
        arguments += ["--http-port", str(gateway_port)]
        gateway = Running(arguments, gateway_port, folder / "gateway.log")
        await start_all(stack, [*agents.values(), gateway])
        yield Fleet(api, agents, gateway)


def ways(found: Mapping[str, Any]) -> dict[str, str]:
    return {node["node"]: node["via"] for node in found["nodes"]}


def failures(found: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {each["node"]: (each["reason"], each["message"]) for each in found["failures"]}


async def status(api: FakeApiServer, *flags: str) -> tuple[int, str, str]:
    command = [*PROGRAM, "status", "--kubeconfig", str(api.kubeconfig), *PATHS, *flags]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MCP_GPU_")}
    environment = inherited | {"COLUMNS": "200"}
    with anyio.fail_after(60):
        done = await anyio.run_process(command, check=False, env=environment)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_a_kubeconfig_is_all_that_a_gateway_needs(tmp_path: Path) -> None:
    async with fleet(tmp_path) as here:
        found = await here.inventory()
        assert ways(found) == {"a": "http", "b": "http"}
        coverage = found["coverage"]
        assert (coverage["nodes_known"], coverage["nodes_answered"]) == (2, 2)
        assert (coverage["discovery"], coverage["discovery_problem"]) == (
            "Kubernetes, all namespaces",
            None,
        )

        # A node that no agent came up on, and one where it does not start.
        await here.api.apply(node("c", taints=[{"key": "dedicated", "effect": "NoSchedule"}]))
        await here.api.apply(pod("d", phase="Pending", state=waiting("ImagePullBackOff", "no x:1")))
        with anyio.fail_after(30):
            while set(failures(found := await here.inventory())) != {"c", "d"}:
                pass
        assert ways(found) == {"a": "http", "b": "http"}
        assert failures(found) == {
            "c": (
                "not_running",
                "the node has NVIDIA GPUs and no agent pod; taints that agents may not tolerate: "
                "dedicated:NoSchedule",
            ),
            "d": (
                "not_running",
                "agent pod agent-d cannot start (ImagePullBackOff): no x:1",
            ),
        }
        assert (found["coverage"]["nodes_known"], found["coverage"]["nodes_asked"]) == (4, 4)
        assert found["failures_by_reason"] == {"not_running": 2}
        assert set(failures(await here.inventory(nodes=["a", "d"]))) == {"d"}

        page = (await here.ask("describe_gpu_node", node="a"))["structuredContent"]
        assert (page["agent"]["node"], page["kubernetes"]["name"]) == ("a", "a")
        assert (page["verdict"], page["disagreements"], page["gaps"]) == ("healthy", [], [])
        assert {each["source"]: each["count"] for each in page["counts"]}["pci_bus"] == 8
        absent = (await here.ask("describe_gpu_node", node="c"))["structuredContent"]
        assert absent["reach"]["failure"]["reason"] == "not_running"
        assert absent["kubernetes"]["taints"] == ["dedicated:NoSchedule"]

        refused = await here.ask(nodes=["z"])
        assert 'Unknown nodes: "z". Known: a, b, c, d.' in refused["content"][0]["text"]

        code, shown, said = await status(here.api)
        assert (code, said) == (1, "")
        assert "2 of 4 nodes answered: 16 GPUs" in shown
        assert "x d: not_running: agent pod agent-d cannot start (ImagePullBackOff)" in shown
        assert await here.gateway.end() == 0
        assert "Traceback" not in here.gateway.log.read_text()


async def test_agents_that_http_does_not_reach_are_reached_through_the_api_server(
    tmp_path: Path,
) -> None:
    fleet_file = tmp_path / "fleet.toml"
    fleet_file.write_text(FLEET)
    token_file = tmp_path / "token"
    token_file.write_text("s3cret")
    authority = Authority(tmp_path)
    *ports, dead, gateway_port = free_ports(len(NODES) + 2)
    # The port that is named is dead on the pod network and for b on its loopback as well.
    pods = {
        ("gpu", f"agent-{name}"): Pod(
            env={"MCP_GPU_SOCKET": str(tmp_path / name / "agent.sock")},
            ports={dead: port} if name == "a" else {},
        )
        for name, port in zip(NODES, ports, strict=True)
    }
    async with FakeApiServer(routes=stream_routes(pods)) as api, AsyncExitStack() as stack:
        started = []
        for name, port in zip(NODES, ports, strict=True):
            arguments = ["agent", "--node-name", name, "--simulate", str(fleet_file)]
            arguments += ["--pod-name", f"agent-{name}", "--pod-uid", f"uid-{name}"]
            arguments += ["--socket", str(tmp_path / name / "agent.sock")]
            arguments += ["--http-port", str(port), "--token-file", str(token_file)]
            arguments += served_with(authority)
            log = tmp_path / f"{name}.log"
            started.append(Running(arguments, port, log, authority=authority))
            here = endpoint("127.0.0.1", name)
            await api.apply(endpoint_slice(f"slice-{name}", [here], port=dead))
            await api.apply(pod(name, state=running(), ready=True))
            await api.apply(node(name))
        arguments = ["gateway", "--kubeconfig", str(api.kubeconfig)]
        arguments += ["--http-port", str(gateway_port), "--agent-token-file", str(token_file)]
        arguments += trusting(authority)
        gateway = Running(arguments, gateway_port, tmp_path / "gateway.log")
        await start_all(stack, [*started, gateway])
        there = Fleet(api, {}, gateway)
        assert ways(await there.inventory()) == {"a": "portforward", "b": "exec"}
        assert [len(each.processes) for each in pods.values()] == [0, 1]
        assert await gateway.end() == 0
        (relay,) = pods["gpu", "agent-b"].processes
        with anyio.fail_after(30):
            await relay.wait()


async def test_a_program_for_credentials_reads_nothing_of_a_client(tmp_path: Path) -> None:
    """A gateway on standard input starts it before it serves; it would take the first request."""
    program = tmp_path / "credentials.py"
    program.write_text(
        "import json, sys\n"
        "assert sys.stdin.read() == ''\n"
        f"status = {{'token': {TOKEN!r}}}\n"
        "kind = {'apiVersion': 'client.authentication.k8s.io/v1', 'kind': 'ExecCredential'}\n"
        "print(json.dumps({**kind, 'status': status}))\n"
    )
    async with FakeApiServer() as api:
        await api.apply(endpoint_slice("slice-a", [endpoint("127.0.0.1", "a")], port=1))
        config = json.loads(api.kubeconfig.read_text())
        config["users"][0]["user"] = {
            "exec": {
                "apiVersion": "client.authentication.k8s.io/v1",
                "command": sys.executable,
                "args": [str(program)],
            }
        }
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(config))
        command = [*PROGRAM, "gateway", "--stdio", "--kubeconfig", str(kubeconfig), *PATHS]
        async with await anyio.open_process(command, stderr=None) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.send(json.dumps(request("tools/list")).encode() + b"\n")
            answer = b""
            with anyio.fail_after(60):
                while not answer.endswith(b"\n"):
                    answer += await process.stdout.receive()
            await process.stdin.aclose()
            assert await process.wait() == 0
    assert "get_gpu_inventory" in answer.decode()
    assert api.count("watch", "endpointslices") == 1


async def test_a_gateway_outlives_its_api_server_and_says_so(tmp_path: Path) -> None:
    async with fleet(tmp_path) as here:
        await here.inventory()
        await here.api.stop()
        with anyio.fail_after(30):
            while not (found := await here.inventory())["coverage"]["discovery_problem"]:
                pass
        assert "cannot reach the API server" in found["coverage"]["discovery_problem"]
        assert ways(found) == {"a": "http", "b": "http"}
        async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
            assert (await client.get(f"{here.gateway.url}/readyz")).status_code == 200
        await here.agents["b"].end(signal.SIGKILL)
        broken = pod("b", state=waiting("CrashLoopBackOff"), restarts=1)
        await here.api.apply(broken)
        await here.api.start()
        with anyio.fail_after(30):
            while (found := await here.inventory())["coverage"]["discovery_problem"]:
                pass
        assert ways(found) == {"a": "http"}
        (failure,) = found["failures"]
        assert failure["reason"] == "not_running"
        assert "agent pod agent-b does not stay up (CrashLoopBackOff" in failure["message"]
        assert failure["attempts"][0]["via"] == "http"


async def test_a_gateway_that_may_not_watch_starts_and_is_not_ready(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with FakeApiServer() as api, AsyncExitStack() as stack:
        api.deny("watch", "endpointslices")
        arguments = ["gateway", "--kubeconfig", str(api.kubeconfig), *PATHS]
        gateway = Running([*arguments, "--http-port", str(port)], port, tmp_path / "gateway.log")

        async def permit() -> None:
            async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
                while True:
                    try:
                        answer = await client.get(f"{gateway.url}/readyz")
                        break
                    except httpx2.TransportError:
                        await anyio.sleep(0.05)  # a port has no event to wait for
            assert answer.status_code == 503
            assert "grant list and watch" in answer.text
            api.allow("watch", "endpointslices")

        async with anyio.create_task_group() as group:
            group.start_soon(permit)
            await start_all(stack, [gateway])
        code, _, said = await status(api)
        assert code == 2
        assert "no agents are known: Kubernetes, all namespaces: no agent there matches" in said


async def test_only_a_gateway_on_a_cluster_loads_a_kubernetes_client(tmp_path: Path) -> None:
    def loaded(gateway: Running) -> bool:
        assert gateway.process is not None
        maps = Path(f"/proc/{gateway.process.pid}/maps")
        return "/aiohttp/" in maps.read_text(encoding="utf-8")

    async with fleet(tmp_path) as here:
        assert loaded(here.gateway)
    async with cluster(tmp_path, FLEET, *PATHS) as named:
        assert ways(await named.ask()) == {"a": "http", "b": "http"}
        assert not loaded(named.gateway)


def settings(monkeypatch: pytest.MonkeyPatch, home: Path, **fields: Any) -> GatewaySettings:
    """Settings of a machine on which nobody has used Kubernetes, but for `fields`."""
    for variable in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return GatewaySettings(**fields)


def test_without_agents_and_without_a_cluster_all_ways_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings(monkeypatch, tmp_path)
    assert main(["status", *PATHS]) == 2
    said = capfd.readouterr().err
    for way in ("--agents", "--agents-file", "--agents-dns", "--kubeconfig"):
        assert way in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("place", ["flag", "variable", "home"])
async def test_a_kubeconfig_in_its_usual_places_makes_kubernetes_the_default(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / ".kube" / "config"
    if place != "home":
        kubeconfig = tmp_path / "elsewhere"
    kubeconfig.parent.mkdir(exist_ok=True)
    kubeconfig.write_text("{}")
    fields = {"kubeconfig": str(kubeconfig)} if place == "flag" else {}
    chosen = settings(monkeypatch, tmp_path, **fields)
    if place == "variable":
        monkeypatch.setenv("KUBECONFIG", f"/nowhere{os.pathsep}{kubeconfig}")
    assert type(make_discovery(chosen)).__name__ == "KubernetesDiscovery"


def test_agents_that_are_named_are_not_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("{}")
    chosen = settings(monkeypatch, tmp_path, kubeconfig=str(kubeconfig), agents="a=10.0.0.1")
    assert [target.node for target in make_discovery(chosen).table().targets] == ["a"]


def test_a_kubeconfig_that_is_not_there_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("none", "~/none"):
        chosen = settings(monkeypatch, tmp_path, kubeconfig=given)
        with pytest.raises(SettingError, match=f"--kubeconfig: no file {tmp_path}/none"):
            make_discovery(chosen)


def test_files_may_be_named_from_the_home_where_no_shell_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = settings(monkeypatch, tmp_path, agent_token_file="~/token", agents_file="~/agents")
    assert chosen.agent_token_file == tmp_path / "token"
    assert chosen.agents_file == tmp_path / "agents"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("east,prod,west", "the kubeconfig has no context prod; it has east, west"),
        ("prod", "the kubeconfig has no context prod; it has east, west"),
        ("east west east", "east is given twice"),
    ],
)
def test_contexts_that_make_no_sense_are_refused_at_once(
    given: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings(monkeypatch, tmp_path)
    config = write_kubeconfig(tmp_path / "config", "https://x", context="east")
    document = json.loads(config.read_text())
    document["contexts"].append(document["contexts"][0] | {"name": "west"})
    config.write_text(json.dumps(document))
    assert main(["status", "--kubeconfig", str(config), "--context", given]) == 2
    assert capfd.readouterr().err == f"mcp-gpu status: --context: {words}\n"


async def test_a_kubeconfig_that_cannot_be_read_is_told_by_answers_not_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("hello")
    kubeconfig = str(tmp_path / "config")
    chosen = settings(monkeypatch, tmp_path, kubeconfig=kubeconfig, context=("a", "b"))
    with pytest.raises(DiscoveryError, match=r"a: Kubernetes, all .*; b: Kubernetes, all "):
        make_discovery(chosen).table()


def test_by_default_http_comes_first_then_the_api_server_then_commands() -> None:
    """The names of the paths, as settings and answers have them."""
    transports: Iterable[Any] = make_transports(GatewaySettings(agents="a"))
    names = ("http", "portforward", "exec", "command")
    assert tuple(transport.name for transport in transports) == names
    assert GatewaySettings().transports == names


def test_each_path_is_told_what_it_needs_of_the_settings(tmp_path: Path) -> None:
    files = {"agent_token_file": tmp_path / "token", "agent_ca_file": tmp_path / "ca.pem"}
    named = {"agent_scheme": "https", "agent_server_name": "agents.gpu.svc"}
    chosen = GatewaySettings(
        agents="a", kubeconfig="~/other", context="prod", max_streams=7, **named, **files
    )
    http, forward, exec_, command = (getattr(t, "settings", None) for t in make_transports(chosen))
    for by_port in (http, forward):
        assert (by_port.scheme, by_port.token_file, by_port.ca_file, by_port.server_name) == (
            "https",
            str(tmp_path / "token"),
            str(tmp_path / "ca.pem"),
            "agents.gpu.svc",
        )
    with pytest.raises(SettingError, match="--agent-token-file needs --agent-scheme https"):
        make_transports(GatewaySettings(agents="a", agent_token_file=tmp_path / "token"))
    for through_api in (forward, exec_):
        assert (through_api.kubeconfig, through_api.contexts) == ("~/other", ("prod",))
    assert (exec_.max_open, command.max_open) == (7, 7)

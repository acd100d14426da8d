"""The whole program: agent processes, a gateway process, faults while it runs."""

from __future__ import annotations

import json
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
from mcp import Client

from support.cluster import Running, ask, clean_up, cluster
from support.kubeapi.streams import Pod, StreamsServer
from support.peer import until
from support.ports import free_ports

FLEET = """
seed = 7
[[nodes]]
name = "a"
profile = "h100"
[[nodes]]
name = "b"
profile = "t4"
[[nodes]]
name = "c"
profile = "gb200"
[[nodes]]
name = "d"
profile = "l40s"
"""


def ways(found: dict[str, Any]) -> dict[str, str]:
    return {node["node"]: node["via"] for node in found["nodes"]}


def reasons(found: dict[str, Any]) -> dict[str, str]:
    return {failure["node"]: failure["reason"] for failure in found["failures"]}


async def test_a_fleet_with_a_stopped_and_a_killed_agent_answers_and_becomes_whole_again(
    tmp_path: Path,
) -> None:
    flags = ["--node-deadline-seconds", "3", "--call-deadline-seconds", "10"]
    async with cluster(tmp_path, FLEET, *flags) as fleet:
        assert ways(await fleet.ask()) == dict.fromkeys("abcd", "http")
        fleet.agents["b"].send(signal.SIGSTOP)
        fleet.agents["c"].send(signal.SIGSTOP)

        async def progress(done: float, total: float | None, message: str | None) -> None:
            # In the middle of the fan-out: a and d have answered, b and c hang.
            if done == 2:
                fleet.agents["c"].send(signal.SIGKILL)

        with anyio.fail_after(30):
            async with Client(f"{fleet.gateway.url}/mcp", mode="2026-07-28") as client:
                answer = await client.call_tool("get_gpu_inventory", {}, progress_callback=progress)
        found = answer.structured_content
        assert found is not None
        assert ways(found) == dict.fromkeys("ad", "http")
        assert reasons(found) == {"b": "timeout", "c": "not_running"}
        (killed,) = [failure for failure in found["failures"] if failure["node"] == "c"]
        # Broken under the call; a new connection is refused, or reset where the dying process still
        # listened; and there is no agent where the stream ends.
        first, again, stream = [attempt["reason"] for attempt in killed["attempts"]]
        assert (first, stream) == ("broken", "not_running")
        assert again in {"unreachable", "broken"}

        fleet.agents["b"].send(signal.SIGCONT)
        await fleet.agents["c"].start()
        with anyio.fail_after(30):  # agents that were dead are tried again every few seconds
            while (found := await fleet.ask())["failures"]:
                pass
        assert set(ways(found)) == set("abcd")


async def test_a_hanging_driver_leaves_the_agent_answering_and_able_to_end(tmp_path: Path) -> None:
    async with cluster(tmp_path, FLEET) as fleet:
        agent = fleet.agents["a"]
        before = (await ask(agent.url))["gpus"]
        hang = '[[nodes.faults]]\nkind = "hang"\nseconds = 60\ncall = "*"\n'
        fleet.fleet_file.write_text(
            FLEET.replace('profile = "h100"\n', f'profile = "h100"\n{hang}')
        )
        with anyio.fail_after(30):
            while not (found := await ask(agent.url))["message"]:
                await anyio.sleep(0.2)  # until the collector is in its next call
        assert "NVML has not answered for" in found["message"]
        assert found["message"] in found["attention"][0]
        assert found["age_seconds"] > 2
        assert [gpu["uuid"] for gpu in found["gpus"]] == [gpu["uuid"] for gpu in before]
        (node,) = (await fleet.ask(nodes=["a"]))["nodes"]
        assert "NVML has not answered for" in node["attention"][0]
        assert await agent.end() == 0


async def test_roles_end_cleanly_on_sigterm_and_sigint(tmp_path: Path) -> None:
    async with cluster(tmp_path, FLEET) as fleet:
        await fleet.ask()
        assert await fleet.gateway.end(signal.SIGTERM) == 0
        assert await fleet.agents["a"].end(signal.SIGTERM) == 0
        assert await fleet.agents["b"].end(signal.SIGINT) == 0
        for running in (fleet.gateway, fleet.agents["a"], fleet.agents["b"]):
            assert "Traceback" not in running.log.read_text()


async def test_a_gateway_reaches_its_fleet_by_exec_alone_and_leaves_no_relay(
    tmp_path: Path,
) -> None:
    fleet_file = tmp_path / "fleet.toml"
    fleet_file.write_text(FLEET)
    *ports, gateway_port = free_ports(5)
    pods = {
        ("gpu", f"agent-{node}"): Pod(env={"MCP_GPU_SOCKET": str(tmp_path / node / "agent.sock")})
        for node in "abcd"
    }
    agents_file = tmp_path / "agents.toml"
    agents_file.write_text(
        "".join(
            f'[[agents]]\nnode = "{node}"\nnamespace = "gpu"\npod = "agent-{node}"\n'
            for node in "abcd"
        )
    )
    relays = [pod.processes for pod in pods.values()]
    async with StreamsServer(pods) as server, AsyncExitStack() as stack:
        options = {"exec": {"kubeconfig": str(server.kubeconfig(tmp_path / "kubeconfig"))}}
        gateway_flags = ["--agents-file", str(agents_file), "--http-port", str(gateway_port)]
        gateway_flags += ["--transports", "exec", "--transport-options", json.dumps(options)]
        gateway = Running(["gateway", *gateway_flags], gateway_port, tmp_path / "gateway.log")
        async with anyio.create_task_group() as starting:
            for node, port in zip("abcd", ports, strict=True):
                arguments = ["agent", "--node-name", node, "--simulate", str(fleet_file)]
                arguments += ["--http-port", str(port)]
                arguments += ["--socket", str(tmp_path / node / "agent.sock")]
                agent = Running(arguments, port, tmp_path / f"{node}.log")
                stack.push_async_callback(clean_up, agent)
                starting.start_soon(agent.start)
            stack.push_async_callback(clean_up, gateway)
            starting.start_soon(gateway.start)

        found = await ask(gateway.url)
        assert ways(found) == dict.fromkeys("abcd", "exec")
        assert found["failures"] == []
        assert [len(started) for started in relays] == [1, 1, 1, 1]

        relays[0][0].kill()
        del pods["gpu", "agent-b"]
        server.denied.add(("create", "pods/exec"))
        relays[2][0].kill()
        await until(lambda: relays[0][0].returncode and relays[2][0].returncode is not None)
        found = await ask(gateway.url)
        assert reasons(found) == {"a": "denied", "c": "denied"}
        asked = len(server.requests)
        for _ in range(3):
            found = await ask(gateway.url)
            assert ways(found) == dict.fromkeys("bd", "exec")
            assert reasons(found) == {"a": "denied", "c": "denied"}
        assert len(server.requests) == asked  # a no is taken for an answer
        server.denied.clear()
        found = await ask(gateway.url)  # what RBAC refuses is not asked for again for a minute
        assert reasons(found) == {"a": "denied", "c": "denied"}
        assert "s ago; tried again in " in found["failures"][0]["message"]

        assert await gateway.end(signal.SIGKILL) == -signal.SIGKILL
        await until(lambda: all(relay.returncode is not None for one in relays for relay in one))
        await gateway.start()
        assert ways(await ask(gateway.url)) == dict.fromkeys("acd", "exec")
        assert await gateway.end() == 0
        await until(lambda: all(relay.returncode is not None for one in relays for relay in one))

"""`python -m cluster.latency`: what each path costs on the real cluster, cold and warm.

The measuring process runs in the network of the gateway's pod, so that it is where a gateway is.
Variants take turns, so that what else the machine does hits all alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import anyio

from bench.figures import Section, interleaved, medians
from cluster import faults
from cluster.cluster import at_hand
from cluster.plan import Plan
from cluster.pods import Pod
from cluster.release import Release, image, installed
from mcp_gpu.gateway import open_fleet
from mcp_gpu.settings import FleetSettings
from mcp_gpu.tools.inventory import NAME, NodeInventory
from transports.base import Target, Transport
from transports.exec import ExecSettings, ExecTransport
from transports.http import HttpTransport
from transports.session import call_tool

ROUNDS = 50
ROUTERS = 9

RUN_SECONDS = 600.0
"""Bound for all that is measured."""

CALL_SECONDS = 20.0

WARM_EXEC_OVER_HTTP_MS = 10.0
COLD_EXEC_OVER_KUBECTL_MS = 60.0
FIRST_CALL_MS = 1000.0
"""The limits of acceptance."""


async def measure(kubeconfig: str, kubectl: Sequence[str], agents: Sequence[Target]) -> bool:
    """Print the figures. The first agent is on this node. True if all limits were kept."""
    sections = []
    for place, target in zip(("same node", "other node"), agents, strict=True):
        sections.append(await _paths(place, target, kubeconfig, kubectl))
        print(f"\n{sections[-1]}", flush=True)
    healthy = Section(f"the whole cluster, by a router of its own each of {ROUTERS} times")
    for transports in (("http",), ("exec",), ("http", "exec")):
        await _fleet(healthy, transports, kubeconfig, agents[0], FIRST_CALL_MS)
    print(f"\n{healthy}", flush=True)
    return not any(figure.missed for section in [*sections, healthy] for figure in section.figures)


async def measure_broken(kubeconfig: str, agent: Target) -> None:
    """Print what is paid once where HTTP to one of the nodes is dead."""
    section = Section("the same with the source/destination check on, which cuts one node off")
    await _fleet(section, ("http", "exec"), kubeconfig, agent, None)
    print(f"\n{section}", flush=True)


async def _paths(place: str, target: Target, kubeconfig: str, kubectl: Sequence[str]) -> Section:
    section = Section(f"{place}, median of {ROUNDS} each")
    url = f"http://{target.addresses[0]}:{target.port}/healthz"
    curl = ["curl", "-s", "--noproxy", "*", "-m", "10", "-o", "/dev/null", url]
    true = [*kubectl, "-n", target.namespace, "exec", target.pod, "--", "true"]

    def exec_() -> Transport:
        return ExecTransport(ExecSettings(kubeconfig=kubeconfig))

    async with HttpTransport() as warm_http, exec_() as warm_exec:
        await warm_exec.probe(target)
        taken = await interleaved(
            {
                "http warm": partial(_call, warm_http, target),
                "exec warm": partial(_call, warm_exec, target),
                "http cold": partial(_cold, HttpTransport, target),
                "exec cold": partial(_cold, exec_, target),
                "kubectl": partial(_run, true),
                "curl": partial(_run, curl),
            },
            ROUNDS,
        )
    middle = medians(taken)
    section.add("HTTP, warm call", middle["http warm"], "ms")
    section.add("exec, warm call", middle["exec warm"], "ms")
    extra = middle["exec warm"] - middle["http warm"]
    section.add("exec over HTTP, warm", extra, "ms", WARM_EXEC_OVER_HTTP_MS)
    section.add("HTTP, cold: connect, probe, call", middle["http cold"], "ms")
    section.add("exec, cold: connect, open, probe, call", middle["exec cold"], "ms")
    section.add("`kubectl exec POD -- true`", middle["kubectl"], "ms")
    extra = middle["exec cold"] - middle["kubectl"]
    section.add("exec, cold, over kubectl", extra, "ms", COLD_EXEC_OVER_KUBECTL_MS)
    section.add("exec cold / kubectl", middle["exec cold"] / middle["kubectl"], "x")
    section.add("bare curl of /healthz at the pod IP", middle["curl"], "ms")
    section.add("HTTP warm / curl", middle["http warm"] / middle["curl"], "x")
    return section


async def _call(transport: Transport, target: Target) -> None:
    result = await call_tool(
        transport, target, NAME, {"detail": "summary"}, timeout_seconds=CALL_SECONDS
    )
    assert not result.is_error


async def _cold(make: Callable[[], Transport], target: Target) -> None:
    async with make() as transport:
        await transport.probe(target)
        await _call(transport, target)


async def _run(command: Sequence[str]) -> None:
    await anyio.run_process(command, stderr=None)


async def _fleet(
    section: Section,
    transports: tuple[str, ...],
    kubeconfig: str,
    agent: Target,
    first_ms: float | None,
) -> None:
    first, second = [], []
    for _ in range(ROUTERS):
        settings = FleetSettings(
            kubeconfig=kubeconfig, namespace=agent.namespace, transports=transports
        )
        async with open_fleet(settings) as fleet:
            for kept in (first, second):
                begun = time.perf_counter()
                found = await fleet.router.fan_out(NAME, {"detail": "summary"}, NodeInventory)
                kept.append((time.perf_counter() - begun) * 1000)
                assert not found.failures, found.failures
    name = ", ".join(transports)
    middle = medians({"first": first, "second": second})
    section.add(f"{name}: first call, median", middle["first"], "ms")
    section.add(f"{name}: first call, slowest", max(first), "ms", first_ms)
    section.add(f"{name}: second call, median", middle["second"], "ms")


def _inside(release: Release) -> int:
    """Measure in the network of the gateway's pod; the exit status."""
    gateway, agents = release.gateway(), release.agents()
    near = next(agent for agent in agents if agent.node.name == gateway.node.name)
    far = next(agent for agent in agents if agent.node.name == "n2")
    kubectl = release.cluster.command("kubectl")
    told = [str(release.cluster.kubeconfig), kubectl, [_told(agent) for agent in (near, far)]]

    def run(scenario: str) -> int:
        command = [*gateway.wires, sys.executable, "-m", "cluster.latency"]
        command += [scenario, json.dumps(told)]
        return subprocess.run(command, timeout=RUN_SECONDS).returncode

    status = run("healthy")
    with faults.source_destination_check(release.cluster):
        return run("broken") or status


def _told(agent: Pod) -> dict[str, object]:
    return {
        "node": agent.node.name,
        "namespace": agent.namespace,
        "pod": agent.name,
        "uid": agent.uid,
        "container": "agent",
        "addresses": [agent.address],
    }


def main(arguments: Sequence[str]) -> int:
    """Without arguments bring up what is needed; with two be the measuring process."""
    if arguments:
        scenario, told = arguments
        kubeconfig, kubectl, agents = json.loads(told)
        targets = [Target(**{**a, "addresses": tuple(a["addresses"])}) for a in agents]
        if scenario == "healthy":
            return 0 if anyio.run(measure, kubeconfig, kubectl, targets) else 1
        anyio.run(measure_broken, kubeconfig, targets[0])
        return 0
    with ExitStack() as stack:
        cluster = stack.enter_context(at_hand(Plan.chosen()))
        n1 = "gateway.nodeSelector.kubernetes\\.io/hostname=n1"
        release = stack.enter_context(
            installed(cluster, image(cluster), "latency", "latency", n1, "auth.mode=none")
        )
        return _inside(release)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

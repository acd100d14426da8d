"""`python -m cluster.latency`: what each path costs on the real cluster, cold and warm.

The measuring process runs in the network of the gateway's pod, so that it is where a gateway is.
Variants take turns, so that what else the machine does hits all alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from functools import partial

import anyio

from bench.figures import Section, Variant, interleaved, medians
from cluster import faults
from cluster.cluster import at_hand
from cluster.images import busybox_image
from cluster.plan import Plan
from cluster.pods import Pod, pods
from cluster.probes import SELECTOR, probes
from cluster.release import CALL, CALL_SECONDS, Release, image, installed, ways
from mcp_gpu.gateway import make_transports, open_fleet
from mcp_gpu.settings.fleet import FleetSettings
from mcp_gpu.tools.inventory import NAME, NodeInventory
from transports.base import Target, Transport
from transports.registry import known
from transports.session import call_tool

PATHS = tuple(name for name in ("http", "portforward", "exec") if name in known())
"""The preferred one first."""

ROUNDS = 50
ROUTERS = 9
RESTARTS = 5

RUN_SECONDS = 600.0
"""Bound for all that the measuring process does."""

WARM_OVER_HTTP_MS = 10.0
COLD_OVER_KUBECTL_MS = 60.0
"""Limits of acceptance for each path through the API server."""

FIRST_CALL_MS = 1000.0
"""Limit of acceptance for a healthy cluster."""

FIRST_OVER_FALLBACK = 1.3
SECOND_OVER_FALLBACK = 1.2
HEAD_START_MS = 150.0
"""Limits of acceptance where the best path is dead: times what a fallback path takes alone, which
begins by so much later."""

VALUES = ("gateway.nodeSelector.kubernetes\\.io/hostname=n1", "auth.mode=none")


BESIDE = "latency-probes"
"""Namespace of pods with a program that does nothing, which agents' image has not."""


async def measure(
    kubeconfig: str, kubectl: Sequence[str], agents: Sequence[Target], beside: Sequence[str]
) -> bool:
    """Print the figures. The first agent is on this node; `beside` names a pod on the node of each.
    True if all limits were kept."""
    sections = []
    places = zip(("same node", "other node"), agents, beside, strict=True)
    for place, target, neighbour in places:
        true = [*kubectl, "-n", BESIDE, "exec", neighbour, "--", "true"]
        sections.append(await _paths(place, target, kubeconfig, true))
        print(f"\n{sections[-1]}", flush=True)
    healthy = Section(f"the whole cluster, by a router of its own each of {ROUTERS} times")
    for transports in (*((path,) for path in PATHS), PATHS):
        await _fleet(healthy, transports, kubeconfig, agents[0], FIRST_CALL_MS)
    print(f"\n{healthy}", flush=True)
    return not any(figure.missed for section in [*sections, healthy] for figure in section.figures)


async def measure_broken(kubeconfig: str, agent: Target) -> None:
    """Print what is paid once where HTTP to one of the nodes is dead."""
    section = Section("the same with the source/destination check on, which cuts one node off")
    await _fleet(section, PATHS, kubeconfig, agent, None)
    print(f"\n{section}", flush=True)


async def _paths(place: str, target: Target, kubeconfig: str, true: Sequence[str]) -> Section:
    section = Section(f"{place}, median of {ROUNDS} each")
    url = f"http://{target.addresses[0]}:{target.port}/healthz"
    curl = ["curl", "-s", "--noproxy", "*", "-m", "10", "-o", "/dev/null", url]

    variants: dict[str, Variant] = {"kubectl": partial(_run, true), "curl": partial(_run, curl)}
    async with AsyncExitStack() as stack:
        for path in PATHS:
            settings = FleetSettings(kubeconfig=kubeconfig, transports=(path,))
            warm = await stack.enter_async_context(make_transports(settings)[0])
            await warm.probe(target)
            variants[f"{path} warm"] = partial(_call, warm, target)
            # Looking them up by name takes milliseconds that are no part of a call.
            unused = [make_transports(settings)[0] for _ in range(ROUNDS + 1)]
            variants[f"{path} cold"] = partial(_cold, iter(unused), target)
        middle = medians(await interleaved(variants, ROUNDS))
    for path in PATHS:
        section.add(f"{path}, warm call", middle[f"{path} warm"], "ms")
        section.add(f"{path}, cold: connect, probe, call", middle[f"{path} cold"], "ms")
    section.add("`kubectl exec POD -- true`", middle["kubectl"], "ms")
    section.add("bare curl of /healthz at the pod IP", middle["curl"], "ms")
    section.add("http warm / curl", middle["http warm"] / middle["curl"], "x")
    for path in PATHS[1:]:
        extra = middle[f"{path} warm"] - middle["http warm"]
        section.add(f"{path} over http, warm", extra, "ms", WARM_OVER_HTTP_MS)
        extra = middle[f"{path} cold"] - middle["kubectl"]
        section.add(f"{path}, cold, over kubectl", extra, "ms", COLD_OVER_KUBECTL_MS)
        section.add(f"{path} cold / kubectl", middle[f"{path} cold"] / middle["kubectl"], "x")
    return section


async def _call(transport: Transport, target: Target) -> None:
    result = await call_tool(
        transport, target, NAME, {"detail": "summary"}, timeout_seconds=CALL_SECONDS
    )
    assert not result.is_error


async def _cold(unused: Iterator[Transport], target: Target) -> None:
    async with next(unused) as transport:
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
    first: list[float] = []
    second: list[float] = []
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
    found = pods(release.cluster, BESIDE, SELECTOR, len(release.cluster.nodes))
    names = {pod.node.name: pod.name for pod in found}
    beside = [names[agent.node.name] for agent in (near, far)]
    agents_told = [_told(agent) for agent in (near, far)]
    told = [str(release.cluster.kubeconfig), kubectl, agents_told, beside]

    def run(scenario: str) -> int:
        command = [*gateway.wires, sys.executable, "-m", "cluster.latency"]
        command += [scenario, json.dumps(told)]
        return subprocess.run(command, timeout=RUN_SECONDS).returncode

    status = run("healthy")
    with faults.source_destination_check(release.cluster):
        return run("broken") or status


def _chosen(release: Release) -> bool:
    """Print what it costs that nobody chose a path, where HTTP to one node is dead: the first two
    calls to gateways that have just started. True if the limits were kept."""
    title = f"calls to a gateway that has just started, through its Service, median of {RESTARTS}"
    section = Section(title)
    alone = {path: _restarted(release, path) for path in PATHS[1:]}
    for path, (first, second) in alone.items():
        section.add(f"{path} alone: first call", first, "ms")
        section.add(f"{path} alone: second call", second, "ms")
    with faults.source_destination_check(release.cluster):
        first, second = _restarted(release, "auto")
    most = FIRST_OVER_FALLBACK * max(each for each, _ in alone.values()) + HEAD_START_MS
    section.add("source/destination check on: first call", first, "ms", most)
    most = SECOND_OVER_FALLBACK * max(each for _, each in alone.values())
    section.add("source/destination check on: second call", second, "ms", most)
    print(f"\n{section}", flush=True)
    return not any(figure.missed for figure in section.figures)


def _restarted(release: Release, mode: str) -> tuple[float, float]:
    """Milliseconds of the first and of the second call to a new gateway that routes so."""
    release.set(*VALUES, f"gateway.routingMode={mode}")
    taken: dict[str, list[float]] = {"first": [], "second": []}
    for _ in range(RESTARTS):
        release.restart_gateway()
        for kept in taken.values():
            kept.append(_through_service(release, mode))
    middle = medians(taken)
    return middle["first"], middle["second"]


def _through_service(release: Release, mode: str) -> float:
    """Milliseconds of one call, as curl counts them.

    Raises:
        RuntimeError: a node is missing, or did not come by the path that was to be measured.
    """
    ask = ["curl", "-s", "--noproxy", "*", "-m", str(CALL_SECONDS), "-w", "\n%{time_total}"]
    ask += ["-H", "Content-Type: application/json", "-d", json.dumps(CALL)]
    told = release.cluster.run_in("n1", [*ask, f"http://{release.address}:8080/mcp"])
    body, _, seconds = told.rpartition("\n")
    came = ways(json.loads(body)["result"]["structuredContent"])
    paths = set(came.values())
    # Of its own choice it takes HTTP, and something else to the node that is cut off.
    right = paths == {mode} if mode in PATHS else "http" in paths and len(paths) > 1
    if sorted(came) != release.cluster.nodes or not right or not paths <= {*PATHS}:
        raise RuntimeError(f"routed by {mode}: {came}")
    return float(seconds) * 1000


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
        kubeconfig, kubectl, agents, beside = json.loads(told)
        targets = [Target(**{**a, "addresses": tuple(a["addresses"])}) for a in agents]
        if scenario == "healthy":
            return 0 if anyio.run(measure, kubeconfig, kubectl, targets, beside) else 1
        anyio.run(measure_broken, kubeconfig, targets[0])
        return 0
    with ExitStack() as stack:
        cluster = stack.enter_context(at_hand(Plan.chosen()))
        release = stack.enter_context(
            installed(cluster, image(cluster), "latency", "latency", *VALUES)
        )
        with probes(cluster, BESIDE, busybox_image().name):
            status = _inside(release)
        return status if _chosen(release) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

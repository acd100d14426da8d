"""The gateway role: discovery, transports and router from the settings, served over MCP."""

from __future__ import annotations

import gc
import secrets
import socket
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskStatus

from mcp_gpu import __version__
from mcp_gpu.fleet.connectivity.checkup import Checkup
from mcp_gpu.fleet.connectivity.clusters import Diagnoses
from mcp_gpu.fleet.connectivity.model import Place
from mcp_gpu.fleet.connectivity.survey import Surveyor
from mcp_gpu.fleet.discovery import Discovery, DiscoveryError
from mcp_gpu.fleet.discovery.clusters import ClustersDiscovery
from mcp_gpu.fleet.discovery.dns import DnsDiscovery
from mcp_gpu.fleet.discovery.kubernetes import KubernetesDiscovery
from mcp_gpu.fleet.discovery.static import StaticDiscovery
from mcp_gpu.fleet.reachability import Reachability
from mcp_gpu.fleet.router import Router
from mcp_gpu.observed import observed
from mcp_gpu.registry import Registry, UnknownTools, from_listing
from mcp_gpu.resources.gateway import surface
from mcp_gpu.serving.endpoint import HttpEndpoint, ListenError
from mcp_gpu.serving.server import Listening, Readiness, serve
from mcp_gpu.settings.base import SettingError
from mcp_gpu.settings.fleet import FleetSettings, GatewaySettings
from mcp_gpu.tools import gateway as tools
from mcp_gpu.workloads.reads import Workloads
from transports.base import Identity, Transport
from transports.credentials import CredentialsError, contexts, in_cluster, renewal
from transports.kubernetes import KubernetesApi, KubernetesError, shared
from transports.registry import load

if TYPE_CHECKING:
    from mcp_gpu.telemetry.audit import AuditLog
    from mcp_gpu.telemetry.metrics.family import Family

__all__ = ["Fleet", "open_fleet", "run", "serve_gateway"]

INSTRUCTIONS = (
    "Answers for the NVIDIA GPUs of a whole fleet.",
    "What is wrong with my GPUs? Start with get_gpu_health: it names sick GPUs with findings, the "
    "readings behind them and what to do, worst first, and counts the healthy.",
    "Why did my pod or Job die? explain_failure.",
    "All that went wrong around it, in order: get_incident_report.",
    "One node on a page: describe_gpu_node.",
    "Who holds the GPUs, what is idle or free? get_pod_gpu_allocation.",
    "What runs there? get_gpu_processes.",
    "What happened? analyze_xid_errors says what the Xids in the nodes' logs mean together.",
    "explain_xid: what a code or a pasted line means.",
    "get_gpu_timeline: what GPUs have done.",
    "What GPUs are there? get_gpu_inventory.",
    "How are they joined? get_nvlink_topology.",
    "Ask in summary first, then single nodes with detail full. Answers name every node that did "
    "not answer, with the reason: its GPUs are unknown, not healthy.",
    "check_connectivity says why nodes do not answer, and what mends it.",
)
"""Each is told unless it names a tool that is left out."""

COLLECT_AT = 20_000
"""New objects before the garbage collector looks at them: 15 % less processor time for a fan-out to
1,000 agents than with Python's 700, and 10 MiB more memory (`make bench-scale`)."""

OPEN_FILES = 65_536
"""Descriptors for some thousands of agents on every path at once."""

FOR_TLS = ("token_file", "ca_file", "server_name")
"""What there is to set of an agent's TLS. A token goes over nothing else."""

LOOK_SECONDS = 2.0
"""A survey waits for HTTP at least so long: until the transport's own connect timeout, which tells
packets that are dropped from a server that says nothing."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The agents, asked and looked after."""

    router: Router
    reachability: Reachability
    checkup: Checkup
    workloads: Workloads


@asynccontextmanager
async def open_fleet(settings: FleetSettings) -> AsyncIterator[Fleet]:
    """The agents that these settings name, with discovery kept current.

    Raises:
        SettingError: the settings name no agents, two sources of them, or unusable ones.
    """
    discovery = make_discovery(settings)
    transports = make_transports(settings)
    async with AsyncExitStack() as stack:
        for transport in transports:
            try:
                await stack.enter_async_context(transport)
            except (OSError, ValueError) as error:
                raise SettingError(f"transport {transport.name!r}: {error}") from error
        reachability = Reachability(
            transports,
            head_start_seconds=settings.head_start_seconds,
            probe_timeout_seconds={"http": settings.probe_timeout_seconds},
            default_probe_timeout_seconds=settings.stream_timeout_seconds,
            ttl_seconds=settings.path_ttl_seconds,
            concurrency=settings.concurrency,
            own_node=settings.node_name,
        )
        await stack.enter_async_context(reachability)
        group = await stack.enter_async_context(anyio.create_task_group())
        # Bounded by discovery itself. What it could not find out, the table says.
        await group.start(discovery.run)
        router = Router(
            discovery,
            reachability,
            node_deadline_seconds=settings.node_deadline_seconds,
            call_deadline_seconds=settings.call_deadline_seconds,
            concurrency=settings.concurrency,
        )
        apis = await _apis(settings, discovery, stack)
        checkup = await _checkup(settings, discovery, reachability, apis)
        yield Fleet(router, reachability, checkup, Workloads(apis))
        group.cancel_scope.cancel()


async def _apis(
    settings: FleetSettings, discovery: Discovery, stack: AsyncExitStack
) -> dict[str, KubernetesApi]:
    """The clusters that the agents are found in, by context."""
    if not isinstance(discovery, KubernetesDiscovery | ClustersDiscovery):
        return {}
    return {
        name: await stack.enter_async_context(shared(settings.kubeconfig, name))
        for name in settings.context or ("",)
    }


async def _checkup(
    settings: FleetSettings,
    discovery: Discovery,
    reachability: Reachability,
    apis: Mapping[str, KubernetesApi],
) -> Checkup:
    namespace = ""
    if apis and settings.pod_name:
        with suppress(KubernetesError):  # which discovery meets too, and tells
            namespace = await next(iter(apis.values())).namespace()
    surveyor = Surveyor(
        reachability,
        place=Place(node=settings.node_name, pod=settings.pod_name, namespace=namespace),
        probe_timeout_seconds={"http": max(settings.probe_timeout_seconds, LOOK_SECONDS)},
        default_probe_timeout_seconds=settings.stream_timeout_seconds,
    )
    diagnoses = Diagnoses(apis, selector=settings.agent_selector)
    return Checkup(discovery, surveyor, diagnoses.of)


def run(settings: GatewaySettings) -> int:
    """Serve the fleet until told to stop. Returns the exit status."""
    _raise_open_files()
    # All calls of a fan-out are alive at once, and by default the collector walks through them at
    # every 700 new objects: a quarter of the processor time at 1,000 agents, and no garbage found.
    gc.set_threshold(COLLECT_AT, 10, 10)
    resource = {"k8s.node.name": settings.node_name, "k8s.pod.name": settings.pod_name}
    with observed(settings, "mcp-gpu-gateway", resource) as audit:
        anyio.run(_run, settings, audit)
    return 0


def _raise_open_files() -> None:
    """Let the process open as many files as it may, within reason: each agent takes a connection
    or a stream of three descriptors, and the usual 1,024 end a fleet of some hundreds."""
    try:
        import resource  # not on Windows, which has no such limit
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _run(settings: GatewaySettings, audit: AuditLog | None) -> None:
    http = settings.endpoint()  # first: what contradicts itself starts nothing
    if settings.stdio:
        from mcp_gpu.serving.stdio import claim

        claim()  # a kubeconfig may name a program for credentials, which must read no request
    async with open_fleet(settings) as fleet:
        await serve_gateway(
            fleet,
            http,
            stdio=settings.stdio,
            without_tools=settings.without_tools,
            delay_seconds=settings.shutdown_delay_seconds,
            audit=audit,
            node_metrics=settings.node_metrics,
        )


async def serve_gateway(
    fleet: Fleet,
    http: HttpEndpoint | None,
    *,
    stdio: bool = False,
    without_tools: Collection[str] = (),
    delay_seconds: float = 0.0,
    audit: AuditLog | None = None,
    node_metrics: bool = False,
    task_status: TaskStatus[Listening] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the gateway's tools.

    Args:
        without_tools: names of those that are not served.
        delay_seconds: how long new calls are still taken after the request to stop.
        audit: is told of each call.
        node_metrics: whether `/metrics` names each node.

    Raises:
        SettingError: the port cannot be listened on, or not in this way, or there is no such tool.
    """
    started_at = time.time()
    instance = secrets.token_hex(8)

    def identity() -> Identity:
        return Identity(
            name="mcp-gpu-gateway",
            version=__version__,
            node=socket.gethostname(),
            instance=instance,
            started_at=started_at,
        )

    makers = tools.makers(fleet.router, fleet.checkup, fleet.workloads)
    try:
        served = from_listing(tools.LISTING, makers, without_tools)
    except UnknownTools as error:
        raise SettingError(f"--without-tools: {error}") from error
    registry = Registry(
        name="mcp-gpu-gateway",
        version=__version__,
        instructions=" ".join(
            each for each in INSTRUCTIONS if not any(name in each for name in without_tools)
        ),
        tools=served,
        identity=identity,
        surface=surface(fleet.router),
    )
    if audit is not None:
        audit.hear(registry)

    def metrics() -> Iterable[Family]:
        from mcp_gpu.telemetry.metrics.fleet import families  # paid for by the first scrape

        return families(fleet.router, fleet.reachability, per_node=node_metrics)

    refused: ListenError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(registry.watch)
        try:
            await serve(
                registry,
                http=http,
                stdio=stdio,
                delay_seconds=delay_seconds,
                readiness=lambda: _readiness(fleet.router.discovery),
                metrics=metrics,
                task_status=task_status,
            )
        except ListenError as error:
            refused = error  # Raised below, where no group is made of it.
        tasks.cancel_scope.cancel()
    if refused is not None:
        raise SettingError(str(refused)) from refused


def _readiness(discovery: Discovery) -> Readiness:
    """Ready after the first discovery, and from then on: an outage makes the table old, which
    the answer says, and taking the gateway out of its Service would help nobody."""
    try:
        table = discovery.table()
    except DiscoveryError as error:
        return Readiness(False, words={"discovery_problem": str(error)})
    return Readiness(
        True,
        {
            "agents": len(table.targets),
            "discovery_age_seconds": round(max(time.time() - table.as_of, 0.0), 1),
        },
        {"discovery": table.source, "discovery_problem": table.problem},
    )


def make_discovery(settings: FleetSettings) -> Discovery:
    """The one source of agents that the settings name; a cluster where they name none.

    Raises:
        SettingError: they name several, or one that cannot be read, or there is no cluster.
    """
    if settings.kubeconfig and not settings.has_kubeconfig():
        raise SettingError(f"--kubeconfig: no file {' or '.join(settings.kubeconfig_paths())}")
    named = [
        flag
        for flag, value in (
            ("--agents", settings.agents),
            ("--agents-file", settings.agents_file),
            ("--agents-dns", settings.agents_dns),
        )
        if value
    ]
    if len(named) > 1:
        raise SettingError(f"{' and '.join(named)} given together: give one of them")
    if not named:
        return _in_kubernetes(settings)
    try:
        if settings.agents:
            return StaticDiscovery.from_text(settings.agents)
        if settings.agents_file:
            return StaticDiscovery.from_file(settings.agents_file)
        return DnsDiscovery(settings.agents_dns)
    except DiscoveryError as error:
        raise SettingError(str(error)) from error


def _in_kubernetes(settings: FleetSettings) -> Discovery:
    if not in_cluster() and not settings.has_kubeconfig():
        raise SettingError(
            "no agents named, and no Kubernetes to find them in: give one of --agents, "
            "--agents-file and --agents-dns, or a kubeconfig (--kubeconfig, KUBECONFIG, "
            "~/.kube/config)"
        )
    if settings.context:
        _check_contexts(settings)
    if len(settings.context) > 1:
        return ClustersDiscovery({name: _cluster(settings, name) for name in settings.context})
    return _cluster(settings, next(iter(settings.context), ""))


def _check_contexts(settings: FleetSettings) -> None:
    asked = settings.context
    doubled = [name for name in asked if asked.count(name) > 1]
    if doubled:
        raise SettingError(f"--context: {doubled[0]} is given twice")
    try:
        known = contexts(settings.kubeconfig)
    except CredentialsError:
        return  # which a client is told by every answer, until somebody mends the file
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise SettingError(
            f"--context: the kubeconfig has no context {unknown[0]}; "
            f"it has {', '.join(known) or 'none'}"
        )


def _cluster(settings: FleetSettings, context: str) -> KubernetesDiscovery:
    as_a_pod = in_cluster() and not settings.kubeconfig and not context
    return KubernetesDiscovery(
        shared(settings.kubeconfig, context),
        namespace=settings.namespace,
        everywhere=not as_a_pod,
        selector=settings.agent_selector,
        domain=settings.cluster_domain if settings.agent_address == "dns" else None,
        login="" if as_a_pod else renewal(settings.kubeconfig, context),
    )


def make_transports(settings: FleetSettings) -> list[Transport]:
    """The transports in order of preference, each with its options.

    Raises:
        SettingError: an unknown transport, a doubled one, or an option that it does not take.
    """
    names = settings.transports
    if not names or len(set(names)) != len(names):
        raise SettingError(f"--transports: each at least once and at most once, not {names}")
    unused = sorted(settings.transport_options.keys() - set(names))
    if unused:
        raise SettingError(f"--transport-options: {unused[0]} is not among --transports")
    try:
        return [load(name, _options(settings, name)) for name in names]
    except ValueError as error:
        raise SettingError(str(error)) from error


def _options(settings: FleetSettings, name: str) -> Mapping[str, Any]:
    options: dict[str, Any] = {}
    if name in ("portforward", "exec"):
        options["kubeconfig"] = settings.kubeconfig
        options["contexts"] = list(settings.context)
    if name in ("exec", "command"):
        options["max_open"] = settings.max_streams
    if name in ("http", "portforward"):
        options["scheme"] = settings.agent_scheme
        for_tls = {each: getattr(settings, f"agent_{each}") for each in FOR_TLS}
        options |= {each: str(value) for each, value in for_tls.items() if value}
    options |= settings.transport_options.get(name, {})
    if options.get("scheme") == "http":
        idle = [f"--agent-{each.replace('_', '-')}" for each in FOR_TLS if options.get(each)]
        if idle:
            need = "needs" if len(idle) == 1 else "need"
            raise ValueError(f"{' and '.join(idle)} {need} --agent-scheme https")
    return options

"""The agent role: one collector over this node's NVML, served over MCP."""

from __future__ import annotations

import secrets
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskStatus

from mcp_gpu import __version__
from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.node import syslog
from mcp_gpu.node.boot import Boot
from mcp_gpu.node.gpu_access import explain
from mcp_gpu.node.holdings import Attribution
from mcp_gpu.node.kmsg import opener
from mcp_gpu.node.pod_resources import PodResources
from mcp_gpu.node.sight import Lookout
from mcp_gpu.node.watch import XidWatch
from mcp_gpu.registry import Registry, from_listing
from mcp_gpu.serving.endpoint import HttpEndpoint, ListenError
from mcp_gpu.serving.server import Listening, Readiness, serve
from mcp_gpu.settings import KERNEL_LOG, AgentSettings, SettingError
from mcp_gpu.tools import agent as tools
from transports.base import Identity

if TYPE_CHECKING:
    from mcp_gpu.gpu.simulator import Node

__all__ = ["run"]

INSTRUCTIONS = (
    "Answers for the NVIDIA GPUs of one node. What is wrong with them? Start with "
    "get_gpu_health: a verdict, and findings with what to do. analyze_xid_errors says what the "
    "Xids in its log mean together, explain_xid what a code or a pasted line means. "
    "get_gpu_inventory lists the GPUs. A null field has its reason beside it; unknown is never "
    "healthy."
)

FIRST_READ_SECONDS = 10.0
"""How long readiness waits for the first look at NVML. Initialising takes up to 3 s a GPU without
persistence mode; a driver that takes longer than this is stuck, and a stuck driver must be seen,
so the agent becomes ready all the same."""

FOR_HTTP: tuple[str, ...] = (
    "token_file",
    "kubernetes_tokens",
    "token_audiences",
    "token_subjects",
    "access_review",
    "access_namespace",
    "oauth_issuer",
    "oauth_resource",
    "oauth_scopes",
    "tls_cert_file",
    "tls_key_file",
    "allow_anonymous",
)
"""Settings that say who may call over HTTP, and how."""


def run(settings: AgentSettings) -> int:
    """Serve this node's GPUs until told to stop. Returns the exit status."""
    http = _endpoint(settings)  # first: what contradicts itself starts nothing
    library = None if settings.nvml_library is None else str(settings.nvml_library)
    watch = _watch(settings, library)
    collector = Collector(
        _nvml(settings, library),
        fast_seconds=settings.fast_seconds,
        slow_seconds=settings.slow_seconds,
        events=watch.events,
    )
    try:
        anyio.run(_serve, settings, http, collector, watch)
    finally:
        # Not joined: a call that hangs in the driver would hold up the exit.
        collector.stop()
    return 0


def _endpoint(settings: AgentSettings) -> HttpEndpoint | None:
    if not (settings.http or settings.stdio):  # with --stdio a pod's environment is at hand as well
        default = AgentSettings.model_fields
        idle = [name for name in FOR_HTTP if getattr(settings, name) != default[name].default]
        if idle:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
            raise SettingError(f"--no-http leaves nothing to do for {flags}")
    return settings.endpoint()


async def _serve(
    settings: AgentSettings, http: HttpEndpoint | None, collector: Collector, watch: XidWatch
) -> None:
    started = time.monotonic()
    lookout = Lookout(
        lambda: collector.snapshot, watch.sources, pod_resources=settings.pod_resources_socket
    )
    attribution = Attribution(
        lambda: collector.snapshot,
        PodResources(settings.pod_resources_socket),
        settings.device_plugin_checkpoint,
        pod=settings.pod_name,
    )
    identity = Identity(
        name="mcp-gpu",
        version=__version__,
        node=settings.node_name,
        pod=settings.pod_name,
        uid=settings.pod_uid,
        instance=secrets.token_hex(8),
        started_at=time.time(),
        simulated=settings.simulate is not None,
    )
    registry = Registry(
        name=identity.name,
        version=__version__,
        instructions=INSTRUCTIONS,
        tools=from_listing(
            tools.LISTING,
            tools.makers(
                settings.node_name,
                collector,
                watch,
                lookout.sight,
                attribution,
                expected_gpus=settings.expected_gpus,
            ),
        ),
        identity=lambda: identity,
        sees=lambda: lookout.sight().told,
    )
    refused: ListenError | None = None
    async with anyio.create_task_group() as tasks:

        async def serve_and_end(*, task_status: TaskStatus[Listening]) -> None:
            await serve(
                registry,
                http=http,
                socket_path=settings.socket_path,
                stdio=settings.stdio,
                delay_seconds=settings.shutdown_delay_seconds,
                readiness=lambda: _readiness(collector, time.monotonic() - started),
                task_status=task_status,
            )
            tasks.cancel_scope.cancel()

        try:
            await tasks.start(serve_and_end)
        except ListenError as error:
            refused = error  # Raised below, where no group is made of it.
            tasks.cancel_scope.cancel()
        else:
            # Not before: they and who asks would take turns, and who comes in the meantime is told
            # that the first look is yet to end.
            await tasks.start(watch.run)
            collector.start()
    if refused is not None:
        raise SettingError(str(refused)) from refused


def _readiness(collector: Collector, running_seconds: float) -> Readiness:
    """Ready once the first look at NVML has ended or taken too long, whatever it showed.

    A node with broken GPUs must stay in its Service to say so.
    """
    snapshot = collector.snapshot
    detail = {
        "nvml": snapshot.state,
        "gpus": snapshot.gpu_count,
        "simulated": snapshot.simulated,
    }
    words = {
        "message": snapshot.failure.message if snapshot.failure else None,
        "waiting": snapshot.waiting.message if snapshot.waiting else None,
    }
    looked = snapshot.state != "starting" or running_seconds >= FIRST_READ_SECONDS
    return Readiness(looked, detail, words)


def _nvml(settings: AgentSettings, library: str | None) -> Nvml:
    if settings.simulate is not None:
        # This machine's drivers and devices tell nothing of a simulated node's.
        return Nvml(library_path=library)
    look = partial(explain, access=settings.gpu_access, library=library)
    return Nvml(library_path=library, explain=look)


def _watch(settings: AgentSettings, library: str | None) -> XidWatch:
    if settings.simulate is None:
        return XidWatch(
            opener(settings.kernel_log),
            place=str(settings.kernel_log),
            # Whoever names another place means that one, not this machine's kernel.
            call=syslog.kernel if settings.kernel_log == KERNEL_LOG else None,
            journal_paths=map(Path, settings.journal_paths),
            library_path=library,
        )
    # A simulated node has a kernel log of its own. Whatever machine this is, its journal is not
    # that node's.
    log = _simulate(settings.simulate, settings.node_name).kernel_log
    return XidWatch(log.open, place="the simulated log", boot=Boot(log.boot_id, log.started_at))


def _simulate(fleet_file: str, node_name: str) -> Node:
    from mcp_gpu.gpu import simulator  # 20 ms and 3 MiB that an agent on hardware need not pay

    try:
        fleet = (
            simulator.default_fleet()
            if fleet_file == "demo"
            else simulator.load_fleet(Path(fleet_file))
        )
        node = fleet.node(node_name)
    except simulator.FleetError as error:
        raise SettingError(f"--simulate: {error}") from error
    simulator.install(node)
    return node

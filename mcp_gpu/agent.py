"""The agent role: one collector over this node's NVML, served over MCP."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskStatus

from mcp_gpu import __version__
from mcp_gpu.gpu.collector import Collector
from mcp_gpu.observed import observed
from mcp_gpu.registry import Registry, from_listing
from mcp_gpu.resources.agent import surface
from mcp_gpu.serving.endpoint import HttpEndpoint, ListenError
from mcp_gpu.serving.server import Listening, Readiness, serve
from mcp_gpu.settings.agent import AgentSettings
from mcp_gpu.settings.base import SettingError
from mcp_gpu.sources import make_sources
from mcp_gpu.tools import agent as tools
from transports.base import Identity

if TYPE_CHECKING:
    from mcp_gpu.telemetry.audit import AuditLog
    from mcp_gpu.telemetry.metrics.family import Family

__all__ = ["run"]

logger = logging.getLogger(__name__)

INSTRUCTIONS = (
    "Answers for the NVIDIA GPUs of one node. What is wrong with them? Start with "
    "get_gpu_health: a verdict, and findings with what to do. analyze_xid_errors says what the "
    "Xids in its log mean together, explain_xid what a code or a pasted line means, "
    "get_gpu_timeline what the GPUs have done. Who holds them and what runs there: "
    "get_pod_gpu_allocation, get_gpu_processes. What there is and how it is joined: "
    "get_gpu_inventory, get_nvlink_topology, describe_gpu_node. A null field has its reason "
    "beside it; unknown is never healthy."
)

FIRST_READ_SECONDS = 10.0
"""How long readiness waits for the first look at NVML. Initialising takes up to 3 s a GPU without
persistence mode; a driver that takes longer than this is stuck, and a stuck driver must be seen,
so the agent becomes ready all the same."""

SAVE_SECONDS = 2.0
"""Longest wait at the end for the timeline to be written."""

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
    "max_requests_inflight",
    "max_requests_inflight_per_caller",
    "max_requests_waiting",
    "request_wait_seconds",
    "caller_qps",
    "caller_burst",
)
"""Settings that say who may call over HTTP, how, and how much."""


def run(settings: AgentSettings) -> int:
    """Serve this node's GPUs until told to stop. Returns the exit status."""
    http = _endpoint(settings)  # first: what contradicts itself starts nothing
    sources = make_sources(settings)
    resource = {
        "k8s.node.name": settings.node_name,
        "k8s.pod.name": settings.pod_name,
        "k8s.pod.uid": settings.pod_uid,
    }
    try:
        with observed(settings, "mcp-gpu", resource) as audit:
            anyio.run(_serve, settings, http, sources, audit)
    finally:
        # Not joined: a call that hangs in the driver would hold up the exit.
        sources.collector.stop()
        sources.recorder.stop()
        if not sources.recorder.join(SAVE_SECONDS):
            logger.warning("the timeline could not be saved in time")
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
    settings: AgentSettings,
    http: HttpEndpoint | None,
    sources: tools.Sources,
    audit: AuditLog | None,
) -> None:
    started = time.monotonic()
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
    makers = tools.makers(sources)
    registry = Registry(
        name=identity.name,
        version=__version__,
        instructions=INSTRUCTIONS,
        tools=from_listing(tools.LISTING, makers),
        identity=lambda: identity,
        sees=lambda: sources.lookout.sight().told,
        surface=surface(sources.node, sources.collector, makers["get_gpu_health"]),
    )
    if audit is not None:
        audit.hear(registry)

    def metrics() -> Iterable[Family]:
        from mcp_gpu.telemetry.metrics.node import families  # paid for by the first scrape

        return families(
            sources.collector,
            sources.recorder,
            sources.watch,
            expected_gpus=sources.expected_gpus,
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
                readiness=lambda: _readiness(sources.collector, time.monotonic() - started),
                metrics=metrics,
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
            await tasks.start(sources.watch.run)
            tasks.start_soon(registry.watch)
            tasks.start_soon(sources.attribution.follow)
            sources.recorder.start()
            sources.collector.start()
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

"""Pods as the fake API server's streams meet them: what runs in them, and what goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
from aiohttp import web
from anyio.abc import Process

from transports.channels import CHUNK_BYTES

May = Callable[[str, str], bool]
"""Whether the caller's role grants a verb on a resource."""

Pods = Mapping[tuple[str, str], "Pod"]
"""By namespace and name."""

PROGRAMS = {"mcp-gpu": (sys.executable, "-m", "mcp_gpu")}
"""What is installed in an image, beside what is on the PATH."""


@dataclass
class Faults:
    """What goes wrong with the streams of a pod."""

    hold: anyio.Event | None = None
    """Answer nothing before this is set."""
    held: int = 0
    """Requests that wait for it now."""
    most_held: int = 0
    refuse: tuple[int, str, str] | None = None
    """Status, reason and message of a refusal; a text without a `Status` if the reason is empty."""
    fail: str = ""
    """After the upgrade: an `InternalError` of these words on the error channel, nothing run."""
    drop_after_bytes: int | None = None
    """Cut the connection once this much standard output, or of a port's data, has been sent."""
    deaf: bool = False
    """Read nothing the client sends."""
    frame_bytes: int = CHUNK_BYTES
    """The most that one frame of output holds."""
    pause_seconds: float = 0.0
    """Before each frame of output."""


@dataclass
class Pod:
    """A running pod, and what has been asked of it."""

    env: Mapping[str, str] = field(default_factory=dict)
    """Joins the environment of what exec starts."""
    containers: tuple[str, ...] = ("agent",)
    running: bool = True
    programs: Mapping[str, Sequence[str]] = field(default_factory=lambda: PROGRAMS)
    ports: Mapping[int, int] = field(default_factory=dict)
    """Ports inside the pod to ports of this machine's loopback."""
    faults: Faults = field(default_factory=Faults)
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Parameters of each stream, with the `protocol` chosen."""
    forwarding: int = 0
    """Port-forwards that are open now."""
    processes: list[Process] = field(default_factory=list)
    """Every one that exec has started."""
    inputs_ended: int = 0
    """How often a client has closed standard input alone."""

    @property
    def alive(self) -> list[Process]:
        """Those that have not ended."""
        return [process for process in self.processes if process.returncode is None]


def status(code: int, reason: str, message: str) -> web.Response:
    """A refusal as Kubernetes words it."""
    return web.json_response(status_document("Failure", reason, message, code=code), status=code)


def forbidden(verb: str, resource: str, name: str, namespace: str) -> web.Response:
    """What a caller without the role is told."""
    kind = resource.partition("/")[0]
    if verb == "create":
        # Looked up after the role has granted the GET, and told without a reason (1.35 to 1.37).
        return status(403, "Forbidden", f'{kind} "{name}" is forbidden: ')
    message = (
        f'{kind} "{name}" is forbidden: User "tester" cannot {verb} resource "{resource}" '
        f'in API group "" in the namespace "{namespace}"'
    )
    return status(403, "Forbidden", message)


def find_pod(request: web.Request, pods: Pods, may: May, resource: str) -> Pod | web.Response:
    """The pod that a request names, or the refusal it gets."""
    namespace, name = request.match_info["namespace"], request.match_info["name"]
    # From 1.35 on a WebSocket takes both: GET is what it is, `create` is what it does.
    for verb in ("get", "create"):
        if not may(verb, resource):
            return forbidden(verb, resource, name, namespace)
    pod = pods.get((namespace, name))
    if pod is None:
        return status(404, "NotFound", f'pods "{name}" not found')
    return pod


async def refused(faults: Faults) -> web.Response | None:
    """Wait for as long as the faults say; the refusal that they bring."""
    if faults.hold is not None:
        faults.held += 1
        faults.most_held = max(faults.most_held, faults.held)
        try:
            await faults.hold.wait()
        finally:
            faults.held -= 1
    if faults.refuse is None:
        return None
    code, reason, message = faults.refuse
    return status(code, reason, message) if reason else web.Response(text=message, status=code)


def choose(request: web.Request, protocols: Sequence[str]) -> str | None:
    """The first of the client's that the server knows, as the real one picks."""
    offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")
    return next((name.strip() for name in offered if name.strip() in protocols), None)


def status_document(
    outcome: str, reason: str = "", message: str = "", **more: Any
) -> dict[str, Any]:
    """A `Status`, as the error channel carries it too."""
    document = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": outcome, **more}
    return document | {k: v for k, v in (("reason", reason), ("message", message)) if v}

"""Exec and port-forward of the fake API server: what server, kubelet and container runtime do.

`stream_routes` are for whatever server has more to offer; `StreamsServer` has nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import Any, Self

import anyio
from aiohttp import WSMsgType, web
from anyio.abc import ByteReceiveStream, ByteStream, Process

from support.kubeapi.credentials import write_kubeconfig
from support.peer import listen
from transports.channels import CHUNK_BYTES, CLOSE, ERROR, PROTOCOLS, STDERR, STDIN, STDOUT, V4, V5

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
    """Cut the connection once this much standard output has been sent."""
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
    """Parameters of each exec, with the `protocol` chosen."""
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
    return web.json_response(_status("Failure", reason, message, code=code), status=code)


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


async def exec_handler(
    request: web.Request,
    pods: Pods,
    *,
    may: May = lambda verb, resource: True,
    protocols: Sequence[str] = PROTOCOLS,
) -> web.StreamResponse:
    """`GET .../pods/{name}/exec`, upgraded to a WebSocket."""
    found = _pod(request, pods, may, "pods/exec")
    if isinstance(found, web.Response):
        return found
    container = request.query.get("container", found.containers[0])
    if container not in found.containers:
        name = request.match_info["name"]
        return status(400, "BadRequest", f"container {container} is not valid for pod {name}")
    await _held(found.faults)
    if found.faults.refuse is not None:
        code, reason, message = found.faults.refuse
        return status(code, reason, message) if reason else web.Response(text=message, status=code)
    protocol = _choose(request, protocols)
    if protocol is None:
        return web.Response(status=403)
    argv = request.query.getall("command", [])
    asked = {**request.query, "command": argv, "protocol": protocol}
    found.asked.append(asked)
    socket = web.WebSocketResponse(protocols=(protocol,), max_msg_size=32 << 20)
    await socket.prepare(request)
    session = _Session(request, socket, found, half_close=protocol == V5)
    await session.run(argv, container)
    return socket


async def portforward_handler(
    request: web.Request, pods: Pods, *, may: May = lambda verb, resource: True
) -> web.StreamResponse:
    """`GET .../pods/{name}/portforward`, upgraded to a WebSocket."""
    found = _pod(request, pods, may, "pods/portforward")
    if isinstance(found, web.Response):
        return found
    await _held(found.faults)
    asked = ",".join(request.query.getall("ports", []))
    if not asked:
        return web.Response(status=400, text='query parameter "port" is required')
    if not all(port.isdecimal() for port in asked.split(",")):
        words = f'cannot convert to []int32: strconv.ParseUint: parsing "{asked}": invalid syntax'
        return status(400, "BadRequest", words)
    if _choose(request, (V4,)) is None:
        return web.Response(status=403)
    socket = web.WebSocketResponse(protocols=(V4,), max_msg_size=32 << 20)
    await socket.prepare(request)
    await _forward(request, socket, found, [int(port) for port in asked.split(",")])
    return socket


def stream_routes(
    pods: Pods,
    *,
    may: May = lambda verb, resource: True,
    protocols: Sequence[str] = PROTOCOLS,
) -> list[web.RouteDef]:
    """Both subresources of pods, for an application's router."""

    async def exec_(request: web.Request) -> web.StreamResponse:
        return await exec_handler(request, pods, may=may, protocols=protocols)

    async def portforward(request: web.Request) -> web.StreamResponse:
        return await portforward_handler(request, pods, may=may)

    pod = "/api/v1/namespaces/{namespace}/pods/{name}"
    return [web.get(f"{pod}/exec", exec_), web.get(f"{pod}/portforward", portforward)]


def _pod(request: web.Request, pods: Pods, may: May, resource: str) -> Pod | web.Response:
    namespace, name = request.match_info["namespace"], request.match_info["name"]
    # From 1.35 on a WebSocket takes both: GET is what it is, `create` is what it does.
    for verb in ("get", "create"):
        if not may(verb, resource):
            return forbidden(verb, resource, name, namespace)
    pod = pods.get((namespace, name))
    if pod is None:
        return status(404, "NotFound", f'pods "{name}" not found')
    return pod


async def _held(faults: Faults) -> None:
    if faults.hold is not None:
        faults.held += 1
        faults.most_held = max(faults.most_held, faults.held)
        try:
            await faults.hold.wait()
        finally:
            faults.held -= 1


def _choose(request: web.Request, protocols: Sequence[str]) -> str | None:
    """The first of the client's that the server knows, as the real one picks."""
    offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")
    return next((name.strip() for name in offered if name.strip() in protocols), None)


def _status(outcome: str, reason: str = "", message: str = "", **more: Any) -> dict[str, Any]:
    document = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": outcome, **more}
    return document | {k: v for k, v in (("reason", reason), ("message", message)) if v}


def _exited(code: int) -> dict[str, Any]:
    if code == 0:
        return _status("Success")
    if code < 0:
        code = 128 - code  # ended by a signal, as runtimes count it
    message = f"command terminated with non-zero exit code: exit code {code}"
    causes = [{"reason": "ExitCode", "message": str(code)}]
    return _status("Failure", "NonZeroExitCode", message, details={"causes": causes})


class _Session:
    """One exec: a child process and a WebSocket."""

    def __init__(
        self,
        request: web.Request,
        socket: web.WebSocketResponse,
        pod: Pod,
        *,
        half_close: bool,
    ) -> None:
        self._request = request
        self._socket = socket
        self._pod = pod
        self._faults = pod.faults
        self._half_close = half_close
        self._sent_bytes = 0
        self._sending = anyio.Lock()

    async def run(self, argv: Sequence[str], container: str) -> None:
        await self._send(bytes((STDOUT,)))  # connected
        if self._faults.fail:
            await self._end(_internal(self._faults.fail))
        elif not self._pod.running:
            words = f'unable to upgrade connection: container not found ("{container}")'
            await self._end(_internal(words))
        elif (program := _find(self._pod, argv)) is None:
            await self._end(
                _internal(
                    "error executing command in container: failed to exec in container: OCI "
                    "runtime exec failed: exec failed: unable to start container process: exec: "
                    f'"{argv[0] if argv else ""}": executable file not found in $PATH: unknown'
                )
            )
        else:
            await self._serve([*program, *argv[1:]])

    async def _serve(self, argv: Sequence[str]) -> None:
        env = {**os.environ, **self._pod.env}
        process = await anyio.open_process(argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=env)
        self._pod.processes.append(process)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._feed, process)
                async with anyio.create_task_group() as outputs:
                    outputs.start_soon(self._copy, process.stdout, STDOUT)
                    outputs.start_soon(self._copy, process.stderr, STDERR)
                await self._end(_exited(await process.wait()))
                tasks.cancel_scope.cancel()
        finally:
            if process.returncode is None:
                process.kill()
            with anyio.CancelScope(shield=True):
                await process.aclose()

    async def _feed(self, process: Process) -> None:
        """Standard input, until the client ends it or leaves."""
        assert process.stdin is not None
        if self._faults.deaf:
            await anyio.sleep_forever()
        async for message in self._socket:
            if message.type is not WSMsgType.BINARY or not message.data:
                continue
            if message.data[0] == CLOSE and message.data[1:] == bytes((STDIN,)):
                if self._half_close:
                    self._pod.inputs_ended += 1
                    await process.stdin.aclose()
            elif message.data[0] == STDIN:
                try:
                    await process.stdin.send(message.data[1:])
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    pass  # a program that reads no more; its exit status will say why
        await process.stdin.aclose()

    async def _copy(self, stream: ByteReceiveStream | None, channel: int) -> None:
        assert stream is not None
        async for data in stream:
            for start in range(0, len(data), self._faults.frame_bytes):
                if self._faults.pause_seconds:
                    await anyio.sleep(self._faults.pause_seconds)
                await self._send(bytes((channel,)) + data[start : start + self._faults.frame_bytes])

    async def _send(self, frame: bytes) -> None:
        limit = self._faults.drop_after_bytes
        self._sent_bytes += len(frame) - 1 if frame[0] == STDOUT else 0
        if limit is not None and self._sent_bytes > limit and self._request.transport is not None:
            self._request.transport.abort()
        async with self._sending:
            try:
                await self._socket.send_bytes(frame)
            except (ConnectionError, RuntimeError):
                pass  # the client has left; the program may still write

    async def _end(self, document: dict[str, Any]) -> None:
        await self._send(bytes((ERROR,)) + json.dumps(document).encode())
        with anyio.move_on_after(1):
            await self._socket.close()


def _internal(message: str) -> dict[str, Any]:
    words = f"Internal error occurred: {message}"
    return _status("Failure", "InternalError", words, code=500, details={"causes": [{}]})


def _find(pod: Pod, argv: Sequence[str]) -> Sequence[str] | None:
    if not argv:
        return None
    if argv[0] in pod.programs:
        return pod.programs[argv[0]]
    found = shutil.which(argv[0])
    return None if found is None else [found]


async def _forward(
    request: web.Request, socket: web.WebSocketResponse, pod: Pod, ports: Sequence[int]
) -> None:
    name, namespace = request.match_info["name"], request.match_info["namespace"]
    for number, port in enumerate(ports):
        for channel in (2 * number, 2 * number + 1):
            await socket.send_bytes(bytes((channel,)) + struct.pack("<H", port))
    streams: dict[int, ByteStream] = {}
    async with anyio.create_task_group() as tasks:

        async def receive() -> None:
            async for message in socket:
                if message.type is WSMsgType.BINARY and message.data[:1] in map(_byte, streams):
                    try:
                        await streams[message.data[0]].send(message.data[1:])
                    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                        pass  # its end is told by the reader
            tasks.cancel_scope.cancel()

        async def copy(channel: int, stream: ByteStream) -> None:
            async with stream:
                try:
                    async for data in stream:
                        for start in range(0, len(data), CHUNK_BYTES):
                            await socket.send_bytes(
                                _byte(channel) + data[start : start + CHUNK_BYTES]
                            )
                except (anyio.BrokenResourceError, ConnectionError):
                    pass

        async with anyio.create_task_group() as copies:
            for number, port in enumerate(ports):
                try:
                    # Inside the pod's network: what the agent sees is a caller on loopback.
                    stream = await anyio.connect_tcp("127.0.0.1", pod.ports[port])
                except (OSError, KeyError):
                    words = (
                        f"error forwarding port {port} to pod {namespace}/{name}, uid : failed to "
                        f"connect to localhost:{port} inside namespace: connection refused"
                    )
                    await socket.send_bytes(_byte(2 * number + 1) + words.encode())
                    continue
                streams[2 * number] = stream
                copies.start_soon(copy, 2 * number, stream)
            tasks.start_soon(receive)
        with anyio.move_on_after(1):
            await socket.close()
        tasks.cancel_scope.cancel()


def _byte(channel: int) -> bytes:
    return bytes((channel,))


class StreamsServer:
    """An API server of exec and port-forward alone, with one bearer token.

    Args:
        protocols: those of exec that it speaks; `("v4.channel.k8s.io",)` for one before 1.30.
        tls: a server's context; plain HTTP without one.
    """

    def __init__(
        self,
        pods: Pods,
        *,
        protocols: Sequence[str] = PROTOCOLS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.pods = pods
        self.token = "s3cret-token"
        """What callers must show now."""
        self.denied: set[tuple[str, str]] = set()
        """Verbs on resources that the caller's role lacks."""
        self.requests: list[str] = []
        """Method and path of each, the refused ones too."""
        self._protocols = protocols
        self._tls = tls
        self.port = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def kubeconfig(self, path: Path, **more: Any) -> Path:
        """Write one that leads here, with the token that is valid now."""
        return write_kubeconfig(path, self.url, **{"token": self.token, **more})

    def may(self, verb: str, resource: str) -> bool:
        return (verb, resource) not in self.denied

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._authenticate])
        app.add_routes(stream_routes(self.pods, may=self.may, protocols=self._protocols))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        listener = listen("127.0.0.1", self.port)
        self.port = listener.getsockname()[1]
        await web.SockSite(self._runner, listener, ssl_context=self._tls).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self._runner.cleanup()

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return status(401, "Unauthorized", "Unauthorized")
        return await handler(request)


@asynccontextmanager
async def one_pod(folder: Path, pod: Pod, **options: Any) -> AsyncIterator[StreamsServer]:
    """A server with the pod `gpu/agent-1`; its kubeconfig is `folder/kubeconfig`."""
    async with StreamsServer({("gpu", "agent-1"): pod}, **options) as server:
        server.kubeconfig(folder / "kubeconfig")
        yield server

"""Exec of the fake API server: what server, kubelet and container runtime do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from subprocess import PIPE
from typing import Any

import anyio
from aiohttp import WSMsgType, web
from anyio.abc import ByteReceiveStream, Process

from support.kubeapi.pods import (
    May,
    Pod,
    Pods,
    choose,
    find_pod,
    refused,
    status,
    status_document,
)
from transports.channels import CLOSE, ERROR, PROTOCOLS, STDERR, STDIN, STDOUT, V5


async def exec_handler(
    request: web.Request,
    pods: Pods,
    *,
    may: May = lambda verb, resource: True,
    protocols: Sequence[str] = PROTOCOLS,
) -> web.StreamResponse:
    """`GET .../pods/{name}/exec`, upgraded to a WebSocket."""
    found = find_pod(request, pods, may, "pods/exec")
    if isinstance(found, web.Response):
        return found
    container = request.query.get("container", found.containers[0])
    if container not in found.containers:
        name = request.match_info["name"]
        return status(400, "BadRequest", f"container {container} is not valid for pod {name}")
    refusal = await refused(found.faults)
    if refusal is not None:
        return refusal
    protocol = choose(request, protocols)
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


def _exited(code: int) -> dict[str, Any]:
    if code == 0:
        return status_document("Success")
    if code < 0:
        code = 128 - code  # ended by a signal, as runtimes count it
    message = f"command terminated with non-zero exit code: exit code {code}"
    causes = [{"reason": "ExitCode", "message": str(code)}]
    return status_document("Failure", "NonZeroExitCode", message, details={"causes": causes})


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
    return status_document("Failure", "InternalError", words, code=500, details={"causes": [{}]})


def _find(pod: Pod, argv: Sequence[str]) -> Sequence[str] | None:
    if not argv:
        return None
    if argv[0] in pod.programs:
        return pod.programs[argv[0]]
    found = shutil.which(argv[0])
    return None if found is None else [found]

"""Port-forward of the fake API server: what server and kubelet do."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import anyio
from aiohttp import WSMsgType, web
from anyio.abc import ByteStream

from support.kubeapi.pods import May, Pod, Pods, choose, find_pod, refused, status
from transports.channels import V4


async def portforward_handler(
    request: web.Request, pods: Pods, *, may: May = lambda verb, resource: True
) -> web.StreamResponse:
    """`GET .../pods/{name}/portforward`, upgraded to a WebSocket."""
    found = find_pod(request, pods, may, "pods/portforward")
    if isinstance(found, web.Response):
        return found
    refusal = await refused(found.faults)
    if refusal is not None:
        return refusal
    asked = ",".join(request.query.getall("ports", []))
    if not asked:
        return web.Response(status=400, text='query parameter "port" is required')
    if not all(port.isdecimal() for port in asked.split(",")):
        words = f'cannot convert to []int32: strconv.ParseUint: parsing "{asked}": invalid syntax'
        return status(400, "BadRequest", words)
    if choose(request, (V4,)) is None:
        return web.Response(status=403)
    socket = web.WebSocketResponse(protocols=(V4,), max_msg_size=32 << 20)
    await socket.prepare(request)
    found.asked.append({"ports": asked, "protocol": V4})
    found.forwarding += 1
    try:
        await _forward(request, socket, found, [int(port) for port in asked.split(",")])
    except ConnectionError:
        pass  # the client has left
    finally:
        found.forwarding -= 1
    return socket


async def _forward(
    request: web.Request, socket: web.WebSocketResponse, pod: Pod, ports: Sequence[int]
) -> None:
    name, namespace = request.match_info["name"], request.match_info["namespace"]
    for number, port in enumerate(ports):
        for channel in (2 * number, 2 * number + 1):
            await socket.send_bytes(bytes((channel,)) + struct.pack("<H", port))
    streams: dict[int, ByteStream] = {}
    faults = pod.faults
    sent_bytes = 0
    async with anyio.create_task_group() as tasks:

        async def receive() -> None:
            if faults.deaf:
                await anyio.sleep_forever()
            async for message in socket:
                if message.type is WSMsgType.BINARY and message.data[:1] in map(_byte, streams):
                    try:
                        await streams[message.data[0]].send(message.data[1:])
                    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                        pass  # its end is told by the reader
            tasks.cancel_scope.cancel()

        async def copy(channel: int, stream: ByteStream) -> None:
            nonlocal sent_bytes
            async with stream:
                try:
                    async for data in stream:
                        for start in range(0, len(data), faults.frame_bytes):
                            frame = data[start : start + faults.frame_bytes]
                            sent_bytes += len(frame)
                            limit = faults.drop_after_bytes
                            if limit is not None and sent_bytes > limit and request.transport:
                                request.transport.abort()
                            await socket.send_bytes(_byte(channel) + frame)
                except (anyio.BrokenResourceError, ConnectionError):
                    pass

        async with anyio.create_task_group() as copies:
            for number, port in enumerate(ports):
                if faults.fail:
                    await socket.send_bytes(_byte(2 * number + 1) + faults.fail.encode())
                    continue
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

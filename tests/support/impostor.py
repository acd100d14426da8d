"""An agent's relay that spoils what the agent says, for the gateway's side of a command stream."""

from __future__ import annotations

import copy
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import count, cycle
from pathlib import Path
from random import Random
from typing import Any

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.lowlevel import checkpoint

from support.badinput import ODD, line, places

CLOSE = b""
"""In place of bytes: hang up."""

LONGEST_BYTES = 2 << 20
"""The longest line that the gateway is set to read: with the default of 16 MiB, what malloc keeps
of several at once would drown a leak."""


class Impostors:
    """Sockets that lead to one agent; each claims to be a node of its own.

    Args:
        agent: the Unix socket of a real agent.
        node: its node's name.
    """

    def __init__(self, seed: int, agent: Path, node: str) -> None:
        self.random = Random(seed)
        self.spoiling = False
        self.spoil: Callable[[bytes], list[bytes]] | None = None
        """What to say in place of an answer; without it, every kind in turn."""
        self.spoiled = 0
        """Bad frames said so far."""
        self._agent = agent
        self._node = f'"{node}"'.encode()
        self._odd = cycle(self.random.sample(ODD, len(ODD)))
        self._numbers = count(1_000_000)
        kinds: Sequence[Callable[[bytes], list[bytes]]] = (
            self._banner,
            self._garbage,
            self._odd_result,
            self._odd_result,
            self._odd_result,
            self._odd_result,
            self._missing,
            self._missing,
            self._odd_answer,
            self._odd_answer,
            self._odd_id,
            self._twice,
            self._error,
            self._asks,
            self._deep,
            self._bad_bytes,
            self._cut,
            self._hangs_up,
            self._swollen,
            self._swollen,
            self._batch,
            self._silence,
            self._endless,
        )
        self._kinds = cycle(kinds)

    @asynccontextmanager
    async def listening(self, paths: Mapping[str, Path]) -> AsyncIterator[None]:
        """Listen at each node's path as its agent."""
        async with AsyncExitStack() as stack:
            listeners = {
                node: await stack.enter_async_context(await anyio.create_unix_listener(path))
                for node, path in paths.items()
            }
            async with anyio.create_task_group() as tasks:
                for node, listener in listeners.items():
                    tasks.start_soon(listener.serve, partial(self._serve, node))
                yield
                tasks.cancel_scope.cancel()

    async def _serve(self, node: str, caller: SocketStream) -> None:
        async with (
            caller,
            await anyio.connect_unix(self._agent) as agent,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(_copy, caller, agent)
            await self._answer(agent, caller, node)
            _hang_up(caller, agent)

    async def _answer(self, agent: ByteStream, caller: ByteStream, node: str) -> None:
        rest = b""
        try:
            while True:
                rest += await agent.receive()
                *lines, rest = rest.split(b"\n")
                for raw in lines:
                    renamed = raw.replace(self._node, json.dumps(node).encode())
                    for piece in self._say(renamed):
                        if piece == CLOSE:
                            return
                        await caller.send(piece)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            await checkpoint()

    def _say(self, answer: bytes) -> list[bytes]:
        if not self.spoiling:
            return [answer + b"\n"]
        self.spoiled += 1
        spoil = self.spoil or next(self._kinds)
        return spoil(answer)

    def _banner(self, answer: bytes) -> list[bytes]:
        """Noise as a login shell makes it, and then the answer."""
        noise = self.random.choice([b"Welcome!\r\n", b"\x1b[2J\x00\n", b"\xff\xfe\n", b"\n \n"])
        return [noise * self.random.randrange(1, 8), answer + b"\n"]

    def _garbage(self, answer: bytes) -> list[bytes]:
        noise = self.random.randbytes(200).replace(b"\n", b" ")
        return [(noise + b"\n") * 20, answer + b"\n"]

    def _odd_result(self, answer: bytes) -> list[bytes]:
        message = json.loads(answer)
        for _ in range(self.random.choice([1, 1, 4])):
            container, key = self.random.choice(list(places(message.get("result", message))))
            container[key] = copy.deepcopy(next(self._odd))
        return [line(message) + b"\n"]

    def _missing(self, answer: bytes) -> list[bytes]:
        message = json.loads(answer)
        container, key = self.random.choice(list(places(message.get("result", message))))
        del container[key]
        return [line(message) + b"\n"]

    def _odd_answer(self, answer: bytes) -> list[bytes]:
        message = json.loads(answer)
        message[self.random.choice(["result", "jsonrpc", "method", "error"])] = copy.deepcopy(
            next(self._odd)
        )
        return [line(message) + b"\n"]

    def _odd_id(self, answer: bytes) -> list[bytes]:
        message = json.loads(answer)
        odd = [None, True, 1.5, -1, 10**30, str(message["id"]), "", [], next(self._numbers)]
        return [line(message | {"id": self.random.choice(odd)}) + b"\n"]

    def _twice(self, answer: bytes) -> list[bytes]:
        return [(answer + b"\n") * self.random.choice([2, 300])]

    def _error(self, answer: bytes) -> list[bytes]:
        number = json.loads(answer)["id"]
        message = self.random.choice(["", "\x1b[31m\x00", "m" * 1_000_000, "no", "\u2028"])
        code = self.random.choice([0, -32000, -32700, 2**60])
        error = {"code": code, "message": message, "data": next(self._odd)}
        return [line({"jsonrpc": "2.0", "id": number, "error": error}) + b"\n"]

    def _asks(self, answer: bytes) -> list[bytes]:
        """What no server may say at 2026-07-28, and progress of nothing; then the answer."""
        number = json.loads(answer)["id"]
        progress = {"progressToken": number, "progress": next(self._odd), "message": "x"}
        said: list[dict[str, Any]] = [
            {"id": 1, "method": "sampling/createMessage", "params": {}},
            {"id": number, "method": "ping"},
            {"method": "notifications/progress", "params": progress},
            {"method": "notifications/tools/list_changed"},
            {"method": "notifications/cancelled", "params": {"requestId": number}},
            {"id": next(self._numbers), "result": {}},
        ]
        return [*(line({"jsonrpc": "2.0", **one}) + b"\n" for one in said), answer + b"\n"]

    def _deep(self, answer: bytes) -> list[bytes]:
        depth = self.random.choice([100, 180, 1_000, 200_000])
        nested = b"[" * depth + b"]" * depth
        return [answer.replace(b"}", b',"x":' + nested + b"}", 1) + b"\n"]

    def _bad_bytes(self, answer: bytes) -> list[bytes]:
        data = bytearray(answer)
        for _ in range(3):
            data[self.random.randrange(len(data))] = self.random.choice(b'\x00\xff\x80\xc0{"')
        return [bytes(data) + b"\n"]

    def _cut(self, answer: bytes) -> list[bytes]:
        return [answer[: self.random.randrange(1, len(answer))], CLOSE]

    def _hangs_up(self, answer: bytes) -> list[bytes]:
        return [CLOSE]

    def _swollen(self, answer: bytes) -> list[bytes]:
        """All as it should be, but for one text or list that is far too long."""
        message = json.loads(answer)
        fitting = [
            (container, key)
            for container, key in places(message.get("result", message))
            if isinstance(container[key], str | list)
        ]
        container, key = self.random.choice(fitting)
        if isinstance(container[key], str):
            container[key] *= 300_000 // max(len(container[key]), 1) + 1
        else:
            container[key] = [copy.deepcopy(one) for one in container[key] or ["note"]] * 5_000
        return [line(message) + b"\n"]

    def _batch(self, answer: bytes) -> list[bytes]:
        return [b"[" + answer + b"]\n"]

    def _silence(self, answer: bytes) -> list[bytes]:
        return []

    def _endless(self, answer: bytes) -> list[bytes]:
        return [answer[:20], *[b"x" * 65_536] * (LONGEST_BYTES // 65_536 + 1)]


async def _copy(caller: SocketStream, agent: SocketStream) -> None:
    try:
        async for data in caller:
            await agent.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    _hang_up(caller, agent)


def _hang_up(*streams: SocketStream) -> None:
    """End what is read from them elsewhere, without cancelling it: anyio loses a race between
    that and bytes that come (InvalidStateError in the event loop)."""
    for stream in streams:
        with suppress(OSError):
            stream.extra(SocketAttribute.raw_socket).shutdown(socket.SHUT_RDWR)

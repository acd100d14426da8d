"""What a gateway and an agent say to each other, byte for byte, taken down between real ones."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import PROGRAM, ask_http, child, listening_port
from support.wire import call
from transports.base import CALL_META_KEY

__all__ = ["Recording", "key_of", "message_end", "record"]

NODE = "node-0000"
UID = "00000000-0000-4000-8000-000000000000"
"""Names of the agent recorded. Others take their place, of the same length each."""

FLEET = f"""
[[nodes]]
name = "{NODE}"
profile = "h100"
"""

CALLS = 2
"""The first makes the gateway probe. The second is asked as all later ones are."""

READ_BYTES = 65_536
SECONDS = 20.0
"""Longest wait for either of them."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)
_CALL = re.compile(rb'"%s":"[0-9a-f]+"' % CALL_META_KEY.encode())

HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Recording:
    """The requests of a gateway that sums up, and how an agent of 8 simulated H100 answers."""

    instance: str
    """Of the agent recorded; random, of the length that every instance has."""
    answers: dict[bytes, bytes]
    """By `key_of` the request."""

    def of(self, number: int) -> dict[bytes, bytes]:
        """The answers of the agent of that number, which differ in its identity alone.

        Raises:
            ValueError: a name would be longer than the one recorded.
        """
        node, uid, instance = name_of(number), uid_of(number), f"{number:0{len(self.instance)}x}"
        names = ((NODE, node), (UID, uid), (self.instance, instance))
        if any(len(recorded) != len(name) for recorded, name in names):
            raise ValueError(f"no names for an agent {number}")
        rendered = {}
        for key, answer in self.answers.items():
            for recorded, name in names:
                answer = answer.replace(recorded.encode(), name.encode())
            rendered[key] = answer
        return rendered

    def write(self, file: Path) -> None:
        """For the process that plays it back."""
        pairs = [(key.decode("latin-1"), value.decode("latin-1")) for key, value in self._items()]
        file.write_text(json.dumps([self.instance, pairs]), encoding="utf-8")

    def _items(self) -> list[tuple[bytes, bytes]]:
        return list(self.answers.items())

    @classmethod
    def read(cls, file: Path) -> Recording:
        instance, pairs = json.loads(file.read_text(encoding="utf-8"))
        return cls(instance, {k.encode("latin-1"): v.encode("latin-1") for k, v in pairs})


def name_of(number: int) -> str:
    """The node of an agent."""
    return f"node-{number:04}"


def uid_of(number: int) -> str:
    """The pod uid of an agent."""
    return f"00000000-0000-4000-8000-{number:012x}"


def record(folder: Path) -> Recording:
    """Let a real gateway ask a real agent, and take down what passes between them.

    Raises:
        RuntimeError: they say what cannot be played back.
    """
    fleet_file = folder / "recorded.toml"
    fleet_file.write_text(FLEET)
    flags = ["--node-name", NODE, "--pod-uid", UID, "--simulate", str(fleet_file)]
    flags += ["--http-port", "0", "--socket", str(folder / "recorded.sock")]
    with (
        child([*PROGRAM, "agent", *flags]) as agent,
        _tap(listening_port(agent)) as (port, answers),
    ):
        where = ["--agents", f"{NODE}=127.0.0.1:{port}", "--transports", "http"]
        with child([*PROGRAM, "gateway", *where, "--http-port", "0"]) as gateway:
            asked = listening_port(gateway)
            for _ in range(CALLS):
                found = ask_http(asked, call("get_gpu_inventory"))["structuredContent"]
                if found["coverage"]["nodes_answered"] != 1:
                    raise RuntimeError(f"the agent to be recorded failed: {found['failures']}")
    probes = [answer for key, answer in answers.items() if key.startswith(b"GET /version")]
    if len(probes) != 1 or len(answers) != 2:
        asked_for = ", ".join(key.decode("latin-1")[:200] for key in answers)
        raise RuntimeError(f"a probe and a call, twice the same, were expected, not: {asked_for}")
    instance = json.loads(probes[0].partition(HEAD_END)[2])["instance"]
    return Recording(instance, answers)


@contextmanager
def _tap(agent_port: int) -> Iterator[tuple[int, dict[bytes, bytes]]]:
    """A port that leads to the agent, and what has come by."""
    answers: dict[bytes, bytes] = {}

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # shut down below
                return
            passing = threading.Thread(target=pass_on, args=[client], daemon=True)
            passing.start()

    def pass_on(client: socket.socket) -> None:
        address = ("127.0.0.1", agent_port)
        client.settimeout(SECONDS)
        with client, socket.create_connection(address, timeout=SECONDS) as agent:
            while request := _read(client):
                agent.sendall(request)
                answers[key_of(request)] = answer = _read(agent)
                client.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=serve, daemon=True)
        accepting.start()
        try:
            yield listener.getsockname()[1], answers
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(SECONDS)


def _read(peer: socket.socket) -> bytes:
    """One HTTP message; nothing once the peer has closed."""
    data = bytearray()
    while not message_end(data):
        more = peer.recv(READ_BYTES)
        if not more:
            return b""
        data += more
    return bytes(data)


def message_end(data: bytes | bytearray) -> int:
    """The length of the HTTP message that the data begin with; 0 if it is not whole yet."""
    body = data.find(HEAD_END) + len(HEAD_END)
    if body < len(HEAD_END):
        return 0
    if found := _LENGTH.search(data, 0, body):
        end = body + int(found[1])
        return end if len(data) >= end else 0
    if _CHUNKED.search(data, 0, body):
        last = data.find(LAST_CHUNK, body)
        return last + len(LAST_CHUNK) if last >= 0 else 0
    return body


def key_of(request: bytes) -> bytes:
    """What an answer depends on: the request's line and body, but for the call's own id. Headers
    differ by address."""
    head, _, body = request.partition(HEAD_END)
    return head.partition(b"\r\n")[0] + b"\n" + _CALL.sub(b"", body)

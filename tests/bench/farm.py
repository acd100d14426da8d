"""Many agents in one process, which costs next to nothing: each plays a recording back.

`python -m bench.farm RECORDING LIVE SILENT FULL` opens so many ports of each kind and prints
them. A live one answers as the agent of its number. A silent one takes connections and never
answers. A full one has a full backlog, so that the kernel drops what knocks, as a network does
that loses packets. Then it answers questions, one a line, until its standard input ends.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.processes import Child, child
from bench.recording import READ_BYTES, Recording, key_of, message_end

__all__ = ["Farm", "farm"]

BACKLOG = 64

SEND_BYTES = 131_072
"""Room for any answer in a connection that nobody reads at the moment."""

DROPPED_SECONDS = 0.3
"""A connection to a full port must not have come about after this long."""

LIFE_SECONDS = 900.0

React = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Farm:
    """A farm that runs in a process of its own."""

    process: Child
    live: Sequence[int]
    """The port of each agent, by its number."""
    silent: Sequence[int]
    full: Sequence[int]

    def answered(self) -> list[float]:
        """When each live agent last answered a call, by the monotonic clock; 0 for never."""
        found: list[float] = self._ask("answered")
        return found

    def knocks(self) -> int:
        """Connections that the silent ports have taken so far."""
        found: int = self._ask("knocks")
        return found

    def _ask(self, question: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(question.encode() + b"\n")
        self.process.stdin.flush()
        return _told(self.process)


@contextmanager
def farm(recording: Path, *, live: int = 0, silent: int = 0, full: int = 0) -> Iterator[Farm]:
    """So many agents of each kind, listening, until the block ends."""
    counts = [str(count) for count in (live, silent, full)]
    argv = [sys.executable, "-m", "bench.farm", str(recording), *counts]
    with child(argv, stderr=None, life_seconds=LIFE_SECONDS) as process:
        yield Farm(process, **_told(process))


def _told(process: Child) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the simulated agents have ended; see above")
    return json.loads(line)


@dataclass(slots=True)
class _Ports:
    """The farm's own side: one thread, one selector."""

    recording: Recording
    answered: list[float] = field(default_factory=list)
    knocks: int = 0
    _asked: bool = True
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _kept: list[socket.socket] = field(default_factory=list)

    def open_live(self) -> int:
        number = len(self.answered)
        self.answered.append(0.0)
        answers = self.recording.of(number)
        return self._listen(lambda peer: partial(self._answer, peer, number, answers, bytearray()))

    def open_silent(self) -> int:
        def taken(peer: socket.socket) -> React:
            self.knocks += 1
            return partial(self._ignore, peer)

        return self._listen(taken)

    def open_full(self) -> int:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        # Linux keeps one more than asked for; this one is never taken.
        self._kept += [listener, socket.create_connection(listener.getsockname())]
        return _port(listener)

    def serve(self) -> None:
        """Answer agents' callers and the questions of standard input, until that ends."""
        self._react(sys.stdin, self._tell)
        while self._asked:
            for key, _ in self._selector.select():
                key.data()

    def _tell(self) -> None:
        question = sys.stdin.readline().strip()
        self._asked = bool(question)
        if question:
            print(json.dumps({"answered": self.answered, "knocks": self.knocks}[question]))
            sys.stdout.flush()

    def _listen(self, taken: Callable[[socket.socket], React]) -> int:
        listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)  # peers inherit it
        listener.setblocking(False)

        def accept() -> None:
            peer, _ = listener.accept()
            peer.setblocking(False)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._react(peer, taken(peer))

        self._react(listener, accept)
        return _port(listener)

    def _react(self, file: Any, react: React) -> None:
        self._selector.register(file, selectors.EVENT_READ, react)

    def _answer(
        self, peer: socket.socket, number: int, answers: dict[bytes, bytes], heard: bytearray
    ) -> None:
        data = self._receive(peer)
        heard += data
        while data and (end := message_end(heard)):
            key = key_of(bytes(heard[:end]))
            del heard[:end]
            if key not in answers:
                raise RuntimeError(f"a real agent was never asked this: {key!r}")
            peer.sendall(answers[key])
            if key.startswith(b"POST"):
                self.answered[number] = time.monotonic()

    def _ignore(self, peer: socket.socket) -> None:
        self._receive(peer)

    def _receive(self, peer: socket.socket) -> bytes:
        """What has come; nothing once the peer has gone, who is then forgotten."""
        try:
            data = peer.recv(READ_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            self._selector.unregister(peer)
            peer.close()
        return data


def _port(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def _check_dropped(port: int) -> None:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=DROPPED_SECONDS).close()
    except TimeoutError:
        return
    raise RuntimeError("this system takes connections beyond a full backlog")


def main(recording: str, *counts: str) -> None:
    """Open the ports, tell them, and serve."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    live, silent, full = map(int, counts)
    ports = _Ports(Recording.read(Path(recording)))
    opened = {
        "live": [ports.open_live() for _ in range(live)],
        "silent": [ports.open_silent() for _ in range(silent)],
        "full": [ports.open_full() for _ in range(full)],
    }
    for port in opened["full"][:1]:
        _check_dropped(port)
    print(json.dumps(opened), flush=True)
    ports.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])

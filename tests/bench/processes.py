"""Child processes that are measured: started, spoken to, ended by their own handle."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from support.wire import headers

__all__ = [
    "MODULE",
    "PROGRAM",
    "Child",
    "Load",
    "ask_http",
    "ask_stdio",
    "child",
    "listening_port",
]

Child = subprocess.Popen[bytes]

PROGRAM: Final = (str(Path(sys.executable).with_name("mcp-gpu")),)
"""The console script, which is what a container and a person's client start."""

MODULE: Final = (sys.executable, "-m", "mcp_gpu")

LIFE_SECONDS = 150.0
"""Longest life of a child: one that hangs is killed, and what waits for its pipes ends."""

END_SECONDS = 8.0
"""How long a child may take to end after SIGTERM; an agent promises under 6."""

_LISTENING = re.compile(rb"listening: http://127\.0\.0\.1:(\d+)/mcp")


@dataclass(frozen=True, slots=True)
class Load:
    """What a process has taken so far."""

    cpu_seconds: float
    resident_mib: float

    @classmethod
    def of(cls, process: Child) -> Load:
        return cls.of_pid(process.pid)

    @classmethod
    def of_pid(cls, pid: int) -> Load:
        """Raises: OSError: there is no such process."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20))


@contextmanager
def child(
    argv: Sequence[str], *, stderr: int | None = subprocess.PIPE, life_seconds: float = LIFE_SECONDS
) -> Iterator[Child]:
    """A process with pipes to all of its standard streams, ended with the block.

    Args:
        stderr: None for this process's own.
        life_seconds: for one that must live longer than most.
    """
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=_environment(),
        start_new_session=True,  # Ctrl-C is for this process, which ends them in order
    )
    watchdog = threading.Timer(life_seconds, process.kill)
    watchdog.daemon = True
    watchdog.start()
    with process:  # closes the pipes and waits
        try:
            yield process
        finally:
            watchdog.cancel()
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _environment() -> dict[str, str]:
    """This process's own, without our settings, and with byte code kept.

    What is installed has its byte code, as pip writes it. A checkout's is written at the first
    start, unless this variable forbids it: then each start compiles all modules anew.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MCP_GPU_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept


def listening_port(process: Child) -> int:
    """The port that a server of ours says it listens on, once it does.

    Raises:
        RuntimeError: it ended instead.
    """
    assert process.stderr is not None
    said = b""
    for line in process.stderr:
        if found := _LISTENING.search(line):
            # It logs every call, and stands still where nobody reads what it logs.
            threading.Thread(target=deque, args=[process.stderr, 0], daemon=True).start()
            return int(found[1])
        said += line
    raise RuntimeError(f"{process.args!r} ended: {said.decode(errors='replace')[-500:]}")


def ask_http(port: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """The result of one request in a connection of its own, answered as plain JSON."""
    head = {"Content-Type": "application/json"} | headers(dict(message), "application/json")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIFE_SECONDS)
    try:
        connection.request("POST", "/mcp", json.dumps(message), head)
        return _result(connection.getresponse().read())
    finally:
        connection.close()


def ask_stdio(process: Child, message: Mapping[str, Any]) -> dict[str, Any]:
    """The result of the first request over a child's standard input and output."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()
    return _result(process.stdout.readline())


def _result(document: bytes) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(document)["result"]
    return result

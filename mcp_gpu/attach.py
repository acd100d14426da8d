"""`mcp-gpu attach`: a caller's stdin and stdout joined to the running agent's Unix socket.

What `kubectl exec` and a gateway's exec stream start inside the pod. It copies bytes and
understands none, so it starts in milliseconds and costs a bare interpreter: standard library
only, and of that as little as possible (argparse alone would double the imports).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from errno import EPERM

from mcp_gpu.sockets import SOCKET_ENV, UNIX, default_socket_path

__all__ = ["main"]

USAGE = f"""\
usage: mcp-gpu attach [--socket PATH] [--relay-only] [--idle SECONDS] [--check]

Speak MCP over stdin and stdout with the agent that runs on this machine.
Where none runs, become one (unless --relay-only).

  --socket PATH    the agent's socket (default: ${SOCKET_ENV}, now {{path}})
  --relay-only     exit with status 3 where no agent listens
  --idle SECONDS   exit after this much silence
                   (default: {{person}}, with --relay-only {{gateway}})
  --check          say who listens, exit 0, or 3 where nobody does
"""

NOBODY_LISTENS = 3
"""Exit status where no agent answers: a gateway reports the node's agent as not running."""

PERSON_IDLE_SECONDS = 4 * 3600
"""A person thinks, lunches and comes back; the cost of waiting is 9 MiB."""

GATEWAY_IDLE_SECONDS = 300
"""A gateway sends keep-alive probes, so silence means that it or the API server is gone: a dropped
exec stream may never deliver end-of-file."""

CONNECT_SECONDS = 2.0
"""A local agent that lives accepts at once; one whose backlog is full does not live."""

CHECK_SECONDS = 2.0
"""How long `--check` waits for the agent to say who it is."""

DRAIN_SECONDS = 35.0
"""After the caller's end-of-file, how long answers may still take. Longer than the agent
itself goes on (`mcp_gpu.serving.stream.DRAIN_SECONDS`), so that it is the agent who ends it."""

CHUNK_BYTES = 65_536

PIPE_BYTES: int = getattr(select, "PIPE_BUF", 512)
"""A pipe that polls writable takes this much without blocking (POSIX, whose least is 512)."""


class _Usage(Exception):
    """The command line is wrong."""


class _Options:
    def __init__(self, arguments: Sequence[str]) -> None:
        self.path = default_socket_path()
        self.named = False
        self.relay_only = False
        self.check = False
        idle: float | None = None
        rest = list(arguments)
        while rest:
            name, equals, value = rest.pop(0).partition("=")
            if name in ("--socket", "--idle"):
                if not equals:
                    if not rest:
                        raise _Usage(f"{name} needs a value")
                    value = rest.pop(0)
                if name == "--socket":
                    self.path, self.named = value, True
                else:
                    idle = _seconds(value)
            elif name == "--relay-only" and not equals:
                self.relay_only = True
            elif name == "--check" and not equals:
                self.check = True
            else:
                raise _Usage(f"unknown argument {name}")
        default = GATEWAY_IDLE_SECONDS if self.relay_only else PERSON_IDLE_SECONDS
        self.idle_seconds = default if idle is None else idle


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:  # also refuses nan; select takes no longer wait
        raise _Usage(f"--idle takes a number of seconds above 0, not {text}")
    return seconds


def main(arguments: Sequence[str]) -> int:
    """Run `mcp-gpu attach` with what follows the word; returns the exit status."""
    if not UNIX:
        _say("works where agents run, on Linux: this system has no Unix sockets to relay to")
        return 2
    if "-h" in arguments or "--help" in arguments:
        sys.stdout.write(
            USAGE.format(
                path=default_socket_path(),
                person=PERSON_IDLE_SECONDS,
                gateway=GATEWAY_IDLE_SECONDS,
            )
        )
        return 0
    try:
        options = _Options(arguments)
    except _Usage as error:
        _say(f"{error}\n{USAGE.splitlines()[0]}")
        return 2
    # Dying of them silently is right for a relay; Python would print a traceback for SIGINT.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        connection = _connect(options)
    except OSError as error:
        return _nobody(options, error)
    with connection:
        if options.check:
            return _check(connection, options.path)
        try:
            return _relay(connection, options.idle_seconds)
        except OSError as error:
            _say(f"standard input or output failed: {error.strerror}")
            return 1


def _connect(options: _Options) -> socket.socket:
    """Raises OSError: nobody listens there, or somebody who is not to be believed."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(CONNECT_SECONDS)
        connection.connect(options.path)
        owner = _owner(connection)
        own = os.geteuid()
        # The agent itself serves its own user and root alone, so this turns no agent away. Root may
        # name the socket of any; where none is named, the way there is root's own.
        if owner not in (own, 0) and not (own == 0 and options.named):
            raise PermissionError(EPERM, f"what listens there is another user's, uid {owner}")
    except BaseException:
        connection.close()
        raise
    return connection


def _owner(connection: socket.socket) -> int:
    """The uid of who listens: whoever was first may have made a socket where ours should be."""
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(told[4:8], sys.byteorder)  # struct ucred: pid, uid, gid


def _nobody(options: _Options, error: OSError) -> int:
    reason = error.strerror or str(error) or type(error).__name__
    if options.check or options.relay_only:
        _say(f"no agent listens at {options.path}: {reason}")
        return NOBODY_LISTENS
    _say(f"no agent listens at {options.path} ({reason}); becoming one for this session")
    # Half a second and 65 MiB that only this case pays.
    from mcp_gpu.cli import main as command_line

    return command_line(["agent", "--stdio"])


def _relay(connection: socket.socket, idle_seconds: float) -> int:
    """Copy both ways until the agent has closed, or nothing moves any more."""
    connection.setblocking(False)
    to_agent, to_caller = bytearray(), bytearray()
    caller_open = agent_open = True
    told_agent = False
    while agent_open or to_caller:
        # Each side is read only while the other keeps up: memory stays bounded.
        readers: list[int | socket.socket] = []
        if caller_open and agent_open and len(to_agent) < CHUNK_BYTES:
            readers.append(0)
        if agent_open and len(to_caller) < CHUNK_BYTES:
            readers.append(connection)
        writers: list[int | socket.socket] = [connection] if to_agent else []
        if to_caller:
            writers.append(1)
        limit = idle_seconds if caller_open else min(idle_seconds, DRAIN_SECONDS)
        readable, writable, _ = select.select(readers, writers, [], limit)
        if not readable and not writable:
            _say(f"nothing moved for {limit:g} s")
            return 0
        if connection in readable:
            received = _receive(connection)
            agent_open = bool(received)
            to_caller += received
        if connection in writable:
            try:
                del to_agent[: connection.send(to_agent)]
            except OSError:
                to_agent.clear()  # it takes no more; what it said last is still to be read
        if 0 in readable:
            read = os.read(0, CHUNK_BYTES)
            caller_open = bool(read)
            to_agent += read
        if 1 in writable:
            try:
                del to_caller[: os.write(1, to_caller[:PIPE_BYTES])]
            except OSError:
                return 0  # the caller has gone, which is how most sessions end
        if not caller_open and not to_agent and not told_agent:
            told_agent = True
            _half_close(connection)
    if caller_open:
        _say("the agent closed the connection")
    return int(caller_open)


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(CHUNK_BYTES)
    except OSError:
        return b""


def _half_close(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the agent was faster


def _check(connection: socket.socket, path: str) -> int:
    import json  # 3 ms that relaying does without

    request = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "server/discover",
        "params": {
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
                "io.modelcontextprotocol/clientInfo": {"name": "mcp-gpu attach", "version": "1"},
            }
        },
    }
    connection.settimeout(CHECK_SECONDS)
    try:
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(connection.makefile("rb").readline(1 << 20))
        identity = answer["result"]["_meta"]["mcp-gpu/identity"]
        who = f"{identity['name']} {identity['version']} on node {identity['node']}"
    except (OSError, ValueError, TypeError, KeyError) as error:
        _say(f"what listens at {path} does not answer as an agent: {error!r}")
        return NOBODY_LISTENS
    sys.stdout.write(f"{who} listens at {path}\n")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"mcp-gpu attach: {text}\n")

"""CommandTransport: an agent through the standard input and output of any command.

Such as `ssh NODE mcp-gpu attach --relay-only`, `docker exec -i` or `kubectl exec -i`.
The command is an argument vector and no shell reads it here; ssh, though, hands what
it is given to a shell on the far side, so what a template takes in is held to the
characters of Kubernetes names and IP addresses.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from subprocess import PIPE
from typing import Any, Self

import anyio
from anyio.abc import Process, TaskGroup

from transports.base import Target
from transports.errors import BadPeer, Failure, Unreachable
from transports.registry import read_options
from transports.stream import STDERR_TAIL_BYTES, Pipe, StreamSettings, StreamTransport

__all__ = ["CommandSettings", "CommandTransport"]

FIELDS = frozenset({"node", "namespace", "pod", "container", "address"})
"""What a template may take in from a target; `address` is its first."""

_SAFE = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9._:-]*", re.ASCII)
"""No leading dash, so that no name is read as an option, and nothing that means something to a
shell on the far side of ssh."""

CLOSE_SECONDS = 1.0
"""How long a program may take to end once its standard input is closed, and again once it is
told to terminate. The relay takes milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSettings(StreamSettings):
    """Settings of the command transport."""

    argv: tuple[str, ...] = ()
    """The command for every agent, with fields such as `{node}`. Without it only agents are
    reached that bring a command of their own."""


class CommandTransport(StreamTransport):
    """Reaches an agent through a command's standard input and output.

    A target may bring a command of its own, taken literally:
    `options={"command": {"argv": ["ssh", "node-7", "mcp-gpu", "attach", "--relay-only"]}}`.

    Raises:
        ValueError: the template is not one.
    """

    name = "command"

    def __init__(self, argv: Sequence[str] = (), *, settings: StreamSettings | None = None) -> None:
        super().__init__(settings or StreamSettings())
        self._argv = tuple(argv)
        self._fields = frozenset(field for part in self._argv for field in _fields(part))

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make one from settings; the entry point of the registry.

        Raises:
            ValueError: an option is unknown or has no valid value.
        """
        settings = read_options(CommandSettings, options)
        return cls(settings.argv, settings=settings)

    def applies(self, target: Target) -> bool:
        """Whether the target brings a command, or all that the template takes in."""
        if _own_argv(target):
            return True
        values = _values(target)
        return bool(self._argv) and all(values[field] for field in self._fields)

    async def open_pipe(self, target: Target, tasks: TaskGroup) -> Pipe:
        """Start the command.

        Raises:
            Unreachable: it cannot be started.
            BadPeer: a name of the target's may not stand in a command.
        """
        argv = self._command(target)
        try:
            process = await anyio.open_process(
                argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
            )
        except (OSError, ValueError) as error:
            message = f"cannot start {argv[0]}: {error}"
            raise Unreachable(
                message, target=target, transport=self.name, symptom="no_command"
            ) from error
        pipe = _ProcessPipe(process)
        tasks.start_soon(pipe.drain_stderr)
        return pipe

    def _command(self, target: Target) -> list[str]:
        if own := _own_argv(target):
            return own
        values = _values(target)
        for field in sorted(self._fields):
            if not _SAFE.fullmatch(values[field]):
                message = f"the {field} {values[field]!r} may not stand in a command"
                raise BadPeer(message, target=target, transport=self.name)
        if not self._argv:
            raise Unreachable("no command is set", target=target, transport=self.name)
        return [part.format_map(values) for part in self._argv]


class _ProcessPipe:
    """The three standard streams of a child process in a process group of its own."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._stderr = bytearray()
        self._exit_status: int | None = None

    @property
    def exit_status(self) -> int | None:
        return self._exit_status

    @property
    def stderr_tail(self) -> bytes:
        return bytes(self._stderr[-STDERR_TAIL_BYTES:])

    @property
    def failure(self) -> Failure | None:
        return None

    async def receive(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.receive()

    async def send(self, data: bytes, /) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send(data)

    async def drain_stderr(self) -> None:
        """Read standard error to its end, so that the program never blocks on it."""
        assert self._process.stderr is not None
        try:
            async for data in self._process.stderr:
                self._stderr += data
                del self._stderr[:-STDERR_TAIL_BYTES]
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            pass  # closed below us at the end

    async def aclose(self) -> None:
        """Close its input, then terminate it, then kill it; its process group in any case."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        if await self._exits():
            self._exit_status = self._process.returncode
        else:
            self._end(hard=False)
            await self._exits()
        # Whatever it has started and left behind, too.
        self._end(hard=True)
        with anyio.move_on_after(CLOSE_SECONDS):
            await self._process.aclose()

    async def _exits(self) -> bool:
        with anyio.move_on_after(CLOSE_SECONDS):
            await self._process.wait()
            return True
        return False

    def _end(self, *, hard: bool) -> None:
        try:
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL if hard else signal.SIGTERM)
            elif hard:  # Windows knows no groups: what it has started and left behind stays
                self._process.kill()
            else:
                self._process.terminate()
        except (ProcessLookupError, PermissionError):
            pass  # all gone; or on some systems only zombies left


def _fields(part: str) -> list[str]:
    try:
        parsed = list(Formatter().parse(part))
    except ValueError as error:
        raise ValueError(f"command template {part!r}: {error}") from None
    fields: list[str] = []
    for _, field, spec, conversion in parsed:
        if field is None:
            continue
        if field not in FIELDS or spec or conversion:
            known = ", ".join(f"{{{name}}}" for name in sorted(FIELDS))
            raise ValueError(f"command template {part!r}: {{{field}}} is none of {known}")
        fields.append(field)
    return fields


def _own_argv(target: Target) -> list[str]:
    argv = target.options.get("command", {}).get("argv", ())
    return [str(part) for part in argv]


def _values(target: Target) -> dict[str, str]:
    return {
        "node": target.node,
        "namespace": target.namespace,
        "pod": target.pod,
        "container": target.container,
        "address": target.addresses[0] if target.addresses else "",
    }

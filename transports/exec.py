"""ExecTransport: an agent through the API server, as `kubectl exec` reaches it.

From the API server to the kubelet to the container: no packet takes the pod network, so it works
where pods of one node cannot reach those of another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import anyio
from anyio.abc import TaskGroup

from transports import channels
from transports.base import Target
from transports.errors import Failure, Unreachable
from transports.pods import Grant, PodApi, broken_off, check_names
from transports.registry import read_options
from transports.stream import STDERR_TAIL_BYTES, Pipe, StreamSettings, StreamTransport

if TYPE_CHECKING:
    from transports.websocket import WebSocket

__all__ = ["ExecSettings", "ExecTransport"]

CONTAINER = "agent"
"""The agent's container, where a target names none. The pod may have others, of other people."""

END_SECONDS = 1.0
"""How long the program may take to end once its standard input is closed. The relay takes
milliseconds."""

NO_COMMAND_STATUSES = (126, 127)
"""What shells and some container runtimes exit with where a command cannot be run."""

# How containerd, CRI-O and runc say it; there is no code for it.
_NO_COMMAND = re.compile(r"runtime exec failed|start container process|executable file not found")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecSettings(StreamSettings):
    """Settings of the exec transport."""

    argv: tuple[str, ...] = ("mcp-gpu", "attach", "--relay-only")
    """What to start in the agent's container."""
    kubeconfig: str = ""
    """A path, or several as in `KUBECONFIG`. Empty: the pod's own credentials, else
    `KUBECONFIG` or `~/.kube/config`."""
    contexts: tuple[str, ...] = ()
    """Contexts of the kubeconfig that targets name as their cluster. Empty: its current one."""


class ExecTransport(StreamTransport):
    """Reaches an agent by starting a relay in its container.

    Takes `get` and `create` on `pods/exec` in the agents' namespace, which is its `grant`.

    Raises:
        ValueError: there is no command.
    """

    name = "exec"
    grant = Grant("exec")

    def __init__(self, settings: ExecSettings | None = None) -> None:
        settings = settings or ExecSettings()
        if not settings.argv:
            raise ValueError("argv names no command")
        super().__init__(settings)
        self._argv = settings.argv
        self._pods = PodApi(self.grant, settings.kubeconfig, settings.contexts)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make one from settings; the entry point of the registry.

        Raises:
            ValueError: an option is unknown or has no valid value.
        """
        return cls(read_options(ExecSettings, options))

    def applies(self, target: Target) -> bool:
        """Whether the target names a pod and its namespace, in a cluster known here."""
        return self._pods.applies(target)

    async def open_pipe(self, target: Target, tasks: TaskGroup) -> Pipe:
        """Start the command in the agent's container.

        Raises:
            Denied: there are no credentials, or they do not suffice, or admission refuses.
            Gone: the pod or the container is not there or not running.
            BadPeer: what answers is no API server, or a name is none of Kubernetes'.
            Unreachable: the API server or the kubelet cannot be reached.
        """
        container = target.container or CONTAINER
        check_names(target, self.name, container)
        flags = {"container": container, "stdin": "true", "stdout": "true", "stderr": "true"}
        params = [*flags.items(), ("tty", "false"), *(("command", part) for part in self._argv)]
        socket = await self._pods.open(target, params, channels.PROTOCOLS, transport=self.name)
        return _ExecPipe(socket, f"{self._argv[0]!r} in container {container!r}")

    async def _left(self) -> None:
        await self._pods.aclose()


class _ExecPipe:
    """The standard streams of a program that runs in a container."""

    def __init__(self, socket: WebSocket, program: str) -> None:
        self._socket = socket
        self._program = program
        self._stderr = bytearray()
        self._exit: channels.Exit | None = None
        self._ended = False

    @property
    def exit_status(self) -> int | None:
        return None if self._exit is None else self._exit.code

    @property
    def stderr_tail(self) -> bytes:
        return bytes(self._stderr)

    @property
    def failure(self) -> Failure | None:
        if self._exit is None:
            return None
        if self._exit.code is None:
            return _failure(self._exit.message, self._program)
        if self._exit.code in NO_COMMAND_STATUSES:
            words = f"cannot run {self._program}: exit status {self._exit.code}"
            return Failure(Unreachable, words, "no_command")
        return None

    async def receive(self) -> bytes:
        while not self._ended:
            try:
                frame = channels.parse(await self._socket.receive())
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                self._ended = True
                raise
            match frame:
                case (channels.STDOUT, data):
                    return data
                case (channels.STDERR, data):
                    self._stderr += data
                    del self._stderr[:-STDERR_TAIL_BYTES]
                case (channels.ERROR, data):
                    # Comes last, when the program's output has been sent.
                    self._exit = channels.read_exit(data)
                    self._ended = True
        raise anyio.EndOfStream

    async def send(self, data: bytes, /) -> None:
        for frame in channels.frames(channels.STDIN, data):
            await self._socket.send(frame)

    async def aclose(self) -> None:
        """Close the program's standard input and let it end, then the connection in any case.

        Over v4 the two are one: the kubelet closes the input of what loses its connection.
        """
        if not self._ended and self._socket.protocol == channels.V5:
            with anyio.move_on_after(END_SECONDS):
                await self._end()
        await self._socket.aclose()

    async def _end(self) -> None:
        try:
            await self._socket.send(channels.closing(channels.STDIN))
            while True:
                await self.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass  # it has


def _failure(words: str, program: str) -> Failure:
    """Why the server could not run the program to an end of its own."""
    failure = broken_off(words)
    if failure.kind is Unreachable and _NO_COMMAND.search(words):
        return Failure(Unreachable, f"cannot run {program}: {words}", "no_command")
    return failure

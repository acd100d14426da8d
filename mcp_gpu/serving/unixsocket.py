"""The agent's Unix socket: what `mcp-gpu attach` relays to.

Whoever reaches it speaks as the agent, so it is closed to others three times: a directory of mode
0700, a socket of mode 0600, and the peer's uid. Never an abstract name: those are shared by every
pod on the host's network.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream
from mcp.server.lowlevel import Server

from mcp_gpu.serving.endpoint import ListenError
from mcp_gpu.serving.stream import Stop, serve_stream
from mcp_gpu.telemetry.origin import ORIGIN, Origin

__all__ = ["bind", "serve_unix_socket"]

logger = logging.getLogger(__name__)

CONNECTIONS = 64
"""Clients at once. A gateway keeps one, a person has one, and dropped ones die of idleness."""

PATH_BYTES = 107
"""What fits `sun_path` with its final zero on Linux (unix(7))."""

WRITE_SECONDS = 60.0
"""How long a client may leave answers unread before it counts as gone."""

ACCEPT_RETRY_SECONDS = 1.0
"""Pause after a failure to accept, which would otherwise spin."""

CONNECT_SECONDS = 2.0
"""How long to wait for a sign of life from what holds the path."""


@contextmanager
def bind(path: Path) -> Iterator[socket.socket]:
    """A socket listening at `path`, removed again at the end if it is still ours.

    Raises:
        ListenError: the directory is not private, something listens there or lies in the way.
    """
    if len(os.fsencode(path)) > PATH_BYTES:
        raise ListenError(f"socket path {path} is longer than {PATH_BYTES} bytes")
    bound = socket.socket(socket.AF_UNIX)
    try:
        with _private_directory(path.parent):
            _clear(path)
            bound.bind(os.fspath(path))
            path.chmod(0o600)
            bound.listen()
        inode = path.stat().st_ino
    except OSError as error:
        bound.close()
        raise ListenError(f"cannot listen at {path}: {error.strerror}") from error
    except ListenError:
        bound.close()
        raise
    try:
        yield bound
    finally:
        bound.close()
        with suppress(OSError):
            if path.stat().st_ino == inode:
                path.unlink()


@contextmanager
def _private_directory(directory: Path) -> Iterator[None]:
    """Create it where it is missing, prove that it is ours alone, and lock it meanwhile:
    two agents starting at once must not each take the other's socket for a stale one."""
    with suppress(FileExistsError):
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise ListenError(
                f"the socket's directory {directory} is open to others "
                f"(owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}): "
                "give the socket a directory of its own with mode 0700"
            )
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    """Remove a socket whose owner has died, and nothing else."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ListenError(f"{path} is in the way: it is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CONNECT_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except TimeoutError:
            pass  # a full backlog: alive, if not well
    raise ListenError(f"another agent listens at {path}")


async def serve_unix_socket(
    server: Server[Any], bound: socket.socket, *, lifespan_state: Any, stop: Stop
) -> None:
    """Serve every client that connects until `stop` is requested and all are answered."""
    listener = await SocketListener.from_socket(bound)
    slots = anyio.Semaphore(CONNECTIONS)

    async def serve(connection: SocketStream) -> None:
        async with connection:
            pid, uid = _peer(connection)
            if uid not in (os.geteuid(), 0):
                logger.warning("refused a client of the Unix socket: uid %d", uid)
                return
            ORIGIN.set(Origin(listener="unix", peer=f"uid {uid} pid {pid}"))
            try:
                slots.acquire_nowait()
            except anyio.WouldBlock:
                logger.warning("refused a client: %d are connected", CONNECTIONS)
                return
            try:
                await serve_stream(
                    server,
                    connection,
                    lifespan_state=lifespan_state,
                    stop=stop,
                    write_seconds=WRITE_SECONDS,
                )
            except Exception:  # boundary: one client; the others go on
                logger.exception("serving a client of the Unix socket failed")
            finally:
                slots.release()

    async with anyio.create_task_group() as clients:

        async def accept() -> None:
            async with listener:
                while True:
                    try:
                        await listener.serve(serve, clients)
                    except anyio.BrokenResourceError as error:  # out of descriptors, most likely
                        logger.warning("accepting on the Unix socket failed: %s", error.__cause__)
                        await anyio.sleep(ACCEPT_RETRY_SECONDS)

        async with anyio.create_task_group() as accepting:
            accepting.start_soon(accept)
            await stop.requested.wait()
            accepting.cancel_scope.cancel()


def _peer(connection: SocketStream) -> tuple[int, int]:
    """The client's process and user."""
    raw = connection.extra(SocketAttribute.raw_socket)
    peer = raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", peer)
    return pid, uid

"""What every byte-stream transport shares: a warm stream per agent that many calls use at once.

A subclass says how to open a `Pipe`. Here is the rest: each stream has one owner task,
which opens it once for however many callers, reads without ever pausing, writes whole
lines, keeps it alive while it is quiet, closes it when nobody has used it for long, and
when it breaks says why to each caller it leaves without an answer. The next call after
that opens a new one.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import anyio
from anyio.abc import TaskGroup
from mcp import MCPError
from mcp.types import JSONRPCMessage

from transports.base import PAD_CHARS, Identity, Target, TransportStreams
from transports.errors import BadPeer, Broken, Failure, Gone, TransportError, Unreachable, leaves
from transports.framing import MAX_FRAME_BYTES, FrameTooLong, LineSplitter, decode, encode
from transports.multiplex import Channel, Multiplexer
from transports.session import discover, request_identity
from transports.tasks import OwnsTasks
from transports.text import one_line
from transports.turns import Turns

__all__ = ["Pipe", "StreamSettings", "StreamTransport"]

logger = logging.getLogger(__name__)

NO_AGENT_EXIT_STATUS = 3
"""What `mcp-gpu attach --relay-only` exits with where no agent listens."""

STDERR_TAIL_BYTES = 400
"""How much of the far program's standard error is quoted in an error: its last words. With the
exit status before them they fit into a message."""

NOISE_LINES = 8
"""Lines in a row that are not JSON-RPC which a peer may send, such as a login banner."""

NOISE_CHARS = 200
"""How much of such a line is quoted in an error."""

WRITE_BYTES = 65_536
"""What is written at once: the write deadline is for progress, not for a whole large frame."""


class Pipe(Protocol):
    """A two-way byte stream to a program beside the agent."""

    async def receive(self) -> bytes:
        """The next bytes, at least one.

        Raises:
            anyio.EndOfStream: the far side has ended.
            OSError, anyio.BrokenResourceError, anyio.ClosedResourceError: the stream broke.
        """

    async def send(self, data: bytes, /) -> None:
        """Write all of the bytes. Raises as `receive` does."""

    async def aclose(self) -> None:
        """End the far program and free everything, within a bound of the pipe's own.

        Called once, shielded from cancellation.
        """

    @property
    def exit_status(self) -> int | None:
        """What the program ended with of its own accord, else None. Final after `aclose`."""

    @property
    def stderr_tail(self) -> bytes:
        """The last of what it wrote to standard error. Final after `aclose`."""

    @property
    def failure(self) -> Failure | None:
        """Why it ended, where the way there knows more than an exit status says. Final after
        `aclose`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """Limits of a stream transport; what each is for stands beside it."""

    open_timeout_seconds: float = 10.0
    """For opening a stream, and then for its first sign of life."""
    write_timeout_seconds: float = 10.0
    """How long the far side may read nothing before the stream counts as dead."""
    keepalive_seconds: float = 25.0
    """Silence after which the peer is asked for a sign of life. Below the 30 s after which
    some load balancers drop what is quiet."""
    keepalive_timeout_seconds: float = 10.0
    """How long it may take to give one."""
    idle_seconds: float = 300.0
    """Time without a call after which a stream is closed."""
    max_opening: int = 16
    """Streams opened at the same time, of which one that takes long no longer counts: a cold start
    must not flood an API server."""
    max_open: int = 1024
    """Streams held at the same time. Past it the longest unused one makes room."""
    max_frame_bytes: int = MAX_FRAME_BYTES
    """The longest message accepted from a peer."""


class StreamTransport(OwnsTasks, ABC):
    """Base of the transports that reach an agent over a byte stream."""

    def __init__(self, settings: StreamSettings) -> None:
        self.settings = settings
        # In order of last use, the longest unused first.
        self._streams: dict[str, _Stream] = {}
        self._was_full = False

    @property
    @abstractmethod
    def name(self) -> str:
        """The path's name in settings, answers and metrics."""

    @property
    def streams(self) -> int:
        """Streams that are open or being opened."""
        return len(self._streams)

    @abstractmethod
    def applies(self, target: Target) -> bool:
        """Whether the target says enough to open a pipe. No I/O."""

    @abstractmethod
    async def open_pipe(self, target: Target, tasks: TaskGroup) -> Pipe:
        """Open a byte stream to the agent's relay. Bounded by the caller.

        Args:
            tasks: where the pipe may run tasks of its own; cancelled after `Pipe.aclose`.

        Raises:
            TransportError: it cannot be opened. Nothing is left behind, on cancellation neither.
        """

    async def probe(self, target: Target, *, pad_chars: int = PAD_CHARS) -> Identity:
        """Ask who answers on the warm stream, opening it where there is none.

        Raises:
            TransportError: the path does not work; the class says how.
        """
        return await discover(self, target, pad_chars=pad_chars)

    @asynccontextmanager
    async def connect(self, target: Target) -> AsyncIterator[TransportStreams]:
        """A conversation of one's own on the agent's warm stream, for requests and progress.

        Leaving with a request unanswered tells the peer that it is cancelled.

        Raises:
            TransportError: on entering, the stream cannot be opened; on leaving, it broke
                before every request was answered.
        """
        stream = await self._warm(target)
        channel = stream.attach()
        try:
            yield channel.inbox, channel
        except Exception as error:
            if channel.failure is not None:
                raise channel.failure.error(target, self.name) from error
            raise
        else:
            if channel.failure is not None:
                raise channel.failure.error(target, self.name)
        finally:
            stream.detach(channel)

    async def _warm(self, target: Target) -> _Stream:
        while True:
            stream = self._streams.pop(target.key, None) or self._start(target)
            self._streams[target.key] = stream
            if stream.ready.is_set():
                return stream  # without a checkpoint since the look: it is alive
            await stream.opened()
            if stream.failure is not None:
                raise stream.failure.error(target, self.name)

    def _start(self, target: Target) -> _Stream:
        most = self.settings.max_open
        if len(self._streams) >= most:
            unused = next((s for s in self._streams.values() if s.unused), None)
            if unused is None:
                message = f"all {most} streams are in use"
                raise Unreachable(message, target=target, transport=self.name)
            if not self._was_full:
                logger.warning("%s: %d streams are open: unused ones make room", self.name, most)
            self._was_full = True
            unused.end(Failure(Broken, "closed to make room for another stream"))
        _ = self._tasks  # raises outside of the block, before there is anything to close
        stream = _Stream(self, target)
        self._keep_running(stream.run)
        return stream

    def forget(self, stream: _Stream) -> None:
        """Give the stream to no more callers."""
        if self._streams.get(stream.target.key) is stream:
            del self._streams[stream.target.key]

    async def _entered(self) -> None:
        self.turns = Turns(self.settings.max_opening)


class _Stream:
    """One warm stream, and the task that owns it."""

    def __init__(self, transport: StreamTransport, target: Target) -> None:
        self.target = target
        self.ready = anyio.Event()
        """Set once the stream is open or has failed to open."""
        self.failure: Failure | None = None
        self._transport = transport
        self._settings = transport.settings
        self._users = self._waiting = 0
        self._used_at = self._heard_at = anyio.current_time()
        self._answered = False
        self._noise: list[str] = []
        # Unbounded, so that nobody blocks on it or leaves half a line behind when cancelled.
        # What it can hold is bounded by the callers, each waiting for the answer to one
        # message, and by the write deadline.
        self._outbox, self._unsent = anyio.create_memory_object_stream[JSONRPCMessage](math.inf)
        self._multiplexer = Multiplexer(self._outbox.send_nowait)
        self._scope = anyio.CancelScope()

    @property
    def unused(self) -> bool:
        """Open, and nobody has a conversation on it."""
        return self._users == 0 and self.ready.is_set()

    async def opened(self) -> None:
        """Wait until it is `ready`."""
        self._waiting += 1
        try:
            await self.ready.wait()
        finally:
            self._waiting -= 1

    def attach(self) -> Channel:
        """A conversation on the stream, which counts as in use until `detach`."""
        self._users += 1
        return self._multiplexer.open()

    def detach(self, channel: Channel) -> None:
        channel.close()
        self._users -= 1
        self._used_at = anyio.current_time()

    def end(self, failure: Failure) -> None:
        """Give the stream up. The first reason given is the one that counts."""
        if self.failure is None:
            self.failure = failure
            self._multiplexer.close(failure)
            self._transport.forget(self)
        self._scope.cancel()
        self.ready.set()

    async def run(self) -> None:
        """Own the stream from opening to the end of its program."""
        try:
            async with anyio.create_task_group() as tasks:
                pipe = await self._open(tasks)
                if pipe is not None:
                    await self._serve(pipe)
                tasks.cancel_scope.cancel()
        # The boundary to `open_pipe` and `Pipe`, which may be a third party's: a defect
        # there costs this stream, not every stream of the transport.
        except Exception as error:
            leaf = next(leaves(error))
            logger.exception("stream to %s failed unexpectedly", self.target)
            self.end(Failure(Broken, f"{type(leaf).__name__}: {leaf}"))
        finally:
            self.end(Failure(Broken, "the transport was closed"))
            self._outbox.close()
            self._unsent.close()

    async def _open(self, tasks: TaskGroup) -> Pipe | None:
        seconds = self._settings.open_timeout_seconds
        try:
            async with self._transport.turns.one():
                if not self._waiting:
                    # All have left while it was others' turn. What has begun goes on, for the next
                    # caller: some ways take longer to open than a probe is waited for.
                    self.end(Failure(Broken, "nobody waited for it any more"))
                    return None
                with anyio.fail_after(seconds):
                    return await self._transport.open_pipe(self.target, tasks)
        except TransportError as error:
            self.end(Failure(type(error), error.message, error.symptom))
        except TimeoutError:
            self.end(Failure(Unreachable, f"not open within {seconds:g} s", "silent"))
        return None

    async def _serve(self, pipe: Pipe) -> None:
        self._heard_at = anyio.current_time()
        self.ready.set()
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._read, pipe)
                    tasks.start_soon(self._write, pipe)
                    tasks.start_soon(self._watch)
        finally:
            with anyio.CancelScope(shield=True):
                await pipe.aclose()
        if self.failure is None:
            self.end(self._ended(pipe))
            logger.info("stream to %s: %s", self.target, self.failure)

    async def _read(self, pipe: Pipe) -> None:
        splitter = LineSplitter(self._settings.max_frame_bytes)
        try:
            while True:
                data = await pipe.receive()
                self._heard_at = anyio.current_time()
                for line in splitter.feed(data):
                    self._take(line)
        except FrameTooLong as error:
            self.end(Failure(BadPeer, str(error)))
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            self._lost()

    def _lost(self) -> None:
        # Why is known in a moment, from the program's exit status. No new call waits for it.
        self._transport.forget(self)
        self._scope.cancel()

    def _take(self, line: bytes) -> None:
        try:
            message = decode(line)
        except ValueError:
            self._noise.append(_line(line[:NOISE_CHARS]))
            if len(self._noise) > NOISE_LINES:
                self.end(Failure(BadPeer, f"sends something else than MCP{self._last_words(b'')}"))
            return
        self._answered = True
        self._noise.clear()
        self._multiplexer.receive(message)

    async def _write(self, pipe: Pipe) -> None:
        seconds = self._settings.write_timeout_seconds
        try:
            async for message in self._unsent:
                frame = encode(message)
                for start in range(0, len(frame), WRITE_BYTES):
                    with anyio.fail_after(seconds):
                        await pipe.send(frame[start : start + WRITE_BYTES])
        except TimeoutError:
            self.end(Failure(Broken, f"the far side has read nothing for {seconds:g} s"))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            self._lost()

    async def _watch(self) -> None:
        while True:
            now = anyio.current_time()
            if not self._users and now - self._used_at >= self._settings.idle_seconds:
                self.end(Failure(Broken, "closed after idling"))
                return
            limit = (
                self._settings.keepalive_seconds
                if self._answered
                else self._settings.open_timeout_seconds
            )
            left = self._heard_at + limit - now
            if left > 0:
                # Looks again before the limit may have changed: the first answer shortens it.
                rests = (left, self._settings.keepalive_seconds, self._settings.idle_seconds)
                await anyio.sleep(min(rests))
            elif not await self._alive():
                wait = limit + self._settings.keepalive_timeout_seconds
                kind = Broken if self._answered else Unreachable
                words = f"silent for {wait:g} s{self._last_words(b'')}"
                self.end(Failure(kind, words, "silent"))
                return

    async def _alive(self) -> bool:
        asked_at = self._heard_at
        channel = self._multiplexer.open()
        try:
            with anyio.move_on_after(self._settings.keepalive_timeout_seconds):
                await request_identity((channel.inbox, channel), pad_chars=0)
        except (MCPError, ValueError):
            pass  # an answer of any kind is a sign of life
        finally:
            channel.close()
        return self._heard_at > asked_at

    def _ended(self, pipe: Pipe) -> Failure:
        status, known = pipe.exit_status, pipe.failure
        if known is not None:
            text = known.message
        else:
            text = "the stream closed" if status is None else f"ended with exit status {status}"
        words = self._last_words(pipe.stderr_tail)
        if self._answered:
            return Failure(Broken, f"{text}{words}")
        if known is not None:
            return Failure(known.kind, f"{text}{words}", known.symptom)
        kind = Gone if status == NO_AGENT_EXIT_STATUS else Unreachable
        return Failure(kind, f"{text} before it answered{words}")

    def _last_words(self, stderr: bytes) -> str:
        words = [_line(stderr[-STDERR_TAIL_BYTES:]), *self._noise]
        return "".join(f": {word}" for word in words if word)


def _line(data: bytes) -> str:
    return one_line(data.decode(errors="replace"), len(data))

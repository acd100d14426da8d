"""What is known of each path to each agent."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal

from mcp_gpu.fleet.breaker import last_resort_at, retry_at
from mcp_gpu.fleet.lanes import is_direct
from transports.base import Identity
from transports.errors import Reason, TransportError

__all__ = ["PathFailure", "PathState", "PathStatus", "Paths"]

PathStatus = Literal["in_use", "proven", "failed", "denied", "untried"]


@dataclass(frozen=True, slots=True)
class PathState:
    """One path to one agent, as anybody may see it."""

    via: str
    """Transport name."""
    status: PathStatus
    """in_use: the best one proven, which the next call takes. untried: not tried yet, or so long
    ago that it does not count any more."""
    reason: Reason | None = None
    """Of the failure, if the last thing that was seen is one."""
    message: str = ""
    """Of the failure, in the transport's words."""
    age_seconds: float | None = None
    """Since that was seen: the proof, its last renewal by a call, or the failure."""
    latency_seconds: float | None = None
    """What the last proof took."""


@dataclass(frozen=True, slots=True)
class PathFailure:
    """The last thing seen of a path, if that was a failure. Times are of the clock of `Paths`."""

    reason: Reason
    message: str
    at: float
    retry_at: float
    """When the background tries it again."""
    last_resort_at: float
    """When a caller may, for whom no other path is left."""


@dataclass(slots=True)
class _Path:
    """Either proven, or failed, or neither."""

    identity: Identity | None = None
    seen_at: float = 0.0
    expires_at: float = 0.0
    latency_seconds: float | None = None
    doubted: bool = False
    failure: PathFailure | None = None
    failures: int = 0
    """In a row: without a call that worked in between. A probe that works is not enough, since
    it may do what a call may not."""


class Paths:
    """Proofs and failures by agent (`Target.key`) and path (transport name).

    Args:
        ttl_seconds: how long a proof counts. Each call that works renews it.
        clock: seconds, as of `time.monotonic`.
        jitter: picks a pause of at most so many seconds.
    """

    def __init__(
        self, ttl_seconds: float, clock: Callable[[], float], jitter: Callable[[float], float]
    ) -> None:
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._jitter = jitter
        self._agents: dict[str, dict[str, _Path]] = {}

    def identity(self, key: str, via: str) -> Identity | None:
        """Who answered on this path last, while that still counts."""
        path = self._agents.get(key, {}).get(via)
        return path.identity if path is not None and path.expires_at > self._clock() else None

    def failure(self, key: str, via: str) -> PathFailure | None:
        """Why the path does not work, if it did not when last seen."""
        path = self._agents.get(key, {}).get(via)
        return path.failure if path is not None else None

    def is_doubted(self, key: str, via: str) -> bool:
        """Whether a proven path has to be looked at anew."""
        path = self._agents.get(key, {}).get(via)
        return path is not None and path.doubted

    def is_known(self, key: str) -> bool:
        """Whether anything is known of the agent."""
        return key in self._agents

    def prove(self, key: str, via: str, identity: Identity, latency_seconds: float) -> None:
        """It works, and this is who answered."""
        path = self._agents.setdefault(key, {}).setdefault(via, _Path())
        path.identity, path.latency_seconds = identity, latency_seconds
        path.failure, path.doubted = None, False
        self._seen(path)

    def renew(self, key: str, via: str) -> None:
        """A call went through, which is as good as a new proof."""
        path = self._agents.get(key, {}).get(via)
        if path is not None and path.identity is not None:
            path.failures = 0
            path.doubted = False
            self._seen(path)

    def fail(self, key: str, via: str, error: TransportError) -> PathFailure:
        """It does not work: nobody is to wait for it again soon."""
        path = self._agents.setdefault(key, {}).setdefault(via, _Path())
        path.identity, path.expires_at, path.doubted = None, 0.0, False
        path.failures += 1
        now = self._clock()
        path.failure = PathFailure(
            error.reason,
            error.message,
            now,
            retry_at(error.reason, path.failures, now, self._jitter, direct=is_direct(via)),
            last_resort_at(error, path.failures, now),
        )
        return path.failure

    def drop(self, key: str, via: str) -> None:
        """Its proof is out of date, which says nothing against the path."""
        path = self._agents.get(key, {}).get(via)
        if path is not None:
            path.identity, path.expires_at = None, 0.0

    def doubt(self, key: str, via: str) -> None:
        """It was silent for longer than is usual: look soon whether it works."""
        path = self._agents.get(key, {}).get(via)
        if path is not None and path.identity is not None:
            path.doubted = True

    def hasten(self, key: str, via: str) -> None:
        """What failed on this path works for others by now: try it again soon, if it may be."""
        path = self._agents.get(key, {}).get(via)
        failure = path.failure if path is not None else None
        if path is None or failure is None or failure.reason == "denied":
            return
        now = self._clock()
        if max(failure.retry_at, failure.last_resort_at) > now:
            path.failure = replace(
                failure,
                retry_at=min(failure.retry_at, now),
                last_resort_at=min(failure.last_resort_at, now),
            )

    def forgive(self, key: str) -> None:
        """Nothing that has failed for this agent counts any more, but for what was denied."""
        kept = {
            via: path
            for via, path in self._agents.pop(key, {}).items()
            if path.failure is None or path.failure.reason == "denied"
        }
        if kept:
            self._agents[key] = kept

    def retain(self, keys: Collection[str]) -> None:
        """Forget all other agents."""
        self._agents = {key: paths for key, paths in self._agents.items() if key in keys}

    def status(self, key: str, via: str, *, in_use: bool) -> PathStatus:
        """What may be seen of it at a glance."""
        path = self._agents.get(key, {}).get(via)
        if path is None:
            return "untried"
        if path.failure is not None:
            return "denied" if path.failure.reason == "denied" else "failed"
        if path.expires_at <= self._clock():
            return "untried"
        return "in_use" if in_use else "proven"

    def state(self, key: str, via: str, *, in_use: bool) -> PathState:
        """The path as anybody may see it."""
        path = self._agents.get(key, {}).get(via, _Path())
        status = self.status(key, via, in_use=in_use)
        now = self._clock()
        if path.failure is not None:
            failure = path.failure
            return PathState(
                via,
                status,
                failure.reason,
                failure.message,
                now - failure.at,
                path.latency_seconds,
            )
        if status == "untried":
            return PathState(via, status, latency_seconds=path.latency_seconds)
        return PathState(
            via, status, age_seconds=now - path.seen_at, latency_seconds=path.latency_seconds
        )

    def _seen(self, path: _Path) -> None:
        path.seen_at = self._clock()
        path.expires_at = path.seen_at + self._ttl_seconds

"""Who held which GPU, and when: `Tenant`, kept in `Tenants` after the kubelet has forgotten it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, Self

from mcp_gpu.gpu.recorder.moment import moment

__all__ = ["Tenant", "Tenants"]

MOST: Final = 1024
"""Kept; then those that ended first go."""

GAP_SECONDS: Final = 300.0
"""A pod of which only the name is known is another one after it was not seen for so long."""

CHARS: Final = 253
"""As long as a name or a device's id may be."""


class Tenant(NamedTuple):
    """A container that holds one device. Times are on the recorder's axis, or Unix seconds once
    they are told."""

    namespace: str
    """Empty where only the pod's uid is known, as its name."""
    pod: str
    pod_uid: str | None
    container: str
    device: str
    """As the device plugin calls it."""
    gpu_uuid: str | None
    gpu_index: int | None
    """Where the GPU was then."""
    mig: str
    """Profile or UUID of the instance; empty: a whole GPU."""
    shared: bool
    since: float = 0.0
    """When it was seen first; it may have begun earlier."""
    until: float = 0.0
    """When it was seen last."""

    @classmethod
    def read(cls, told: dict[str, Any]) -> Self:
        """As `Tenants.packed` wrote it.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: it did not.
        """
        index = told["gpu_index"]
        return cls(
            namespace=_text(told["namespace"]),
            pod=_text(told["pod"]),
            pod_uid=None if told["pod_uid"] is None else _text(told["pod_uid"]),
            container=_text(told["container"]),
            device=_text(told["device"]),
            gpu_uuid=None if told["gpu_uuid"] is None else _text(told["gpu_uuid"]),
            gpu_index=None if index is None else int(index),
            mig=_text(told["mig"]),
            shared=bool(told["shared"]),
            since=moment(told["since"]),
            until=moment(told["until"]),
        )

    def goes_on_as(self, now: Tenant) -> bool:
        """Whether it is the same one, seen later."""
        if (self.container, self.device) != (now.container, now.device):
            return False
        if self.pod_uid is not None and now.pod_uid is not None:
            return self.pod_uid == now.pod_uid
        alike = (self.namespace, self.pod) == (now.namespace, now.pod)
        return alike and bool(now.pod) and now.since - self.until <= GAP_SECONDS


def _text(told: Any) -> str:
    return str(told)[:CHARS]


class Tenants:
    """The latest, in bounded memory."""

    def __init__(self) -> None:
        self._tenants: list[Tenant] = []

    def note(self, seen: Iterable[Tenant], at: float) -> None:
        """Take all that hold something at a moment, not before those that were noted."""
        latest = {(each.container, each.device): n for n, each in enumerate(self._tenants)}
        for each in seen:
            now = each._replace(since=at, until=at)
            place = latest.get((now.container, now.device))
            if place is not None and self._tenants[place].goes_on_as(now):
                before = self._tenants[place]
                self._tenants[place] = now._replace(
                    since=before.since,
                    namespace=now.namespace or before.namespace,
                    pod=now.pod or before.pod,
                    pod_uid=now.pod_uid or before.pod_uid,
                    gpu_uuid=now.gpu_uuid or before.gpu_uuid,
                )
            else:
                self._tenants.append(now)
        if len(self._tenants) > MOST:
            self._tenants.sort(key=lambda each: each.until)
            del self._tenants[:-MOST]

    def between(self, since: float, until: float) -> Iterator[Tenant]:
        """Those that were seen in a stretch of the axis."""
        return (each for each in self._tenants if each.since <= until and each.until >= since)

    def packed(self) -> list[dict[str, Any]]:
        """All of them, as JSON can hold them."""
        return [each._asdict() for each in self._tenants]

    def restore(self, tenants: Iterable[Tenant]) -> None:
        """Begin with these."""
        self._tenants = sorted(tenants, key=lambda each: each.until)[-MOST:]

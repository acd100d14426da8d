"""Names of incidents, by which they are found again: `IncidentId`.

`inc-20261126T100220Z-7f3a1c-n1`: when it began, a check over what began it, and on which node.
Where it began with a pod that follows, as `n1/train/worker-0`. Nothing is kept anywhere: whoever
has the name looks at the node at that time, and what began it has to be there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from mcp_gpu.workloads.incident.model import Seen

__all__ = ["ID_CHARS", "ID_PATTERN", "IncidentId", "is_place"]

ID_CHARS: Final = 620

_PART: Final = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,252}"
"""Kubernetes' names, and those of agents named by hand."""

ID_PATTERN: Final = (
    r"^inc-[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}(?:\.[0-9a-f]{6})?-"
    rf"(?:{_PART}|(?:{_PART})?/{_PART}/{_PART})$"
)

_FORM: Final = "%Y%m%dT%H%M%SZ"

SLACK_SECONDS: Final = 3.0
"""An agent that starts anew reads the kernel's log anew, whose times are told from the boot's."""


def is_place(node: str) -> bool:
    """Whether a node can be called so in such a name."""
    return re.fullmatch(_PART, node, re.ASCII) is not None


@dataclass(frozen=True, slots=True)
class IncidentId:
    """What such a name says."""

    at: float
    """T+0, in Unix seconds."""
    check: str
    cluster: str
    """Stands for the name of the cluster, where a gateway has several; empty otherwise."""
    node: str
    """Empty: of a pod that was on none."""
    pod: tuple[str, str] | None

    def __str__(self) -> str:
        # Not strftime, which leaves out the zeros of the year 1, and years may be made up.
        at = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="seconds")
        time = at.removesuffix("+00:00").replace("-", "").replace(":", "") + "Z"
        cluster = f".{self.cluster}" if self.cluster else ""
        pod = "" if self.pod is None else "/" + "/".join(self.pod)
        return f"inc-{time}-{self.check}{cluster}-{self.node}{pod}"

    @property
    def told(self) -> str:
        """The name; empty where what it is of is called as nothing can be."""
        return str(self) if re.fullmatch(ID_PATTERN, str(self), re.ASCII) else ""

    @classmethod
    def of(cls, seen: Seen, *, node: str, cluster: str) -> Self:
        """The name of what begins with this.

        Args:
            cluster: its name, where there are several; else empty.
        """
        at = float(int(seen.at))
        return cls(at, _check(seen, at, node, cluster), _stands_for(cluster), node, seen.pod)

    @classmethod
    def read(cls, text: str) -> Self:
        """Raises: ValueError: it is no such name."""
        if len(text) > ID_CHARS or re.fullmatch(ID_PATTERN, text, re.ASCII) is None:
            raise ValueError("no name of an incident")
        _, time, check, tail = text.split("-", 3)
        check, _, cluster = check.partition(".")
        node, *pod = tail.split("/")
        at = datetime.strptime(time, _FORM).replace(tzinfo=UTC).timestamp()
        return cls(at, check, cluster, node, (pod[0], pod[1]) if pod else None)

    def cluster_of(self, known: Iterable[str]) -> str | None:
        """Which of these clusters it is of; None: of none of them."""
        if not self.cluster:
            return ""
        return next((each for each in known if _stands_for(each) == self.cluster), None)

    def names(self, seen: Seen, cluster: str) -> bool:
        """Whether this is what it is named for."""
        near = abs(seen.at - self.at) <= SLACK_SECONDS
        return near and self.check == _check(seen, self.at, self.node, cluster)


def _check(seen: Seen, at: float, node: str, cluster: str) -> str:
    return _digest([cluster, node, seen.pod, seen.key, at])


def _stands_for(cluster: str) -> str:
    return _digest(cluster) if cluster else ""


def _digest(of: object) -> str:
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:6]

"""What a report of an incident says, on the wire, and what it is made of: `Seen`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from pydantic import Field

from mcp_gpu.gpu.health.model import Severity
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.gpu.xid.report import utc
from mcp_gpu.workloads.failure import secrets
from mcp_gpu.workloads.failure.model import Explanation
from mcp_gpu.workloads.reads import Gap

__all__ = [
    "AffectedPod",
    "IncidentReport",
    "IncidentSummary",
    "Level",
    "Moment",
    "Seen",
    "Snapshot",
    "StateNow",
    "XidMeaning",
    "told",
]

TEXT_CHARS: Final = 300
"""Of what one moment says."""

Source = Literal["kubernetes", "container", "xid", "gpu", "telemetry", "verdict"]


def told(text: str, most: int = TEXT_CHARS) -> str:
    """Strangers' words on one line, cut, and without what looks like a secret."""
    return secrets.safe_line(text, most)


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing that happened."""

    at: float
    """Unix seconds."""
    severity: Severity
    """critical or warning: it went wrong; info: worth knowing beside that."""
    source: Source
    key: str
    """What it was, in words that stay the same however often it is told."""
    text: str
    gpu_index: int | None = None
    pod: tuple[str, str] | None = None
    """Namespace and name of the one that it happened to."""

    @property
    def went_wrong(self) -> bool:
        """Whether an incident may begin with it."""
        return self.severity != "info"

    @property
    def second(self) -> str:
        """Its time as it is told."""
        return utc(self.at)


class Moment(Wire):
    """One thing that happened."""

    at: str = Field(description="In UTC.")
    offset_seconds: float = Field(description="After T+0; negative: before.")
    severity: Severity = Field(
        description="critical, warning: it went wrong; info: worth knowing beside that."
    )
    source: Source = Field(
        description="kubernetes: an event or a condition; container: its end; xid; gpu: what the "
        "driver or the agent noted; telemetry: a reading that changed; verdict: of explain_failure."
    )
    gpu_index: int | None = Field(description="Null: of no GPU, or not known of which.")
    pod: str = Field(description="namespace/name; empty: of none.")
    text: str


class XidMeaning(Wire):
    """What an Xid of the incident says, by analyze_xid_errors."""

    code: int
    kind: str
    device: str
    name: str
    count: int
    first: str
    last: str
    explanation: str
    action: str
    follows: bool = Field(description="True: a consequence of another Xid.")


class AffectedPod(Wire):
    """A pod that holds GPUs of the node, or that died there in the time of the incident."""

    namespace: str
    pod: str
    gpus: tuple[int, ...] = Field(description="Indices that it holds, as far as they are known.")
    concerned: bool | None = Field(
        description="True: something went wrong on a GPU that it holds, or it died itself; null: "
        "not known which GPUs it holds."
    )
    state: str = Field(description="Such as: Running; died 2026-11-26T10:02:30Z: exit code 1.")


class Level(Wire):
    """One reading before and after T+0: the mean of what is known, of errors how many came."""

    metric: str
    unit: str
    before: float | None = Field(description="Null: no reading, which is not 0.")
    after: float | None


class Snapshot(Wire):
    """One GPU in the minutes before T+0 and in those after it."""

    gpu_index: int
    before_seconds: float = Field(description="How long before T+0 it begins.")
    after_seconds: float = Field(description="How long after T+0 it ends.")
    levels: tuple[Level, ...]


class StateNow(Wire):
    """A finding of get_gpu_health, which is of now and not of then."""

    code: str
    severity: Severity
    gpu_index: int | None
    title: str
    action: str


class IncidentSummary(Wire):
    """One of several incidents."""

    incident_id: str
    at: str = Field(description="Its T+0, in UTC.")
    severity: Severity
    title: str
    moments: int = Field(description="How many things went wrong.")


class IncidentReport(Wire):
    """One incident."""

    incident_id: str = Field(
        description="Empty: nothing is known to have gone wrong (`began` is null), "
        "or where it did has a name that is none."
    )
    title: str = Field(description="What T+0 is; without one, whose incident is not known.")
    severity: Severity
    node: str = Field(description="Empty: the pod was on none, or it is not known on which.")
    pod: str = Field(description="namespace/name of the one explained; empty: none.")
    simulated: bool = Field(description="True: some of this comes from simulated hardware.")
    began: str | None = Field(description="T+0 in UTC; null: there is none.")
    ended: str | None = Field(description="When the last thing went wrong.")
    since: str = Field(description="Looked at from then on, in UTC.")
    until: str
    came_first: str = Field(description="The first that went wrong. Order is no proof of a cause.")
    followed: tuple[str, ...] = Field(description="What went wrong after it, in order.")
    followed_omitted: int
    first_step: str = Field(description="The first thing to do.")
    timeline: tuple[Moment, ...] = Field(description="By time.")
    timeline_omitted: int
    xids: tuple[XidMeaning, ...]
    chains: tuple[str, ...] = Field(description="Xids with what followed from them.")
    affected_pods: tuple[AffectedPod, ...] = Field(description="Those concerned first.")
    affected_pods_omitted: int
    snapshots: tuple[Snapshot, ...]
    now: tuple[StateNow, ...] = Field(description="What is wrong with the node's GPUs now.")
    explanation: Explanation | None = Field(
        description="By explain_failure, of the pod asked for or the first that died; its gaps "
        "are among those of the report."
    )
    incidents: tuple[IncidentSummary, ...] = Field(
        description="All of the window, this one among them: the gravest first, then the newest."
    )
    incidents_omitted: int
    gaps: tuple[Gap, ...] = Field(description="What could not be read, or is there no longer.")

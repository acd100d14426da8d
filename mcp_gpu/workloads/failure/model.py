"""What an explanation of a failure says: a `Category`, its `Fact`s, and `Cause`s weighed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, Literal, Self

from pydantic import Field

from mcp_gpu.gpu.health.model import Confidence
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.gpu.xid.report import utc
from mcp_gpu.workloads.failure.secrets import safe_line
from mcp_gpu.workloads.reads import Gap
from transports.text import one_line

__all__ = [
    "Alternative",
    "Category",
    "Cause",
    "Explanation",
    "Fact",
    "HeldGpu",
    "Truth",
    "Weight",
]

Category = Literal[
    "your_code",
    "out_of_memory_host",
    "out_of_memory_gpu",
    "evicted",
    "preempted",
    "node_lost",
    "gpu_hardware",
    "gpu_memory_error",
    "nvlink",
    "driver",
    "communication",
    "scheduling",
    "image",
    "config",
    "stopped",
    "infrastructure",
    "still_running",
    "succeeded",
    "unknown",
]

Truth = Literal["true", "false", "unknown"]

TEXT_CHARS: Final = 400
"""Of what one fact says."""

SOURCE_CHARS: Final = 160


class Fact(Wire):
    """One thing that is known, when it was, and who says so."""

    at: str | None = Field(description="Time in UTC; null: it has none of its own.")
    source: str = Field(description="Such as: status of pod, event, log of main, agent of n1.")
    text: str

    @classmethod
    def of(cls, source: str, text: str, at: float | None = None) -> Self:
        """A fact on one line, at a time in Unix seconds."""
        return cls(
            at=None if at is None else utc(at),
            source=one_line(source, SOURCE_CHARS),
            text=safe_line(text, TEXT_CHARS),
        )


class HeldGpu(Wire):
    """A GPU that the pod held."""

    gpu_index: int | None = Field(description="As the node's agent counts; null: unknown.")
    uuid: str | None
    mig: str = Field(default="", description="The instance of it; empty: the whole GPU.")
    shared: bool = Field(default=False, description="True: others may hold it too.")


class Alternative(Wire):
    """What it may have been instead, or besides."""

    category: Category
    why: str


class Weight(IntEnum):
    """How directly somebody says that something is the cause; the lightest counts."""

    STATED = 0
    """Kubernetes says so itself: who ended the pod, or why it never began."""
    HARDWARE = 1
    """A fact of the pod's own GPU, or of its node's driver, in the window."""
    SAID = 2
    """The program, or what should have started it, says so."""
    OWN_XID = 3
    """The driver says what the program did."""
    SEEN = 4
    """A fact of the pod's own GPU that is so now; since when, nobody says."""
    ENDING = 5
    """Only how it ended is known."""
    HINT = 6
    """Worth knowing, and no verdict."""


@dataclass(frozen=True, slots=True)
class Cause:
    """What may have ended the pod."""

    weight: Weight
    category: Category
    not_your_code: Truth
    confidence: Confidence
    says: str
    """One sentence."""
    first_step: str
    facts: tuple[Fact, ...] = ()
    rests_on_gpu: bool = False
    """A failing GPU would bring it about, too: it holds only where the GPU is known to be well."""

    def but(self, **changes: object) -> Cause:
        """The same with some of it changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


class Explanation(Wire):
    """Why a pod failed."""

    pod: str = Field(description="Empty: no pod of the name, and none of a Job of it.")
    namespace: str
    uid: str
    node: str = Field(description="Empty: it never had one, or it is not known.")
    owner: str = Field(description="Such as Job train; empty: none, or it is not known.")
    container: str = Field(description="The one that died; empty: none, or it is not known.")
    gone: bool = Field(description="True: the pod is no more; what is known is from events.")
    category: Category
    not_your_code: Truth = Field(
        description="true: the program's own code is not what failed; its manifest may be."
    )
    confidence: Confidence
    says: str = Field(description="The verdict in one sentence.")
    first_step: str = Field(description="The first thing to do.")
    since: str | None = Field(description="When the container started, in UTC.")
    died: str | None = Field(description="When it died, in UTC.")
    gpus: tuple[HeldGpu, ...] = Field(description="That it held. Empty: see `gpus_source`.")
    gpus_source: str = Field(description="Who says which GPUs it held, or why nobody does.")
    evidence: tuple[Fact, ...] = Field(description="What speaks for the verdict comes first.")
    evidence_omitted: int
    alternatives: tuple[Alternative, ...]
    gaps: tuple[Gap, ...] = Field(description="What could not be read, and the right for it.")
    simulated: bool = Field(description="True: some of this comes from simulated hardware.")

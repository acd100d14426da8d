"""What a fault does to a board's answers: the base of every fault, and changes that take time.

A fault changes only what the board and its driver report at all: what answers a return code
goes on doing so. Counts come on top of what the profile says. Both ways to one reading, such as a
getter and a field value, are changed alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from mcp_gpu.gpu.simulator.profiles import general

Ask = Callable[[str, str], Any]
"""What the same board would answer to another call, by call and key, without the fault.

Raises `library.Refused`.
"""


class Change(Protocol):
    """Makes another answer of one; anything else in its place is the answer itself."""

    def __call__(self, answer: Any, seconds: float, ask: Ask) -> Any:
        """Args: seconds: since the fault appeared, on the node's clock."""


class FaultModel(BaseModel):
    """One thing that is wrong with a node or one of its GPUs."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    gpu: NonNegativeInt | None = None

    def concerns(self, gpu_index: int | None) -> bool:
        """Whether a call about this GPU (None: about no GPU) meets the fault."""
        return self.gpu is None or self.gpu == gpu_index

    def code(self, call: str, gpu_index: int | None) -> int:
        """The return code that ends the call, 0 to let it pass."""
        return 0

    def delay_seconds(self, call: str) -> float:
        """How long the call blocks first, unless the fault is lifted meanwhile."""
        return 0.0

    def answers(self) -> Mapping[str, Any]:
        """C function to what it answers instead: a value or a `Change`, or these by key, by
        member of a struct or by position. Of `fields` the keys are "id" or "id,link", of
        nvmlDeviceGetP2PStatus "capability" or "peer,capability"."""
        return {}


class BoardFault(FaultModel):
    """One that concerns a single GPU."""

    gpu: NonNegativeInt


@dataclass(frozen=True, slots=True)
class Added:
    """A counter that is further on and keeps counting, from when the fault appeared."""

    count: int = 0
    per_second: float = 0.0

    def __call__(self, answer: Any, seconds: float, ask: Ask) -> Any:
        return answer + self.count + int(self.per_second * seconds)


@dataclass(frozen=True, slots=True)
class Bits:
    """More bits of a mask."""

    mask: int

    def __call__(self, answer: Any, seconds: float, ask: Ask) -> Any:
        return answer | self.mask


def changed(answer: Any, told: Any, call: str, key: str, *, seconds: float, ask: Ask) -> Any:
    """A board's answer with a fault's say on it."""

    def apply(change: Any, to: Any) -> Any:
        return change(to, seconds, ask) if callable(change) else change

    if not isinstance(told, Mapping):
        return apply(told, answer)
    if key:
        named = key if key in told else general(call, key)
        return apply(told[named], answer) if named in told else answer
    if isinstance(answer, list):
        return [
            apply(told[str(position)], one) if str(position) in told else one
            for position, one in enumerate(answer)
        ]
    return {name: apply(told[name], one) if name in told else one for name, one in answer.items()}

"""What makes a simulated board hot or slow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mcp_gpu.gpu.simulator.changes import Added, Ask, Bits, BoardFault
from mcp_gpu.gpu.simulator.library import Refused

_NANOSECONDS = 1e9

_EVENT_REASONS: dict[str, tuple[int, str | None]] = {
    "sw_power_cap": (0x04, "74"),
    "hw_slowdown": (0x08, None),
    "sync_boost": (0x10, "76"),
    "sw_thermal_slowdown": (0x20, "269"),
    "hw_thermal_slowdown": (0x40, "270"),
    "hw_power_brake": (0x80, "271"),
}
"""Bit of the mask, and the field that counts the nanoseconds of it."""


class Temperature(BoardFault):
    """A GPU at this temperature, or at this margin; the one follows the other."""

    kind: Literal["temperature"]
    celsius: int | None = None
    margin: int | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.celsius is None) == (self.margin is None):
            raise ValueError("either celsius or margin")
        return self

    def answers(self) -> Mapping[str, Any]:
        return {
            "nvmlDeviceGetTemperature": {"0": _Warmed(self.celsius, self.margin, 0)},
            "nvmlDeviceGetMarginTemperature": {
                "marginTemperature": _Warmed(self.celsius, self.margin, 1)
            },
        }


@dataclass(frozen=True, slots=True)
class _Warmed:
    celsius: int | None
    margin: int | None
    position: int
    """0 for the temperature, 1 for the margin."""

    def __call__(self, answer: Any, seconds: float, ask: Ask) -> Any:
        wanted = (self.celsius, self.margin)
        if (own := wanted[self.position]) is not None:
            return own
        try:
            celsius = ask("nvmlDeviceGetTemperature", "0")
            margin = ask("nvmlDeviceGetMarginTemperature", "")["marginTemperature"]
        except Refused:
            return answer  # A board that has no margin.
        # Their sum is the same whatever the load.
        return celsius + margin - (wanted[1 - self.position] or 0)


class MemoryTemperature(BoardFault):
    """HBM at this temperature."""

    kind: Literal["memory_temperature"]
    celsius: int

    def answers(self) -> Mapping[str, Any]:
        return {"fields": {"82": self.celsius}}


EventReason = Literal[
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake",
]


class Throttle(BoardFault):
    """Lowered clocks. The reasons show at the moment of a look, unless `now` is false, and their
    counters grow by `share` of the time; hw_slowdown has none."""

    kind: Literal["throttle"]
    reasons: tuple[EventReason, ...] = ("hw_slowdown", "hw_thermal_slowdown")
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    now: bool = True

    def answers(self) -> Mapping[str, Any]:
        return _slowed(self.reasons, self.share, now=self.now)


class PowerBrake(BoardFault):
    """The system pulls the GPU's power brake, such as for a lost power supply."""

    kind: Literal["power_brake"]
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    now: bool = True

    def answers(self) -> Mapping[str, Any]:
        return _slowed(("hw_slowdown", "hw_power_brake"), self.share, now=self.now)


def _slowed(reasons: tuple[EventReason, ...], share: float, *, now: bool) -> dict[str, Any]:
    told = [_EVENT_REASONS[reason] for reason in dict.fromkeys(reasons)]
    growing = Added(per_second=_NANOSECONDS * share)
    answers: dict[str, Any] = {"fields": {field: growing for _, field in told if field}}
    if now:
        answers["nvmlDeviceGetCurrentClocksEventReasons"] = Bits(sum(bit for bit, _ in told))
    return answers


ClockFault = Temperature | MemoryTemperature | Throttle | PowerBrake

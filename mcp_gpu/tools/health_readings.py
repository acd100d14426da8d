"""A GPU's health readings in few words: what can be had, and NVLinks that are alike only once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Self

from pydantic import Field

from mcp_gpu.gpu.vitals import LINK_READINGS, VITALS_READINGS, Link, Vitals
from mcp_gpu.gpu.wire import Wire

__all__ = ["LinkReadings", "Readings", "Value", "alike"]

Value = int | float | bool | str


class LinkReadings(Wire):
    """NVLinks of one GPU that read the same: told one by one, the 18 of each of eight boards take
    40,000 tokens."""

    links: tuple[int, ...] = Field(description="Their indices.")
    values: dict[str, Value] = Field(description="Errors since the driver was loaded.")
    unavailable: dict[str, str] = Field(description="Reading to the reason why it is not there.")


class Readings(Wire):
    """One GPU's health readings. Every one is in `values` or has its reason in `unavailable`."""

    gpu_index: int
    values: dict[str, Value] = Field(
        description="Counters are since the driver was loaded unless their names say more."
    )
    unavailable: dict[str, str] = Field(description="Reading to the reason why it is not there.")
    links: tuple[LinkReadings, ...] = Field(description="Those that read the same stand together.")

    @classmethod
    def of(cls, vitals: Vitals) -> Self:
        """The readings of one GPU."""
        return cls(
            gpu_index=vitals.index,
            values=_values(vitals, VITALS_READINGS),
            unavailable=vitals.unavailable,
            links=tuple(alike(vitals.links)),
        )


def alike(links: tuple[Link, ...]) -> Iterator[LinkReadings]:
    """Links that read the same, told together."""
    groups: defaultdict[str, list[Link]] = defaultdict(list)
    for link in links:
        groups[link.model_dump_json(exclude={"index"})].append(link)
    for same in groups.values():
        yield LinkReadings(
            links=tuple(link.index for link in same),
            values=_values(same[0], LINK_READINGS),
            unavailable=same[0].unavailable,
        )


def _values(model: Wire, names: tuple[str, ...]) -> dict[str, Value]:
    values = {name: getattr(model, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}

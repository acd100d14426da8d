"""What does not change of how the GPUs of a node are joined: `Pair`, `End`, `Wiring`.

Read when somebody asks, once in each generation; what links are up is in `Vitals`.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from mcp_gpu.gpu.wire import Wire, give_reasons


class Pair(Wire):
    """Two GPUs, by index, the lower first. Nulls have reasons, as in `Gpu`."""

    first: int
    second: int
    path: str | None = None
    """The way over PCIe: INT (one board), PIX (one switch), PXB (several switches), PHB (a host
    bridge), NODE (several within a NUMA node) or SYS (across NUMA nodes)."""
    read: str | None = None
    """ok, or why one may not read the other's memory: chipset_not_supported, gpu_not_supported,
    topology_not_supported, disabled, not_supported or unknown. As the three below."""
    write: str | None = None
    nvlink: str | None = None
    atomics: str | None = None
    unavailable: dict[str, str] = Field(default_factory=dict)
    """Field name to the reason why the field is None."""

    @model_validator(mode="after")
    def _every_null_has_a_reason(self) -> Self:
        give_reasons(self, PAIR_READINGS, self.unavailable)
        return self


CAPABILITIES = ("read", "write", "nvlink", "atomics")
"""The fields of `Pair` about peer access, by NVML's number of the capability."""

PAIR_READINGS = ("path", *CAPABILITIES)


class End(Wire):
    """What an NVLink that leads to another GPU ends at."""

    gpu: int
    link: int
    bus_id: str


class Wiring(Wire):
    """Of one node."""

    pairs: tuple[Pair, ...] = ()
    ends: tuple[End, ...] = ()
    """Of NVLinks that lead to GPUs; those that end at switches have none."""

"""The NVLinks of one GPU: their states, counters and far ends, in few calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mcp_gpu.gpu.errors import LASTING, NOT_SUPPORTED, Code
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.readings import Readings, read_field_values, read_one
from mcp_gpu.gpu.table import FieldValue, Missing
from mcp_gpu.gpu.vital_fields import (
    LINK5_COUNTERS,
    LINK_COUNTER_GETTERS,
    LINK_COUNTERS,
    LINK_REMOTE,
    LINK_STATE,
    LINK_STATE_GETTER,
)
from mcp_gpu.gpu.vitals import Link

MAX_LINKS: Final = 36
"""NVML_NVLINK_MAX_LINKS, an upper bound, whatever a board tells or does not tell."""

ACTIVE: Final = "nvlink_active"
"""The field of `Gpu` that is counted from the links' states."""

_FIELDS: Final = set(Link.model_fields)
"""One for all of them, where pydantic would keep a set of two kilobytes for each."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A link as it was last read, so that one that has not changed is not built again."""

    readings: Readings
    link: Link


class Links:
    """One GPU's, within one generation: remembers what need not be asked twice."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._remotes: dict[int, Readings] = {}
        self._reasons: dict[str, str] = {}
        self._counted_by_getter = True
        """Whether the older function for counters is worth a try."""

    def read(
        self, nvml: Nvml, gpu_index: int, handle: Any, slow: Readings, vitals: Readings
    ) -> None:
        """Put the number of active links into `slow` and the links themselves into `vitals`.

        Both are whole or refused: some of the links never look like all of them.

        Args:
            slow: with the board's number of links and their version, where it tells them.

        Raises:
            NvmlUnavailable, GpuUnreadable
        """
        found, reason = _states(nvml, gpu_index, handle, slow.values.get("nvlink_count"))
        if reason is not None:
            slow.put(ACTIVE, Missing(reason), mig=False)
            if reason not in LASTING:
                vitals.put("links", Missing(reason), mig=False)
            return
        self._count(nvml, gpu_index, handle, slow.values.get("nvlink_version"), found)
        self._follow(nvml, gpu_index, handle, found)
        slow.values[ACTIVE] = sum(_is_active(readings) for readings in found.values())
        vitals.values["links"] = tuple(
            self._link(index, readings) for index, readings in found.items()
        )

    def _count(
        self, nvml: Nvml, gpu_index: int, handle: Any, version: str | None,
        found: dict[int, Readings],
    ) -> None:  # fmt: skip
        asked, skipped = _counters(version)
        for readings in found.values():
            readings.unavailable.update((value.field, NOT_SUPPORTED) for value in skipped)
        wanted = [(value, index, readings) for index, readings in found.items() for value in asked]
        read_field_values(nvml, gpu_index, handle, wanted, mig=False)
        if LINK_COUNTERS[0] not in asked:
            return
        # A link that is down may refuse for that alone: those that are up go first.
        for index in sorted(found, key=lambda index: not _is_active(found[index])):
            if self._counted_by_getter:
                self._count_by_getter(nvml, gpu_index, handle, index, found[index])

    def _count_by_getter(
        self, nvml: Nvml, gpu_index: int, handle: Any, link: int, into: Readings
    ) -> None:
        """What the field values did not tell; refused by a link that is up, not asked again."""
        for reading in LINK_COUNTER_GETTERS:
            (field,) = reading.fields
            reason = into.unavailable.get(field)
            if field in into.values or reason not in LASTING:
                continue
            answer = Readings()
            by_link = replace(reading, args=(link, *reading.args))
            read_one(nvml, gpu_index, (handle,), by_link, answer, mig=False)
            into.values.update(answer.values)
            if field in answer.values:
                del into.unavailable[field]
            elif answer.trouble is None and _is_active(into):
                self._counted_by_getter = False
                return

    def _follow(self, nvml: Nvml, gpu_index: int, handle: Any, found: dict[int, Readings]) -> None:
        """What each link leads to: does not change, and is asked of each once."""
        for index, readings in found.items():
            remote = self._remotes.get(index)
            if remote is None:
                remote = Readings()
                by_link = replace(LINK_REMOTE, args=(index,))
                read_one(nvml, gpu_index, (handle,), by_link, remote, mig=False)
                if remote.values or (remote.trouble is None and _is_active(readings)):
                    self._remotes[index] = remote
            readings.values.update(remote.values)
            readings.unavailable.update(remote.unavailable)

    def _link(self, index: int, readings: Readings) -> Link:
        readings.check(Link)
        known = self._known.get(index)
        if known is not None and known.readings == readings:
            return known.link
        if self._reasons != readings.unavailable:
            self._reasons = readings.unavailable
        # Checked already. There are 144 in each of the snapshots that are remembered, so they
        # share what is the same in all: that halves them.
        link = Link.model_construct(
            _FIELDS, index=index, unavailable=self._reasons, **readings.values
        )
        self._known[index] = _Known(readings, link)
        return link


def _states(
    nvml: Nvml, gpu_index: int, handle: Any, told: int | None
) -> tuple[dict[int, Readings], str | None]:
    """The links that the board has, or the reason why nobody knows which.

    Args:
        told: how many there should be, of a board that tells.
    """
    links = MAX_LINKS if told is None else min(told, MAX_LINKS)
    asked = {index: Readings() for index in range(links)}
    wanted = [(LINK_STATE, index, readings) for index, readings in asked.items()]
    read_field_values(nvml, gpu_index, handle, wanted, mig=False)
    by_getter = not any(readings.values for readings in asked.values())
    found: dict[int, Readings] = {}
    for index, readings in asked.items():
        if by_getter:
            # Before R470, or a board without NVLink.
            asked[index] = readings = Readings()
            by_link = replace(LINK_STATE_GETTER, args=(index,))
            read_one(nvml, gpu_index, (handle,), by_link, readings, mig=False)
        if readings.values:
            found[index] = readings
        elif readings.trouble is not None and readings.trouble.code != Code.INVALID_ARGUMENT:
            return {}, readings.trouble.reason
        elif told is None:
            break  # Past the last link: the end, not an error.
        # Else a link that is not wired on this board; there may be more.
    if found or not asked:
        return found, None
    return {}, asked[0].unavailable["state"]


def _counters(version: str | None) -> tuple[Sequence[FieldValue], Sequence[FieldValue]]:
    """Those that links of this version have, and the others; of an unknown one, all may be."""
    major = (version or "").split(".")[0]
    if not major.isdigit():
        return (*LINK_COUNTERS, *LINK5_COUNTERS), ()
    return (LINK5_COUNTERS, LINK_COUNTERS) if int(major) >= 5 else (LINK_COUNTERS, LINK5_COUNTERS)


def _is_active(readings: Readings) -> bool:
    return readings.values.get("state") == "active"

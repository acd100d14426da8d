"""Reads a node's `Wiring`: for 8 GPUs 140 calls, each made once in a generation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Final

from mcp_gpu.gpu.errors import LASTING, Code, GpuUnreadable, NvmlError
from mcp_gpu.gpu.fields import pci_address
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.table import Missing
from mcp_gpu.gpu.vitals import Vitals
from mcp_gpu.gpu.wiring import CAPABILITIES, End, Pair, Wiring

_PATHS: Final = {0: "INT", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}

_STATUS: Final = {
    0: "ok",
    1: "chipset_not_supported",
    2: "gpu_not_supported",
    3: "topology_not_supported",
    4: "disabled",
    5: "not_supported",
    6: "unknown",
}


class Wires:
    """One node's, within one generation: remembers what need not be asked twice."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[int, int], Pair] = {}
        self._ends: dict[tuple[int, int], End | None] = {}
        self._is_slow = False
        """A call took so long that no further one is worth the wait of all other readings."""

    def read(self, nvml: Nvml, gpus: Sequence[tuple[int, Any, Vitals | None]]) -> Wiring:
        """What is known of these GPUs and of those asked before, asking for the rest.

        Args:
            gpus: index, handle and vitals of each that answers.

        Raises:
            NvmlUnavailable
        """
        for (first, handle, _), (second, other, _) in combinations(gpus, 2):
            if (first, second) not in self._pairs:
                pair = self._pair(nvml, (first, handle), (second, other))
                if pair is not None:
                    self._pairs[first, second] = pair
        for index, handle, vitals in gpus:
            for link in vitals.links if vitals is not None else ():
                if link.remote == "gpu" and (index, link.index) not in self._ends:
                    self._end(nvml, index, handle, link.index)
        ends = (end for _, end in sorted(self._ends.items()) if end is not None)
        return Wiring(
            pairs=tuple(pair for _, pair in sorted(self._pairs.items())), ends=tuple(ends)
        )

    def _pair(self, nvml: Nvml, one: tuple[int, Any], other: tuple[int, Any]) -> Pair | None:
        """None: it is to be asked again."""
        (first, handle), (second, peer) = one, other
        values: dict[str, str] = {}
        unavailable: dict[str, str] = {}
        # By number: the binding's own name of the first is a tuple.
        asked: list[tuple[str, str, tuple[int, ...]]] = [
            ("path", "nvmlDeviceGetTopologyCommonAncestor", ())
        ]
        asked += [(name, "nvmlDeviceGetP2PStatus", (n,)) for n, name in enumerate(CAPABILITIES)]
        for name, call, args in asked:
            answer = self._ask(nvml, call, first, handle, peer, *args)
            if isinstance(answer, Missing):
                unavailable[name] = answer.reason
            else:
                names = _PATHS if name == "path" else _STATUS
                values[name] = names.get(int(answer), f"unknown({int(answer)})")
        if not values and not LASTING.issuperset(unavailable.values()) and not self._is_slow:
            return None
        return Pair(first=first, second=second, unavailable=unavailable, **values)

    def _end(self, nvml: Nvml, index: int, handle: Any, link: int) -> None:
        answer = self._ask(nvml, "nvmlDeviceGetNvLinkRemotePciInfo", index, handle, link)
        if not isinstance(answer, Missing):
            address = pci_address(answer)
            if not isinstance(address, Missing):
                self._ends[index, link] = End(gpu=index, link=link, bus_id=address)
                return
        elif answer.reason not in LASTING:
            return  # A link that is down may refuse for that alone.
        self._ends[index, link] = None

    def _ask(self, nvml: Nvml, call: str, index: int, *args: Any) -> Any:
        if self._is_slow:
            return Missing("timeout")
        try:
            return nvml.call(call, index, *args)
        except GpuUnreadable as error:
            # Which of two GPUs it is of nobody says, so neither is given up for it: their own
            # readings tell.
            self._is_slow |= error.code == Code.TIMEOUT
            return Missing(error.reason)
        except NvmlError as error:
            try:
                error.raise_beyond_field()
            except GpuUnreadable:
                pass  # As above.
            return Missing(error.reason)

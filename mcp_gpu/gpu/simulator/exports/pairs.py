"""Functions about two GPUs, and about what a GPU's NVLink ends at."""

from __future__ import annotations

from typing import Any

import pynvml

from mcp_gpu.gpu.simulator.exports.memory import PTR, U32, fill, put
from mcp_gpu.gpu.simulator.library import Library, Refused, export


@export(PTR, PTR, PTR, names="nvmlDeviceGetTopologyCommonAncestor")
def _ancestor(lib: Library, call: str, first: int, second: int, out: int) -> None:
    put(out, U32, _of_pair(lib, call, first, second))


@export(PTR, PTR, U32, PTR, names="nvmlDeviceGetP2PStatus")
def _peer_status(
    lib: Library, call: str, first: int, second: int, capability: int, out: int
) -> None:
    put(out, U32, _of_pair(lib, call, first, second, capability))


def _of_pair(lib: Library, call: str, first: int, second: int, *key: int) -> Any:
    """What the first GPU says of the second, unless only the second has a fault to tell of."""
    one, other = lib.device(first), lib.device(second)
    if one is other:
        raise Refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    answers = []
    for device, peer in ((one, other), (other, one)):
        lib.enter(call, device.index)
        keys = ",".join(map(str, (peer.index, *key)))
        told = device.answer(call, keys)
        if told != device.at_rest(call, keys):
            return told
        answers.append(told)
    return answers[0]


@export(PTR, U32, PTR, names="nvmlDeviceGetNvLinkRemotePciInfo_v2")
def _remote(lib: Library, call: str, handle: int, link: int, out: int) -> None:
    fill(pynvml.nvmlPciInfo_t.from_address(out), lib.ask(call, handle, link))

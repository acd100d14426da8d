"""Which GPU a device plugin's id means, in all the forms that plugins give ids.

`GPU-UUID`, `MIG-UUID`, `MIG-GPU-UUID/GI/CI` (drivers before R470); an index, `0` or `0:1` of a MIG
instance; Google's `nvidia0`, `nvidia0/gi1`, `nvidia0/vgpu1` and `nvidia0/gi1/vgpu1`, where 0 is the
N of /dev/nvidiaN; and `ID::N`, the Nth replica of one that is shared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mcp_gpu.gpu.model import Gpu, MigDevice

__all__ = ["Devices", "Found", "is_gpu_resource", "is_whole_gpu_resource", "profile_of"]

_VENDOR: Final = "nvidia.com/"
_MIG: Final = "nvidia.com/mig-"
_SHARED: Final = ".shared"

_REPLICA: Final = re.compile(r"(?P<id>.+)::(?P<replica>[0-9]{1,9})")
_OLD_MIG: Final = re.compile(r"MIG-(?P<gpu>GPU-[^/]+)/(?P<gi>[0-9]{1,4})/(?P<ci>[0-9]{1,4})")
_INDEX: Final = re.compile(r"(?P<gpu>[0-9]{1,4})(:(?P<mig>[0-9]{1,4}))?")
_GOOGLE: Final = re.compile(
    r"nvidia(?P<minor>[0-9]{1,4})(/gi(?P<gi>[0-9]{1,4}))?(/vgpu(?P<replica>[0-9]{1,9}))?"
)


def is_gpu_resource(resource: str) -> bool:
    """Whether devices of that name may be GPUs: `nvidia.com/gpu`, MIG profiles, and whatever a
    plugin's configuration has renamed them to."""
    return resource.startswith(_VENDOR)


def is_whole_gpu_resource(resource: str) -> bool:
    """Whether they are GPUs, or instances of such, for sure."""
    name = resource.removesuffix(_SHARED)
    return name == f"{_VENDOR}gpu" or name.startswith(_MIG)


def profile_of(resource: str) -> str | None:
    """The MIG profile in a resource's name: `1g.10gb` of `nvidia.com/mig-1g.10gb.shared`, and
    `1g.10gb+me` of `nvidia.com/mig-1g.10gb.me`."""
    if not resource.startswith(_MIG):
        return None
    name = resource.removeprefix(_MIG).removesuffix(_SHARED)
    size, dot, attributes = name.partition("gb.")
    return f"{size}gb+{attributes.replace('.', ',')}" if dot else name


@dataclass(frozen=True, slots=True)
class Found:
    """What an id means on this node."""

    gpu: Gpu | None = None
    mig: MigDevice | None = None
    gpu_uuid: str | None = None
    """The id's own word, also of a GPU that is not seen."""
    mig_uuid: str | None = None
    replica: int | None = None
    why: str = ""
    """Why it fits nothing that is seen; empty if it does."""


class Devices:
    """The GPUs and MIG instances that an agent sees, by every name of theirs."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._by_uuid = {gpu.uuid: gpu for gpu in gpus if gpu.uuid}
        self._by_index = {gpu.index: gpu for gpu in gpus}
        self._by_minor = {gpu.minor_number: gpu for gpu in gpus if gpu.minor_number is not None}
        self._mig = {mig.uuid: (gpu, mig) for gpu, mig in _instances(gpus) if mig.uuid}

    def find(self, device_id: str) -> Found:
        """What the id means; never raises, whatever is in it."""
        shared = _REPLICA.fullmatch(device_id)
        name = shared["id"] if shared else device_id
        replica = int(shared["replica"]) if shared else None
        if name.startswith("GPU-"):
            gpu = self._by_uuid.get(name)
            return Found(gpu, None, name, None, replica, "" if gpu else "no GPU of this UUID here")
        if old := _OLD_MIG.fullmatch(name):
            return self._old_mig(name, old, replica)
        if name.startswith("MIG-"):
            gpu, mig = self._mig.get(name, (None, None))
            why = "" if mig else "no MIG instance of this UUID here"
            return Found(gpu, mig, gpu.uuid if gpu else None, name, replica, why)
        if index := _INDEX.fullmatch(name):
            gpu = self._by_index.get(int(index["gpu"]))
            which = None if index["mig"] is None else int(index["mig"])
            return _of(gpu, lambda mig: mig.index, which, replica)
        if google := _GOOGLE.fullmatch(name):
            gpu = self._by_minor.get(int(google["minor"]))
            which = None if google["gi"] is None else int(google["gi"])
            if google["replica"] is not None:
                replica = int(google["replica"])
            return _of(gpu, lambda mig: mig.gpu_instance_id, which, replica)
        return Found(replica=replica, why="the id has no form that is known")

    def _old_mig(self, name: str, old: re.Match[str], replica: int | None) -> Found:
        gpu = self._by_uuid.get(old["gpu"])
        ids = int(old["gi"]), int(old["ci"])
        for mig in gpu.mig_devices if gpu else ():
            if (mig.gpu_instance_id, mig.compute_instance_id) == ids:
                return Found(gpu, mig, old["gpu"], mig.uuid or name, replica)
        return Found(gpu, None, old["gpu"], name, replica, "no such MIG instance here")


def _instances(gpus: Sequence[Gpu]) -> Iterator[tuple[Gpu, MigDevice]]:
    return ((gpu, mig) for gpu in gpus for mig in gpu.mig_devices)


def _of(
    gpu: Gpu | None,
    number: Callable[[MigDevice], int | None],
    which: int | None,
    replica: int | None,
) -> Found:
    """A GPU that is named by a number, or the instance of it with that number."""
    if gpu is None:
        return Found(replica=replica, why="no GPU of this number here")
    if which is None:
        return Found(gpu, None, gpu.uuid, None, replica)
    for mig in gpu.mig_devices:
        if number(mig) == which:
            return Found(gpu, mig, gpu.uuid, mig.uuid, replica)
    return Found(gpu, None, gpu.uuid, None, replica, "no MIG instance of this number here")

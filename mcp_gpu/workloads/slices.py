"""ResourceSlices of one node: what Dynamic Resource Allocation can give out of its GPUs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from pydantic import Field

from mcp_gpu.gpu.wire import Wire
from mcp_gpu.workloads.counts.model import Sliced
from mcp_gpu.workloads.documents import Document, number, part, parts, word
from mcp_gpu.workloads.reads import Reads
from transports.text import one_line, visible

__all__ = ["GPU_DRIVER", "SlicePool", "gpu_devices", "node_slices", "pools", "sliced"]

GPU_DRIVER: Final = "gpu.nvidia.com"

NAME_CHARS: Final = 100
TAINTS_TOLD: Final = 16


class SlicePool(Wire):
    """One driver's pool of devices on the node."""

    driver: str
    pool: str
    slices: int = Field(description="Those of the newest generation.")
    slices_expected: int
    devices: dict[str, int] = Field(description="Type (gpu, mig, vfio, ...) to how many.")


async def node_slices(reads: Reads, node: str) -> tuple[Document, ...] | None:
    """The slices; None where they cannot be listed, which is then a gap."""
    found = await reads.list(
        "/apis/resource.k8s.io/v1", "resourceslices", fieldSelector=f"spec.nodeName={node}"
    )
    return found if found or reads.missed("resourceslices") is None else None


def pools(slices: Iterable[Document]) -> tuple[SlicePool, ...]:
    """By driver and pool."""
    return tuple(
        SlicePool(
            driver=one_line(driver, NAME_CHARS),
            pool=one_line(pool, NAME_CHARS),
            slices=len(newest),
            slices_expected=max(
                number(each, "spec", "pool", "resourceSliceCount") for each in newest
            ),
            devices=_types(newest),
        )
        for (driver, pool), newest in _newest(slices).items()
    )


def sliced(slices: Iterable[Document]) -> Sliced:
    """What they say of GPUs."""
    every = _newest(slices)
    mine = {key: found for key, found in every.items() if key[0] == GPU_DRIVER}
    uuids: set[str] = set()
    nameless, tainted, missing = 0, [], []
    for (_, pool), newest in mine.items():
        expected = max(number(each, "spec", "pool", "resourceSliceCount") for each in newest)
        if len(newest) < expected:
            missing.append(f"pool {one_line(pool, NAME_CHARS)}: {len(newest)} of {expected} slices")
        for device in _devices(newest):
            attributes = _attributes(device)
            kind = attributes.get("type")
            uuid = attributes.get("parentUUID" if kind == "mig" else "uuid")
            if kind in ("gpu", "mig") and uuid:
                uuids.add(one_line(uuid, NAME_CHARS))
            elif kind == "gpu":
                nameless += 1
            for taint in parts(device, "taints") or parts(device, "basic", "taints"):
                words = f"{word(device, 'name')} ({word(taint, 'key')} {word(taint, 'value')})"
                tainted.append(one_line(words, NAME_CHARS))
    return Sliced(
        gpus=len(uuids) + nameless,
        uuids=frozenset(uuids),
        tainted=tuple(tainted[:TAINTS_TOLD]),
        missing=tuple(missing),
        drivers=tuple(sorted({one_line(driver, NAME_CHARS) for driver, _ in every})),
        published=bool(mine),
    )


def gpu_devices(slices: Iterable[Document]) -> dict[tuple[str, str], dict[str, str]]:
    """Text attributes of each of NVIDIA's devices, such as `uuid`, by pool and device."""
    return {
        (pool, word(device, "name")): _attributes(device)
        for (driver, pool), newest in _newest(slices).items()
        if driver == GPU_DRIVER
        for device in _devices(newest)
    }


def _newest(slices: Iterable[Document]) -> dict[tuple[str, str], list[Document]]:
    """By driver and pool, without those that a newer generation has taken the place of."""
    found: defaultdict[tuple[str, str], list[Document]] = defaultdict(list)
    for each in slices:
        found[word(each, "spec", "driver"), word(each, "spec", "pool", "name")].append(each)
    return {
        key: [each for each in members if _generation(each) == max(map(_generation, members))]
        for key, members in sorted(found.items())
    }


def _generation(document: Document) -> int:
    return number(document, "spec", "pool", "generation")


def _devices(slices: Iterable[Document]) -> Iterable[Document]:
    return (device for each in slices for device in parts(each, "spec", "devices"))


def _types(slices: Iterable[Document]) -> dict[str, int]:
    found: dict[str, int] = {}
    for device in _devices(slices):
        kind = one_line(_attributes(device).get("type", ""), NAME_CHARS) or "device"
        found[kind] = found.get(kind, 0) + 1
    return found


def _attributes(device: Document) -> dict[str, str]:
    """Those that are texts, whether their names have the driver's before them or not."""
    found = part(device, "attributes") or part(device, "basic", "attributes")
    return {
        name.removeprefix(f"{GPU_DRIVER}/"): visible(text)
        for name in found
        if (text := word(found, name, "string"))
    }

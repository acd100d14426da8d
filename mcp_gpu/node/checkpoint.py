"""The file in which the kubelet keeps what its device plugins' devices were given to.

Its format is the kubelet's own and changes with it
(pkg/kubelet/cm/devicemanager/checkpoint/checkpoint.go); it knows pods by uid alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from mcp_gpu.gpu.privileges import ROOT

__all__ = ["Checkpoint", "CheckpointError", "Entry", "read_checkpoint"]

MOST_BYTES: Final = 16 * 2**20


class CheckpointError(Exception):
    """The file cannot be read. The text says why."""


class Entry(NamedTuple):
    """Devices of one resource that a container was given."""

    pod_uid: str
    container: str
    resource: str
    ids: tuple[str, ...]


class Checkpoint(NamedTuple):
    """What the file says."""

    entries: tuple[Entry, ...]
    registered: dict[str, int]
    """Resource to its healthy devices."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the file. Blocks as long as a disk does.

    Raises:
        CheckpointError: there is none, or it is not one of these.
    """
    try:
        with path.open("rb") as opened:
            raw = opened.read(MOST_BYTES + 1)
    except OSError as error:
        remedy = f" (takes {ROOT})" if isinstance(error, PermissionError) else ""
        raise CheckpointError(f"{path}: {error.strerror}{remedy}") from error
    if len(raw) > MOST_BYTES:
        raise CheckpointError(f"{path}: longer than {MOST_BYTES >> 20} MiB")
    try:
        data = json.loads(raw)["Data"]
        entries = tuple(map(_entry, data["PodDeviceEntries"] or ()))
        registered = {
            str(name): len(ids) for name, ids in (data["RegisteredDevices"] or {}).items()
        }
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a device plugins' checkpoint") from error
    return Checkpoint(entries, registered)


def _entry(entry: Any) -> Entry:
    words = (entry["PodUID"], entry["ContainerName"], entry["ResourceName"])
    ids = tuple(_ids(entry["DeviceIDs"]))
    if not all(isinstance(each, str) for each in (*words, *ids)):
        raise TypeError("a name is no string")
    return Entry(*words, ids)


def _ids(ids: Any) -> Iterator[Any]:
    """By NUMA node since Kubernetes 1.20, before it one list."""
    if isinstance(ids, list):
        yield from ids
        return
    for of_node in (ids or {}).values():
        yield from of_node or ()

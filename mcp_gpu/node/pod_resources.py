"""The kubelet's PodResources service, version 1, on its Unix socket: `PodResources`.

Field numbers are those of k8s.io/kubelet/pkg/apis/podresources/v1/api.proto.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import anyio

from mcp_gpu.gpu.privileges import ROOT
from mcp_gpu.node.grpc import GrpcError, connected
from mcp_gpu.node.protobuf import ProtobufError, fields, text

__all__ = [
    "Allocation",
    "ClaimedDevice",
    "ContainerEntry",
    "PluginDevices",
    "PodEntry",
    "PodResources",
    "PodResourcesError",
]

CALL_SECONDS: Final = 1.5
"""For both calls together. The kubelet answers from memory, in some milliseconds."""

_LIST: Final = "/v1.PodResourcesLister/List"
_ALLOCATABLE: Final = "/v1.PodResourcesLister/GetAllocatableResources"


class PodResourcesError(Exception):
    """The kubelet did not tell. The text says why, and what grants it."""


class PluginDevices(NamedTuple):
    """Devices of one resource of a device plugin (ContainerDevices)."""

    resource: str
    ids: tuple[str, ...]


class ClaimedDevice(NamedTuple):
    """One device of a ResourceClaim (ClaimResource within its DynamicResource)."""

    namespace: str
    claim: str
    driver: str
    pool: str
    device: str
    cdi_ids: tuple[str, ...]


class ContainerEntry(NamedTuple):
    """What one container was given (ContainerResources)."""

    name: str
    devices: tuple[PluginDevices, ...]
    claimed: tuple[ClaimedDevice, ...]


class PodEntry(NamedTuple):
    """One pod's containers (PodResources)."""

    namespace: str
    name: str
    containers: tuple[ContainerEntry, ...]


class Allocation(NamedTuple):
    """What the kubelet has given to whom, and what it could give."""

    pods: tuple[PodEntry, ...]
    allocatable: tuple[PluginDevices, ...]
    why: str = ""
    """Why `allocatable` is not known; empty if it is."""


class PodResources:
    """The service behind one socket. Each question is a connection of its own: a kubelet that was
    restarted listens on a new socket of the same name.

    Args:
        path: in the kubelet's folder, which has to be mounted as a whole.
        seconds: longest wait.
    """

    def __init__(self, path: Path, *, seconds: float = CALL_SECONDS) -> None:
        self.path = path
        self._seconds = seconds

    async def allocation(self) -> Allocation:
        """What the kubelet says now.

        Raises:
            PodResourcesError: it says nothing.
        """
        try:
            with anyio.fail_after(self._seconds):
                async with connected(self.path) as connection:
                    pods = read_pods(await connection.call(_LIST))
                    try:
                        could = read_allocatable(await connection.call(_ALLOCATABLE))
                    except GrpcError as error:
                        if error.status is None:
                            raise
                        return Allocation(pods, (), f"what could be allocated: {error}")
                    return Allocation(pods, could)
        except TimeoutError as error:
            late = f"the kubelet has not answered within {self._seconds:g} s"
            raise PodResourcesError(f"{self.path}: {late}") from error
        except GrpcError as error:
            raise PodResourcesError(f"{self.path}: {error}{_remedy(error)}") from error
        except ProtobufError as error:
            raise PodResourcesError(f"{self.path}: its answer cannot be read: {error}") from error


def _remedy(error: GrpcError) -> str:
    match error.__cause__:
        case FileNotFoundError():
            return f" (is the folder mounted, and the kubelet running? {ROOT} mounts it)"
        case PermissionError():
            return f" (takes {ROOT})"
        case ConnectionRefusedError():
            return " (is the kubelet running?)"
        case _:
            return ""


def read_pods(message: memoryview) -> tuple[PodEntry, ...]:
    """The pods of a ListPodResourcesResponse.

    Raises:
        ProtobufError: it is none.
    """
    return tuple(_pod(value) for number, value in fields(message) if number == 1)


def read_allocatable(message: memoryview) -> tuple[PluginDevices, ...]:
    """The devices of an AllocatableResourcesResponse.

    Raises:
        ProtobufError: it is none.
    """
    return tuple(_devices(value) for number, value in fields(message) if number == 1)


def _pod(message: memoryview) -> PodEntry:
    name = namespace = ""
    containers: list[ContainerEntry] = []
    for number, value in fields(message):
        if number == 1:
            name = text(value)
        elif number == 2:
            namespace = text(value)
        elif number == 3:
            containers.append(_container(value))
    return PodEntry(namespace, name, tuple(containers))


def _container(message: memoryview) -> ContainerEntry:
    name = ""
    devices: list[PluginDevices] = []
    claimed: list[ClaimedDevice] = []
    for number, value in fields(message):
        if number == 1:
            name = text(value)
        elif number == 2:
            devices.append(_devices(value))
        elif number == 5:
            claimed += _claimed(value)
    return ContainerEntry(name, tuple(devices), tuple(claimed))


def _devices(message: memoryview) -> PluginDevices:
    resource, ids = "", list[str]()
    for number, value in fields(message):
        if number == 1:
            resource = text(value)
        elif number == 2:
            ids.append(text(value))
    return PluginDevices(resource, tuple(ids))


def _claimed(message: memoryview) -> list[ClaimedDevice]:
    """The devices of a DynamicResource."""
    name = namespace = ""
    resources: list[memoryview] = []
    for number, value in fields(message):
        if number == 2:
            name = text(value)
        elif number == 3:
            namespace = text(value)
        elif number == 4:
            resources.append(value)
    return [_claim_resource(value, namespace, name) for value in resources]


def _claim_resource(message: memoryview, namespace: str, claim: str) -> ClaimedDevice:
    driver = pool = device = ""
    cdi_ids: list[str] = []
    for number, value in fields(message):
        if number == 1:
            cdi_ids += (text(each) for inner, each in fields(value) if inner == 1)
        elif number == 2:
            driver = text(value)
        elif number == 3:
            pool = text(value)
        elif number == 4:
            device = text(value)
    return ClaimedDevice(namespace, claim, driver, pool, device, tuple(cdi_ids))

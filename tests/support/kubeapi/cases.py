"""What holds for discovery on the fake API server and on a real one alike.

Each case takes a cluster that it may change, and names of its own in it; `run` clears them away.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import anyio

from mcp_gpu.fleet.discovery.kubernetes import KubernetesDiscovery
from mcp_gpu.fleet.discovery.reflector import Reflector
from support.kubeapi.documents import Document, endpoint, endpoint_slice, node
from transports.base import Target
from transports.kubernetes import KubernetesApi

__all__ = ["CASES", "Ground", "discovering", "eventually", "reflecting", "run"]

WAIT_SECONDS = 30.0
"""Bound for what a server and a watch take on a busy machine."""


class Ground(Protocol):
    """A cluster that a test may change."""

    @property
    def kubeconfig(self) -> Path: ...

    namespace: str

    async def apply(self, document: Mapping[str, Any]) -> None:
        """Create the object in the namespace or replace it, status and all."""

    async def delete(self, kind: str, name: str) -> None:
        """Delete the object."""


class Tidy:
    """A ground that deletes at the end what has been made on it."""

    def __init__(self, ground: Ground) -> None:
        self.kubeconfig = ground.kubeconfig
        self.namespace = ground.namespace
        self._ground = ground
        self._made: set[tuple[str, str]] = set()

    async def apply(self, document: Mapping[str, Any]) -> None:
        self._made.add((document["kind"], document["metadata"]["name"]))
        await self._ground.apply(document)

    async def delete(self, kind: str, name: str) -> None:
        self._made.discard((kind, name))
        await self._ground.delete(kind, name)

    async def clear(self) -> None:
        for kind, name in tuple(self._made):
            await self.delete(kind, name)


async def run(case: Callable[[Ground], Awaitable[None]], ground: Ground) -> None:
    """Run a case and leave nothing of it behind."""
    tidy = Tidy(ground)
    try:
        await case(tidy)
    finally:
        with anyio.CancelScope(shield=True):
            await tidy.clear()


async def eventually(holds: Callable[[], object]) -> None:
    """Wait until something that another task or process brings about is true."""
    with anyio.fail_after(WAIT_SECONDS):
        while not holds():
            await anyio.sleep(0.005)


@asynccontextmanager
async def reflecting(
    ground: Ground,
    selector: str = "",
    *,
    keep: Callable[[Mapping[str, Any]], Any] = lambda item: item["metadata"]["resourceVersion"],
    **settings: Any,
) -> AsyncIterator[Reflector[Any]]:
    """A reflector of the namespace's EndpointSlices that has made its first attempt."""

    async def path() -> str:
        return f"/apis/discovery.k8s.io/v1/namespaces/{ground.namespace}/endpointslices"

    settings = {"jitter": lambda most: 0.0} | settings
    async with KubernetesApi(str(ground.kubeconfig)) as api, anyio.create_task_group() as group:
        reflector = Reflector(api, "EndpointSlices", path, keep, selector=selector, **settings)
        group.start_soon(reflector.run)
        with anyio.fail_after(WAIT_SECONDS):
            await reflector.tried.wait()
        yield reflector
        group.cancel_scope.cancel()


@asynccontextmanager
async def discovering(
    ground: Ground, selector: str, **settings: Any
) -> AsyncIterator[KubernetesDiscovery]:
    """Discovery that has had its first look."""
    settings = {"namespace": ground.namespace, "jitter": lambda most: 0.0} | settings
    api = KubernetesApi(str(ground.kubeconfig))
    discovery = KubernetesDiscovery(api, selector=selector, **settings)
    async with anyio.create_task_group() as group:
        with anyio.fail_after(WAIT_SECONDS):
            await group.start(discovery.run)
        yield discovery
        group.cancel_scope.cancel()


def copied(copy: Reflector[Any]) -> dict[str, Any]:
    """What it holds, by name alone."""
    return {key.rpartition("/")[2]: value for key, value in copy.items.items()}


def addresses(slice_: Mapping[str, Any]) -> list[str]:
    """What the cases keep of a slice."""
    return [each["addresses"][0] for each in slice_["endpoints"] or ()]


async def changes_reach_the_copy(ground: Ground) -> None:
    labels = {"case": "changes"}

    def made(name: str, *ips: str) -> Document:
        return endpoint_slice(name, [endpoint(ip, f"n-{ip}") for ip in ips], labels=labels)

    await ground.apply(made("changes-a", "10.1.0.1"))
    await ground.apply(made("changes-b", "10.1.0.2"))
    async with reflecting(ground, "case=changes", keep=addresses) as copy:
        assert copied(copy) == {"changes-a": ["10.1.0.1"], "changes-b": ["10.1.0.2"]}
        await ground.apply(made("changes-c", "10.1.0.3"))
        await ground.apply(made("changes-b", "10.1.0.2", "10.1.0.4"))
        await ground.delete("EndpointSlice", "changes-a")
        whole = {"changes-b": ["10.1.0.2", "10.1.0.4"], "changes-c": ["10.1.0.3"]}
        await eventually(lambda: copied(copy) == whole)
        assert copy.lists == 1
        assert copy.problem is None


async def what_the_selector_no_longer_picks_is_gone(ground: Ground) -> None:
    def made(value: str) -> Document:
        return endpoint_slice("picked", [endpoint("10.1.1.1", "n1")], labels={"case": value})

    await ground.apply(made("picked"))
    async with reflecting(ground, "case=picked", keep=addresses) as copy:
        assert set(copied(copy)) == {"picked"}
        await ground.apply(made("other"))
        await eventually(lambda: copied(copy) == {})
        await ground.apply(made("picked"))
        await eventually(lambda: set(copied(copy)) == {"picked"})


async def both_families_of_a_pod_are_one_target(ground: Ground) -> None:
    labels = {"case": "families"}
    four = [endpoint("10.1.2.1", "n1"), endpoint("10.1.2.2", "n2", serving=False)]
    six = [endpoint("fd00::1", "n1")]
    await ground.apply(endpoint_slice("families-4", four, port=9000, labels=labels))
    await ground.apply(endpoint_slice("families-6", six, family="IPv6", port=9000, labels=labels))
    async with discovering(ground, "case=families") as discovery:
        found = discovery.table().targets
    names = {"namespace": ground.namespace, "container": "agent", "port": 9000}
    assert found == (
        Target(
            node="n1",
            pod="agent-n1",
            uid="uid-n1",
            addresses=("10.1.2.1", "fd00::1"),
            **names,
        ),
        Target(
            node="n2",
            pod="agent-n2",
            uid="uid-n2",
            addresses=("10.1.2.2",),
            ready=False,
            **names,
        ),
    )


async def a_gpu_node_without_an_agent_is_absent(ground: Ground) -> None:
    await ground.apply(node("case-gpu", labels={"nvidia.com/gpu.present": "true"}))
    await ground.apply(endpoint_slice("absent", [endpoint("10.1.3.1", "n1")], labels={"case": "x"}))
    async with discovering(ground, "case=x") as discovery:
        names = [absent.node for absent in discovery.table().absent]
        assert "case-gpu" in names
        await ground.delete("Node", "case-gpu")
        await eventually(
            lambda: "case-gpu" not in [absent.node for absent in discovery.table().absent]
        )


CASES = (
    changes_reach_the_copy,
    what_the_selector_no_longer_picks_is_gone,
    both_families_of_a_pod_are_one_target,
    a_gpu_node_without_an_agent_is_absent,
)

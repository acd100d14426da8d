"""Several clusters as one fleet: side by side, and each one's trouble its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from mcp_gpu.fleet.discovery import DiscoveryError
from mcp_gpu.fleet.discovery.clusters import ClustersDiscovery
from mcp_gpu.fleet.discovery.kubernetes import KubernetesDiscovery
from support.kubeapi.cases import WAIT_SECONDS, eventually
from support.kubeapi.documents import SELECTOR, endpoint, endpoint_slice, node, pod, running
from support.kubeapi.server import FakeApiServer
from transports.kubernetes import KubernetesApi


@pytest.fixture
async def servers() -> AsyncIterator[dict[str, FakeApiServer]]:
    """Two clusters, each with an agent on its node n1 and one missing on its node n2. Pods have
    the same uids, as in a cluster restored from the other's backup."""
    async with AsyncExitStack() as stack:
        found = {}
        for number, name in enumerate(("east", "west")):
            found[name] = server = await stack.enter_async_context(FakeApiServer())
            await server.apply(endpoint_slice("s", [endpoint(f"10.0.{number}.1", "n1")]))
            await server.apply(pod("n1", state=running(), ready=name == "east"))
            await server.apply(node("n2"))
        yield found


@asynccontextmanager
async def watching(servers: dict[str, FakeApiServer]) -> AsyncIterator[ClustersDiscovery]:
    discovery = ClustersDiscovery(
        {
            name: KubernetesDiscovery(
                KubernetesApi(str(server.kubeconfig)),
                selector=SELECTOR,
                everywhere=True,
                jitter=lambda most: 0.0,
            )
            for name, server in servers.items()
        }
    )
    async with anyio.create_task_group() as group:
        with anyio.fail_after(WAIT_SECONDS):
            await group.start(discovery.run)
        yield discovery
        group.cancel_scope.cancel()


async def test_agents_of_all_clusters_are_known_by_cluster(
    servers: dict[str, FakeApiServer],
) -> None:
    async with watching(servers) as discovery:
        table = discovery.table()
        assert [(t.cluster, t.node, t.addresses) for t in table.targets] == [
            ("east", "n1", ("10.0.0.1",)),
            ("west", "n1", ("10.0.1.1",)),
        ]
        east, west = table.targets
        assert east.key != west.key
        assert {each.node for each in table.absent} == {"east/n2", "west/n2"}
        assert set(table.explanations) == {west.key}
        assert table.source == "east: Kubernetes, all namespaces; west: Kubernetes, all namespaces"
        assert table.problem is None


async def test_a_cluster_that_is_away_from_the_start_is_a_problem_and_no_more(
    servers: dict[str, FakeApiServer],
) -> None:
    await servers["east"].stop()
    async with watching(servers) as discovery:
        table = discovery.table()
        assert [(t.cluster, t.node) for t in table.targets] == [("west", "n1")]
        assert table.source == "west: Kubernetes, all namespaces"
        assert table.problem is not None
        assert table.problem.startswith("east: Kubernetes, all namespaces: cannot watch Endpoint")
        assert "west" not in table.problem
        await servers["east"].start()
        await eventually(lambda: len(discovery.table().targets) == 2)
        await eventually(lambda: discovery.table().problem is None)


async def test_a_cluster_that_goes_away_keeps_its_agents_and_makes_the_table_old(
    servers: dict[str, FakeApiServer],
) -> None:
    async with watching(servers) as discovery:
        await servers["west"].stop()
        await eventually(lambda: discovery.table().problem)
        await servers["east"].apply(endpoint_slice("t", [endpoint("10.0.0.3", "n3")]))
        await eventually(lambda: len(discovery.table().targets) == 3)
        before = discovery.table()
        assert {t.cluster for t in before.targets} == {"east", "west"}
        assert (before.problem or "").startswith("west: cannot watch EndpointSlices: ")
        # The other is confirmed again and again; the whole is as old as its oldest part.
        await servers["east"].apply(endpoint_slice("u", [endpoint("10.0.0.4", "n4")]))
        await eventually(lambda: len(discovery.table().targets) == 4)
        assert discovery.table().as_of == before.as_of


async def test_only_where_no_cluster_answers_nothing_is_known(
    servers: dict[str, FakeApiServer],
) -> None:
    servers["east"].tokens.clear()
    await servers["west"].stop()
    async with watching(servers) as discovery:
        with pytest.raises(DiscoveryError) as caught:
            discovery.table()
    first, _, second = str(caught.value).partition("; west: ")
    assert first.startswith("east: Kubernetes, all namespaces: cannot watch EndpointSlices: ")
    assert first.endswith("the credentials have expired or are not accepted")
    assert "cannot reach the API server" in second

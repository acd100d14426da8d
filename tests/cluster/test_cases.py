"""What the tests show on the fake API server, on a real one: the fake cannot drift from it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cluster.cluster import Access, Cluster
from cluster.release import Release, image, installed
from support import execcases, forwardcases
from support.kubeapi import cases
from transports.base import Target
from transports.errors import Denied, TransportError

NAMESPACE = "shared-cases"


@pytest.fixture(scope="module")
def release(own_cluster: Cluster) -> Iterator[Release]:
    pinned = "admissionPolicy.enabled=true"
    with installed(own_cluster, image(own_cluster), "cases", NAMESPACE, pinned) as found:
        yield found


@pytest.fixture(scope="module")
def stranger(release: Release, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A kubeconfig of somebody who may do nothing."""
    path = tmp_path_factory.mktemp("stranger") / "kubeconfig"
    path.write_text(_with_token(release, release.kubectl("create", "token", "default")))
    return str(path)


@pytest.fixture(scope="module")
def site(release: Release, stranger: str) -> execcases.ExecSite:
    return execcases.ExecSite(
        kubeconfig=str(release.cluster.kubeconfig),
        stranger=stranger,
        namespace=NAMESPACE,
        pod=release.agents()[2].name,
    )


@pytest.fixture(scope="module")
def forward_site(
    release: Release, stranger: str, tmp_path_factory: pytest.TempPathFactory
) -> forwardcases.ForwardSite:
    folder = tmp_path_factory.mktemp("agents")
    token_file, ca_file = folder / "token", folder / "ca.crt"
    agent = f"{release.fullname}-agent"
    gateway = f"{release.fullname}-gateway"
    token_file.write_text(release.account_token(gateway, f"{agent}.{NAMESPACE}"))
    ca_file.write_text(release.secret(f"{agent}-tls", "ca.crt"))
    return forwardcases.ForwardSite(
        kubeconfig=str(release.cluster.kubeconfig),
        stranger=stranger,
        token_file=str(token_file),
        target=Target(namespace=NAMESPACE, pod=release.agents()[2].name),
        trust={"ca_file": str(ca_file), "server_name": f"{agent}.{NAMESPACE}.svc"},
    )


def _with_token(release: Release, token: str) -> str:
    """The cluster's kubeconfig, for whoever has that token alone."""
    words = ["config", "view", "--raw", "-o", "json"]
    config = json.loads(release.cluster.kubectl(*words))
    for user in config["users"]:
        user["user"] = {"token": token.strip()}
    return json.dumps(config)


@pytest.mark.parametrize("case", execcases.CASES, ids=lambda case: case.__name__)
async def test_exec(
    case: Callable[[execcases.ExecSite], Awaitable[None]], site: execcases.ExecSite
) -> None:
    await case(site)


@pytest.mark.parametrize("case", forwardcases.CASES, ids=lambda case: case.__name__)
async def test_portforward(
    case: Callable[[forwardcases.ForwardSite], Awaitable[None]],
    forward_site: forwardcases.ForwardSite,
) -> None:
    await case(forward_site)


async def test_the_gateway_may_start_its_relay_and_nothing_else(
    release: Release, site: execcases.ExecSite, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    account = f"{release.fullname}-gateway"
    kubeconfig.write_text(_with_token(release, release.kubectl("create", "token", account)))
    own = dataclasses.replace(site, kubeconfig=str(kubeconfig))

    async def refused(*argv: str) -> Denied | None:
        async with own.transport(*argv) as transport:
            try:
                await transport.probe(own.target)
            except Denied as error:
                return error
            except TransportError:
                return None  # it has been run
        raise AssertionError

    with anyio.fail_after(execcases.SECONDS):
        while (error := await refused("sh", "-c", "true")) is None:
            await anyio.sleep(0.5)  # a policy counts some moments after it has been made
    assert error.symptom == "admission"
    assert "may start mcp-gpu attach --relay-only in the container agent" in error.message
    assert await refused("mcp-gpu", "attach") is not None
    async with own.transport() as transport:
        await own.call(transport)


class Ground:
    """The cluster as a place where discovery's cases make objects."""

    namespace = "discovery-cases"

    def __init__(self, cluster: Access) -> None:
        self.kubeconfig = Path(cluster.kubeconfig)
        self._cluster = cluster

    async def apply(self, document: Mapping[str, Any]) -> None:
        text = json.dumps(
            {**document, "metadata": {**document["metadata"], "uid": None, "namespace": None}}
        )
        flags = ["apply", "--server-side", "--force-conflicts", "-f", "-"]
        await self._kubectl(*flags, stdin=text)
        if "status" in document:
            await self._kubectl(*flags, "--subresource=status", stdin=text)

    async def delete(self, kind: str, name: str) -> None:
        await self._kubectl("delete", kind, name, "--grace-period=0", "--force")

    async def _kubectl(self, *args: str, stdin: str | None = None) -> None:
        await anyio.to_thread.run_sync(
            lambda: self._cluster.kubectl("-n", self.namespace, *args, stdin=stdin)
        )


@pytest.fixture(scope="module")
def ground(cluster: Access) -> Iterator[Ground]:
    cluster.kubectl("create", "namespace", Ground.namespace)
    try:
        yield Ground(cluster)
    finally:
        gone = ["delete", "namespace", Ground.namespace, "--timeout=120s"]
        cluster.kubectl(*gone, timeout=130)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.__name__)
async def test_discovery(
    case: Callable[[cases.Ground], Awaitable[None]], ground: cases.Ground
) -> None:
    await cases.run(case, ground)

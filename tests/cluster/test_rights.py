"""What the chart's accounts may do in a cluster is what they need, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cluster import faults
from cluster.cluster import Cluster
from cluster.pods import Pod
from cluster.process import CommandError
from cluster.release import Release, image, installed

NAMESPACE = "rights"
ELSEWHERE = "default"

ACCOUNTS = ("gateway", "agent", "client")

WRITTEN = {
    "pods/exec",
    "pods/portforward",
    "subjectaccessreviews.authorization.k8s.io",
    "tokenreviews.authentication.k8s.io",
}
"""All that may be created: streams, and reviews, which leave nothing behind."""

READS = {"get", "list", "watch"}

RELAY = ("mcp-gpu", "attach", "--relay-only")


@pytest.fixture(scope="module")
def release(own_cluster: Cluster) -> Iterator[Release]:
    with installed(own_cluster, image(own_cluster), "r", NAMESPACE) as found:
        yield found


def rights(cluster: Cluster, account: str, namespace: str) -> set[str]:
    """The lines of `kubectl auth can-i --list`, as one account of NAMESPACE sees them."""
    user = f"--as=system:serviceaccount:{NAMESPACE}:{account}"
    said = cluster.kubectl("auth", "can-i", "--list", "--no-headers", user, "-n", namespace)
    return {" ".join(line.split()) for line in said.splitlines()}


def own_rights(release: Release, account: str, namespace: str) -> list[str]:
    """Those that not every account has."""
    everybodys = rights(release.cluster, "nobody", namespace)
    mine = rights(release.cluster, f"{release.fullname}-{account}", namespace)
    assert everybodys <= mine
    return sorted(mine - everybodys)


@pytest.mark.parametrize("verify", ["jwks", "review"])
def test_what_each_account_may_do_is_as_promised(
    release: Release, golden: Callable[[str, object], None], verify: str
) -> None:
    """A change of the golden file changes what is granted: say so in CHANGELOG.md."""
    release.set(f"auth.agents.verify={verify}")
    found = {
        f"{account} in {'its namespace' if namespace == NAMESPACE else 'another'}": own_rights(
            release, account, namespace
        )
        for account in ACCOUNTS
        for namespace in (NAMESPACE, ELSEWHERE)
    }
    golden(f"rights/{verify}.json", found)
    for lines in found.values():
        for line in lines:
            assert "*" not in line
            resource, verbs = line.split()[0], set(line.rpartition("[")[2].rstrip("]").split())
            allowed = {"tools.gpu.mcp": {"call"}}.get(resource, READS)
            assert verbs <= (allowed | {"create"} if resource in WRITTEN else allowed), line


@pytest.fixture(scope="module")
def agent(release: Release) -> Iterator[Pod]:
    # What kubectl asks first. The gateway never does: it knows the pod that it wants.
    account = f"{release.fullname}-gateway"
    with faults.granted(release.cluster, NAMESPACE, account, "pods", "get"):
        yield release.agents()[0]


def started(release: Release, pod: str, *words: str) -> str:
    """What a command in a pod prints that the gateway's account starts."""
    account = f"--as=system:serviceaccount:{NAMESPACE}:{release.fullname}-gateway"
    return release.kubectl("exec", "-i", account, pod, *words)


def test_the_gateways_account_may_start_the_relay(release: Release, agent: Pod) -> None:
    started(release, agent.name, "-c", "agent", "--", *RELAY)


@pytest.mark.parametrize(
    "command",
    [("mcp-gpu", "--version"), (*RELAY, "--idle", "1"), ("mcp-gpu", "attach"), ("/bin/sh",)],
    ids=" ".join,
)
def test_the_gateways_account_may_start_nothing_else(
    release: Release, agent: Pod, command: tuple[str, ...]
) -> None:
    refuse(release, agent.name, "-c", "agent", "--", *command)


@pytest.mark.usefixtures("agent")
def test_the_gateways_account_may_start_nothing_in_another_pod(release: Release) -> None:
    refuse(release, release.gateway().name, "-c", "gateway", "--", *RELAY)


def refuse(release: Release, pod: str, *words: str) -> None:
    with pytest.raises(CommandError) as refused:
        started(release, pod, *words)
    assert "may start mcp-gpu attach --relay-only in the container agent" in str(refused.value)

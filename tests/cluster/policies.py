"""NetworkPolicies enforced, for the tests that ask for it: kube-router's firewall on every node.

Else nobody here enforces any, as on a cluster whose network plugin does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.cluster import Cluster
from cluster.node import Node
from cluster.plan import SERVICE_NETWORK
from cluster.process import run, wait

__all__ = ["policies_enforced", "settle"]

DAEMON = "kube-router"

PERIOD = "1s"
"""It also works policies through when something changes; so it is known when it has done so."""

SETTLE_SECONDS = 60
"""Bound for that: some 60 ms each time, on an idle machine."""

DONE = "sync iptables took"
"""What it logs each time that it has."""


@contextmanager
def policies_enforced(cluster: Cluster) -> Iterator[None]:
    """Every NetworkPolicy counts within the block, for pods that run already too. As its API says,
    a pod's own node always gets to the pod, and what has been let in gets its answers."""
    command = [
        str(cluster.programs / DAEMON),
        f"--kubeconfig={cluster.kubeconfig}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        f"--iptables-sync-period={PERIOD}",
        "--run-firewall=true",
        "--run-router=false",
        "--run-service-proxy=false",
        "--health-port=0",
        "--v=1",  # else it does not say when it is done
    ]
    nodes = cluster.machines.values()
    try:
        for node in nodes:
            node.start(DAEMON, [*command, f"--hostname-override={node.name}"])
        settle(cluster)
        yield
    finally:
        for node in nodes:
            node.stop(DAEMON)
            _clean(node)


def settle(cluster: Cluster) -> None:
    """Wait until what the API server has now is in force on every node.

    Raises:
        TimeoutError: it is not within SETTLE_SECONDS.
    """
    nodes = cluster.machines.values()
    # The first to end may have begun before; the second has not.
    wanted = {node.name: _rounds(node) + 2 for node in nodes}
    wait(
        "policies in force",
        lambda: all(_rounds(node) >= wanted[node.name] for node in nodes),
        SETTLE_SECONDS,
    )


def _rounds(node: Node) -> int:
    return node.log(DAEMON).read_text().count(DONE)


def _clean(node: Node) -> None:
    """Nobody else here uses iptables or ipset."""
    tables = run(*node.wires(), "nft", "list", "tables").splitlines()
    if "table ip filter" in tables:
        run(*node.wires(), "nft", "delete", "table", "ip", "filter")
    run(*node.wires(), "ipset", "destroy")

"""The cluster that the tests in this folder, and any that are built on it, run against."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.binaries import missing
from cluster.cluster import ELSEWHERE, Access, Cluster, at_hand
from cluster.plan import Plan


@pytest.fixture(scope="session")
def cluster(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Access]:
    """A cluster with at least two nodes, by its kubeconfig alone."""
    elsewhere = os.environ.get(ELSEWHERE)
    if elsewhere:
        yield Access(Path(elsewhere), tmp_path_factory.mktemp("access"))
        return
    if reason := missing():
        if pytestconfig.getoption("--require-cluster"):
            pytest.fail(reason)
        pytest.skip(reason)
    with at_hand(Plan.chosen()) as found:
        yield found


@pytest.fixture(scope="session")
def own_cluster(cluster: Access) -> Cluster:
    """The cluster of this machine, whose wires and daemons can be got at."""
    if not isinstance(cluster, Cluster):
        pytest.skip(f"{ELSEWHERE} names a cluster whose machines are out of reach")
    return cluster


@pytest.fixture(scope="session")
def busybox(cluster: Access) -> str:
    """The name of an image with a shell, wget, nslookup and httpd."""
    return "localhost/busybox:1" if isinstance(cluster, Cluster) else "busybox:1.37"

"""Why a pod died is told for what it was, and whether it was the program's own code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from cluster.cluster import Cluster
from cluster.deaths import DEATHS, GPU, JOBS, NEIGHBOUR, NEIGHBOURS, SIMULATION, staged
from cluster.deviceplugin import device_plugin
from cluster.release import Release, call, image, installed
from cluster.simulation import gpus
from cluster.workload import workload

NAMESPACE = "failures"

ON_N1 = "gateway.nodeSelector.kubernetes\\.io/hostname=n1"
"""Away from the node that is lost."""


@pytest.fixture(scope="module")
def release(own_cluster: Cluster) -> Iterator[Release]:
    values = ["agent.privileges=root", ON_N1, SIMULATION.value]
    built = image(own_cluster)
    with installed(own_cluster, built, "d", NAMESPACE, *values, level="privileged") as found:
        yield found


@pytest.fixture(scope="module")
def dead(release: Release) -> Iterator[Release]:
    """All have died."""
    cluster = release.cluster
    with ExitStack() as stack:
        for node, boards in gpus(release).items():
            ids = [board["uuid"] for board in boards]
            stack.enter_context(device_plugin(cluster, node, GPU, ids))
        space = stack.enter_context(workload(cluster, JOBS))
        stack.enter_context(staged(release, space))
        yield release


def explained(release: Release, pod: str) -> dict[str, Any]:
    request = call("explain_failure", pod=pod, namespace=JOBS)
    found: dict[str, Any] = release.ask(request, token=release.token())["structuredContent"]
    return found


@pytest.mark.parametrize("name", [*DEATHS, NEIGHBOUR])
def test_a_death_is_told_for_what_it_was(dead: Release, name: str) -> None:
    death = DEATHS.get(name, NEIGHBOURS)
    found = explained(dead, name)
    told = (found["category"], found["not_your_code"], found["confidence"])
    print(f"{name}: {', '.join(told)}: {found['says']}")
    print(f"its GPUs: {found['gpus']}; gaps: {found['gaps']}")
    assert told[:2] == (death.category, death.not_your_code), found
    missing = {gap["grant"] for gap in found["gaps"]} - {""}
    assert missing <= {f"get pods/log in {JOBS}"}, found
    assert found["evidence"]
    assert found["node"] == death.node


def test_the_error_of_a_neighbour_is_named_and_not_blamed(dead: Release) -> None:
    found = explained(dead, "xid-94-beside")
    (own,) = found["gpus"]
    (others,) = explained(dead, NEIGHBOUR)["gpus"]
    assert own["uuid"] != others["uuid"]
    named = [fact["text"] for fact in found["evidence"] if "94" in fact["text"]]
    assert named, found
    assert all("not blamed" in text for text in named)

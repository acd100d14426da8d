"""A real API server takes what the chart makes of every file of values, Pod Security included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cluster import Cluster
from cluster.definitions import defined
from cluster.process import CommandError
from cluster.release import CHART
from support.chart import CI_VALUES, values_of
from support.podsecurity import level_of

NAMESPACES = {level: f"values-{level}" for level in ("restricted", "baseline", "privileged")}
"""By the Pod Security level that each enforces."""

STRICT = NAMESPACES["restricted"]

HELMS = 3
"""At once: each waits for the API server a third of its second."""

ADMIN = "resource.kubernetes.io/admin-access"

RUNTIME_CLASS = {
    "apiVersion": "node.k8s.io/v1",
    "kind": "RuntimeClass",
    "metadata": {"name": "nvidia"},
    "handler": "runc",
}

Object = dict[str, Any]


@pytest.fixture(scope="module")
def namespaces(own_cluster: Cluster) -> Iterator[None]:
    made = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": name,
                "labels": {"pod-security.kubernetes.io/enforce": level, ADMIN: "true"},
            },
        }
        for level, name in NAMESPACES.items()
    ]
    own_cluster.kubectl("create", "-f", "-", stdin=listed(made))
    try:
        yield
    finally:
        own_cluster.kubectl("delete", "namespace", *NAMESPACES.values(), timeout=120)


@pytest.fixture(scope="module")
def created(own_cluster: Cluster, namespaces: None) -> Iterator[dict[Path, list[Object]]]:
    """What `helm install` would create of each file of values, hooks too, on a cluster that has
    the accounts and the RuntimeClass that pods name: else the API server judges none of them."""
    with defined(own_cluster):
        with ThreadPoolExecutor(HELMS) as pool:
            all_created = pool.map(partial(would_create, own_cluster), CI_VALUES)
            found = dict(zip(CI_VALUES, all_created, strict=True))
        beside: dict[str, Object] = {"nvidia": RUNTIME_CLASS}
        for objects in found.values():
            for entry in objects:
                if entry["kind"] == "ServiceAccount":
                    for space in NAMESPACES.values():
                        name = entry["metadata"]["name"]
                        metadata = {"name": name, "namespace": space}
                        account = {"apiVersion": "v1", "kind": "ServiceAccount"}
                        beside[f"{space}/{name}"] = account | {"metadata": metadata}
        own_cluster.kubectl("create", "-f", "-", stdin=listed(list(beside.values())))
        try:
            yield found
        finally:
            own_cluster.kubectl("delete", "runtimeclass", "nvidia")


def would_create(cluster: Cluster, path: Path) -> list[Object]:
    words = ["install", "gpu", str(CHART), "--namespace", STRICT, "--values", str(path)]
    said = json.loads(cluster.helm(*words, "--dry-run=server", "--output=json"))
    hooks = said.get("hooks", [])
    texts = [said["manifest"], *(hook["manifest"] for hook in hooks)]
    return [entry for text in texts for entry in yaml.safe_load_all(text) if entry]


def listed(objects: list[Object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


def take(cluster: Cluster, *objects: Object) -> None:
    """Have the API server judge them.

    Raises:
        CommandError: it refuses one.
    """
    words = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict"]
    cluster.kubectl(*words, "-f", "-", stdin=listed(list(objects)))


def pod(entry: Object, namespace: str) -> Object:
    """One of those that a DaemonSet or a Deployment would make, for Pod Security judges pods."""
    template = entry["spec"]["template"]
    metadata = {"name": entry["metadata"]["name"], "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


@pytest.mark.parametrize("path", CI_VALUES, ids=lambda path: path.stem.removesuffix("-values"))
def test_the_api_server_takes_every_object(
    own_cluster: Cluster, created: dict[Path, list[Object]], path: Path
) -> None:
    """The gateway's pods and those of the tests with restricted Pod Security."""
    objects = created[path]
    gateways = [pod(entry, STRICT) for entry in objects if entry["kind"] == "Deployment"]
    take(own_cluster, *objects, *gateways)


def test_every_way_to_the_gpus_is_among_them() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = set(schema["properties"]["gpu"]["properties"]["access"]["enum"])
    assert {values_of(path).get("gpu", {}).get("access") for path in CI_VALUES} >= known


def test_agents_are_admitted_at_the_level_that_is_promised_and_not_at_a_stricter_one(
    own_cluster: Cluster, created: dict[Path, list[Object]]
) -> None:
    judged: list[Object] = []
    levels = set()
    for objects in created.values():
        (agent,) = [entry for entry in objects if entry["kind"] == "DaemonSet"]
        spec = agent["spec"]["template"]["spec"]
        if spec in judged:
            continue
        judged.append(spec)
        level = level_of(agent["spec"]["template"])
        levels.add(level)
        take(own_cluster, pod(agent, NAMESPACES[level]))
        for stricter in list(NAMESPACES)[: list(NAMESPACES).index(level)]:
            with pytest.raises(CommandError, match="violates PodSecurity"):
                take(own_cluster, pod(agent, NAMESPACES[stricter]))
    assert levels == set(NAMESPACES)


def test_administrators_access_is_asked_for_where_the_namespace_does_not_allow_it(
    own_cluster: Cluster, namespaces: None
) -> None:
    own_cluster.kubectl("label", "namespace", STRICT, f"{ADMIN}-")
    install = ["install", "dra", str(CHART), "--namespace", STRICT, "--dry-run=server"]
    with pytest.raises(CommandError) as refused:
        own_cluster.helm(*install, "--set=gpu.access=draAdmin")
    command = f"kubectl label namespace {STRICT} {ADMIN}=true"
    assert command in str(refused.value)
    own_cluster.kubectl(*command.split()[1:])
    own_cluster.helm(*install, "--set=gpu.access=draAdmin")

"""The definitions of other projects' kinds, as they publish them in their Go modules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.binaries import Unavailable
from cluster.cluster import Cluster
from cluster.process import CommandError, run

__all__ = ["defined"]

MODULES = {
    "github.com/cert-manager/cert-manager@v1.19.1": (
        "h1:Txh8L/nLWTDcb7ZnXuXbTe15BxQnLbLirXmbNk0fGgY=",
        (
            "deploy/crds/cert-manager.io_certificates.yaml",
            "deploy/crds/cert-manager.io_issuers.yaml",
        ),
    ),
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": (
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        (
            "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
            "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
            "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
        ),
    ),
    "sigs.k8s.io/gateway-api@v1.4.0": (
        "h1:ZwlNM6zOHq0h3WUX2gfByPs2yAEsy/EenYJB78jpQfQ=",
        ("config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",),
    ),
}
"""Module and version to its checksum, as go.sum has it, and the files that are wanted."""

DOWNLOAD_SECONDS = 300


@contextmanager
def defined(cluster: Cluster) -> Iterator[None]:
    """The API server knows and judges these kinds within the block; nobody acts on them.

    Raises:
        Unavailable: a module could not be had.
    """
    files = [f"--filename={path}" for path in _files()]
    cluster.kubectl("apply", "--server-side", *files)
    try:
        cluster.kubectl("wait", "--for=condition=Established", *files)
        yield
    finally:
        cluster.kubectl("delete", *files)


def _files() -> Iterator[Path]:
    for module, (checksum, paths) in MODULES.items():
        try:
            text = run("go", "mod", "download", "-json", module, timeout=DOWNLOAD_SECONDS)
        except CommandError as error:
            raise Unavailable(f"no definitions of {module}: {error}") from error
        said = json.loads(text)
        if said["Sum"] != checksum:
            raise Unavailable(f"{module} is not what it was: {said['Sum']}")
        yield from (Path(said["Dir"]) / path for path in paths)

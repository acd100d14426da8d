"""`python -m cluster.scale`: a gateway that watches 5,000 agents on the real API server.

Their EndpointSlices are made here; the agents behind them do not exist, since only discovery is
measured. `make bench` measures the same against a fake server, at any time and in less.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from bench.discovery import CHANGES_PER_SECOND, PER_SLICE, SLICES, count_agents, slice_of
from bench.figures import Section
from bench.processes import PROGRAM, Load, child, listening_port
from cluster.cluster import Cluster, at_hand
from cluster.plan import Plan

NAMESPACE = "scale"
PATH = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"

CHURN_SECONDS = 30
WRITERS = 8
"""A write takes 5 to 30 ms here, so fewer could not keep up."""


class Admin:
    """Writes to the API server, over one connection a thread."""

    def __init__(self, cluster: Cluster) -> None:
        words = ["config", "view", "--raw", "-o", "json"]
        config = json.loads(cluster.kubectl(*words))
        self._server = urlsplit(config["clusters"][0]["cluster"]["server"])
        user = config["users"][0]["user"]
        authority = config["clusters"][0]["cluster"]["certificate-authority-data"]
        self._tls = ssl.create_default_context(cadata=base64.b64decode(authority).decode())
        with tempfile.NamedTemporaryFile() as file:
            for part in ("client-certificate-data", "client-key-data"):
                file.write(base64.b64decode(user[part]) + b"\n")
            file.flush()
            self._tls.load_cert_chain(file.name)
        self._own = threading.local()

    def ask(self, method: str, path: str, document: Any = None) -> str:
        connection = getattr(self._own, "connection", None)
        if connection is None:
            assert self._server.hostname is not None
            connection = self._own.connection = http.client.HTTPSConnection(
                self._server.hostname, self._server.port, context=self._tls, timeout=30
            )
        body = None if document is None else json.dumps(document)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text: str = answer.read().decode()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:200]}")
        return text

    def listed(self) -> int:
        """How often EndpointSlices have been listed since the server started."""
        total = 0.0
        for line in self.ask("GET", "/metrics").splitlines():
            if 'resource="endpointslices"' in line and (
                line.startswith("apiserver_watch_list_duration_seconds_count")
                or (line.startswith("apiserver_request_total") and 'verb="LIST"' in line)
            ):
                total += float(line.rpartition(" ")[2])
        return int(total)


def measure(cluster: Cluster) -> Section:
    """Start a gateway process over the slices and change them at a steady pace."""
    count = SLICES * PER_SLICE
    title = f"a gateway over {count:,} endpoints of the real API server, {CHURN_SECONDS} s of churn"
    section = Section(title)
    admin = Admin(cluster)
    with _namespace(cluster), ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(lambda n: admin.ask("POST", PATH, _document(n, 0)), range(SLICES)))
        flags = ["--kubeconfig", str(cluster.kubeconfig), "--namespace", NAMESPACE]
        began = time.perf_counter()
        with child([*PROGRAM, "gateway", *flags, "--http-port", "0"]) as gateway:
            port = listening_port(gateway)
            section.add("start until it listens", (time.perf_counter() - began) * 1000, "ms")
            count_agents(port)
            before, listed = Load.of(gateway), admin.listed()
            if not listed:
                raise RuntimeError("the API server counts lists by another name")
            began = time.monotonic()
            changes = 0

            def change(number: int) -> None:
                time.sleep(max(began + number / CHANGES_PER_SECOND - time.monotonic(), 0.0))
                which = number % SLICES
                document = _document(which, 1 + number // SLICES)
                admin.ask("PUT", f"{PATH}/{document['metadata']['name']}", document)

            for _ in writers.map(change, range(CHURN_SECONDS * CHANGES_PER_SECOND)):
                changes += 1
            took = time.monotonic() - began
            after = Load.of(gateway)
            count_agents(port)
            section.add("changes", changes / took, "/s")
            share = 100 * (after.cpu_seconds - before.cpu_seconds) / took
            section.add("processor time, of one", share, "%")
            section.add("resident before", before.resident_mib, "MiB")
            section.add("resident after", after.resident_mib, "MiB")
            section.add("collections listed again", admin.listed() - listed, "", 0.0)
    return section


def _document(number: int, state: int) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(slice_of(number, state)))
    document["metadata"]["namespace"] = NAMESPACE
    return document


@contextmanager
def _namespace(cluster: Cluster) -> Iterator[None]:
    cluster.kubectl("create", "namespace", NAMESPACE)
    try:
        yield
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=120s", timeout=130)


def main() -> int:
    """Print the figures. Returns 1 where something was listed again."""
    with at_hand(Plan.chosen()) as cluster:
        section = measure(cluster)
    print(section)
    return 1 if any(figure.missed for figure in section.figures) else 0


if __name__ == "__main__":
    sys.exit(main())

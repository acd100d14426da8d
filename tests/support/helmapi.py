"""As much of an API server as Helm asks while it renders: what it serves, and what it holds."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import helm_python

__all__ = ["api_server"]

NAMESPACE = "gpu-diagnostics"

RESOURCES = {
    "v1": {
        "Secret": ("secrets", True),
        "Namespace": ("namespaces", False),
        "Node": ("nodes", False),
    },
    "node.k8s.io/v1": {"RuntimeClass": ("runtimeclasses", False)},
}
"""What is served: of each API version the kinds that a template may look up, each with its plural
and whether it lies in a namespace."""


@contextmanager
def api_server(
    objects: Iterable[Mapping[str, Any]] = (), *, namespaced: bool = False
) -> Iterator[helm_python.Config]:
    """An API server with these objects; `namespaced`: to whoever installs it shows what lies in the
    namespace alone."""
    documents = _documents(list(objects))
    roots = {"/version", "/api", "/apis", *map(_root, RESOURCES)}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            document = documents.get(path)
            status, reason = (200, "") if document else (404, "NotFound")
            if namespaced and path not in roots and f"/namespaces/{NAMESPACE}/" not in path:
                status, reason = 403, "Forbidden"
            if reason:
                document = {"kind": "Status", "apiVersion": "v1", "reason": reason, "code": status}
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        named = {"name": "test", "cluster": {"server": address}}
        context = {"name": "test", "context": {"cluster": "test", "user": ""}}
        kubeconfig = {"clusters": [named], "contexts": [context], "current-context": "test"}
        try:
            with helm_python.Config(
                kubeconfig_content=json.dumps(kubeconfig), namespace=NAMESPACE
            ) as config:
                yield config
        finally:
            server.shutdown()
            thread.join()


def _documents(objects: Collection[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    groups = [version.partition("/") for version in RESOURCES if "/" in version]
    documents: dict[str, dict[str, Any]] = {
        "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [
                {
                    "name": group,
                    "versions": [{"groupVersion": f"{group}/{version}", "version": version}],
                }
                for group, _, version in groups
            ],
        },
    }
    for version, kinds in RESOURCES.items():
        for kind, (plural, namespaced) in kinds.items():
            if not namespaced:
                items = [e for e in objects if (e["apiVersion"], e["kind"]) == (version, kind)]
                listed = {"apiVersion": version, "kind": f"{kind}List", "items": items}
                documents[f"{_root(version)}/{plural}"] = listed
        documents[_root(version)] = {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": [
                {"name": plural, "kind": kind, "namespaced": namespaced, "verbs": ["get", "list"]}
                for kind, (plural, namespaced) in kinds.items()
            ],
        }
    for entry in objects:
        version = entry["apiVersion"]
        plural, namespaced = RESOURCES[version][entry["kind"]]
        place = f"namespaces/{NAMESPACE}/" if namespaced else ""
        documents[f"{_root(version)}/{place}{plural}/{entry['metadata']['name']}"] = dict(entry)
    return documents


def _root(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"

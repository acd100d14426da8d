"""What an API server keeps: objects with growing versions, and the changes that led to them."""

from __future__ import annotations

import copy
import itertools
import uuid
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["RESOURCES", "Change", "Document", "Expired", "Resource", "Store", "kind_of", "matches"]

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """One collection of the API."""

    group: str
    """Path of its group and version."""
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return self.group.split("/", 2)[2]


RESOURCES = {
    resource.plural: resource
    for resource in (
        Resource("/apis/discovery.k8s.io/v1", "endpointslices", "EndpointSlice"),
        Resource("/api/v1", "pods", "Pod"),
        Resource("/api/v1", "nodes", "Node", namespaced=False),
        Resource("/api/v1", "namespaces", "Namespace", namespaced=False),
        Resource("/apis/apps/v1", "daemonsets", "DaemonSet"),
        Resource("/apis/resource.k8s.io/v1", "resourceclaims", "ResourceClaim"),
        Resource("/apis/resource.k8s.io/v1", "resourceslices", "ResourceSlice", namespaced=False),
        Resource("/apis/networking.k8s.io/v1", "networkpolicies", "NetworkPolicy"),
        Resource("/apis/crd.projectcalico.org/v1", "ippools", "IPPool", namespaced=False),
        Resource(
            "/apis/crd.projectcalico.org/v1",
            "felixconfigurations",
            "FelixConfiguration",
            namespaced=False,
        ),
        Resource(
            "/apis/crd.projectcalico.org/v1",
            "globalnetworkpolicies",
            "GlobalNetworkPolicy",
            namespaced=False,
        ),
        Resource("/apis/cilium.io/v2", "ciliumnetworkpolicies", "CiliumNetworkPolicy"),
        Resource("/apis/security.istio.io/v1beta1", "peerauthentications", "PeerAuthentication"),
        Resource("/api/v1", "events", "Event"),
        Resource("/apis/batch/v1", "jobs", "Job"),
        Resource("/apis/jobset.x-k8s.io/v1alpha2", "jobsets", "JobSet"),
        Resource("/apis/kubeflow.org/v1", "pytorchjobs", "PyTorchJob"),
        Resource("/apis/resource.k8s.io/v1", "resourceclaims", "ResourceClaim"),
        Resource("/apis/resource.k8s.io/v1", "resourceslices", "ResourceSlice", namespaced=False),
    )
}

Key = tuple[str, str]
"""Namespace and name."""


class Expired(Exception):
    """The version, or the page, has been compacted away."""


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one object. One that never was or is no more is None."""

    version: int
    before: Document | None
    after: Document | None


class Store:
    """Objects by resource, and what has happened to them since the last compaction."""

    def __init__(self) -> None:
        self.version = 100
        self.listeners: set[Callable[[str, Change], None]] = set()
        """Told of every change, with the resource's plural."""
        self._objects: dict[str, dict[Key, Document]] = {plural: {} for plural in RESOURCES}
        self._log: dict[str, list[Change]] = {plural: [] for plural in RESOURCES}
        self._oldest = self.version
        """Watches that begin before it have missed what nobody remembers."""
        self._pages: dict[str, tuple[int, list[Document]]] = {}
        self._tokens = itertools.count(1)

    def apply(self, document: Mapping[str, Any]) -> Document:
        """Create the object or replace it."""
        resource = kind_of(document)
        fresh = copy.deepcopy(dict(document))
        metadata = fresh.setdefault("metadata", {})
        if resource.namespaced:
            metadata.setdefault("namespace", "default")
        key = (metadata.get("namespace", ""), metadata["name"])
        before = self._objects[resource.plural].get(key)
        old = {} if before is None else before["metadata"]
        self.version += 1
        metadata.setdefault("uid", old.get("uid", str(uuid.uuid4())))
        metadata.setdefault("creationTimestamp", old.get("creationTimestamp", _time(self.version)))
        metadata["resourceVersion"] = str(self.version)
        self._objects[resource.plural][key] = fresh
        self._record(resource.plural, Change(self.version, before, fresh))
        return fresh

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        """Delete the object.

        Raises:
            KeyError: there is none.
        """
        resource = next(each for each in RESOURCES.values() if each.kind == kind)
        key = (namespace if resource.namespaced else "", name)
        before = self._objects[resource.plural].pop(key)
        self.version += 1
        self._record(resource.plural, Change(self.version, before, None))

    def get(self, plural: str, namespace: str, name: str) -> Document | None:
        return self._objects[plural].get((namespace, name))

    def objects(self, plural: str) -> list[Document]:
        """All of a collection, in the order of their names."""
        return [document for _, document in sorted(self._objects[plural].items(), key=_first)]

    def since(self, plural: str, version: int) -> Sequence[Change]:
        """What has changed after the version.

        Raises:
            Expired: nobody remembers.
        """
        if version < self._oldest:
            raise Expired
        log = self._log[plural]
        return log[bisect_right(log, version, key=lambda change: change.version) :]

    def keep_rest(self, version: int, rest: list[Document]) -> str:
        """What the next pages of a list hold. Returns the token that asks for them."""
        token = f"page-{next(self._tokens)}"
        self._pages[token] = (version, rest)
        return token

    def rest(self, token: str) -> tuple[int, list[Document]]:
        """The list's version, and what it still holds.

        Raises:
            Expired: nobody remembers.
        """
        if token not in self._pages:
            raise Expired
        return self._pages[token]

    def compact(self) -> None:
        """Forget every change and every page that has not been asked for."""
        self.version += 1
        self._oldest = self.version
        self._pages.clear()
        for log in self._log.values():
            log.clear()

    def _record(self, plural: str, change: Change) -> None:
        self._log[plural].append(change)
        for listener in tuple(self.listeners):
            listener(plural, change)


def matches(document: Mapping[str, Any], labels: str, fields: str, namespace: str | None) -> bool:
    """Whether selectors of the form `a=b,c!=d,e` pick the object."""
    metadata = document["metadata"]
    if namespace is not None and metadata.get("namespace") != namespace:
        return False
    known = metadata.get("labels") or {}
    return all(_fits(term, known) for term in _terms(labels)) and all(
        _fits(term, {term.partition("=")[0].rstrip("!="): _field(document, term)})
        for term in _terms(fields)
    )


def _terms(selector: str) -> list[str]:
    return [term.strip() for term in selector.split(",") if term.strip()]


def _fits(term: str, known: Mapping[str, Any]) -> bool:
    if "!=" in term:
        name, _, value = term.partition("!=")
        return known.get(name) != value
    if "=" in term:
        name, _, value = term.replace("==", "=").partition("=")
        return known.get(name) == value
    return term in known


def _field(document: Mapping[str, Any], term: str) -> str:
    found: Any = document
    for part in term.partition("=")[0].rstrip("!").split("."):
        found = (found or {}).get(part)
    return "" if found is None else str(found)


def kind_of(document: Mapping[str, Any]) -> Resource:
    """The resource that the object is of."""
    return next(each for each in RESOURCES.values() if each.kind == document["kind"])


def _first(item: tuple[Key, Document]) -> Key:
    return item[0]


def _time(number: int) -> str:
    """A creation time that grows with the version."""
    return f"2026-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}Z"

"""EndpointSlices of the agents' headless Service, read and merged into targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transports.base import Target
from transports.text import is_name

__all__ = ["CONTAINER", "PORT_NAME", "Slice", "merge", "read_slice"]

CONTAINER = "agent"
"""Name of the agent's container in its pod."""

PORT_NAME = "mcp"
"""Name of the agent's port, where there are several."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of one pod."""

    address: str
    hostname: str
    namespace: str
    pod: str
    uid: str
    node: str
    ready: bool
    terminating: bool


@dataclass(frozen=True, slots=True)
class Slice:
    """Addresses of one Service in one family."""

    service: str
    family: str
    """`IPv4` or `IPv6`."""
    port: int | None
    """None: the agents serve no TCP port."""
    endpoints: tuple[Endpoint, ...]


def read_slice(document: Mapping[str, Any]) -> Slice:
    """Reduce an EndpointSlice to what a target is made of."""
    metadata = document["metadata"]
    endpoints = (
        _endpoint(endpoint, metadata.get("namespace", ""))
        for endpoint in document.get("endpoints") or ()
    )
    return Slice(
        service=(metadata.get("labels") or {}).get("kubernetes.io/service-name", ""),
        family=document.get("addressType", ""),
        port=_port(document.get("ports") or ()),
        endpoints=tuple(filter(_is_well_named, endpoints)),
    )


def _is_well_named(endpoint: Endpoint) -> bool:
    """Slices can be written by hand, and the server does not look at what they call their pods."""
    named = (endpoint.pod, endpoint.uid, endpoint.node, endpoint.hostname)
    return is_name(endpoint.address) and all(is_name(each) for each in named if each)


def merge(slices: Iterable[Slice], *, domain: str | None = None) -> list[Target]:
    """One target per pod: a pod has an address per family, and may be in several slices.

    Args:
        domain: the cluster's DNS domain where agents are to be reached by name, else None.
    """
    pods: dict[tuple[str, str], list[tuple[Slice, Endpoint]]] = {}
    for found in sorted(slices, key=lambda each: each.family):
        for endpoint in found.endpoints:
            key = (endpoint.namespace, endpoint.uid or endpoint.pod or endpoint.address)
            pods.setdefault(key, []).append((found, endpoint))
    return [_target(entries, domain) for entries in pods.values()]


def _target(entries: list[tuple[Slice, Endpoint]], domain: str | None) -> Target:
    _, first = entries[0]
    served = [(found, endpoint) for found, endpoint in entries if found.port is not None]
    addresses = (
        endpoint.address if domain is None else _dns_name(found, endpoint, domain)
        for found, endpoint in served
    )
    ports = [found.port for found, _ in served if found.port is not None]
    fields: dict[str, Any] = {"port": ports[0]} if ports else {}
    return Target(
        node=first.node,
        namespace=first.namespace,
        pod=first.pod,
        uid=first.uid,
        container=CONTAINER if first.pod else "",
        addresses=tuple(dict.fromkeys(addresses)),
        ready=any(e.ready for _, e in entries) and not any(e.terminating for _, e in entries),
        **fields,
    )


def _dns_name(found: Slice, endpoint: Endpoint, domain: str) -> str:
    dashed = endpoint.address.replace(".", "-").replace(":", "-")
    # CoreDNS lets no label end in a dash: `2001:db8::` is 2001-db8--0.
    host = endpoint.hostname or (f"{dashed}0" if dashed.endswith("-") else dashed)
    return f"{host}.{found.service}.{endpoint.namespace}.svc.{domain}"


def _port(ports: Iterable[Mapping[str, Any]]) -> int | None:
    numbers = {port.get("name") or "": port["port"] for port in ports if port.get("port")}
    return numbers.get(PORT_NAME, next(iter(numbers.values()), None))


def _endpoint(document: Mapping[str, Any], namespace: str) -> Endpoint:
    pod = document.get("targetRef") or {}
    conditions = document.get("conditions") or {}
    # A Service that publishes agents which are not ready calls them all ready; `serving` is what
    # the pod itself says. Missing means yes.
    serving = conditions.get("serving")
    ready = conditions.get("ready") if serving is None else serving
    return Endpoint(
        address=document["addresses"][0],  # more than one is not allowed to mean anything
        hostname=document.get("hostname") or "",
        namespace=namespace,
        pod=pod.get("name", ""),
        uid=pod.get("uid", ""),
        node=document.get("nodeName") or "",
        ready=ready is not False,
        terminating=bool(conditions.get("terminating")),
    )

"""Which subnet each node is in, and how that is known."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from mcp_gpu.fleet.connectivity.model import Survey
from mcp_gpu.fleet.diagnosis.evidence import Evidence

__all__ = ["GUESS", "network", "subnets_of"]

GUESS = "a guess: /24 of the nodes' addresses"


def subnets_of(survey: Survey, evidence: Evidence, own_node: str) -> tuple[Mapping[str, str], str]:
    """Each node's subnet, and where that is from. One source for all, so that they compare:
    nodes of which it says nothing are in no subnet that is known."""
    wanted = {each.target.node for each in survey.nodes} | {own_node}
    facts = [evidence.nodes[name] for name in sorted(wanted) if name in evidence.nodes]
    for said, source in (
        ({f.name: network(f.calico_address) for f in facts}, "Calico's node annotations"),
        ({f.name: f.subnet for f in facts}, "the provider's node labels"),
    ):
        if any(said.values()):
            return {name: subnet for name, subnet in said.items() if subnet}, source
    hosts = {f.name: f.addresses[0] for f in facts if f.addresses}
    for pod in evidence.pods.values():
        if pod.node and pod.host_address:
            hosts.setdefault(pod.node, pod.host_address)
    guessed = {name: _guess(address) for name, address in hosts.items()}
    return guessed, GUESS if guessed else ""


def network(address: str) -> str:
    """Of an address, with a prefix or without; empty for what is no address."""
    try:
        return str(ipaddress.ip_interface(address).network)
    except ValueError:
        return ""


def _guess(address: str) -> str:
    return network(f"{address}/{64 if ':' in address else 24}")

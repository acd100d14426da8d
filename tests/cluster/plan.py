"""What the cluster is called and which addresses its machines have."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "API_SERVICE_ADDRESS",
    "CLUSTER_DOMAIN",
    "CONTROL",
    "DNS_ADDRESS",
    "NODES",
    "POD_NETWORK",
    "SERVICE_NETWORK",
    "SUBNETS",
    "NodePlan",
    "Plan",
]

POD_NETWORK = "10.244.0.0/16"
SERVICE_NETWORK = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
DNS_ADDRESS = "10.96.0.10"
CLUSTER_DOMAIN = "cluster.local"


@dataclass(frozen=True)
class NodePlan:
    """A node: `number` is the last part of its address and the third of its pods' network."""

    name: str
    number: int
    subnet: str
    zone: str
    mac: str

    @property
    def pods(self) -> str:
        return f"10.244.{self.number}.0/24"

    @property
    def gateway(self) -> str:
        """The node itself, as its pods see it."""
        return f"10.244.{self.number}.1"

    @property
    def tunnel(self) -> str:
        """The node's address on the VXLAN, which is how it speaks to pods behind it."""
        return f"10.244.{self.number}.0"


CONTROL = NodePlan("cp", 10, "control", "eu-west-1a", "66:00:0a:f4:0a:00")
"""The control plane runs no pods, but its API server calls some, so it is on the VXLAN too."""

NODES = (
    NodePlan("n1", 11, "a", "eu-west-1a", "66:00:0a:f4:0b:00"),
    NodePlan("n2", 12, "a", "eu-west-1a", "66:00:0a:f4:0c:00"),
    NodePlan("n3", 13, "b", "eu-west-1b", "66:00:0a:f4:0d:00"),
)
"""n1 and n2 share a subnet, n3 is in another."""

SUBNETS = ("control", "a", "b")


@dataclass(frozen=True)
class Plan:
    """Names and addresses of one of up to 16 clusters that may run side by side.

    Those that the machine itself sees come from the range kept for benchmarks (RFC 2544), so
    that they meet nobody's network; all others exist inside namespaces alone.
    """

    index: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.index < 16:
            raise ValueError(f"there are clusters 0 to 15, and no {self.index}")

    @classmethod
    def chosen(cls) -> Plan:
        """The one that the environment variable MCP_GPU_CLUSTER names; 0 without it."""
        said = os.environ.get("MCP_GPU_CLUSTER", "0")
        if not said.isdecimal():
            raise ValueError(f"MCP_GPU_CLUSTER is a number from 0 to 15, not {said!r}")
        return cls(int(said))

    @property
    def prefix(self) -> str:
        """Begins the name of everything that others on this machine can see."""
        return f"mcpgpu{self.index}"

    @property
    def folder(self) -> Path:
        """All files of the running cluster."""
        return Path("/var/tmp") / self.prefix

    @property
    def network(self) -> str:
        """What the machine itself routes into the cluster."""
        return f"198.18.{16 * self.index}.0/20"

    def subnet(self, name: str) -> str:
        return self._address(name, 0) + "/24"

    def router(self, subnet: str) -> str:
        return self._address(subnet, 1)

    def address(self, node: NodePlan) -> str:
        """The node's own, its InternalIP."""
        return self._address(node.subnet, node.number)

    @property
    def api_address(self) -> str:
        return self.address(CONTROL)

    @property
    def client_address(self) -> str:
        """Of a machine of the network that is not in the cluster."""
        return self._address("control", 20)

    @property
    def outside(self) -> tuple[str, str]:
        """The two ends of the link to the machine itself: the fabric's, the machine's."""
        third = 16 * self.index + 15
        return f"198.18.{third}.1", f"198.18.{third}.2"

    def _address(self, subnet: str, last: int) -> str:
        return f"198.18.{16 * self.index + SUBNETS.index(subnet)}.{last}"

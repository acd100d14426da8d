"""Which agents there are, how to reach them, and the gateway that does."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field

from mcp_gpu.settings.base import File, LogSettings, Names, Seconds
from mcp_gpu.settings.serve import ServeSettings


class FleetSettings(LogSettings):
    """Which agents there are and how to reach them."""

    agents: str = ""
    """Agents, separated by commas: [node=]host[:port]. IPv6 in brackets."""
    agents_file: File | None = None
    """TOML file of [[agents]], where each may have its own command."""
    agents_dns: str = ""
    """DNS name, with an optional port, of a headless Service: every address is an agent."""
    namespace: str = ""
    """Kubernetes namespace whose agents are watched where no agents are named. Default: the
    pod's own in a cluster; with a kubeconfig all that may be listed together, else the
    context's."""
    kubeconfig: str = ""
    """Credentials for Kubernetes. Default: the pod's own in a cluster, else what KUBECONFIG names,
    else ~/.kube/config."""
    context: Names = ()
    """Contexts of the kubeconfig. Default: its current one. Several are several clusters, whose
    nodes are named context/node."""
    agent_selector: str = "app.kubernetes.io/name=mcp-gpu,app.kubernetes.io/component=agent"
    """Labels of the agents' headless Service, which its EndpointSlices inherit, and of their
    pods."""
    agent_address: Literal["ip", "dns"] = "ip"
    """Address by which HTTP reaches agents found in Kubernetes: the pod's, or its DNS name under
    the headless Service."""
    cluster_domain: str = "cluster.local"
    """DNS domain of the cluster, for --agent-address dns."""
    transports: Names = ("http", "portforward", "exec", "command")
    """Paths to try, best first: http, portforward and exec (through the Kubernetes API), command.
    One alone fixes the path."""
    transport_options: dict[str, dict[str, Any]] = Field(default={})
    """Options per transport, as JSON: {"command": {"argv": ["ssh", "{node}", "mcp-gpu",
    "attach", "--relay-only"]}}."""
    agent_scheme: Literal["http", "https"] = "http"
    """How agents serve HTTP."""
    agent_token_file: File | None = None
    """File with the bearer token to show to agents; read again when it changes. Needs
    --agent-scheme https."""
    agent_ca_file: File | None = None
    """PEM file of the authorities that agents' certificates are checked against; read again when
    it changes."""
    agent_server_name: str = ""
    """Name that agents' certificates are checked for where agents are called by IP address.
    Default: the address."""
    node_deadline_seconds: Seconds = 8.0
    """Longest wait for one node, all its paths together."""
    call_deadline_seconds: Seconds = 20.0
    """Longest wait for all nodes together."""
    head_start_seconds: Seconds = 0.15
    """How long the best path to an agent may be silent before the next one is tried beside it."""
    probe_timeout_seconds: Seconds = 2.0
    """Longest wait for a probe over HTTP."""
    stream_timeout_seconds: Seconds = 5.0
    """Longest wait for a stream (ssh, exec, port-forward) to open and prove itself."""
    path_ttl_seconds: Seconds = 300.0
    """How long a path that worked is used without a new probe. Each call over it counts anew."""
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 64
    """Most calls in flight per kind of path, and as many probes."""
    max_streams: Annotated[int, Field(ge=1, le=65_536)] = 1024
    """Most streams held open to agents, per kind of path that opens them (exec, command). Past it
    the longest unused one is closed for the next; fewer than there are agents on it cost each of
    them a new stream again and again."""
    node_name: str = ""
    """Kubernetes node that the gateway runs on (downward API): the path to an agent there tells
    nothing of the network between nodes."""
    pod_name: str = ""
    """This pod's name (downward API), where it runs in one: by it a diagnosis knows which network
    policies hold for it."""

    def kubeconfig_paths(self) -> list[str]:
        """Where a kubeconfig is looked for: as given, or else in the usual places."""
        given = self.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
        paths = [os.path.expanduser(path) for path in given.split(os.pathsep) if path]
        # In full: clients start their servers in a folder of their own choice.
        return [os.path.abspath(path) for path in paths]

    def has_kubeconfig(self) -> bool:
        """Whether one of them is a file."""
        return any(map(os.path.isfile, self.kubeconfig_paths()))


class GatewaySettings(ServeSettings, FleetSettings):
    """Reach all agents and serve their merged answers over MCP."""

    node_metrics: bool = False
    """Name each node on /metrics, with the path in use: one series per node, and their names for
    whoever reads that page."""
    without_tools: Names = ()
    """Tools that are not served, nor what shows their answers: RBAC of Kubernetes grants rights to
    the gateway, and cannot tell its tools apart."""

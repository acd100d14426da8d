"""Every setting, once. Flags, `MCP_GPU_*` variables and their help come from these classes.

A flag wins over a variable, a variable over the default. Nothing else reads the environment,
but for `mcp_gpu.sockets`, which `mcp-gpu attach` needs without pydantic.

No name may be one that Kubernetes puts into a pod's environment for a Service called
`mcp-gpu` or `mcp-gpu-gateway` (`MCP_GPU_PORT`, `MCP_GPU_SERVICE_HOST`, ...): hence `http_port`.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mcp_gpu.serving.access.model import AccessPolicy, KubernetesTokens, OAuth
from mcp_gpu.serving.endpoint import HttpEndpoint, TlsFiles
from mcp_gpu.sockets import default_socket_path

__all__ = [
    "KERNEL_LOG",
    "AgentSettings",
    "DemoSettings",
    "DoctorSettings",
    "FleetSettings",
    "GatewaySettings",
    "HealthSettings",
    "LogSettings",
    "RecordSettings",
    "ServeSettings",
    "SettingError",
    "StatusSettings",
    "TerminalSettings",
    "XidSettings",
]

PREFIX = "MCP_GPU_"
DEFAULT_HTTP_PORT = 8080
KERNEL_LOG = Path("/dev/kmsg")


class SettingError(Exception):
    """A setting that reads well turns out to be unusable. The text says what to do instead."""


def _split(value: object) -> object:
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


def _flat(value: tuple[str, ...]) -> tuple[str, ...]:
    # The command line hands over a list of what each flag said, commas and all.
    return tuple(part for entry in value for part in entry.replace(",", " ").split())


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_flat)]
"""Several names, separated by commas or blanks."""

File = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]
"""A file's path. Where a client starts this program there is no shell that knows what `~` is."""

LogLevel = Literal["debug", "info", "warning", "error"]
GpuAccess = Literal["runtimeClass", "cdi", "volumeMounts", "hostDriver", "draAdmin", "none"]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=0, le=65_535)]


class LogSettings(BaseSettings):
    """What every command takes."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        defer_build=True,  # one command runs, and each class costs 8 ms
    )

    log_level: LogLevel = "info"
    """Least severe level that is logged, to standard error."""
    log_format: Literal["text", "json"] = "text"
    """text for people, json (one object per line) for log collectors."""


class ServeSettings(LogSettings):
    """How a role is served. Without `stdio`, over HTTP."""

    http_host: Names = ("127.0.0.1", "::1")
    """Addresses to listen on. The default can be reached from this machine alone; in a pod
    use :: (IPv6 and IPv4) or 0.0.0.0."""
    http_port: Port | None = None
    """TCP port. Default 8080, or no HTTP at all with --stdio. 0 takes any free port."""
    stdio: bool = False
    """Serve MCP on standard input and output, as clients that start this program want it."""
    allowed_hosts: Names = ()
    """DNS names clients may use in the Host header, `*.suffix` included. IP addresses and
    localhost are always allowed: only a name can be rebound to another address. So is the name in
    --oauth-resource."""
    allowed_origins: Names = ()
    """Origins (scheme://host[:port]) of web pages that may call. None by default but pages
    from this machine."""
    token_file: File | None = None
    """File with static bearer tokens, one per line; read again when it changes. HTTP callers must
    show one of them, or a token of another kind that is believed here. Health, version and metrics
    stay open."""
    kubernetes_tokens: KubernetesTokens = "off"
    """Believe Kubernetes tokens: review asks the API server (TokenReview), jwks checks them by the
    cluster's public keys. Needs --token-audiences."""
    token_audiences: Names = ()
    """Audiences of which a Kubernetes token must have one."""
    token_subjects: Names = ()
    """User names, such as system:serviceaccount:NAMESPACE:NAME, that Kubernetes tokens may be of.
    Default: any."""
    access_review: bool = False
    """Let cluster RBAC decide which tools a caller may call (SubjectAccessReview: verb call, API
    group gpu.mcp, resource tools, the tool's name). Holders of a static token may call all."""
    access_namespace: str = ""
    """Namespace in which it is asked. Default: the pod's own."""
    oauth_issuer: str = ""
    """Authorization server whose access tokens are believed: its issuer URL. Needs
    --oauth-resource."""
    oauth_resource: str = ""
    """This server's URL as clients call it: the audience that access tokens must be made for."""
    oauth_scopes: Names = ()
    """Scopes that an access token must have."""
    tls_cert_file: File | None = None
    """PEM file of the certificate, with its chain, to serve HTTPS with; read again when it
    changes. Needs --tls-key-file."""
    tls_key_file: File | None = None
    """PEM file of its private key."""
    allow_anonymous: bool = False
    """Listen beyond loopback though callers need show no token: whoever reaches the port reads
    every GPU."""
    shutdown_delay_seconds: Annotated[float, Field(ge=0, le=60)] = 0.0
    """How long new calls are still taken after the request to stop, while load balancers learn of
    it from /readyz."""

    def endpoint(self) -> HttpEndpoint | None:
        """Where to listen for HTTP; None for nowhere.

        Raises:
            SettingError: settings of it do not fit together.
        """
        port = self._port()
        if port is None:
            return None
        try:
            access = AccessPolicy(
                token_file=self.token_file,
                kubernetes_tokens=self.kubernetes_tokens,
                token_audiences=self.token_audiences,
                token_subjects=self.token_subjects,
                access_review=self.access_review,
                access_namespace=self.access_namespace,
                oauth=OAuth.chosen(self.oauth_issuer, self.oauth_resource, self.oauth_scopes),
                anonymous=self.allow_anonymous,
            )
        except ValueError as error:
            raise SettingError(str(error)) from error
        return HttpEndpoint(
            hosts=self.http_host,
            port=port,
            allowed_hosts=(*self.allowed_hosts, *self._own_name()),
            allowed_origins=self.allowed_origins,
            access=access,
            tls=self._tls(),
        )

    def _own_name(self) -> tuple[str, ...]:
        """What --oauth-resource, once known to be a URL, says that clients call this server."""
        name = urlsplit(self.oauth_resource).hostname
        return (name,) if name else ()

    def _tls(self) -> TlsFiles | None:
        if self.tls_cert_file is None and self.tls_key_file is None:
            return None
        if self.tls_cert_file is None or self.tls_key_file is None:
            raise SettingError("--tls-cert-file and --tls-key-file need each other: give both")
        return TlsFiles(cert_file=self.tls_cert_file, key_file=self.tls_key_file)

    def _port(self) -> int | None:
        if self.http_port is None and self.stdio:
            return None
        return DEFAULT_HTTP_PORT if self.http_port is None else self.http_port


class AgentSettings(ServeSettings):
    """Read this node's GPUs through NVML and serve them over MCP."""

    node_name: str = Field(default_factory=socket.gethostname, min_length=1)
    """Kubernetes node name (downward API). Default: the host name."""
    pod_name: str = ""
    """This pod's name (downward API)."""
    pod_uid: str = ""
    """This pod's uid (downward API): what a gateway checks before it believes an answer."""
    socket: Path | None = None
    """Unix socket that `mcp-gpu attach` relays to. Default: where `attach` looks for it, or none
    at all with --stdio."""
    http: bool = True
    """Whether to open a TCP port at all: with --no-http the Unix socket is the only way in."""
    nvml_library: Path | None = None
    """libnvidia-ml.so.1 to load before looking in the usual places, such as the GPU operator's
    under /run/nvidia/driver."""
    kernel_log: File = KERNEL_LOG
    """Where the kernel's messages are read, the driver's Xids among them. Where the default does
    not open, as in containers, syslog(2) is asked instead. Either needs CAP_SYSLOG where
    kernel.dmesg_restrict is 1, as usual."""
    journal_paths: Names = (
        "/var/log/journal",
        "/run/log/journal",
        "/host/var/log/journal",
        "/host/run/log/journal",
    )
    """Folders of the node's journal, for the Xids of former boots; those that are not there are
    passed over."""
    fast_seconds: Seconds = 2.0
    """How often utilisation, power, temperature, clocks and memory are read."""
    slow_seconds: Seconds = 30.0
    """How often links, modes and error counters are read."""
    expected_gpus: Annotated[int, Field(ge=1, le=64)] | None = None
    """How many GPUs this node should have. Without it fewer are missed only if they were there
    since the agent started."""
    gpu_access: GpuAccess | None = None
    """How this container was to get the driver's libraries and devices (the chart's gpu.access):
    told where they are missing."""
    simulate: str | None = None
    """Read no hardware: a fleet file (docs/simulator.md), or `demo` for the built-in one.
    The node simulated is --node-name."""

    @property
    def socket_path(self) -> Path | None:
        """Where to open the Unix socket; None for nowhere."""
        if self.socket is None and not self.stdio:
            return Path(default_socket_path())
        return self.socket

    def _port(self) -> int | None:
        return super()._port() if self.http else None


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
    transport_options: dict[str, dict[str, Any]] = {}
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


class TerminalSettings(FleetSettings):
    """What every command takes that asks a fleet for a person at a terminal."""

    model_config = SettingsConfigDict(cli_shortcuts={"json-output": "json"})

    log_level: LogLevel = "warning"
    """Least severe level that is logged, to standard error."""
    url: str = ""
    """MCP endpoint of a gateway, such as http://127.0.0.1:8080/mcp. Without it, the agents are
    asked directly."""
    token_file: File | None = None
    """File with the bearer token to show to the gateway at --url, which has to be https or on this
    machine, as kubectl port-forward makes it. Of several lines the first counts."""
    plain_token: bool = False
    """Show the token over plain HTTP to another machine, too, such as a gateway's Service within a
    cluster: whoever is on the way can read it and call with it."""
    ca_file: File | None = None
    """PEM file of the authorities that the certificate at --url is checked against. Default: the
    system's."""
    nodes: Names = ()
    """Only these nodes."""
    json_output: bool = False
    """Print the structured answer as JSON. For short: --json."""
    timeout_seconds: Seconds = 30.0
    """Longest wait for a gateway's answer."""


class StatusSettings(TerminalSettings):
    """Show the fleet's GPUs in the terminal."""


class HealthSettings(TerminalSettings):
    """Say what is wrong with the fleet's GPUs, and what to do. Exits 1 unless all are healthy."""

    severity: Literal["critical", "warning", "info"] = "warning"
    """Least severe findings that are shown; the rest are counted."""


class XidSettings(TerminalSettings):
    """Say what the fleet's Xid errors mean (exits 1 if any asks for something), or explain one."""

    since: str = "boot"
    """From when on: boot (each node's present one), a duration up to now such as 30m, 2h or 3d, or
    an ISO 8601 time with its zone."""
    codes: Names = ()
    """Only these codes, and the chains that hold one of them."""
    explain: str = ""
    """Explain this code or line of a kernel log instead, or with `-` the log on standard input, as
    in `dmesg | mcp-gpu xid --explain -`. Needs no fleet and no GPU. Exits 1 only if there is no Xid
    that is known in it, whatever those explained ask for."""
    driver_version: str = ""
    """Driver that wrote the lines to explain, such as 580.105.08: the registers of 144 to 150 are
    read by it. Only with --explain."""


class DoctorSettings(TerminalSettings):
    """Try every path to every agent, and say what is broken, why, and how to mend it."""

    timeout_seconds: Seconds = 90.0
    """Longest wait for a gateway's answer."""
    every_path: bool = False
    """Try all paths of all agents even in a fleet of more than 64: opens a stream to each."""
    in_cluster: bool = False
    """Pre-flight from the gateway's own pod, as a Helm test runs it: waits for the agents first,
    and exits 1 only with --strict."""
    wait_seconds: Annotated[float, Field(ge=0, le=600)] = 60.0
    """Longest wait for the agents to be there and ready. Only with --in-cluster."""
    strict: bool = False
    """Exit 1 where no path leads to some node. Only with --in-cluster."""


class RecordSettings(LogSettings):
    """Record this machine's NVML answers as a profile that the simulator replays. Read-only."""

    output: Path | None = None
    """File to write. Default: standard output."""
    keep_ids: bool = False
    """Keep real UUIDs and serial numbers. By default they are replaced."""
    nvml_library: Path | None = None
    """libnvidia-ml.so.1 to load before looking in the usual places."""


class DemoSettings(LogSettings):
    """Run a simulated fleet and a gateway over it. Needs no GPU and no cluster."""

    log_level: LogLevel = "warning"
    """Least severe level that is logged, to standard error."""
    once: bool = False
    """Print the fleet and exit."""
    http_port: Port = DEFAULT_HTTP_PORT
    """The gateway's port on 127.0.0.1. 0 takes any free port."""

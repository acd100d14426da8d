"""How a role is served, and who may call it."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from mcp_gpu.serving.access.model import AccessPolicy, KubernetesTokens, OAuth
from mcp_gpu.serving.endpoint import Ceilings, HttpEndpoint, TlsFiles
from mcp_gpu.settings.base import (
    DEFAULT_HTTP_PORT,
    File,
    Names,
    Port,
    Seconds,
    SettingError,
)
from mcp_gpu.settings.telemetry import TelemetrySettings

Count = Annotated[int, Field(ge=1, le=65_536)]


class ServeSettings(TelemetrySettings):
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
    group gpu.mcp, resource tools, the tool's name), and what these read in Kubernetes for them
    (verb get, resources pods and pods/log). Holders of a static token may call all."""
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
    max_requests_inflight: Count = 32
    """Most requests over HTTP that are answered at once. Callers take turns at it: by the name in
    their token, and where it has none by their address, of IPv6 its /64."""
    max_requests_inflight_per_caller: Count = 16
    """Most of them of one caller."""
    max_requests_waiting: Annotated[int, Field(ge=0, le=65_536)] = 256
    """Most that wait for their turn. Past it they get 429 with Retry-After, and first those of
    whoever has the most waiting."""
    request_wait_seconds: Seconds = 10.0
    """Longest wait for a turn; then 429, too."""
    caller_qps: Annotated[float, Field(ge=0, le=100_000)] = 0.0
    """Most requests a second of one caller, in the long run; past it 429. 0: as many as it may
    have answered."""
    caller_burst: Count = 100
    """How many of these may come at once. Used with --caller-qps."""
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
            ceilings=Ceilings(
                inflight=self.max_requests_inflight,
                inflight_per_caller=self.max_requests_inflight_per_caller,
                waiting=self.max_requests_waiting,
                wait_seconds=self.request_wait_seconds,
                qps=self.caller_qps,
                burst=self.caller_burst,
            ),
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

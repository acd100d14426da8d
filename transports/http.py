"""HttpTransport: an agent's own HTTP endpoint, by pod IP or by DNS name."""

from __future__ import annotations

import json
import math
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import anyio
import httpcore2
import httpx2
from mcp.client.streamable_http import streamable_http_client

from transports.base import PAD_CHARS, Identity, Target, TransportStreams
from transports.bearer import BearerToken
from transports.errors import BadPeer, Denied, Failure, Unreachable
from transports.exchange import (
    Exchange,
    NotConnected,
    Refused,
    died,
    none_worked,
    read_body,
    read_refusal,
    refusal,
    unreachable,
)
from transports.framing import MAX_FRAME_BYTES
from transports.hosts import is_address, is_dns_name
from transports.pool import Pool
from transports.registry import read_options
from transports.tasks import OwnsTasks
from transports.tls import Trust

__all__ = ["HttpSettings", "HttpTransport"]

VERSION_PATH = "/version"
"""Where an agent says who it is, to anybody: a probe needs no token and sends none."""

PROBE_BYTES = 4 * PAD_CHARS
"""Room for the padding and an identity document."""

NEXT_ADDRESS_SECONDS = 0.25
"""How long a probe waits for one address before it asks the next as well: the delay that RFC 8305
recommends for choosing between IPv6 and IPv4."""

KNOCK_SECONDS = 0.4
"""How long an agent may take to answer a few bytes in the clear, after it has been silent in the
handshake: with the connect timeout that is still less than a probe's time."""

CA_SECONDS = 5.0
"""How often the file of authorities is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Settings of the HTTP transport."""

    scheme: Literal["http", "https"] = "http"
    path: str = "/mcp"
    """Where the agent serves MCP."""
    token: str = field(default="", repr=False)
    """Bearer token sent with every call, and never with a probe."""
    token_file: str = ""
    """A file that holds it instead, read again when it changes, as projected tokens do hourly."""
    ca_file: str = ""
    """PEM file of the authorities to trust over https, instead of the system's. Read again when it
    changes."""
    server_name: str = ""
    """What the certificate of a server has to be for that is called by its IP address. Empty: for
    the address. One that is called by a name has to have that name."""
    connect_timeout_seconds: float = 1.5
    """For each address. A pod network answers within milliseconds or not at all; TCP asks again
    after a second. Less than the 2 s that a gateway gives a probe, which can then say why."""
    idle_seconds: float = 300.0
    """Time without a call after which an agent's connections are closed."""
    max_connections: int = 64
    """To one agent at a time; further calls wait their turn."""

    def __post_init__(self) -> None:
        if self.token and self.token_file:
            raise ValueError("token and token_file exclude each other")
        for option in ("ca_file", "server_name", "token", "token_file"):
            if getattr(self, option) and self.scheme != "https":
                raise ValueError(f"{option} needs the scheme https")
        if self.server_name and not is_dns_name(self.server_name):
            raise ValueError("server_name is not a DNS name")
        if not self.path.startswith("/"):
            raise ValueError("path must start with a slash")


@dataclass(slots=True, eq=False)
class _Agent:
    """What is kept of one agent between calls.

    A pool of its own: one pool over many hosts takes time quadratic in their number.
    """

    pool: Pool
    tls: ssl.SSLContext
    address: str = ""
    """The one that worked last, which calls go to and probes ask first."""
    users: int = 0
    used_at: float = 0.0


class HttpTransport(OwnsTasks):
    """Reaches an agent by streamable HTTP at `<scheme>://<address>:<port><path>`.

    A token goes over https alone, to a server that has proven its name. The one in
    `plain_token_file` goes over plain http as well: for who knows the way, as a person knows where
    his own tunnel ends. It is no option, so that no setting of a gateway opens it.
    Of several addresses a probe finds the first that works, within moments. Calls go there; where
    it no longer connects, they try the others in order.
    Proxy variables of the environment are not read: pod addresses are never behind a proxy.
    """

    name = "http"

    def __init__(self, settings: HttpSettings | None = None, *, plain_token_file: str = "") -> None:
        self.settings = settings or HttpSettings()
        self._agents: dict[str, _Agent] = {}
        self._outdated: list[_Agent] = []
        """Replaced while they were in use: closed when they no longer are."""
        self._trust = Trust(self.settings.ca_file)
        file = self.settings.token_file or plain_token_file
        self._token = BearerToken(self.settings.token, file)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make one from settings; the entry point of the registry.

        Raises:
            ValueError: an option is unknown or has no valid value.
        """
        return cls(read_options(HttpSettings, options))

    def applies(self, target: Target) -> bool:
        """Whether the target has an address."""
        return bool(target.addresses)

    async def probe(self, target: Target, *, pad_chars: int = PAD_CHARS) -> Identity:
        """Ask `/version` who answers there, with padding.

        Raises:
            TransportError: the path does not work; the class says how.
        """
        found: dict[str, Identity] = {}
        failures: dict[str, Failure] = {}

        async def ask(address: str, answered: anyio.Event) -> None:
            try:
                found[address] = await self._ask(agent, address, target.port, pad_chars)
            except Refused as error:
                failures[address] = error.failure
                answered.set()
            else:
                tasks.cancel_scope.cancel()

        with self._lease(target) as agent:
            async with anyio.create_task_group() as tasks:
                for address in self._preferred(target, agent):
                    answered = anyio.Event()
                    tasks.start_soon(ask, address, answered)
                    with anyio.move_on_after(NEXT_ADDRESS_SECONDS):
                        await answered.wait()
            for agent.address, identity in found.items():
                return identity
        in_order = [failures[each] for each in self._hosts(target) if each in failures]
        raise none_worked(in_order).failure.error(target, self.name)

    @asynccontextmanager
    async def connect(self, target: Target) -> AsyncIterator[TransportStreams]:
        """A conversation with the agent. Nothing is sent before the first request.

        Raises:
            TransportError: on leaving: what went wrong first, if something did.
        """
        token = await self._read_token(target)

        async def send(request: httpx2.Request) -> httpx2.Response:
            if token:
                request.headers["authorization"] = f"Bearer {token}"
            return await self._send(agent, target, request)

        exchange = Exchange(send)
        client = httpx2.AsyncClient(
            transport=exchange,
            timeout=self._timeout(),
            trust_env=False,
            headers={"accept-encoding": "identity"},
        )
        failure: Exception | None = None
        with self._lease(target) as agent:
            async with streamable_http_client(
                f"{self.settings.scheme}://agent{self.settings.path}",
                http_client=client,
                terminate_on_close=False,
                max_sse_event_size=MAX_FRAME_BYTES,
            ) as streams:
                try:
                    yield streams
                except Exception as error:  # the SDK's task group would wrap it
                    failure = error
        if exchange.failure is not None:
            raise exchange.failure.error(target, self.name) from failure
        if failure is not None:
            raise failure

    def _hosts(self, target: Target) -> Sequence[str]:
        """The hosts to call, best first: each a URL's, whose certificate has to name it."""
        return target.addresses

    def _server_name(self, host: str) -> str:
        """What a host's certificate has to be for."""
        return (self.settings.server_name if is_address(host) else "") or host

    def _network(self, target: Target) -> httpcore2.AsyncNetworkBackend | None:
        """What opens connections to the agent; None for TCP.

        A `TransportError` that is the reason of one of its exceptions is what callers get: any
        but `Broken` says that the request was not carried out.
        """
        return None

    def _preferred(self, target: Target, agent: _Agent) -> list[str]:
        return sorted(self._hosts(target), key=lambda each: each != agent.address)

    async def _send(
        self, agent: _Agent, target: Target, request: httpx2.Request
    ) -> httpx2.Response:
        tried: list[Failure] = []
        for address in self._preferred(target, agent):
            try:
                response = await self._send_to(agent, address, target.port, request)
            except NotConnected as error:
                tried.append(error.failure)
            else:
                agent.address = address
                return response
        raise none_worked(tried)

    async def _ask(self, agent: _Agent, address: str, port: int, pad_chars: int) -> Identity:
        url = f"{self.settings.scheme}://agent{VERSION_PATH}?pad={pad_chars}"
        request = httpx2.Request("GET", url, extensions={"timeout": self._timeout().as_dict()})
        try:
            arrived = await self._send_to(agent, address, port, request)
        except NotConnected as error:
            failure = error.failure
            if failure.symptom == "silent" and await self._answers_a_knock(agent, address, port):
                words = f"{failure.message}, and a few bytes in the clear are answered"
                raise NotConnected(Unreachable, words, "large_lost") from error
            raise
        async with aclosing(arrived) as response:
            if response.status_code != 200:
                raise refusal(response, await read_refusal(response))
            return _identity(await read_body(response, PROBE_BYTES), pad_chars)

    async def _answers_a_knock(self, agent: _Agent, address: str, port: int) -> bool:
        """Whether a server that is silent in the TLS handshake, in which packets are large, answers
        plain HTTP: most tell in a small packet that they speak HTTPS."""
        request = httpx2.Request("GET", f"http://agent{VERSION_PATH}")
        with anyio.move_on_after(KNOCK_SECONDS):
            try:
                await (await self._send_to(agent, address, port, request)).aclose()
            except Refused as error:
                return error.failure.kind is BadPeer  # an answer, if none in HTTP
            return True
        return False

    async def _send_to(
        self, agent: _Agent, address: str, port: int, request: httpx2.Request
    ) -> httpx2.Response:
        where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        name = self._server_name(address)
        securing = ""

        async def note(event: str, info: object) -> None:
            nonlocal securing
            if event == "connection.start_tls.started":
                securing = name

        extensions: dict[str, Any] = {}
        if self.settings.scheme == "https":
            extensions = {"sni_hostname": name, "trace": note}
        try:
            return await agent.pool.handle_async_request(_to(request, address, port, extensions))
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            seconds = self.settings.connect_timeout_seconds
            raise unreachable(error, where, seconds, securing=securing) from error
        except httpx2.TransportError as error:
            raise died(error) from error
        except (httpx2.InvalidURL, ValueError) as error:
            raise NotConnected(Unreachable, f"{where}: not an address: {error}") from error

    def _timeout(self) -> httpx2.Timeout:
        # Reading and writing are bounded by the caller's deadline for the whole call.
        return httpx2.Timeout(None, connect=self.settings.connect_timeout_seconds)

    async def _read_token(self, target: Target) -> str:
        try:
            return await self._token.read()
        except (OSError, ValueError) as error:
            message = f"no token to send: {error}"
            raise Denied(
                message, target=target, transport=self.name, symptom="credentials"
            ) from error

    @contextmanager
    def _lease(self, target: Target) -> Iterator[_Agent]:
        """The agent's pool, which is not closed for idling meanwhile."""
        _ = self._tasks  # raises outside of the block, where nobody would close the pool
        agent = self._agents.get(target.key)
        if agent is None or agent.tls is not self._trust.context:
            if agent is not None:
                self._outdated.append(agent)
            tls, address = self._trust.context, agent.address if agent else ""
            pool = Pool(tls, self.settings.max_connections, self._network(target))
            agent = self._agents[target.key] = _Agent(pool, tls, address)
        agent.users += 1
        try:
            yield agent
        finally:
            agent.users -= 1
            agent.used_at = anyio.current_time()

    async def _entered(self) -> None:
        if self.settings.scheme == "https":
            await self._trust.read()
            self._tasks.start_soon(self._renew_trust)
        self._tasks.start_soon(self._close_idle)

    async def _renew_trust(self) -> None:
        while True:
            await anyio.sleep(CA_SECONDS)
            await self._trust.renew()
            await self._close(-math.inf)

    async def _close_idle(self) -> None:
        try:
            while True:
                await anyio.sleep(self.settings.idle_seconds / 2)
                await self._close(anyio.current_time() - self.settings.idle_seconds)
        finally:
            await self._close(math.inf)

    async def _close(self, unused_since: float) -> None:
        """Close what nobody has used since then, and what trusts whom is trusted no more; with
        infinity everything, used or not."""
        at_all = math.isinf(unused_since) and unused_since > 0
        async with anyio.create_task_group() as tasks:
            for key, agent in tuple(self._agents.items()):
                unused = agent.used_at <= unused_since or agent.tls is not self._trust.context
                if at_all or (unused and not agent.users):
                    del self._agents[key]
                    tasks.start_soon(agent.pool.close)
            for agent in tuple(self._outdated):
                if at_all or not agent.users:
                    self._outdated.remove(agent)
                    tasks.start_soon(agent.pool.close)


def _to(
    request: httpx2.Request, address: str, port: int, extensions: Mapping[str, Any]
) -> httpx2.Request:
    if not 0 < port < 65536:
        raise ValueError("no such port")
    url = request.url.copy_with(host=address, port=port)
    headers = request.headers.copy()
    headers["host"] = url.netloc.decode("ascii")
    return httpx2.Request(
        request.method,
        url,
        headers=headers,
        stream=request.stream,
        extensions={**request.extensions, **extensions},
    )


def _identity(body: bytes, pad_chars: int) -> Identity:
    try:
        document = json.loads(body)
        identity = Identity.from_wire(document)
    except (ValueError, RecursionError) as error:
        raise Refused(BadPeer, f"{VERSION_PATH} is not an mcp-gpu agent's: {error}") from error
    padding = document.get("padding", "")
    if not isinstance(padding, str) or len(padding) != pad_chars:
        raise Refused(BadPeer, f"{VERSION_PATH} lacks the {pad_chars} characters of padding asked")
    return identity

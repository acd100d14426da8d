"""The fake API server: what it holds can be changed, denied, delayed and broken by a test."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import anyio
import anyio.lowlevel
from aiohttp import web

from support.kubeapi.store import RESOURCES, Expired, Resource, Store, kind_of
from support.kubeapi.watch import FORGOTTEN, Query, Refused, Watch, list_page, status

__all__ = ["FakeApiServer", "Fault", "Request"]

TOKEN = "fake-token"
UNAUTHORIZED = "Unauthorized", "Unauthorized"
"""Reason and message."""

USER = "system:serviceaccount:gpu:gateway"

Fault = int | None | Literal["hang", "drop", "half"]
"""What happens to a request: a status; nothing; no answer; a closed connection; one closed in the
middle of the first line or document."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as the log keeps it."""

    verb: str
    resource: str
    params: dict[str, str]

    @property
    def lists(self) -> bool:
        """Whether it began to read the whole collection."""
        if self.verb == "list":
            return "continue" not in self.params
        return self.verb == "watch" and "sendInitialEvents" in self.params


class FakeApiServer:
    """An API server on a port of this machine.

    Args:
        routes: more to serve, such as the subresources of pods, to those whose token is valid.
    """

    def __init__(self, namespace: str = "gpu", routes: Sequence[web.RouteDef] = ()) -> None:
        self.namespace = namespace
        self.store = Store()
        self.requests: list[Request] = []
        self.streams_lists = True
        """Whether a watch may begin with the list."""
        self.completes_lists = True
        """Whether it says that such a list is complete, for which etcd must report progress."""
        self.expires_by_status = False
        """Old versions are refused with HTTP 410 instead of an event in a 200."""
        self.piece_bytes = 0
        """Longest piece that an answer is sent in; 0 for whole lines."""
        self.tokens = {TOKEN}
        self.bound_in: set[str] | None = None
        """Namespaces in which alone the user's role counts; None for all."""
        self.bound_everywhere: set[str] = set()
        """Resources for which it counts in all of them nevertheless."""
        self.watches: set[Watch] = set()
        self._connections: dict[Watch, web.Request] = {}
        self._denied: set[tuple[str, str]] = set()
        self._faults: dict[tuple[str, str], deque[Fault]] = {}
        self._routes = tuple(routes)
        self._port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def kubeconfig(self) -> Path:
        return Path(self._folder.name, "kubeconfig")

    async def __aenter__(self) -> Self:
        self._folder = TemporaryDirectory(prefix="kubeapi-")
        await self.start()
        names = {"cluster": "fake", "user": "gateway", "namespace": self.namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "gateway", "user": {"token": TOKEN}}],
            "contexts": [{"name": "fake", "context": names}],
        }
        self.kubeconfig.write_text(json.dumps(config))  # YAML, too
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.stop()
        self._folder.cleanup()

    async def start(self) -> None:
        """Listen, on the same port as before."""
        application = web.Application(client_max_size=1 << 24)
        for route in self._routes:
            application.router.add_route(route.method, route.path, self._known(route.handler))
        for resource in RESOURCES.values():
            for path in _paths(resource):
                application.router.add_get(path, _Handler(self, resource).collection)
                application.router.add_get(f"{path}/{{name}}", _Handler(self, resource).one)
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        (address, *_) = self._runner.addresses
        self._port = address[1]

    def _known(self, handler: Any) -> Any:
        """A handler of more routes, for those who show a token that is valid."""

        async def authenticated(request: web.Request) -> web.StreamResponse:
            if not self.knows(request):
                return web.json_response(status(401, *UNAUTHORIZED), status=401)
            try:
                answer: web.StreamResponse = await handler(request)
            except ConnectionError:
                return web.Response()  # to nobody: the client has left before the upgrade
            return answer

        return authenticated

    def knows(self, request: web.Request) -> bool:
        """Whether the request shows a token that is valid."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        return kind == "Bearer" and token in self.tokens

    async def stop(self) -> None:
        """Close every connection and refuse new ones."""
        if self._runner is not None:
            self.drop_watches()
            await self._runner.cleanup()
            self._runner = None

    async def apply(self, document: Mapping[str, Any]) -> None:
        """Create the object or replace it, status and all."""
        metadata = dict(document["metadata"])
        if kind_of(document).namespaced:
            metadata.setdefault("namespace", self.namespace)
        self.store.apply({**document, "metadata": metadata})

    async def delete(self, kind: str, name: str) -> None:
        """Delete the object."""
        self.store.delete(kind, name, self.namespace)

    def allow(self, verb: str, resource: str) -> None:
        self._denied.discard((verb, resource))

    def deny(self, verb: str, resource: str) -> None:
        self._denied.add((verb, resource))

    def may(self, verb: str, resource: str) -> bool:
        """Whether the user's role grants a verb on a resource, or on a `pods/exec`."""
        return (verb, resource) not in self._denied

    def fault(self, verb: str, resource: str, *faults: Fault) -> None:
        """What the next such requests meet, one after the other."""
        self._faults.setdefault((verb, resource), deque()).extend(faults)

    def take_fault(self, verb: str, resource: str) -> Fault | None:
        waiting = self._faults.get((verb, resource))
        return waiting.popleft() if waiting else None

    def count(self, verb: str, resource: str) -> int:
        """How many such requests there were."""
        return sum(r.verb == verb and r.resource == resource for r in self.requests)

    def lists(self, resource: str) -> int:
        """How often the whole collection has been asked for."""
        return sum(r.lists and r.resource == resource for r in self.requests)

    def open_watches(self, resource: str = "") -> list[Watch]:
        """Those of a resource, or all."""
        return [w for w in self.watches if resource in ("", w.query.resource.plural)]

    def end_watches(self, resource: str = "") -> None:
        """End them in good order, as `timeoutSeconds` does."""
        for watch in self.open_watches(resource):
            watch.end()

    def expire_watches(self, resource: str = "") -> None:
        """End them with the event that says 410."""
        for watch in self.open_watches(resource):
            watch.expire()

    def bookmark(self, resource: str = "") -> None:
        """Tell each how far it has come."""
        for watch in self.open_watches(resource):
            watch.bookmark()

    def drop_watches(self, resource: str = "") -> None:
        """Close their connections."""
        for watch in self.open_watches(resource):
            _abort(self._connections[watch])

    def drop_watches_in_a_line(self, resource: str = "") -> None:
        """Close their connections in the middle of an event."""
        for watch in self.open_watches(resource):
            watch.send(b'{"type": "MODIFIED", "object": {"meta')

    @contextmanager
    def watching(self, watch: Watch, request: web.Request) -> Iterator[None]:
        self.watches.add(watch)
        self._connections[watch] = request
        try:
            yield
        finally:
            self.watches.discard(watch)
            del self._connections[watch]


class _Handler:
    """Answers for one resource."""

    def __init__(self, server: FakeApiServer, resource: Resource) -> None:
        self._server = server
        self._resource = resource

    async def collection(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "watch" if "watch" in request.query else "list")

    async def one(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "get")

    async def _answer(self, request: web.Request, verb: str) -> web.StreamResponse:
        server, plural = self._server, self._resource.plural
        params = dict(request.query)
        server.requests.append(Request(verb, plural, params))
        namespace = request.match_info.get("namespace")
        try:
            self._authorize(request, verb, namespace)
            fault = server.take_fault(verb, plural)
            if fault == "hang":
                await anyio.sleep_forever()
            if fault == "drop":
                _abort(request)
                raise ConnectionResetError
            if isinstance(fault, int):
                raise Refused(fault, "InternalError", "Internal error occurred: scripted")
            if verb == "get":
                return self._get(request.match_info["name"], namespace or "")
            query = Query(self._resource, namespace, params)
            if verb == "watch":
                return await self._watch(request, query, halved=fault == "half")
            body = json.dumps(list_page(server.store, query)).encode()
            return await self._send(request, body, halved=fault == "half")
        except Refused as refused:
            document = status(refused.code, refused.reason, refused.message)
            return web.json_response(document, status=refused.code)
        except ConnectionError:
            return web.Response()  # to nobody: the connection is closed

    def _authorize(self, request: web.Request, verb: str, namespace: str | None) -> None:
        if not self._server.knows(request):
            raise Refused(401, *UNAUTHORIZED)
        if self._bound(namespace) and self._server.may(verb, self._resource.plural):
            return
        plural, group = self._resource.plural, self._resource.group.split("/")[2]
        group = "" if group == "v1" else group
        name = f"{plural}.{group}" if group else plural
        where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
        message = (
            f'{name} is forbidden: User "{USER}" cannot {verb} resource "{plural}" in API group '
            f'"{group}" {where}'
        )
        raise Refused(403, "Forbidden", message)

    def _bound(self, namespace: str | None) -> bool:
        bound_in = self._server.bound_in
        if bound_in is None or not self._resource.namespaced:
            return True
        return namespace in bound_in or self._resource.plural in self._server.bound_everywhere

    def _get(self, name: str, namespace: str) -> web.Response:
        found = self._server.store.get(self._resource.plural, namespace, name)
        if found is None:
            raise Refused(404, "NotFound", f'{self._resource.plural} "{name}" not found')
        return web.json_response(found)

    async def _watch(
        self, request: web.Request, query: Query, *, halved: bool
    ) -> web.StreamResponse:
        server = self._server
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            watch = Watch(
                server.store,
                query,
                streams_lists=server.streams_lists,
                completes_lists=server.completes_lists,
            )
        except Expired:
            if server.expires_by_status:
                raise Refused(410, "Expired", FORGOTTEN) from None
            gone = {"type": "ERROR", "object": status(410, "Expired", FORGOTTEN)}
            return await self._send(request, json.dumps(gone).encode() + b"\n")
        with server.watching(watch, request):
            await response.prepare(request)
            async with aclosing(watch.lines()) as lines:
                async for line in lines:
                    said = line[: len(line) // 2] if halved else line
                    await self._write(response, said)
                    if not said.endswith(b"\n"):
                        _abort(request)
                        raise ConnectionResetError
        return response

    async def _send(
        self, request: web.Request, body: bytes, *, halved: bool = False
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if halved:
            await response.write(body[: len(body) // 2])
            _abort(request)
            raise ConnectionResetError
        await self._write(response, body)
        return response

    async def _write(self, response: web.StreamResponse, body: bytes) -> None:
        piece_bytes = self._server.piece_bytes or len(body)
        for start in range(0, len(body), piece_bytes):
            await response.write(body[start : start + piece_bytes])
            await anyio.lowlevel.checkpoint()


def _abort(request: web.Request) -> None:
    """Close the connection at once."""
    if request.transport is not None:
        request.transport.abort()


def _paths(resource: Resource) -> list[str]:
    everywhere = f"{resource.group}/{resource.plural}"
    if not resource.namespaced:
        return [everywhere]
    return [everywhere, f"{resource.group}/namespaces/{{namespace}}/{resource.plural}"]

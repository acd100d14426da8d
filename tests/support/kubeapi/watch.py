"""LIST and WATCH over a store, as a real API server answers them."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from support.kubeapi.store import Change, Document, Expired, Resource, Store, matches

__all__ = ["Query", "Refused", "Watch", "list_page", "status"]

LIST_ENDS = {"k8s.io/initial-events-end": "true"}

FORGOTTEN = "The resourceVersion for the provided watch is too old."


class Refused(Exception):
    """What the client is told instead of an answer."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message


def status(code: int, reason: str, message: str) -> Document:
    """A `Status` that says no."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


@dataclass(frozen=True, slots=True)
class Query:
    """What a client asks of a collection."""

    resource: Resource
    namespace: str | None
    """None for all."""
    params: Mapping[str, str]

    def picks(self, document: Document | None) -> bool:
        labels = self.params.get("labelSelector", "")
        fields = self.params.get("fieldSelector", "")
        return document is not None and matches(document, labels, fields, self.namespace)

    @property
    def wants_list(self) -> bool:
        """A watch that begins with everything there is."""
        return self.params.get("sendInitialEvents") == "true"


def list_page(store: Store, query: Query) -> Document:
    """One page of a list, all pages of the same version.

    Raises:
        Refused: the page has been compacted away.
    """
    token = query.params.get("continue")
    limit = int(query.params.get("limit", 0)) or None
    if token:
        try:
            version, rest = store.rest(token)
        except Expired:
            message = "The provided continue parameter is too old."
            raise Refused(410, "Expired", message) from None
    else:
        version = store.version
        rest = [each for each in store.objects(query.resource.plural) if query.picks(each)]
    page, rest = rest[:limit], rest[limit:] if limit else []
    metadata: Document = {"resourceVersion": str(version)}
    if rest:
        metadata |= {"continue": store.keep_rest(version, rest), "remainingItemCount": len(rest)}
    return {
        "kind": f"{query.resource.kind}List",
        "apiVersion": query.resource.api_version,
        "metadata": metadata,
        "items": page,
    }


class Watch:
    """One open watch. Lines come from `lines`; a test may interfere with `send` and `end`.

    Raises:
        Refused: no such watch is to be had here.
        Expired: it would begin at a version that has been compacted away.
    """

    def __init__(
        self,
        store: Store,
        query: Query,
        *,
        streams_lists: bool = True,
        completes_lists: bool = True,
    ) -> None:
        match, begins = query.params.get("resourceVersionMatch"), query.wants_list
        if (begins or match) and not streams_lists:
            message = (
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless "
                "the WatchList feature gate is enabled"
            )
            raise Refused(422, "Invalid", message)
        if begins and match != "NotOlderThan":
            message = "resourceVersionMatch: Forbidden: sendInitialEvents requires NotOlderThan"
            raise Refused(422, "Invalid", message)
        plural = query.resource.plural
        version = query.params.get("resourceVersion", "")
        whole = begins or version in ("", "0")
        missed = [] if whole else store.since(plural, int(version))
        self.query = query
        self._store = store
        self._bookmarks = query.params.get("allowWatchBookmarks") == "true"
        self._send, self._receive = anyio.create_memory_object_stream[Change | bytes](math.inf)
        for document in store.objects(plural) if whole else ():
            if query.picks(document):
                self.send(_line("ADDED", document))
        for change in missed:
            self._send.send_nowait(change)
        if begins and completes_lists:
            self.bookmark(LIST_ENDS)

    def send(self, line: bytes) -> None:
        """Say this next."""
        self._send.send_nowait(line)

    def bookmark(self, annotations: Mapping[str, str] | None = None) -> None:
        """Tell how far this watch has come, if it wants to know."""
        if self._bookmarks:
            metadata: Document = {"resourceVersion": str(self._store.version)}
            if annotations:
                metadata["annotations"] = dict(annotations)
            kind = self.query.resource
            head = {"kind": kind.kind, "apiVersion": kind.api_version}
            self.send(_line("BOOKMARK", head | {"metadata": metadata}))

    def expire(self) -> None:
        """Say that its version is forgotten, and end."""
        self.send(_line("ERROR", status(410, "Expired", FORGOTTEN)))
        self.end()

    def end(self) -> None:
        """End in good order, after what is still to be said."""
        self._send.close()

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """The watch's lines, until it is ended or has lasted `timeoutSeconds`."""
        seconds = float(self.query.params.get("timeoutSeconds", 1800))
        with anyio.move_on_after(seconds), self._listening():
            async for said in self._receive:
                line = said if isinstance(said, bytes) else self._event(said)
                if line:
                    yield line

    @contextmanager
    def _listening(self) -> Iterator[None]:
        with self._send, self._receive:
            self._store.listeners.add(self._hear)
            try:
                yield
            finally:
                self._store.listeners.discard(self._hear)

    def _hear(self, plural: str, change: Change) -> None:
        if plural == self.query.resource.plural:
            try:
                self._send.send_nowait(change)
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                pass  # it has been ended

    def _event(self, change: Change) -> bytes | None:
        """As this watch's selectors see it: what they no longer pick is gone."""
        was, is_now = self.query.picks(change.before), self.query.picks(change.after)
        if is_now:
            assert change.after is not None
            return _line("MODIFIED" if was else "ADDED", change.after)
        if not was:
            return None
        assert change.before is not None
        gone = change.after or change.before
        metadata = gone["metadata"] | {"resourceVersion": str(change.version)}
        return _line("DELETED", gone | {"metadata": metadata})


def _line(kind: str, document: Mapping[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": document}).encode() + b"\n"

"""What one call reads of a cluster: each object at most once, and every read that is refused told.

A gateway may be given few rights, or none. A part of an answer whose right is missing is a `Gap`
that names it, and the rest of the answer stands.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, Final, TypeVar

import anyio
from pydantic import Field

from mcp_gpu.gpu.wire import Wire
from mcp_gpu.workloads.documents import Document, is_path_part, parts, trim, word
from transports.kubernetes import KubernetesApi, KubernetesError
from transports.text import one_line, visible

__all__ = ["CLUSTER", "Document", "Gap", "Reads", "Workloads"]

READ_SECONDS: Final = 5.0
"""For one object or list."""

PARALLEL: Final = 8
"""Reads of one call at a time: the API server has others to serve."""

LISTED: Final = 500
"""Objects of one list: what comes after them is a gap."""

PAGE: Final = 50
"""Of them read at a time."""

PAGE_BYTES: Final = 16 << 20
"""Longest page or object: a page of pods is 1 MiB where they are as usual, and 75 where they are as
large as may be."""

LISTS: Final = 3
"""Lists read at a time, over all calls: each takes several times its bytes of memory."""

LIST_SECONDS: Final = 10.0
"""For all pages of one list, with the wait for its turn."""

LOG_LINES: Final = 200
LOG_BYTES: Final = 65_536
"""Kept of a log: its end, which `limitBytes` would cut off, counting from where the tail begins."""

WHY_CHARS: Final = 200

CLUSTER: Final = "Kubernetes"
"""What is missing where there is nobody to ask."""

T = TypeVar("T")


class Gap(Wire):
    """Something that could not be read."""

    what: str = Field(description="Such as: pod train/worker-0.")
    why: str
    grant: str = Field(description="The right that is missing, as `get pods in train`; or empty.")


class Reads:
    """The reads of one call. What was asked for before is not asked again.

    Nothing here raises: what cannot be read is None and a gap.

    Args:
        api: entered by its owner; None: there is no cluster to ask.
        lists: shared by all calls. Default: one for this call.
        withheld: resources that the caller may not read, though the gateway may: `pods/log`.
    """

    def __init__(
        self,
        api: KubernetesApi | None,
        lists: anyio.CapacityLimiter | None = None,
        withheld: Collection[str] = (),
    ) -> None:
        self._api = api
        self._withheld = withheld
        self._lists = lists or anyio.CapacityLimiter(LISTS)
        self._gaps: dict[str, Gap] = {}
        self._found: dict[str, Any] = {}
        self._locks: dict[str, anyio.Lock] = {}
        self._limiter = anyio.CapacityLimiter(PARALLEL)
        self.requests = 0
        """Sent to the API server so far."""

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What could not be read, each once."""
        return tuple(self._gaps.values())

    def miss(self, what: str, why: str, grant: str = "") -> None:
        """Note a gap that the caller knows of."""
        gap = Gap(what=visible(what), why=one_line(why, WHY_CHARS), grant=grant)
        self._gaps.setdefault(what, gap)

    def missed(self, kind: str) -> Gap | None:
        """Why some of a kind, as `nodes`, could not be read; None where all that was asked for
        could, though there may be none."""
        singular = kind.removesuffix("s")
        for gap in self.gaps:
            if gap.what == CLUSTER or gap.what.split()[0] in (kind, singular):
                return gap
        return None

    async def get(self, path: str, plural: str, name: str, namespace: str = "") -> Document | None:
        """One object; None where there is none, or it cannot be read, which is then a gap.

        Args:
            path: of the API group and version, as `/api/v1` or `/apis/batch/v1`.
        """
        what = f"{plural.removesuffix('s')} {f'{namespace}/' if namespace else ''}{name}"
        where = self._place(path, plural, namespace, what, name)
        if where is None:
            return None
        grant = _grant("get", path, plural, namespace)
        ask = partial(self._document, f"{where}/{name}", None)
        return await self._read(f"{where}/{name}", ask, what, grant)

    async def list(
        self, path: str, plural: str, namespace: str = "", **selectors: str
    ) -> tuple[Document, ...]:
        """The objects of a kind, of one namespace or of all, as far as they can be read.

        Args:
            selectors: `fieldSelector`, `labelSelector`: the server sends only what fits.
        """
        told = f" with {' and '.join(selectors.values())}" if selectors else ""
        what = f"{plural}{f' of {namespace}' if namespace else ''}{told}"
        where = self._place(path, plural, namespace, what)
        if where is None:
            return ()
        query = "&".join(f"{key}={value}" for key, value in sorted(selectors.items()))
        grant = _grant("list", path, plural, namespace)
        gather = partial(self._pages, where, selectors, what, grant)
        return await self._once(f"{where}?{query}", gather)

    async def _pages(
        self, where: str, selectors: Mapping[str, str], what: str, grant: str
    ) -> tuple[Document, ...]:
        """A list page by page, of which each is trimmed before the next is read."""
        found: list[Document] = []
        params = {"limit": str(min(PAGE, LISTED)), **selectors}
        with anyio.move_on_after(LIST_SECONDS) as scope:
            async with self._lists:
                while len(found) < LISTED:
                    page = await self._ask(partial(self._document, where, params), what, grant)
                    if page is None:
                        break
                    found += parts(page, "items")
                    params["continue"] = word(page, "metadata", "continue")
                    if not params["continue"]:
                        break
                else:
                    self.miss(what, f"only the first {LISTED} are looked at")
        if scope.cancelled_caught:
            self.miss(what, f"not all of it was read within {LIST_SECONDS:g} s")
        return tuple(found[:LISTED])

    async def log(
        self, namespace: str, pod: str, container: str, *, previous: bool
    ) -> tuple[str, ...] | None:
        """The last lines of a container's log; None where they cannot be read.

        Args:
            previous: of the container before the present one.
        """
        what = f"log of {container} in pod {namespace}/{pod}"
        where = self._place("/api/v1", "pods", namespace, what, pod)
        if where is None:
            return None
        params = {
            "container": container,
            "previous": str(previous).lower(),
            "tailLines": str(LOG_LINES),
        }
        grant = f"get pods/log in {namespace}"
        if "pods/log" in self._withheld:
            self.miss(what, "forbidden to the caller", grant)
            return None
        ask = partial(self._text, f"{where}/{pod}/log", params)
        text = await self._read(f"{where}/{pod}/log?{container}&{previous}", ask, what, grant)
        return None if text is None else tuple(text.splitlines()[-LOG_LINES:])

    def _place(
        self, path: str, plural: str, namespace: str, what: str, name: str = "x"
    ) -> str | None:
        """The path of a collection. None for names that Kubernetes gives nobody, and that might
        lead the path elsewhere: they may come from a model."""
        if not (is_path_part(name) and is_path_part(namespace or "x")):
            self.miss(one_line(what, WHY_CHARS), "no such name can be")
            return None
        return f"{path}/{f'namespaces/{namespace}/' if namespace else ''}{plural}"

    async def _read(
        self, key: str, ask: Callable[[KubernetesApi], Awaitable[T]], what: str, grant: str
    ) -> T | None:
        return await self._once(key, partial(self._ask, ask, what, grant))

    async def _once(self, key: str, ask: Callable[[], Awaitable[T]]) -> T:
        async with self._locks.setdefault(key, anyio.Lock()):
            if key not in self._found:
                self._found[key] = await ask()
            found: T = self._found[key]
            return found

    async def _ask(
        self, ask: Callable[[KubernetesApi], Awaitable[T]], what: str, grant: str
    ) -> T | None:
        if self._api is None:
            self.miss(CLUSTER, "this gateway has no API server to ask")
            return None
        try:
            async with self._limiter:
                self.requests += 1
                return await ask(self._api)
        except KubernetesError as error:
            if error.status == 403:
                self.miss(what, "forbidden", grant)
            elif error.status != 404:  # which says that there is none, and is an answer
                self.miss(what, error.message)
            return None

    @staticmethod
    async def _document(
        path: str, params: Mapping[str, str] | None, api: KubernetesApi
    ) -> Document:
        document = await api.get(path, params, seconds=READ_SECONDS, most_bytes=PAGE_BYTES)
        if not isinstance(document, dict):
            raise KubernetesError("the answer is no object")
        for each in (document, *parts(document, "items")):
            trim(each)
        return document

    @staticmethod
    async def _text(path: str, params: Mapping[str, str], api: KubernetesApi) -> str:
        return await api.tail(path, params, last_bytes=LOG_BYTES, seconds=READ_SECONDS)


class Workloads:
    """The clusters that a gateway can ask.

    Args:
        apis: by the name of the cluster in `Target.cluster`, entered by the caller. A single one
            is that of all nodes; none: there is no cluster.
    """

    def __init__(self, apis: Mapping[str, KubernetesApi]) -> None:
        self._apis = dict(apis)
        self._lists = anyio.CapacityLimiter(LISTS)

    def reads(self, cluster: str = "", withheld: Collection[str] = ()) -> Reads:
        """For one call, of that cluster; without a name, of the only one.

        Args:
            withheld: resources that the caller may not read.
        """
        if cluster in self._apis:
            return Reads(self._apis[cluster], self._lists, withheld)
        only = next(iter(self._apis.values())) if len(self._apis) == 1 else None
        return Reads(only, self._lists, withheld)

    @property
    def clusters(self) -> tuple[str, ...]:
        """Their names; `("",)` is a single one without a name."""
        return tuple(self._apis)


def _grant(verb: str, path: str, plural: str, namespace: str) -> str:
    _, kind, group, *_ = [*path.split("/"), ""]
    resource = plural if kind == "api" else f"{plural}.{group}"
    return f"{verb} {resource}" + (f" in {namespace}" if namespace else "")

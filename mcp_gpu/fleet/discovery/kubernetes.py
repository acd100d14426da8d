"""Agents as a cluster knows them: EndpointSlices say which there are, pods and nodes say why one
does not answer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import anyio
from anyio.abc import TaskStatus

from mcp_gpu.fleet.discovery.nodes import Node, read_node
from mcp_gpu.fleet.discovery.pods import Pod, read_pod
from mcp_gpu.fleet.discovery.reflector import Reflector
from mcp_gpu.fleet.discovery.roster import Departures, Roster, draw_up
from mcp_gpu.fleet.discovery.slices import Slice, read_slice
from mcp_gpu.fleet.discovery.table import DiscoveryError, Table
from transports.errors import MESSAGE_CHARS
from transports.kubernetes import NO_CREDENTIALS, KubernetesApi, KubernetesError
from transports.text import one_line

__all__ = ["KubernetesDiscovery"]

FIRST_LOOK_SECONDS = 10.0
"""Longest wait at the start for what the API server says first."""

NODES_PAUSE_SECONDS = 120.0
"""Longest pause between two attempts at the nodes: most who may not list them never will."""

RETAIN_SECONDS = 120.0
"""How long a node is known whose agent's pod is gone: a new one takes a second, or a minute where
the controllers themselves have to be started again first."""

UNAUTHORIZED = 401
FORBIDDEN = 403

HINTS = {
    UNAUTHORIZED: "the credentials have expired or are not accepted",
    FORBIDDEN: "grant list and watch",
    404: "Kubernetes 1.21 or later is needed",
}
"""What to do about an HTTP status."""

NAME_IT = "other namespaces may not be listed: name the agents' with --namespace"


class _Scope:
    """Where a collection is looked for: in one namespace, or in all of them, or, where that is
    refused from the start, in that of the credentials."""

    def __init__(self, api: KubernetesApi, namespace: str, everywhere: bool) -> None:
        self.namespace = namespace
        """Empty for all, or while nobody knows."""
        self.everywhere = everywhere and not namespace
        self.narrowed = False
        self._api = api

    async def folder(self) -> str:
        """What stands before the collection in its path."""
        if self.everywhere:
            return ""
        self.namespace = self.namespace or await self._api.namespace()
        return f"namespaces/{self.namespace}/"

    def narrow(self) -> bool:
        """Give up looking everywhere. False where that has been done, or was never meant."""
        if not self.everywhere:
            return False
        self.everywhere, self.narrowed = False, True
        return True

    def __str__(self) -> str:
        if self.everywhere:
            return "Kubernetes, all namespaces"
        return f"Kubernetes, namespace {self.namespace}" if self.namespace else "Kubernetes"


class KubernetesDiscovery:
    """The agents behind a headless Service, watched.

    Args:
        api: opened and closed by `run`.
        namespace: where the agents are; empty for the namespace of the credentials.
        everywhere: with no namespace given, look in all of them; where that is forbidden, in the
            namespace of the credentials.
        selector: label selector of the agents' EndpointSlices and pods.
        domain: the cluster's DNS domain, to reach agents by DNS name; None to reach them by IP.
        login: command with which a person renews the credentials; empty where nobody can.
        jitter, clock: for tests; see `Reflector`.
    """

    def __init__(
        self,
        api: KubernetesApi,
        *,
        selector: str,
        namespace: str = "",
        everywhere: bool = False,
        domain: str | None = None,
        login: str = "",
        jitter: Callable[[float], float] = lambda most: random.uniform(0, most),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._selector = selector
        self._domain = domain
        self._login = login
        self._slices_scope = _Scope(api, namespace, everywhere)
        self._pods_scope = _Scope(api, namespace, everywhere)
        told: set[str] = set()
        self._slices = Reflector[Slice](
            api,
            "EndpointSlices",
            self._slices_path,
            read_slice,
            selector=selector,
            elsewhere=self._slices_scope.narrow,
            told=told,
            jitter=jitter,
        )
        self._pods = Reflector[Pod](
            api,
            "pods",
            self._pods_path,
            read_pod,
            selector=selector,
            elsewhere=self._pods_scope.narrow,
            told=told,
            jitter=jitter,
        )
        self._nodes = Reflector[Node](
            api,
            "nodes",
            _nodes_path,
            read_node,
            told=told,
            longest_pause_seconds=NODES_PAUSE_SECONDS,
            jitter=jitter,
        )
        self._clock = clock
        self._departures = Departures(RETAIN_SECONDS)
        self._roster = Roster((), (), {})
        self._drawn_from: tuple[int, ...] = ()

    def table(self) -> Table:
        source = str(self._slices_scope)
        if self._slices.as_of is None:
            silence = "the API server has not answered yet"
            if self._login:
                silence += f", or a program for credentials has not: `{self._login}` shows which"
            raise DiscoveryError(f"{source}: {self._problem() or silence}")
        roster, problem = self._current(), self._problem()
        existing = None if self._nodes.as_of is None else self._nodes.items
        absent = (*roster.absent, *self._departures.absent(self._clock(), existing))
        if not roster.targets and not absent:
            said = [f"no agent there matches {self._selector}"]
            said += [NAME_IT] if self._slices_scope.narrowed else []
            said += [problem] if problem else []
            problem = "; ".join(said)
        return Table(
            roster.targets,
            self._slices.as_of,
            source,
            problem,
            absent,
            roster.explanations,
        )

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        reflectors = (self._slices, self._pods, self._nodes)
        async with self._api, anyio.create_task_group() as group:
            for reflector in reflectors:
                group.start_soon(reflector.run)
            with anyio.move_on_after(FIRST_LOOK_SECONDS):
                for reflector in reflectors:
                    await reflector.tried.wait()
            task_status.started()

    def _current(self) -> Roster:
        """Drawn up when it is asked for, and once for the same state: calls may be rarer than
        changes, and more frequent."""
        state = (self._slices.changes, self._pods.changes, self._nodes.changes)
        if state != self._drawn_from:
            self._roster = draw_up(
                self._slices.items.values(),
                self._pods.items.values(),
                self._nodes.items,
                domain=self._domain,
            )
            self._departures.notice(self._roster.nodes(), self._clock())
            self._drawn_from = state
        return self._roster

    def _problem(self) -> str | None:
        """What is out of date or missing in the table, and what that means for it."""
        said: list[str] = []
        more: list[str] = []
        for reflector, loss in (
            (self._slices, ""),
            (self._pods, "silent agents are not explained"),
            (self._nodes, "nodes without an agent are not seen"),
        ):
            problem = reflector.problem
            if problem is None:
                continue
            # What ails the server or the credentials ails all three: said once.
            if problem.status == FORBIDDEN or not said:
                said.append(_words(problem, reflector.what))
            more.append(self._hint(problem))
            if reflector is self._slices and self._slices_scope.narrowed:
                more.append(NAME_IT)
            if reflector.as_of is None and self._slices.as_of is not None:
                more.append(loss)
        pods = self._pods_scope
        if pods.narrowed and any(t.namespace != pods.namespace for t in self._roster.targets):
            more.append(
                f"pods may be watched in namespace {pods.namespace} alone: silent agents of "
                "others are not explained"
            )
        # What to do must not be cut off behind the words of the server.
        advice = one_line("; ".join(dict.fromkeys(each for each in more if each)), MESSAGE_CHARS)
        room = max(MESSAGE_CHARS - len(advice) - len("; "), 0)
        words = one_line("; ".join(dict.fromkeys(said)), room)
        return "; ".join(each for each in (words, advice) if each) or None

    def _hint(self, problem: KubernetesError) -> str:
        hint = HINTS.get(problem.status, "")
        if problem.status == UNAUTHORIZED and self._login:
            return f"{hint}: run `{self._login}` in a terminal"
        return hint

    async def _slices_path(self) -> str:
        return f"/apis/discovery.k8s.io/v1/{await self._slices_scope.folder()}endpointslices"

    async def _pods_path(self) -> str:
        return f"/api/v1/{await self._pods_scope.folder()}pods"


async def _nodes_path() -> str:
    return "/api/v1/nodes"


def _words(problem: KubernetesError, what: str) -> str:
    if problem.reason == NO_CREDENTIALS:
        return problem.message  # nothing has been asked for yet
    words = problem.message
    if problem.status == FORBIDDEN:
        words = f"forbidden: {words.rpartition('forbidden: ')[2]}"
    return f"cannot watch {what}: {words}"

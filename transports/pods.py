"""Streams into pods, by the API server's leave: what exec and port-forward share.

Which API server it is, whether it lets us, and what its refusals mean. What is not granted is
asked for once and then left alone: a fleet of forbidden streams must not hammer an API server, nor
run a program for credentials in a loop.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from transports.base import Target
from transports.errors import BadPeer, Denied, Failure, Gone, Unreachable
from transports.kubernetes import NO_CREDENTIALS, KubernetesApi, KubernetesError, shared

if TYPE_CHECKING:
    from transports.websocket import WebSocket

__all__ = ["Grant", "PodApi", "broken_off", "check_names"]

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
"""Where everybody may ask what they may do."""

REVIEW_SECONDS = 4.0
"""For the answer to that. Less than the 5 s that a gateway gives a probe, as `CONNECT_SECONDS`."""

BELIEVED_SECONDS = {"rbac": 60.0, "credentials": 5.0, "api_unreachable": 1.0}
"""How long what keeps every stream from being opened is believed without asking again, by symptom.
Whoever has logged in again is not to wait; and who waited for an answer shares it."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", re.ASCII)
"""Names of Kubernetes objects. Nothing else may stand in a path to the API server."""

# How API server, kubelet, containerd, CRI-O and runc say it; there is no code for it.
_NOT_RUNNING = re.compile(
    r"container not found|no such container|pod does not exist|container \S+ is not running"
    r"|not created or running|no running task|(stopped|paused) container"
    r"|CONTAINER_(EXITED|CREATED|UNKNOWN)|not valid for pod|not have a host assigned"
    r"|failed to find sandbox|could not find sandbox|sandbox \S+ is (closed|not running)",
    re.IGNORECASE,
)
_NO_RIGHT = re.compile(r"pods \S+ is forbidden:")
_ADMISSION = re.compile(r"denied (the )?request")
_NO_KUBELET = re.compile(r"error dialing backend|no agent available|no preferred addresses found")


@dataclass(frozen=True, slots=True)
class Grant:
    """A right of RBAC's: to open streams of one kind into the pods of a namespace."""

    subresource: str
    """Of `pods`."""
    verbs: tuple[str, ...] = ("get", "create")
    """A WebSocket is a GET; from Kubernetes 1.35 on it takes `create` as well."""

    def __str__(self) -> str:
        return f"{' and '.join(self.verbs)} on pods/{self.subresource}"


@dataclass(slots=True)
class _Knowledge:
    """Whether streams of one kind are to be had in one namespace of one API server."""

    denial: Failure | None = None
    expires: float = -math.inf
    asking: anyio.Lock = field(default_factory=anyio.Lock)


class PodApi:
    """Where the streams of one kind are opened. Constructing is free; `aclose` ends it.

    Args:
        grant: what this takes.
        kubeconfig: as of `KubernetesApi`.
        contexts: contexts of the kubeconfig, each an API server that targets name as their
            `cluster`; none for the current one alone.
    """

    def __init__(self, grant: Grant, kubeconfig: str = "", contexts: Sequence[str] = ()) -> None:
        self.grant = grant
        self._kubeconfig = kubeconfig
        self._contexts = tuple(contexts)
        self._used: dict[str, KubernetesApi] = {}
        self._known: dict[tuple[str, str], _Knowledge] = {}

    def applies(self, target: Target) -> bool:
        """Whether the target names a pod, its namespace and no cluster that is not ours. No I/O."""
        named = bool(target.namespace and target.pod)
        return named and self._context(target.cluster) is not None

    async def open(
        self,
        target: Target,
        params: Sequence[tuple[str, str]],
        protocols: Sequence[str],
        *,
        transport: str,
    ) -> WebSocket:
        """Open a stream into the target's pod, which the caller closes, and whose opening the
        caller bounds.

        Raises:
            Denied: there are no credentials, or they do not suffice, or admission refuses. But
                for admission's, it stands for `BELIEVED_SECONDS`.
            Gone: the pod is not there or not running.
            BadPeer: what answers is no API server, or a name is none of Kubernetes'.
            Unreachable: the API server or the kubelet cannot be reached.
        """
        check_names(target, transport, target.namespace, target.pod)
        context = self._context(target.cluster)
        if context is None:
            message = f"cluster {target.cluster!r} is none of the contexts given"
            raise Unreachable(message, target=target, transport=transport)
        api = await self._api(context)
        known = self._known.setdefault((context, target.namespace), _Knowledge())
        path = f"/api/v1/namespaces/{target.namespace}/pods/{target.pod}/{self.grant.subresource}"
        denial = await self._denial(api, known, target.namespace)
        if denial is not None:
            raise denial.error(target, transport)
        try:
            return await api.websocket(path, params, protocols)
        except KubernetesError as error:
            refusal = self._refusal(error)
            if refusal.symptom in ("rbac", "credentials"):  # which the next stream lacks as well
                _note(known, refusal)
            raise refusal.error(target, transport) from error

    async def aclose(self) -> None:
        """Forget everything, and leave the API servers."""
        self._known.clear()
        while self._used:
            _, api = self._used.popitem()
            await api.__aexit__(None, None, None)

    def _context(self, cluster: str) -> str | None:
        if cluster in self._contexts:
            return cluster
        if not self._contexts:
            return ""
        if cluster:
            return None
        return self._contexts[0] if len(self._contexts) == 1 else ""

    async def _api(self, context: str) -> KubernetesApi:
        if context not in self._used:
            self._used[context] = await shared(self._kubeconfig, context).__aenter__()
        return self._used[context]

    async def _denial(
        self, api: KubernetesApi, known: _Knowledge, namespace: str
    ) -> Failure | None:
        """Why no stream is to be had, asked for by one caller for all."""
        async with known.asking:
            if anyio.current_time() >= known.expires:
                _note(known, await self._review(api, namespace))
        return known.denial

    async def _review(self, api: KubernetesApi, namespace: str) -> Failure | None:
        """What the server says of the grant. Where it does not say, trying will."""
        said: dict[str, bool] = {}
        failures: list[KubernetesError] = []

        async def ask(verb: str) -> None:
            review = _asking(namespace, verb, self.grant.subresource)
            try:
                said[verb] = _allows(await api.post(REVIEWS, review, seconds=REVIEW_SECONDS))
            except KubernetesError as error:
                failures.append(error)

        async with anyio.create_task_group() as tasks:
            for verb in self.grant.verbs:
                tasks.start_soon(ask, verb)
        for error in failures:
            if error.status in (0, 401):
                return self._refusal(error)  # as the stream would meet it
        missing = [verb for verb in self.grant.verbs if not said.get(verb, True)]
        if not missing:
            return None
        words = f"an access review denies {' and '.join(missing)} in namespace {namespace}"
        return self._ungranted(words)

    def _ungranted(self, words: str) -> Failure:
        # The grant first, as answers cut long words.
        return Failure(Denied, f"grant {self.grant}: {words}", "rbac")

    def _refusal(self, error: KubernetesError) -> Failure:
        """What the server's answer means, in its words."""
        words = error.message
        if error.status == 401 or error.reason == NO_CREDENTIALS:
            return Failure(Denied, words, "credentials")
        if _ADMISSION.search(words):  # with whatever status the policy or webhook chose
            return Failure(Denied, words, "admission")
        if error.status == 403:
            # Servers from 1.35 on say no more than this to those who may `get` and not `create`.
            return self._ungranted(words) if _NO_RIGHT.search(words) else Failure(Denied, words)
        if error.reason == "NotFound":
            return Failure(Gone, words)
        # A 404 that is no Status of Kubernetes' comes from some other server.
        if (0 < error.status < 400 or error.status == 404) and not _NOT_RUNNING.search(words):
            return Failure(BadPeer, words)
        return broken_off(words) if error.status else Failure(Unreachable, words, "api_unreachable")


def check_names(target: Target, transport: str, *names: str) -> None:
    """Raise `BadPeer` for what cannot be the name of a Kubernetes object."""
    for name in names:
        if not _NAME.fullmatch(name):
            message = f"{name!r} is no name of a namespace, pod or container"
            raise BadPeer(message, target=target, transport=transport)


def broken_off(words: str) -> Failure:
    """Why there is no stream, where API server, kubelet or container runtime give no code."""
    if _NOT_RUNNING.search(words):
        return Failure(Gone, words)
    return Failure(Unreachable, words, "kubelet_unreachable" if _NO_KUBELET.search(words) else None)


def _note(known: _Knowledge, denial: Failure | None) -> None:
    seconds = math.inf if denial is None else BELIEVED_SECONDS.get(denial.symptom or "", 0.0)
    known.denial = denial
    known.expires = anyio.current_time() + seconds


def _asking(namespace: str, verb: str, subresource: str) -> dict[str, Any]:
    asked = {"namespace": namespace, "verb": verb, "resource": "pods", "subresource": subresource}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }


def _allows(answer: Any) -> bool:
    """What a review says. An authorizer that failed, and whatever is no review, says nothing."""
    status = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(status, dict) or status.get("evaluationError"):
        return True
    return status.get("allowed") is not False

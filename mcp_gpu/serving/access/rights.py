"""Who may call which tool, as cluster RBAC says (SubjectAccessReview)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from typing import Any

from mcp_gpu.serving.access.answers import Answers
from mcp_gpu.serving.access.cluster_api import ClusterApi
from mcp_gpu.serving.access.model import Caller

__all__ = ["Rights"]

GROUP, RESOURCE, VERB = "gpu.mcp", "tools", "call"

GRANTED_SECONDS = 30.0
"""How long a right counts once it was found granted: a withdrawn one ends after this."""

DENIED_SECONDS = 5.0
"""How long it counts as missing: one just granted counts after this."""

NAME_CHARS = 128
"""Longest name a tool may have (MCP, tool names). Longer ones are not asked about."""

SERVICE_ACCOUNT = "system:serviceaccount:"


class Rights:
    """The rights of callers in one namespace."""

    def __init__(self, cluster: ClusterApi, namespace: str = "") -> None:
        self._cluster = cluster
        self._namespace = namespace or cluster.namespace
        self._answers = Answers[bool]()

    async def may_call(self, caller: Caller, tool: str) -> bool:
        """Whether the caller may call the tool.

        Raises:
            Unverifiable: the API server does not answer.
        """
        if len(tool) > NAME_CHARS:
            return False
        wanted = {
            "group": GROUP,
            "resource": RESOURCE,
            "verb": VERB,
            "name": tool,
            "namespace": self._namespace,
        }
        return await self._may(caller, wanted)

    async def may_read(self, caller: Caller, verb: str, resource: str, namespace: str) -> bool:
        """Whether the caller has a right to a resource of the core group, as `pods/log`, in a
        namespace; empty: in all.

        Raises:
            Unverifiable: the API server does not answer.
        """
        kind, _, subresource = resource.partition("/")
        wanted = {"group": "", "resource": kind, "verb": verb, "namespace": namespace}
        return await self._may(
            caller, wanted | ({"subresource": subresource} if subresource else {})
        )

    async def _may(self, caller: Caller, wanted: Mapping[str, str]) -> bool:
        spec = {
            "user": caller.name,
            "uid": caller.uid,
            "groups": list(caller.groups),
            "extra": {key: list(values) for key, values in caller.extra.items()},
            "resourceAttributes": wanted,
        }
        key = sha256(json.dumps(spec, sort_keys=True).encode()).digest()
        return await self._answers.get(key, partial(self._ask, spec))

    def missing(self, caller: Caller, tool: str) -> str:
        """What to say to a caller without the right: which, and the command that grants it."""
        shown = tool[:NAME_CHARS]
        what = f"{RESOURCE}.{GROUP}/{shown}"
        return (
            f"{caller.name!r} may not call the tool {shown!r}: the right {VERB!r} on {what!r} in "
            f"namespace {self._namespace} is missing. If there is such a tool (tools/list), it is "
            f"granted by: {self._grant(caller, shown)}"
        )

    def unread(self, caller: Caller, verb: str, resource: str, namespace: str) -> str:
        """What to say to a caller who may call the tool, and not read what it tells."""
        where = f"namespace {namespace}" if namespace else "all namespaces"
        return (
            f"{caller.name!r} may call this tool, and not read what it tells: the right {verb!r} "
            f"on {resource!r} in {where} is missing. The gateway's own rights are no one else's."
        )

    async def _ask(self, spec: Any) -> tuple[bool, float]:
        status = await self._cluster.review("authorization.k8s.io/v1", "subjectaccessreviews", spec)
        granted = status.get("allowed") is True and status.get("denied") is not True
        return granted, GRANTED_SECONDS if granted else DENIED_SECONDS

    def _grant(self, caller: Caller, tool: str) -> str:
        """`kubectl create role` refuses a resource that the API server does not serve."""
        api, group = "rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io"
        whose = sha256(caller.name.encode()).hexdigest()[:8]
        if caller.name.startswith(SERVICE_ACCOUNT):
            namespace, _, name = caller.name.removeprefix(SERVICE_ACCOUNT).partition(":")
            subject = {"kind": "ServiceAccount", "namespace": namespace, "name": name}
        else:
            subject = {"kind": "User", "apiGroup": group, "name": caller.name}
        role = {
            "apiVersion": api,
            "kind": "Role",
            "metadata": {"name": f"call-{tool}"},
            "rules": [
                {
                    "apiGroups": [GROUP],
                    "resources": [RESOURCE],
                    "resourceNames": [tool],
                    "verbs": [VERB],
                }
            ],
        }
        binding = {
            "apiVersion": api,
            "kind": "RoleBinding",
            "metadata": {"name": f"call-{tool}-{whose}"},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": f"call-{tool}"},
            "subjects": [subject],
        }
        both = json.dumps({"apiVersion": "v1", "kind": "List", "items": [role, binding]})
        # Not echo, which in some shells reads what backslashes there are in JSON.
        given = f"printf %s {shlex.quote(both)}"
        return f"{given} | kubectl -n {shlex.quote(self._namespace)} apply -f -"

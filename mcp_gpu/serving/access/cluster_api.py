"""The Kubernetes API server as a pod reaches it, with the credentials that Kubernetes mounts.

It is asked a few small things, by agents too, for which the client library would be too much.
"""

from __future__ import annotations

import os
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from mcp_gpu.serving.access.documents import Documents
from mcp_gpu.serving.access.model import Unverifiable
from mcp_gpu.serving.access.reading import Reader
from transports.files import Version, version

__all__ = ["ClusterApi", "NotInPod"]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes mounts a pod's credentials."""

SERVER = "the Kubernetes API server"


class NotInPod(Exception):
    """This process has no credentials of a pod. The text says which are missing."""


class ClusterApi:
    """The API server. Token and authority are read again when they change.

    Raises:
        NotInPod: there are no credentials.
    """

    def __init__(self) -> None:
        host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise NotInPod("KUBERNETES_SERVICE_HOST is not set")
        self._url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        self._folder = SERVICE_ACCOUNT
        for name in ("token", "ca.crt", "namespace"):
            if not (self._folder / name).is_file():
                raise NotInPod(f"there is no {self._folder / name}")
        self.namespace = (self._folder / "namespace").read_text(encoding="utf-8").strip()
        """The pod's own."""
        self._reader = Reader("this pod's own credentials")
        self._documents: Documents | None = None
        self._trusted: Version | None = None
        self._opening = anyio.Lock()

    async def get(self, path: str) -> Any:
        """A document, as parsed JSON.

        Raises:
            Unverifiable: there is none now.
        """
        return await self._ask("GET", path, None)

    async def review(self, group: str, resource: str, spec: Any) -> dict[str, Any]:
        """The status of a review that is created; `group` with its version.

        Raises:
            Unverifiable: there is none now, or this pod may not create it.
        """
        kind = {"tokenreviews": "TokenReview", "subjectaccessreviews": "SubjectAccessReview"}
        document = {"apiVersion": group, "kind": kind[resource], "spec": spec}
        answer = await self._ask("POST", f"/apis/{group}/{resource}", document)
        status = answer.get("status") if isinstance(answer, dict) else None
        if not isinstance(status, dict):
            raise Unverifiable(f"{SERVER} answers with what is no {kind[resource]}")
        return status

    async def aclose(self) -> None:
        """Close the connections."""
        if self._documents is not None:
            await self._documents.aclose()

    async def _ask(self, method: str, path: str, document: Any) -> Any:
        try:
            authorization, authority = await self._reader.read(self._read)
            documents = await self._open(authority)
        except (OSError, ValueError) as error:
            raise Unverifiable(f"this pod's own credentials: {_words(error)}") from None
        status, answer = await documents.ask(
            method, self._url + path, authorization=authorization, document=document
        )
        match status:
            case 401:
                raise Unverifiable(f"{SERVER} does not accept this pod's own token")
            case 403:
                raise Unverifiable(
                    f"{SERVER} does not let this pod's account {method} {path} "
                    "(ClusterRole system:auth-delegator grants the reviews)"
                )
            case _ if not 200 <= status < 300:
                raise Unverifiable(f"{SERVER} answers {method} {path} with HTTP {status}")
        return answer

    def _read(self) -> tuple[str, Version]:
        """The Authorization header, and what tells one authority's file from the next."""
        token = (self._folder / "token").read_text(encoding="ascii").strip()
        if not token or not token.isprintable():
            raise ValueError("the token is none")
        return f"Bearer {token}", version((self._folder / "ca.crt").stat())

    async def _open(self, authority: Version) -> Documents:
        async with self._opening:
            if self._documents is None or authority != self._trusted:
                tls = await self._reader.read(partial(_tls, self._folder / "ca.crt"))
                former, self._documents = self._documents, Documents(SERVER, tls, proxies=False)
                self._trusted = authority
                if former is not None:
                    await former.aclose()
            return self._documents


def _tls(authority: Path) -> ssl.SSLContext:
    tls = ssl.create_default_context(cafile=authority)
    # Python 3.13 turned it on; clusters' own CAs often lack what it wants.
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return tls


def _words(error: Exception) -> str:
    """Why a file cannot be used, without what is in it."""
    if isinstance(error, ssl.SSLError):
        return "ca.crt holds no certificate"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return "the token is none"

"""What a Kubernetes API server is reached and convinced with: a kubeconfig's, or a pod's own.

Credentials of every kind (tokens, certificates, programs that make either) are the client
library's business; here is what it leaves undone: clear errors without secrets, and bounds.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

__all__ = ["LOAD_SECONDS", "Credentials", "CredentialsError", "in_cluster", "load"]

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where Kubernetes mounts a pod's credentials."""

LOAD_SECONDS = 30.0
"""For credentials: a kubeconfig may start a program that asks a cloud for them."""

_loading = threading.Lock()
"""The library keeps embedded certificates in files that it shares between loads, and names a file
to the next load before it has written it."""


class CredentialsError(Exception):
    """There are no usable credentials. The message says why, and holds none of them."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What every request needs: where the server is and what to show it."""

    host: str
    """Scheme, address, and the path before `/api` where there is one."""
    tls: ssl.SSLContext
    server_name: str | None
    """The name its certificate is checked for, if not the host's."""
    proxy: str | None
    authorization: str | None
    """Value of the `Authorization` header."""
    namespace: str

    def __repr__(self) -> str:
        return f"Credentials({self.host!r})"  # the default would show the token


def in_cluster() -> bool:
    """Whether this process runs in a pod that has been given credentials."""
    token = os.path.join(SERVICE_ACCOUNT, "token")
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and os.path.isfile(token)


def load(kubeconfig: str = "", context: str = "") -> Credentials:
    """Read the credentials. Blocks, for `LOAD_SECONDS` at most.

    Args:
        kubeconfig: a path, or several as in `KUBECONFIG`. Empty for the pod's own credentials
            where there are some, else for `KUBECONFIG` or `~/.kube/config`.
        context: a context of the kubeconfig; empty for its current one.

    Raises:
        CredentialsError: there are none, or none that make sense.
    """
    own = not kubeconfig and not context and in_cluster()
    where = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    try:
        with _loading:
            return _of_pod() if own else _of_kubeconfig(where, context)
    except TimeoutError:
        raise CredentialsError(f"{where}: no credentials within {LOAD_SECONDS:g} s") from None
    # The boundary to the library, which raises what its parsers, ssl and the file system
    # raise on a kubeconfig that is not one.
    except Exception as error:
        # It names an entry by its whole content, tokens and keys included.
        words = str(error).partition("{")[0].rstrip("/ ") or type(error).__name__
        if isinstance(error, TypeError | AttributeError | LookupError):
            words = "this is no kubeconfig"  # of a shape that the library did not think of
        raise CredentialsError(words if own else f"{where}: {words}") from None


def _of_pod() -> Credentials:
    from kubernetes.aio import config
    from kubernetes.aio.client import Configuration

    found = Configuration()
    config.load_incluster_config(found, try_refresh_token=False)
    namespace = Path(SERVICE_ACCOUNT, "namespace").read_text(encoding="utf-8").strip()
    return _credentials(found, namespace)


def _of_kubeconfig(where: str, context: str) -> Credentials:
    from kubernetes.aio import config
    from kubernetes.aio.client import Configuration

    if not any(os.path.isfile(os.path.expanduser(p)) for p in where.split(os.pathsep) if p):
        raise FileNotFoundError("no such kubeconfig")
    found = Configuration()
    loading = config.load_kube_config(where, context or None, found, persist_config=False)
    loader = asyncio.run(asyncio.wait_for(loading, LOAD_SECONDS))
    # It logs why the program failed, and goes on as nobody.
    if "exec" in (getattr(loader, "_user", None) or ()) and not (found.api_key or found.cert_file):
        raise ValueError("the program that it names for credentials gave none")
    return _credentials(found, loader.current_context["context"].get("namespace"))


def _credentials(found: Any, namespace: str | None) -> Credentials:
    tls = ssl.create_default_context(cafile=found.ssl_ca_cert, cadata=found.ca_cert_data)
    # Python 3.13 turned it on; clusters' own CAs often lack what it wants, and kubectl does
    # without.
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if found.cert_file:
        tls.load_cert_chain(found.cert_file, keyfile=found.key_file)
    if not found.verify_ssl:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    authorization = (found.api_key.get("BearerToken") or "").strip()
    if not authorization.isprintable():
        raise ValueError("the token holds what no HTTP header may")
    return Credentials(
        host=found.host,
        tls=tls,
        server_name=found.tls_server_name,
        proxy=found.proxy or _environment_proxy(found.host),
        authorization=authorization or None,
        namespace=namespace or "default",
    )


def _environment_proxy(url: str) -> str | None:
    """The proxy that `HTTPS_PROXY` and its like name for a URL; kubectl heeds them too.

    aiohttp would look itself, but with them takes passwords from `~/.netrc`.
    """
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)

"""What a Kubernetes API server is reached and convinced with: a kubeconfig's, or a pod's own.

Credentials of every kind (tokens, certificates, programs that make either) are the client
library's business; here is what it leaves undone: clear errors without secrets, and bounds.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import ssl
import subprocess
import threading
from collections.abc import Mapping
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
    """Read the credentials. Blocks, for `LOAD_SECONDS` at most, once it is its turn.

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
    from kubernetes.aio.client import Configuration
    from kubernetes.aio.config import kube_config
    from kubernetes.aio.config.kube_config import FileOrData, KubeConfigLoader, KubeConfigMerger

    class Loader(KubeConfigLoader):
        """Starts programs itself: the library's way logs a user's whole entry when one fails,
        goes on as nobody, lets it read our standard input, and never ends one that hangs."""

        async def load_from_exec_plugin(self) -> bool:
            user: Any = self._user
            status = _ask_program(user["exec"].value)
            if "token" in status:
                self.token = f"Bearer {status['token']}"
            else:
                for name, key in (("cert_file", "Certificate"), ("key_file", "Key")):
                    part = f"client{key}Data"
                    file = FileOrData(status, None, part, base64_file_content=False).as_file()
                    setattr(self, name, file)
            return True

    if not any(os.path.isfile(os.path.expanduser(p)) for p in where.split(os.pathsep) if p):
        raise FileNotFoundError("no such kubeconfig")
    found = Configuration()
    make: Any = Loader  # which the library leaves without types
    loader = make(
        KubeConfigMerger(where).config,
        active_context=context or None,
        config_base_path=None,  # of each file its own folder
    )
    user = getattr(loader._user, "value", None) or {}
    if any(key in user for key in ("as", "as-uid", "as-groups", "as-user-extra")):
        raise ValueError("it impersonates another user, which is not supported here")
    try:
        asyncio.run(asyncio.wait_for(loader.load_and_set(found), LOAD_SECONDS))
        return _credentials(found, loader.current_context["context"].get("namespace"))
    finally:
        # Embedded keys, which the library keeps in files until the process exits, and would miss
        # at the next load if somebody tidied them away.
        kube_config._cleanup_temp_files()


def _ask_program(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the program of a kubeconfig's `exec` section gives: `status` of an ExecCredential.

    Raises:
        ValueError: it gives none. The text holds nothing that the program has said.
        TimeoutError: it takes longer than `LOAD_SECONDS`; it is ended.
    """
    info = {
        "apiVersion": section["apiVersion"],
        "kind": "ExecCredential",
        "spec": {"interactive": False},
    }
    own = {entry["name"]: entry["value"] for entry in section.get("env") or ()}
    started = subprocess.Popen(
        [section["command"], *(section.get("args") or ())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it may say there what must not be logged
        env={**os.environ, **own, "KUBERNETES_EXEC_INFO": json.dumps(info)},
        start_new_session=True,
    )
    with started:
        try:
            said, _ = started.communicate(timeout=LOAD_SECONDS)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        finally:
            _end(started)
    if started.returncode != 0:
        raise ValueError(
            f"the program for credentials failed with exit status {started.returncode}"
        )
    try:
        status = json.loads(said)["status"]
        if "token" in status or {"clientCertificateData", "clientKeyData"} <= status.keys():
            return dict(status)
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    raise ValueError("the program for credentials gave none")


def _end(program: subprocess.Popen[bytes]) -> None:
    """Kill the program with all it started, if it is still there."""
    if program.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(program.pid, signal.SIGKILL)
    else:
        program.kill()


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
        proxy=_proxy(found.proxy) if found.proxy else _environment_proxy(found.host),
        authorization=authorization or None,
        namespace=namespace or "default",
    )


def _environment_proxy(url: str) -> str | None:
    """The proxy that `HTTPS_PROXY` and its like name for a URL, as kubectl heeds them: never for
    a loopback address, nor for a network that `NO_PROXY` names.

    aiohttp would look itself, but with them takes passwords from `~/.netrc`.

    Raises:
        ValueError: the proxy is of a kind that is not spoken here. The text holds no password.
    """
    parts = urlsplit(url)
    host, proxies = parts.hostname or "", getproxies()
    proxy = proxies.get(parts.scheme)
    if not proxy or host == "localhost" or proxy_bypass(host):
        return None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        if address.is_loopback or any(
            address in network for network in _networks(proxies.get("no", ""))
        ):
            return None
    return _proxy(proxy)


def _networks(no_proxy: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    found = []
    for entry in no_proxy.split(","):
        try:
            found.append(ipaddress.ip_network(entry.strip()))
        except ValueError:
            pass  # a name, which has been looked at
    return found


def _proxy(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    if not separator:
        return f"http://{url}"
    if scheme not in ("http", "https"):
        raise ValueError(f"a proxy is spoken to over http or https here, not over {scheme}")
    return url

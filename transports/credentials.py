"""What a Kubernetes API server is reached and convinced with: a kubeconfig's, or a pod's own.

Credentials of every kind (tokens, certificates, programs that make either) are the client
library's business; here is what it leaves undone: clear errors without secrets, and bounds.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import shlex
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import (  # type: ignore[attr-defined]
    getproxies_environment,
    proxy_bypass_environment,
)

from transports.program import ProgramFailed, ask

if TYPE_CHECKING:
    from kubernetes.aio.config.kube_config import KubeConfigMerger

__all__ = [
    "LOAD_SECONDS",
    "Credentials",
    "CredentialsError",
    "contexts",
    "in_cluster",
    "load",
    "renewal",
]

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where Kubernetes mounts a pod's credentials."""

LOAD_SECONDS = 30.0
"""For what the library does: old kubeconfigs have it ask a cloud."""

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


def contexts(kubeconfig: str = "") -> tuple[str, ...]:
    """The names of a kubeconfig's contexts. Blocks.

    Args:
        kubeconfig: as for `load`.

    Raises:
        CredentialsError: it cannot be read.
    """
    where = _place(kubeconfig)
    try:
        return _names(_merged(where))
    # The boundary to the library, as in `load`.
    except Exception as error:
        raise CredentialsError(f"{where}: {_words(error)}") from None


def load(kubeconfig: str = "", context: str = "") -> Credentials:
    """Read the credentials. Blocks, for as long as a program for credentials may take and
    `LOAD_SECONDS`, once it is its turn.

    Args:
        kubeconfig: a path, or several as in `KUBECONFIG`. Empty for the pod's own credentials
            where there are some, else for `KUBECONFIG` or `~/.kube/config`.
        context: a context of the kubeconfig; empty for its current one.

    Raises:
        CredentialsError: there are none, or none that make sense.
    """
    own = not kubeconfig and not context and in_cluster()
    where = _place(kubeconfig)
    try:
        return _of_pod() if own else _of_kubeconfig(kubeconfig, context)
    except ProgramFailed as error:
        raise CredentialsError(str(error)) from None
    except TimeoutError:
        raise CredentialsError(f"{where}: no credentials within {LOAD_SECONDS:g} s") from None
    # The boundary to the library, which raises what its parsers, ssl and the file system
    # raise on a kubeconfig that is not one.
    except Exception as error:
        raise CredentialsError(_words(error) if own else f"{where}: {_words(error)}") from None


def renewal(kubeconfig: str = "", context: str = "") -> str:
    """The command that shows a person at a terminal what is wrong with credentials of a kubeconfig,
    and lets them log in."""
    flags = ["--kubeconfig", kubeconfig] if kubeconfig else []
    flags += ["--context", context] if context else []
    return shlex.join(["kubectl", *flags, "version"])


def _words(error: Exception) -> str:
    if isinstance(error, TypeError | AttributeError | LookupError):
        return "this is no kubeconfig"  # of a shape that the library did not think of
    # It names an entry by its whole content, tokens and keys included.
    return str(error).partition("{")[0].rstrip("/ ") or type(error).__name__


def _place(kubeconfig: str) -> str:
    return kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"


def _of_pod() -> Credentials:
    from kubernetes.aio import config
    from kubernetes.aio.client import Configuration

    found = Configuration()
    config.load_incluster_config(found, try_refresh_token=False)
    namespace = Path(SERVICE_ACCOUNT, "namespace").read_text(encoding="utf-8").strip()
    return _credentials(found, namespace)


def _merged(where: str) -> KubeConfigMerger:
    from kubernetes.aio.config.kube_config import KubeConfigMerger

    if not any(os.path.isfile(os.path.expanduser(p)) for p in where.split(os.pathsep) if p):
        raise FileNotFoundError("no such kubeconfig")
    return KubeConfigMerger(where)


def _names(merger: KubeConfigMerger) -> tuple[str, ...]:
    return tuple(sorted(str(entry["name"]) for entry in merger.config["contexts"].value))


def _chosen(merger: KubeConfigMerger, context: str) -> str:
    """The context's name. Of several files, the first that names a current one counts.

    Raises:
        ValueError: there is no such context, or none is the current one.
    """
    currents = (file.get("current-context") for file in merger.config_files.values() if file)
    chosen = context or next((str(each) for each in currents if each), "")
    names = _names(merger)
    if chosen in names:
        return chosen
    what = f"there is no context {chosen!r}" if chosen else "it has no current context"
    raise ValueError(f"{what}; there are: {', '.join(names) or 'none'}")


def _of_kubeconfig(kubeconfig: str, context: str) -> Credentials:
    from kubernetes.aio.client import Configuration
    from kubernetes.aio.config import kube_config

    class Loader(kube_config.KubeConfigLoader):
        """Takes what a program has given from us instead of starting it."""

        status: Mapping[str, Any]

        async def load_from_exec_plugin(self) -> bool:
            if "token" in self.status:
                self.token = f"Bearer {self.status['token']}"
            else:
                for name, key in (("cert_file", "Certificate"), ("key_file", "Key")):
                    part = f"client{key}Data"
                    data = kube_config.FileOrData(
                        self.status, None, part, base64_file_content=False
                    )
                    setattr(self, name, data.as_file())
            return True

    merger = _merged(_place(kubeconfig))
    chosen = _chosen(merger, context)
    make: Any = Loader  # which the library leaves without types
    loader = make(
        merger.config,
        active_context=chosen,
        config_base_path=None,  # of each file its own folder
    )
    user = getattr(loader._user, "value", None) or {}
    if any(key in user for key in ("as", "as-uid", "as-groups", "as-user-extra")):
        raise ValueError("it impersonates another user, which is not supported here")
    if "exec" in user:
        # Before it is this load's turn: one that waits for a login holds up its own context alone.
        folder = os.path.dirname(os.path.abspath(loader._user.path))
        try:
            loader.status = ask(user["exec"], folder, loader._cluster.value)
        except ProgramFailed as error:
            raise ProgramFailed(
                f"{error} (context {chosen}); run `{renewal(kubeconfig, chosen)}` in a terminal, "
                "which shows what it says and lets you log in"
            ) from None
    found = Configuration()
    with _loading:
        try:
            asyncio.run(asyncio.wait_for(loader.load_and_set(found), LOAD_SECONDS))
            return _credentials(found, loader.current_context["context"].get("namespace"))
        finally:
            # Embedded keys, which the library keeps in files until the process exits, and would
            # miss at the next load if somebody tidied them away.
            kube_config._cleanup_temp_files()


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

    aiohttp would look itself, but with them takes passwords from `~/.netrc`. What macOS and Windows
    have set for everybody does not count for kubectl either.

    Raises:
        ValueError: the proxy is of a kind that is not spoken here. The text holds no password.
    """
    parts = urlsplit(url)
    host, proxies = parts.hostname or "", getproxies_environment()
    proxy = proxies.get(parts.scheme)
    if not proxy or host == "localhost" or proxy_bypass_environment(host):
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

"""Kubernetes, etcd, CoreDNS, Helm and kube-router built from their Go modules, pretended GPUs for
kubelets beside them, and what Debian has ready.

The build is kept outside the checkout, under a name made of the version and of everything
that went into it, so that checkouts share it and a changed go.mod builds anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Unavailable", "binaries", "cache", "cached", "missing", "packages"]

SOURCES = Path(__file__).parent / "build"

COMPONENTS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
"""The names under which the one Kubernetes program is started."""

PROGRAMS = {
    ".": "kubernetes",
    "./coredns": "coredns",
    "./gpus": "gpus",
    "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router": "kube-router",
    "go.etcd.io/etcd/server/v3": "etcd",
    "helm.sh/helm/v4/cmd/helm": "helm",
}
"""Go package to program."""

PACKAGES = {
    "buildah": "buildah",
    "busybox": "busybox-static",
    "conntrack": "conntrack",
    "containerd": "containerd",
    "ip": "iproute2",
    "ipset": "ipset",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
"""Program to the Debian package that has it."""

BUILD_SECONDS = 3600
"""Bound on a build from nothing: 10 minutes on two idle cores, and they are seldom idle."""

INSTALL_SECONDS = 600
"""Bound on `apt-get`."""

GO = (1, 26)
"""The oldest Go that go.mod accepts."""


class Unavailable(Exception):
    """This machine cannot run the cluster. The message says what is missing."""


def cache() -> Path:
    """Where what is costly to make is kept between runs."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "mcp-gpu-tests"


def missing() -> str | None:
    """Why this machine cannot run the cluster; None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the cluster needs Linux and root"
    if not _path(_key()).exists():
        found = _go_version()
        if found is None:
            return "the cluster is built with Go, and no `go` is on the PATH"
        if found < GO:
            return f"the cluster needs Go {GO[0]}.{GO[1]} or later to be built"
    absent = _absent()
    if absent and shutil.which("apt-get") is None:
        return f"the cluster needs {', '.join(absent)}, and there is no apt-get to install them"
    return None


def packages() -> None:
    """Install what is missing of the Debian packages.

    Raises:
        Unavailable: they could not be installed.
    """
    absent = _absent()
    if not absent:
        return
    wanted = sorted({PACKAGES[program] for program in absent})
    print(f"installing {' '.join(wanted)}", file=sys.stderr)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *wanted]
    with _locked(cache() / "packages.lock"):
        for command in (["apt-get", "update", "-qq"], install):
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=INSTALL_SECONDS,
            )
            if done.returncode != 0:
                raise Unavailable(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
    if absent := _absent():
        raise Unavailable(f"still missing after apt-get install: {', '.join(absent)}")


def binaries() -> Path:
    """The folder with all programs, built if it is not there yet.

    Raises:
        Unavailable: there is no fitting Go, or the build failed.
    """
    path = _path(_key())
    with cached(path) as folder:
        if folder is not None:
            _build(folder)
    return path


@contextmanager
def cached(path: Path) -> Iterator[Path | None]:
    """Something costly that one process makes while others wait: None if it is there, else a
    fresh path to make it at (a file or a folder), which becomes `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f"{path.name}.lock")):
        if path.exists():
            yield None
            return
        prefix = f"unfinished-{path.name}-"
        for abandoned in path.parent.glob(f"{prefix}*"):
            shutil.rmtree(abandoned)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix) as temporary:
            made = Path(temporary) / path.name
            yield made
            made.rename(path)


def versions() -> dict[str, str]:
    """Module to version, from go.mod."""
    text = (SOURCES / "go.mod").read_text(encoding="utf-8")
    return dict(re.findall(r"^(?:\t|require )(\S+) (v\S+)(?: // indirect)?$", text, re.MULTILINE))


def _build(folder: Path) -> None:
    print(f"building {folder.name}, etcd, CoreDNS, Helm and kube-router: minutes", file=sys.stderr)
    made = folder.with_name("made")
    made.mkdir()
    _go_build(made)
    # Go names a program after the last word of its package.
    names = {".": "cluster", "go.etcd.io/etcd/server/v3": "server"}
    folder.mkdir()
    for package, program in PROGRAMS.items():
        (made / names.get(package, package.rpartition("/")[2])).rename(folder / program)
    for component in COMPONENTS:
        (folder / component).symlink_to("kubernetes")


def _go_build(folder: Path) -> None:
    if shutil.which("go") is None:
        raise Unavailable("no `go` on the PATH: install Go 1.26 or later")
    try:
        # Without cgo they are static, so that CoreDNS needs nothing else in its image.
        subprocess.run(
            ["nice", "go", "build", *_flags(), "-o", f"{folder}/", *PROGRAMS],
            cwd=SOURCES,
            env=os.environ | {"CGO_ENABLED": "0"},
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=BUILD_SECONDS,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the build of {' '.join(PROGRAMS)} failed: {error}") from error


def _flags() -> list[str]:
    """Of `go build`. Without its version the API server cannot tell what it may serve."""
    version = versions()["k8s.io/kubernetes"]
    major, minor = version.removeprefix("v").split(".")[:2]
    stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    stamps |= {"gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z"}
    linked = [
        f"-X k8s.io/{package}.{name}={value}"
        for package in ("component-base/version", "client-go/pkg/version")
        for name, value in stamps.items()
    ]
    linked.append(f"-X helm.sh/helm/v4/internal/version.version={versions()['helm.sh/helm/v4']}")
    flags = ["-trimpath", "-buildvcs=false", "-mod=readonly"]
    return [*flags, "-ldflags", f"-s -w {' '.join(linked)}"]


def _key() -> str:
    digest = hashlib.sha256("\0".join([*_flags(), *PROGRAMS]).encode())
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in {".go", ".mod", ".sum"}:
            digest.update(f"{path.relative_to(SOURCES)}\0".encode() + path.read_bytes() + b"\0")
    return f"kubernetes-{versions()['k8s.io/kubernetes']}-{digest.hexdigest()[:12]}"


def _path(key: str) -> Path:
    return cache() / key


def _absent() -> list[str]:
    return [program for program in PACKAGES if shutil.which(program) is None]


def _go_version() -> tuple[int, ...] | None:
    if shutil.which("go") is None:
        return None
    said = subprocess.run(
        ["go", "env", "GOVERSION"], cwd="/", capture_output=True, text=True, timeout=60
    ).stdout
    found = re.match(r"go(\d+)\.(\d+)", said)
    return tuple(int(part) for part in found.groups()) if found else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""Images without a registry: small ones put together here, the project's own by its Dockerfile.

Each is an archive that containerd imports, kept in the cache under the name of what went into it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.binaries import cache, cached, packages
from cluster.process import run

__all__ = [
    "ARGUMENTS",
    "Image",
    "base_image",
    "build_image",
    "busybox_image",
    "coredns_image",
    "pause_image",
    "runtime_image",
]

BASE_PACKAGES = ("ca-certificates", "python3", "python3-venv")

RUNTIME_KEEPS = (
    *("bin", "sbin", "lib*", "dev", "proc", "run", "sys", "tmp", "etc/*"),
    *("usr/bin/python3*", "usr/lib/python3*", "usr/lib/*-linux-gnu/l[di]*"),
    *("usr/lib/os-release", "usr/lib/ssl*", "usr/lib64*", "usr/sbin"),
    *("usr/share/ca-certificates*", "usr/share/doc/*/copyright", "usr/share/zoneinfo*"),
    "usr/bin/true",  # what starting it costs says what starting anything in a pod does
)
"""What is left of `base_image` to run on: no shell, and no other program but Python."""

EPOCH = 315532800
"""The time that built images have, as the Dockerfile's own default."""

ARGUMENTS = {
    "PYTHON": "/usr/bin/python3",
    "REVISION": "0" * 40,
    "SOURCE": "https://example.com/mcp-gpu",
}
"""What a build here is told beside its bases."""

BASE_SECONDS = 600
"""Bound for mmdebstrap: 20 s where the mirror is near."""

BUILD_SECONDS = 1200
"""Bound for buildah: a minute or two, most of it pip's."""

KEPT = 4
"""Older builds of an image that stay in the cache, 200 MB each."""


@dataclass(frozen=True)
class Image:
    """`name` is what a pod asks for; `archive` is the file to import."""

    name: str
    archive: Path


def pause_image() -> Image:
    """What holds the namespaces of a pod."""
    return _busybox("localhost/pause:1", ["/bin/busybox", "tail", "-f", "/dev/null"])


def busybox_image() -> Image:
    """A shell with wget, nc, nslookup, httpd and the like."""
    return _busybox("localhost/busybox:1", ["/bin/sh"])


def coredns_image(binaries: Path) -> Image:
    name = "localhost/coredns:1"
    archive = cache() / f"image-coredns-{binaries.name}.tar"
    with cached(archive) as path:
        if path is not None:
            _write(path, name, {"coredns": binaries / "coredns"}, [], ["/coredns"])
    return Image(name, archive)


def base_image() -> Path:
    """The root file system of Debian with Python, as a tar file."""
    packages()
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    suite = release["VERSION_CODENAME"].strip('"')
    archive = cache() / f"base-{suite}-{_short('.'.join(BASE_PACKAGES).encode())}.tar"
    with cached(archive) as path:
        if path is not None:
            print(f"making a base image of Debian {suite}", file=sys.stderr)
            included = f"--include={','.join(BASE_PACKAGES)}"
            command = ["mmdebstrap", "--quiet", "--variant=minbase", included, suite, str(path)]
            run("unshare", "--mount", *command, timeout=BASE_SECONDS)
    return archive


def runtime_image() -> Path:
    """A root file system with Python and without a shell, as a tar file."""
    base = base_image()
    archive = cache() / f"runtime-{base.stem}-{_short(''.join(RUNTIME_KEEPS).encode())}.tar"
    with cached(archive) as path:
        if path is not None:
            with tarfile.open(base) as whole, tarfile.open(path, "w") as left:
                for member in whole:
                    name = member.name.removeprefix("./")
                    if any(fnmatch.fnmatch(name, pattern) for pattern in RUNTIME_KEEPS):
                        left.addfile(member, whole.extractfile(member) if member.isreg() else None)
    return archive


def build_image(folder: Path, name: str = "localhost/mcp-gpu") -> Image:
    """What the folder's Dockerfile makes, with `base_image`, on `runtime_image`. Its tag is made of
    all that goes into it.

    Raises:
        CommandError: the build failed.
    """
    base, runtime = base_image(), runtime_image()
    digest = hashlib.sha256(f"{base.name}\0{runtime.name}\0{ARGUMENTS}\0{EPOCH}".encode())
    for source in [folder / "Dockerfile", *sent_to_builder(folder)]:
        digest.update(f"{source.relative_to(folder)}\0".encode() + source.read_bytes() + b"\0")
    tag = digest.hexdigest()[:12]
    archive = cache() / f"image-{name.rpartition('/')[2]}-{tag}.tar"
    with cached(archive) as path:
        if path is not None:
            print(f"building {name}:{tag}", file=sys.stderr)
            for old in _newest_first(f"image-{name.rpartition('/')[2]}-*.tar")[KEPT:]:
                old.unlink()
            _build(folder, {"base": base, "runtime": runtime}, f"{name}:{tag}", path)
    return Image(f"{name}:{tag}", archive)


def sent_to_builder(folder: Path) -> list[Path]:
    """The files that .dockerignore lets into a build. Its last pattern that fits decides."""
    patterns = (folder / ".dockerignore").read_text().split()

    def ignored(path: Path) -> bool:
        relative = path.relative_to(folder)
        names = [str(relative), *(str(parent) for parent in relative.parents)]
        verdict = False
        for pattern in patterns:
            wanted = pattern.lstrip("!").strip("/")
            # `**/x` is x in any folder; fnmatch's * crosses folders already.
            forms = [wanted, wanted.removeprefix("**/")]
            if any(fnmatch.fnmatch(name, form) for name in names for form in forms):
                verdict = not pattern.startswith("!")
        return verdict

    return sorted(p for p in folder.rglob("*") if p.is_file() and not ignored(p))


def _newest_first(pattern: str) -> list[Path]:
    return sorted(cache().glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)


def _build(folder: Path, bases: Mapping[str, Path], name: str, archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix="buildah-") as temporary:
        place = Path(temporary)
        storage = ["--storage-driver=vfs", f"--root={place}/root", f"--runroot={place}/run"]

        def buildah(verb: str, *argv: str) -> str:
            # In a mount namespace of its own, so that no mount of a failed build stays.
            command = ["unshare", "--mount", "nice", "buildah", *storage, verb, *argv]
            return run(*command, timeout=BUILD_SECONDS)

        arguments = dict(ARGUMENTS)
        for base, root in bases.items():
            container = buildah("from", "scratch").strip()
            buildah("add", "--quiet", container, str(root), "/")
            made = f"localhost/{base}:1"
            buildah("commit", "--quiet", f"--timestamp={EPOCH}", container, made)
            buildah("rm", container)
            arguments[base.upper()] = made
        digest = ["inspect", "--type=image", "--format={{.FromImageDigest}}"]
        arguments["RUNTIME_DIGEST"] = buildah(*digest, arguments["RUNTIME"]).strip()
        flags = ["--isolation=chroot", "--pull=never", f"--timestamp={EPOCH}"]
        flags += [f"--build-arg={key}={value}" for key, value in arguments.items()]
        flags += [f"--volume={volume}:ro" for volume in _pip_configuration(place)]
        buildah("build", *flags, f"--tag={name}", str(folder))
        buildah("push", "--quiet", name, f"docker-archive:{archive}:{name}")


def _pip_configuration(folder: Path) -> Sequence[str]:
    """Volumes with which pip in the build uses the package index that pip uses here."""
    lines = ["[global]"]
    volumes = [f"{folder}/pip.conf:/etc/pip.conf"]
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        setting, _, quoted = line.partition("=")
        value = quoted.strip("'\"")
        lines.append(f"{setting.rpartition('.')[2]} = {value}")
        if value.startswith("/") and Path(value).exists():
            volumes.append(f"{value}:{value}")
    (folder / "pip.conf").write_text("\n".join(dict.fromkeys(lines)) + "\n")
    return list(dict.fromkeys(volumes))


def _busybox(name: str, entrypoint: Sequence[str]) -> Image:
    found = shutil.which("busybox")
    assert found is not None
    binary = Path(found)
    short = _short(binary.read_bytes() + json.dumps([name, entrypoint]).encode())
    archive = cache() / f"image-{name.rpartition('/')[2].replace(':', '-')}-{short}.tar"
    with cached(archive) as path:
        if path is not None:
            applets = [word for word in run(found, "--list").split() if word != "busybox"]
            _write(path, name, {"bin/busybox": binary}, applets, entrypoint)
    return Image(name, archive)


def _write(
    archive: Path,
    name: str,
    files: Mapping[str, Path],
    applets: Sequence[str],
    entrypoint: Sequence[str],
) -> None:
    """An OCI archive of one layer; `applets` are links to /bin/busybox."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for folder in ("tmp", "etc", "bin"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        for target, source in files.items():
            entry = tarfile.TarInfo(target)
            entry.size, entry.mode = source.stat().st_size, 0o755
            with source.open("rb") as binary:
                tar.addfile(entry, binary)
        for applet in applets:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    blobs: dict[str, bytes] = {}

    def blob(kind: str, content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        media = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)}

    content = blob("layer.v1.tar", layer.getvalue())
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [content["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", json.dumps(config).encode()),
        "layers": [content],
    }
    described = blob("manifest.v1+json", json.dumps(manifest).encode())
    described["annotations"] = {"io.containerd.image.name": name}
    index = {"schemaVersion": 2, "manifests": [described]}
    members = {f"blobs/sha256/{digest}": content for digest, content in blobs.items()}
    members["index.json"] = json.dumps(index).encode()
    members["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    with tarfile.open(archive, "w") as tar:
        for path, data in members.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]

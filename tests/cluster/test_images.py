"""The project's own Dockerfile, run here without a registry, and what it makes, run on a node."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from cluster.cluster import Cluster
from cluster.contents import Contents, contents
from cluster.images import ARGUMENTS, Image, build_image, sent_to_builder
from cluster.successor import ARGUMENT, FIELD, VERSION, successor
from mcp_gpu import __version__

ROOT = Path(__file__).parents[2]

UNPACKED_MB = 95
GZIPPED_MB = 30
"""Limits on what the image holds beyond its base. docs/image.md has what it is."""

SBOM = "opt/mcp-gpu/sbom.cdx.json"

SHELLS = {"ash", "bash", "busybox", "csh", "dash", "ksh", "sh", "zsh"}

IMPORTS = """
import importlib, pkgutil, sys
import mcp_gpu, transports
from kubernetes.aio import config
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import kube_config
for package in (mcp_gpu, transports):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print("all imported, safe path", sys.flags.safe_path)
"""


@pytest.fixture(scope="module")
def built(own_cluster: Cluster) -> Image:
    image = build_image(ROOT)
    own_cluster.load_image(image)
    return image


@pytest.fixture(scope="module")
def found(built: Image) -> Contents:
    return contents(built.archive)


@contextmanager
def ran(cluster: Cluster, image: Image, node: str, **container: Any) -> Iterator[str]:
    """What a pod logged that has ended well, under the `restricted` standard and on a file system
    that it cannot write to. Kubernetes itself refuses an image whose user may be root."""
    name = f"image-on-{node}"
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container |= {"name": "image", "image": image.name, "securityContext": security}
    spec = {
        "containers": [container | {"imagePullPolicy": "Never"}],
        "nodeName": node,
        "restartPolicy": "Never",
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    cluster.kubectl("-n", "default", "apply", "-f", "-", stdin=json.dumps(pod))
    try:
        done = ["wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded"]
        cluster.kubectl("-n", "default", *done, "--timeout=60s", timeout=70)
        yield cluster.kubectl("-n", "default", "logs", name)
    finally:
        cluster.kubectl("-n", "default", "delete", "pod", name, "--grace-period=0")


def test_the_dockerfile_makes_an_image_that_every_node_runs(
    own_cluster: Cluster, built: Image
) -> None:
    for node in own_cluster.nodes:
        with ran(own_cluster, built, node, args=["--version"]) as said:
            assert said == f"mcp-gpu {__version__}\n"


def test_all_of_the_program_imports_in_the_image(own_cluster: Cluster, built: Image) -> None:
    with ran(own_cluster, built, "n1", command=["python", "-c", IMPORTS]) as said:
        assert said == "all imported, safe path True\n"


def test_the_version_after_it_is_another_image(own_cluster: Cluster, built: Image) -> None:
    after = successor(built)
    assert after.name != built.name
    own_cluster.load_image(after)
    with ran(own_cluster, after, "n1", args=["--version"]) as said:
        assert said == f"mcp-gpu {VERSION}\n"
    fields = (
        "from mcp_gpu.tools.inventory import AgentArguments, NodeInventory\n"
        "print(*AgentArguments.model_fields, *NodeInventory.model_fields)"
    )
    with ran(own_cluster, after, "n1", command=["python", "-c", fields]) as said:
        assert {ARGUMENT, FIELD} <= set(said.split())


def test_it_starts_as_nobody_and_from_no_shell(found: Contents) -> None:
    assert found.config["User"] == "65532:65532"
    assert found.config["Entrypoint"] == ["mcp-gpu"]
    assert "PYTHONSAFEPATH=1" in found.config["Env"]
    paths = [PurePosixPath(path) for layer in found.layers for path in (*layer.files, *layer.links)]
    assert {path.name for path in paths}.isdisjoint(SHELLS)
    # What starts is a script, so the kernel has to find its Python by itself.
    program = next(data for path, data in found.own.files.items() if path.endswith("bin/mcp-gpu"))
    assert program.startswith(b"#!/opt/mcp-gpu/bin/python")


def test_its_labels_say_what_it_is_and_what_it_was_made_of(found: Contents) -> None:
    labels = found.config["Labels"]
    prefix = "org.opencontainers.image"
    said = {k.removeprefix(f"{prefix}."): v for k, v in labels.items() if k.startswith(prefix)}
    digest = said.pop("base.digest")
    assert re.fullmatch("sha256:[0-9a-f]{64}", digest)
    assert said.pop("description")
    assert said == {
        "base.name": "localhost/runtime:1",
        "created": "1980-01-01T00:00:00Z",
        "licenses": "Apache-2.0",
        "revision": ARGUMENTS["REVISION"],
        "source": ARGUMENTS["SOURCE"],
        "title": "mcp-gpu",
        "version": __version__,
    }
    assert labels["io.modelcontextprotocol.server.name"].endswith("/mcp-gpu")


def test_it_is_as_small_as_is_said(found: Contents) -> None:
    assert found.own.unpacked <= UNPACKED_MB * 1_000_000
    assert found.own.compressed <= GZIPPED_MB * 1_000_000


def test_its_files_are_those_of_its_packages_and_unchanged(found: Contents) -> None:
    files = {f"/{path}": data for path, data in found.own.files.items()}
    records = [path for path in files if path.endswith(".dist-info/RECORD")]
    listed = set()
    for record in records:
        packages = Path(record).parents[1]
        for name, digest, _ in csv.reader(files[record].decode().splitlines()):
            path = str((packages / name).resolve())
            listed.add(path)
            if digest:
                kind, _, expected = digest.partition("=")
                actual = base64.urlsafe_b64encode(hashlib.new(kind, files[path]).digest())
                assert actual.rstrip(b"=").decode() == expected, path
    unlisted = {path for path in files.keys() - listed if not path.endswith(".pyc")}
    assert unlisted == {f"/{SBOM}", "/opt/mcp-gpu/pyvenv.cfg"}
    # Each module's bytecode is there, since none could be written at run time, and none of it has
    # the time of the build in it (PEP 552: flags of 1).
    bytecode = [data for path, data in files.items() if path.endswith(".pyc")]
    assert len(bytecode) == sum(path.endswith(".py") for path in files)
    assert {data[4:8] for data in bytecode} == {b"\x01\0\0\0"}


def test_licences_ship_with_what_they_are_of(found: Contents) -> None:
    licences = [path for path in found.own.files if "/licenses/" in path or "LICENSE" in path]
    with_one = {path.partition(".dist-info/")[0] for path in licences}
    ours = next(path for path in with_one if path.endswith(f"/mcp_gpu-{__version__}"))
    assert (ROOT / "LICENSE").read_bytes() in [
        data for path, data in found.own.files.items() if path.startswith(f"{ours}.dist-info/")
    ]


def test_its_bill_of_materials_is_valid_and_names_what_is_installed(found: Contents) -> None:
    text = found.own.files[SBOM].decode()
    bill = json.loads(text)
    version = SchemaVersion.from_version(bill["specVersion"])
    assert JsonStrictValidator(version).validate_str(text) is None
    installed = dict(
        _identity(data)
        for path, data in found.own.files.items()
        if path.endswith(".dist-info/METADATA")
    )
    assert installed.pop("mcp-gpu") == __version__
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == ("mcp-gpu", __version__)
    said = {_normal(each["name"]): each["version"] for each in bill["components"]}
    said.pop("mcp-gpu", None)
    assert said == installed
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", RUNTIME.read_text(), re.MULTILINE))
    assert said.items() <= pinned.items()
    unlicensed = {each["name"] for each in bill["components"] if not each.get("licenses")}
    assert not unlicensed


RUNTIME = ROOT / "requirements" / "runtime.txt"


def _identity(metadata: bytes) -> tuple[str, str]:
    fields = dict(re.findall(r"^(Name|Version): (.+)$", metadata.decode(), re.MULTILINE))
    return _normal(fields["Name"]), fields["Version"]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_a_build_sees_what_dockerignore_lets_in_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text("*\n!kept\n!README.md\n**/__pycache__\n")
    wanted = ["README.md", "kept/deep/module.py", "kept/module.py"]
    for name in [*wanted, "other.md", "kept/__pycache__/module.pyc", "other/kept.py"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert [str(p.relative_to(tmp_path)) for p in sent_to_builder(tmp_path)] == wanted

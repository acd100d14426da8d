"""The version after this one, for tests of upgrades: an image made of another in a second."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from cluster.binaries import cache, cached
from cluster.contents import contents, member
from cluster.images import Image
from mcp_gpu import __version__

__all__ = ["ARGUMENT", "FIELD", "VERSION", "successor"]

VERSION = "9.9.9"

ARGUMENT = "echo"
"""What `get_gpu_inventory` takes more, of agent and gateway; the gateway passes on what it got."""

FIELD = "echoed"
"""What a node's answer has more: what was given, or nothing."""

LISTINGS = ("mcp_gpu/tools/agent.json", "mcp_gpu/tools/gateway.json")
"""What is listed, by which peers go."""

EDITS: Mapping[str, Mapping[str, str]] = {
    "mcp_gpu/__init__.py": {f'"{__version__}"': f'"{VERSION}"'},
    "mcp_gpu/tools/inventory.py": {
        "class AgentArguments(Arguments):\n": (
            "class AgentArguments(Arguments):\n"
            f'    {ARGUMENT}: str = Field(default="", description="Comes back.")\n'
        ),
        "    age_seconds: float | None = Field(": (
            f'    {FIELD}: str = Field(default="", description="What was given.")\n'
            "    age_seconds: float | None = Field("
        ),
        "NodeInventory.of(node, snapshot, arguments.detail)": (
            "NodeInventory.of(node, snapshot, arguments.detail)"
            f'.model_copy(update={{"{FIELD}": arguments.{ARGUMENT}}})'
        ),
    },
    "mcp_gpu/tools/fleet_inventory.py": {
        "class GatewayArguments(FleetArguments):\n": (
            "class GatewayArguments(FleetArguments):\n"
            f'    {ARGUMENT}: str = Field(default="", description="Comes back.")\n'
        ),
        # An agent from before refuses what it does not know, so it is asked only what was asked.
        '{"detail": arguments.detail}': (
            '{"detail": arguments.detail} | '
            f'({{"{ARGUMENT}": arguments.{ARGUMENT}}} if arguments.{ARGUMENT} else {{}})'
        ),
    },
}
"""File to what stands in it once, and stands there instead."""


def successor(built: Image) -> Image:
    """The image with one argument and one field more, and a later version: one more layer, with
    other text in some modules."""
    repository, _, tag = built.name.rpartition(":")
    other = hashlib.sha256(json.dumps([tag, EDITS, ARGUMENT]).encode()).hexdigest()[:12]
    archive = cache() / f"image-{repository.rpartition('/')[2]}-{other}.tar"
    with cached(archive) as path:
        if path is not None:
            layer = _layer(contents(built.archive).own.files)
            _add(built, layer, f"{repository}:{other}", path)
    return Image(f"{repository}:{other}", archive)


def _layer(files: Mapping[str, bytes]) -> bytes:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for module, changes in EDITS.items():
            (path,) = (name for name in files if name.endswith(f"/site-packages/{module}"))
            text = files[path].decode()
            for before, after in changes.items():
                assert text.count(before) == 1, f"{module} has this once no more: {before}"
                text = text.replace(before, after)
            _write(tar, path, text.encode())
            # Bytecode is taken for what its source says: this hides it, and the source counts.
            folder, _, name = path.rpartition("/")
            stem = f"{folder}/__pycache__/{name.removesuffix('.py')}."
            (bytecode,) = (found for found in files if found.startswith(stem))
            _write(tar, f"{folder}/__pycache__/.wh.{bytecode.rpartition('/')[2]}", b"")
        for listing in LISTINGS:
            (path,) = (name for name in files if name.endswith(f"/site-packages/{listing}"))
            _write(tar, path, _listed(files[path]))
    return layer.getvalue()


def _listed(listing: bytes) -> bytes:
    """The listing with one argument more."""
    document = json.loads(listing)
    (tool,) = (each for each in document["tools"] if each["name"] == "get_gpu_inventory")
    tool["inputSchema"]["properties"][ARGUMENT] = {
        "type": "string",
        "default": "",
        "description": "Comes back.",
    }
    return json.dumps(document, ensure_ascii=False).encode()


def _add(built: Image, layer: bytes, name: str, archive: Path) -> None:
    with tarfile.open(built.archive) as old, tarfile.open(archive, "w") as new:
        manifest = json.load(member(old, "manifest.json"))[0]
        config = json.load(member(old, manifest["Config"]))
        digest = hashlib.sha256(layer).hexdigest()
        config["rootfs"]["diff_ids"].append(f"sha256:{digest}")
        config["history"].append({"created": config["created"], "created_by": "edits"})
        described = json.dumps(config).encode()
        for kept in manifest["Layers"]:
            new.addfile(old.getmember(kept), member(old, kept))
        manifest["Layers"].append(f"{digest}.tar")
        manifest["Config"] = f"{hashlib.sha256(described).hexdigest()}.json"
        manifest["RepoTags"] = [name]
        _write(new, manifest["Layers"][-1], layer)
        _write(new, manifest["Config"], described)
        _write(new, "manifest.json", json.dumps([manifest]).encode())


def _write(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    tar.addfile(entry, io.BytesIO(data))

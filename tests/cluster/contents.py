"""What is in an image: its configuration, its layers, and its files by size."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

__all__ = ["Contents", "Layer", "contents", "member"]

GZIP_LEVEL = 6
"""What registries are usually given."""


@dataclass(frozen=True)
class Layer:
    """Bytes of a layer: of its files, and of what is pulled."""

    unpacked: int
    compressed: int
    files: dict[str, bytes]
    """Regular files of the layer, by path without a leading slash."""
    links: tuple[str, ...]


@dataclass(frozen=True)
class Contents:
    """Of an archive that `images.build_image` made. The last layer is the project's own."""

    config: dict[str, Any]
    """What a container is started with: user, environment, entry point, labels."""
    layers: tuple[Layer, ...]

    @property
    def own(self) -> Layer:
        return self.layers[-1]

    def packages(self) -> dict[str, int]:
        """Bytes of each folder of packages in the project's own layer, largest first."""
        sizes: Counter[str] = Counter()
        for path, data in self.own.files.items():
            _, found, below = path.partition("/site-packages/")
            sizes[PurePosixPath(below).parts[0] if found else "the rest"] += len(data)
        return dict(sizes.most_common())


def contents(archive: Path) -> Contents:
    with tarfile.open(archive) as tar:
        manifest = json.load(member(tar, "manifest.json"))[0]
        described = json.load(member(tar, manifest["Config"]))
        layers = tuple(_layer(member(tar, name)) for name in manifest["Layers"])
    return Contents(described["config"], layers)


def member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    """The content of a file in it."""
    found = tar.extractfile(name)
    assert found is not None, name
    return found


def _layer(file: IO[bytes]) -> Layer:
    compressor, compressed = zlib.compressobj(GZIP_LEVEL), 0
    while chunk := file.read(1 << 20):
        compressed += len(compressor.compress(chunk))
    compressed += len(compressor.flush())
    file.seek(0)
    files: dict[str, bytes] = {}
    links = []
    with tarfile.open(fileobj=file) as tar:
        for entry in tar:
            name = entry.name.removeprefix("./")
            if entry.isreg():
                files[name] = member(tar, entry.name).read()
            elif entry.issym() or entry.islnk():
                links.append(name)
    return Layer(sum(map(len, files.values())), compressed, files, tuple(links))

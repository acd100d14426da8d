"""Build the bundle that Claude Desktop installs by a double click: build.py MCPB-PROGRAM BUNDLE.

It holds the program and the exact versions of what it needs, which the host has uv install. Its
own tool validates and packs it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def requirements() -> list[str]:
    """What is pinned for run time, markers included."""
    lines = (ROOT / "requirements" / "runtime.txt").read_text(encoding="utf-8").splitlines()
    return [line.removesuffix("\\").strip() for line in lines if line[:1].isalnum()]


def project() -> str:
    """A pyproject.toml by which uv makes the environment, and builds nothing."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = {key: whole[key] for key in ("name", "version", "requires-python")}
    table |= {"dependencies": requirements()}
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join(["[project]", *lines, "", "[tool.uv]", "package = false", ""])


def unpack_wheel(folder: Path) -> None:
    """The program as it would be installed: by its metadata it finds its transports."""
    with tempfile.TemporaryDirectory() as made:
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--no-build-isolation", "-w", made, str(ROOT)], check=True)
        (wheel,) = Path(made).glob("*.whl")
        shutil.unpack_archive(wheel, folder, "zip")


def build(mcpb: str, bundle: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder)
        unpack_wheel(content)
        for file in (
            "README.md",
            "LICENSE",
            "requirements/mcpb/manifest.json",
            "requirements/mcpb/server.py",
        ):
            shutil.copy(ROOT / file, content)
        (content / "pyproject.toml").write_text(project(), encoding="utf-8")
        bundle.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([mcpb, "validate", str(content / "manifest.json")], check=True)
        subprocess.run([mcpb, "pack", folder, str(bundle)], check=True)


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]).absolute())

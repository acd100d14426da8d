"""The Dockerfile and the project say the same. What it builds is tested in tests/cluster."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from mcp_gpu import __version__

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_labels_say_what_the_project_says() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^$"]+)"', DOCKERFILE))
    assert labels == {
        "title": PROJECT["name"],
        "description": PROJECT["description"],
        "licenses": PROJECT["license"],
    }
    assert f"ARG VERSION={__version__}\n" in DOCKERFILE


def test_every_argument_of_the_build_is_documented() -> None:
    """Each in the table of docs/image.md, with its default."""
    given = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE, re.MULTILINE))
    text = (ROOT / "docs" / "image.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (?:`([^`]*)`)? *\|", text, re.MULTILINE))
    assert rows == given

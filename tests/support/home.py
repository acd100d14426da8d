"""A person's home and project, in which clients keep their files, and the command that edits."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import pytest

from mcp_gpu.cli import main

__all__ = ["FILES", "Home", "Said", "home_of"]

FILES = {
    "claude": ".claude.json",
    "claude-desktop": ".config/Claude/claude_desktop_config.json",
    "cursor": ".cursor/mcp.json",
    "vscode": ".config/Code/User/mcp.json",
    "codex": ".codex/config.toml",
}
"""Each client's file in a home on Linux."""

PLACES = ("XDG_CONFIG_HOME", "CLAUDE_CONFIG_DIR", "CODEX_HOME", "KUBECONFIG")


@dataclass(frozen=True)
class Said:
    """What the command did."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Home:
    folder: Path
    project: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def file(self, client: str) -> Path:
        return self.folder / FILES[client]

    def write(self, client: str, content: bytes) -> Path:
        path = self.file(client)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def run(self, *arguments: str, answer: io.TextIOBase | str = "") -> Said:
        """Run it and answer what it asks."""
        stdin = io.StringIO(answer) if isinstance(answer, str) else answer
        self.monkeypatch.setattr("sys.stdin", stdin)
        self.capsys.readouterr()
        status = main(arguments)
        said = self.capsys.readouterr()
        return Said(status, said.out, said.err)


def home_of(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Home:
    """An empty home, and from now on the one of this process; and an empty project in it."""
    project = folder / "project"
    project.mkdir(parents=True)
    for variable in PLACES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(project)
    return Home(folder, project, capsys, monkeypatch)

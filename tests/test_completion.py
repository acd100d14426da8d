"""`mcp-gpu completion`, as the shells that are there understand it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mcp_gpu.cli import COMMANDS, main

BASH = """
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mcp_gpu; printf '%s\\n' "${COMPREPLY[@]}"
"""

ZSH = """
compadd() { print -l -- "${@:#--}" }
_describe() { print -l -- "${(P@)2}" }
_files() { print -l -- * }
words=("$@"); CURRENT=$#; _mcp_gpu
"""
"""What zsh's own completion offers such functions, in a few words."""

FISH = "complete -C (string join ' ' -- $argv) | string replace -r '\\t.*' ''; true"

ASK = {"bash": ["bash", "--norc", "-c"], "zsh": ["zsh", "-f", "-c"], "fish": ["fish", "-N", "-c"]}


@pytest.fixture(params=ASK)
def shell(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def offered(shell: str, folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What the shell offers after these words, the last of which is begun."""
    assert main(["completion", shell]) == 0
    (folder / "script").write_text(capsys.readouterr().out)
    ask = {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell]
    command = [*ASK[shell], f"source ./script\n{ask}"]
    if shell != "fish":
        command.append(shell)
    done = subprocess.run(
        [*command, "mcp-gpu", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = [line.strip() for line in done.stdout.splitlines() if line]
    return [line for line in found if shell != "zsh" or line.startswith(words[-1])]


def test_commands_flags_and_what_they_take_are_offered(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*words: str) -> list[str]:
        return offered(shell, tmp_path, capsys, *words)

    commands = {each.partition(":")[0] for each in ask("")}
    assert commands == {*COMMANDS, "attach"}
    assert set(ask("install", "--sc")) == {"--scope"}
    assert set(ask("install", "--scope", "")) == {"user", "project"}
    assert set(ask("install", "claude-")) == {"claude-desktop"}
    assert {"--stdio", "--no-stdio", "--http-port"} <= set(ask("gateway", "--"))
    assert "--stdio" not in ask("status", "--")
    assert set(ask("attach", "--re")) == {"--relay-only"}
    assert set(ask("why", "--rep")) == {"--report"}
    (tmp_path / "kube.yaml").touch()
    assert "kube.yaml" in ask("status", "--kubeconfig", "")
    assert ask("status", "--namespace", "") == []


def test_a_shell_that_is_not_known_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "csh"]) == 2
    assert "'bash', 'zsh' or 'fish', not 'csh'" in capsys.readouterr().err

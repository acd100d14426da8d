"""A page of the documentation followed to the letter: its commands run, what they print compared.

Of a page's fenced blocks those in `sh` are commands, for bash in the folder of the project. One
that is followed by a block in `text` has to print just that; there a line of three dots stands for
any lines, and three dots in a line for any words. `sh keeps-running` is what a reader leaves
running in a terminal of its own: it has to begin with what is shown, and is ended by Ctrl-C after
the last command; `sh exits-1` are commands that have to end so. What a block exports is there in
those after it.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "blocks", "follow"]

ROOT = Path(__file__).parents[2]

END_SECONDS = 30
"""Bound for what keeps running to end after Ctrl-C."""

HERE = r"(?:(?<=127\.0\.0\.1:)|(?<=localhost:))8080|8080(?=:8080)"

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Commands that are given together."""

    line: int
    """Where they begin on the page, from 1."""
    commands: str
    shown: str
    """What the page says they print; empty where it says nothing."""
    keeps_running: bool
    status: int
    """With which they exit."""


def blocks(page: Path, section: str) -> list[Block]:
    """The commands under a heading of the second level."""
    text = page.read_text(encoding="utf-8")
    begin = text.index(f"\n## {section}\n")
    end = text.find("\n## ", begin + 1)
    fences = list(FENCE.finditer(text, begin, end if end > 0 else len(text)))
    found = []
    for fence, after in zip(fences, [*fences[1:], None], strict=True):
        language, _, manner = fence[1].partition(" ")
        if language != "sh":
            continue
        assert manner in ("", "keeps-running", "exits-1"), manner
        shown = after[2] if after is not None and after[1] == "text" else ""
        line = text.count("\n", 0, fence.start()) + 2
        keeps_running, status = manner == "keeps-running", int(manner == "exits-1")
        found.append(Block(line, fence[2], shown, keeps_running, status))
    return found


def follow(
    given: Iterable[Block], environment: Mapping[str, str], *, port: int, seconds: float
) -> None:
    """Give the commands, one block after the other.

    Args:
        environment: variables beside those that the commands find anyway.
        port: what stands for 8080 of this machine, which somebody else may have.
        seconds: bound for each block.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="walk-")))
        exports = folder / "exports"
        exports.touch()
        variables = {**_surroundings(), **environment}
        for block in given:
            commands, shown = _elsewhere(block.commands, port), _elsewhere(block.shown, port)
            keep = "" if block.keeps_running else f"\nexport -p > {exports}"
            script = f"set -euo pipefail\n. {exports}\n{commands}{keep}"
            terminal = stack.enter_context(_Terminal(script, variables, seconds))
            if block.keeps_running:
                terminal.until(_pattern(shown), block.line)
            else:
                status = terminal.ended()
                said = terminal.said
                assert status == block.status, f"line {block.line}: exit status {status}\n{said}"
                fits = not shown or re.fullmatch(_pattern(shown), _squeezed(said))
                assert fits, f"line {block.line} prints something else:\n{said}"


def _surroundings() -> dict[str, str]:
    """What a person's shell has: nothing of ours, and nothing of a make that runs these tests."""
    ours = ("MCP_GPU_", "MAKE", "MFLAGS", "ARGS", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    # A terminal that is wide enough for no line to be cut.
    return kept | {"COLUMNS": "200", "NO_PROXY": "*", "no_proxy": "*"}


def _elsewhere(text: str, port: int) -> str:
    """The same with another port of this machine."""
    return re.sub(HERE, str(port), text)


def _pattern(shown: str) -> str:
    """What a squeezed text has to match to be what is shown."""
    parts = []
    for line in _squeezed(shown).splitlines():
        if line == "...":
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            parts.append(r"[^\n]*?".join(map(re.escape, line.split("..."))) + r"\n")
    return "".join(parts)


def _squeezed(text: str) -> str:
    """Without what tables and sections are set off by."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line)


class _Terminal:
    """Where one block runs, with all processes that it starts."""

    def __init__(self, script: str, variables: Mapping[str, str], seconds: float) -> None:
        self.said = ""
        self._process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._give_up = time.monotonic() + seconds

    def __enter__(self) -> _Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        for ending in (signal.SIGINT, signal.SIGKILL):
            if self._process.poll() is None:
                os.killpg(self._process.pid, ending)
                try:
                    self._process.wait(END_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        assert self._process.stdout is not None
        self._process.stdout.close()

    def until(self, pattern: str, line: int) -> None:
        """Wait for what the page shows."""
        while not re.match(pattern, _squeezed(self.said)):
            assert self._heard(), f"line {line} prints something else:\n{self.said}"

    def ended(self) -> int:
        """Its exit status, once all has been heard."""
        while self._heard():
            pass
        return self._process.wait(END_SECONDS)

    def _heard(self) -> bool:
        """Whether there was more to hear."""
        assert self._process.stdout is not None
        left = max(0.0, self._give_up - time.monotonic())
        ready, _, _ = select.select([self._process.stdout], [], [], left)
        data = os.read(self._process.stdout.fileno(), 65536) if ready else b""
        self.said += data.decode(errors="replace")
        return bool(data)

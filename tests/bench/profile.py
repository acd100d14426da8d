"""Where a process of ours spends its processor time, by taking samples from inside.

`python -m bench.profile FILE COMMAND...` is `mcp-gpu COMMAND...` that begins with the first
SIGUSR1 and writes its samples to FILE at the second. The kernel's clock of processor time asks for
a sample, and Python takes it between two instructions; it stands for all the processor time since
the one before, so time in C counts for the Python function that called it. Only the garbage
collector, which comes at any of them, is told apart. Tracing calls would cost more than they do.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench.processes import Child
from mcp_gpu.cli import main

__all__ = ["Profile", "argv", "begin", "end"]

PERIOD_SECONDS = 0.002
"""A sample takes some 20 us."""

WRITTEN_SECONDS = 20.0
WRITTEN_POLL_SECONDS = 0.05

ROWS = 12
"""Most lines of a table."""

OURS = ("mcp_gpu", "transports")

IN_CHARGE = ("mcp/", "httpx2", "httpcore2", "h11", "uvicorn", *OURS, "Python's garbage")
"""What is not general, as tasks, validation and Python's own modules are."""

LIBRARY = Path(os.__file__).parent.name
"""The folder of Python's own modules."""

LOOP = "BaseEventLoop._run_once"

COLLECTOR = (("Python's garbage collector", ""),)

Stack = Sequence[tuple[str, str]]
"""File and function of each call, the innermost first."""


def argv(samples: Path, *command: str) -> list[str]:
    """The command line of a process that can be sampled."""
    return [sys.executable, "-m", "bench.profile", str(samples), *command]


def begin(process: Child) -> None:
    """Take samples from now on."""
    process.send_signal(signal.SIGUSR1)


def end(process: Child, samples: Path) -> Profile:
    """Take no more.

    Raises:
        TimeoutError: nothing was written.
    """
    process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + WRITTEN_SECONDS
    while not samples.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("the profiled process wrote no samples")
        time.sleep(WRITTEN_POLL_SECONDS)
    return Profile(**json.loads(samples.read_text()))


@dataclass(frozen=True, slots=True)
class Profile:
    """What was seen of a process."""

    stacks: Sequence[tuple[Stack, float]]
    """Each with its seconds of processor time."""
    samples: int

    def __str__(self) -> str:
        seconds = sum(each for _, each in self.stacks)
        return "\n".join(
            [
                f"  {self.samples:,} samples, {seconds:.1f} s of processor time",
                *_table("in the code of", self._shares(_owner_of_last), seconds),
                *_table("on behalf of", self._shares(_owner_in_charge), seconds),
            ]
        )

    def _shares(self, owner: Callable[[Stack], str]) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for stack, seconds in self.stacks:
            found[owner(stack)] += seconds
        return found


def _table(title: str, found: Mapping[str, float], seconds: float) -> list[str]:
    most = sorted(found.items(), key=lambda item: -item[1])[:ROWS]
    return [f"  {title}", *(f"    {100 * each / seconds:4.1f} %  {name}" for name, each in most)]


def _owner_of_last(stack: Stack) -> str:
    return _owner(stack[0][0])


def _owner_in_charge(stack: Stack) -> str:
    """The nearest caller that is about MCP, HTTP or GPUs."""
    for file, function in stack:
        if function == LOOP:
            break
        if (owner := _owner(file)).startswith(IN_CHARGE):
            return owner
    return "none of these: tasks, the event loop"


def _owner(file: str) -> str:
    """A module of ours by its path, a library by its name."""
    parts = Path(file).parts
    if "site-packages" in parts:
        inside = parts[parts.index("site-packages") + 1 :]
        return "/".join(inside[:2]) if inside[0] == "mcp" else inside[0].removesuffix(".py")
    for package in OURS:
        if package in parts:
            return "/".join(parts[parts.index(package) :])
    if LIBRARY in parts:
        return f"Python's {parts[parts.index(LIBRARY) + 1].removesuffix('.py')}"
    return file


class _Sampler:
    """Lives in the process that is sampled."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stacks: dict[tuple[tuple[str, str], ...], float] = defaultdict(float)
        self._samples = 0
        self._collecting = False
        self._until = 0.0
        signal.signal(signal.SIGPROF, lambda number, frame: self._take(frame))
        signal.signal(signal.SIGUSR1, lambda number, frame: self._switch())

    def _take(self, frame: FrameType | None) -> None:
        if self._collecting:  # it has come to its end, and what it held up comes first
            self._count(COLLECTOR)
            return
        stack = []
        while frame is not None:
            if frame.f_code.co_filename != __file__:
                stack.append((frame.f_code.co_filename, frame.f_code.co_qualname))
            frame = frame.f_back
        self._samples += 1
        self._count(tuple(stack))

    def _count(self, stack: tuple[tuple[str, str], ...]) -> None:
        now = time.process_time()
        self._stacks[stack] += now - self._until
        self._until = now

    def _collects(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._take(sys._getframe())
            self._collecting = True
        else:
            self._count(COLLECTOR)
            self._collecting = False

    def _switch(self) -> None:
        if not self._until:
            self._until = time.process_time()
            gc.callbacks.append(self._collects)
            signal.setitimer(signal.ITIMER_PROF, PERIOD_SECONDS, PERIOD_SECONDS)
            return
        signal.setitimer(signal.ITIMER_PROF, 0)
        gc.callbacks.remove(self._collects)
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps({"stacks": [*self._stacks.items()], "samples": self._samples}))
        os.replace(part, self._file)


if __name__ == "__main__":
    _Sampler(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))

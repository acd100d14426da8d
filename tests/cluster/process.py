"""Commands that end and daemons that stay, the latter known by pid and start time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["CommandError", "Process", "run", "wait"]

COMMAND_SECONDS = 60
"""Bound on a command that should be quick, on a busy machine."""

POLL_SECONDS = 0.05
"""Other processes have no event to wait for."""


class CommandError(Exception):
    """A command failed. The message has its words."""


def run(*argv: str, stdin: str | None = None, timeout: float = COMMAND_SECONDS) -> str:
    """Its standard output.

    Raises:
        CommandError: it exited with another status than 0, or took longer than `timeout` seconds.
    """
    source = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, **source)
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{' '.join(argv)}: no end after {timeout:g} s") from error
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise CommandError(f"{' '.join(argv)}: exit status {done.returncode}: {words}")
    return done.stdout


def wait(what: str, holds: Callable[[], object], timeout: float) -> None:
    """Poll until `holds` returns something true.

    Raises:
        TimeoutError: not within `timeout` seconds; the message names `what`.
    """
    end = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not after {timeout:g} s")
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class Process:
    """A process that is certainly the one meant: a pid alone may have been given to another."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The running process with that pid; None if there is none, or only its corpse."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name, in brackets, may hold anything.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @classmethod
    def load(cls, path: Path) -> Process | None:
        """As `save` wrote it; None if it is not running any more."""
        try:
            process = cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        return process if process.alive else None

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @property
    def alive(self) -> bool:
        try:
            # Reaps it, if it is a child of this process.
            os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pass
        return Process.of(self.pid) == self

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens if it has ended already."""
        if self.alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def end(self, patience: float = 10) -> None:
        """Ask it to end, and kill it after `patience` seconds."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        try:
            wait(f"end of process {self.pid}", lambda: not self.alive, patience)
        except TimeoutError:
            kill([self], patience)


def kill(processes: Sequence[Process], timeout: float = 10) -> None:
    """Kill them and wait until they are gone.

    Raises:
        TimeoutError: one is still there, stuck in the kernel.
    """
    for process in processes:
        process.signal(signal.SIGKILL)
    pids = ", ".join(str(process.pid) for process in processes)
    wait(f"end of processes {pids}", lambda: not any(p.alive for p in processes), timeout)

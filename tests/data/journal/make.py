"""Makes the journal files beside it with systemd's own writer (package systemd-journal-remote).

    python tests/data/journal/make.py

The tests need only what it has made. Times are fixed, ids are not: a file's own are random.
"""

from __future__ import annotations

import lzma
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

WRITER = "/lib/systemd/systemd-journal-remote"
HERE = Path(__file__).parent

FIRST = 1_790_000_000_000_000
"""Microseconds of the Unix epoch at which the first boot's log was at 0."""

BOOTS = ("a" * 32, "b" * 32)
SECOND = FIRST + 86_400_000_000
"""The same of the second boot."""

LONG = "nvidia: " + "a long line that journald compresses " * 30


def entry(
    boot: int, seconds: float, message: str, *, taken: float | None = None, **fields: str
) -> str:
    """One entry in the Journal Export Format: written at `seconds` of the boot, then taken."""
    started, stamp = (FIRST, SECOND)[boot], round(seconds * 1e6)
    at = round((seconds if taken is None else taken) * 1e6)
    own = {
        "_TRANSPORT": "kernel",
        "PRIORITY": "6",
        "SYSLOG_FACILITY": "0",
        "SYSLOG_IDENTIFIER": "kernel",
        "_SOURCE_MONOTONIC_TIMESTAMP": str(stamp),
        "_MACHINE_ID": "c" * 32,
        "_HOSTNAME": "node-1",
        **fields,
        "MESSAGE": message,
    }
    head = {
        "__REALTIME_TIMESTAMP": str(started + at),
        "__MONOTONIC_TIMESTAMP": str(at),
        "_BOOT_ID": BOOTS[boot],
    }
    return "".join(f"{name}={value}\n" for name, value in (head | own).items()) + "\n"


def entries() -> Iterator[str]:
    """Two boots: Xids among the kernel's usual lines, and what only looks like the kernel's."""
    nobody = "pid='<unknown>', name=<unknown>"
    fallen = f"NVRM: Xid (PCI:0000:53:00): 79, {nobody}, GPU has fallen off the bus."
    fault = "NVRM: Xid (PCI:0000:1b:00): 31, pid=4242, name=python3, Ch 00000008, intr 00000000."
    # Written before journald ran, which took it at 9 s.
    yield entry(0, 2.0, fault, taken=9.0)
    for number in range(60):
        yield entry(0, 10 + number, f"cni0: port {number}(veth{number}) entered forwarding state")
        yield entry(
            0, 10.5 + number, f"request {number}", _TRANSPORT="stdout", SYSLOG_IDENTIFIER="app"
        )
    yield entry(0, 400.0, LONG)
    yield entry(0, 500.0, fallen)
    spoofed = fallen.replace("53", "54")
    yield entry(1, 100.0, spoofed, _TRANSPORT="syslog")
    yield entry(1, 120.0, fault)
    yield entry(1, 120.25, fault)


def main() -> None:
    """Write both modes."""
    text = "".join(entries()).encode()
    for mode, compact in (("regular", "0"), ("compact", "1")):
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder, f"{mode}.journal")
            environment = {**os.environ, "SYSTEMD_JOURNAL_COMPACT": compact}
            command = [WRITER, "--output", str(made), "--split-mode=none", "-"]
            subprocess.run(command, input=text, env=environment, check=True, timeout=60)
            raw = bytearray(made.read_bytes())
            raw[40:56] = bytes(16)  # The id of the machine that this runs on.
            packed = lzma.compress(bytes(raw), preset=9)
            (HERE / f"{mode}.journal.xz").write_bytes(packed)


if __name__ == "__main__":
    main()

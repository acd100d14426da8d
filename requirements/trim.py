"""Takes out of an environment what the program never loads, and prints what each step saves.

`python trim.py ENVIRONMENT`, once, while the image is built. Packages stay installed: metadata,
licences and their own bills of materials stay, and each list of files (RECORD) says what is left.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

PACKAGES = "lib/python3*/site-packages"
KUBERNETES = f"{PACKAGES}/kubernetes"

GOOGLE = ("api", "cloud", "gapic", "logging", "longrunning", "rpc", "type")

STEPS = {
    # Generated classes for every kind of object and every call, each loaded when first named. The
    # program speaks JSON to the API server: what it wants of this package is credentials.
    "objects and calls of the Kubernetes client": (
        f"{KUBERNETES}/client/api/[a-z]*.py",
        f"{KUBERNETES}/client/models/[a-z]*.py",
        f"{KUBERNETES}/aio/client/api/[a-z]*.py",
        f"{KUBERNETES}/aio/client/models/[a-z]*.py",
    ),
    # Of Google's services, which OpenTelemetry's exporter requires, and OpenTelemetry's own for
    # what others may measure.
    "messages and names that traces do not use": (
        *(f"{PACKAGES}/google/{each}/**/*" for each in GOOGLE),
        f"{PACKAGES}/opentelemetry/semconv/_incubating/*/[!_o]*.py",
    ),
    "tests of packages": (
        f"{PACKAGES}/*/tests/**/*",
        f"{KUBERNETES}/**/*_test.py",
        f"{KUBERNETES}/**/test_*.py",
    ),
    "programs of packages": ("bin/*",),
}
"""What is taken to patterns in the environment."""

PROGRAM = "mcp-gpu"


def trim(environment: Path) -> None:
    """Do all steps. One that finds nothing is an error: a package has changed."""
    gone: set[Path] = set()
    for step, patterns in STEPS.items():
        found = {path for pattern in patterns for path in environment.glob(pattern)}
        taken = {
            path
            for path in found
            if path.is_file() and not path.is_symlink() and path.name != PROGRAM
        }
        if not taken:
            sys.exit(f"there is nothing of this to take: {step}")
        saved = sum(path.stat().st_size for path in taken)
        print(f"{saved / 1e6:7.2f} MB {len(taken):6} files: {step}")
        for path in taken:
            path.unlink()
        gone |= taken
    for folder in sorted(environment.glob(f"{PACKAGES}/**/"), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    for record in environment.glob(f"{PACKAGES}/*.dist-info/RECORD"):
        _forget(record, gone)


def _forget(record: Path, gone: set[Path]) -> None:
    with record.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    left = [row for row in rows if (record.parents[1] / row[0]).resolve() not in gone]
    with record.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(left)


if __name__ == "__main__":
    trim(Path(sys.argv[1]).resolve())

"""Whether a file is still the one that was read."""

from __future__ import annotations

import os

__all__ = ["Version", "version"]

Version = tuple[int, int, int]


def version(status: os.stat_result) -> Version:
    """What differs once a file has been replaced or rewritten. Projected volumes replace it, by a
    link that leads elsewhere: another inode at the least."""
    return status.st_ino, status.st_mtime_ns, status.st_size

"""Files and devices that hang: how many threads they keep, and that none keeps the exit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import pytest

from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.node.aside import Aside, Blocked
from mcp_gpu.node.holdings import CACHE_SECONDS, Attribution
from mcp_gpu.node.pod_resources import PodResources


async def test_what_a_call_gives_or_raises_is_the_caller_s() -> None:
    aside = Aside("test")
    assert await aside.run(lambda: 7, 20) == 7
    assert await aside.run(lambda: None, 20) is None
    with pytest.raises(ZeroDivisionError):
        await aside.run(lambda: 1 // 0, 20)
    assert await aside.run(lambda: 8, 20) == 8


async def test_no_more_threads_are_left_behind_than_may_be() -> None:
    name = "left-behind-by-this-test"  # other tests' threads may end meanwhile
    aside, go_on = Aside(name, most=2), threading.Event()

    def left_behind() -> int:
        return sum(thread.name == name for thread in threading.enumerate())

    for _ in range(5):
        with pytest.raises(Blocked):
            await aside.run(go_on.wait, 0.01)
    assert left_behind() == 2
    go_on.set()
    with anyio.fail_after(20):
        while left_behind():
            await anyio.lowlevel.checkpoint()
    assert await aside.run(go_on.wait, 20)


async def test_a_checkpoint_on_a_disk_that_hangs_keeps_one_thread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "checkpoint")
    now = [0.0]
    attribution = Attribution(
        Snapshot,
        PodResources(tmp_path / "none"),
        tmp_path / "checkpoint",
        clock=lambda: now[0],
    )
    before = set(threading.enumerate())
    begun = set()
    for _ in range(3):
        now[0] += CACHE_SECONDS
        found = await attribution.holdings()
        assert "its disk hangs" in found.why
        begun |= set(threading.enumerate()) - before
    assert len(begun) == 1
    with (tmp_path / "checkpoint").open("w"):
        pass  # lets the thread end


HANGING = """
import sys, anyio
from pathlib import Path
from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.node.holdings import Attribution
from mcp_gpu.node.pod_resources import PodResources
folder = Path(sys.argv[1])
print(anyio.run(Attribution(Snapshot, PodResources(folder / "no"), folder / "file").holdings).why)
"""


def test_a_disk_that_hangs_does_not_keep_an_agent_from_ending(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "file")
    ended = subprocess.run(
        [sys.executable, "-c", HANGING, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "its disk hangs" in ended.stdout

"""What it costs to read a node's GPUs, how much of that is the simulator that answers, and what
recording them adds."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import count
from statistics import median
from typing import Any

from bench.figures import Section
from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.reader import Reader
from mcp_gpu.gpu.recorder.recorder import Recorder

__all__ = ["cycle", "recording"]

PROFILES = ("h100", "b200")
"""Boards of 8 GPUs and 144 NVLinks, of the fourth and of the fifth generation."""

FAST_SECONDS, SLOW_SECONDS = 2, 30
"""The collector's own periods."""


SLOWER_PERCENT = 5.0
"""By how much recording may slow the collector's thread down."""


class _Timed(Nvml):
    """Counts its calls, and the processor time spent below them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.busy_seconds = 0.0

    def call(self, call: str, gpu_index: int | None, *args: Any) -> Any:
        began = time.thread_time()
        try:
            return super().call(call, gpu_index, *args)
        finally:
            self.calls += 1
            self.busy_seconds += time.thread_time() - began


def cycle(rounds: int) -> Section:
    """One reading of 8 GPUs, of what moves all the time and of all the rest."""
    section = Section(f"processor time of one reading of 8 GPUs, median of {rounds} each")
    for profile in PROFILES:
        nvml = _Timed()
        with simulator.installed(simulator.Node("one", profile, load=0.5)):
            # Every reading at its period, as far as samples that must lie apart can tell.
            reader = Reader(nvml, ticks=count(step=FAST_SECONDS).__next__)
            reader.open()
            fast, below_fast, fast_calls = _measure(reader.read_fast, nvml, rounds)
            slow, below_slow, slow_calls = _measure(reader.read_slow, nvml, rounds)
            reader.close()
        section.add(f"{profile}, fast readings, {fast_calls} calls", fast * 1000, "ms")
        section.add("of it in the binding and the simulator", below_fast * 1000, "ms")
        section.add(f"{profile}, slow readings, {slow_calls} calls", slow * 1000, "ms")
        section.add("of it in the binding and the simulator", below_slow * 1000, "ms")
        share = 100 * (fast / FAST_SECONDS + slow / SLOW_SECONDS)
        own = 100 * ((fast - below_fast) / FAST_SECONDS + (slow - below_slow) / SLOW_SECONDS)
        section.add(f"{profile}, both at their periods, of one processor", share, "%")
        section.add("of it without the binding and the simulator", own, "%")
    return section


def _measure(read: Callable[[], object], nvml: _Timed, rounds: int) -> tuple[float, float, int]:
    """Seconds of processor time of one reading, those below NVML's functions, and its calls."""
    read()  # builds what is kept
    whole, below = [], []
    for _ in range(rounds):
        nvml.calls, nvml.busy_seconds = 0, 0.0
        began = time.thread_time()
        read()
        whole.append(time.thread_time() - began)
        below.append(nvml.busy_seconds)
    return median(whole), median(below), nvml.calls


def recording(rounds: int) -> Section:
    """What the recorder costs the collector's thread, and its own."""
    section = Section(f"recording 8 GPUs, processor time, median of {rounds} each")
    recorder = Recorder()
    with simulator.installed(simulator.Node("one", "h100", load=0.5)):
        reader = Reader(Nvml())
        reader.open()
        reader.read_slow()
        reader.read_fast()
        alone, fed, fast, slow = [], [], [], []
        for number in range(rounds):
            began = time.thread_time()
            snapshot = reader.read_fast()
            read = time.thread_time()
            recorder.feed(snapshot)
            alone.append(read - began)
            fed.append(time.thread_time() - read)
            at = FAST_SECONDS * number
            fast.append(_spent(partial(recorder.take, snapshot, at)))
            reader.read_slow()
            slow.append(_spent(partial(recorder.take, reader.read_fast(), at)))
        reader.close()
    fast_ms, slow_ms = 1000 * median(fast), 1000 * median(slow)
    slower = 100 * median(fed) / median(alone)
    section.add("the collector's cycle, longer with the recorder by", slower, "%", SLOWER_PERCENT)
    section.add("the recorder's own thread, each fast reading", fast_ms, "ms")
    section.add("the recorder's own thread, each slow reading", slow_ms, "ms")
    share = (fast_ms / FAST_SECONDS + slow_ms / SLOW_SECONDS) / 10
    section.add("both at their periods, of one processor", share, "%")
    return section


def _spent(act: Callable[[], object]) -> float:
    began = time.thread_time()
    act()
    return time.thread_time() - began

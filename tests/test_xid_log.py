"""The log of Xids: exact counts, bounded memory, one event counted once whoever tells of it."""

from __future__ import annotations

import random
import threading
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_gpu.gpu.xid import log as log_module
from mcp_gpu.gpu.xid.log import BOUND_BYTES, BURST_SECONDS, GAP_SECONDS, MAX_BURSTS, XidLog
from mcp_gpu.gpu.xid.model import Source, XidEvent

NOON = 1_790_000_000.0
SOURCES: tuple[Source, ...] = ("nvml", "kernel_log", "journal")


def event(
    code: int = 31, at: float = 0.0, source: Source = "kernel_log", text: str = "Ch 1", **more: str
) -> XidEvent:
    """An event `at` seconds after noon; nvml's have no text."""
    told = {} if source == "nvml" else {"text": text, "raw": f"NVRM: Xid {code}, {text}"}
    known = {"bus_id": "0000:53:00", "boot_id": "b" * 32, **told, **more}
    return XidEvent(code, NOON + at, source, **known)  # type: ignore[arg-type]


def filled(*events: XidEvent) -> XidLog:
    log = XidLog()
    for one in events:
        log.add(one)
    return log


def test_two_days_of_a_storm_hide_none_of_the_ten_that_matter() -> None:
    ten = [event(code, at) for at, code in enumerate((79, 48, 63, 64, 74, 94, 95, 119, 120, 154))]
    two_days = 2 * 86_400
    storm = [event(45, n * two_days / 168_000, text=f"Ch {n % 512}") for n in range(168_000)]
    mixed = [*storm, *ten]
    random.Random(7).shuffle(ten)
    log = filled(*sorted(mixed, key=lambda one: one.at))
    bursts = log.bursts()
    assert log.dropped == 0
    assert sum(burst.count for burst in bursts if burst.first.code == 45) == 168_000
    others = [burst for burst in bursts if burst.first.code != 45]
    assert sorted((burst.first.code, burst.count) for burst in others) == sorted(
        (one.code, 1) for one in ten
    )
    assert all(burst.last_at - burst.first.at <= BURST_SECONDS for burst in bursts)
    last_hour = log.bursts(since=NOON + two_days - 3600)
    assert 3500 <= sum(burst.count for burst in last_hour) <= 3500 + 2 * 600


def test_the_worst_that_can_be_logged_stays_below_the_bound() -> None:
    log = XidLog()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        # Each burst with as many times as are kept, and texts that are longer than is kept.
        for number in range(MAX_BURSTS + 200):
            gpu = f"{number:04x}:53:00"
            for n in range(log_module.PAIRED if number % 8 == 0 else 3):
                process = f"{n}" * 500
                log.add(
                    event(13, n, text=f"{number} {n} " + "é" * 900, bus_id=gpu, process=process)
                )
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert MAX_BURSTS * 2000 < used < BOUND_BYTES
    assert len(log.bursts()) <= MAX_BURSTS


def test_what_must_go_goes_from_the_commonest_code_and_is_counted() -> None:
    rare = [event(79, -BURST_SECONDS), event(48, 3)]
    common = [event(31, n * 2 * GAP_SECONDS, "kernel_log") for n in range(MAX_BURSTS + 50)]
    log = filled(*rare, *common)
    kept = log.bursts(codes={31})
    assert [burst.first.code for burst in log.bursts(codes=(79, 48))] == [79, 48]
    assert len(kept) + log.dropped == len(common)
    assert log.dropped >= 50
    assert kept[-1].first.at == common[-1].at


def test_events_follow_each_other_in_a_burst_until_there_is_a_pause() -> None:
    log = filled(event(at=0), event(at=GAP_SECONDS), event(at=2 * GAP_SECONDS + 1))
    assert [burst.count for burst in log.bursts()] == [2, 1]


@pytest.mark.parametrize(
    "other", [{"bus_id": "0000:54:00"}, {"boot_id": "c" * 32}, {"kind": "sxid"}]
)
def test_bursts_are_of_one_gpu_boot_and_kind(other: dict[str, str]) -> None:
    assert len(filled(event(), event(**other)).bursts()) == 2  # type: ignore[arg-type]


def test_a_question_may_be_about_a_boot_a_code_or_a_time() -> None:
    log = filled(event(31, 0, boot_id="a"), event(48, 5000, boot_id="b"))
    assert [burst.first.code for burst in log.bursts(boot_id="a")] == [31]
    assert [burst.first.code for burst in log.bursts(codes=[48])] == [48]
    assert [burst.first.code for burst in log.bursts(since=NOON + 1)] == [48]


def test_an_event_that_three_sources_tell_of_counts_once_and_has_its_text() -> None:
    told = [event(at=0.4, source="nvml"), event(at=0, source="journal"), event(at=0)]
    for order in (told, told[::-1], [told[1], told[0], told[2]]):
        (burst,) = filled(*order).bursts()
        assert (burst.count, burst.sources) == (1, SOURCES)
        assert burst.first.text == "Ch 1"
        assert [sample.text for sample in burst.samples] == ["Ch 1"]


def test_two_events_of_one_source_are_two_however_alike() -> None:
    (burst,) = filled(event(), event(), event(source="journal"), event(source="journal")).bursts()
    assert burst.count == 2


def test_events_of_two_sources_that_are_far_apart_are_two() -> None:
    (burst,) = filled(event(at=0), event(at=5, source="nvml")).bursts()
    assert (burst.count, burst.last_at) == (2, NOON + 5)


def test_a_crowd_told_by_two_sources_is_counted_once() -> None:
    storm = [event(at=n / 100) for n in range(20_000)]
    log = filled(event(at=-50, source="nvml"), *storm)
    for one in storm:
        log.add(replace(one, source="journal"))
        log.add(replace(one, source="nvml", text="", raw="", at=one.at + 0.3))
    assert sum(burst.count for burst in log.bursts()) == 20_001


def test_samples_are_texts_that_differ_and_the_first_is_among_them() -> None:
    log = filled(
        *(event(at=n, text=f"Ch {n // 10}") for n in range(100)), event(at=-1, text="Ch 1")
    )
    (burst,) = log.bursts()
    texts = [sample.text for sample in burst.samples]
    assert burst.samples[0] == burst.first
    assert burst.first.at == NOON - 1
    assert len(texts) == len(set(texts)) == log_module.SAMPLES


def test_what_the_journal_tells_of_earlier_times_comes_in_order() -> None:
    log = filled(event(at=7000), event(at=0, source="journal"), event(at=3000, source="journal"))
    assert [burst.first.at for burst in log.bursts()] == [NOON, NOON + 3000, NOON + 7000]


@given(
    st.lists(st.floats(0, 4000), min_size=1, max_size=40),
    st.permutations(SOURCES),
    st.integers(1, 3),
)
def test_sources_that_tell_the_same_add_nothing(
    times: list[float], order: list[Source], sources: int
) -> None:
    log = XidLog()
    for source in order[:sources]:
        for at in sorted(times):
            log.add(event(at=at, source=source))
    assert sum(burst.count for burst in log.bursts()) == len(times)


def test_threads_add_beside_each_other() -> None:
    log = XidLog()

    def add(gpu: int) -> None:
        for n in range(2000):
            log.add(event(at=n / 10, bus_id=f"0000:{gpu:02x}:00"))

    threads = [threading.Thread(target=add, args=[gpu]) for gpu in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(burst.count for burst in log.bursts()) == 8000

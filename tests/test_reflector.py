"""The copy of a collection: listed once, watched on over every kind of trouble."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_gpu.fleet.discovery import reflector as module
from support.kubeapi.cases import addresses, eventually, reflecting
from support.kubeapi.documents import Document, endpoint, endpoint_slice
from support.kubeapi.server import FakeApiServer, Fault

SLICES = "endpointslices"


@pytest.fixture
async def api() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer() as server:
        yield server


def made(number: int, *, version: int = 0) -> Document:
    address = f"10.{version}.{number // 250}.{number % 250}"
    return endpoint_slice(f"s{number:04}", [endpoint(address, f"n{number}")])


async def fill(api: FakeApiServer, count: int) -> None:
    for number in range(count):
        await api.apply(made(number))


def names(count: int) -> set[str]:
    return {f"gpu/s{number:04}" for number in range(count)}


def versions(api: FakeApiServer) -> list[str]:
    """Where each watch began that did not begin with a list."""
    return [r.params["resourceVersion"] for r in api.requests if "resourceVersion" in r.params]


async def test_one_request_lists_and_watches(api: FakeApiServer) -> None:
    await fill(api, 3)
    async with reflecting(api) as copy:
        assert set(copy.items) == names(3)
        await api.apply(made(3))
        await eventually(lambda: set(copy.items) == names(4))
    (request,) = api.requests
    assert (request.verb, request.params["sendInitialEvents"]) == ("watch", "true")
    assert 240 <= int(request.params["timeoutSeconds"]) <= 300


async def test_a_server_that_ends_each_watch_at_once_is_a_problem(api: FakeApiServer) -> None:
    async with reflecting(api) as copy:
        with anyio.fail_after(30):
            while copy.problem is None:
                api.end_watches()
                await anyio.lowlevel.checkpoint()
        assert "ends each watch at once" in copy.problem.message
        await eventually(lambda: copy.problem is None)
    assert api.lists(SLICES) == 1


async def test_a_server_that_streams_no_lists_is_listed_in_pages(api: FakeApiServer) -> None:
    api.streams_lists = False
    await fill(api, 1201)
    async with reflecting(api) as copy:
        assert set(copy.items) == names(1201)
        await api.apply(made(1201))
        await eventually(lambda: set(copy.items) == names(1202))
    pages = [r.params for r in api.requests if r.verb == "list"]
    assert [page["limit"] for page in pages] == ["250"] * 5
    assert [bool(page.get("continue")) for page in pages] == [False] + [True] * 4
    assert versions(api) == [str(100 + 1201)]


async def test_a_streamed_list_that_never_ends_is_listed_in_pages(
    api: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INITIAL_SECONDS", 0.2)
    api.completes_lists = False
    await fill(api, 3)
    async with reflecting(api) as copy:
        assert set(copy.items) == names(3)
        assert copy.problem is None
    assert api.count("list", SLICES) == 1


async def test_a_streamed_list_that_is_ended_too_soon_is_listed_in_pages(
    api: FakeApiServer,
) -> None:
    api.completes_lists = False
    await fill(api, 3)
    async with anyio.create_task_group() as group:

        async def end() -> None:
            await eventually(lambda: api.watches)
            api.end_watches()

        group.start_soon(end)
        async with reflecting(api) as copy:
            assert set(copy.items) == names(3)
            assert copy.problem is None
    assert api.count("list", SLICES) == 1


async def test_pages_that_have_expired_are_begun_again(api: FakeApiServer) -> None:
    api.streams_lists = False
    await fill(api, 700)
    api.fault("list", SLICES, None, 410)
    async with reflecting(api) as copy:
        assert set(copy.items) == names(700)
    assert api.count("list", SLICES) == 5


@pytest.mark.parametrize("how", ["ends", "breaks", "breaks in a line"])
async def test_a_watch_that_ends_goes_on_from_where_it_was(api: FakeApiServer, how: str) -> None:
    await fill(api, 2)
    async with reflecting(api, keep=addresses) as copy:
        await api.apply(made(2))
        await eventually(lambda: len(copy.items) == 3)
        last = api.store.version
        stop = {
            "ends": api.end_watches,
            "breaks": api.drop_watches,
            "breaks in a line": api.drop_watches_in_a_line,
        }
        stop[how]()
        await api.apply(made(1, version=9))
        await api.delete("EndpointSlice", "s0000")
        await eventually(
            lambda: copy.items == {"gpu/s0001": ["10.9.0.1"], "gpu/s0002": ["10.0.0.2"]}
        )
        assert copy.lists == 1
        assert copy.problem is None
    assert api.lists(SLICES) == 1
    assert versions(api) == [str(last)]


@pytest.mark.parametrize("by_status", [False, True], ids=["an event", "a status"])
async def test_a_version_that_is_forgotten_is_listed_anew_once(
    api: FakeApiServer, by_status: bool
) -> None:
    api.expires_by_status = by_status
    await fill(api, 3)
    async with reflecting(api) as copy:
        await api.stop()
        await api.delete("EndpointSlice", "s0000")
        api.store.compact()
        before = copy.as_of
        confirmed: list[bool] = []

        async def watch_for_a_false_confirmation() -> None:
            while len(copy.items) == 3:
                confirmed.append(copy.as_of != before)
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            group.start_soon(watch_for_a_false_confirmation)
            await eventually(lambda: copy.problem)
            await api.start()
            await eventually(lambda: set(copy.items) == {"gpu/s0001", "gpu/s0002"})
        assert not any(confirmed)
        assert copy.problem is None
        await api.apply(made(5))
        await eventually(lambda: "gpu/s0005" in copy.items)
        assert copy.lists == 2
    assert api.lists(SLICES) == 2


async def test_a_watch_that_expires_while_it_is_open_is_listed_anew(api: FakeApiServer) -> None:
    await fill(api, 3)
    async with reflecting(api) as copy:
        api.expire_watches()
        await eventually(lambda: copy.lists == 2)
        assert set(copy.items) == names(3)
        assert copy.problem is None


async def test_bookmarks_keep_a_quiet_watch_from_expiring(api: FakeApiServer) -> None:
    await fill(api, 1)
    async with reflecting(api) as copy:
        first = copy.as_of
        for _ in range(3):
            await api.apply({"kind": "Node", "metadata": {"name": "elsewhere"}})
        api.store.compact()
        api.bookmark()
        last = api.store.version
        await eventually(lambda: copy.as_of != first)
        api.end_watches()
        await eventually(lambda: versions(api) == [str(last)])
        await api.apply(made(1))
        await eventually(lambda: set(copy.items) == names(2))
        assert copy.lists == 1


async def test_an_outage_keeps_the_copy_and_ages_it(api: FakeApiServer) -> None:
    await fill(api, 3)
    now = 1000.0
    async with reflecting(api, clock=lambda: now) as copy:
        await api.stop()
        now = 1090.0
        await eventually(lambda: copy.problem)
        assert copy.problem is not None
        assert "cannot reach the API server" in str(copy.problem)
        assert (set(copy.items), copy.as_of) == (names(3), 1000.0)
        await api.apply(made(3))
        await api.start()
        await eventually(lambda: copy.problem is None and set(copy.items) == names(4))
        assert copy.as_of == 1090.0
        assert copy.lists == 1


async def test_a_refusal_is_kept_in_words_until_it_is_lifted(api: FakeApiServer) -> None:
    await fill(api, 1)
    api.deny("watch", SLICES)
    async with reflecting(api) as copy:
        assert copy.problem is not None
        assert copy.problem.status == 403
        assert 'cannot watch resource "endpointslices"' in copy.problem.message
        assert copy.as_of is None
        api.allow("watch", SLICES)
        await eventually(lambda: copy.problem is None)
        assert set(copy.items) == names(1)


async def test_pauses_grow_to_a_bound_and_start_small_again(api: FakeApiServer) -> None:
    pauses: list[float] = []
    now = 0.0

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await anyio.lowlevel.checkpoint()

    api.fault("watch", SLICES, *[500] * 6)
    settings: dict[str, Any] = {"sleep": sleep, "jitter": lambda most: most}
    async with reflecting(api, clock=lambda: now, **settings) as copy:
        await eventually(lambda: copy.problem is None)
        assert pauses == [1, 2, 4, 8, 15, 15]
        now = 60.0
        api.end_watches()
        await eventually(lambda: len(pauses) == 7)
        assert pauses[-1] == 1


async def test_a_watch_that_ends_at_once_every_time_is_paused_for(api: FakeApiServer) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await anyio.lowlevel.checkpoint()
        if len(pauses) > 4:
            await anyio.sleep_forever()

    settings: dict[str, Any] = {"sleep": sleep, "jitter": lambda most: most}
    async with reflecting(api, **settings):
        with anyio.fail_after(30):
            while len(pauses) < 5:
                api.end_watches()
                await anyio.sleep(0.005)
    assert pauses == [1, 2, 4, 8, 15]


# The HTTP library itself asks once more where a connection closes without a word.
@pytest.mark.parametrize("faults", [["drop", "drop"], ["half"], [500]])
async def test_a_list_that_breaks_off_is_begun_again_and_never_shown_in_part(
    api: FakeApiServer, faults: list[Fault]
) -> None:
    await fill(api, 20)
    api.fault("watch", SLICES, *faults)
    seen: list[int] = []

    async def sleep(seconds: float) -> None:
        seen.append(len(copying[0].items) if copying else 0)
        await anyio.lowlevel.checkpoint()

    copying: list[Any] = []
    async with reflecting(api, sleep=sleep) as copy:
        copying.append(copy)
        await eventually(lambda: set(copy.items) == names(20))
        assert copy.problem is None
    assert set(seen) == {0}


async def test_a_server_that_falls_silent_is_given_up(
    api: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.1)
    await fill(api, 2)
    api.fault("watch", SLICES, "hang")
    async with reflecting(api) as copy:
        assert copy.problem is not None
        assert "did not answer" in copy.problem.message
        await eventually(lambda: set(copy.items) == names(2))


@pytest.mark.parametrize(
    "line",
    [
        b"rubbish\n",
        b"[]\n",
        b'{"type": "ADDED"}\n',
        b'{"type": "ADDED", "object": {"metadata": {"resourceVersion": "7"}}}\n',
        b'{"type": "ADDED", "object": {"metadata": {"name": "x", "resourceVersion": "7"}}}\n',
        b'{"type": "ERROR", "object": {"code": 500, "message": "etcd is away"}}\n',
        b'{"type": "ERROR", "object": null}\n',
    ],
)
async def test_what_is_no_event_is_a_problem_and_not_the_end(
    api: FakeApiServer, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(api, 2)
    async with reflecting(api, keep=addresses) as copy:
        for watch in api.open_watches():
            watch.send(line)
        await eventually(lambda: "cannot watch" in caplog.text)
        await api.apply(made(2))
        await eventually(lambda: set(copy.items) == names(3))
        assert copy.problem is None
        assert copy.lists == 1


async def test_lines_arrive_whole_whatever_the_pieces(api: FakeApiServer) -> None:
    api.piece_bytes = 7
    await fill(api, 5)
    async with reflecting(api, keep=addresses) as copy:
        await api.apply(made(5, version=3))
        await eventually(lambda: set(copy.items) == names(6))
        assert copy.items["gpu/s0005"] == ["10.3.0.5"]


async def test_each_object_is_reduced_at_once(api: FakeApiServer) -> None:
    await fill(api, 3)
    reduced: list[str] = []

    def keep(item: Mapping[str, Any]) -> int:
        reduced.append(item["metadata"]["name"])
        return len(item["endpoints"])

    async with reflecting(api, keep=keep) as copy:
        assert copy.items == dict.fromkeys(names(3), 1)
        await api.apply(made(1, version=2))
        await eventually(lambda: len(reduced) == 4)
    assert reduced == ["s0000", "s0001", "s0002", "s0001"]


async def test_five_thousand_endpoints_and_their_churn_are_listed_once(api: FakeApiServer) -> None:
    def crowd(number: int, round_: int) -> Document:
        ips = [f"10.{round_ % 250}.{number}.{each}" for each in range(100)]
        return endpoint_slice(f"s{number:04}", [endpoint(ip, f"n-{ip}") for ip in ips])

    for number in range(50):
        await api.apply(crowd(number, 0))
    async with reflecting(api, keep=addresses) as copy:
        assert sum(map(len, copy.items.values())) == 5000
        for change in range(500):
            await api.apply(crowd(change % 50, change))
            if change % 100 == 50:
                api.drop_watches()
            await anyio.lowlevel.checkpoint()
        last = {f"gpu/s{n:04}": f"10.{(450 + n) % 250}.{n}.0" for n in range(50)}
        await eventually(lambda: {name: ips[0] for name, ips in copy.items.items()} == last)
        assert copy.lists == 1
    assert api.lists(SLICES) == 1


async def test_cancelling_leaves_no_task_and_no_socket(api: FakeApiServer) -> None:
    await fill(api, 2)
    async with reflecting(api):
        pass  # the client library's own threads and files are there from now on
    await eventually(lambda: not api.watches)
    tasks, files = asyncio.all_tasks(), open_files()
    async with reflecting(api):
        assert len(api.watches) == 1
    await eventually(lambda: not api.watches)
    assert asyncio.all_tasks() == tasks
    await eventually(lambda: open_files() == files)


def open_files() -> int:
    return len(os.listdir(Path("/proc/self/fd")))

"""What one call reads of Kubernetes: each object once, bounded, and nothing raises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from aiohttp import web

from mcp_gpu.workloads import reads as module
from mcp_gpu.workloads.reads import Gap, Reads, Workloads
from support.kubeapi.answering import Handler, answering
from support.kubeapi.credentials import write_kubeconfig
from support.kubeapi.documents import node, pod
from support.kubeapi.server import FakeApiServer
from transports.kubernetes import KubernetesApi

CORE = "/api/v1"


@asynccontextmanager
async def reading() -> AsyncIterator[tuple[FakeApiServer, Reads]]:
    """A cluster with two pods and a node, and what one call reads of it."""
    async with FakeApiServer() as api, KubernetesApi(str(api.kubeconfig)) as reader:
        await api.apply(pod("a"))
        await api.apply(pod("b"))
        await api.apply(node("a"))
        with anyio.fail_after(30):
            yield api, Reads(reader)


@asynccontextmanager
async def answered(handler: Handler, folder: Path) -> AsyncIterator[Reads]:
    """A server that answers everything alike."""
    async with answering(handler) as port:
        config = write_kubeconfig(folder / "kubeconfig", f"http://127.0.0.1:{port}", token="t")
        async with KubernetesApi(str(config)) as reader:
            with anyio.fail_after(30):
                yield Reads(reader)


async def test_an_object_is_asked_for_once_however_many_want_it() -> None:
    async with reading() as (api, reads):
        found: list[object] = []

        async def get() -> None:
            found.append(await reads.get(CORE, "pods", "agent-a", "gpu"))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(get)
        assert len(found) == 5
        assert all(each is found[0] is not None for each in found)
        for _ in range(2):
            listed = await reads.list(CORE, "pods", "gpu", labelSelector="a=b")
            assert listed == ()
        assert (api.count("get", "pods"), api.count("list", "pods"), reads.requests) == (1, 1, 2)
        assert len(await reads.list(CORE, "pods", "gpu")) == 2
        assert reads.gaps == ()


async def test_what_is_not_there_is_an_answer_and_no_gap() -> None:
    async with reading() as (_, reads):
        assert await reads.get(CORE, "pods", "nobody", "gpu") is None
        assert await reads.list("/apis/none.example/v1", "things", "gpu") == ()
        assert await reads.log("gpu", "agent-a", "agent", previous=False) is None
        assert reads.gaps == ()


async def test_a_refusal_names_the_right_that_is_missing() -> None:
    async with reading() as (api, reads):
        for verb, resource in (("get", "pods"), ("list", "pods"), ("get", "nodes"),
                               ("get", "jobs")):  # fmt: skip
            api.deny(verb, resource)
        assert await reads.get(CORE, "pods", "agent-a", "gpu") is None
        assert await reads.list(CORE, "pods") == ()
        assert await reads.get(CORE, "nodes", "a") is None
        assert await reads.get("/apis/batch/v1", "jobs", "j", "gpu") is None
        assert reads.gaps == (
            Gap(what="pod gpu/agent-a", why="forbidden", grant="get pods in gpu"),
            Gap(what="pods", why="forbidden", grant="list pods"),
            Gap(what="node a", why="forbidden", grant="get nodes"),
            Gap(what="job gpu/j", why="forbidden", grant="get jobs.batch in gpu"),
        )


async def test_errors_and_silence_are_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_SECONDS", 0.3)
    async with reading() as (api, reads):
        api.fault("get", "pods", 500)
        api.fault("get", "nodes", "hang")
        api.fault("list", "pods", "half")
        assert await reads.get(CORE, "pods", "agent-a", "gpu") is None
        assert await reads.get(CORE, "nodes", "a") is None
        assert await reads.list(CORE, "pods", "gpu") == ()
        told = {gap.what: gap.why for gap in reads.gaps}
        assert "scripted" in told["pod gpu/agent-a"]
        assert "did not answer" in told["node a"]
        assert "cannot reach the API server" in told["pods of gpu"]
        assert {gap.grant for gap in reads.gaps} == {""}


@pytest.mark.parametrize("body", ["<html>", "[]", "7", '"x"', "null"])
async def test_garbage_is_a_gap(body: str, tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body, content_type="application/json")

    async with answered(handler, tmp_path) as reads:
        assert await reads.get(CORE, "pods", "a", "gpu") is None
        assert await reads.list(CORE, "pods", "gpu") == ()
        assert [gap.what for gap in reads.gaps] == ["pod gpu/a", "pods of gpu"]


@pytest.mark.parametrize("body", ['{"items": 7}', '{"items": [7, "x"], "metadata": "x"}', "{}"])
async def test_a_list_of_no_objects_is_empty(body: str, tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body, content_type="application/json")

    async with answered(handler, tmp_path) as reads:
        assert await reads.list(CORE, "pods", "gpu") == ()


async def test_a_list_that_goes_on_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LISTED", 1)
    async with reading() as (_, reads):
        assert len(await reads.list(CORE, "pods", "gpu")) == 1
        (gap,) = reads.gaps
        assert (gap.what, gap.why) == ("pods of gpu", "only the first 1 are looked at")


def heavy(number: int) -> dict[str, object]:
    """A pod that nobody would call small, and the little of it that is looked at."""
    weight = "x" * 20_000
    fields = {"f:spec": {f"f:{each}": {} for each in range(1_000)}}
    return {
        "metadata": {
            "name": f"p{number}",
            "managedFields": [{"fieldsV1": fields}],
            "annotations": {"theirs": weight, "short": "kept"},
        },
        "spec": {
            "nodeName": "n1",
            "volumes": [{"name": weight}],
            "containers": [{"name": "main", "args": [weight], "env": [{"name": weight}]}],
        },
    }


async def test_a_list_of_heavy_objects_is_read_by_pages_and_little_of_it_kept(
    tmp_path: Path,
) -> None:
    asked: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(dict(request.query))
        begin = int(request.query.get("continue", "0"))
        end = min(begin + int(request.query["limit"]), 120)
        more = {"continue": str(end)} if end < 120 else {}
        return web.json_response({"metadata": more, "items": list(map(heavy, range(begin, end)))})

    async with answered(handler, tmp_path) as reads:
        for _ in range(2):
            found = await reads.list(CORE, "pods", "gpu", labelSelector="a=b")
        assert [each["metadata"]["name"] for each in found] == [f"p{each}" for each in range(120)]
        assert found[7] == {
            "metadata": {"name": "p7", "annotations": {"short": "kept"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "main"}]},
        }
        assert [each.get("continue") for each in asked] == [None, "50", "100"]
        assert {(each["limit"], each["labelSelector"]) for each in asked} == {("50", "a=b")}
        assert reads.gaps == ()


async def test_a_page_without_an_end_is_a_gap_and_what_came_before_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        if "continue" not in request.query:
            return web.json_response({"metadata": {"continue": "x"}, "items": [heavy(1)]})
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"items": [')
        while True:
            await response.write(b'"' + b"x" * 65_536 + b'",')
            sent += 65_536

    monkeypatch.setattr(module, "PAGE_BYTES", 1 << 20)
    async with answered(handler, tmp_path) as reads:
        (pod_read,) = await reads.list(CORE, "pods", "gpu")
        assert pod_read["metadata"]["name"] == "p1"
        (gap,) = reads.gaps
        assert gap.what == "pods of gpu"
        assert gap.why.endswith("/pods: the answer is longer than 1,048,576 bytes")
        assert sent < 16 << 20  # what sockets hold besides


async def test_a_list_that_never_ends_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response({"metadata": {"continue": "again"}, "items": []})

    monkeypatch.setattr(module, "LIST_SECONDS", 0.3)
    async with answered(handler, tmp_path) as reads:
        assert await reads.list(CORE, "pods", "gpu") == ()
        (gap,) = reads.gaps
        assert (gap.what, gap.why) == ("pods of gpu", "not all of it was read within 0.3 s")


async def test_few_lists_are_read_at_once_over_all_calls(tmp_path: Path) -> None:
    now, most, lists = 0, 0, 4 * module.LISTS
    full = anyio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if now == module.LISTS:
            full.set()
        await full.wait()
        for _ in range(20):  # whoever is not held back comes in the meantime
            await anyio.lowlevel.checkpoint()
        now -= 1
        return web.json_response({"items": []})

    async with answering(handler) as port:
        config = write_kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{port}", token="t")
        async with KubernetesApi(str(config)) as api, anyio.create_task_group() as tasks:
            workloads = Workloads({"": api})
            for number in range(lists):
                tasks.start_soon(workloads.reads().list, CORE, "pods", f"n{number}")
    assert most == module.LISTS


@pytest.mark.parametrize("name", ["../nodes/a", "a/b", "a?b=c", "..", ".", "", "a b", "a%2fb"])
async def test_a_name_cannot_lead_elsewhere(name: str) -> None:
    async with reading() as (api, reads):
        assert await reads.get(CORE, "pods", name, "gpu") is None
        assert await reads.log("gpu", name, "agent", previous=False) is None
        if name:
            assert await reads.get(CORE, "pods", "agent-a", name) is None
            assert await reads.list(CORE, "pods", name) == ()
        assert api.requests == []
        assert {gap.why for gap in reads.gaps} == {"no such name can be"}


async def test_of_a_log_the_end_is_read(tmp_path: Path) -> None:
    asked: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(dict(request.query))
        lines = [f"{number} {'x' * 400}" for number in range(1000)]
        return web.Response(text="\n".join(lines) + "\n")

    async with answered(handler, tmp_path) as reads:
        for _ in range(2):
            found = await reads.log("gpu", "a", "main", previous=True)
            assert found is not None
            assert found[-1].startswith("999 ")
            assert sum(map(len, found)) <= module.LOG_BYTES
            assert len(found) <= module.LOG_LINES
        assert reads.requests == 1
        assert asked == [{"container": "main", "previous": "true", "tailLines": "200"}]


async def test_bytes_that_are_no_text_are_shown_as_such(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"\xff\xfe bad\nlast")

    async with answered(handler, tmp_path) as reads:
        assert await reads.log("gpu", "a", "main", previous=False) == ("\ufffd\ufffd bad", "last")


async def test_a_log_that_may_not_be_read_names_the_right(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response({"kind": "Status", "reason": "Forbidden"}, status=403)

    async with answered(handler, tmp_path) as reads:
        assert await reads.log("gpu", "a", "main", previous=False) is None
        assert reads.gaps == (
            Gap(what="log of main in pod gpu/a", why="forbidden", grant="get pods/log in gpu"),
        )


async def test_without_a_cluster_one_gap_says_so() -> None:
    reads = Workloads({}).reads()
    assert await reads.get(CORE, "pods", "a", "gpu") is None
    assert await reads.list(CORE, "pods") == ()
    (gap,) = reads.gaps
    assert (gap.what, reads.requests) == ("Kubernetes", 0)


async def test_a_cluster_is_picked_by_its_name_and_a_single_one_needs_none() -> None:
    async with FakeApiServer() as api, KubernetesApi(str(api.kubeconfig)) as reader:
        await api.apply(node("a"))
        one, two = Workloads({"east": reader}), Workloads({"east": reader, "west": reader})
        assert two.clusters == ("east", "west")
        for reads in (one.reads(), one.reads("elsewhere"), two.reads("west")):
            assert await reads.get(CORE, "nodes", "a") is not None
        nobody = two.reads()
        assert await nobody.get(CORE, "nodes", "a") is None
        assert nobody.gaps[0].what == "Kubernetes"

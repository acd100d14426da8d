"""The API server as our client meets it: refusals, watches, expired credentials."""

import json
import threading
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from support.kubeapi.answering import PRINT, SECRET, answering, failure, program, who
from support.kubeapi.credentials import write_kubeconfig
from support.peer import listen
from transports.kubernetes import KubernetesApi, KubernetesError
from transports.refusals import refusal


async def test_parameters_and_a_path_before_the_api_are_kept(tmp_path: Path) -> None:
    async with answering(who) as port:
        config = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{port}/k8s/c-1/")
        async with KubernetesApi(str(config)) as api:
            shown = await api.get("/api", {"labelSelector": "a=b,c in (d)"})
    assert shown["path"] == "/k8s/c-1/api?labelSelector=a%3Db,c+in+(d)"


async def test_new_credentials_are_loaded_once_for_all_who_are_refused(tmp_path: Path) -> None:
    valid = "first"
    refused: list[str] = []

    async def check(request: web.Request) -> web.Response:
        if request.headers["Authorization"] != f"Bearer {valid}":
            refused.append(request.headers["Authorization"])
            return web.json_response({"kind": "Status", "message": "Unauthorized"}, status=401)
        return await who(request)

    runs = tmp_path / "runs"
    body = f"open({str(runs)!r}, 'a').write('x')\n{PRINT}"
    status_file = tmp_path / "status"
    async with answering(check) as port:
        config = write_kubeconfig(
            tmp_path / "config", f"http://127.0.0.1:{port}", user=program(tmp_path, body)
        )
        status_file.write_text('{"token": "first"}')
        async with KubernetesApi(str(config)) as api:
            await api.get("/api")
            valid = "second"
            status_file.write_text('{"token": "second"}')
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(api.get, "/api")
            assert runs.read_text() == "xx"
            assert 1 <= len(refused) <= 10
            valid = "third"
            with pytest.raises(KubernetesError, match="HTTP 401 Unauthorized: Unauthorized"):
                await api.get("/api")
            assert runs.read_text() == "xxx"  # asked again, and once only


@pytest.mark.parametrize(
    ("status", "body", "message", "reason"),
    [
        (
            403,
            b'{"kind":"Status","message":"pods is forbidden","reason":"Forbidden"}',
            "HTTP 403 Forbidden: pods is forbidden",
            "Forbidden",
        ),
        (410, b'{"kind":"Status","reason":"Expired"}', "HTTP 410 Forbidden: Expired", "Expired"),
        (404, b"404 page not found\n", "HTTP 404 Forbidden: 404 page not found", ""),
        (502, b"<html>oops</html>", "HTTP 502 Forbidden", ""),
        (500, b"", "HTTP 500 Forbidden", ""),
        (500, b'{"kind":"Other","message":"no"}', "HTTP 500 Forbidden", ""),
        (500, b"[1]", "HTTP 500 Forbidden", ""),
        (500, b"\x1b[2J\xffbad", "HTTP 500 Forbidden: [2J\ufffdbad", ""),
    ],
)
def test_a_refusal_says_what_the_status_says(
    status: int, body: bytes, message: str, reason: str
) -> None:
    error = refusal(status, "Forbidden", body)
    assert (str(error), error.status, error.reason) == (message, status, reason)


def test_no_refusal_is_too_deep() -> None:
    assert refusal(500, "", b"[" * 60_000).status == 500


async def test_a_refusal_that_arrives_in_pieces_is_read_whole(tmp_path: Path) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=403)
        await response.prepare(request)
        for part in (b'{"kind":"Status","reason":"Forb', b'idden","message":"no', b't you"}'):
            await response.write(part)
            await anyio.sleep(0.01)
        return response

    async with answering(refuse) as port:
        error = await failure(write_kubeconfig(tmp_path / "c", f"http://127.0.0.1:{port}"))
    assert str(error) == "HTTP 403 Forbidden: not you"
    assert error.reason == "Forbidden"


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    followed: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        followed.append(request.path)
        raise web.HTTPFound("/login")

    async with answering(redirect) as port:
        config = write_kubeconfig(tmp_path / "c", f"http://127.0.0.1:{port}", token=SECRET)
        assert (await failure(config)).status == 302
        async with KubernetesApi(str(config)) as api:
            with pytest.raises(KubernetesError, match="HTTP 302"):
                await api.websocket("/api/exec", [], ["v5.channel.k8s.io"])
    assert followed == ["/api", "/api/exec"]


async def test_an_answer_that_is_no_json_is_told(tmp_path: Path) -> None:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>")

    async with answering(page) as port:
        error = await failure(write_kubeconfig(tmp_path / "c", f"http://127.0.0.1:{port}"))
    assert "/api: the answer is not JSON" in str(error)


async def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with listen("127.0.0.1") as gone:
        port = gone.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", "http://", "gopher://x", "https://x y"):
        config = write_kubeconfig(tmp_path / "c", url, token=SECRET)
        error = await failure(config)
        assert error.status == 0
        assert str(error).startswith("cannot reach the API server: ")


async def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    async def silent(request: web.Request) -> web.Response:
        await anyio.sleep_forever()
        raise AssertionError

    async with answering(silent) as port:
        config = write_kubeconfig(tmp_path / "c", f"http://127.0.0.1:{port}")
        async with KubernetesApi(str(config)) as api:
            with pytest.raises(KubernetesError, match="did not answer /api in time"):
                await api.get("/api", seconds=0.2)
            with pytest.raises(KubernetesError, match="did not answer /watch in time"):
                async with api.lines("/watch", {}, silence_seconds=0.2):
                    pass


async def test_the_lines_of_a_watch_arrive_however_they_are_cut(tmp_path: Path) -> None:
    sent = [json.dumps({"number": n, "text": "ä" * n}, ensure_ascii=False) for n in range(60)]

    async def watch(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        data = "".join(f"{line}\n" for line in sent).encode()
        size = int(request.query["size"])
        for start in range(0, len(data), size):
            await response.write(data[start : start + size])
        return response

    async with answering(watch) as port:
        config = write_kubeconfig(tmp_path / "c", f"http://127.0.0.1:{port}")
        async with KubernetesApi(str(config)) as api:
            for size in (1, 7, 100_000):
                async with api.lines("/w", {"size": str(size)}, silence_seconds=20) as lines:
                    assert [line.decode() async for line in lines] == sent


@pytest.mark.parametrize(
    ("end", "words"), [("silence", "did not answer /w in time"), ("cut", "cannot reach")]
)
async def test_a_watch_that_falls_silent_or_breaks_is_an_error(
    end: str, words: str, tmp_path: Path
) -> None:
    async def watch(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type":"ADDED"}\n{"type"')
        if end == "silence":
            await anyio.sleep_forever()
        assert request.transport is not None
        await anyio.sleep(0.05)
        request.transport.abort()
        return response

    async with answering(watch) as port:
        config = write_kubeconfig(tmp_path / "c", f"http://127.0.0.1:{port}")
        found: list[bytes] = []

        async def read() -> None:
            async with api.lines("/w", {}, silence_seconds=0.3) as lines:
                async for line in lines:
                    found.append(line)  # noqa: PERF401

        async with KubernetesApi(str(config)) as api:
            with pytest.raises(KubernetesError, match=words):
                await read()
    assert found == [b'{"type":"ADDED"}']


async def test_leaving_a_watch_early_ends_it(tmp_path: Path) -> None:
    ended = anyio.Event()

    async def watch(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"{}\n")
                await anyio.sleep(0.01)
        except ConnectionError:
            ended.set()
            raise

    async with answering(watch) as port:
        config = write_kubeconfig(tmp_path / "c", f"http://127.0.0.1:{port}")
        async with KubernetesApi(str(config)) as api:
            async with api.lines("/w", {}, silence_seconds=20) as lines:
                assert await anext(aiter(lines)) == b"{}"
            with anyio.fail_after(20):
                await ended.wait()


async def test_entering_does_nothing(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    async with KubernetesApi(str(tmp_path / "nowhere")):
        assert set(threading.enumerate()) <= before

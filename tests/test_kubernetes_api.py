"""The API server as our client meets it: credentials of every kind, refusals, watches."""

import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from support.kubeapi.credentials import Authority, embedded, write_kubeconfig
from support.peer import children, listen, until
from transports import credentials
from transports.kubernetes import NO_CREDENTIALS, KubernetesApi, KubernetesError, refusal

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SECRET = "s3cret-token"


@asynccontextmanager
async def answering(handler: Handler, **options: Any) -> AsyncIterator[int]:
    """A server whose every path is the handler's; yields its port."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    listener = listen("127.0.0.1")
    await web.SockSite(runner, listener, **options).start()
    try:
        yield listener.getsockname()[1]
    finally:
        with anyio.CancelScope(shield=True):
            await runner.cleanup()


async def who(request: web.Request) -> web.Response:
    """What the server has been shown."""
    assert request.transport is not None
    certificate = request.transport.get_extra_info("peercert") or {}
    subject = dict(pair for part in certificate.get("subject", ()) for pair in part)
    return web.json_response(
        {
            "authorization": request.headers.get("Authorization", ""),
            "certificate": subject.get("commonName", ""),
            "path": request.path_qs,
        }
    )


async def asked(kubeconfig: Path, path: str = "/api", **options: Any) -> Any:
    with anyio.fail_after(20):
        async with KubernetesApi(str(kubeconfig), **options) as api:
            return await api.get(path)


async def failure(kubeconfig: Path, **options: Any) -> KubernetesError:
    """What a request fails with. It holds no secret."""
    with pytest.raises(KubernetesError) as caught:
        await asked(kubeconfig, **options)
    error: BaseException | None = caught.value
    while error is not None:
        assert "s3cret" not in f"{error!r}"
        error = error.__cause__
    assert len(str(caught.value)) <= 500
    assert str(caught.value).isprintable()
    return caught.value


async def test_a_token_is_shown(tmp_path: Path) -> None:
    async with answering(who) as port:
        config = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{port}", token=SECRET)
        shown = await asked(config, "/api/v1/pods?limit=1")
    assert shown == {
        "authorization": f"Bearer {SECRET}",
        "certificate": "",
        "path": "/api/v1/pods?limit=1",
    }


async def test_parameters_and_a_path_before_the_api_are_kept(tmp_path: Path) -> None:
    async with answering(who) as port:
        config = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{port}/k8s/c-1/")
        async with KubernetesApi(str(config)) as api:
            shown = await api.get("/api", {"labelSelector": "a=b,c in (d)"})
    assert shown["path"] == "/k8s/c-1/api?labelSelector=a%3Db,c+in+(d)"


async def test_files_named_in_a_kubeconfig_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    authority = Authority(folder)
    authority.issue("alice")
    (folder / "token").write_text(f"{SECRET}\n")
    monkeypatch.chdir(tmp_path)
    async with answering(who, ssl_context=authority.server("127.0.0.1")) as port:
        config = write_kubeconfig(
            folder / "config",
            f"https://127.0.0.1:{port}",
            cluster={"certificate-authority": "fake-ca.crt"},
            user={
                "client-certificate": "alice.crt",
                "client-key": "alice.key",
                "tokenFile": "token",
            },
        )
        shown = await asked(config)
    assert shown["certificate"] == "alice"
    assert shown["authorization"] == f"Bearer {SECRET}"


async def test_embedded_certificates_are_used_by_several_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.aio.config import kube_config

    def late(*arguments: Any) -> Any:
        time.sleep(0.05)  # the library has told of the file, and not yet written it
        return open(*arguments)

    monkeypatch.setattr(kube_config, "open", late, raising=False)
    authority = Authority(tmp_path)
    certificate, key = authority.issue("alice")
    async with answering(who, ssl_context=authority.server("127.0.0.1")) as port:
        config = write_kubeconfig(
            tmp_path / "config",
            f"https://127.0.0.1:{port}",
            cluster={"certificate-authority-data": embedded(authority.certificate)},
            user={
                "client-certificate-data": embedded(certificate),
                "client-key-data": embedded(key),
            },
        )
        shown: list[Any] = []

        async def ask() -> None:
            shown.append(await asked(config))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(ask)
    assert [one["certificate"] for one in shown] == ["alice"] * 8


async def test_the_servers_certificate_is_checked(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other-ca")
    async with answering(who, ssl_context=authority.server("api.example")) as port:

        def config(**cluster: Any) -> Path:
            return write_kubeconfig(
                tmp_path / "config", f"https://127.0.0.1:{port}", cluster=cluster
            )

        ours = {"certificate-authority": str(authority.certificate)}
        named = config(**ours, **{"tls-server-name": "api.example"})
        assert (await asked(named))["path"] == "/api"
        insecure = config(**{"insecure-skip-tls-verify": True})
        assert (await asked(insecure))["path"] == "/api"
        for cluster, words in [
            (ours, "IP address mismatch"),
            ({**ours, "tls-server-name": "other.example"}, "Hostname mismatch"),
            (
                {"certificate-authority": str(other.certificate), "tls-server-name": "api.example"},
                "CERTIFICATE_VERIFY_FAILED",
            ),
        ]:
            error = await failure(config(**cluster))
            assert error.status == 0
            assert words in str(error)


def program(folder: Path, body: str) -> dict[str, Any]:
    """A user whose credentials a program prints."""
    script = folder / "login.py"
    script.write_text(body)
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": ["-I", "-S", str(script)],
            "interactiveMode": "Never",
        }
    }


PRINT = """
import json, os, sys
print(json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
                  "status": json.load(open(os.path.join(os.path.dirname(__file__), "status")))}))
"""


async def test_a_program_gives_the_credentials(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("alice")
    status_file = tmp_path / "status"
    async with answering(who, ssl_context=authority.server("127.0.0.1")) as port:
        config = write_kubeconfig(
            tmp_path / "config",
            f"https://127.0.0.1:{port}",
            cluster={"certificate-authority": str(authority.certificate)},
            user=program(tmp_path, PRINT),
        )
        status_file.write_text(json.dumps({"token": SECRET}))
        assert (await asked(config))["authorization"] == f"Bearer {SECRET}"
        status_file.write_text(
            json.dumps(
                {
                    "clientCertificateData": certificate.read_text(),
                    "clientKeyData": key.read_text(),
                }
            )
        )
        assert (await asked(config))["certificate"] == "alice"


@pytest.mark.parametrize(
    "body",
    ["import sys; print('s3cret', file=sys.stderr); sys.exit(1)", "print('s3cret')", "print('{}')"],
)
async def test_a_program_that_gives_none_is_told(body: str, tmp_path: Path) -> None:
    config = write_kubeconfig(tmp_path / "config", "https://x", user=program(tmp_path, body))
    error = await failure(config)
    assert error.reason == NO_CREDENTIALS
    assert str(error).endswith("config: the program that it names for credentials gave none")


async def test_a_program_that_never_ends_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "LOAD_SECONDS", 0.5)
    before = children()
    user = program(tmp_path, "import time; time.sleep(600)")
    error = await failure(write_kubeconfig(tmp_path / "config", "https://x", user=user))
    assert str(error).endswith("config: no credentials within 0.5 s")
    await until(lambda: children() == before)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "this is no kubeconfig"),
        ("- a\n", "this is no kubeconfig"),
        ('{"clusters": 7}', "this is no kubeconfig"),
        ("{}", "Expected key current-context"),
        ("a: [", "line 1"),
        ("a\tb: {", "line 1"),
        ('{"current-context": "x", "contexts": [], "clusters": [], "users": []}', "name x in"),
        (
            '{"current-context": "x", "clusters": [{"name": "c", "cluster": {"server": "https://c"}}],'
            '"contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],'
            '"users": [{"name": "u", "token": "s3cret"}]}',
            "Expected key user",
        ),
        (
            '{"current-context": "x", "clusters": [{"name": "c", "cluster": {"server": "https://c"}}],'
            '"contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],'
            '"users": [{"name": "u", "user": {"client-key-data": "s3cret!", "token": 7,'
            ' "client-certificate-data": "s3cret"}}]}',
            "config",
        ),
        (
            '{"current-context": "x", "clusters": [{"name": "c", "cluster": {"server": "https://c"}}],'
            '"contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],'
            '"users": [{"name": "u", "user": {"token": "s3cret\\nX-Other: 1"}}]}',
            "the token holds what no HTTP header may",
        ),
    ],
)
async def test_a_kubeconfig_that_makes_no_sense_is_named_and_not_quoted(
    text: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    error = await failure(path)
    assert str(error).startswith(f"no usable Kubernetes credentials: {path}: ")
    assert words in str(error)
    assert (error.status, error.reason) == (0, NO_CREDENTIALS)


async def test_a_missing_kubeconfig_and_a_missing_context_are_told(tmp_path: Path) -> None:
    error = await failure(tmp_path / "nowhere")
    assert str(error).endswith("nowhere: no such kubeconfig")
    config = write_kubeconfig(tmp_path / "config", "https://x")
    assert "name prod in" in str(await failure(config, context="prod"))


async def test_several_kubeconfigs_are_one(tmp_path: Path) -> None:
    async with answering(who) as port:
        one = write_kubeconfig(tmp_path / "one", "https://elsewhere", context="one")
        two = write_kubeconfig(tmp_path / "two", f"http://127.0.0.1:{port}", context="two")
        document = json.loads(two.read_text())
        document["clusters"][0]["name"] = document["contexts"][0]["context"]["cluster"] = "second"
        two.write_text(json.dumps(document))
        both = f"{tmp_path / 'none'}:{one}:{two}"
        async with KubernetesApi(both, "two") as api:
            assert (await api.get("/api"))["path"] == "/api"


async def test_the_environment_names_the_kubeconfig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_kubeconfig(tmp_path / "config", "https://x", namespace="gpu")
    monkeypatch.setenv("KUBECONFIG", str(config))
    async with KubernetesApi() as api:
        assert await api.namespace() == "gpu"
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "other", "https://x")))
    async with KubernetesApi() as api:
        assert await api.namespace() == "default"


async def test_in_a_pod_its_own_credentials_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.aio.config import incluster_config

    authority = Authority(tmp_path)
    (tmp_path / "token").write_text(f"{SECRET}\n")
    (tmp_path / "namespace").write_text("gpu\n")
    (tmp_path / "ca.crt").write_bytes(authority.certificate.read_bytes())
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", str(tmp_path))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    async with answering(who, ssl_context=authority.server("127.0.0.1")) as port:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
        async with KubernetesApi() as api:
            assert await api.namespace() == "gpu"
            assert (await api.get("/api"))["authorization"] == f"bearer {SECRET}"


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


async def test_a_netrc_is_none_of_its_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with answering(who) as port:
        plain = write_kubeconfig(tmp_path / "plain", f"http://127.0.0.1:{port}")
        assert (await asked(plain))["authorization"] == ""
        token = write_kubeconfig(tmp_path / "token", f"http://127.0.0.1:{port}", token=SECRET)
        assert (await asked(token))["authorization"] == f"Bearer {SECRET}"


async def test_a_proxy_is_used_as_kubectl_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def proxy(request: web.Request) -> web.Response:
        return web.json_response({"for": request.headers["Host"]})

    async with answering(proxy) as port:
        url = f"http://127.0.0.1:{port}"
        named = write_kubeconfig(
            tmp_path / "named", "http://api.example:6443", cluster={"proxy-url": url}
        )
        assert await asked(named) == {"for": "api.example:6443"}
        monkeypatch.setenv("http_proxy", url)
        plain = write_kubeconfig(tmp_path / "plain", "http://api.example:6443")
        assert await asked(plain) == {"for": "api.example:6443"}
        monkeypatch.setenv("no_proxy", "api.example")
        assert (await failure(plain)).status == 0
    for url in ("http://me:s3cret@127.0.0.1:1", "socks5://me:s3cret@127.0.0.1:1", "::"):
        broken = write_kubeconfig(
            tmp_path / "broken", "https://api.example", cluster={"proxy-url": url}
        )
        assert (await failure(broken)).status == 0


async def test_credentials_are_not_shown(tmp_path: Path) -> None:
    config = write_kubeconfig(tmp_path / "c", "https://x", token=SECRET)
    loaded = await anyio.to_thread.run_sync(credentials.load, str(config))
    assert loaded.authorization == f"Bearer {SECRET}"
    assert SECRET not in f"{loaded!r} {loaded}"


async def test_entering_does_nothing(tmp_path: Path) -> None:
    before = threading.active_count()
    async with KubernetesApi(str(tmp_path / "nowhere")):
        assert threading.active_count() == before

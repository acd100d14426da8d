"""Credentials for an API server, from kubeconfigs of every kind and from a pod's own mount."""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from anyio.abc import ByteStream

from support.kubeapi.answering import PRINT, SECRET, answering, asked, failure, program, who
from support.kubeapi.credentials import Authority, embedded, write_kubeconfig
from support.peer import speaking, until
from transports import credentials
from transports import program as module
from transports.kubernetes import NO_CREDENTIALS, KubernetesApi


@asynccontextmanager
async def embedding(user: str, folder: Path) -> AsyncIterator[Path]:
    """A server that asks for certificates, and the kubeconfig that holds a user's."""
    authority = Authority(folder)
    certificate, key = authority.issue(user)
    async with answering(who, ssl_context=authority.server("127.0.0.1")) as port:
        yield write_kubeconfig(
            folder / "config",
            f"https://127.0.0.1:{port}",
            cluster={"certificate-authority-data": embedded(authority.certificate)},
            user={
                "client-certificate-data": embedded(certificate),
                "client-key-data": embedded(key),
            },
        )


async def test_a_token_is_shown(tmp_path: Path) -> None:
    async with answering(who) as port:
        config = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{port}", token=SECRET)
        shown = await asked(config, "/api/v1/pods?limit=1")
    assert shown == {
        "authorization": f"Bearer {SECRET}",
        "certificate": "",
        "path": "/api/v1/pods?limit=1",
    }


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
    async with embedding("alice", tmp_path) as config:
        shown: list[Any] = []

        async def ask() -> None:
            shown.append(await asked(config))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(ask)
    assert [one["certificate"] for one in shown] == ["alice"] * 8


async def test_no_key_is_left_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    async with embedding("alice", tmp_path) as config:
        for _ in range(2):
            assert (await asked(config))["certificate"] == "alice"
            assert list(folder.iterdir()) == []


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
async def test_a_program_that_gives_none_is_told(
    body: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = write_kubeconfig(tmp_path / "config", "https://x", user=program(tmp_path, body))
    error = await failure(config)
    assert error.reason == NO_CREDENTIALS
    assert "the program for credentials" in str(error)
    assert "s3cret" not in str(error) + caplog.text


async def test_a_program_that_fails_is_named_with_the_way_to_log_in_and_not_its_arguments(
    tmp_path: Path,
) -> None:
    user = program(tmp_path, "import sys; sys.exit(9)")
    user["exec"]["args"].append("--client-secret=s3cret")
    config = write_kubeconfig(tmp_path / "config", "https://x", user=user, context="prod")
    for context in ("prod", ""):
        assert str(await failure(config, context=context)) == (
            f"no usable Kubernetes credentials: the program for credentials {sys.executable!r} "
            f"failed with exit status 9 (context prod); run `kubectl --kubeconfig {config} "
            "--context prod version` in a terminal, which shows what it says and lets you log in"
        )


async def test_a_program_that_has_just_failed_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may open a browser each time."""
    runs = tmp_path / "runs"
    body = f"open({str(runs)!r}, 'a').write('x'); raise SystemExit(1)"
    config = write_kubeconfig(tmp_path / "config", "https://x", user=program(tmp_path, body))
    said = {str(await failure(config)) for _ in range(3)}
    assert (len(said), runs.read_text()) == (1, "x")
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    await failure(config)
    assert runs.read_text() == "xx"


async def test_a_program_that_is_not_found_says_where_it_was_looked_for(tmp_path: Path) -> None:
    for command, words in (
        ("no-such-login", "'no-such-login' is in no folder of PATH"),
        ("./no-such-login", "'./no-such-login' is not there"),
    ):
        user = program(tmp_path, "")
        user["exec"]["command"] = command
        config = write_kubeconfig(tmp_path / "config", "https://x", user=user)
        assert words in str(await failure(config))


async def test_a_program_may_lie_beside_the_kubeconfig_and_is_told_of_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    authority, told = Authority(folder), folder / "told"
    script = folder / "login"
    script.write_text(
        f"#!{sys.executable}\nimport json, os\n"
        f"open({str(told)!r}, 'w').write(os.environ['KUBERNETES_EXEC_INFO'])\n"
        f"print(json.dumps({{'status': {{'token': {SECRET!r}}}}}))\n"
    )
    script.chmod(0o700)
    user = program(folder, "")
    user["exec"] |= {"command": "./login", "args": None, "provideClusterInfo": True}
    extension = {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "a"}}
    monkeypatch.chdir(tmp_path)
    async with answering(who, ssl_context=authority.server("127.0.0.1")) as port:
        server = f"https://127.0.0.1:{port}"
        cluster = {"certificate-authority": authority.certificate.name, "extensions": [extension]}
        config = write_kubeconfig(folder / "config", server, cluster=cluster, user=user)
        assert (await asked(config))["authorization"] == f"Bearer {SECRET}"
    assert json.loads(told.read_text())["spec"] == {
        "interactive": False,
        "cluster": {
            "server": server,
            "certificate-authority-data": embedded(authority.certificate),
            "config": {"audience": "a"},
        },
    }


async def test_a_program_that_waits_holds_up_nobody_else(tmp_path: Path) -> None:
    go, runs = tmp_path / "go", tmp_path / "runs"
    body = (
        "import os, time\n"
        f"open({str(runs)!r}, 'w').close()\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\n" + PRINT
    )
    (tmp_path / "status").write_text(json.dumps({"token": SECRET}))
    async with answering(who) as port, anyio.create_task_group() as tasks:
        url = f"http://127.0.0.1:{port}"
        slow = write_kubeconfig(tmp_path / "slow", url, user=program(tmp_path, body))
        tasks.start_soon(asked, slow)
        with anyio.fail_after(20):
            while not runs.exists():
                await anyio.sleep(0.01)
        quick = write_kubeconfig(tmp_path / "quick", url, token=SECRET)
        assert (await asked(quick))["authorization"] == f"Bearer {SECRET}"
        go.touch()


async def test_a_program_that_never_ends_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROGRAM_SECONDS", 2.0)
    pid = tmp_path / "pid"
    body = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    user = program(tmp_path, body)
    error = await failure(write_kubeconfig(tmp_path / "config", "https://x", user=user))
    assert "took longer than 2 s" in str(error)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "this is no kubeconfig"),
        ("- a\n", "this is no kubeconfig"),
        ('{"clusters": 7}', "this is no kubeconfig"),
        ("{}", "it has no current context; there are: none"),
        ("a: [", "line 1"),
        ("a\tb: {", "line 1"),
        ('{"current-context": "x", "contexts": [], "clusters": [], "users": []}', "no context 'x'"),
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
    error = await failure(config, context="prod")
    assert str(error).endswith("there is no context 'prod'; there are: fake")


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
        # The first that names a current context counts, as for kubectl.
        assert (await asked(Path(f"{two}:{one}")))["path"] == "/api"
    assert credentials.contexts(both) == ("one", "two")


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


@pytest.mark.parametrize("status", [403, 407, 502, 503])
async def test_a_proxy_that_refuses_is_told_without_its_password(
    status: int, tmp_path: Path
) -> None:
    async def refuse(stream: ByteStream) -> None:
        await stream.receive()
        await stream.send(f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n".encode())
        await stream.aclose()

    async with speaking(refuse) as proxy:
        url = f"http://me:s3cret@127.0.0.1:{proxy.port}"
        config = write_kubeconfig(
            tmp_path / "config", "https://api.example", cluster={"proxy-url": url}
        )
        error = await failure(config)
    assert str(error) == f"the proxy refused: HTTP {status} No"


@pytest.mark.parametrize(
    ("server", "no_proxy", "used"),
    [
        ("https://10.96.0.1", "", True),
        ("https://10.96.0.1", "192.168.0.0/16, 10.0.0.0/8", False),
        ("https://[fd00::1]", "fd00::/8", False),
        ("https://127.0.0.1:6443", "", False),
        ("https://[::1]:6443", "", False),
        ("https://localhost:6443", "", False),
    ],
)
async def test_a_proxy_of_the_environment_is_for_what_is_not_near(
    server: str, no_proxy: str, used: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "corp.example:3128")
    monkeypatch.setenv("no_proxy", no_proxy)
    config = write_kubeconfig(tmp_path / "config", server)
    loaded = await anyio.to_thread.run_sync(credentials.load, str(config))
    assert loaded.proxy == ("http://corp.example:3128" if used else None)


async def test_impersonation_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    config = write_kubeconfig(tmp_path / "c", "https://x", user={"token": SECRET, "as": "viewer"})
    assert "impersonates" in str(await failure(config))


async def test_a_slow_program_is_asked_once_for_all_who_wait_and_leave(tmp_path: Path) -> None:
    go, runs = tmp_path / "go", tmp_path / "runs"
    body = (
        "import os, time\n"
        f"open({str(runs)!r}, 'a').write('x')\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\n" + PRINT
    )
    (tmp_path / "status").write_text(json.dumps({"token": SECRET}))
    async with answering(who) as port:
        config = write_kubeconfig(
            tmp_path / "c", f"http://127.0.0.1:{port}", user=program(tmp_path, body)
        )
        async with KubernetesApi(str(config)) as api:
            for _ in range(3):
                with anyio.move_on_after(0.2) as left:
                    await api.get("/api")
                assert left.cancelled_caught
            await anyio.Path(go).touch()
            with anyio.fail_after(20):
                assert (await api.get("/api"))["authorization"] == f"Bearer {SECRET}"
    assert await anyio.Path(runs).read_text() == "x"


async def test_a_failure_that_nobody_waited_for_is_not_the_next_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    go = tmp_path / "go"
    body = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n{PRINT}"
    async with answering(who) as port:
        config = write_kubeconfig(
            tmp_path / "c", f"http://127.0.0.1:{port}", user=program(tmp_path, body)
        )
        others = asyncio.all_tasks()
        async with KubernetesApi(str(config)) as api:
            with anyio.move_on_after(0.2) as left:
                await api.get("/api")
            assert left.cancelled_caught
            go.touch()  # it has nothing to print, and fails
            await until(lambda: asyncio.all_tasks() <= others)
            (tmp_path / "status").write_text(json.dumps({"token": SECRET}))
            assert (await api.get("/api"))["authorization"] == f"Bearer {SECRET}"


async def test_credentials_are_not_shown(tmp_path: Path) -> None:
    config = write_kubeconfig(tmp_path / "c", "https://x", token=SECRET)
    loaded = await anyio.to_thread.run_sync(credentials.load, str(config))
    assert loaded.authorization == f"Bearer {SECRET}"
    assert SECRET not in f"{loaded!r} {loaded}"

"""Bearer tokens on the HTTP listener, and the agent that has no such listener."""

import logging
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
import pytest

from mcp_gpu.serving.access import tokens as static
from mcp_gpu.serving.access.model import AccessPolicy
from mcp_gpu.serving.server import HttpEndpoint, ListenError, serve
from support.cluster import PROGRAM, Cluster, cluster
from support.demo_server import registry
from support.door import door
from support.kubeapi.credentials import Authority
from support.wire import PATIENCE_SECONDS, call, serving

FLEET = """
[[nodes]]
name = "a"
profile = "t4"
"""


@asynccontextmanager
async def guarded(token_file: Path) -> AsyncIterator[tuple[str, httpx.AsyncClient]]:
    endpoint = HttpEndpoint(port=0, access=AccessPolicy(token_file=token_file))
    async with (
        serving(registry(), http=endpoint) as listening,
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
    ):
        yield f"http://127.0.0.1:{listening.http[0][1]}", client


async def ask(client: httpx.AsyncClient, url: str, authorization: str | None) -> httpx.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    return await client.post(f"{url}/mcp", json=call("echo", text="hi"), headers=headers)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text("first\n\n  second  \n")
    return file


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer first", 200),
        ("bearer  second", 200),
        (None, 401),
        ("Bearer", 401),
        ("Bearer first2", 401),
        ("Bearer first second", 401),
        ("Basic first", 401),
        ("first", 401),
    ],
)
async def test_a_caller_shows_one_of_the_tokens(
    tokens: Path, authorization: str | None, status: int
) -> None:
    async with guarded(tokens) as (url, client):
        answer = await ask(client, url, authorization)
    assert answer.status_code == status
    if status == 401:
        known = authorization is not None and authorization.startswith("Bearer first")
        error = ' error="invalid_token"' if known else ""
        assert answer.headers["www-authenticate"] == f"Bearer{error}"
        assert "bearer token" in answer.json()["error"]["message"]
        assert "first" not in answer.text


@pytest.mark.parametrize(
    "query",
    [
        "access_token=first",
        "token=first",
        "a=b&Access_Token=first",
        "acce%73s_token=first",
        "token",
    ],
)
@pytest.mark.parametrize("wanted", [True, False])
async def test_a_token_in_the_url_is_refused_and_not_repeated(
    tokens: Path, caplog: pytest.LogCaptureFixture, query: str, wanted: bool
) -> None:
    policy = AccessPolicy(token_file=tokens if wanted else None)
    async with door(policy, caplog) as opened:
        url = f"{opened.url}/mcp?{query}"
        headers = {"Authorization": "Bearer first"}
        answer = await opened.client.post(url, json=call("echo", text="hi"), headers=headers)
    assert answer.status_code == 400
    assert "Send it as a header" in answer.json()["error"]["message"]
    assert "first" not in answer.text
    assert not any("first" in each.message for each in caplog.records if "httpx" not in each.name)


@pytest.mark.parametrize(
    "value", [b"x" * 20_000, b"x" * 60_000, b"f\xc3\xadrst", b"first\xff", b"first\x01"]
)
async def test_an_odd_token_is_no_token(tokens: Path, value: bytes) -> None:
    async with guarded(tokens) as (url, client):
        headers = {b"Authorization": b"Bearer " + value}
        answer = await client.post(f"{url}/mcp", json=call("echo", text="hi"), headers=headers)
        assert answer.status_code == 401
        assert (await ask(client, url, "Bearer first")).status_code == 200


async def test_two_tokens_are_none(tokens: Path) -> None:
    async with guarded(tokens) as (url, client):
        twice = [("Authorization", "Bearer first"), ("Authorization", "Bearer second")]
        answer = await client.post(f"{url}/mcp", json=call("echo", text="hi"), headers=twice)
    assert answer.status_code == 401


async def test_the_first_callers_of_all_are_let_in_together(tokens: Path) -> None:
    statuses: list[int] = []
    async with guarded(tokens) as (url, client), anyio.create_task_group() as tasks:

        async def call_once() -> None:
            statuses.append((await ask(client, url, "Bearer first")).status_code)

        for _ in range(8):
            tasks.start_soon(call_once)
    assert statuses == [200] * 8


async def test_what_a_kubelet_and_a_probe_read_stays_open(tokens: Path) -> None:
    async with guarded(tokens) as (url, client):
        for page in ("/healthz", "/readyz", "/version", "/metrics"):
            assert (await client.get(url + page)).status_code == 200


async def test_a_token_counts_as_long_as_it_is_in_the_file(
    tokens: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(static, "TOKENS_SECONDS", 0.0)

    async def status_of(token: str) -> int:
        return (await ask(client, url, f"Bearer {token}")).status_code

    async with guarded(tokens) as (url, client):
        assert await status_of("first") == 200
        await anyio.Path(tokens).write_text("third")
        assert [await status_of("first"), await status_of("third")] == [401, 200]
        await anyio.Path(tokens).write_text("")
        assert await status_of("third") == 401
        await anyio.Path(tokens).unlink()
        assert await status_of("third") == 401
        await anyio.Path(tokens).write_text("third")
        assert await status_of("third") == 200
    assert "nobody is let in" in caplog.text
    assert "third" not in caplog.text


async def test_a_file_that_cannot_be_read_is_told_once(
    tokens: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(static, "TOKENS_SECONDS", 0.0)
    async with guarded(tokens) as (url, client):
        for _ in range(2):
            caplog.clear()
            await anyio.Path(tokens).unlink()
            for _ in range(3):
                assert (await ask(client, url, "Bearer first")).status_code == 401
            assert caplog.text.count("nobody is let in") == 1
            await anyio.Path(tokens).write_text("first")
            assert (await ask(client, url, "Bearer first")).status_code == 200


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), ("\n", "holds no token"), ("two words\n", "may not hold blanks")],
)
async def test_a_file_without_tokens_is_one_clear_error_at_the_start(
    tmp_path: Path, content: str | None, words: str
) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ListenError, match=f"--token-file: .*{words}") as caught:
        await serve(
            registry(),
            http=HttpEndpoint(port=0, access=AccessPolicy(token_file=file)),
            signals=False,
        )
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize(
    ("hosts", "guarded_by_token", "warned"),
    [
        (("127.0.0.1", "::1"), False, False),
        (("localhost",), False, False),
        (("0.0.0.0",), False, True),
        (("0.0.0.0",), True, False),
        (("127.0.0.1",), True, False),
    ],
)
async def test_who_lets_everybody_in_on_purpose_says_so(
    hosts: tuple[str, ...],
    guarded_by_token: bool,
    warned: bool,
    tokens: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    token_file = tokens if guarded_by_token else None
    access = AccessPolicy(token_file=token_file, anonymous=not guarded_by_token)
    with caplog.at_level(logging.WARNING):
        async with serving(registry(), http=HttpEndpoint(port=0, hosts=hosts, access=access)):
            pass
    assert ("NO AUTHENTICATION" in caplog.text) is warned
    beyond_loopback = hosts == ("0.0.0.0",)
    in_the_clear = guarded_by_token and beyond_loopback
    assert ("the tokens that callers show cross the network" in caplog.text) is in_the_clear


@pytest.mark.parametrize("hosts", [("0.0.0.0",), ("::",), ("127.0.0.1", "192.0.2.1"), ("",)])
async def test_nobody_listens_beyond_loopback_without_a_token_by_accident(
    hosts: tuple[str, ...],
) -> None:
    with pytest.raises(ListenError) as caught:
        await serve(registry(), http=HttpEndpoint(port=0, hosts=hosts), signals=False)
    for way_out in ("--token-file", "--kubernetes-tokens", "--allow-anonymous"):
        assert way_out in str(caught.value)


@pytest.mark.parametrize(
    "role",
    [["agent", "--simulate", "demo", "--node-name", "t4-a"], ["gateway", "--agents", "a"]],
)
async def test_either_role_refuses_in_one_line(role: list[str]) -> None:
    with anyio.fail_after(60):
        refused = await anyio.run_process(
            [*PROGRAM, *role, "--http-host", "0.0.0.0", "--http-port", "0"], check=False
        )
    assert refused.returncode == 2
    said = refused.stderr.decode()
    assert "Traceback" not in said
    assert "--allow-anonymous" in said.splitlines()[-1]


@asynccontextmanager
async def fleet(folder: Path, agent_token: str) -> AsyncIterator[Cluster]:
    """An agent and a gateway that each want a token of their own."""
    for name, token in (("agent", "for-agents"), ("client", "for-clients"), ("shown", agent_token)):
        (folder / name).write_text(token)
    flags = ["--token-file", str(folder / "client"), "--agent-token-file", str(folder / "shown")]
    agent_flags = ["--token-file", str(folder / "agent")]
    authority = Authority(folder)
    async with cluster(
        folder, FLEET, *flags, agent_flags=agent_flags, authority=authority
    ) as running:
        yield running


async def status(*flags: str) -> subprocess.CompletedProcess[bytes]:
    with anyio.fail_after(60):
        return await anyio.run_process([*PROGRAM, "status", *flags], check=False)


async def test_each_hop_shows_a_token_of_its_own(tmp_path: Path) -> None:
    async with fleet(tmp_path, "for-agents") as running:
        url = f"{running.gateway.url}/mcp"
        shown = await status("--url", url, "--json", "--token-file", str(tmp_path / "client"))
        assert shown.returncode == 0, shown.stderr
        assert b'"via": "http"' in shown.stdout
        # No loopback address, and yet this machine.
        elsewhere = url.replace("127.0.0.1", "0.0.0.0")
        (tmp_path / "several").write_text("for-clients\nfor-nobody\n")
        in_clear = ["--url", elsewhere, "--json", "--token-file", str(tmp_path / "several")]
        kept = await status(*in_clear)
        told = await status(*in_clear, "--plain-token")
        refused = await status("--url", url, "--token-file", str(tmp_path / "agent"))
    assert kept.returncode == 2
    assert b"a token goes over https, or to this machine" in kept.stderr
    for way_out in (b"https://", b"kubectl port-forward", b"--plain-token"):
        assert way_out in kept.stderr
    with_password = await status("--url", "https://someone:hidden@gpu.example.com/mcp")
    assert with_password.returncode == 2
    assert b"--url may hold no user name or password" in with_password.stderr
    assert b"hidden" not in with_password.stderr + with_password.stdout
    assert told.returncode == 0, told.stderr
    assert refused.returncode == 2
    assert b"HTTP 401 Unauthorized: The bearer token is not one" in refused.stderr
    for log in (running.gateway.log, running.agents["a"].log):
        assert "for-" not in log.read_text()


async def test_an_agent_that_refuses_the_token_is_reached_by_the_next_path(tmp_path: Path) -> None:
    async with fleet(tmp_path, "for-clients") as running:
        flags = ["--url", f"{running.gateway.url}/mcp", "--json"]
        shown = await status(*flags, "--token-file", str(tmp_path / "client"))
    assert shown.returncode == 0, shown.stderr
    assert b'"via": "command"' in shown.stdout


async def test_without_http_the_socket_is_the_only_way_in(tmp_path: Path) -> None:
    path = tmp_path / "s" / "agent.sock"
    agent = [*PROGRAM, "agent", "--simulate", "demo", "--node-name", "t4-a", "--no-http"]
    async with await anyio.open_process([*agent, "--socket", str(path)], stdin=None) as process:
        assert process.stderr is not None
        log = b""
        with anyio.fail_after(60):
            while b"listening: " not in log:
                log += await process.stderr.receive()
            check = [*PROGRAM, "attach", "--check", "--socket", str(path)]
            checked = await anyio.run_process(check)
            listeners = await anyio.Path(f"/proc/{process.pid}/net/tcp").read_text()
            inodes = {
                str(await link.readlink())
                async for link in anyio.Path(f"/proc/{process.pid}/fd").iterdir()
            }
            process.terminate()
            assert await process.wait() == 0
    assert b"on node t4-a listens at" in checked.stdout
    assert b"://" not in log.split(b"listening: ")[1]
    listening = {line.split()[9] for line in listeners.splitlines()[1:] if line.split()[3] == "0A"}
    assert not {f"socket:[{inode}]" for inode in listening} & inodes

"""The audit log: who has called what, who was turned away, and what becomes of a full disk."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from mcp_gpu.serving.access.model import AccessPolicy
from mcp_gpu.serving.server import HttpEndpoint
from mcp_gpu.telemetry.audit import REFUSALS_PER_SECOND, AuditLog
from mcp_gpu.telemetry.calls import Calls, Refused
from mcp_gpu.telemetry.origin import Origin
from support.cluster import PROGRAM, cluster
from support.demo_server import registry
from support.door import Clock, Door, door
from support.kubeapi.access import POD_TOKEN, FakeCluster
from support.peer import until
from support.signer import Signer, kubernetes_claims
from support.wire import ERAS, call, serving, unix_transport

STATIC = "a-static-token-of-this-test"

JWT = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def written(path: Path, count: int) -> list[dict[str, Any]]:
    """The lines, once there are so many."""
    await until(lambda: len(lines(path)) >= count)
    found = lines(path)
    assert len(found) == count
    return found


@asynccontextmanager
async def asked(
    path: str | Path, policy: AccessPolicy, caplog: pytest.LogCaptureFixture, *secrets: str
) -> AsyncIterator[Door]:
    """The demo server, which keeps a log there."""
    served = registry()
    with AuditLog(str(path)) as audit:
        audit.hear(served)
        async with door(policy, caplog, *secrets, served=served) as opened:
            yield opened


@pytest.fixture
def policy(tmp_path: Path) -> AccessPolicy:
    (tmp_path / "tokens").write_text(STATIC)
    return AccessPolicy(token_file=tmp_path / "tokens")


@pytest.mark.parametrize("era", ERAS)
async def test_each_call_is_a_line_whatever_way_it_came(era: str, tmp_path: Path) -> None:
    served, path, socket_path = registry(), tmp_path / "audit", tmp_path / "s" / "agent.sock"
    with AuditLog(str(path)) as audit:
        audit.hear(served)
        async with serving(served, http=HttpEndpoint(port=0), socket_path=socket_path) as listening:
            url = f"http://127.0.0.1:{listening.http[0][1]}/mcp"
            for transport in (streamable_http_client(url), unix_transport(socket_path)):
                async with Client(transport, mode=era) as client:
                    await client.call_tool("echo", {"text": "hi"})
                    await client.call_tool("echo", {"text": "hi", "times": 0})
    found = lines(path)
    assert [line["listener"] for line in found] == ["http", "http", "unix", "unix"]
    assert [line["outcome"] for line in found] == ["ok", "bad_arguments"] * 2
    assert found[0]["peer"].startswith("127.0.0.1:")
    assert found[2]["peer"] == f"uid {os.getuid()} pid {os.getpid()}"
    assert {line["event"] for line in found} == {"call"}
    assert found[1]["arguments"] == {"text": "hi", "times": 0}
    assert {(line["tool"], line["token"], line["subject"]) for line in found} == {("echo", "", "")}
    assert len({line["call"] for line in found}) == 4
    assert all(0 <= line["seconds"] < 60 for line in found)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_who_calls_and_who_is_turned_away_are_told_and_no_token_is(
    policy: AccessPolicy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit"
    async with asked(path, policy, caplog, STATIC) as opened:
        assert (await opened.call(STATIC)).status_code == 200
        assert (await opened.call("another-token-that-nobody-knows")).status_code == 401
        foreign = {"Origin": "https://evil.example", "Authorization": f"Bearer {STATIC}"}
        answer = await opened.client.post(f"{opened.url}/mcp", json=call("who"), headers=foreign)
        assert answer.status_code == 403
    known, unknown, page = lines(path)
    assert (known["event"], known["token"], known["subject"]) == ("call", "static", "static")
    assert (unknown["event"], unknown["status"]) == ("refused", 401)
    assert (unknown["subject"], unknown["asked"]) == ("", "")
    assert unknown["peer"].startswith("127.0.0.1:")
    assert (page["event"], page["status"]) == ("refused", 403)
    assert STATIC not in path.read_text()
    assert "another-token" not in path.read_text()


async def test_a_caller_without_the_right_is_named_with_what_it_wanted(
    cluster: FakeCluster, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = AccessPolicy(kubernetes_tokens="jwks", token_audiences=("gpu",), access_review=True)
    user = "system:serviceaccount:apps:caller"
    cluster.granted = {(user, "echo")}
    path = tmp_path / "audit"
    async with asked(path, policy, caplog, POD_TOKEN) as opened:
        token = Signer().sign(kubernetes_claims(name="caller"))
        assert (await opened.call(token, "echo")).status_code == 200
        assert (await opened.call(token, "who")).status_code == 403
    may, may_not = lines(path)
    assert (may["token"], may["subject"], may["tool"]) == ("kubernetes", user, "echo")
    assert (may_not["subject"], may_not["asked"], may_not["status"]) == (user, "who", 403)


async def test_arguments_are_bounded_and_hold_no_token(
    policy: AccessPolicy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit"
    async with asked(path, policy, caplog, STATIC) as opened:
        text = f"Authorization: Bearer abc.def and {JWT} " + "x" * 10_000
        await opened.post(STATIC, call("echo", text=text, password="hunter2"))
        await opened.post(STATIC, call("echo", **{f"a{n}": "y" * 300 for n in range(1000)}))
        await opened.post(STATIC, call("echo", text=[["z" * 150] * 1000]))
    one, many, deep = lines(path)
    assert one["arguments"]["password"] == "[hidden]"
    assert one["arguments"]["text"].startswith("Authorization: [hidden] and [hidden] xxx")
    for line in (one, many, deep):
        assert len(json.dumps(line)) < 10_000
    for secret in ("hunter2", "abc.def", JWT, "yyy"):
        assert secret not in path.read_text()


async def test_callers_turned_away_do_not_fill_the_disk(
    policy: AccessPolicy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("mcp_gpu.telemetry.audit.monotonic", lambda: now)
    path = tmp_path / "audit"
    async with asked(path, policy, caplog, STATIC) as opened:
        for _ in range(REFUSALS_PER_SECOND + 5):
            await opened.call(None)
        await opened.call(STATIC)  # which is told all the same
        now += 1
        await opened.call(None)
    found = lines(path)
    assert [line["event"] for line in found] == ["refused"] * REFUSALS_PER_SECOND + [
        "call",
        "refused",
    ]
    assert found[-1]["more_refused"] == 5


async def test_a_log_that_is_moved_away_is_made_anew(
    policy: AccessPolicy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, old = tmp_path / "audit", tmp_path / "audit.1"
    async with asked(path, policy, caplog, STATIC) as opened:
        await opened.call(STATIC)
        (first,) = await written(path, 1)
        path.rename(old)
        await opened.call(STATIC)
        (second,) = await written(path, 1)
    assert lines(old) == [first]
    assert first["call"] != second["call"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
async def test_calls_go_on_without_a_disk_and_what_is_lost_is_told_once(
    policy: AccessPolicy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, disk = tmp_path / "audit", tmp_path / "disk"
    path.symlink_to("/dev/full")
    caplog.set_level(logging.INFO)
    async with asked(path, policy, caplog, STATIC) as opened:

        def told(words: str) -> int:
            return sum(words in record.getMessage() for record in caplog.records)

        for _ in range(3):
            assert (await opened.call(STATIC)).status_code == 200
        await until(lambda: told("cannot be written"))
        path.unlink()
        path.symlink_to(disk)
        with anyio.fail_after(20):
            while not disk.exists():  # the thread may still be at the lines before
                assert (await opened.call(STATIC)).status_code == 200
        await until(lambda: told("is written again"))
    assert told("calls go on without it: No space left on device") == 1
    lost, *rest = lines(disk)
    assert lost["event"] == "lost"
    assert lost["lines"] >= 3
    assert {line["event"] for line in rest} == {"call"}


def test_the_page_tells_of_every_field(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "observability.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("## Audit log")
    (example,) = [json.loads(line) for line in rest.splitlines() if line.startswith("{")]
    path = tmp_path / "audit"
    with AuditLog(str(path)) as audit:
        told = Calls()
        audit.hear(SimpleNamespace(calls=told, takes={}))
        with told.run("echo", {}, call_id="0123abcd", client="c"):
            pass
        told.refuse(Refused(origin=Origin(listener="http"), status=401))
    call, refused = lines(path)
    assert list(example) == list(call)
    for field in (*call, *refused):
        assert f"`{field}`" in rest


FLEET = "seed = 7\n" + "".join(f'[[nodes]]\nname = "{n}"\nprofile = "t4"\n' for n in "ab")


async def test_a_gateway_and_its_agents_tell_of_the_same_call(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "gateway.audit", tmp_path / "agents.audit"
    flags, agents = ["--audit-log", str(mine)], ["--audit-log", str(theirs)]
    async with cluster(tmp_path, FLEET, *flags, agent_flags=agents) as fleet:
        await fleet.ask()
        (line,) = await written(mine, 1)
        found = await written(theirs, 2)
    assert (line["nodes_asked"], line["nodes_answered"], line["nodes"]) == (2, 2, ["a", "b"])
    assert {each["call"] for each in found} == {line["call"]}
    assert {each["nodes_asked"] for each in found} == {0}
    assert {each["client"].split()[0] for each in found} == {"mcp-gpu-gateway"}


def agent(*flags: str, said: bytes = b"", **streams: Any) -> subprocess.CompletedProcess[bytes]:
    command = [*PROGRAM, "agent", "--simulate", "demo", "--node-name", "h100-a", "--stdio", *flags]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run(command, input=said, timeout=60, check=False, **streams)


def test_standard_error_takes_it_and_standard_output_never_does(tmp_path: Path) -> None:
    asking = json.dumps(call("get_gpu_inventory")).encode() + b"\n"
    done = agent("--audit-log", "-", said=asking)
    assert done.returncode == 0
    told = [line for line in done.stderr.decode().splitlines() if line.startswith("{")]
    (line,) = map(json.loads, told)
    assert (line["listener"], line["tool"], line["outcome"]) == ("stdio", "get_gpu_inventory", "ok")
    (answer,) = done.stdout.splitlines()
    assert json.loads(answer)["id"] == 1

    for place, words in (
        ("/dev/stdout", "is standard output, which belongs to the protocol"),
        (str(tmp_path / "none" / "audit"), "No such file or directory"),
    ):
        refused = agent("--audit-log", place)
        assert (refused.returncode, refused.stdout) == (2, b"")
        assert f"mcp-gpu agent: --audit-log: {place}: {words}" in refused.stderr.decode()

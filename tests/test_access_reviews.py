"""Kubernetes tokens that the API server is asked about (TokenReview)."""

import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.lowlevel
import httpx
import pytest

from mcp_gpu.serving.access import answers, documents
from mcp_gpu.serving.access.model import AccessPolicy
from mcp_gpu.serving.server import HttpEndpoint, ListenError, serve
from support.cluster import PROGRAM
from support.demo_server import registry
from support.door import Clock, Door, door
from support.kubeapi.access import POD_TOKEN, FakeCluster, Fault
from support.kubeapi.credentials import Authority
from support.ports import free_ports
from support.signer import Signer, kubernetes_claims

POLICY = AccessPolicy(kubernetes_tokens="review", token_audiences=("gpu", "gpu.example"))

CALLER = {"username": "system:serviceaccount:apps:caller", "uid": "u", "groups": ["g"]}


def token(cluster: FakeCluster, *, valid: bool = True, **claims: object) -> str:
    """A new one, which the cluster knows if it is valid."""
    made = Signer().sign(kubernetes_claims(jti=str(time.monotonic_ns()), **claims))
    if valid:
        cluster.users[made] = CALLER
    return made


@pytest.fixture
async def opened(
    cluster: FakeCluster, clock: Clock, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Door]:
    async with door(POLICY, caplog, POD_TOKEN) as found:
        yield found


async def test_a_token_of_the_cluster_opens(cluster: FakeCluster, opened: Door) -> None:
    good = token(cluster)
    assert (await opened.call(good)).status_code == 200
    assert cluster.specs == [{"token": good, "audiences": ["gpu", "gpu.example"]}]
    missing = await opened.call(None)
    assert missing.status_code == 401
    assert missing.headers["www-authenticate"] == "Bearer"
    wrong = await opened.call(token(cluster, valid=False))
    assert wrong.status_code == 401
    assert wrong.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def test_a_hundred_calls_are_one_review(cluster: FakeCluster, opened: Door) -> None:
    good = token(cluster)
    for _ in range(100):
        assert (await opened.call(good)).status_code == 200
    assert cluster.asked == {"tokenreviews": 1}


async def test_first_calls_that_come_together_are_one_review(
    cluster: FakeCluster, opened: Door
) -> None:
    good, cluster.held = token(cluster), anyio.Event()
    answered: list[int] = []

    async def call_once() -> None:
        answered.append((await opened.call(good)).status_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(call_once)
        while not cluster.under_way:
            await anyio.lowlevel.checkpoint()
        cluster.held.set()
    assert answered == [200] * 8
    assert cluster.asked == {"tokenreviews": 1}


async def test_a_revoked_token_counts_no_longer_than_a_minute(
    cluster: FakeCluster, opened: Door, clock: Clock
) -> None:
    good = token(cluster)
    assert (await opened.call(good)).status_code == 200
    cluster.users.clear()
    clock.now += 59
    assert (await opened.call(good)).status_code == 200
    clock.now += 2
    assert (await opened.call(good)).status_code == 401


async def test_what_is_known_of_a_token_ends_with_it(
    cluster: FakeCluster, opened: Door, clock: Clock
) -> None:
    good = token(cluster, seconds=20)
    assert (await opened.call(good)).status_code == 200
    cluster.users.clear()
    clock.now += 21
    assert (await opened.call(good)).status_code == 401
    assert cluster.asked == {"tokenreviews": 2}


async def test_a_bad_token_is_remembered_for_a_shorter_time(
    cluster: FakeCluster, opened: Door, clock: Clock
) -> None:
    bad = token(cluster, valid=False)
    for _ in range(5):
        assert (await opened.call(bad)).status_code == 401
    assert cluster.asked == {"tokenreviews": 1}
    cluster.users[bad] = CALLER
    clock.now += 11
    assert (await opened.call(bad)).status_code == 200


async def test_a_server_that_ignores_audiences_is_not_believed(
    cluster: FakeCluster, opened: Door
) -> None:
    cluster.knows_audiences = False
    assert (await opened.call(token(cluster))).status_code == 401


@pytest.mark.parametrize(
    "shown",
    [
        lambda cluster: token(cluster, audience="another"),
        lambda cluster: token(cluster, aud="gp"),
        lambda cluster: token(cluster, aud=None),
        lambda cluster: token(cluster, seconds=-60),
        lambda cluster: token(cluster, exp=None),
        lambda cluster: token(cluster, exp=10**400),
        lambda cluster: "opaque",
        lambda cluster: "e30.e30.e30",
        lambda cluster: "e30.bm8ganNvbg.e30",
        lambda cluster: "e30." + "W" * 8000 + ".e30",
        lambda cluster: "a.b.c.d",
        lambda cluster: "x" * 20_000,
    ],
)
async def test_a_token_that_cannot_be_good_is_not_asked_about(
    cluster: FakeCluster, opened: Door, shown: object
) -> None:
    assert (await opened.call(shown(cluster))).status_code == 401  # type: ignore[operator]
    assert not cluster.asked


async def test_only_the_users_that_are_named_count(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    subjects = ("system:serviceaccount:apps:other", "system:serviceaccount:apps:another")
    policy = AccessPolicy(
        kubernetes_tokens="review", token_audiences=("gpu",), token_subjects=subjects
    )
    async with door(policy, caplog, POD_TOKEN) as opened:
        assert (await opened.call(token(cluster))).status_code == 401
        good = token(cluster)
        cluster.users[good] = {**CALLER, "username": subjects[0]}
        assert (await opened.call(good)).status_code == 200


async def test_unknown_tokens_are_no_flood_at_the_api_server(
    cluster: FakeCluster, opened: Door, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = token(cluster)
    assert (await opened.call(known)).status_code == 200
    monkeypatch.setattr(answers, "KEPT", 16)
    monkeypatch.setattr(answers, "SECONDS", 3_600)
    monkeypatch.setattr(documents, "SECONDS", 3_600)
    cluster.held = anyio.Event()
    statuses: list[int] = []

    async def call_once() -> None:
        statuses.append((await opened.call(token(cluster, valid=False))).status_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(64):
            tasks.start_soon(call_once)
        while cluster.under_way < answers.IN_FLIGHT:
            await anyio.lowlevel.checkpoint()
        # Who is known is let in meanwhile.
        assert (await opened.call(known)).status_code == 200
        cluster.held.set()
    assert statuses == [401] * 64
    assert cluster.most_under_way == answers.IN_FLIGHT
    assert (await opened.call(known)).status_code == 200
    assert cluster.asked == {"tokenreviews": 65}


async def test_who_was_good_before_does_not_wait_behind_strangers(
    cluster: FakeCluster, opened: Door, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have all turns and the server is slow, just when his minute is over."""
    monkeypatch.setattr(answers, "SECONDS", 3_600)
    monkeypatch.setattr(documents, "SECONDS", 3_600)
    known = token(cluster)
    assert (await opened.call(known)).status_code == 200
    clock.now += 61
    cluster.held = held = anyio.Event()
    statuses: list[int] = []

    async def call_once() -> None:
        statuses.append((await opened.call(token(cluster, valid=False))).status_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(2 * answers.IN_FLIGHT):
            tasks.start_soon(call_once)
        while cluster.under_way < answers.IN_FLIGHT:
            await anyio.lowlevel.checkpoint()
        cluster.held = None
        assert (await opened.call(known)).status_code == 200
        # Nor once the server was away for a moment.
        clock.now += 61
        cluster.fault = 500
        assert (await opened.call(known)).status_code == 503
        cluster.fault = None
        clock.now += 2
        assert (await opened.call(known)).status_code == 200
        held.set()
    assert statuses == [401] * 2 * answers.IN_FLIGHT


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (500, "HTTP 500"),
        (302, "HTTP 302"),
        (401, "does not accept this pod's own token"),
        (403, "does not let this pod's account POST /apis/authentication.k8s.io/v1/tokenreviews"),
        ("drop", "the connection broke"),
        ("garbage", "what is no JSON"),
        ("list", "what is no TokenReview"),
        ("endless", "more than 1048576 bytes"),
    ],
)
async def test_who_cannot_be_checked_is_not_let_in_and_not_turned_away_for_good(
    cluster: FakeCluster,
    opened: Door,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
    words: str,
) -> None:
    good = token(cluster)
    cluster.fault = fault
    for _ in range(2):
        answer = await opened.call(good)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert "cannot be found out now" in answer.json()["error"]["message"]
        assert "kubernetes" not in answer.text.lower()
    assert cluster.asked == {"tokenreviews": 1}
    assert caplog.text.count(words) == 1
    cluster.fault = None
    clock.now += 2
    assert (await opened.call(good)).status_code == 200


async def test_a_silent_api_server_is_given_up_on(
    cluster: FakeCluster,
    opened: Door,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(documents, "SECONDS", 0.1)
    cluster.fault = "hang"
    assert (await opened.call(token(cluster))).status_code == 503
    assert "does not answer within 0.1 s" in caplog.text


async def test_nobody_waits_for_long_for_a_turn(
    cluster: FakeCluster, opened: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "SECONDS", 0.1)
    cluster.held = anyio.Event()
    assert (await opened.call(token(cluster))).status_code == 503


async def test_without_an_api_server_nobody_is_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = FakeCluster(tmp_path)
    async with cluster.running(monkeypatch):
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(free_ports(1)[0]))
        async with door(POLICY, caplog, POD_TOKEN) as opened:
            assert (await opened.call(token(cluster))).status_code == 503
    assert "connection refused" in caplog.text


async def test_the_pods_own_credentials_are_read_again(cluster: FakeCluster, opened: Door) -> None:
    assert (await opened.call(token(cluster))).status_code == 200
    cluster.pod_token = "rotated"
    (cluster.folder / "token").write_text("rotated")
    assert (await opened.call(token(cluster))).status_code == 200
    right = (cluster.folder / "ca.crt").read_bytes()
    wrong = Authority(cluster.folder, "another-ca").certificate.read_bytes()
    for content in (wrong, b"none"):
        (cluster.folder / "ca.crt").write_bytes(content)
        assert (await opened.call(token(cluster))).status_code == 503
    (cluster.folder / "ca.crt").write_bytes(right)
    assert (await opened.call(token(cluster))).status_code == 200
    for content in ("two\nlines", "", "t\N{LATIN SMALL LETTER O WITH DIAERESIS}ken"):
        (cluster.folder / "token").write_text(content)
        assert (await opened.call(token(cluster))).status_code == 503
    (cluster.folder / "token").unlink()
    assert (await opened.call(token(cluster))).status_code == 503


@pytest.mark.parametrize("missing", ["token", "ca.crt", "namespace", "KUBERNETES_SERVICE_HOST"])
async def test_outside_of_a_pod_it_does_not_start(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing.isupper():
        monkeypatch.delenv(missing)
    else:
        (cluster.folder / missing).unlink()
    with pytest.raises(ListenError, match=f"this is none: .*{missing}.*Run it in a pod"):
        await serve(registry(), http=HttpEndpoint(port=0, access=POLICY), signals=False)


async def test_the_program_says_so_in_one_line() -> None:
    agent = [*PROGRAM, "agent", "--simulate", "demo", "--node-name", "t4-a", "--http-port", "0"]
    flags = ["--kubernetes-tokens", "jwks", "--token-audiences", "gpu"]
    with anyio.fail_after(60):
        done = await anyio.run_process(
            [*agent, *flags, "--socket", "/nonexistent/s"], check=False, stderr=subprocess.PIPE
        )
    assert done.returncode == 2
    said = done.stderr.decode().splitlines()  # threads may still log behind it
    assert any(line.startswith("mcp-gpu agent: --kubernetes-tokens and") for line in said)
    assert "Traceback" not in done.stderr.decode()


async def test_the_client_may_leave_while_its_token_is_reviewed(
    cluster: FakeCluster, opened: Door
) -> None:
    good, cluster.held = token(cluster), anyio.Event()
    with pytest.raises(httpx.ReadTimeout):
        await opened.client.post(
            f"{opened.url}/mcp", headers={"Authorization": f"Bearer {good}"}, timeout=0.1
        )
    cluster.held.set()
    assert (await opened.call(good)).status_code == 200

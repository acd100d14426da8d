"""Kubernetes tokens that the cluster's public keys prove."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import jwt
import pytest

from mcp_gpu.serving.access import documents
from mcp_gpu.serving.access.model import AccessPolicy
from support.door import Clock, Door, door
from support.kubeapi.access import POD_TOKEN, FakeCluster, Fault
from support.signer import Signer, kubernetes_claims, with_public_key, without_signature

POLICY = AccessPolicy(kubernetes_tokens="jwks", token_audiences=("gpu", "gpu.example"))

ONE = Signer("one")
READ = {"openid-configuration": 1, "jwks": 1}
"""What the API server is asked to learn the keys once."""


@pytest.fixture
async def opened(
    cluster: FakeCluster, clock: Clock, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Door]:
    async with door(POLICY, caplog, POD_TOKEN) as found:
        yield found


def token(signer: Signer = ONE, **claims: Any) -> str:
    return signer.sign(kubernetes_claims(**claims))


async def test_the_keys_are_read_once(cluster: FakeCluster, opened: Door) -> None:
    for number in range(20):
        good = token(name=f"caller-{number}")
        assert (await opened.call(good)).status_code == 200
    assert cluster.asked == READ


@pytest.mark.parametrize("signer", [Signer("ps", "PS256"), Signer("ec", "ES256")])
async def test_each_key_has_an_algorithm(
    cluster: FakeCluster, opened: Door, signer: Signer
) -> None:
    cluster.signers.append(signer)
    assert (await opened.call(token(signer))).status_code == 200
    assert (await opened.call(token())).status_code == 200


@pytest.mark.parametrize(
    "made",
    [
        token(audience="gpu.example"),
        token(aud=["another", "gpu"]),
        token(aud="gpu"),
        token(seconds=-10),  # within what a clock may be off
        token(nbf=None),
    ],
)
async def test_what_is_good(cluster: FakeCluster, opened: Door, made: str) -> None:
    assert (await opened.call(made)).status_code == 200


def tampered(made: str) -> str:
    header, payload, signature = made.split(".")
    claims = jwt.decode(made, options={"verify_signature": False})
    other = jwt.encode({**claims, "sub": "system:serviceaccount:apps:admin"}, "k" * 32)
    assert other.split(".")[1] != payload
    return f"{header}.{other.split('.')[1]}.{signature}"


def backed(made: str) -> str:
    """With a bit of the signature's turned."""
    head, _, signature = made.rpartition(".")
    return f"{head}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"


ACCOUNT = {"name": "caller", "uid": "u"}

BAD: dict[str, Callable[[], str]] = {
    "another audience": lambda: token(audience="another"),
    "no audience": lambda: token(aud=None),
    "an audience that is a number": lambda: token(aud=[1]),
    "over": lambda: token(seconds=-60),
    "without an end": lambda: token(exp=None),
    "an end that is no number": lambda: token(exp="soon"),
    "not yet valid": lambda: token(nbf=4_000_000_000),
    "made in the future": lambda: token(iat=4_000_000_000),
    "another issuer": lambda: token(iss="https://kubernetes.default.svc"),
    "no issuer": lambda: token(iss=None),
    "another subject than its account": lambda: token(sub="system:serviceaccount:apps:admin"),
    "no subject": lambda: token(sub=None),
    "a subject that is no account": lambda: token(sub="system:admin"),
    "no account": lambda: token(**{"kubernetes.io": None}),
    "an account of another namespace": lambda: token(
        **{"kubernetes.io": {"namespace": "kube-system", "serviceaccount": ACCOUNT}}
    ),
    "an account that is none": lambda: token(**{"kubernetes.io": {"serviceaccount": []}}),
    "algorithm none": lambda: without_signature(kubernetes_claims(), ONE),
    "algorithm none, unsigned": lambda: without_signature(kubernetes_claims(), ONE)[:-12],
    "signed with the public key": lambda: with_public_key(kubernetes_claims(), ONE),
    "another algorithm of the same key": lambda: jwt.encode(
        kubernetes_claims(), ONE.key, "RS512", headers={"kid": "one"}
    ),
    "another key of the same name": lambda: Signer("two").sign(kubernetes_claims(), kid="one"),
    "a key that it brings": lambda: Signer("two").sign(
        kubernetes_claims(), jwk=Signer("two").jwk, jku="https://192.0.2.1/", kid="one"
    ),
    "a critical extension": lambda: ONE.sign(kubernetes_claims(), crit=["x"], x=1),
    "other claims": lambda: tampered(token()),
    "another signature": lambda: backed(token()),
    "cut off": lambda: token()[:-40],
    "nested": lambda: f"e30.{'W' * 9000}.e30",
    "no JWT": lambda: "opaque",
}


@pytest.mark.parametrize("what", BAD)
async def test_what_is_not_good(cluster: FakeCluster, opened: Door, what: str) -> None:
    assert (await opened.call(token())).status_code == 200
    answer = await opened.call(BAD[what]())
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def test_a_short_key_proves_nothing(cluster: FakeCluster, opened: Door) -> None:
    short = Signer("short", bits=1024)
    cluster.signers.append(short)
    with pytest.warns(match="below the minimum"):
        made = token(short)
    assert (await opened.call(made)).status_code == 401
    assert (await opened.call(token())).status_code == 200


async def test_a_token_that_names_no_key_goes_with_an_only_one(
    cluster: FakeCluster, opened: Door, clock: Clock
) -> None:
    made = jwt.encode(kubernetes_claims(), ONE.key, "RS256")
    assert (await opened.call(made)).status_code == 200
    cluster.signers.append(Signer("two"))
    clock.now += 601
    assert (await opened.call(made)).status_code == 401


async def test_only_the_users_that_are_named_count(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    policy = AccessPolicy(
        kubernetes_tokens="jwks",
        token_audiences=("gpu",),
        token_subjects=("system:serviceaccount:apps:gateway",),
    )
    async with door(policy, caplog, POD_TOKEN) as opened:
        assert (await opened.call(token())).status_code == 401
        assert (await opened.call(token(name="gateway"))).status_code == 200


async def test_keys_are_rotated(cluster: FakeCluster, opened: Door, clock: Clock) -> None:
    old, new = token(), token(Signer("two"))
    assert (await opened.call(old)).status_code == 200
    cluster.signers.append(Signer("two"))
    # It names a key that is not known: reason enough to look, once in a few seconds.
    unsure = await opened.call(new)
    assert (unsure.status_code, unsure.headers["retry-after"]) == (503, "5")
    clock.now += 6
    assert (await opened.call(new)).status_code == 200
    cluster.signers.pop(0)
    assert (await opened.call(old)).status_code == 200
    clock.now += 601
    assert (await opened.call(old)).status_code == 401
    assert (await opened.call(new)).status_code == 200


async def test_a_stranger_has_no_good_token_called_bad(
    cluster: FakeCluster, opened: Door, clock: Clock
) -> None:
    """By having the keys read just before the issuer publishes another."""
    assert (await opened.call(token())).status_code == 200
    clock.now += 6
    strange = ONE.sign(kubernetes_claims(), kid="strange")
    assert (await opened.call(strange)).status_code == 401
    cluster.signers.append(Signer("two"))
    clock.now += 1
    assert (await opened.call(token(Signer("two")))).status_code == 503
    assert (await opened.call(token())).status_code == 200
    clock.now += 5
    assert (await opened.call(token(Signer("two")))).status_code == 200


async def test_unknown_keys_are_no_flood_at_the_api_server(
    cluster: FakeCluster, opened: Door, clock: Clock
) -> None:
    assert (await opened.call(token())).status_code == 200
    clock.now += 6
    statuses: list[int] = []

    async def call_once(name: str) -> None:
        shown = ONE.sign(kubernetes_claims(), kid=name)
        statuses.append((await opened.call(shown)).status_code)

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(call_once, f"key-{number}")
    # Those whose keys were looked for after they had come are known to be bad.
    assert set(statuses) == {401, 503}
    assert cluster.asked == {"openid-configuration": 2, "jwks": 2}


async def test_good_keys_are_used_while_the_api_server_is_away(
    cluster: FakeCluster, opened: Door, clock: Clock
) -> None:
    assert (await opened.call(token())).status_code == 200
    cluster.fault = "drop"
    clock.now += 3600
    assert (await opened.call(token())).status_code == 200
    assert (await opened.call(token(Signer("two")))).status_code == 503
    clock.now += 86_400
    assert (await opened.call(token())).status_code == 503
    cluster.fault = None
    clock.now += 6
    assert (await opened.call(token())).status_code == 200


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (500, "HTTP 500"),
        (403, "does not let this pod's account GET /.well-known/openid-configuration"),
        ("drop", "the connection broke"),
        ("garbage", "what is no JSON"),
        ("list", "does not say who issues its tokens"),
        ("endless", "more than 1048576 bytes"),
        ("hang", "does not answer within 0.5 s"),
    ],
)
async def test_without_keys_nobody_is_let_in(
    cluster: FakeCluster,
    opened: Door,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    words: str,
) -> None:
    cluster.fault = fault
    with monkeypatch.context() as patch:
        if fault == "hang":
            patch.setattr(documents, "SECONDS", 0.5)
        for _ in range(3):
            answer = await opened.call(token())
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "5"
    assert cluster.asked == {"openid-configuration": 1}
    assert words in caplog.text
    cluster.fault = None
    clock.now += 6
    assert (await opened.call(token())).status_code == 200


@pytest.mark.parametrize(
    "key_set",
    [
        {"keys": []},
        {"keys": "none"},
        {},
        [],
        {"keys": [None, 1, {}, {"kty": "RSA"}, {"kty": "EC", "crv": "P-256", "x": "!", "y": "!"}]},
        {"keys": [{**ONE.jwk, "use": "enc"}]},
        {"keys": [{**ONE.jwk, "alg": "none"}]},
        {"keys": [{"kty": "oct", "kid": "one", "alg": "HS256", "k": "a2V5"}]},
    ],
)
async def test_a_set_without_a_key_to_check_with_is_none(
    cluster: FakeCluster, opened: Door, caplog: pytest.LogCaptureFixture, key_set: Any
) -> None:
    cluster.key_set = key_set
    assert (await opened.call(token())).status_code == 503
    assert "the issuer's key set has no key that can check signatures" in caplog.text


async def test_the_pods_own_token_is_read_again(
    cluster: FakeCluster, opened: Door, clock: Clock
) -> None:
    assert (await opened.call(token())).status_code == 200
    cluster.pod_token = "rotated"
    (cluster.folder / "token").write_text("rotated")
    cluster.signers.append(Signer("two"))
    clock.now += 601
    assert (await opened.call(token(Signer("two")))).status_code == 200


async def test_static_tokens_stay_good_beside(
    cluster: FakeCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "static"
    file.write_text("a-static-token-of-this-test\n")
    policy = AccessPolicy(token_file=file, kubernetes_tokens="jwks", token_audiences=("gpu",))
    async with door(policy, caplog, POD_TOKEN, "a-static-token-of-this-test") as opened:
        cluster.fault = "drop"
        assert (await opened.call("a-static-token-of-this-test")).status_code == 200
        assert (await opened.call(token())).status_code == 503
        assert (await opened.call("another")).status_code == 401

"""The chart's certificates: what they name, how they are kept and renewed, that they are good."""

from __future__ import annotations

import base64
import ssl
import time
from pathlib import Path
from typing import Any

import helm_python
import pytest

from support.chart import ISSUED, Object, Rendered, render
from support.helmapi import api_server
from support.manifests import container, environment, every_pod, files

DAY = 86_400

HOSTS = ["gpu.example.org", "*", "203.0.113.7", "2001:db8::7"]

BOTH = {"gateway": {"tls": {"source": "generated"}, "allowedHosts": HOSTS}}
"""Certificates of both sides."""

SERVICES = "gpu-diagnostics.svc"


def pem(secret: Object, key: str) -> str:
    return base64.b64decode(secret["data"][key]).decode()


def named(rendered: Rendered) -> dict[str, Object]:
    """The Secrets that hold certificates, by what follows the full name."""
    prefix = "gpu-mcp-mcp-gpu-"
    return {
        secret["metadata"]["name"].removeprefix(prefix): secret
        for secret in rendered.all("Secret")
        if secret["type"] == "kubernetes.io/tls"
    }


def shake_hands(server: Object, authority: str, name: str, folder: Path) -> None:
    """As a client that believes the authority, and is as strict as OpenSSL can be.

    Raises:
        ssl.SSLCertVerificationError: the certificate is not good for that name.
    """
    for key in ("tls.crt", "tls.key"):
        (folder / key).write_text(pem(server, key), encoding="ascii")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    calling = ssl.create_default_context(cadata=authority)
    calling.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        calling.wrap_bio(to_client, to_server, server_hostname=name),
        serving.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):  # two flights each way at most
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ends[0].getpeercert()


@pytest.mark.parametrize(
    ("side", "name", "good"),
    [
        ("agent", f"gpu-mcp-mcp-gpu-agent.{SERVICES}", True),
        ("agent", f"gpu-mcp-mcp-gpu-agent.{SERVICES}.k8s.example.org", True),
        ("agent", f"10-244-1-7.gpu-mcp-mcp-gpu-agent.{SERVICES}.k8s.example.org", True),
        ("agent", f"gpu-mcp-mcp-gpu-gateway.{SERVICES}", False),
        ("agent", "gpu-mcp-mcp-gpu-agent.other.svc", False),
        ("gateway", f"gpu-mcp-mcp-gpu-gateway.{SERVICES}", True),
        ("gateway", "gpu-mcp-mcp-gpu-gateway", True),
        ("gateway", "gpu.example.org", True),
        ("gateway", "localhost", True),
        ("gateway", "127.0.0.1", True),
        ("gateway", "::1", True),
        ("gateway", "203.0.113.7", True),
        ("gateway", "2001:db8::7", True),
        ("gateway", "203.0.113.8", False),
        ("gateway", "evil.example.org", False),
        ("gateway", f"gpu-mcp-mcp-gpu-agent.{SERVICES}", False),
    ],
)
def test_a_generated_certificate_is_good_for_its_names_alone(
    side: str, name: str, good: bool, tmp_path: Path
) -> None:
    secrets = named(render({**BOTH, "clusterDomain": "k8s.example.org"}))
    server, authority = secrets[f"{side}-tls"], pem(secrets["ca"], "tls.crt")
    assert pem(server, "ca.crt") == authority
    if good:
        shake_hands(server, authority, name, tmp_path)
    else:
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            shake_hands(server, authority, name, tmp_path)


def test_the_gateway_checks_agents_for_a_name_that_their_certificate_has(tmp_path: Path) -> None:
    rendered = render()
    secrets = named(rendered)
    name = environment(rendered, "gateway")["MCP_GPU_AGENT_SERVER_NAME"]
    shake_hands(secrets["agent-tls"], pem(secrets["ca"], "tls.crt"), name, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        shake_hands(secrets["agent-tls"], pem(named(render())["ca"], "tls.crt"), name, tmp_path)


def test_no_pod_mounts_the_authoritys_key_and_none_anothers_certificate() -> None:
    rendered = render(BOTH)
    held = {
        name: {
            secret.get("secretName", secret.get("name")): {item["key"] for item in secret["items"]}
            for volume in spec.get("volumes", [])
            for source in volume.get("projected", {}).get("sources", [volume])
            if (secret := source.get("secret"))
        }
        for name, spec in every_pod(rendered).items()
    }
    pair = {"tls.crt", "tls.key"}
    full = "gpu-mcp-mcp-gpu"
    assert held == {
        "agent": {f"{full}-agent-tls": pair},
        "gateway": {
            f"{full}-auth": {"client-token"},
            f"{full}-gateway-tls": pair,
            f"{full}-agent-tls": {"ca.crt"},
        },
        "doctor": {f"{full}-agent-tls": {"ca.crt"}},
        "client": {f"{full}-gateway-tls": {"ca.crt"}},
    }


@pytest.mark.parametrize("source", ["none", "generated"])
def test_probes_and_the_service_speak_as_the_gateway_does(source: str) -> None:
    rendered = render({"gateway": {"tls": {"source": source}}})
    https = source != "none"
    for probe in ("readinessProbe", "livenessProbe"):
        scheme = container(rendered, "gateway")[probe]["httpGet"]["scheme"]
        assert scheme == ("HTTPS" if https else "HTTP")
        assert container(rendered, "agent")[probe]["httpGet"]["scheme"] == "HTTPS"
    (port,) = rendered.one("Service", "gateway")["spec"]["ports"]
    assert port["appProtocol"] == ("https" if https else "http")
    assert ("NODE_EXTRA_CA_CERTS" in rendered.notes) == https
    assert ("--cacert gpu-ca.crt" in rendered.notes) == https


def aged(secrets: dict[str, Object], **days: int) -> list[Object]:
    """The Secrets as if they had been made so many days ago."""
    for name, secret in secrets.items():
        made = int(time.time()) - days.get(name.replace("-", "_"), 0) * DAY
        secret["metadata"]["annotations"][ISSUED] = str(made)
    return list(secrets.values())


@pytest.mark.parametrize(
    ("days", "renewed"),
    [
        ({}, set()),
        ({"agent_tls": 364, "gateway_tls": 364, "ca": 3649}, set()),
        ({"agent_tls": 366}, {"agent-tls"}),
        ({"gateway_tls": 366}, {"gateway-tls"}),
        ({"ca": 3651}, {"ca", "agent-tls", "gateway-tls"}),
    ],
)
def test_an_upgrade_keeps_certificates_until_they_are_old(
    days: dict[str, int], renewed: set[str]
) -> None:
    first = named(render(BOTH))
    before = {name: pem(secret, "tls.crt") for name, secret in first.items()}
    with api_server(aged(first, **days)) as config:
        after = named(render(BOTH, config=config))
    changed = {name for name, secret in after.items() if pem(secret, "tls.crt") != before[name]}
    assert changed == renewed
    for name, secret in after.items():
        if name not in renewed:  # nor does it look younger than it is
            assert secret["metadata"]["annotations"] == first[name]["metadata"]["annotations"]


def test_a_certificate_is_made_anew_for_other_names_and_by_another_authority(
    tmp_path: Path,
) -> None:
    first = named(render(BOTH))
    before = {name: pem(secret, "tls.crt") for name, secret in first.items()}
    with api_server(first.values()) as config:
        other = named(render({**BOTH, "clusterDomain": "k8s.example.org"}, config=config))
    assert pem(other["ca"], "tls.crt") == before["ca"]
    assert pem(other["agent-tls"], "tls.crt") != before["agent-tls"]
    name = f"gpu-mcp-mcp-gpu-agent.{SERVICES}.k8s.example.org"
    shake_hands(other["agent-tls"], before["ca"], name, tmp_path)
    # Someone has deleted the authority, or half of a certificate.
    with api_server([first["agent-tls"], first["gateway-tls"]]) as config:
        without = named(render(BOTH, config=config))
    assert {pem(secret, "tls.crt") for secret in without.values()} & set(before.values()) == set()
    del first["agent-tls"]["data"]["tls.key"]
    with api_server(first.values()) as config:
        mended = named(render(BOTH, config=config))
    assert pem(mended["agent-tls"], "tls.crt") != before["agent-tls"]
    assert pem(mended["gateway-tls"], "tls.crt") == before["gateway-tls"]


def test_an_authority_that_clients_hold_a_copy_of_outlives_the_release() -> None:
    keep = "helm.sh/resource-policy"
    assert named(render(BOTH))["ca"]["metadata"]["annotations"][keep] == "keep"
    assert keep not in named(render())["ca"]["metadata"]["annotations"]


def certificates(rendered: Rendered) -> dict[str, Object]:
    return {entry["metadata"]["name"]: entry["spec"] for entry in rendered.all("Certificate")}


def test_cert_manager_makes_an_authority_and_two_certificates() -> None:
    managed: dict[str, Any] = {"tls": {"source": "certManager"}}
    rendered = render({"agent": managed, "gateway": managed})
    assert named(rendered) == {}
    found = certificates(rendered)
    issuers = {entry["metadata"]["name"]: entry["spec"] for entry in rendered.all("Issuer")}
    full = "gpu-mcp-mcp-gpu"
    authority = found.pop(f"{full}-issuer")
    assert authority["isCA"] is True
    assert issuers == {
        f"{full}-selfsigned": {"selfSigned": {}},
        f"{full}-issuer": {"ca": {"secretName": authority["secretName"]}},
    }
    assert authority["issuerRef"]["name"] == f"{full}-selfsigned"
    assert found.keys() == {f"{full}-agent-issued", f"{full}-gateway-issued"}
    for side in ("agent", "gateway"):
        certificate = found[f"{full}-{side}-issued"]
        assert certificate["issuerRef"]["name"] == f"{full}-issuer"
        assert f"{full}-{side}.{SERVICES}" in certificate["dnsNames"]
        (volume,) = [v for v in every_pod(rendered)[side]["volumes"] if v["name"] == "tls"]
        assert volume["secret"]["secretName"] == certificate["secretName"]


def test_cert_manager_is_asked_for_addresses_as_such_and_for_no_bare_wildcard() -> None:
    tls = {"source": "certManager"}
    oauth = {"issuer": "https://login.example.org", "resource": "https://[2001:db8::8]:8443/mcp"}
    hosts = [*HOSTS, "*.example.org"]
    rendered = render({"auth": {"oauth": oauth}, "gateway": {"tls": tls, "allowedHosts": hosts}})
    certificate = certificates(rendered)["gpu-mcp-mcp-gpu-gateway-issued"]
    addresses = ["127.0.0.1", "::1", "203.0.113.7", "2001:db8::7", "2001:db8::8"]
    assert certificate["ipAddresses"] == addresses
    assert set(certificate["dnsNames"]) & {*addresses, "*"} == set()
    assert {"gpu.example.org", "*.example.org", "localhost"} < set(certificate["dnsNames"])


@pytest.mark.parametrize(
    "host", ["gpu.example.org:8443", "203.0.113.7:8443", "[::1]", "https://gpu.example.org", "a,b"]
)
def test_a_name_with_more_than_a_name_is_refused(host: str) -> None:
    with pytest.raises(helm_python.HelmValuesError, match="allowedHosts"):
        render({"gateway": {"allowedHosts": [host]}})


@pytest.mark.parametrize("side", ["agent", "gateway"])
@pytest.mark.parametrize(
    ("source", "given", "needed"),
    [
        ("generated", {"existingSecret": "mine"}, "secret"),
        ("certManager", {"existingSecret": "mine"}, "secret"),
        ("generated", {"issuerRef": {"name": "mine"}}, "certManager"),
        ("secret", {"existingSecret": "mine", "issuerRef": {"name": "mine"}}, "certManager"),
    ],
)
def test_what_a_source_of_certificates_does_not_use_is_refused(
    side: str, source: str, given: Object, needed: str
) -> None:
    with pytest.raises(helm_python.HelmError, match=rf"set {side}\.tls\.source={needed}$"):
        render({side: {"tls": {"source": source, **given}}})


def test_with_an_issuer_of_ones_own_there_is_the_certificate_alone() -> None:
    issuer = {"kind": "ClusterIssuer", "name": "internal"}
    rendered = render({"agent": {"tls": {"source": "certManager", "issuerRef": issuer}}})
    assert rendered.all("Issuer") == []
    ((_, certificate),) = certificates(rendered).items()
    assert certificate["issuerRef"] == issuer


@pytest.mark.parametrize("side", ["agent", "gateway"])
def test_a_certificate_of_ones_own_is_mounted_and_has_to_be_named(side: str) -> None:
    own = {"source": "secret", "existingSecret": "mine"}
    rendered = render({side: {"tls": own}})
    (volume,) = [v for v in every_pod(rendered)[side]["volumes"] if v["name"] == "tls"]
    assert volume["secret"]["secretName"] == "mine"
    assert set(files(volume)) == {"tls.crt", "tls.key"}
    assert f"{side}-tls" not in named(rendered)
    with pytest.raises(helm_python.HelmError, match=rf"needs {side}\.tls\.existingSecret"):
        render({side: {"tls": {"source": "secret"}}})

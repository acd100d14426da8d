"""Certificates and kubeconfigs for the fake API server."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
from base64 import b64encode
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


class Authority:
    """A cluster's own certificate authority; everything it signs lies in its folder."""

    def __init__(self, folder: Path, name: str = "fake-ca") -> None:
        self._folder = folder
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        # Without the key identifiers that RFC 5280 asks for, as many a cluster's own.
        self._certificate = self._sign(name, self._key, x509.BasicConstraints(True, None), 1.0)
        self.certificate = folder / f"{name}.crt"
        self.certificate.write_bytes(_pem(self._certificate))

    def issue(self, name: str, *hosts: str, days: float = 1.0) -> tuple[Path, Path]:
        """Certificate and key files for a user, or a server of these names and addresses.

        Args:
            days: until it ends; less than 0 for one that has ended.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_host(host) for host in hosts]) if hosts else None
        signed = self._sign(name, key, names, days)
        certificate, private = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        certificate.write_bytes(_pem(signed))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return certificate, private

    def alone(self, name: str, *hosts: str) -> tuple[Path, Path]:
        """A certificate that signs itself, in our name."""
        certificate, key = self.issue(name, *hosts)
        private = serialization.load_pem_private_key(key.read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        self._key = private
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        certificate.write_bytes(_pem(self._sign(name, private, names, 1.0)))
        return certificate, key

    def server(self, *hosts: str) -> ssl.SSLContext:
        """The TLS side of a server that answers to these names, and asks for our users."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue("server", *hosts))
        context.load_verify_locations(self.certificate)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        extension: x509.ExtensionType | None,
        days: float,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(self._name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + min(days, 0) * DAY - DAY)
            .not_valid_after(now + days * DAY)
        )
        if extension is not None:
            critical = isinstance(extension, x509.BasicConstraints)
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def embedded(path: Path) -> str:
    """A file as a kubeconfig's `...-data` holds it."""
    return b64encode(path.read_bytes()).decode()


def write_kubeconfig(
    path: Path,
    server: str,
    *,
    cluster: dict[str, Any] | None = None,
    user: dict[str, Any] | None = None,
    token: str = "",
    namespace: str = "",
    context: str = "fake",
) -> Path:
    """A kubeconfig of one context; `cluster` and `user` join or replace what is in theirs."""
    entry = {"cluster": "fake", "user": "tester"}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": context,
        "clusters": [{"name": "fake", "cluster": {"server": server, **(cluster or {})}}],
        "users": [{"name": "tester", "user": user or ({"token": token} if token else {})}],
        "contexts": [
            {
                "name": context,
                "context": {**entry, "namespace": namespace} if namespace else entry,
            }
        ],
    }
    path.write_text(json.dumps(document))  # YAML, too
    return path

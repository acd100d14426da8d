"""Keys of a token issuer, and tokens signed with them, rightly or not."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

__all__ = ["Signer", "kubernetes_claims", "with_public_key", "without_signature"]

CLUSTER_ISSUER = "https://kubernetes.default.svc.cluster.local"


@cache
def _rsa(name: str, bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65_537, key_size=bits)


class Signer:
    """A key pair. Those of the same name have the same."""

    def __init__(self, name: str = "one", algorithm: str = "RS256", *, bits: int = 2048) -> None:
        self.name, self.algorithm = name, algorithm
        self.key: Any = (
            ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else _rsa(name, bits)
        )

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key as an issuer publishes it."""
        kind = ECAlgorithm if self.algorithm == "ES256" else RSAAlgorithm
        public = kind.to_jwk(self.key.public_key(), as_dict=True)
        return {**public, "kid": self.name, "use": "sig", "alg": self.algorithm}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        return jwt.encode(claims, self.key, self.algorithm, headers={"kid": self.name, **header})


def kubernetes_claims(
    *, audience: str = "gpu", name: str = "caller", seconds: float = 600, **more: Any
) -> dict[str, Any]:
    """What a projected token of a ServiceAccount in the namespace `apps` says; None leaves out."""
    now = int(time.time())
    claims = {
        "aud": [audience],
        "exp": int(now + seconds),
        "iat": now - 60,
        "nbf": now - 60,
        "iss": CLUSTER_ISSUER,
        "sub": f"system:serviceaccount:apps:{name}",
        "kubernetes.io": {
            "namespace": "apps",
            "serviceaccount": {"name": name, "uid": f"uid-of-{name}"},
        },
        **more,
    }
    return {name: claim for name, claim in claims.items() if claim is not None}


def without_signature(claims: dict[str, Any], signer: Signer) -> str:
    """A token whose header says that it needs none, with one all the same."""
    token = jwt.encode(claims, None, "none", headers={"kid": signer.name})
    return f"{token}c2lnbmF0dXJl"


def with_public_key(claims: dict[str, Any], signer: Signer) -> str:
    """A token that takes the public key for a shared secret, which PyJWT refuses to make."""
    header = {"alg": "HS256", "kid": signer.name, "typ": "JWT"}
    secret = signer.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    said = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
    return f"{said}.{_encoded(hmac.digest(secret, said.encode(), hashlib.sha256))}"


def _encoded(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()

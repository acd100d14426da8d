"""The certificate that HTTPS is served with: follows its files, and is watched until it ends."""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.to_thread

from mcp_gpu.serving.endpoint import ListenError, TlsFiles
from transports.files import Version, version

__all__ = ["Certificate"]

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
"""How often the files are looked at. A Secret takes a minute to get into a pod."""

SOON_SECONDS = 30 * 86_400.0
"""How long before its end a certificate is warned of."""

AGAIN_SECONDS = 86_400.0
"""How often that is said again."""

_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

_EXPLICIT_VERSION = 0xA0
_UTC_TIME = 0x17
"""Tags of DER that RFC 5280 (4.1) lets begin a certificate and stand in its validity."""


class Certificate:
    """A certificate chain and its key, as the files last held them together.

    Raises:
        ListenError: a file cannot be read, or the key is not the certificate's.
    """

    def __init__(self, files: TlsFiles, clock: Callable[[], float] = time.time) -> None:
        self._cert, self._key = files.cert_file, files.key_file
        self._clock = clock
        self._kept_words = ""
        self._ended = False
        self._quiet_until = 0.0
        try:
            self._read()
        except ValueError as error:
            raise ListenError(str(error)) from error
        self._tell_of_the_end()

    @property
    def context(self) -> ssl.SSLContext:
        """TLS for a new connection. Open ones keep theirs."""
        return self._context

    @property
    def ends_at(self) -> float:
        """When the first of the chain's certificates ends, in seconds since 1970."""
        return self._ends_at

    async def watch(self) -> None:
        """Follow the files, and say when the certificate is about to end, until cancelled."""
        while True:
            await anyio.sleep(CHECK_SECONDS)
            await anyio.to_thread.run_sync(self.check)

    def check(self) -> None:
        """Take what the files hold by now, if it fits together; what is in use stays otherwise."""
        try:
            if self._versions() != self._read_at:
                self._read()
                self._quiet_until = 0.0
                logger.info("serving the new certificate of %s, valid until %s", *self._told())
            self._kept_words = ""
        except ValueError as error:
            if self._kept_words != str(error):
                self._kept_words = str(error)
                logger.error("the certificate in use stays: %s", error)
        self._tell_of_the_end()

    def _read(self) -> None:
        """Raises ValueError, whose text says which file is wrong and shows nothing of the key."""
        versions = self._versions()
        try:
            ends_at = _ends_at(self._cert.read_text("ascii", errors="replace"))
        except OSError as error:
            raise ValueError(f"--tls-cert-file: {self._cert}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"--tls-cert-file: {self._cert} {error}") from error
        context = _server_side()
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                words = f"{self._key} is not the key of the certificate in {self._cert}"
            else:
                words = f"{self._key} holds no private key in PEM"
            raise ValueError(f"--tls-key-file: {words}") from error
        except (OSError, ValueError) as error:
            words = getattr(error, "strerror", None) or str(error)
            raise ValueError(f"--tls-key-file: {self._key}: {words}") from error
        if self._versions() != versions:
            raise ValueError(f"{self._cert} and {self._key} changed while they were read")
        self._context, self._ends_at, self._read_at = context, ends_at, versions

    def _versions(self) -> list[Version]:
        found = []
        for flag, path in (("--tls-cert-file", self._cert), ("--tls-key-file", self._key)):
            try:
                found.append(version(path.stat()))
            except OSError as error:
                raise ValueError(f"{flag}: {path}: {error.strerror}") from error
        return found

    def _tell_of_the_end(self) -> None:
        now = self._clock()
        ended = now >= self._ends_at
        if self._ends_at - now > SOON_SECONDS or (now < self._quiet_until and ended == self._ended):
            return
        self._ended, self._quiet_until = ended, now + AGAIN_SECONDS
        if ended:
            logger.error("the certificate of %s ended on %s: clients refuse it", *self._told())
        else:
            logger.warning("the certificate of %s ends on %s: renew it", *self._told())

    def _told(self) -> tuple[Path, str]:
        return self._cert, datetime.fromtimestamp(self._ends_at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _server_side() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Renegotiation is work that a client of TLS 1.2 may ask for again and again.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


def _no_password() -> str:
    """Instead of OpenSSL's question at the terminal."""
    raise ValueError("it is encrypted, and there is nobody to ask for its password")


def _ends_at(pem: str) -> float:
    """When the first of a chain's certificates ends, in seconds since 1970.

    By hand: the standard library reads a certificate only once a client has verified it, and the
    package that can takes 11 MiB.

    Raises:
        ValueError: there is none.
    """
    blocks = _BLOCK.findall(pem)
    if not blocks:
        raise ValueError("holds no certificate in PEM")
    try:
        return min(_not_after(ssl.PEM_cert_to_DER_cert(block)) for block in blocks)
    except (ValueError, IndexError) as error:
        raise ValueError("holds a certificate that cannot be read") from error


def _not_after(der: bytes) -> float:
    (_, certificate), *_ = _elements(der)
    (_, signed), *_ = _elements(certificate)
    fields = _elements(signed)
    if fields[0][0] == _EXPLICIT_VERSION:
        del fields[0]
    _, _, _, (_, validity), *_ = fields  # after serial number, algorithm and issuer
    _, (tag, raw) = _elements(validity)
    text = raw.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """Tag and contents of each element."""
    found = []
    while der:
        begin, length = 2, der[1]
        if length & 0x80:
            begin += length & 0x7F
            length = int.from_bytes(der[2:begin])
        found.append((der[0], der[begin : begin + length]))
        der = der[begin + length :]
    return found

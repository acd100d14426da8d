"""TLS on the client's side: which authorities are trusted, and why it failed, in a few words."""

from __future__ import annotations

import logging
import os
import ssl

import anyio.to_thread

from transports.errors import Symptom
from transports.files import Version, version

__all__ = ["CUT", "Trust", "explain"]

logger = logging.getLogger(__name__)

_EXPIRED = 10, 9
_NAME = 62, 64
_UNTRUSTED = 2, 18, 19, 20, 21
"""Results of OpenSSL's verification (x509_vfy.h): has expired or is not valid yet; of another name
or address; signed by itself, or by nobody known."""

_NO_TLS = ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST")
"""What OpenSSL makes of bytes that are no TLS, by their first five."""


CUT = "closed in the handshake"


class Trust:
    """One TLS context for all connections, made anew where the file of authorities has changed.

    One alone, because it costs 20 ms and the memory of all the system's authorities.
    """

    def __init__(self, ca_file: str) -> None:
        self._file = ca_file
        self._read_at: Version | None = None
        self._told = ""
        # For plain HTTP, which never uses it: an empty one, which trusts nobody.
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    async def read(self) -> None:
        """Read the authorities.

        Raises:
            ValueError: the file does not hold any.
        """
        await anyio.to_thread.run_sync(self._read)

    async def renew(self) -> None:
        """Read them again if the file has changed. One that cannot be read is told of once, and
        what was trusted stays."""
        if self._file:
            await anyio.to_thread.run_sync(self._renew)

    def _renew(self) -> None:
        try:
            if version(os.stat(self._file)) == self._read_at:
                self._told = ""
                return
            self._read()
        except (OSError, ValueError) as error:
            if self._told != str(error):
                self._told = str(error)
                logger.error("the authorities trusted before stay: %s", error)
            return
        self._told = ""
        logger.info("trusting the new authorities of %s", self._file)

    def _read(self) -> None:
        try:
            before = version(os.stat(self._file)) if self._file else None
            context = ssl.create_default_context(cafile=self._file or None)
        except OSError as error:  # and what OpenSSL says of a file that it cannot use
            raise ValueError(f"ca_file {self._file!r}: {error}") from error
        self.context, self._read_at = context, before


def explain(error: ssl.SSLError, name: str) -> tuple[str, Symptom]:
    """Why a handshake failed with a server that was to be `name`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _EXPIRED:
            return error.verify_message, "tls_expired"
        if error.verify_code in _NAME:
            return f"the certificate is not for {name}", "tls_name"
        if error.verify_code in _UNTRUSTED:
            return f"the certificate is not trusted: {error.verify_message}", "tls_untrusted"
        return error.verify_message, "tls"
    if isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING":
        return CUT, "tls"
    if error.reason in _NO_TLS:
        return "what answers speaks no TLS", "tls_scheme"
    return (error.reason or "failed").lower().replace("_", " "), "tls"

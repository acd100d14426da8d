"""Who answers at the address of an agent without being one, and notes all that it is told.

Run as a program it is the attacker itself, in the network of a pod.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from cluster.pods import Pod

__all__ = ["attacker"]

MESSAGE_BYTES = 65536

SILENCE_SECONDS = 5
"""How long it waits for a caller that says nothing."""


@contextmanager
def attacker(pod: Pod, port: int, certificate: Path, key: Path) -> Iterator[Callable[[], bytes]]:
    """It listens in the pod's network within the block, and shows this certificate. The function
    tells all that came so far: of each connection the first bytes as they crossed the network, and
    after them, where the caller has trusted the certificate, what these were to hide."""
    heard = certificate.with_suffix(".heard")
    program = [sys.executable, "-m", __name__, str(port), str(certificate), str(key)]
    with (
        heard.open("wb") as notes,
        subprocess.Popen(
            [*pod.wires, *program],
            cwd=Path(__file__).parents[1], stdout=notes, stderr=subprocess.PIPE, text=True,
        ) as running,
    ):  # fmt: skip
        try:
            assert running.stderr is not None
            assert running.stderr.readline() == "listening\n"
            yield heard.read_bytes
        finally:
            running.terminate()


def main() -> None:
    port, certificate, key = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("", int(port))) as server:
        print("listening", file=sys.stderr, flush=True)
        while True:
            connection, _ = server.accept()
            Thread(target=hear, args=(context, connection), daemon=True).start()


def hear(context: ssl.SSLContext, connection: socket.socket) -> None:
    told = b""
    with connection, suppress(OSError):  # SSL's errors are some of these
        connection.settimeout(SILENCE_SECONDS)
        told = connection.recv(MESSAGE_BYTES, socket.MSG_PEEK)
        with context.wrap_socket(connection, server_side=True) as secure:
            told += secure.recv(MESSAGE_BYTES)
    sys.stdout.buffer.write(told)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

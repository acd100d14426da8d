"""Copies standard input and output to a Unix socket: what a command transport starts in a test.

Standard library only, so that it starts in a few milliseconds.
"""

import os
import select
import socket
import sys

peer = socket.socket(socket.AF_UNIX)
try:
    peer.connect(sys.argv[1])
except OSError as error:
    print(f"no agent: {error.strerror}", file=sys.stderr)
    sys.exit(3)
while True:
    ready, _, _ = select.select([0, peer], [], [])
    if 0 in ready:
        data = os.read(0, 65536)
        if not data:
            break
        peer.sendall(data)
    if peer in ready:
        data = peer.recv(65536)
        if not data:
            break
        while data:
            data = data[os.write(1, data) :]

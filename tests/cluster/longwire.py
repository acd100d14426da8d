"""A wire with a delay: frames between two ports come out later than they went in.

Linux has this as netem, but not every kernel was built with it. Run as a program in a network
namespace: `longwire.py PORT TAP SECONDS` carries frames between the link PORT, taken off its
bridge, and the tap device TAP, which is in the bridge instead of it.
"""

from __future__ import annotations

import collections
import fcntl
import os
import select
import socket
import struct
import sys
import time

FRAME_BYTES = 70_000
"""The largest frame that Linux hands on in one go: 64 KiB and headers."""

QUEUE_FRAMES = 10_000
"""Frames under way in one direction; more are lost, as on a real wire."""

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23

Frames = collections.deque[tuple[float, bytes]]


def open_port(name: str) -> int:
    """Both ends begin each frame with the header of virtio, in which large segments and
    unfinished checksums pass the wire as they are."""
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    port.bind((name, ETH_P_ALL))
    return port.detach()


def open_tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    return tap


def carry(port: int, tap: int, seconds: float) -> None:
    under_way: dict[int, Frames] = {port: collections.deque(), tap: collections.deque()}
    other = {port: tap, tap: port}
    while True:
        due = [frames[0][0] for frames in under_way.values() if frames]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        readable, _, _ = select.select([port, tap], [], [], timeout)
        now = time.monotonic()
        for end in readable:
            frame = os.read(end, FRAME_BYTES)
            if len(under_way[end]) < QUEUE_FRAMES:
                under_way[end].append((now + seconds, frame))
        for end, frames in under_way.items():
            while frames and frames[0][0] <= now:
                try:
                    os.write(other[end], frames.popleft()[1])
                except OSError as error:  # the link is down for now: lost
                    print(error, file=sys.stderr)


if __name__ == "__main__":
    carry(open_port(sys.argv[1]), open_tap(sys.argv[2]), float(sys.argv[3]))

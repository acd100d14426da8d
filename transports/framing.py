"""Newline-delimited JSON-RPC, as MCP's stdio transport frames it. No I/O of its own.

One message is one line of UTF-8 JSON without raw newlines (MCP 2026-07-28, basic/transports/stdio).
"""

from __future__ import annotations

from mcp.types import JSONRPCMessage, jsonrpc_message_adapter

__all__ = ["MAX_FRAME_BYTES", "FrameTooLong", "LineSplitter", "decode", "encode"]

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Room for any answer our tools give, and a bound on what a hostile peer can make us hold."""


class FrameTooLong(ValueError):
    """The peer sent more than a frame may hold without ending the line."""


class LineSplitter:
    """Cuts a byte stream into lines, whatever the pieces it arrives in.

    Args:
        max_frame_bytes: the longest line accepted, without its newline.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        # Pieces of the unfinished line, joined once when it ends: appending to one
        # bytes object would copy it again for every piece.
        self._pieces: list[bytes] = []
        self._held_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was received and give the lines it completed, without newlines or blank lines.

        Raises:
            FrameTooLong: a line passes the bound. The splitter is of no more use.
        """
        *ended, rest = data.split(b"\n")
        lines: list[bytes] = []
        for end in ended:
            self._hold(end)
            line = b"".join(self._pieces).strip()
            self._pieces.clear()
            self._held_bytes = 0
            if line:
                lines.append(line)
        if rest:
            self._hold(rest)
        return lines

    def _hold(self, piece: bytes) -> None:
        self._held_bytes += len(piece)
        if self._held_bytes > self._max_frame_bytes:
            self._pieces.clear()
            raise FrameTooLong(f"a frame is longer than {self._max_frame_bytes} bytes")
        self._pieces.append(piece)


def encode(message: JSONRPCMessage) -> bytes:
    """One message as the line that carries it, newline included."""
    return message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"


def decode(line: bytes) -> JSONRPCMessage:
    """The message that a line carries.

    Raises:
        ValueError: the line is no JSON-RPC message.
    """
    return jsonrpc_message_adapter.validate_json(line, by_name=False)

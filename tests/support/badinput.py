"""Generated bad input, and what every answer to it must look like.

One `Forge` gives the same input for the same seed. It takes the kinds in turn, so that each
comes up however few are asked for; only the detail is random.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

SEED = 20260728

FRAME_BYTES = 1 << 20
"""The longest request that is accepted, on every listener."""

REFUSAL_CHARS = 1_000
"""An error is a sentence or two, whatever it is about."""

LEAKS = (
    "Traceback",
    'File "',
    ".py:",
    "site-packages",
    "errors.pydantic.dev",
    str(Path(__file__).parents[2]),
    sys.prefix,
)
"""What no client should ever read."""

MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "forge", "version": "1"},
}

ERAS = ("2026-07-28", "2025-11-25")

TOOL = "get_gpu_inventory"

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    2**31,
    2**63,
    2**64,
    -(10**300),
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "\x00",
    "\ud800",
    "\U0001f4a9\u202e\u0000\ufeff",
    "x" * 10_000,
    "%s%n{0}{a.__class__}${jndi:x}",
    "../../etc/passwd",
    "2026-07-28",
    "1999-01-01",
    [],
    [[]],
    {},
    {"": {}},
    {"__class__": {"__init__": 1}},
    ["a"] * 3_000,
    {str(number): number for number in range(3_000)},
)

METHODS = (
    "",
    " tools/list",
    "tools/list\n",
    "tools/List",
    "tools/call/",
    "__init__",
    "rpc.discover",
    "ping",
    "completion/complete",
    "resources/list",
    "resources/read",
    "resources/subscribe",
    "prompts/get",
    "logging/setLevel",
    "sampling/createMessage",
    "elicitation/create",
    "roots/list",
    "tasks/get",
    "tasks/result",
    "subscriptions/listen",
    "notifications/initialized",
    "notifications/cancelled",
    "notifications/progress",
    "notifications/roots/list_changed",
    "notifications/x",
    "\ud800",
    "m" * 5_000,
)


def request(era: str, method: str, number: Any, **params: Any) -> dict[str, Any]:
    """A well-formed request of an era."""
    if era == ERAS[0]:
        params["_meta"] = dict(MODERN_META)
    message = {"jsonrpc": "2.0", "id": number, "method": method}
    return {**message, "params": params} if params else message


def initialize(number: Any) -> dict[str, Any]:
    client = {"name": "forge", "version": "1"}
    return request(
        ERAS[1],
        "initialize",
        number,
        protocolVersion=ERAS[1],
        capabilities={},
        clientInfo=client,
    )


def line(message: object) -> bytes:
    """One message as JSON, with NaN, infinities and lone surrogates as Python writes them."""
    return json.dumps(message).encode()


class Forge:
    """Bad messages, and bad HTTP requests around bad and good messages."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self._turn = 0
        self._odd = cycle(self.random.sample(ODD, len(ODD)))
        self._odd_ids = cycle(self.random.sample(ODD, len(ODD)))

    def frames(self, count: int, era: str) -> Iterator[bytes]:
        """Bad messages, each one line without its newline and short enough to be read."""
        kinds = (
            self._cut,
            self._flipped,
            self._noise,
            self._odd_field,
            self._odd_field,
            self._missing_field,
            self._unknown_field,
            self._doubled_field,
            self._unknown_method,
            self._odd_arguments,
            self._odd_arguments,
            self._odd_id,
            self._odd_id,
            self._odd_id,
            self._deep,
            self._batch,
            self._unasked,
            self._bad_utf8,
            self._bad_number,
            self._long,
        )
        for _ in range(count):
            self._turn += 1
            yield kinds[self._turn % len(kinds)](era)

    def good(self, era: str) -> dict[str, Any]:
        """A request that would be answered with a result."""
        number = self.random.choice([self.random.randrange(1000), f"n{self.random.random()}"])
        method = self.random.choice(["tools/list", "tools/call", "tools/call", "first"])
        if method == "tools/call":
            arguments = self.random.choice([{}, {"detail": "summary"}])
            return request(era, method, number, name=TOOL, arguments=arguments)
        if method == "first":
            return request(era, "server/discover", number) if era == ERAS[0] else initialize(number)
        return request(era, method, number)

    def odd(self) -> Any:
        return copy.deepcopy(next(self._odd))

    def _place(self, value: Any) -> tuple[Any, Any]:
        """A container inside the message and a key in it."""
        return self.random.choice(list(places(value)))

    def _cut(self, era: str) -> bytes:
        whole = line(self.good(era))
        return whole[: self.random.randrange(1, len(whole))]

    def _flipped(self, era: str) -> bytes:
        data = bytearray(line(self.good(era)))
        for _ in range(self.random.randrange(1, 5)):
            place = self.random.randrange(len(data))
            data[place] = self.random.choice(b'\x00\x01\r"{}[],:\\ 0\x7f\x80\xff')
        return bytes(data)

    def _noise(self, era: str) -> bytes:
        text = (
            b"\x00",
            b"GET /mcp HTTP/1.1\r",
            b"Content-Length: 10\r",
            b"{'jsonrpc': '2.0'}",
            b"\xef\xbb\xbf" + line(self.good(era)),
            line(self.good(era)).decode().encode("utf-16").replace(b"\n", b""),
            b"{" * self.random.randrange(1, 100),
            b"nul",
            b"0x10",
            b"//",
            line(self.good(era)) + line(self.good(era)),
            line(self.good(era)) + b",",
        )
        noise = self.random.randbytes(self.random.randrange(1, 200)).replace(b"\n", b"\t")
        return self.random.choice([*text, noise, noise])

    def _odd_field(self, era: str) -> bytes:
        message = copy.deepcopy(self.good(era))
        for _ in range(self.random.choice([1, 1, 1, 3])):
            container, key = self._place(message)
            container[key] = self.odd()
        return line(message)

    def _missing_field(self, era: str) -> bytes:
        message = copy.deepcopy(self.good(era))
        container, key = self._place(message)
        del container[key]
        return line(message)

    def _unknown_field(self, era: str) -> bytes:
        message = copy.deepcopy(self.good(era))
        container, _ = self._place(message)
        container[self.random.choice(["result", "error", "id ", "__proto__", "\ud800", "x"])] = (
            self.odd()
        )
        return line(message)

    def _doubled_field(self, era: str) -> bytes:
        field = self.random.choice([b'"id":7', b'"method":"ping"', b'"params":[]', b'"jsonrpc":1'])
        return line(self.good(era))[:-1] + b"," + field + b"}"

    def _unknown_method(self, era: str) -> bytes:
        message = self.good(era) | {"method": self.random.choice(METHODS)}
        if self.random.random() < 0.3:
            del message["id"]
        return line(message)

    def _odd_arguments(self, era: str) -> bytes:
        name = self.random.choice(
            ["detail", "nodes", "limit", "cursor", "x", "\ud800", "x" * 2_000]
        )
        arguments = self.random.choice([{name: self.odd()}, {name: self.odd()}, self.odd()])
        tool = TOOL if self.random.random() < 0.8 else self.odd()
        return line(
            request(era, "tools/call", self.random.randrange(99), name=tool, arguments=arguments)
        )

    def _odd_id(self, era: str) -> bytes:
        return line(self.good(era) | {"id": next(self._odd_ids)})

    def _deep(self, era: str) -> bytes:
        depth = self.random.choice([50, 120, 190, 500, 990, 5_000, 100_000])
        opening, closing = self.random.choice([(b"[", b"]"), (b'{"a":', b"}")])
        nested = opening * depth + (b"1" if opening != b"[" else b"") + closing * depth
        if self.random.random() < 0.2:
            return nested
        message = copy.deepcopy(self.good(era))
        container, key = self._place(message)
        container[key] = "NESTED"
        return line(message).replace(b'"NESTED"', nested)

    def _batch(self, era: str) -> bytes:
        good = self.good(era)
        return line(self.random.choice([[], [good], [good, good], [1], [[good]], [good] * 50]))

    def _unasked(self, era: str) -> bytes:
        """Answers nobody waits for, and notifications about requests that nobody sent."""
        number = self.random.choice([1, 0, -1, "x", None, 1.5, True, 2**70])
        notification = self.random.choice(["notifications/cancelled", "notifications/progress"])
        params: dict[str, Any] = {
            "requestId": number,
            "progressToken": number,
            "progress": self.odd(),
        }
        return line(
            self.random.choice(
                [
                    {"jsonrpc": "2.0", "id": number, "result": self.odd()},
                    {"jsonrpc": "2.0", "id": number, "error": self.odd()},
                    {"jsonrpc": "2.0", "id": number, "error": {"code": 1, "message": self.odd()}},
                    {"jsonrpc": "2.0", "method": notification, "params": params},
                    {"jsonrpc": "2.0", "method": notification, "params": self.odd()},
                ]
            )
        )

    def _bad_utf8(self, era: str) -> bytes:
        bad = self.random.choice(
            [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2"]
        )
        data = line(self.good(era))
        place = self.random.randrange(len(data))
        return data[:place] + bad + data[place:]

    def _bad_number(self, era: str) -> bytes:
        number = self.random.choice(
            [
                b"1e999",
                b"-1e999",
                b"NaN",
                b"Infinity",
                b"9" * 5_000,
                b"1" + b"0" * 400,
                b"01",
                b"1.",
                b"-",
            ]
        )
        message = copy.deepcopy(self.good(era))
        container, key = self._place(message)
        container[key] = "NUMBER"
        return line(message).replace(b'"NUMBER"', number)

    def _long(self, era: str) -> bytes:
        """Many or long things in one message."""
        message = copy.deepcopy(self.good(era))
        container, key = self._place(message)
        if self.random.random() < 0.2:
            container[key] = "x" * (FRAME_BYTES - 1_000)
        else:
            container[key] = self.random.choice(
                [{f"k{n}": n for n in range(5_000)}, ["y"] * 20_000, "\u0000" * 5_000]
            )
        return line(message)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place inside a JSON value: its container and its key there."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield value, key
        if isinstance(inner, dict | list):
            yield from places(inner)


def check_text(text: str) -> None:
    """No inner detail of the program is told."""
    for leak in LEAKS:
        assert leak not in text, f"{leak!r} in {text[:2_000]!r}"


def check_message(raw: bytes, echo_bytes: int) -> dict[str, Any]:
    """One JSON-RPC message of a server, well-formed and no longer than it has to be.

    Args:
        echo_bytes: what the client said last, of which an error may repeat a part: the SDK names
            the method it does not know.
    """
    check_text(raw.decode("utf-8"))
    message: dict[str, Any] = json.loads(raw, parse_constant=_refuse_constant)
    assert message["jsonrpc"] == "2.0", message
    if "method" in message:
        assert "id" not in message, f"the server asks something: {message}"
    elif "error" in message:
        assert set(message) <= {"jsonrpc", "id", "error"}, message
        error = message["error"]
        assert type(error["code"]) is int, message
        assert isinstance(error["message"], str), message
        assert error["message"], message
        assert len(error["message"]) < REFUSAL_CHARS, raw[:3_000]
        assert len(raw) < REFUSAL_CHARS + echo_bytes, raw[:3_000]
        assert error["code"] not in (0, -32603), f"an internal error: {message}"
    else:
        assert set(message) == {"jsonrpc", "id", "result"}, message
        assert isinstance(message["result"], dict), message
        if message["result"].get("isError"):
            (block,) = message["result"]["content"]
            assert "internal error" not in block["text"], block
            assert len(block["text"]) < REFUSAL_CHARS, block["text"][:3_000]
    return message


def _refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@dataclass(frozen=True)
class Vitals:
    """What a process holds, as Linux counts it."""

    resident_bytes: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Vitals:
        proc = Path("/proc") / str(pid)
        fields = dict(
            part.split(":", 1) for part in (proc / "status").read_text().splitlines() if ":" in part
        )
        return cls(
            resident_bytes=int(fields["VmRSS"].split()[0]) * 1024,
            descriptors=len(list((proc / "fd").iterdir())),
            threads=int(fields["Threads"]),
        )


@dataclass(frozen=True)
class Exchange:
    """What is sent over one HTTP connection."""

    raw: bytes
    answered: bool = True
    """Whether it is complete, so that an answer is owed."""


class HttpForge:
    """Bad HTTP requests: every part of a good one in turn is not as it should be."""

    def __init__(self, seed: int) -> None:
        self._forge = Forge(seed)
        self.random = self._forge.random
        self._turn = 0

    def exchanges(self, count: int) -> Iterator[Exchange]:
        kinds = (
            self._bad_body,
            self._bad_body,
            self._bad_body,
            self._bad_body,
            self._odd_header,
            self._odd_header,
            self._odd_header,
            self._missing_header,
            self._doubled_header,
            self._odd_length,
            self._odd_chunks,
            self._odd_line,
            self._no_http,
            self._cut,
            self._too_long,
        )
        for _ in range(count):
            self._turn += 1
            yield kinds[self._turn % len(kinds)](self.random.choice(ERAS))

    def _headers(self, era: str, message: dict[str, Any] | None = None) -> dict[str, str]:
        accept = ["application/json", "application/json, text/event-stream", "*/*"]
        headers = {
            "Host": "127.0.0.1",
            "Content-Type": "application/json",
            "Accept": self.random.choice(accept),
        }
        if era == ERAS[0] and message is not None:
            headers |= {"MCP-Protocol-Version": era, "Mcp-Method": message["method"]}
            if "name" in message.get("params", {}):
                headers["Mcp-Name"] = message["params"]["name"]
        return headers

    def _good(self, era: str) -> tuple[dict[str, str], bytes]:
        message = self._forge.good(era)
        return self._headers(era, message), line(message)

    def _bad_body(self, era: str) -> Exchange:
        (frame,) = self._forge.frames(1, era)
        # Headers of a request that may or may not be the one in the body.
        return Exchange(post(self._headers(era, self._forge.good(era)), frame))

    def _odd_value(self) -> str:
        return self.random.choice(
            [
                "",
                "x",
                "\x80\xff",
                "a" * 3_000,
                ", ,;=",
                "*",
                "null",
                "=?base64?!!!?=",
                "=?base64?aGk=?=",
                "2025-11-25",
                "1999-01-01",
                "tools/list",
                TOOL,
                "application/json; charset=utf-7",
                "text/event-stream;q=0",
                "http://evil.example",
                "evil.example",
                "[::1",
                "localhost:99999999",
                "127.0.0.1.",
                "%00",
                "1e9",
            ]
        )

    def _odd_header(self, era: str) -> Exchange:
        headers, body = self._good(era)
        names = [
            *headers,
            "Origin",
            "Mcp-Session-Id",
            "MCP-Protocol-Version",
            "Mcp-Method",
            "Mcp-Name",
            "Mcp-Param-detail",
            "Last-Event-ID",
            "Content-Encoding",
            "Expect",
            "Upgrade",
            "Connection",
            "Authorization",
            "Cookie",
            "X-Forwarded-For",
            "Range",
        ]
        headers[self.random.choice(names)] = self._odd_value()
        return Exchange(post(headers, body))

    def _missing_header(self, era: str) -> Exchange:
        headers, body = self._good(era)
        del headers[self.random.choice(list(headers))]
        return Exchange(post(headers, body))

    def _doubled_header(self, era: str) -> Exchange:
        headers, body = self._good(era)
        name = self.random.choice(list(headers))
        headers[name.swapcase()] = self.random.choice([headers[name], self._odd_value()])
        if self.random.random() < 0.2:
            headers |= {f"X-{number}": "y" * 50 for number in range(900)}
        return Exchange(post(headers, body))

    def _odd_length(self, era: str) -> Exchange:
        """A Content-Length that is none, or not the body's."""
        headers, body = self._good(era)
        length = self.random.choice(
            [
                "-1",
                "x",
                "",
                "1, 2",
                "+5",
                "0x10",
                "1" * 30,
                "0",
                str(len(body) - 1),
                str(len(body) + 1),
            ]
        )
        answered = length != str(len(body) + 1)
        return Exchange(post(headers, body, length=length), answered)

    def _odd_chunks(self, era: str) -> Exchange:
        headers, body = self._good(era)
        headers["Transfer-Encoding"] = self.random.choice(
            ["chunked", "chunked", "chunked", "gzip", "identity", "chunked, chunked"]
        )
        chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        chunks = self.random.choice(
            [
                chunk,
                chunk[1:],
                b"zz\r\n" + chunk,
                b"-5\r\n" + chunk,
                b"f" * 40 + b"\r\n",
                b"0\r\n\r\n",
                b"1\r\n{\r\n" * 50 + b"0\r\n\r\n",
                b"0\r\nTrailer: x\r\n\r\n",
            ]
        )
        length = str(len(body)) if self.random.random() < 0.3 else None
        return Exchange(
            head(headers | ({"Content-Length": length} if length else {})) + chunks, False
        )

    def _odd_line(self, era: str) -> Exchange:
        headers, body = self._good(era)
        request_line = self.random.choice(
            [
                b"GET /mcp HTTP/1.1",
                b"DELETE /mcp HTTP/1.1",
                b"OPTIONS /mcp HTTP/1.1",
                b"PATCH /mcp HTTP/1.1",
                b"BREW /mcp HTTP/1.1",
                b"CONNECT /mcp HTTP/1.1",
                b"TRACE /mcp HTTP/1.1",
                b"post /mcp HTTP/1.1",
                b"POST /mcp HTTP/1.0",
                b"POST /mcp/ HTTP/1.1",
                b"POST //mcp HTTP/1.1",
                b"POST /mcp/../mcp HTTP/1.1",
                b"POST /%6dcp HTTP/1.1",
                b"POST /mcp%00 HTTP/1.1",
                b"POST /mcp?a=%ff&b HTTP/1.1",
                b"POST http://evil.example/mcp HTTP/1.1",
                b"POST /" + b"a" * 5_000 + b" HTTP/1.1",
                b"POST /healthz HTTP/1.1",
                b"GET /../../etc/passwd HTTP/1.1",
                b"GET /version?pad=" + b"9" * 500 + b" HTTP/1.1",
                b"GET /metrics?%%%=%c0%af HTTP/1.1",
                b"GET /readyz#x HTTP/1.1",
                b"GET /\xff\xfe HTTP/1.1",
                b"GET * HTTP/1.1",
            ]
        )
        return Exchange(post(headers, body, request_line=request_line))

    def _no_http(self, era: str) -> Exchange:
        raw = self.random.choice(
            [
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"GET /healthz\r\n\r\n",
                b"POST /mcp HTTP/9.9\r\nHost: a\r\n\r\n",
                b"POST /mcp HTTP/1.1\nHost: a\n\n",
                b"POST /mcp HTTP/1.1\r\n Host: a\r\n\r\n",
                b"POST /mcp HTTP/1.1\r\nHost : a\r\n\r\n",
                b"POST /mcp HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
                b"POST /mcp HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                b"POST /mcp HTTP/1.1\r\nHost: a\r\nX: " + b"h" * 100_000 + b"\r\n\r\n",
                b"\r\n" * 100,
                b"\x00" * 1_000,
                line(request(era, "tools/list", 1)) + b"\n",
                self.random.randbytes(300),
                b"h" * 200_000,
            ]
        )
        return Exchange(raw, False)

    def _cut(self, era: str) -> Exchange:
        headers, body = self._good(era)
        raw = post(headers, body)
        return Exchange(raw[: self.random.randrange(1, len(raw))], False)

    def _too_long(self, era: str) -> Exchange:
        headers, body = self._good(era)
        if self.random.random() < 0.5:
            return Exchange(post(headers, body, length=str(FRAME_BYTES + 1)))
        headers["Transfer-Encoding"] = "chunked"
        chunk = b"%x\r\n%s\r\n" % (65_536, b" " * 65_536)
        return Exchange(head(headers) + chunk * (FRAME_BYTES // 65_536 + 1) + b"0\r\n\r\n")


def head(headers: dict[str, str], request_line: bytes = b"POST /mcp HTTP/1.1") -> bytes:
    lines = [
        request_line,
        *(f"{name}: {value}".encode("latin-1") for name, value in headers.items()),
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(
    headers: dict[str, str],
    body: bytes,
    *,
    length: str | None = None,
    request_line: bytes = b"POST /mcp HTTP/1.1",
) -> bytes:
    sized = {**headers, "Content-Length": str(len(body)) if length is None else length}
    return head(sized, request_line) + body

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.types import JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from transports.framing import FrameTooLong, LineSplitter, decode, encode

LINES = st.lists(st.binary(max_size=50).filter(lambda line: line.strip() and b"\n" not in line))


@given(lines=LINES, data=st.data())
def test_lines_come_out_whole_however_the_bytes_are_cut(
    lines: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    splitter = LineSplitter()
    got: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += splitter.feed(stream[:size])
        stream = stream[size:]
    assert got == [line.strip() for line in lines]


def test_blank_lines_and_carriage_returns_carry_nothing() -> None:
    assert LineSplitter().feed(b"\n  \n{}\r\n\r\n[") == [b"{}"]


def test_a_line_of_the_allowed_length_passes_and_one_byte_more_does_not() -> None:
    assert LineSplitter(10).feed(b"x" * 10 + b"\n") == [b"x" * 10]
    with pytest.raises(FrameTooLong, match="10 bytes"):
        LineSplitter(10).feed(b"x" * 11 + b"\n")


def test_an_endless_line_is_refused_as_soon_as_it_passes_the_bound() -> None:
    splitter = LineSplitter(1000)
    for _ in range(10):
        assert splitter.feed(b"x" * 100) == []
    with pytest.raises(FrameTooLong):
        splitter.feed(b"x")


def test_a_megabyte_in_single_bytes_is_joined_once() -> None:
    splitter = LineSplitter()
    for _ in range(1_000_000):
        assert not splitter.feed(b"x")
    assert splitter.feed(b"\n") == [b"x" * 1_000_000]


@pytest.mark.parametrize(
    "message",
    [
        JSONRPCRequest(jsonrpc="2.0", id=7, method="tools/call", params={"name": "é\n\u2028"}),
        JSONRPCNotification(jsonrpc="2.0", method="notifications/progress"),
        JSONRPCResponse(jsonrpc="2.0", id="a", result={"text": "\ud7ff"}),
    ],
)
def test_a_message_is_one_line_and_comes_back_equal(
    message: JSONRPCRequest | JSONRPCNotification | JSONRPCResponse,
) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line) == message


@pytest.mark.parametrize(
    "line", [b"hello", b"{}", b"[]", b"null", b"\xff\xfe", b'{"jsonrpc":"1.0","method":"x"}', b"["]
)
def test_what_is_no_message_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode(line)


def test_a_deeply_nested_line_is_a_value_error_and_not_a_crash() -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode(b'{"jsonrpc":"2.0","method":"x","params":{"a":' + b"[" * 100_000)

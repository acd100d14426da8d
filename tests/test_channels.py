"""Frames of the streaming protocols, and what the error channel may say."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports import channels
from transports.channels import CHUNK_BYTES, CLOSE, STDIN, STDOUT, Exit, parse, read_exit

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary(max_size=3 * CHUNK_BYTES), st.sampled_from([0, 1, 2, 3]))
def test_what_is_framed_is_parsed_to_the_same_bytes(data: bytes, channel: int) -> None:
    found = list(channels.frames(channel, data))
    assert all(1 < len(frame) <= 1 + CHUNK_BYTES for frame in found)
    parsed = [parse(frame) for frame in found]
    assert all(part is not None and part[0] == channel for part in parsed)
    assert b"".join(part[1] for part in parsed if part is not None) == data


@given(st.binary(max_size=1_000))
def test_any_frame_is_parsed_or_says_nothing(frame: bytes) -> None:
    found = parse(frame)
    assert found == ((frame[0], frame[1:]) if len(frame) > 1 else None)


def test_the_frames_of_the_protocol() -> None:
    assert list(channels.frames(STDIN, b"hello")) == [b"\x00hello"]
    assert list(channels.frames(STDIN, b"")) == []
    assert channels.closing(STDIN) == b"\xff\x00"
    assert parse(b"\x01") is None  # "connected"
    assert parse(b"\x01x") == (STDOUT, b"x")
    assert parse(b"\xff\x01") == (CLOSE, b"\x01")


def exited(message: Any, reason: str = "ExitCode") -> dict[str, Any]:
    return {
        "kind": "Status",
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": "command terminated with non-zero exit code",
        "details": {"causes": [{"reason": "Other"}, {"reason": reason, "message": message}]},
    }


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        ({"kind": "Status", "status": "Success", "metadata": {}}, 0, ""),
        (exited("7"), 7, "command terminated with non-zero exit code"),
        (exited("137"), 137, "command terminated with non-zero exit code"),
        (exited("soon"), None, "command terminated with non-zero exit code"),
        (exited(float("inf")), None, "command terminated with non-zero exit code"),
        (exited(None), None, "command terminated with non-zero exit code"),
        (exited("7", "Signal"), None, "command terminated with non-zero exit code"),
        ({"status": "Failure", "reason": "InternalError", "message": "no way"}, None, "no way"),
        ({"status": "Failure", "reason": "Timeout", "details": None}, None, "Timeout"),
        ({"status": "Failure", "details": {"causes": {}}}, None, None),
        ({}, None, None),
    ],
)
def test_a_status_is_an_exit(status: dict[str, Any], code: int | None, message: str | None) -> None:
    text = json.dumps(status)
    assert read_exit(text.encode()) == Exit(code, text if message is None else message)


@pytest.mark.parametrize(
    "data", [b"", b"connection refused", b"[1]", b"null", b"[" * 60_000, b"\xff\xfe"]
)
def test_what_is_no_status_is_quoted(data: bytes) -> None:
    assert read_exit(data) == Exit(None, data.decode(errors="replace"))


@given(
    st.one_of(
        JSON,
        st.fixed_dictionaries(
            {},
            optional={
                name: JSON | st.sampled_from(["Failure", "Success"])
                for name in ("status", "reason", "message", "details")
            },
        ),
        st.builds(exited, JSON),
    )
)
def test_no_shape_of_a_status_is_an_error(document: Any) -> None:
    found = read_exit(json.dumps(document).encode())
    assert found.code is None or isinstance(found.code, int)
    assert isinstance(found.message, str)


@given(st.binary())
def test_no_bytes_on_the_error_channel_are_an_error(data: bytes) -> None:
    read_exit(data)

"""The kubelet asked over a real socket: what it says, and everything that can go wrong."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_gpu.node.grpc import ANSWER_BYTES
from mcp_gpu.node.pod_resources import (
    Allocation,
    ClaimedDevice,
    PodResources,
    PodResourcesError,
    read_allocatable,
    read_pods,
)
from mcp_gpu.node.protobuf import ProtobufError
from support.kubelet import ALLOCATABLE, LIST, Kubelet, claim, listing, plugin, pod

MESSAGES = json.loads(
    (Path(__file__).parent / "data" / "pod_resources" / "messages.json").read_text()
)
"""Made by the kubelet's own types (main.go beside it)."""

GPU = "GPU-5b7f4a4e-0000-4000-8000-000000000000"


@pytest.fixture
async def kubelet(tmp_path: Path) -> AsyncIterator[Kubelet]:
    made = Kubelet(tmp_path / "kubelet.sock")
    made.holding(pod("train", "w0", plugin("nvidia.com/gpu", GPU)))
    async with made.listening():
        yield made


async def ask(kubelet: Kubelet, seconds: float = 20.0) -> Allocation:
    with anyio.fail_after(30):
        return await PodResources(kubelet.path, seconds=seconds).allocation()


async def refused(kubelet: Kubelet, seconds: float = 20.0) -> str:
    with pytest.raises(PodResourcesError) as caught:
        await ask(kubelet, seconds)
    told = str(caught.value)
    assert told.startswith(f"{kubelet.path}: ")
    return told.removeprefix(f"{kubelet.path}: ")


def of_json(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the published types write as JSON, as far as it is read here."""
    return [
        {
            "namespace": each.get("namespace", ""),
            "name": each["name"],
            "containers": [
                {
                    "name": container["name"],
                    "devices": [
                        (given["resourceName"], tuple(given["deviceIds"]))
                        for given in container.get("devices", ())
                    ],
                    "claimed": [
                        ClaimedDevice(
                            dynamic["claimNamespace"],
                            dynamic["claimName"],
                            one["driverName"],
                            one["poolName"],
                            one["deviceName"],
                            tuple(cdi["name"] for cdi in one["cdiDevices"]),
                        )
                        for dynamic in container.get("dynamicResources", ())
                        for one in dynamic["claimResources"]
                    ],
                }
                for container in each.get("containers", ())
            ],
        }
        for each in pods
    ]


def test_what_the_kubelet_s_own_types_write_is_read() -> None:
    wire = memoryview(bytes.fromhex(MESSAGES["list"]["wire"]))
    read = [
        {
            "namespace": each.namespace,
            "name": each.name,
            "containers": [
                {
                    "name": container.name,
                    "devices": [(given.resource, given.ids) for given in container.devices],
                    "claimed": list(container.claimed),
                }
                for container in each.containers
            ],
        }
        for each in read_pods(wire)
    ]
    assert read == of_json(MESSAGES["list"]["json"]["podResources"])
    assert len(read) == 3
    could = read_allocatable(memoryview(bytes.fromhex(MESSAGES["allocatable"]["wire"])))
    assert [(each.resource, each.ids) for each in could] == [
        (each["resourceName"], tuple(each["deviceIds"]))
        for each in MESSAGES["allocatable"]["json"]["devices"]
    ]


@pytest.mark.parametrize("name", ["list", "allocatable"])
def test_a_message_that_is_cut_off_is_refused_or_shorter(name: str) -> None:
    wire = bytes.fromhex(MESSAGES[name]["wire"])
    reader = {"list": read_pods, "allocatable": read_allocatable}[name]
    whole = reader(memoryview(wire))
    refusals = 0
    for end in range(len(wire)):
        try:
            assert len(reader(memoryview(wire[:end]))) <= len(whole)
        except ProtobufError:
            refusals += 1
    assert refusals > len(wire) // 2


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for reader in (read_pods, read_allocatable):
        with suppress(ProtobufError):
            assert isinstance(reader(memoryview(raw)), tuple)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\x00\x01", "number 0"),
        (b"\x0b", "of kind 3"),
        (b"\x0a\x05ab", "longer than its message"),
        (b"\x0a", "cut off"),
        (b"\x08" + b"\xff" * 11, "too long"),
        (b"\x09\x00", "cut off"),
        (b"\x0d\x00", "cut off"),
        (listing(b"\x0a\x02\xff\xfe"), "no UTF-8"),
    ],
)
def test_what_is_no_message_is_said(raw: bytes, why: str) -> None:
    with pytest.raises(ProtobufError, match=why):
        read_pods(memoryview(raw))


def test_fields_of_other_kinds_are_passed_over() -> None:
    numbers = b"\x48\x01" + b"\x51" + bytes(8) + b"\x5d" + bytes(4)
    (found,) = read_pods(memoryview(listing(pod("a", "b") + numbers) + numbers))
    assert (found.namespace, found.name) == ("a", "b")


async def test_pods_and_what_could_be_given_come_over_one_connection(kubelet: Kubelet) -> None:
    kubelet.holding(
        pod("train", "w0", plugin("nvidia.com/gpu", GPU), claims=[claim("c", "train", "g0", "n1")]),
        could=[plugin("nvidia.com/gpu", GPU), plugin("nvidia.com/gpu", "GPU-2")],
    )
    found = await ask(kubelet)
    (one,) = found.pods
    (container,) = one.containers
    assert (one.namespace, one.name, container.name) == ("train", "w0", "main")
    assert container.devices[0].ids == (GPU,)
    assert container.claimed[0].device == "g0"
    assert [each.ids for each in found.allocatable] == [(GPU,), ("GPU-2",)]
    assert found.why == ""
    assert (kubelet.calls, kubelet.connections) == ([LIST, ALLOCATABLE], 1)


@pytest.mark.parametrize("frame_bytes", [7, 16_384])
async def test_answers_longer_than_any_window_come_in_frames_of_any_size(
    kubelet: Kubelet, frame_bytes: int
) -> None:
    count = 20_000 if frame_bytes > 1000 else 800
    kubelet.frame_bytes = frame_bytes
    kubelet.holding(
        *(pod("ns", f"p{n:06}", plugin("nvidia.com/gpu", f"{GPU}::{n}")) for n in range(count))
    )
    assert len(kubelet.messages[LIST]) > (2**20 if frame_bytes > 1000 else 65_535)
    found = await ask(kubelet)
    assert [each.name for each in found.pods] == [f"p{n:06}" for n in range(count)]


async def test_a_kubelet_that_was_started_again_is_found(tmp_path: Path) -> None:
    path = tmp_path / "kubelet.sock"
    asking = PodResources(path, seconds=20)
    for name in ("first", "second"):
        kubelet = Kubelet(path)
        kubelet.holding(pod("a", name, plugin("nvidia.com/gpu", GPU)))
        async with kubelet.listening():
            assert [each.name for each in (await asking.allocation()).pods] == [name]
        with pytest.raises(PodResourcesError, match="is the kubelet running"):
            await asking.allocation()


async def test_no_socket_is_said_with_what_mounts_it(tmp_path: Path) -> None:
    told = await refused(Kubelet(tmp_path / "none.sock"))
    assert told.startswith("No such file or directory")
    assert "agent.privileges=root" in told


@pytest.mark.skipif(os.getuid() != 0, reason="takes root to become somebody else")
async def test_a_socket_that_may_not_be_opened_is_said(tmp_path: Path) -> None:
    kubelet = Kubelet(tmp_path / "kubelet.sock")
    async with kubelet.listening():
        os.chmod(kubelet.path, 0)
        os.chmod(tmp_path, 0o755)
        os.seteuid(65_534)
        try:
            told = await refused(kubelet)
        finally:
            os.seteuid(0)
    assert told.startswith("Permission denied (takes uid 0")


async def test_a_queue_that_is_full_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "kubelet.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(path))
            assert await refused(Kubelet(path)) == "it takes no more connections"


async def test_a_method_it_does_not_have_is_no_fault_of_the_other(kubelet: Kubelet) -> None:
    del kubelet.messages[ALLOCATABLE]
    found = await ask(kubelet)
    assert [each.name for each in found.pods] == ["w0"]
    assert found.why == (
        f"what could be allocated: it refused: unknown method {ALLOCATABLE} (grpc-status 12)"
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"status": {LIST: (8, "rejected by rate limit")}},
            "it refused: rejected by rate limit (grpc-status 8)",
        ),
        ({"status": {LIST: (2, "a%0Ab%25")}}, "it refused: a b% (grpc-status 2)"),
        ({"messages": {}}, f"it refused: unknown method {LIST} (grpc-status 12)"),
        ({"http_status": "404"}, "it does not speak gRPC: HTTP 404"),
        ({"trailers": False}, "its answer has no grpc-status"),
        ({"goaway": True}, "it is closing its connections (ENHANCE_YOUR_CALM)"),
        ({"reset": True}, "it broke off its answer (INTERNAL_ERROR)"),
        ({"hangs_up": True}, "it ended the connection before its answer"),
        ({"raw": b"\0\0\0\0\1"}, "its answer is not one message"),
        ({"raw": b"\1\0\0\0\0"}, "its answer is not one message"),
        ({"raw": b"\0\0\0\0\1\x0b"}, "its answer cannot be read: a field is of kind 3"),
        ({"raw": bytes(ANSWER_BYTES + 10)}, "its answer is longer than 16 MiB"),
    ],
)
async def test_every_failure_is_worded(kubelet: Kubelet, changes: dict[str, Any], why: str) -> None:
    for name, value in changes.items():
        setattr(kubelet, name, value)
    assert await refused(kubelet) == why


async def test_headers_that_are_no_utf_8_are_read_or_refused(kubelet: Kubelet) -> None:
    kubelet.headers = [(b"x", b"\xff\xfe")]
    assert [each.name for each in (await ask(kubelet)).pods] == ["w0"]
    kubelet.status = {LIST: (13, "no")}
    kubelet.headers = [(b"grpc-message", b"\xffa")]
    assert await refused(kubelet) == "it refused: \ufffda (grpc-status 13)"


async def test_another_protocol_is_said(kubelet: Kubelet) -> None:
    kubelet.garbage = b"\0\0\0\4\0\0\0\0\1"  # settings of one stream: there are none
    assert (await refused(kubelet)).startswith("it does not speak HTTP/2")


async def test_silence_is_not_waited_for(kubelet: Kubelet) -> None:
    kubelet.silent = True
    assert await refused(kubelet, 0.2) == "the kubelet has not answered within 0.2 s"


async def test_whoever_gives_up_leaves_no_connection(kubelet: Kubelet) -> None:
    kubelet.silent = True
    with anyio.move_on_after(0.2) as scope:
        await PodResources(kubelet.path, seconds=60).allocation()
    assert scope.cancelled_caught
    kubelet.silent = False
    assert [each.name for each in (await ask(kubelet)).pods] == ["w0"]

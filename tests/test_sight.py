"""What an agent says that it can see, from real namespaces, sockets and files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.model import Failure, Snapshot
from mcp_gpu.gpu.xid.model import SourceState
from mcp_gpu.node.sight import LOOK_SECONDS, WHY_CHARS, Lookout, Sense, Sight, look

NOWHERE = Path("/nowhere/kubelet.sock")

MIG_MONITOR = "driver/nvidia/capabilities/mig/monitor"


def state(source: str, live: bool = True, message: str = "") -> SourceState:
    return SourceState.model_validate(
        {
            "source": source,
            "live": live,
            "message": message,
            "covers_since": None,
            "lost_records": 0,
        }
    )


def sense(sight: Sight, name: str) -> Sense:
    (found,) = (one for one in sight.senses if one.name == name)
    return found


def test_every_sense_that_fails_says_why_and_what_it_would_unlock(tmp_path: Path) -> None:
    sight = look(Snapshot(), (), proc=tmp_path, dev=tmp_path, pod_resources=tmp_path / "none")
    assert [one.name for one in sight.senses] == [
        "driver",
        "nvml_events",
        "kernel_log",
        "journal",
        "host_processes",
        "pod_resources",
        "mig_monitor",
    ]
    assert sight.uid == os.getuid()
    for one in sight.senses:
        assert not one.works
        assert one.why
        assert one.unlocks.endswith(".")
    assert sight.told["kernel_log"] == "nobody reads it"


def test_sources_are_seen_as_they_say() -> None:
    sources = (state("nvml"), state("journal", False, "no journal here"))
    sight = look(Snapshot(), sources, pod_resources=NOWHERE)
    assert sense(sight, "nvml_events").works
    assert sense(sight, "journal").why == "no journal here"


def test_the_driver_and_what_it_lacks_are_told() -> None:
    snapshot = simulator.snapshot(simulator.Node("one", "t4", driver="470.57.02"))
    sight = look(snapshot, (), pod_resources=NOWHERE)
    assert sense(sight, "driver").works
    assert sight.driver_version == "470.57.02"
    assert sight.missing_symbols == snapshot.missing_symbols
    failure = Failure(code=12, name="LibraryNotFound", message="no driver libraries here")
    failed = look(Snapshot(state="absent", failure=failure), (), pod_resources=NOWHERE)
    assert sense(failed, "driver").why == "no driver libraries here"


def test_the_process_namespace_is_this_process_s(tmp_path: Path) -> None:
    inode = os.stat("/proc/self/ns/pid").st_ino
    assert sense(look(Snapshot(), (), pod_resources=NOWHERE), "host_processes").works == (
        inode == 4026531836
    )
    (tmp_path / "self" / "ns").mkdir(parents=True)
    (tmp_path / "self" / "ns" / "pid").touch()
    own = sense(look(Snapshot(), (), proc=tmp_path, pod_resources=NOWHERE), "host_processes")
    assert own.why == "a process namespace of its own: other pods' processes are not seen"


def test_the_kubelet_s_socket_must_have_somebody_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "kubelet.sock"

    def why() -> str:
        return sense(look(Snapshot(), (), pod_resources=path), "pod_resources").why

    assert "No such file" in why()
    path.touch()
    assert why() == f"{path} is no socket"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as kubelet:
        kubelet.bind(str(path))
        assert "Connection refused" in why()
        kubelet.listen(0)
        # Until its queue is full, and then still.
        assert [why() for _ in range(5)] == [""] * 5


@pytest.mark.parametrize(
    ("content", "device", "why"),
    [
        ("DeviceFileMinor: 2\nDeviceFileMode: 256\n", "nvidia-cap2", ""),
        ("DeviceFileMinor: 3\n", "nvidia-cap2", "No such file"),
        ("nothing\n", "nvidia-cap2", "names no device"),
    ],
)
def test_the_mig_monitor_is_a_device_that_opens(
    tmp_path: Path, content: str, device: str, why: str
) -> None:
    capability = tmp_path / MIG_MONITOR
    capability.parent.mkdir(parents=True)
    capability.write_text(content)
    (tmp_path / "nvidia-caps").mkdir()
    (tmp_path / "nvidia-caps" / device).touch()
    found = sense(
        look(Snapshot(), (), proc=tmp_path, dev=tmp_path, pod_resources=NOWHERE), "mig_monitor"
    )
    assert found.works == (why == "")
    assert why in found.why


def test_the_longest_reasons_are_cut_and_can_be_printed() -> None:
    sources = [state(name, False, "\x1bé" * 5000) for name in ("nvml", "kernel_log", "journal")]
    failure = Failure(code=1, name="x", message="y" * 5000)
    sight = look(
        Snapshot(state="failing", failure=failure), sources, pod_resources=Path("/" + "z" * 5000)
    )
    assert max(len(why) for why in sight.told.values()) == WHY_CHARS
    assert all(why.isprintable() for why in sight.told.values())


def test_who_asks_again_at_once_gets_the_same_look() -> None:
    now = 0.0
    snapshot = Snapshot()
    lookout = Lookout(lambda: snapshot, lambda: (), clock=lambda: now, pod_resources=NOWHERE)
    first = lookout.sight()
    now = LOOK_SECONDS - 0.1
    assert lookout.sight() is first
    now = LOOK_SECONDS
    assert lookout.sight() is not first

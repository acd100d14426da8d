"""GPUs on the bus, and what stands around them, from files such as a kernel has."""

from __future__ import annotations

from pathlib import Path

from mcp_gpu.gpu.simulator import Node
from mcp_gpu.gpu.simulator.faults import Lost, Vanished, WholeNode
from mcp_gpu.node.pci_bus import look
from mcp_gpu.node.surroundings import look as look_around
from mcp_gpu.node.surroundings import simulated

GPU, VGA, NVSWITCH, SOUND = "0x030200", "0x030000", "0x068000", "0x040300"


def device(
    root: Path,
    name: str,
    kind: str = GPU,
    *,
    vendor: str = "0x10de",
    driver: str = "nvidia",
    config: bytes | None = b"\xde\x10\x30\x23",
    virtual: bool = False,
) -> None:
    path = root / name
    path.mkdir(parents=True)
    (path / "vendor").write_text(f"{vendor}\n")
    (path / "device").write_text("0x2330\n")
    (path / "class").write_text(f"{kind}\n")
    if config is not None:
        (path / "config").write_bytes(config + bytes(60))
    if driver:
        (path / "driver").symlink_to(f"../../drivers/{driver}")
    if virtual:
        (path / "physfn").symlink_to("../elsewhere")


def test_gpus_are_told_from_what_else_is_on_the_bus(tmp_path: Path) -> None:
    device(tmp_path, "0000:53:00.0")
    device(tmp_path, "0000:01:00.0", VGA, driver="nouveau")
    device(tmp_path, "0000:64:00.0", config=b"\xff\xff\xff\xff")
    device(tmp_path, "0000:75:00.0", driver="vfio-pci", config=b"\xff\xff\xff\xff")
    device(tmp_path, "0000:86:00.0", driver="", config=None)
    device(tmp_path, "0000:97:00.0", config=b"\xde")  # as much as it takes to be unsure
    (tmp_path / "0000:97:00.0" / "config").write_bytes(b"\xde")
    device(tmp_path, "0000:53:00.1", SOUND)
    device(tmp_path, "0000:53:00.4", virtual=True)
    device(tmp_path, "0000:c1:00.0", NVSWITCH)
    device(tmp_path, "0000:02:00.0", VGA, vendor="0x1a03", driver="ast")
    bus = look(tmp_path)
    assert bus.why == ""
    assert bus.gpus is not None
    assert [(gpu.address, gpu.driver, gpu.answers, gpu.passed_on) for gpu in bus.gpus] == [
        ("0000:01:00.0", "nouveau", True, False),
        ("0000:53:00.0", "nvidia", True, False),
        ("0000:64:00.0", "nvidia", False, False),
        ("0000:75:00.0", "vfio-pci", None, True),
        ("0000:86:00.0", None, None, False),
        ("0000:97:00.0", "nvidia", None, False),
    ]
    assert {gpu.device_id for gpu in bus.gpus} == {"2330"}


def test_a_bus_that_cannot_be_seen_is_not_an_empty_one(tmp_path: Path) -> None:
    bus = look(tmp_path / "none")
    assert bus.gpus is None
    assert bus.why == f"{tmp_path / 'none'}: No such file or directory"
    assert look(tmp_path).gpus == ()


CONTAINER = (
    "21 20 0:20 / /proc rw - proc proc rw\n"
    "30 29 0:50 / / rw,relatime - overlay overlay rw,lowerdir={layers}/snapshots/1/fs\n"
)


def files(root: Path, mounts: str, *, module: str | None = "580.105.08\n") -> Path:
    (root / "etc").mkdir(parents=True)
    (root / "etc/os-release").write_text('NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.2 LTS"\n')
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(mounts)
    library = "7f00-7f01 r-xp 00000000 00:32 1 /usr/lib64/libnvidia-ml.so.570.86.15\n"
    (root / "proc/self/maps").write_text(library)
    if module is not None:
        (root / "sys/module/nvidia").mkdir(parents=True)
        (root / "sys/module/nvidia/version").write_text(module)
    return root


def test_a_container_tells_its_runtime_and_keeps_its_own_system_to_itself(tmp_path: Path) -> None:
    for runtime, layers in (
        ("containerd", "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs"),
        ("cri-o", "/var/lib/containers/storage/overlay"),
        ("docker", "/var/lib/docker/overlay2"),
    ):
        around = look_around(files(tmp_path / runtime, CONTAINER.format(layers=layers)))
        assert (around.runtime, around.os) == (runtime, None)
        assert around.unavailable.keys() == {"os"}
    other = look_around(files(tmp_path / "other", CONTAINER.format(layers="/somewhere")))
    assert other.runtime is None
    assert other.unavailable["runtime"] == "not to be told from the container"


def test_outside_of_containers_the_system_is_the_nodes(tmp_path: Path) -> None:
    around = look_around(files(tmp_path, "30 1 8:1 / / rw - ext4 /dev/sda1 rw\n", module=None))
    assert (around.os, around.runtime) == ("Ubuntu 24.04.2 LTS", None)
    assert (around.module_version, around.library_version) == (None, "570.86.15")
    assert around.unavailable["module_version"] == "no nvidia kernel module is loaded"
    assert around.bus.gpus is None
    assert around.kernel


def test_a_simulated_node_has_a_bus_of_its_own() -> None:
    node = Node("n", "h100")
    around = simulated(node)
    assert (around.kernel, around.module_version) == (None, node.driver)
    assert around.bus.gpus is not None
    assert len(around.bus.gpus) == 8
    assert all(gpu.answers and gpu.driver == "nvidia" for gpu in around.bus.gpus)
    node.faults = (
        Lost(kind="lost", gpu=1),
        Vanished(kind="vanished", gpu=2),
        Vanished(kind="vanished", gpu=3, on_bus=True),
    )
    gpus = simulated(node).bus.gpus
    assert gpus is not None
    assert [gpu.answers for gpu in gpus] == [True, False, True, True, True, True, True]
    node.faults = (WholeNode(kind="driver_not_loaded"),)
    around = simulated(node)
    assert around.module_version is None
    assert {gpu.driver for gpu in around.bus.gpus or ()} == {None}

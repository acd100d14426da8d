"""Why an agent reaches no driver, as its own answers tell it: over folders laid out as a node's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
import httpx2
import pytest
from mcp_types import CallToolResult

from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.errors import Code, init_advice
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.simulator import Node
from mcp_gpu.gpu.simulator.faults import NoPermission, WholeNode
from mcp_gpu.node.gpu_access import explain
from mcp_gpu.registry import Tool
from mcp_gpu.tools.health import agent_tool as health_tool
from mcp_gpu.tools.inventory import agent_tool as inventory_tool
from support import served
from support.cluster import PROGRAM
from support.health import BLIND, blind
from support.ports import free_ports
from support.results import data, text

VERSION = "580.95.05"
SONAME = "libnvidia-ml.so.1"
REFUSES = "accept-nvidia-visible-devices-envvar-when-unprivileged=false"
CLASS = "its runtime class is not NVIDIA's"

Kind = Literal["driver_not_loaded", "library_missing", "driver_mismatch", "device_cgroup"]


class Place:
    """A root directory, with what a container sees of a node."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.device("0000:00:00.0", vendor="0x8086", kind="0x060000")

    def write(self, path: str, content: str = "") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        return file

    def device(self, address: str, *, vendor: str, kind: str, driver: str = "") -> None:
        folder = f"sys/bus/pci/devices/{address}"
        self.write(f"{folder}/vendor", f"{vendor}\n")
        self.write(f"{folder}/class", f"{kind}\n")
        if driver:
            (self.root / folder / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")

    def gpu(self, address: str = "0000:53:00.0", driver: str = "") -> None:
        self.device(address, vendor="0x10de", kind="0x030200", driver=driver)

    def driver(self) -> None:
        self.gpu(driver="nvidia")
        self.write("sys/module/nvidia/version", f"{VERSION}\n")

    def environment(self, **variables: str) -> None:
        pairs = [f"{name}={value}\0" for name, value in variables.items()]
        self.write("proc/self/environ", "".join(pairs))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def failure(
    place: Place,
    fault: Kind | Literal["no_permission"],
    *,
    access: str | None = None,
    library: str | None = None,
) -> str:
    """What the agent's inventory says; its health must say the same."""
    node = Node(
        "n",
        "h100",
        gpus=1,
        faults=(
            NoPermission(kind="no_permission")
            if fault == "no_permission"
            else WholeNode(kind=fault),
        ),
    )
    told = partial(explain, access=access, library=library, root=place.root)
    nvml = partial(Nvml, explain=told)
    async with served.agent(node, partial(inventory_tool, "n"), nvml=nvml) as client:
        answer = await client.call_tool("get_gpu_inventory", {})
    async with served.agent(node, judged, nvml=nvml) as client:
        health = await client.call_tool("get_gpu_health", {})
    assert isinstance(answer, CallToolResult)
    assert isinstance(health, CallToolResult)
    (note,) = data(answer)["attention"]
    message: str = note.removeprefix("NVML ")
    (found,) = data(health)["findings"]
    assert found["advice"] == message
    assert note in text(answer)
    assert len(message) < 420, message
    return message


def judged(collector: Collector) -> Tool[Any]:
    return health_tool("n", collector, blind(), lambda: BLIND)


# --- the node -------------------------------------------------------------------------------


async def test_a_node_without_gpus_has_nothing_to_do(place: Place) -> None:
    said = await failure(place, "library_missing", access="runtimeClass")
    assert said.startswith("LibraryNotFound: no NVIDIA GPU is on this node's PCI bus")
    assert "a node without GPUs, nothing to do" in said


async def test_an_nvswitch_is_no_gpu(place: Place) -> None:
    place.device("0000:05:00.0", vendor="0x10de", kind="0x068000")
    assert "a node without GPUs" in await failure(place, "library_missing")


@pytest.mark.parametrize("fault", ["library_missing", "driver_not_loaded"])
async def test_gpus_without_a_module_lack_a_driver(place: Place, fault: Kind) -> None:
    place.gpu()
    place.gpu("0000:64:00.0", driver="nouveau")
    said = await failure(place, fault, access="runtimeClass")
    assert "2 NVIDIA GPU(s) on this node's PCI bus (0000:53:00.0)" in said
    assert "the nvidia kernel module is not loaded (bound to nouveau)" in said
    assert "the driver is missing on the node, or it failed" in said
    assert CLASS not in said


async def test_gpus_of_virtual_machines_need_no_driver(place: Place) -> None:
    place.gpu(driver="vfio-pci")
    said = await failure(place, "library_missing")
    assert "bound to vfio-pci, for virtual machines: nothing to do on this node" in said


async def test_where_the_bus_is_not_seen_nothing_is_claimed(tmp_path: Path) -> None:
    assert explain(Code.LIBRARY_NOT_FOUND, root=tmp_path) == ""


# --- nothing brought ------------------------------------------------------------------------


@pytest.mark.parametrize("access", ["runtimeClass", "cdi", None])
async def test_a_runtime_and_a_toolkit_that_refuse_alike_are_both_named(
    place: Place, access: str | None
) -> None:
    place.driver()
    place.environment(NVIDIA_VISIBLE_DEVICES="all", NVIDIA_DRIVER_CAPABILITIES="utility")
    place.write("proc/self/status", "CapBnd:\t0000000400000000\n")
    said = await failure(place, "library_missing", access=access)
    assert said.startswith(f"LibraryNotFound: the node's NVIDIA driver {VERSION} is loaded, and")
    assert "nothing of it was brought into this container" in said
    assert CLASS in said
    assert REFUSES in said
    assert "gpu.access=volumeMounts or draAdmin" in said


async def test_a_container_with_sys_admin_is_refused_by_no_toolkit(place: Place) -> None:
    place.driver()
    place.environment(NVIDIA_VISIBLE_DEVICES="all")
    place.write("proc/self/status", "CapBnd:\t0000000400200000\n")
    said = await failure(place, "library_missing", access="runtimeClass")
    assert CLASS in said
    assert REFUSES not in said


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "NVIDIA_VISIBLE_DEVICES is not set: set it to all"),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, "is 'void', which asks for nothing"),
    ],
)
async def test_a_container_that_asks_for_nothing_is_told_so(
    place: Place, environment: dict[str, str], said: str
) -> None:
    place.driver()
    place.environment(**environment)
    assert said in await failure(place, "library_missing", access="runtimeClass")


async def test_a_mount_that_no_toolkit_accepts_is_told_from_one_that_is_missing(
    place: Place,
) -> None:
    place.driver()
    missing = await failure(place, "library_missing", access="volumeMounts")
    assert "there is no mount /var/run/nvidia-container-devices/all" in missing
    place.write("var/run/nvidia-container-devices/all")
    said = await failure(place, "library_missing", access="volumeMounts")
    assert CLASS in said
    assert "accept-nvidia-visible-devices-as-volume-mounts=true" in said


async def test_a_claim_that_was_not_granted_is_named(place: Place) -> None:
    place.driver()
    said = await failure(place, "library_missing", access="draAdmin")
    assert "no claim was granted to it" in said
    assert "resource.kubernetes.io/admin-access=true" in said


async def test_who_asked_for_no_access_has_none(place: Place) -> None:
    place.driver()
    assert "gpu.access=none asks for nothing" in await failure(
        place, "library_missing", access="none"
    )


# --- the library ----------------------------------------------------------------------------


async def test_a_path_that_is_wrong_is_told_with_the_one_that_is_right(place: Place) -> None:
    place.driver()
    named = f"/host/driver/lib64/{SONAME}"
    nowhere = await failure(place, "library_missing", access="hostDriver", library=named)
    assert f"there is no {named} nor any {SONAME}" in nowhere
    assert "gpu.hostDriver.root" in nowhere
    assert "/run/nvidia/driver or /home/kubernetes/bin/nvidia" in nowhere
    place.write(f"host/driver/usr/lib/x86_64-linux-gnu/{SONAME}")
    said = await failure(place, "library_missing", access="hostDriver", library=named)
    assert f"there is /host/driver/usr/lib/x86_64-linux-gnu/{SONAME}: name that one" in said
    unnamed = await failure(place, "library_missing", access="hostDriver")
    assert "MCP_GPU_NVML_LIBRARY" in unnamed


@pytest.mark.parametrize("library", [None, f"/usr/lib64/{SONAME}"])
async def test_a_library_that_is_there_and_does_not_load_is_told_with_the_loader_s_words(
    place: Place, library: str | None
) -> None:
    place.driver()
    place.write(f"usr/lib64/{SONAME}")
    said = await failure(place, "library_missing", library=library)
    assert f"/usr/lib64/{SONAME}" in said
    assert "cannot be loaded: " in said
    assert said[-20:].strip() != "cannot be loaded:"


async def test_a_library_that_nobody_named_is_found_on_a_mount(place: Place) -> None:
    place.driver()
    place.write(f"run/nvidia/driver/usr/lib64/{SONAME}")
    said = await failure(place, "library_missing")
    assert f"its library is at /run/nvidia/driver/usr/lib64/{SONAME}" in said


async def test_devices_without_a_library_lack_the_capability_utility(place: Place) -> None:
    place.driver()
    place.write("dev/nvidiactl")
    place.environment(NVIDIA_VISIBLE_DEVICES="all", NVIDIA_DRIVER_CAPABILITIES="compute,video")
    said = await failure(place, "library_missing", access="runtimeClass")
    assert "NVIDIA_DRIVER_CAPABILITIES is 'compute,video' and must have utility" in said


async def test_a_library_of_another_version_is_told_with_both(place: Place) -> None:
    place.driver()
    line = "7f00-7f01 r-xp 0 00:00 1  /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.570.86.15"
    place.write("proc/self/maps", f"7e00-7e01 r-xp 0 00:00 2  /usr/lib/libc.so.6\n{line}\n")
    said = await failure(place, "driver_mismatch")
    assert f"is of driver 570.86.15, the loaded module of {VERSION}" in said
    assert said.count("Restart this pod") == 1


# --- the devices ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("access", "how"),
    [("runtimeClass", "let the runtime bring both"), ("hostDriver", "a privileged container")],
)
async def test_a_library_without_devices_is_told(place: Place, access: str, how: str) -> None:
    place.driver()
    said = await failure(place, "driver_not_loaded", access=access)
    assert "its library is here, without /dev/nvidiactl" in said
    assert how in said


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    try:
        subprocess.run(["chattr", "+i", path], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file can be made immutable here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


async def test_a_device_that_the_cgroup_forbids_is_told(place: Place) -> None:
    """An immutable file is refused by the same number as a device that is not allowed."""
    place.driver()
    with immutable(place.write("dev/nvidiactl")):
        denied = await failure(place, "no_permission")
        lost = await failure(place, "device_cgroup")
    for said in (denied, lost):
        assert "this container's device cgroup forbids /dev/nvidiactl" in said
        assert "daemon-reload" in said
        assert "need a privileged container" in said


async def test_a_device_that_opens_leaves_the_code_s_own_meaning(place: Place) -> None:
    place.driver()
    place.write("dev/nvidiactl")
    said = await failure(place, "no_permission")
    assert "check the user id, the device's permissions" in said


def test_a_device_whose_mode_excludes_the_user_is_told_with_the_rung() -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from mcp_gpu.node.gpu_access import explain\n"
        "os.setgroups([]), os.setgid(65534), os.setuid(65534)\n"
        "print(explain(4, root=Path(sys.argv[1])))\n"
    )
    if os.getuid():
        pytest.skip("needs root, to be somebody else")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        place = Place(Path(folder))
        place.driver()
        place.write("dev/nvidiactl").chmod(0o660)
        command = [sys.executable, "-c", script, folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "/dev/nvidiactl has mode 0660 of 0:0, which excludes uid 65534" in done.stdout
    assert "agent.privileges=root" in done.stdout


# --- in an agent ----------------------------------------------------------------------------


async def served_by(*command: str) -> tuple[str, str]:
    """What the agent that this starts says when asked whether it is ready, and what it logs."""
    (port,) = free_ports(1)
    async with await anyio.open_process([*command, "--http-port", str(port)], stdin=None) as agent:
        try:
            message = await readiness(port)
            agent.send_signal(signal.SIGTERM)
            assert agent.stderr is not None
            logged = b"".join([part async for part in agent.stderr]).decode()
            assert await agent.wait() == 0
            return message, logged
        finally:
            if agent.returncode is None:
                agent.kill()


async def readiness(port: int) -> str:
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        while True:
            with suppress(httpx2.TransportError):
                answer = await client.get("/readyz")
                if answer.status_code == 200:
                    return str(answer.json()["message"])
            await anyio.sleep(0.1)


async def test_an_agent_says_it_where_it_is_asked_for_readiness_and_in_its_log(
    place: Place,
) -> None:
    """Over this machine's own /sys/module, for this one process."""
    place.write("sys/module/nvidia/version", f"{VERSION}\n")
    mounted = f'mount --bind {place.root}/sys/module /sys/module && exec "$@"'
    unshared = ["unshare", "--mount", "sh", "-c", mounted, "sh"]
    serve = ["agent", "--gpu-access", "none", "--socket", str(place.root / "s")]
    with anyio.fail_after(60):
        try:
            await anyio.run_process([*unshared, "true"])
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no mount namespaces here")
        message, logged = await served_by(*unshared, *PROGRAM, *serve)
    if not message.startswith("LibraryNotFound"):
        pytest.skip("this machine has a driver's library")
    assert "gpu.access=none asks for nothing" in message
    assert message in logged


async def test_of_a_simulated_node_this_machine_tells_nothing(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(
        '[[nodes]]\nname = "sick"\nprofile = "h100"\n[[nodes.faults]]\nkind = "library_missing"\n'
    )
    serve = ["agent", "--simulate", str(fleet), "--node-name", "sick"]
    with anyio.fail_after(60):
        message, _ = await served_by(*PROGRAM, *serve, "--socket", str(tmp_path / "s"))
    assert message.startswith(f"LibraryNotFound: {init_advice(Code.LIBRARY_NOT_FOUND)}")

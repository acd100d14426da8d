"""Why the driver cannot be reached from this container, by what can be seen in it: `explain`.

A container without any access still sees the node's kernel modules and PCI devices (/sys and
/proc/driver are the kernel's, and no runtime hides them), so that a node without a GPU, one without
a driver and a container that was given nothing can be told apart. What cannot be told apart is said
with the check that tells.

How NVIDIA's container toolkit decides (its internal/config/image/cuda_image.go): a mount below
/var/run/nvidia-container-devices asks for devices if the toolkit accepts mounts; else
NVIDIA_VISIBLE_DEVICES does, CDI names in it included, if the container has CAP_SYS_ADMIN in its
bounding set or the toolkit accepts the variable without. What it refuses it logs and ignores, and
changes nothing in the container.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import Final

from mcp_gpu.gpu.errors import Code, init_advice
from mcp_gpu.gpu.privileges import ROOT
from mcp_gpu.node.pci_bus import look

_SONAME: Final = "libnvidia-ml.so.1"

_FOLDERS: Final = (
    "lib64",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/nvidia/lib64",
)
"""Where drivers put the library, in an image or below a folder of the node."""

_NODE_FOLDERS: Final = ("run/nvidia/driver", "home/kubernetes/bin/nvidia")
"""The GPU operator's driver, and GKE's."""

_MOUNTS: Final = "var/run/nvidia-container-devices"

_CAP_SYS_ADMIN: Final = 21

_DEVICES: Final = frozenset(
    {Code.DRIVER_NOT_LOADED, Code.NO_PERMISSION, Code.OPERATING_SYSTEM, Code.UNKNOWN}
)
"""How nvmlInit fails where the module is loaded and the control device does not open."""

_MAPPED: Final = re.compile(r"/libnvidia-ml\.so\.([0-9]+(?:\.[0-9]+)+)$", re.MULTILINE)

_VERSION_CHARS: Final = 40
_READ_BYTES: Final = 1 << 20


def explain(
    code: int,
    detail: str = "",
    *,
    access: str | None = None,
    library: str | None = None,
    root: Path = Path("/"),
) -> str:
    """What a code of nvmlInit means here, and the next step; empty: no more than the code says.

    Never raises. Opens the driver's control device and closes it again.

    Args:
        detail: what the loader of libraries said.
        access: how the container was to get the driver: the chart's gpu.access.
        library: the path of the library that was to be loaded.
        root: where /dev, /proc, /sys and the rest are.
    """
    if code not in _DEVICES | {Code.LIBRARY_NOT_FOUND, Code.LIB_RM_VERSION_MISMATCH}:
        return ""
    module = module_version(root)
    if module is None:
        if code in {Code.DRIVER_NOT_LOADED, Code.LIBRARY_NOT_FOUND}:
            return _no_driver(root)
        return ""
    if code == Code.LIB_RM_VERSION_MISMATCH:
        mapped = library_version(root)
        if mapped is None or not module:
            return ""
        of = f"the library in this container is of driver {mapped}, the loaded module of {module}"
        return f"{of}: {init_advice(code)}"
    if code in _DEVICES:
        return _no_devices(root, access)
    return (
        f"the node's NVIDIA driver {module}".rstrip()
        + " is loaded, "
        + (
            _no_library_there(root, library, detail)
            if library
            else _no_library(root, access, detail)
        )
    )


# --- the node -------------------------------------------------------------------------------


def module_version(root: Path = Path("/")) -> str | None:
    """The version of the kernel module that is loaded, perhaps empty; None: none is."""
    if not os.path.isdir(root / "sys/module/nvidia"):
        return None if not os.path.exists(root / "proc/driver/nvidia/version") else ""
    return read(root / "sys/module/nvidia/version").strip()[:_VERSION_CHARS]


def library_version(root: Path = Path("/")) -> str | None:
    """The driver's version of the NVML library that this process has mapped; None: unknown."""
    mapped = _MAPPED.search(read(root / "proc/self/maps"))
    return mapped[1][:_VERSION_CHARS] if mapped is not None else None


def _no_driver(root: Path) -> str:
    gpus = look(root / "sys/bus/pci/devices").gpus
    if gpus is None:
        return ""
    if not gpus:
        return (
            "no NVIDIA GPU is on this node's PCI bus and no nvidia kernel module is loaded: a node "
            "without GPUs, nothing to do. If it should have some: lspci on the node."
        )
    what = f"{len(gpus)} NVIDIA GPU(s) on this node's PCI bus ({gpus[0].address}), and"
    bound = ", ".join(sorted({gpu.driver for gpu in gpus if gpu.driver is not None}))
    if all(gpu.passed_on for gpu in gpus):
        return (
            f"{what} they are bound to {bound}, for virtual machines: nothing to do on this node."
        )
    return (
        f"{what} the nvidia kernel module is not loaded"
        + (f" (bound to {bound})" if bound else "")
        + ": the driver is missing on the node, or it failed. Look at the GPU operator's driver "
        "pod there, or at modprobe nvidia and dmesg."
    )


# --- the library ----------------------------------------------------------------------------


def _no_library_there(root: Path, library: str, detail: str) -> str:
    """The library was named: why it is not there."""
    path = Path(library)
    if os.path.exists(_below(root, path)):
        return f"and {library} cannot be loaded: {detail}"
    for folder in path.parents[:-1]:
        for below in _FOLDERS:
            other = folder / below / _SONAME
            if os.path.exists(_below(root, other)):
                return (
                    f"and there is no {library}; there is {other}: name that one "
                    "(gpu.hostDriver.library)."
                )
    places = " or ".join(f"/{folder}" for folder in _NODE_FOLDERS)
    return (
        f"and there is no {library} nor any {_SONAME} in the folders above: the driver is in "
        f"another folder of the node (gpu.hostDriver.root), such as {places}."
    )


def _no_library(root: Path, access: str | None, detail: str) -> str:
    """No library was found by its name: what was to bring it."""
    for folder in _FOLDERS:
        if os.path.exists(root / folder / _SONAME):
            return f"and /{folder}/{_SONAME} is here but cannot be loaded: {detail}"
    environment = _environment(root)
    capabilities = environment.get("NVIDIA_DRIVER_CAPABILITIES", "")
    wanted = set(capabilities.split(","))
    if capabilities and not wanted & {"utility", "all"} and _exists(root, "dev/nvidiactl"):
        return (
            "and its devices are in this container without its library: "
            f"NVIDIA_DRIVER_CAPABILITIES is {capabilities[:40]!r} and must have utility."
        )
    for folder in _NODE_FOLDERS:
        for below in _FOLDERS:
            path = Path("/", folder, below, _SONAME)
            if os.path.exists(_below(root, path)):
                return f"and its library is at {path}: name it (MCP_GPU_NVML_LIBRARY)."
    return "and nothing of it was brought into this container: " + _not_brought(
        root, access, environment
    )


def _not_brought(root: Path, access: str | None, environment: dict[str, str]) -> str:
    if access == "none":
        return "gpu.access=none asks for nothing. Set gpu.access=runtimeClass, or another way."
    if access == "hostDriver":
        return "gpu.access=hostDriver needs the library's path (MCP_GPU_NVML_LIBRARY)."
    if access == "draAdmin":
        return (
            "no claim was granted to it. kubectl describe resourceclaim tells: the namespace needs "
            "the label resource.kubernetes.io/admin-access=true, the node NVIDIA's DRA driver."
        )
    runtime = "its runtime class is not NVIDIA's (kubectl get runtimeclass; gpu.runtimeClassName)"
    if access == "volumeMounts":
        if not _exists(root, f"{_MOUNTS}/all"):
            return f"there is no mount /{_MOUNTS}/all, by which gpu.access=volumeMounts asks."
        return (
            f"{runtime}, or the toolkit on the node does not accept mounts: its config.toml wants "
            "accept-nvidia-visible-devices-as-volume-mounts=true."
        )
    visible = environment.get("NVIDIA_VISIBLE_DEVICES")
    if visible is None:
        return (
            "NVIDIA_VISIBLE_DEVICES is not set: set it to all, with runtimeClassName nvidia. "
            "Outside a container install the driver's library."
        )
    if visible in {"", "void", "none"}:
        return f"NVIDIA_VISIBLE_DEVICES is {visible!r}, which asks for nothing: set it to all."
    if _bounding(root) >> _CAP_SYS_ADMIN & 1:
        return f"{runtime}."  # The toolkit's own test of whether a container is privileged.
    return (
        f"{runtime}, or the toolkit refuses containers without privileges: then its config.toml on "
        "the node has accept-nvidia-visible-devices-envvar-when-unprivileged=false, and the way is "
        "gpu.access=volumeMounts or draAdmin."
    )


# --- the devices ----------------------------------------------------------------------------


def _no_devices(root: Path, access: str | None) -> str:
    """The library is here and the module is loaded: whether the control device opens."""
    control = root / "dev/nvidiactl"
    try:
        os.close(os.open(control, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        number = error.errno
    else:
        return ""
    if number in {errno.ENOENT, errno.ENXIO, errno.ENODEV}:
        how = (
            "gpu.access=hostDriver needs a privileged container, which has the node's devices."
            if access == "hostDriver"
            else "a library that is in the image or mounted by hand does not bring them: let the "
            "runtime bring both (gpu.access=runtimeClass)."
        )
        return f"the driver is loaded and its library is here, without /dev/nvidiactl: {how}"
    if number == errno.EPERM:
        return (
            "this container's device cgroup forbids /dev/nvidiactl. If it was allowed before: "
            f"{init_advice(Code.OPERATING_SYSTEM)} If it never was: device files that are mounted "
            "by hand need a privileged container."
        )
    if number != errno.EACCES:
        return ""
    try:
        found = control.stat()
    except OSError:
        return ""
    if found.st_mode & 0o006 == 0o006:
        return "a security module (SELinux, AppArmor) forbids /dev/nvidiactl to this container."
    return (
        f"/dev/nvidiactl has mode {stat.S_IMODE(found.st_mode):04o} of {found.st_uid}:"
        f"{found.st_gid}, which excludes uid {os.getuid()}: run as {ROOT}, or have the driver "
        "make it 0666 (its module's parameter NVreg_DeviceFileMode)."
    )


# --- files ----------------------------------------------------------------------------------


def _exists(root: Path, path: str) -> bool:
    return os.path.exists(root / path)


def _below(root: Path, path: Path) -> Path:
    return root / str(path).lstrip("/")


def _environment(root: Path) -> dict[str, str]:
    """As the runtime gave it to this process: part of what is looked at, not a setting."""
    pairs = read(root / "proc/self/environ").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _bounding(root: Path) -> int:
    """The capabilities that this container may have at most."""
    found = re.search(r"^CapBnd:\s*([0-9a-f]{1,16})$", read(root / "proc/self/status"), re.M)
    return int(found[1], 16) if found else 0


def read(path: Path) -> str:
    """The text of a small file; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_READ_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""

"""The agent: this node's GPUs and what surrounds them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mcp_gpu.settings.base import File, Names, Seconds
from mcp_gpu.settings.serve import ServeSettings
from mcp_gpu.sockets import default_socket_path

KERNEL_LOG = Path("/dev/kmsg")

GpuAccess = Literal["runtimeClass", "cdi", "volumeMounts", "hostDriver", "draAdmin", "none"]


class AgentSettings(ServeSettings):
    """Read this node's GPUs through NVML and serve them over MCP."""

    node_name: str = Field(default_factory=socket.gethostname, min_length=1)
    """Kubernetes node name (downward API). Default: the host name."""
    pod_name: str = ""
    """This pod's name (downward API)."""
    pod_uid: str = ""
    """This pod's uid (downward API): what a gateway checks before it believes an answer."""
    socket: Path | None = None
    """Unix socket that `mcp-gpu attach` relays to. Default: where `attach` looks for it, or none
    at all with --stdio."""
    http: bool = True
    """Whether to open a TCP port at all: with --no-http the Unix socket is the only way in."""
    nvml_library: Path | None = None
    """libnvidia-ml.so.1 to load before looking in the usual places, such as the GPU operator's
    under /run/nvidia/driver."""
    kernel_log: File = KERNEL_LOG
    """Where the kernel's messages are read, the driver's Xids among them. Where the default does
    not open, as in containers, syslog(2) is asked instead. Either needs CAP_SYSLOG where
    kernel.dmesg_restrict is 1, as usual."""
    journal_paths: Names = (
        "/var/log/journal",
        "/run/log/journal",
        "/host/var/log/journal",
        "/host/run/log/journal",
    )
    """Folders of the node's journal, for the Xids of former boots; those that are not there are
    passed over."""
    pod_resources_socket: File = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    """The kubelet's socket, which says which pods hold which GPUs. Takes uid 0, and its folder as a
    whole: a kubelet that restarts makes a new one."""
    device_plugin_checkpoint: File = Path(
        "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint"
    )
    """The kubelet's own file of the same, for where its socket does not answer: it knows pods by
    uid alone. Takes uid 0."""
    fast_seconds: Seconds = 2.0
    """How often utilisation, power, temperature, clocks and memory are read."""
    slow_seconds: Seconds = 30.0
    """How often links, modes and error counters are read."""
    recorder_hours: Annotated[float, Field(ge=1, le=72)] = 24.0
    """How far back get_gpu_timeline goes. 8 GPUs take 3.5 MiB of memory for a day, 8 for three."""
    recorder_directory: File | None = None
    """Folder in which that outlives the agent, in a file of a few MiB that is written each minute.
    Default: it begins with the agent's start."""
    expected_gpus: Annotated[int, Field(ge=1, le=64)] | None = None
    """How many GPUs this node should have. Without it fewer are missed only if they were there
    since the agent started."""
    gpu_access: GpuAccess | None = None
    """How this container was to get the driver's libraries and devices (the chart's gpu.access):
    told where they are missing."""
    simulate: str | None = None
    """Read no hardware: a fleet file (docs/simulator.md), or `demo` for the built-in one.
    The node simulated is --node-name."""

    @property
    def socket_path(self) -> Path | None:
        """Where to open the Unix socket; None for nowhere."""
        if self.socket is None and not self.stdio:
            return Path(default_socket_path())
        return self.socket

    def _port(self) -> int | None:
        return super()._port() if self.http else None

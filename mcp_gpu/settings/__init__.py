"""Every setting, once. Flags, `MCP_GPU_*` variables and their help come from these classes.

A flag wins over a variable, a variable over the default. Nothing else reads the environment,
but for `mcp_gpu.sockets`, which `mcp-gpu attach` needs without pydantic.

No name may be one that Kubernetes puts into a pod's environment for a Service called
`mcp-gpu` or `mcp-gpu-gateway` (`MCP_GPU_PORT`, `MCP_GPU_SERVICE_HOST`, ...): hence `http_port`.
"""

from __future__ import annotations

from mcp_gpu.settings.agent import KERNEL_LOG, AgentSettings, GpuAccess
from mcp_gpu.settings.base import PREFIX, LogSettings, SettingError, is_positional
from mcp_gpu.settings.clients import InstallSettings, UninstallSettings
from mcp_gpu.settings.fleet import FleetSettings, GatewaySettings
from mcp_gpu.settings.local import CompletionSettings, DemoSettings, RecordSettings
from mcp_gpu.settings.serve import ServeSettings
from mcp_gpu.settings.terminal import (
    DoctorSettings,
    HealthSettings,
    PsSettings,
    StatusSettings,
    TerminalSettings,
    TopoSettings,
    TopSettings,
    WhySettings,
    XidSettings,
)

__all__ = [
    "KERNEL_LOG",
    "PREFIX",
    "AgentSettings",
    "CompletionSettings",
    "DemoSettings",
    "DoctorSettings",
    "FleetSettings",
    "GatewaySettings",
    "GpuAccess",
    "HealthSettings",
    "InstallSettings",
    "LogSettings",
    "PsSettings",
    "RecordSettings",
    "ServeSettings",
    "SettingError",
    "StatusSettings",
    "TerminalSettings",
    "TopSettings",
    "TopoSettings",
    "UninstallSettings",
    "WhySettings",
    "XidSettings",
    "is_positional",
]

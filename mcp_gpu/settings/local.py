"""The commands that need no fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic_settings import CliPositionalArg

from mcp_gpu.settings.base import DEFAULT_HTTP_PORT, LogLevel, LogSettings, Port


class RecordSettings(LogSettings):
    """Record this machine's NVML answers as a profile that the simulator replays. Read-only."""

    output: Path | None = None
    """File to write. Default: standard output."""
    keep_ids: bool = False
    """Keep real UUIDs and serial numbers. By default they are replaced."""
    nvml_library: Path | None = None
    """libnvidia-ml.so.1 to load before looking in the usual places."""


class DemoSettings(LogSettings):
    """Run a simulated fleet and a gateway over it. Needs no GPU and no cluster."""

    log_level: LogLevel = "warning"
    """Least severe level that is logged, to standard error."""
    once: bool = False
    """Print the fleet and exit."""
    http_port: Port = DEFAULT_HTTP_PORT
    """The gateway's port on 127.0.0.1. 0 takes any free port."""


class CompletionSettings(LogSettings):
    """Print a script that completes commands and flags: mcp-gpu completion bash."""

    shell: CliPositionalArg[Literal["bash", "zsh", "fish"]]
    """The shell that reads it."""

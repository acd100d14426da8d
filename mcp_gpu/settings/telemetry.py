"""What a role tells of its calls, and to whom."""

from __future__ import annotations

import os
from typing import Literal

from mcp_gpu.settings.base import LogSettings

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTER = "OTEL_TRACES_EXPORTER"

PROTOCOL = "http/protobuf"
"""What is spoken to a collector."""


class TelemetrySettings(LogSettings):
    """What a role tells of its calls."""

    audit_log: str = ""
    """File to which one line of JSON is appended for each call and for each caller turned away:
    who, what, which nodes, how it ended. `-` for standard error. Default: none is kept."""
    traces: Literal["auto", "on", "off"] = "auto"
    """Send OpenTelemetry traces by OTLP over HTTP, as the OTEL_* variables say. auto: where
    OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set. Needs
    mcp-gpu[otel]."""

    def trace_variable(self) -> str:
        """The variable that asks for traces, where they are to be sent if one does; else empty."""
        if _first(EXPORTER)[1] not in ("", "otlp"):
            return ""
        return _first(*ENDPOINTS)[0]

    def trace_obstacle(self) -> str:
        """What in the environment keeps traces from being sent; empty for nothing."""
        name, protocol = _first(*PROTOCOLS)
        if protocol in ("", PROTOCOL):
            return ""
        return f"{name} asks for {protocol}, and {PROTOCOL} is spoken here"


def _first(*names: str) -> tuple[str, str]:
    """The first variable of these that says something, and what."""
    for name in names:
        if value := os.environ.get(name, "").strip():
            return name, value
    return "", ""

"""Variables of the environment that look like settings and are none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from mcp_gpu.settings import (
    PREFIX,
    AgentSettings,
    DemoSettings,
    DoctorSettings,
    GatewaySettings,
    HealthSettings,
    RecordSettings,
    StatusSettings,
    XidSettings,
)

__all__ = ["unknown_variables"]

_SERVICE_LINK = re.compile(r"_(SERVICE_(HOST|PORT.*)|PORT(_\d+_(TCP|UDP|SCTP)(_.+)?)?)$")
"""Variables that Kubernetes derives from Services; not ours, whatever they begin with."""


def unknown_variables(environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Names of `MCP_GPU_*` variables that no setting has: misspelt ones would do nothing."""
    known = {"SOCKET"}
    for settings in (
        AgentSettings,
        GatewaySettings,
        StatusSettings,
        HealthSettings,
        XidSettings,
        DoctorSettings,
        RecordSettings,
        DemoSettings,
    ):
        known |= {name.upper() for name in settings.model_fields}
    for variable in os.environ if environment is None else environment:
        if variable.startswith(PREFIX) and not _SERVICE_LINK.search(variable):
            name = variable.removeprefix(PREFIX)
            if name not in known:
                yield variable

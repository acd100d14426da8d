"""Variables of the environment that look like settings and are none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from mcp_gpu.settings.base import PREFIX, LogSettings

__all__ = ["unknown_variables"]

_SERVICE_LINK = re.compile(r"_(SERVICE_(HOST|PORT.*)|PORT(_\d+_(TCP|UDP|SCTP)(_.+)?)?)$")
"""Variables that Kubernetes derives from Services; not ours, whatever they begin with."""


def unknown_variables(
    settings: Iterable[type[LogSettings]], environment: Mapping[str, str] | None = None
) -> list[str]:
    """Names of `MCP_GPU_*` variables that no setting has: misspelt ones would do nothing.

    Classes are asked for one by one until all names are known: the likeliest comes first.
    """
    unknown = [
        variable
        for variable in (os.environ if environment is None else environment)
        if variable.startswith(PREFIX) and not _SERVICE_LINK.search(variable)
    ]
    classes = iter(settings)
    while unknown and (each := next(classes, None)):
        known = {f"{PREFIX}{name.upper()}" for name in each.model_fields}
        unknown = [variable for variable in unknown if variable not in known]
    return unknown

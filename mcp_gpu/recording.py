"""`mcp-gpu record`: this machine's NVML answers, written as a profile for the simulator."""

from __future__ import annotations

import json

from mcp_gpu.gpu.errors import NvmlUnavailable
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.record import record
from mcp_gpu.settings.base import SettingError
from mcp_gpu.settings.local import RecordSettings

__all__ = ["run"]


def run(settings: RecordSettings) -> int:
    """Record and write. Returns the exit status.

    Raises:
        SettingError: there is nothing to record, or no place to write to.
    """
    library = None if settings.nvml_library is None else str(settings.nvml_library)
    try:
        document = record(Nvml(library_path=library), pseudonyms=not settings.keep_ids)
    except NvmlUnavailable as error:
        raise SettingError(f"nothing to record: {error}") from error
    text = json.dumps(document, indent=1) + "\n"
    if settings.output is None:
        print(text, end="")
        return 0
    try:
        settings.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingError(f"cannot write {settings.output}: {error.strerror}") from error
    return 0

"""From the kernel's lines, as one source gives them, to events: `XidLines`."""

from __future__ import annotations

from typing import Final

from mcp_gpu.gpu.xid.line import parse
from mcp_gpu.gpu.xid.model import Source, XidEvent

_OFF_THE_BUS: Final = 79

_COMPANION_SECONDS: Final = 2.0

_GPUS: Final = 256


class XidLines:
    """Lines in the order in which they were written.

    Of a GPU that has fallen off the bus the driver writes two, the Xid and a sentence without it:
    one event.
    """

    def __init__(self, source: Source) -> None:
        self._source: Source = source
        self._fallen: dict[tuple[str, str], float] = {}

    def event(self, text: str, at: float, boot_id: str) -> XidEvent | None:
        """The Xid that the line tells of; None: it tells of none, or of one told already."""
        line = parse(text)
        if line is None:
            return None
        if line.code == _OFF_THE_BUS and line.kind == "xid":
            gpu = (boot_id, line.bus_id)
            if "Xid" in text:
                if len(self._fallen) >= _GPUS:
                    self._fallen.clear()
                self._fallen[gpu] = at
            elif abs(at - self._fallen.get(gpu, -_COMPANION_SECONDS)) < _COMPANION_SECONDS:
                return None
        return XidEvent(
            code=line.code,
            at=at,
            source=self._source,
            kind=line.kind,
            bus_id=line.bus_id,
            boot_id=boot_id,
            pid=line.pid,
            process=line.process,
            text=line.text,
            raw=text,
        )

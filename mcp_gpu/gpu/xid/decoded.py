"""What the text of an Xid's line says beyond its code: `Decoded`."""

from __future__ import annotations

from dataclasses import dataclass

from mcp_gpu.gpu.xid.catalogue import EntrySeverity


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a line was found to say. None: nothing that would change what the code says."""

    sentences: tuple[str, ...]
    """What was read, one finding each."""
    unit: str = ""
    """The part of the GPU that the line is about, such as "GPC 1 TPC 2 SM 0" or "RLW_REMAP"; the
    same words for the same part, so that repeats can be counted."""
    link: int | None = None
    """The NVLink that it is about."""
    bucket: str | None = None
    """NVIDIA's bucket for this case, spelled as the catalogue spells it."""
    action: str | None = None
    advice: str | None = None
    investigate: str | None = None
    severity: EntrySeverity | None = None
    certain: bool = True
    """False: the line has something that the catalogue does not explain."""

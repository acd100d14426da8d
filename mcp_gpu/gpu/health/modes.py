"""Rules on what an operator sets: MIG and ECC modes that wait for a reset."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_gpu.gpu.health.codes import CODES
from mcp_gpu.gpu.health.look import Look
from mcp_gpu.gpu.health.model import Finding


def mig_mode(look: Look) -> Iterator[Finding]:
    yield from _pending(look, "mig_mode", "MIG")


def ecc_mode(look: Look) -> Iterator[Finding]:
    yield from _pending(look, "ecc_mode", "ECC")


def _pending(look: Look, mode: str, name: str) -> Iterator[Finding]:
    current, pending = look.read(f"{mode}_current"), look.read(f"{mode}_pending")
    if current != pending:
        yield CODES[f"{mode}_pending"].finding(
            look.index,
            f"{name} of GPU {look.index} will be {'on' if pending else 'off'} after its next "
            f"reset and is {'on' if current else 'off'} until then.",
            (look.evidence(f"{mode}_current"), look.evidence(f"{mode}_pending")),
        )

"""Rules on a GPU's memory: uncorrected errors, spare rows and pages, what cannot be repaired."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mcp_gpu.gpu.health.codes import CODES
from mcp_gpu.gpu.health.look import MIG_ACTIVE, Look, Unread
from mcp_gpu.gpu.health.model import Evidence, Finding

RETIRED_PAGES_LIMIT: Final = 63
"""Pages in all. DCGM's DCGM_LIMIT_MAX_RETIRED_PAGES, set there to the field diagnostic's limit."""

RETIRED_PAGES_SOFT_LIMIT: Final = 15
"""Pages for uncorrected errors. DCGM's soft limit: it fails a board that goes on to lose more than
one a week beyond it. We do not look back a week, so it is a warning."""

_CONTAINED: Final = frozenset({"none", "drain_and_reset"})
"""Recovery actions, read later than the counters, by which an error has cost no more than the
program that met it: what else runs may end before the reset."""

_LOCATIONS: Final = ("ecc_dram_uncorrected", "ecc_sram_uncorrected")


def ecc(look: Look) -> Iterator[Finding]:
    """Uncorrected errors, and whether there are more of them.

    Corrected ones are never a finding: some over a board's life are normal, and NVIDIA gives no
    limit for them.
    """
    names = [n for n in ("ecc_uncorrected_volatile", *_LOCATIONS) if look.get(n) is not None]
    if not names:
        raise Unread(look.reason("ecc_uncorrected_volatile"))
    counted = [name for name in names if look.get(name) > 0]
    if not counted:
        if look.get("mig_mode_current"):
            raise Unread(MIG_ACTIVE)  # The parent's are not kept then: some drivers answer 0.
        return
    grown = []
    for name in counted:
        try:
            growth = look.growth(name)
        except Unread:
            continue
        if growth.by > 0:
            grown.append(growth.evidence())
    evidence = tuple(look.evidence(name, _since(look, name)) for name in counted)
    count = max(look.get(name) for name in counted)
    said = look.get("recovery_action")
    if grown:
        contained = said in _CONTAINED
        yield CODES["ecc_uncorrected_rising"].finding(
            look.index,
            f"GPU {look.index} has uncorrected memory errors, and more of them just now: {count}.",
            (*grown, *evidence, *((look.evidence("recovery_action"),) if contained else ())),
            severity="warning" if contained else None,
            action="DRAIN_AND_RESET" if contained else None,
            confidence="medium" if contained else "high",
        )
    else:
        yield CODES["ecc_uncorrected"].finding(
            look.index,
            f"GPU {look.index} has had {count} uncorrected memory error(s) since its last reset.",
            evidence,
            # With the driver's own word that nothing needs to be done it may have been contained.
            confidence="medium" if said == "none" else "high",
        )


def _since(look: Look, name: str) -> str:
    grown = look.since_first(name)
    if grown is None:
        return "since the driver was loaded or the GPU reset"
    return f"{grown[0]:g} of them in the {grown[1]:.0f} s that this agent has watched"


def sram_threshold(look: Look) -> Iterator[Finding]:
    if look.read("sram_threshold_exceeded"):
        yield CODES["sram_threshold_exceeded"].finding(
            look.index,
            f"GPU {look.index} has more uncorrectable SRAM errors than NVIDIA lets a board have.",
            _present(
                look, "sram_threshold_exceeded", "ecc_sram_uncorrected_lifetime",
                "ecc_sram_uncorrected",
            ),
        )  # fmt: skip


def row_remap(look: Look) -> Iterator[Finding]:
    """Ampere and later: bad rows are replaced by spare ones at a reset."""
    if look.get("row_remap_failure") is None and look.get("retired_pages_uncorrected") is not None:
        return  # It retires pages instead.
    rows = ("row_remaps_uncorrected", "row_remaps_corrected", "remap_banks_none")
    if look.read("row_remap_failure"):
        yield CODES["row_remap_failure"].finding(
            look.index,
            f"GPU {look.index} could not replace a bad row of its memory.",
            _present(look, "row_remap_failure", *rows),
        )
    if look.read("row_remap_pending"):
        yield CODES["row_remap_pending"].finding(
            look.index,
            f"GPU {look.index} will replace a bad row of its memory at its next reset.",
            _present(look, "row_remap_pending", *rows),
        )


def row_remap_spares(look: Look) -> Iterator[Finding]:
    none = look.read("remap_banks_none")
    if none > 0:
        yield CODES["row_remap_exhausted"].finding(
            look.index,
            f"GPU {look.index} has {none} bank(s) of memory without a spare row left.",
            _present(look, "remap_banks_none", "remap_banks_low", "row_remaps_uncorrected"),
            advice="Nothing to do now. Plan for a replacement: the next bad row in such a bank "
            "is a row_remap_failure, for which NVIDIA's field diagnostic decides.",
            confidence="medium",
        )


def retired_pages(look: Look) -> Iterator[Finding]:
    """Boards before Ampere, which retire pages."""
    if look.get("retired_pages_uncorrected") is None and look.get("row_remap_failure") is not None:
        return  # It replaces rows instead.
    if look.get("retired_pages_pending"):
        yield CODES["retired_pages_pending"].finding(
            look.index,
            f"GPU {look.index} will retire a bad page of its memory at its next reset.",
            _present(look, "retired_pages_pending", "retired_pages_uncorrected"),
        )
    corrected = look.get("retired_pages_corrected")
    uncorrected = look.read("retired_pages_uncorrected")
    total = uncorrected + (corrected or 0)
    evidence = _present(look, "retired_pages_uncorrected", "retired_pages_corrected")
    if total >= RETIRED_PAGES_LIMIT:
        yield CODES["retired_pages_limit"].finding(
            look.index,
            f"GPU {look.index} has {total} retired pages; the limit is {RETIRED_PAGES_LIMIT}.",
            evidence,
        )
    elif uncorrected > RETIRED_PAGES_SOFT_LIMIT:
        yield CODES["retired_pages_limit"].finding(
            look.index,
            f"GPU {look.index} has {uncorrected} pages retired for uncorrected errors.",
            evidence,
            severity="warning",
            action="NONE",
            advice="Nothing to do now. Watch it: if it loses more than one further page a week, "
            "run NVIDIA's field diagnostic.",
            confidence="medium",
        )


def repair(look: Look) -> Iterator[Finding]:
    names = ("channel_repair_pending", "tpc_repair_pending")
    if all(look.get(name) is None for name in names):
        raise Unread(look.reason(names[0]))
    pending = [name for name in names if look.get(name)]
    if pending:
        what = " and ".join(name.split("_")[0].replace("tpc", "TPC") for name in pending)
        yield CODES["repair_pending"].finding(
            look.index,
            f"GPU {look.index} will have a {what} repaired at its next reset.",
            _present(look, *pending),
        )


def unrepairable(look: Look) -> Iterator[Finding]:
    if look.read("unrepairable_memory"):
        yield CODES["memory_unrepairable"].finding(
            look.index,
            f"GPU {look.index} has memory that no repair can mend.",
            _present(look, "unrepairable_memory", "row_remaps_uncorrected"),
        )


def _present(look: Look, *names: str) -> tuple[Evidence, ...]:
    return tuple(look.evidence(name) for name in names if look.get(name) is not None)

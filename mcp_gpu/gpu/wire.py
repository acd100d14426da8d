"""What the models of readings share: frozen, tolerant of newer peers, no null without a reason."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

NOT_REPORTED = "not_reported"
"""Reason for a null that an agent older than this reader left out of its answer."""


class Wire(BaseModel):
    """Frozen. Fields that a newer peer sends and this version does not know are ignored."""

    # Built when first used, which is after the start.
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


def give_reasons(model: Wire, names: tuple[str, ...], unavailable: dict[str, str]) -> None:
    """Make sure that every null among these fields has a reason in `unavailable`."""
    for name in names:
        if getattr(model, name) is None:
            unavailable.setdefault(name, NOT_REPORTED)

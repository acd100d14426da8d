"""What this process can see of its node, so that an answer can say what it could not."""

from __future__ import annotations

from pydantic import Field

from mcp_gpu.gpu.wire import Wire


class Sense(Wire):
    """One thing that an agent may or may not be able to look at."""

    name: str = Field(description="Such as kernel_log or host_processes.")
    works: bool
    why: str = Field(description="Why it does not; empty if it does.")
    unlocks: str = Field(description="What is missing from answers without it, and what grants it.")


class Sight(Wire):
    """All of them, and as whom the agent looks."""

    uid: int
    driver_version: str | None
    senses: tuple[Sense, ...]
    missing_symbols: tuple[str, ...] = Field(
        description="Functions that this driver's library does not have."
    )

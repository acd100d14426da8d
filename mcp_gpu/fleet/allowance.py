"""The time that one agent is given."""

from __future__ import annotations

import math

import anyio

__all__ = ["Allowance"]


class Allowance:
    """Runs from the agent's first attempt, and rests while the next one waits for its turn here.

    Args:
        seconds: for all attempts together.
    """

    def __init__(self, seconds: float) -> None:
        self.scope = anyio.CancelScope()
        """Cancelled once the time is over."""
        self.begun_at = 0.0
        """By `anyio.current_time`; 0 before the first attempt."""
        self._left_seconds = seconds

    @property
    def left_seconds(self) -> float:
        """What is left of it."""
        running = self.scope.deadline < math.inf
        return self.scope.deadline - anyio.current_time() if running else self._left_seconds

    def run(self) -> None:
        """An attempt is under way."""
        if self.scope.deadline == math.inf:
            now = anyio.current_time()
            self.begun_at = self.begun_at or now
            self.scope.deadline = now + self._left_seconds

    def rest(self) -> None:
        """The next attempt waits for its turn."""
        self._left_seconds = self.left_seconds
        self.scope.deadline = math.inf

"""Answers of a server that is asked over the network, kept for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import anyio

from mcp_gpu.serving.access.model import Unverifiable

__all__ = ["Answers"]

KEPT = 4096
"""Most answers kept of each sort; the one unused for longest goes first."""

IN_FLIGHT = 16
"""Most questions under way. Others wait: unknown tokens must not become a flood at the server."""

KNOWN_IN_FLIGHT = 4
"""As many more for those whose last answer was good, who would otherwise wait behind strangers."""

SECONDS = 5.0
"""Longest wait for an answer, one's turn included."""

FAILED_SECONDS = 1.0
"""How long a failure is the answer to the same question: for those who waited for it."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Kept(Generic[T]):
    answer: T | Unverifiable
    until: float


class Answers(Generic[T]):
    """What was answered, by key. The same question is never under way twice.

    Good answers (those that are true) and others are kept apart, so that no number of bad tokens
    drives out what is known of good ones. One that is over stays, as the mark of who has a place of
    his own when he is asked about again.
    """

    def __init__(self) -> None:
        self._good: OrderedDict[bytes, _Kept[T]] = OrderedDict()
        self._bad: OrderedDict[bytes, _Kept[T]] = OrderedDict()
        self._turns: WeakValueDictionary[bytes, anyio.Lock] = WeakValueDictionary()
        self._slots = anyio.Semaphore(IN_FLIGHT)
        self._known_slots = anyio.Semaphore(KNOWN_IN_FLIGHT)

    async def get(self, key: bytes, ask: Callable[[], Awaitable[tuple[T, float]]]) -> T:
        """The answer, asked for where none is kept.

        Args:
            key: a digest, never a secret itself.
            ask: gives the answer and for how many seconds it holds.

        Raises:
            Unverifiable: there is no answer now.
        """
        kept = self._find(key)
        if kept is None:
            turn = self._turns.setdefault(key, anyio.Lock())
            try:
                with anyio.fail_after(SECONDS):
                    async with turn:
                        kept = self._find(key) or await self._ask(key, ask)
            except TimeoutError:
                raise Unverifiable(f"no answer within {SECONDS:g} s") from None
        if isinstance(kept.answer, Unverifiable):
            raise Unverifiable(str(kept.answer))
        return kept.answer

    async def _ask(self, key: bytes, ask: Callable[[], Awaitable[tuple[T, float]]]) -> _Kept[T]:
        try:
            async with self._known_slots if key in self._good else self._slots:
                answer, seconds = await ask()
        except Unverifiable as error:
            # What was known of it stays the mark.
            return self._keep(self._bad, key, Unverifiable(str(error)), FAILED_SECONDS)
        if answer:
            return self._keep(self._good, key, answer, seconds)
        self._good.pop(key, None)
        return self._keep(self._bad, key, answer, seconds)

    def _keep(
        self,
        shelf: OrderedDict[bytes, _Kept[T]],
        key: bytes,
        answer: T | Unverifiable,
        seconds: float,
    ) -> _Kept[T]:
        kept = shelf[key] = _Kept(answer, monotonic() + seconds)
        shelf.move_to_end(key)
        if len(shelf) > KEPT:
            shelf.popitem(last=False)
        return kept

    def _find(self, key: bytes) -> _Kept[T] | None:
        for shelf in (self._good, self._bad):
            kept = shelf.get(key)
            if kept is not None and monotonic() < kept.until:
                shelf.move_to_end(key)
                return kept
        return None

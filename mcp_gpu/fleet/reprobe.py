"""Looking again, in the background, at paths that do not work or were not tried.

So that a network that has healed is in use again soon, and no call has to find it out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio

from mcp_gpu.fleet.knowledge import Knowledge
from mcp_gpu.fleet.lanes import Lanes, is_direct
from transports.base import Target, Transport
from transports.errors import TransportError

__all__ = ["Reprobe"]

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""How often it is seen what is due, while nothing is."""

AT_A_LOOK = 25
"""Probes begun before it is seen again."""

PACE_SECONDS = 0.01
"""At least this long from one probe to the next: a thousand agents are through ten seconds after
the path has worked again for the first."""

GIVE_UP_SECONDS = 600.0
"""A gateway that nobody has asked for so long looks no more, until somebody does."""


class Reprobe:
    """The one task that looks again, at a limited pace.

    Args:
        racing: whether somebody waits for the race of the agent with this key, which is then left
            alone.
        clock: seconds, as of `time.monotonic`.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        lanes: Lanes,
        racing: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self._knowledge = knowledge
        self._lanes = lanes
        self._racing = racing
        self._clock = clock
        self._asked_at = clock()
        self._asked = anyio.Event()
        self._looks: dict[str, anyio.CancelScope] = {}

    def asked(self) -> None:
        """Somebody uses the gateway."""
        self._asked_at = self._clock()
        self._asked.set()

    def leave(self, target: Target) -> None:
        """A race begins, which probes this agent itself."""
        look = self._looks.get(target.key)
        if look is not None:
            look.cancel()

    async def run(self) -> None:
        """Look, until cancelled."""
        async with anyio.create_task_group() as group:
            while True:
                if self._clock() - self._asked_at > GIVE_UP_SECONDS:
                    self._asked = anyio.Event()
                    await self._asked.wait()
                due = self._due()[:AT_A_LOOK]
                for target, transport in due:
                    group.start_soon(self._look, target, transport)
                    await anyio.sleep(PACE_SECONDS)
                if not due:
                    await anyio.sleep(LOOK_SECONDS)

    def _due(self) -> list[tuple[Target, Transport]]:
        return [
            (target, transport)
            for target, transport in self._knowledge.overdue()
            if target.key not in self._looks and not self._racing(target.key)
        ]

    async def _look(self, target: Target, transport: Transport) -> None:
        if target.key in self._looks or self._racing(target.key):
            return  # since a moment ago
        knowledge = self._knowledge
        had_failed = knowledge.failure(target, transport) is not None
        try:
            with anyio.CancelScope() as self._looks[target.key]:
                await self._prove(target, transport)
                if had_failed:
                    logger.debug("%s is reached over %s again", target, transport.name)
                    knowledge.hasten(target.cluster, transport)
        except TransportError as error:
            knowledge.failed(target, transport, error)
        finally:
            del self._looks[target.key]

    async def _prove(self, target: Target, transport: Transport) -> None:
        if is_direct(transport.name):
            await self._knowledge.prove(target, transport)  # the pace is limit enough
        else:  # a stream
            async with self._lanes.place(transport.name, suspect=True):
                await self._knowledge.prove(target, transport)

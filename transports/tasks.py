"""What a transport that runs tasks of its own enters and leaves by."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, Self, TypeVarTuple

import anyio
from anyio.abc import TaskGroup

Arguments = TypeVarTuple("Arguments")


class OwnsTasks:
    """`async with` for a transport whose connections outlive a call.

    Its tasks end with the block. What the block raises leaves as it is: a task group
    left in the ordinary way would wrap it into an exception group.
    """

    _task_group: TaskGroup | None = None
    _context: Context

    @property
    def _tasks(self) -> TaskGroup:
        """Where its tasks run. Raises RuntimeError outside of the block."""
        if self._task_group is None:
            raise RuntimeError(f"{type(self).__name__} is used outside of `async with`")
        return self._task_group

    def _keep_running(
        self, run: Callable[[*Arguments], Coroutine[Any, Any, object]], *arguments: *Arguments
    ) -> None:
        """Start a task that outlives the call it is first needed for: what it logs and sends is no
        part of that call. Raises as `_tasks`."""
        tasks = self._tasks
        self._context.copy().run(lambda: tasks.start_soon(run, *arguments))

    async def __aenter__(self) -> Self:
        if self._task_group is not None:
            raise RuntimeError(f"{type(self).__name__} is entered twice")
        group = anyio.create_task_group()
        await group.__aenter__()
        self._task_group = group
        self._context = copy_context()
        try:
            await self._entered()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        group = self._tasks
        group.cancel_scope.cancel()
        try:
            await group.__aexit__(None, None, None)
        finally:
            self._task_group = None
            await self._left()

    async def _entered(self) -> None:
        """Start what runs all the time. For subclasses."""

    async def _left(self) -> None:
        """Close what is shared, once all tasks have ended, within a bound. For subclasses."""

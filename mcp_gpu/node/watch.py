"""Everything that tells of this node's Xids, joined: `XidWatch`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import TaskStatus

from mcp_gpu.gpu.events import XidEvents
from mcp_gpu.gpu.xid.log import XidLog
from mcp_gpu.gpu.xid.model import SourceState
from mcp_gpu.node.boot import Boot
from mcp_gpu.node.journal import Journal
from mcp_gpu.node.kernel_log import KernelLog

_SETTLE_SECONDS: Final = 10.0
"""Longest that the journal waits until the kernel log has been read to its present end. Both tell
of this boot, and the kernel log's times are the ones to agree with."""


class XidWatch:
    """Where nothing can be read it runs all the same, and `sources` says why.

    Args:
        kernel_log: opens the kernel log, without blocking, and returns the file descriptor.
        place: what that is called in messages.
        call: asks the same kernel for its log, where the former does not open.
        journal_paths: folders of journald's files.
        boot: the kernel's; by default this machine's.
        library_path: as for `Nvml`.
    """

    def __init__(
        self,
        kernel_log: Callable[[], int],
        *,
        place: str = "/dev/kmsg",
        call: Callable[[int], bytes] | None = None,
        journal_paths: Iterable[Path] = (),
        boot: Boot | None = None,
        library_path: str | None = None,
    ) -> None:
        self.log = XidLog()
        boot = boot or Boot.of_this_machine()
        self.boot_id, self.booted_at = boot.boot_id, boot.started_at
        add = self.log.add
        self.events = XidEvents(add, boot_id=boot.boot_id, library_path=library_path)
        """For the collector, which knows when NVML may be listened to."""
        self._kernel_log = KernelLog(kernel_log, boot=boot, deliver=add, place=place, call=call)
        self._journal = Journal(
            journal_paths,
            boot=boot,
            deliver=add,
            kernel_log_read=lambda: self._kernel_log.state.live,
        )

    def sources(self) -> tuple[SourceState, ...]:
        """What each source can see now."""
        return (self.events.state, self._kernel_log.state, self._journal.state)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the kernel log and the journal until cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._kernel_log.run)
                task_status.started()
                with anyio.move_on_after(_SETTLE_SECONDS):
                    await self._kernel_log.settled.wait()
                self._journal.start()
        finally:
            self._journal.stop()

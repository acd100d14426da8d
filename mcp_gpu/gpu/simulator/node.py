"""One simulated machine: its driver, its GPUs and what is wrong with it now."""

from __future__ import annotations

import hashlib
import queue
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mcp_gpu.gpu.simulator import drivers
from mcp_gpu.gpu.simulator.board import Gpu
from mcp_gpu.gpu.simulator.faults import Fault, MissingSymbol, Vanished, Xid
from mcp_gpu.gpu.simulator.kernel_log import UPTIME_SECONDS, KernelLog
from mcp_gpu.gpu.simulator.library import Refused
from mcp_gpu.gpu.simulator.processes import HiddenProcesses, Process
from mcp_gpu.gpu.simulator.profiles import ProfileError, load_profile, merged, value

_XID_EVENT = 0x8
_HANDLE = "nvmlDeviceGetHandleByIndex_v2"

_HANG_SLICE_SECONDS = 0.05
"""How soon a blocked call notices that its fault was lifted."""


class Node:
    """A machine with GPUs, installed below the binding with `simulator.install(node)`.

    Args:
        load: mean utilisation, 0 to 1. At 0 every answer is the profile's own.
        mig: GPU index to the MIG profiles it is cut into.
        processes: what runs on the GPUs; under load one of its own on each that none of these is
            on.
        clock: Unix time; a test holds it still.
        on_call: called on every call before anything else: where a fleet re-reads its file.
    """

    def __init__(
        self,
        name: str,
        profile: str,
        *,
        gpus: int | None = None,
        driver: str | None = None,
        load: float = 0.0,
        seed: int = 0,
        mig: Mapping[int, tuple[str, ...]] | None = None,
        processes: Iterable[Process] = (),
        faults: Iterable[Fault] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        document = load_profile(profile)
        described = len(document["gpus"])
        count = described if gpus is None else gpus
        if count > described:
            raise ProfileError(f"profile {profile!r} describes {described} GPUs, not {count}")
        self.name, self.profile = name, profile
        self.events: queue.SimpleQueue[tuple[int, int, int]] = queue.SimpleQueue()
        self.on_call: Callable[[], None] | None = None
        self._system = drivers.system(document["system"], driver)
        self.driver = str(self._system["nvmlSystemGetDriverVersion"])
        self._lacking: frozenset[str] = frozenset()
        if driver is not None or not document.get("recorded"):
            # A recording already says what its driver lacks.
            self._lacking = drivers.lacking(self.driver)
            lacking = {"fields": drivers.lacking_fields(self.driver)}
            rules = {**lacking, **drivers.deprecated(self.driver)}
            document = {**document, "gpu": merged(document["gpu"], rules)}
        self._clock = clock
        given = tuple(processes)
        self._gpus = [
            Gpu(document, index, seed=f"{seed}/{name}", load=load, clock=clock,
                mig=(mig or {}).get(index, ()),
                processes=tuple(process for process in given if process.gpu == index))
            for index in range(count)
        ]  # fmt: skip
        boot_id = hashlib.sha256(f"{seed}/{name}/boot".encode()).hexdigest()[:32]
        self.kernel_log = KernelLog(boot_id, clock=clock)
        loaded = f"NVRM: loading NVIDIA UNIX x86_64 Kernel Module  {self.driver}"
        self.kernel_log.write(loaded, seconds_ago=UPTIME_SECONDS)
        self._faults: tuple[Fault, ...] = ()
        self._since: tuple[float, ...] = ()
        self._missing: set[str] = set()
        self.faults = tuple(faults)

    @property
    def gpus(self) -> list[Gpu]:
        """By index."""
        return self._gpus

    @property
    def processes(self) -> tuple[Process, ...]:
        """On all GPUs now, whoever may see them."""
        return tuple(process for gpu in self._gpus for process in gpu.work.processes)

    @property
    def hides_processes(self) -> bool:
        """Whether an agent here stands in a pid namespace of its own."""
        return any(isinstance(fault, HiddenProcesses) for fault in self._faults)

    def found(self) -> list[Gpu]:
        """Those that a driver finds when it is initialised."""
        return [gpu for gpu in self._gpus if not self._vanished(gpu.index)]

    def _vanished(self, gpu_index: int) -> bool:
        return any(isinstance(f, Vanished) and f.gpu == gpu_index for f in self._faults)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is wrong now. Assigning takes effect on calls that are blocked, too; a fault that
        was there before goes on counting from when it appeared."""
        return self._faults

    @faults.setter
    def faults(self, faults: Iterable[Fault]) -> None:
        new = tuple(faults)
        appeared = [fault for fault in new if fault not in self._faults]
        began = list(zip(self._faults, self._since, strict=True))
        self._since = tuple(
            next((since for old, since in began if old == fault), self._clock()) for fault in new
        )
        self._faults = new
        self._missing = {fault.call for fault in new if isinstance(fault, MissingSymbol)}
        for gpu in self._gpus:
            gpu.overlay(
                (fault, since)
                for fault, since in zip(new, self._since, strict=True)
                if fault.concerns(gpu.index)
            )
        for fault in appeared:
            if isinstance(fault, Xid):
                self._tell(fault)

    def enter(self, call: str, gpu_index: int | None) -> None:
        """As `library.Machine`: every fault's say on this call."""
        if self.on_call is not None:
            self.on_call()
        for fault in self._faults:
            if fault.concerns(gpu_index):
                self._block(fault, call)
                if code := fault.code(call, gpu_index):
                    raise Refused(code)
        if call == _HANDLE and gpu_index is not None and gpu_index < len(self._gpus):
            # A recording of a GPU that refused its handle.
            value(self._gpus[gpu_index].answers.get(_HANDLE, True))

    def lacks(self, call: str) -> bool:
        """As `library.Machine`."""
        return call in self._lacking or call in self._missing

    def system(self, call: str) -> Any:
        """As `library.Machine`."""
        return value(self._system.get(call))

    def _tell(self, fault: Xid) -> None:
        """Let the driver report Xids."""
        pci = self._gpus[fault.gpu].answer("nvmlDeviceGetPciInfo_v3")
        domain, bus, device = pci["busId"].split(":")
        line = fault.line(f"{domain[-4:]}:{bus}:{device.partition('.')[0]}".lower())
        for _ in range(fault.count):
            if line is not None:
                self.kernel_log.write(line, seconds_ago=fault.seconds_ago)
            if fault.by_nvml:
                self.events.put((fault.gpu, _XID_EVENT, fault.xid))

    def _block(self, fault: Fault, call: str) -> None:
        deadline = time.monotonic() + fault.delay_seconds(call)
        while fault in self._faults and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _HANG_SLICE_SECONDS))
            if self.on_call is not None:
                self.on_call()

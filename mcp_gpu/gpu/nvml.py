"""NVML through nvidia-ml-py: the one place that imports the binding (besides the simulator).

NVML calls can block for minutes and cannot be interrupted; exactly one thread may use an
`Nvml`, and `Nvml.calling` tells the others where it is. What a call refuses is one field's
reason; only what concerns a whole GPU or all of NVML is raised (errors.py).
"""

from __future__ import annotations

import ctypes
import logging
import resource
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from inspect import unwrap
from pathlib import Path
from typing import Any, Final, NamedTuple

import pynvml

from mcp_gpu.gpu.errors import Code, GpuUnreadable, NvmlError, NvmlUnavailable
from mcp_gpu.telemetry.histogram import Histogram

log = logging.getLogger(__name__)

LIBRARY_NAME: Final = "libnvidia-ml.so.1"

MAX_OPEN_FILES: Final = 65_536
"""nvidia-persistenced speaks SunRPC, whose tables grow with RLIMIT_NOFILE: at 2^30, a common
container default, the first call allocates tens of GiB and takes half a minute
(NVIDIA/nvidia-container-toolkit#1053)."""

WEDGED_SECONDS: Final = 10.0
"""After a call that took longer, the GPU that it was about is asked nothing more (each further
call would block as long), and NVML is not shut down: that can block for ever, and the next
initialisation only adds a reference (nvidia_gpu_exporter#467)."""


CALL_SECONDS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)
"""Bounds for calls: most take microseconds, and one that hangs takes minutes."""


class Calling(NamedTuple):
    """The NVML call in progress."""

    call: str
    gpu_index: int | None
    since: float
    """On time.monotonic()."""


@cache
def _function(call: str) -> Callable[..., Any]:
    """The binding's function without its decorators.

    They decode every string strictly as UTF-8 and turn FUNCTION_NOT_FOUND into an exception
    that is no NVMLError.
    """
    function: Callable[..., Any] | None = getattr(pynvml, call, None)
    if function is None:
        raise NvmlError(Code.FUNCTION_NOT_FOUND, call)
    bare: Callable[..., Any] = unwrap(function)
    return bare


def _answer(call: str, args: tuple[Any, ...]) -> Any:
    try:
        return _function(call)(*args)
    except pynvml.NVMLError as error:
        raise NvmlError(error.value, call) from None
    except NvmlError:
        raise
    except Exception as error:
        # Boundary: the binding is known to raise TypeError, NameError, UnicodeDecodeError and
        # ctypes.ArgumentError on answers it was not written for.
        log.debug("%s: %r", call, error)
        raise NvmlError(Code.BINDING_DEFECT, call) from error


class Event(NamedTuple):
    """What an event set gave."""

    kind: int
    """One bit of nvmlEventType*."""
    data: int
    """For an Xid its number; 999 where the driver did not tell it."""
    device: int
    """As `address` says of the GPU's handle."""


def address(handle: Any) -> int:
    """What a handle has in common with those that events carry."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


class Nvml:
    """NVML, opened and closed by the thread that owns it.

    Args:
        library_path: an absolute path to load first. The binding asks for "libnvidia-ml.so.1"
            by name, and a library of that SONAME that is loaded already wins. The driver
            container of the GPU Operator puts it under /run/nvidia/driver/usr/lib/.
        explain: from a return code of nvmlInit and what the loader of libraries said, what is the
            matter with this machine; empty: it does not know.
    """

    def __init__(
        self,
        *,
        library_path: str | None = None,
        explain: Callable[[int, str], str] = lambda code, detail: "",
    ) -> None:
        self.calling: Calling | None = None
        self.seconds = Histogram(CALL_SECONDS)
        """What calls took that have returned."""
        self.refused: Counter[int] = Counter()
        """Calls that were not answered, by return code."""
        self._library_path, self._explain = library_path, explain
        self._slowest_seconds = 0.0
        self._missing: set[str] = set()
        self._references_owed = 0
        """Shutdowns that were left out. Until they are made up for, NVML keeps its state: every
        initialisation is counted, and only the last shutdown ends anything."""

    @property
    def simulated(self) -> bool:
        """Whether the simulator answers instead of a driver."""
        return bool(getattr(pynvml.nvmlLib, "simulated", False))

    @property
    def missing_symbols(self) -> tuple[str, ...]:
        """C functions that this driver's library was asked for since `open` and does not have."""
        return tuple(sorted(self._missing))

    def open(self) -> None:
        """Load the library and initialise it.

        Raises:
            NvmlUnavailable: with the text of what to do about it.
        """
        if not hasattr(pynvml, "_nvmlGetFunctionPointer"):
            detail = "the package `pynvml` shadows nvidia-ml-py: uninstall it"
            raise NvmlUnavailable(Code.LIBRARY_NOT_FOUND, "import", detail)
        _lower_open_files()
        self._missing.clear()
        if self._library_path:
            try:
                ctypes.CDLL(self._library_path)
            except OSError as error:
                raise self._unavailable(Code.LIBRARY_NOT_FOUND, "dlopen", str(error)) from error
        try:
            self.call("nvmlInit", None)
        except NvmlError as error:
            raise self._unavailable(error.code, error.call, _init_detail(error.code)) from error

    def _unavailable(self, code: int, call: str, detail: str) -> NvmlUnavailable:
        return NvmlUnavailable(code, call, detail, self._explain(code, detail))

    def close(self) -> None:
        """Shut NVML down. Every handle is void afterwards. Never raises."""
        wedged = self._slowest_seconds > WEDGED_SECONDS
        self._slowest_seconds = 0.0
        self._references_owed += 1
        if wedged:
            return
        try:
            while self._references_owed:
                self._references_owed -= 1
                self.call("nvmlShutdown", None)
        except NvmlError as error:
            log.debug("nvmlShutdown: %s", error)

    def count(self) -> int:
        """How many GPUs NVML counts, those that refuse a handle included.

        Raises:
            NvmlUnavailable: it cannot even be counted.
        """
        try:
            return int(self.call("nvmlDeviceGetCount", None))
        except NvmlError as error:
            raise NvmlUnavailable(error.code, error.call) from error

    def handle(self, gpu_index: int) -> Any:
        """The GPU's handle; the first one may take seconds without persistence mode.

        Raises:
            NvmlUnavailable, GpuLost, GpuUnreadable
        """
        try:
            return self.call("nvmlDeviceGetHandleByIndex", gpu_index, gpu_index)
        except NvmlError as error:
            error.raise_beyond_field()
            raise GpuUnreadable(error.code, error.call) from error

    def call(self, call: str, gpu_index: int | None, *args: Any) -> Any:
        """One function of the binding, with its raw answer.

        Raises:
            NvmlError: with BINDING_DEFECT where the binding failed by itself.
            GpuUnreadable: a call about a GPU took longer than WEDGED_SECONDS, whatever it then
                answered (with TIMEOUT, unless the answer was worse).
        """
        since = time.monotonic()
        self.calling = Calling(call, gpu_index, since)
        refusal: NvmlError | None = None
        answer: Any = None
        try:
            answer = _answer(call, args)
        except NvmlError as error:
            refusal = error
        finally:
            self.calling = None
            seconds = time.monotonic() - since
            self._slowest_seconds = max(self._slowest_seconds, seconds)
            self.seconds.observe(seconds)
        if refusal is not None:
            self.refused[refusal.code] += 1
        if seconds > WEDGED_SECONDS and gpu_index is not None:
            if refusal is not None:
                refusal.raise_beyond_field()
            raise GpuUnreadable(Code.TIMEOUT, call) from refusal
        if refusal is not None:
            if refusal.code == Code.FUNCTION_NOT_FOUND:
                self._missing.add(_symbol(call, args))
            raise refusal
        return answer

    def fill(self, call: str, structs: tuple[str, ...], gpu_index: int | None, handle: Any) -> Any:
        """A getter that fills a struct, in the first of these versions that the driver knows.

        Raises:
            NvmlError
        """
        mismatch: NvmlError | None = None
        for name in structs:
            struct = getattr(pynvml, name)()
            try:
                self.call(call, gpu_index, handle, ctypes.byref(struct))
            except NvmlError as error:
                if error.code != Code.ARGUMENT_VERSION_MISMATCH:
                    raise
                mismatch = error
            else:
                return struct
        assert mismatch is not None
        raise mismatch

    def next_event(self, event_set: Any, milliseconds: int) -> Event | None:
        """Wait for an event; None: there was none in that time.

        Raises:
            NvmlError
        """
        try:
            data = self.call("nvmlEventSetWait_v2", None, event_set, milliseconds)
        except NvmlError as error:
            if error.code == Code.TIMEOUT:
                return None
            raise
        return Event(int(data.eventType), int(data.eventData), address(data.device))

    def field_values(
        self, gpu_index: int, handle: Any, ids: list[tuple[int, int]]
    ) -> list[float | NvmlError]:
        """Many (field id, scope) in one call: a number, or the refusal, for each.

        Raises:
            NvmlError: the call itself failed.
        """
        call = "nvmlDeviceGetFieldValues"
        return [
            NvmlError(value.nvmlReturn, call)
            if value.nvmlReturn
            else getattr(value.value, _VALUE_MEMBERS.get(value.valueType, "ullVal"))
            for value in self.call(call, gpu_index, handle, ids)
        ]

    def gpm_metrics(
        self, gpu_index: int, older: Any, newer: Any, ids: list[int]
    ) -> list[float | NvmlError]:
        """What lies between two samples of GPM: a number, or the refusal, for each metric.

        Raises:
            NvmlError: the call itself failed.
        """
        asked = pynvml.c_nvmlGpmMetricsGet_t(
            version=pynvml.NVML_GPM_METRICS_GET_VERSION,
            numMetrics=len(ids),
            sample1=older,
            sample2=newer,
        )
        for position, metric in enumerate(ids):
            asked.metrics[position].metricId = metric
        call = "nvmlGpmMetricsGet"
        self.call(call, gpu_index, asked)
        return [
            NvmlError(metric.nvmlReturn, call) if metric.nvmlReturn else float(metric.value)
            for metric in asked.metrics[: len(ids)]
        ]


def _symbol(call: str, args: tuple[Any, ...]) -> str:
    """The C function behind one of the binding's; the one that has two says so by a version."""
    if call == "nvmlDeviceGetMemoryInfo" and len(args) > 1:
        return f"{call}_v2"
    return call


def _lower_open_files() -> None:
    """For good, not just around init: GetPersistenceMode and new handles call the daemon too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft > MAX_OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, hard))


def _init_detail(code: int) -> str:
    """What the system itself says: the binding hides the loader's text and the module's version."""
    if code == Code.LIBRARY_NOT_FOUND:
        try:
            ctypes.CDLL(LIBRARY_NAME)
        except OSError as error:
            return str(error)
    if code == Code.LIB_RM_VERSION_MISMATCH:
        try:
            return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
        except (OSError, IndexError):
            pass  # Advice without it is still advice.
    return ""


_VALUE_MEMBERS = {
    0: "dVal",
    1: "uiVal",
    2: "ulVal",
    3: "ullVal",
    4: "sllVal",
    5: "siVal",
    6: "usVal",
}
"""nvmlValueType_t to the member of the value union."""

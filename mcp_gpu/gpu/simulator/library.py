"""What the binding takes for libnvidia-ml.so.1: symbols, handles and calls.

Every exported symbol is a real C function (a libffi closure) of the prototype in nvml.h, and
the binding calls it through a pointer without a prototype, so that arguments convert exactly
as they do for a shared library. Implementations write through the caller's pointers. What they
answer comes from a `Machine`; this module knows only how each answer is laid out in memory.
"""

from __future__ import annotations

import ctypes as c
import logging
import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pynvml

log = logging.getLogger(__name__)


class Refused(Exception):
    """An answer that is a return code instead of a value."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Device(Protocol):
    """What a handle stands for: a GPU or a MIG device."""

    index: int

    def answer(self, call: str, key: str = "") -> Any:
        """The value for `call` with its further arguments as `key` ("0", "1,0").

        Raises:
            Refused: the call has no value here.
        """

    def at_rest(self, call: str, key: str = "") -> Any:
        """The same without load and without faults."""


class Machine(Protocol):
    """What the library asks; node.py has the one implementation."""

    events: queue.SimpleQueue[tuple[int, int, int]]

    @property
    def gpus(self) -> list[Any]: ...

    def found(self) -> list[Any]:
        """The GPUs that there are when the library is initialised."""

    def enter(self, call: str, gpu_index: int | None) -> None:
        """Called first on every call: where faults delay it, block it or refuse it."""

    def lacks(self, call: str) -> bool:
        """Whether this driver's library has no such symbol."""

    def system(self, call: str) -> Any:
        """The value of a call that concerns no GPU."""


class _Pointer(c._CFuncPtr):  # type: ignore[name-defined,misc]
    """A function pointer as ctypes.CDLL makes them: cdecl, int, no argument types."""

    _flags_ = 1  # FUNCFLAG_CDECL, which ctypes does not export
    _restype_ = c.c_int


@dataclass(frozen=True, slots=True)
class _Export:
    prototype: Any
    implementation: Callable[..., int | None]
    """(library, call, *arguments); None means success."""


EXPORTS: dict[str, _Export] = {}
"""Every function of the simulated library by name; the package `exports` fills it."""

_Implementation = Callable[..., int | None]


def export(
    *arguments: Any, names: str, result: Any = c.c_int
) -> Callable[[_Implementation], _Implementation]:
    def register(implementation: _Implementation) -> _Implementation:
        prototype = c.CFUNCTYPE(result, *arguments)
        for name in names.split():
            EXPORTS[name] = _Export(prototype, implementation)
        return implementation

    return register


class Library:
    """Assigned to `pynvml.nvmlLib`. One for the process; `node` says which machine it is now."""

    simulated = True

    def __init__(self) -> None:
        self.node: Machine | None = None
        self.initialised = 0
        """nvmlInit calls without their nvmlShutdown. NVML keeps what it found at the first one
        until the last of them is undone."""
        self.gpus: list[Any] = []
        """As found then."""
        self._pointers: dict[str, Any] = {}
        # Whoever forgets a closure or a buffer that C still knows gets a crash, not an error.
        self._kept: dict[str | int, Any] = {}
        self._texts: dict[str, Any] = {}
        self._devices: dict[int, Device] = {}
        self._addresses: dict[int, int] = {}
        self.event_sets: dict[int, dict[int, int]] = {}
        """Event set to GPU index to the event types that are registered for it."""
        self.samples: dict[int, Any] = {}
        """Those of GPM that are allocated and not freed, by address."""

    def __getattr__(self, name: str) -> Any:
        """Symbol look-up, as on ctypes.CDLL: AttributeError where there is no such symbol."""
        if not name.startswith("nvml") or self.node is None or self.node.lacks(name):
            raise AttributeError(name)
        pointer = self._pointers.get(name)
        if pointer is None:
            pointer = self._pointers[name] = self._build(name)
        return pointer

    def reset(self, node: Machine | None) -> None:
        """Become another machine. Handles of the former one are void."""
        self.node, self.initialised, self.gpus = node, 0, []
        self._devices.clear()
        self._addresses.clear()
        self.event_sets.clear()
        self.samples.clear()
        for key in [key for key in self._kept if isinstance(key, int)]:
            del self._kept[key]

    def handle(self, device: Device) -> int:
        """A handle is the address of real memory, so that nobody takes it for a small number."""
        address = self._addresses.get(id(device))
        if address is None:
            address = self._addresses[id(device)] = self.keep(c.create_string_buffer(16))
            self._devices[address] = device
        return address

    def device(self, handle: int | None) -> Device:
        """Raises: Refused: INVALID_ARGUMENT for what is no handle."""
        try:
            return self._devices[handle or 0]
        except KeyError:
            raise Refused(pynvml.NVML_ERROR_INVALID_ARGUMENT) from None

    def enter(self, call: str, gpu_index: int | None = None) -> Machine:
        """Every call but init and shutdown passes here first."""
        if self.node is None or not self.initialised:
            raise Refused(pynvml.NVML_ERROR_UNINITIALIZED)
        self.node.enter(call, gpu_index)
        return self.node

    def ask(self, call: str, handle: int | None, *key: int) -> Any:
        """The device's value for a call."""
        device = self.device(handle)
        self.enter(call, device.index)
        return device.answer(call, ",".join(map(str, key)))

    def keep(self, buffer: Any) -> int:
        """Keep memory alive whose address is handed to C, until the next machine."""
        address = c.addressof(buffer)
        self._kept[address] = buffer
        return address

    def keep_text(self, value: str) -> int:
        """As `keep`, for a constant string."""
        if value not in self._texts:
            self._texts[value] = c.create_string_buffer(value.encode())
        return c.addressof(self._texts[value])

    def _build(self, name: str) -> Any:
        export = EXPORTS.get(name)
        if export is None:
            # The other 300: one function without arguments, which cdecl lets anyone call.
            return self._pointer("", c.CFUNCTYPE(c.c_int), lambda: pynvml.NVML_ERROR_NOT_SUPPORTED)

        def entry(*arguments: Any) -> int:
            if self.node is None or self.node.lacks(name):
                # The binding remembers symbols; a fault may have taken this one away since.
                return int(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
            try:
                return export.implementation(self, name, *arguments) or 0
            except Refused as refused:
                return refused.code
            except Exception:
                # Boundary: no exception may cross into C, where it would read as success.
                log.exception("simulator: %s", name)
                return int(pynvml.NVML_ERROR_UNKNOWN)

        return self._pointer(name, export.prototype, entry)

    def _pointer(self, name: str, prototype: Any, function: Callable[..., int]) -> Any:
        kept = self._kept.get(name)
        if kept is None:
            closure = prototype(function)
            kept = (closure, _Pointer(c.cast(closure, c.c_void_p).value))
            self._kept[name] = kept
        return kept[1]

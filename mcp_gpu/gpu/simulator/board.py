"""One simulated GPU: a profile's answers, an identity, and under load a function of time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import UUID

from mcp_gpu.gpu.processes import KINDS
from mcp_gpu.gpu.simulator.changes import FaultModel, changed
from mcp_gpu.gpu.simulator.processes import UTILIZATION, Process, Work, default_process
from mcp_gpu.gpu.simulator.profiles import Profile, merged, of_key, value

_NOT_SUPPORTED, _NO_PERMISSION = 3, 4

_MIG_MAX = 7
_NO_WITH_MIG = (
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetRowRemapperHistogram",
)
_NO_FIELDS_WITH_MIG = ("142", "143", "144", "145")

_OF_PARENT = ("nvmlGpmQueryDeviceSupport", "nvmlGpmMetricsGet")
"""What a MIG device answers as its GPU does: every instance is as busy as the whole."""


class MigDevice:
    """A MIG device of a GPU: identity, size and what works on it; NVML asks the parent for
    everything else."""

    def __init__(self, gpu: Gpu, number: int, answers: Mapping[str, Any]) -> None:
        self.index = gpu.index
        self._gpu, self._number = gpu, number
        self._answers = {
            **answers,
            "nvmlDeviceIsMigDeviceHandle": 1,
            "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": gpu,
        }

    def at_rest(self, call: str, key: str = "") -> Any:
        """As `library.Device`."""
        if call in _OF_PARENT:
            return self._gpu.at_rest(call, key)
        return value(self._answers.get(call))

    def answer(self, call: str, key: str = "") -> Any:
        """As `library.Device`."""
        if call in _OF_PARENT:
            return self._gpu.answer(call, key)
        if call in KINDS.values():
            return self._gpu.answer(call, f"mig {self._number}")
        answer = self.at_rest(call)
        if call == "nvmlDeviceGetMemoryInfo_v2":
            held = self._gpu.work.memory_bytes(self._number)
            return {**answer, "used": answer["used"] + held, "free": answer["free"] - held}
        return answer


def _mig_answers(gpu: Gpu, number: int, profile: str) -> dict[str, Any]:
    size = gpu.profile["mig_profiles"][profile]
    total, slices = size["memory_mib"] << 20, int(profile[0])
    return {
        "nvmlDeviceGetUUID": f"MIG-{_uuid(gpu.seed, 'mig', number)}",
        "nvmlDeviceGetName": f"{gpu.answer('nvmlDeviceGetName')} MIG {profile}",
        # UNVERIFIED: instance ids start at 7 for the smallest slice on real boards.
        "nvmlDeviceGetGpuInstanceId": 7 + number,
        "nvmlDeviceGetComputeInstanceId": 0,
        "nvmlDeviceGetMemoryInfo_v2": {"total": total, "reserved": 0, "used": 0, "free": total},
        "nvmlDeviceGetAttributes_v2": {
            "multiprocessorCount": size["multiprocessors"],
            "gpuInstanceSliceCount": slices,
            "computeInstanceSliceCount": slices,
            "memorySizeMB": size["memory_mib"],
        },
    }


class Gpu:
    """One GPU. `answers` is what it says at rest and in health."""

    def __init__(
        self, profile: Profile, index: int, *, seed: str, load: float, clock: Callable[[], float],
        mig: tuple[str, ...] = (), processes: tuple[Process, ...] = (),
    ) -> None:  # fmt: skip
        self._node_seed, self._processes = seed, processes
        self.profile, self.index, self.seed, self.load, self._clock = (
            profile, index, f"{seed}/{index}", load, clock,
        )  # fmt: skip
        self.answers: dict[str, Any] = merged(
            profile["gpu"], profile["gpus"][index], self._identity()
        )
        self._said: Mapping[str, list[tuple[Any, float]]] = {}
        phase = int(hashlib.sha256(self.seed.encode()).hexdigest()[:8], 16) / 2**32
        self._phase, self._period_seconds = 2 * math.pi * phase, 90 + 60 * phase
        if mig:
            self.answers = merged(self.answers, self._with_mig(mig))
        elif recorded := self.answers.get("nvmlDeviceGetMigDeviceHandleByIndex"):
            devices = [
                answers and MigDevice(self, number, answers)
                for number, answers in enumerate(recorded)
            ]
            self.answers["nvmlDeviceGetMigDeviceHandleByIndex"] = devices

    def _identity(self) -> dict[str, Any]:
        """What no two boards share; a recorded profile brings its own."""
        own = {
            "nvmlDeviceGetIndex": self.index,
            "nvmlDeviceGetMinorNumber": self.index,
            "nvmlDeviceGetUUID": f"GPU-{_uuid(self.seed)}",
        }
        if isinstance(self.profile["gpu"].get("nvmlDeviceGetSerial"), str):
            own["nvmlDeviceGetSerial"] = str(1_650_000_000_000 + _uuid(self.seed).int % 10**9)
        return {} if self.profile.get("recorded") else own

    def _with_mig(self, names: tuple[str, ...]) -> dict[str, Any]:
        refused: dict[str, Any] = {call: {"error": _NOT_SUPPORTED} for call in _NO_WITH_MIG}
        # nvml.h: no volatile errors by the handle of a GPU that is cut into instances.
        refused["nvmlDeviceGetTotalEccErrors"] = {
            key: {"error": _NOT_SUPPORTED} for key in ("0,0", "1,0")
        }
        refused["nvmlDeviceGetMemoryErrorCounter"] = {
            f"{kind},0,{location}": {"error": _NOT_SUPPORTED}
            for kind in range(2)
            for location in (2, 7)
        }
        refused["fields"] = {field: {"error": _NOT_SUPPORTED} for field in _NO_FIELDS_WITH_MIG}
        # nvml.h: what runs on all instances together is told to the privileged alone.
        refused |= {call: {"error": _NO_PERMISSION} for call in KINDS.values()}
        devices = [
            MigDevice(self, number, _mig_answers(self, number, name))
            for number, name in enumerate(names)
        ]
        return {
            **refused,
            "nvmlDeviceGetMigMode": [1, 1],
            "nvmlDeviceGetMigDeviceHandleByIndex": devices,
            "nvmlDeviceGetMaxMigDeviceCount": _MIG_MAX,
        }

    def overlay(self, faults: Iterable[tuple[FaultModel, float]]) -> None:
        """Let these faults, each since its time, have their say instead of the former ones."""
        said: dict[str, list[tuple[Any, float]]] = {}
        for fault, since in faults:
            for call, told in fault.answers().items():
                said.setdefault(call, []).append((told, since))
        self._said = said

    def at_rest(self, call: str, key: str = "") -> Any:
        """The answer without load and without faults.

        Raises:
            Refused: there is none, or the profile names a code.
        """
        answer = self.answers.get(call)
        if key:
            answer = of_key(answer, call, key)
        return value(answer)

    def answer(self, call: str, key: str = "") -> Any:
        """As `library.Device`."""
        answer = self._healthy(call, key)
        for told, since in self._said.get(call, ()):
            answer = changed(
                answer, told, call, key, seconds=self._clock() - since, ask=self._healthy
            )
        return answer

    def _healthy(self, call: str, key: str) -> Any:
        """The answer without faults."""
        if key.startswith("mig "):
            return self.work.answer(call, int(key.removeprefix("mig ")))
        if call == UTILIZATION:
            self.at_rest("nvmlDeviceGetUtilizationRates")  # Where there is none of the whole GPU.
            return self.work.answer(call, None)
        answer = self.at_rest(call, key)
        if call in KINDS.values() and self.work.processes:
            return self.work.answer(call, None)
        if call == "nvmlDeviceGetMemoryInfo_v2" and self._processes:
            return _held(answer, self.work.memory_bytes())
        if self.load:
            move = _MOVING.get(call) or _MOVING.get(f"{call} {key}")
            if move is not None:
                return move(self, answer, key)
        return answer

    @property
    def work(self) -> Work:
        """The processes on the GPU now: those that it was given, or under load one of its own."""
        if self._processes or not self.load or self._is_cut:
            return Work(self._processes)
        memory = self.at_rest("nvmlDeviceGetMemoryInfo_v2")
        held = _busy_memory(self, memory, "")["used"] - memory["used"]
        percent = round(100 * self.activity)
        return Work((default_process(self._node_seed, self.index, held, percent),))

    @property
    def _is_cut(self) -> bool:
        return bool(self.answers.get("nvmlDeviceGetMigDeviceHandleByIndex"))

    @property
    def activity(self) -> float:
        """How busy the GPU is now, 0 to 1: a slow wave around `load`."""
        angle = 2 * math.pi * self._clock() / self._period_seconds + self._phase
        return min(1.0, self.load * (1 + 0.2 * math.sin(angle)))

    def power_milliwatts(self, idle: int) -> int:
        """Power under the present activity, from what the board draws idle."""
        limit = int(self.at_rest("nvmlDeviceGetPowerManagementLimit"))
        return round(idle + 0.85 * (limit - idle) * self.activity)

    def energy_millijoules(self, start: int) -> int:
        """Mean power since a fixed day, so that the counter only grows."""
        idle = int(self.at_rest("nvmlDeviceGetPowerUsage"))
        limit = int(self.at_rest("nvmlDeviceGetPowerManagementLimit"))
        mean = idle + 0.85 * (limit - idle) * self.load
        return start + round(mean * (self._clock() - _ENERGY_EPOCH))


def _uuid(*parts: object) -> UUID:
    return UUID(bytes=hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:16], version=4)


_ENERGY_EPOCH = 1_700_000_000.0

_HOTTER_CELSIUS = 40
"""How far a busy board is above an idle one."""


def _hotter(gpu: Gpu, idle: int, key: str) -> int:
    return idle + round(_HOTTER_CELSIUS * gpu.activity)


def _busy_clock(gpu: Gpu, idle: int, key: str) -> int:
    top = int(gpu.at_rest("nvmlDeviceGetMaxClockInfo", key))
    # Memory runs at full speed or idles; the others follow the work.
    return top if key == "2" else round(idle + (top - idle) * min(1.0, 0.5 + gpu.activity / 2))


def _busy_memory(gpu: Gpu, idle: dict[str, int], key: str) -> dict[str, int]:
    usable = idle["total"] - idle["reserved"]
    return _held(idle, round(0.9 * usable * gpu.activity) // (2 << 20) * (2 << 20))


def _held(idle: dict[str, int], held_bytes: int) -> dict[str, int]:
    """What a GPU says of its memory when programs hold so much of it."""
    usable = idle["total"] - idle["reserved"]
    used = min(usable, idle["used"] + held_bytes)
    return {**idle, "used": used, "free": usable - used}


def _busy_rates(gpu: Gpu, idle: dict[str, int], key: str) -> dict[str, int]:
    return {"gpu": round(100 * gpu.activity), "memory": round(55 * gpu.activity)}


def _busy_units(gpu: Gpu, idle: float, key: str) -> float:
    return idle + _BUSY_UNITS.get(key, 0.0) * gpu.activity


_BUSY_UNITS = {
    "2": 100.0, "3": 45.0, "5": 60.0, "7": 55.0, "10": 50.0, "12": 12.0, "13": 4.0,
    "20": 900.0, "21": 1_800.0, "60": 90_000.0, "61": 88_000.0,
}  # fmt: skip
"""GPM's metrics of a board that trains a model on all its peers, in percent or MiB/s."""


def _power(gpu: Gpu, idle: int, key: str) -> int:
    return gpu.power_milliwatts(idle)


def _energy(gpu: Gpu, start: int, key: str) -> int:
    return gpu.energy_millijoules(start)


_MOVING: dict[str, Callable[[Gpu, Any, str], Any]] = {
    "nvmlDeviceGetTemperature": _hotter,
    "nvmlDeviceGetMarginTemperature": lambda gpu, idle, key: {
        "marginTemperature": idle["marginTemperature"] - round(_HOTTER_CELSIUS * gpu.activity)
    },
    "nvmlDeviceGetPowerUsage": _power,
    "nvmlDeviceGetUtilizationRates": _busy_rates,
    "nvmlDeviceGetClockInfo": _busy_clock,
    "nvmlDeviceGetMemoryInfo_v2": _busy_memory,
    "nvmlDeviceGetTotalEnergyConsumption": _energy,
    "nvmlGpmMetricsGet": _busy_units,
    # Without what says idle, and the power cap that holds a resting GeForce down.
    "nvmlDeviceGetCurrentClocksEventReasons": lambda gpu, idle, key: idle & ~0x5,
    # At rest a GeForce lowers its link.
    "nvmlDeviceGetCurrPcieLinkGeneration": lambda gpu, idle, key: max(
        idle, gpu.at_rest("nvmlDeviceGetMaxPcieLinkGeneration")
    ),
    "fields 82,0": _hotter,
    "fields 83,0": _energy,
    "fields 185,0": _power,
    "fields 186,0": _power,
}
"""Call, or call and key, to what load makes of the answer at rest."""

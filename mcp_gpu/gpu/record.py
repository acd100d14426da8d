"""Records what a real machine's NVML answers, as a profile that the simulator replays.

Only getters are called. A profile holds, per GPU and C function, the value or the return code;
docs/simulator.md describes the format.
"""

from __future__ import annotations

import hashlib
import secrets
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from ctypes import Array, Structure
from itertools import product
from typing import Any, Final
from uuid import UUID

from mcp_gpu.gpu.errors import Code, GpuUnreadable, NvmlError, NvmlUnavailable
from mcp_gpu.gpu.fields import bit_list
from mcp_gpu.gpu.gpm import METRICS
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.table import raw_bytes
from mcp_gpu.gpu.vital_fields import PER_LINK
from mcp_gpu.gpu.wiring import CAPABILITIES

FIELD_IDS: Final = range(1, 308)
"""Every field id of nvml.h as the binding has it."""

_FIELD_BATCH: Final = 64
_MODULE_FIELDS: Final = (187, 188, 189, 190, 192)
"""Power limits, which GB200 also answers for the whole module (scope 1)."""

_LINK_COUNT: Final = "91"
_MAX_LINKS: Final = 36
_MASK_WORDS: Final = 16

_PLAIN: Final = (
    "Name", "UUID", "Serial", "BoardPartNumber", "VbiosVersion", "InforomImageVersion",
    "Brand", "Architecture", "CudaComputeCapability", "Index", "MinorNumber", "ModuleId",
    "CurrPcieLinkGeneration", "MaxPcieLinkGeneration", "GpuMaxPcieLinkGeneration",
    "CurrPcieLinkWidth", "MaxPcieLinkWidth", "PcieReplayCounter", "PersistenceMode",
    "ComputeMode", "DisplayMode", "PerformanceState", "PowerState", "PowerUsage",
    "PowerManagementLimit", "PowerManagementDefaultLimit", "PowerManagementLimitConstraints",
    "EnforcedPowerLimit", "TotalEnergyConsumption", "MaxMigDeviceCount", "MigMode", "EccMode",
    "FanSpeed", "VirtualizationMode", "RetiredPagesPendingStatus", "RemappedRows",
    "CurrentClocksEventReasons", "SupportedClocksEventReasons", "SupportedEventTypes",
    "BAR1MemoryInfo", "UtilizationRates", "PciInfo_v3", "RowRemapperHistogram", "C2cModeInfoV",
)  # fmt: skip
"""nvmlDeviceGet... functions without further arguments."""

_BY_KEY: Final[dict[str, tuple[tuple[int, ...], ...]]] = {
    "ClockInfo": tuple(product(range(4))),
    "MaxClockInfo": tuple(product(range(4))),
    "MaxCustomerBoostClock": tuple(product(range(4))),
    "ApplicationsClock": tuple(product(range(4))),
    "TemperatureThreshold": tuple(product(range(4))),
    "NvLinkState": tuple(product(range(_MAX_LINKS))),
    "NvLinkVersion": tuple(product(range(_MAX_LINKS))),
    "NvLinkRemoteDeviceType": tuple(product(range(_MAX_LINKS))),
    "RetiredPages": tuple(product(range(2))),
    "TotalEccErrors": tuple(product(range(2), range(2))),
    "MemoryErrorCounter": tuple(product(range(2), range(2), range(8))),
}
"""nvmlDeviceGet... functions with enums or link numbers as further arguments."""

_STRUCTS: Final = {
    "GpuFabricInfoV": ("c_nvmlGpuFabricInfo_v3_t", "c_nvmlGpuFabricInfo_v2_t"),
    "PlatformInfo": ("c_nvmlPlatformInfo_v2_t",),
    "SramEccErrorStatus": ("c_nvmlEccSramErrorStatus_v1_t",),
}

_MEMBERS: Final = {
    "MarginTemperature": ("marginTemperature",),
    "AddressingMode": ("value",),
    "RepairStatus": ("bChannelRepairPending", "bTpcRepairPending"),
    "UnrepairableMemoryFlag_v1": ("unrepairableMemory",),
}
"""nvmlDeviceGet... functions whose struct the binding takes apart."""

_MIG: Final = ("Name", "UUID", "GpuInstanceId", "ComputeInstanceId", "Attributes_v2")

_IDENTIFYING: Final = {"chassisSerialNumber", "ibGuid", "clusterUuid"}


def record(nvml: Nvml | None = None, *, pseudonyms: bool = True) -> dict[str, Any]:
    """Open NVML, ask it everything, close it. Takes about a second per GPU.

    Args:
        pseudonyms: replace UUIDs, serial numbers and fabric ids by others of the same form;
            equal ones stay equal within one recording, and two recordings share none.

    Raises:
        NvmlUnavailable: there is nothing to record.
    """
    nvml = nvml or Nvml()
    nvml.open()
    try:
        return _Recording(nvml, _Pseudonyms() if pseudonyms else None).document()
    finally:
        nvml.close()


class _Pseudonyms:
    def __init__(self) -> None:
        self._salt = secrets.token_bytes(16)

    def _digest(self, value: str) -> bytes:
        return hashlib.sha256(self._salt + value.encode()).digest()

    def uuid(self, value: str) -> str:
        """Of "GPU-..." and "MIG-..." the prefix stays."""
        return f"{value[:4]}{UUID(bytes=self._digest(value)[:16], version=4)}"

    def digits(self, value: str) -> str:
        number = int.from_bytes(self._digest(value), "big")
        return str(number)[: len(value)]

    def octets(self, values: list[int]) -> list[int]:
        """All zeros mean that there is no id, and stay."""
        return list(self._digest(repr(values))[: len(values)]) if any(values) else values


class _Recording:
    def __init__(self, nvml: Nvml, pseudonyms: _Pseudonyms | None) -> None:
        self._nvml = nvml
        self._pseudonyms = pseudonyms
        self._microseconds: dict[str, list[float]] = {}
        self._handles: dict[int, Any] = {}

    def document(self) -> dict[str, Any]:
        """The profile. `microseconds` (median, maximum) is for people; nothing replays it."""
        gpus = [self._gpu(index) for index in range(self._nvml.count())]
        for index in self._handles:
            gpus[index] |= self._pairs(index)
        return {
            "source": "recorded by mcp-gpu record"
            + (" from a simulated node" if self._nvml.simulated else ""),
            "recorded": True,
            "recorded_at": time.time(),
            "system": self._system(),
            "gpu": {},
            "gpus": gpus,
            "microseconds": {
                call: [round(statistics.median(all_), 1), round(max(all_), 1)]
                for call, all_ in sorted(self._microseconds.items())
            },
        }

    def _ask(
        self, call: str, gpu_index: int | None, *args: Any, structs: tuple[str, ...] = ()
    ) -> Any:
        """The answer in the profile's form, or {"error": code}."""
        begun = time.perf_counter()
        try:
            if structs:
                answer: Any = self._nvml.fill(call, structs, gpu_index, *args)
            else:
                answer = self._nvml.call(call, gpu_index, *args)
        except NvmlError as error:
            try:
                error.raise_beyond_field()
            except GpuUnreadable:
                pass  # Its other answers will say so, too.
            return {"error": error.code}
        finally:
            took = (time.perf_counter() - begun) * 1e6
            self._microseconds.setdefault(call, []).append(took)
        return self._plain(answer)

    def _plain(self, answer: Any) -> Any:
        if isinstance(answer, Structure):
            return dict(self._members(answer))
        if isinstance(answer, bytes):
            return answer.decode(errors="surrogateescape")
        return list(answer) if isinstance(answer, tuple) else answer

    def _members(self, struct: Structure) -> Iterator[tuple[str, Any]]:
        for name, *_ in struct._fields_:
            if name == "version":
                yield name, int(struct.version) >> 24
                continue
            data = raw_bytes(struct, name)
            try:
                value = getattr(struct, name)
            except UnicodeDecodeError:
                value = data
            if isinstance(value, (int, float)):
                yield name, value
            elif isinstance(value, Array):
                yield name, self._hidden(name, list(data))
            elif len(data) == 1:
                yield name, data[0]
            elif name == "ibGuid":
                yield name, self._hidden(name, list(data))
            else:
                text = data.split(b"\0", 1)[0].decode(errors="surrogateescape")
                yield name, self._hidden(name, text)

    def _hidden(self, name: str, value: Any) -> Any:
        if self._pseudonyms is None or name not in _IDENTIFYING or not value:
            return value
        if isinstance(value, str):
            return self._pseudonyms.digits(value)
        return self._pseudonyms.octets(value)

    def _identity(self, answers: dict[str, Any]) -> None:
        if self._pseudonyms is None:
            return
        changes: tuple[tuple[str, Callable[[str], str]], ...] = (
            ("nvmlDeviceGetUUID", self._pseudonyms.uuid),
            ("nvmlDeviceGetSerial", self._pseudonyms.digits),
        )
        for call, change in changes:
            if isinstance(answers.get(call), str):
                answers[call] = change(answers[call])

    def _system(self) -> dict[str, Any]:
        calls = ("DriverVersion", "NVMLVersion", "CudaDriverVersion_v2", "ConfComputeState")
        answers = {
            f"nvmlSystemGet{call}": self._ask(f"nvmlSystemGet{call}", None) for call in calls
        }
        branch = self._ask("nvmlSystemGetDriverBranch", None)
        answers["nvmlSystemGetDriverBranch"] = branch.get("branch", branch)
        return answers

    def _gpu(self, index: int) -> dict[str, Any]:
        try:
            handle = self._nvml.handle(index)
        except NvmlUnavailable:
            raise
        except NvmlError as error:
            return {"nvmlDeviceGetHandleByIndex_v2": {"error": error.code}}
        self._handles[index] = handle
        answers: dict[str, Any] = {}
        support = self._ask("nvmlGpmQueryDeviceSupport", index, handle)
        answers["nvmlGpmQueryDeviceSupport"] = {k: v for k, v in support.items() if k != "version"}
        samples = self._samples() if support.get("isSupportedDevice") else ()
        for memory in samples[:1]:
            self._ask("nvmlGpmSampleGet", index, handle, memory)
        for name in _PLAIN:
            answers[f"nvmlDeviceGet{name}"] = self._ask(f"nvmlDeviceGet{name}", index, handle)
        for name, structs in _STRUCTS.items():
            call = f"nvmlDeviceGet{name}"
            answers[call] = self._ask(call, index, handle, structs=structs)
        for name, keys in _BY_KEY.items():
            answers[f"nvmlDeviceGet{name}"] = self._by_key(
                f"nvmlDeviceGet{name}", index, handle, keys
            )
        answers.update(self._special(index, handle))
        self._identity(answers)
        if samples:  # about a second after the first was taken
            self._ask("nvmlGpmSampleGet", index, handle, samples[1])
            answers["nvmlGpmMetricsGet"] = self._metrics(index, *samples)
        return answers

    def _samples(self) -> tuple[Any, ...]:
        """Memory for two samples, or none."""
        try:
            return tuple(self._nvml.call("nvmlGpmSampleAlloc", None) for _ in range(2))
        except NvmlError:
            return ()

    def _metrics(self, index: int, older: Any, newer: Any) -> dict[str, Any]:
        """By the metric's number."""
        ids = list(METRICS.values())
        try:
            values: list[float | NvmlError] = self._nvml.gpm_metrics(index, older, newer, ids)
        except NvmlError as error:
            values = [error] * len(ids)
        finally:
            for memory in (older, newer):
                self._ask("nvmlGpmSampleFree", None, memory)
        return {
            str(metric): {"error": int(value.code)} if isinstance(value, NvmlError) else value
            for metric, value in zip(ids, values, strict=True)
        }

    def _pairs(self, index: int) -> dict[str, Any]:
        """What a GPU says of each other one."""
        ancestor, status = "nvmlDeviceGetTopologyCommonAncestor", "nvmlDeviceGetP2PStatus"
        answers: dict[str, Any] = {ancestor: {}, status: {}}
        for peer, handle in self._handles.items():
            if peer == index:
                continue
            both = (self._handles[index], handle)
            answers[ancestor][str(peer)] = self._ask(ancestor, index, *both)
            for capability in range(len(CAPABILITIES)):
                key = f"{peer},{capability}"
                answers[status][key] = self._ask(status, index, *both, capability)
        return answers

    def _by_key(
        self, call: str, index: int, handle: Any, keys: Iterable[tuple[int, ...]]
    ) -> dict[str, Any]:
        return {",".join(map(str, key)): self._ask(call, index, handle, *key) for key in keys}

    def _special(self, index: int, handle: Any) -> Iterator[tuple[str, Any]]:
        """Functions whose arguments or results have a shape of their own."""
        memory = self._ask("nvmlDeviceGetMemoryInfo", index, handle, 0x02000028)
        yield "nvmlDeviceGetMemoryInfo_v2", memory
        if "error" in memory:  # as before R510
            yield (
                "nvmlDeviceGetMemoryInfo",
                self._ask("nvmlDeviceGetMemoryInfo", index, handle),
            )
            yield (
                "nvmlDeviceGetCurrentClocksThrottleReasons",
                self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", index, handle),
            )
        new = self._ask("nvmlDeviceGetTemperatureV", index, handle, 0)
        old = self._ask("nvmlDeviceGetTemperature", index, handle, 0)
        yield "nvmlDeviceGetTemperature", {"0": old if isinstance(new, dict) else new}
        if isinstance(new, dict):  # as before R570
            yield "nvmlDeviceGetTemperatureV", new
        for name, members in _MEMBERS.items():
            call = f"nvmlDeviceGet{name}"
            answer = self._ask(call, index, handle)
            if not isinstance(answer, dict):
                values = answer if isinstance(answer, list) else [answer]
                answer = dict(zip(members, values, strict=True))
            yield call, answer
        for call in ("nvmlDeviceGetCpuAffinityWithinScope", "nvmlDeviceGetMemoryAffinity"):
            mask = self._ask(call, index, handle, _MASK_WORDS, 0)
            yield call, mask if isinstance(mask, dict) else bit_list(mask)
        remote = "nvmlDeviceGetNvLinkRemotePciInfo"
        yield f"{remote}_v2", self._by_key(remote, index, handle, product(range(_MAX_LINKS)))
        for kind in ("Compute", "Graphics", "MPSCompute"):
            # Whose processes they are is nobody's business; that the call works is.
            running = self._ask(f"nvmlDeviceGet{kind}RunningProcesses_v3", index, handle)
            call = f"nvmlDeviceGet{kind}RunningProcesses_v3"
            yield call, running if isinstance(running, dict) else []
        fields = self._fields(index, handle)
        yield "fields", fields
        links = fields.get(_LINK_COUNT)
        if isinstance(links, int) and not isinstance(fields.get("161"), int):
            keys = product(range(links), range(3))
            call = "nvmlDeviceGetNvLinkErrorCounter"
            yield call, self._by_key(call, index, handle, keys)
        yield "nvmlDeviceGetMigDeviceHandleByIndex", self._mig(index, handle)

    def _fields(self, index: int, handle: Any) -> dict[str, Any]:
        wanted = [(field, 0) for field in FIELD_IDS] + [(field, 1) for field in _MODULE_FIELDS]
        answers = dict(self._field_values(index, handle, wanted))
        links = answers.get(_LINK_COUNT)
        count = links if isinstance(links, int) else 0
        by_link = [(field, link) for link in range(1, count) for field in sorted(PER_LINK)]
        of_links = {
            key: answer
            for key, answer in self._field_values(index, handle, by_link)
            # The first link's answer stands for all that do not differ.
            if answer != answers[key.partition(",")[0]]
        }
        not_supported = {"error": Code.NOT_SUPPORTED}
        answers = {key: answer for key, answer in answers.items() if answer != not_supported}
        return answers | of_links

    def _field_values(
        self, index: int, handle: Any, wanted: list[tuple[int, int]]
    ) -> Iterator[tuple[str, Any]]:
        """By "id", or "id,scope"."""
        for start in range(0, len(wanted), _FIELD_BATCH):
            batch = wanted[start : start + _FIELD_BATCH]
            try:
                values: list[float | NvmlError] = self._nvml.field_values(index, handle, batch)
            except NvmlError as error:
                values = [error] * len(batch)
            for (field, scope), value in zip(batch, values, strict=True):
                key = f"{field},{scope}" if scope else str(field)
                yield key, {"error": int(value.code)} if isinstance(value, NvmlError) else value

    def _mig(self, index: int, handle: Any) -> list[dict[str, Any] | None]:
        count = self._ask("nvmlDeviceGetMaxMigDeviceCount", index, handle)
        devices: list[dict[str, Any] | None] = []
        for number in range(count if isinstance(count, int) else 0):
            try:
                mig = self._nvml.call("nvmlDeviceGetMigDeviceHandleByIndex", index, handle, number)
            except NvmlError:
                devices.append(None)
                continue
            answers = {
                f"nvmlDeviceGet{n}": self._ask(f"nvmlDeviceGet{n}", index, mig) for n in _MIG
            }
            answers["nvmlDeviceGetMemoryInfo_v2"] = self._ask(
                "nvmlDeviceGetMemoryInfo", index, mig, 0x02000028
            )
            self._identity(answers)
            devices.append(answers)
        return devices

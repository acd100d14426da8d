"""What a dead program's last words say: lines of its log, and its termination message.

The words are a stranger's: only lines that say something known are told, cut, quoted, and without
what looks like a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mcp_gpu.workloads.failure.model import Category, Cause, Fact, Truth, Weight
from mcp_gpu.workloads.failure.scene import Scene
from mcp_gpu.workloads.failure.secrets import without_secrets
from transports.text import quoted

__all__ = ["last_words"]

LINES_TOLD: Final = 3
"""Of one kind."""

LINE_CHARS: Final = 240

LINE_SCANNED_CHARS: Final = 1_024
"""Looked at of one line: there may be hundreds."""


@dataclass(frozen=True, slots=True)
class _Saying:
    pattern: re.Pattern[str]
    category: Category
    not_your_code: Truth
    says: str
    first_step: str
    rests_on_gpu: bool = False
    weight: Weight = Weight.SAID


def _saying(pattern: str, *more: object, **options: object) -> _Saying:
    """A pattern of two parts takes the first place of the first, `\\A(?>.*?first).*?second`: its
    time is proportional to the line, whatever that is."""
    return _Saying(re.compile(pattern), *more, **options)  # type: ignore[arg-type]


_SAYINGS: Final = (
    _saying(
        r"uncorrectable ECC error|ECCUncorrectable|ECC_UNCORRECTABLE|cudaErrorContained"
        r"|CUDA_ERROR_CONTAINED",
        "gpu_memory_error", "unknown",
        "The program met an ECC error that could not be corrected.",
        "Look at get_gpu_health and analyze_xid_errors of the node.",
        weight=Weight.HINT,
    ),
    _saying(
        r"uncorrectable NVLink error|NVLINK_UNCORRECTABLE|NvlinkUncorrectable",
        "nvlink", "unknown",
        "The program met an error of NVLink that could not be corrected.",
        "Look at get_gpu_health and analyze_xid_errors of the node.",
        weight=Weight.HINT,
    ),
    _saying(
        r"GPU is lost|fallen off the bus|Unable to determine the device handle for GPU"
        r"|CUDA_ERROR_DEVICE_UNAVAILABLE|no CUDA-capable device is detected",
        "gpu_hardware", "unknown",
        "The program could not reach its GPU.",
        "Look at get_gpu_health and analyze_xid_errors of the node.",
        weight=Weight.HINT,
    ),
    _saying(
        r"[Dd]river/library version mismatch|SYSTEM_DRIVER_MISMATCH|nvidia-container-cli: "
        r"|unsupported display driver / cuda driver combination|NVML_ERROR_LIB_RM_VERSION",
        "driver", "true",
        "The driver's kernel module and its libraries are of two versions.",
        "Drain the node and reboot it, or reload the driver; then start the pod anew.",
    ),
    _saying(
        r"driver version is insufficient for CUDA runtime|cudaErrorInsufficientDriver"
        r"|forward compatibility was attempted on non supported HW"
        r"|driver on your system is too old",
        "driver", "true",
        "The node's driver is too old for the CUDA of the image.",
        "Run it where the driver is new enough, update the driver, or build the image with an "
        "older CUDA.",
    ),
    _saying(
        r"CUDA_ERROR_SYSTEM_NOT_READY|system not yet initialized",
        "driver", "true",
        "CUDA found the system not ready: the fabric manager has not brought NVSwitch up.",
        "Look at the fabric manager of the node and at get_gpu_health.",
    ),
    _saying(
        r"CUDA out of memory|OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
        r"|RESOURCE_EXHAUSTED: Out of memory|CUBLAS_STATUS_ALLOC_FAILED"
        r"|CUDA error: out of memory",
        "out_of_memory_gpu", "false",
        "The GPU's memory did not suffice.",
        "Make batches, sequences or the model's shards smaller, or use gradient checkpointing; "
        "see get_gpu_processes for others on the same GPU.",
    ),
    _saying(
        r"insufficient shared memory|unable to open shared memory object"
        r"|\A(?>.*?unable to mmap ).*? bytes from file </torch",
        "config", "true",
        "Shared memory of the container is full.",
        "Mount an emptyDir of medium Memory at /dev/shm.",
    ),
    _saying(
        r"No space left on device",
        "config", "unknown",
        "A disk, or shared memory, where the program writes is full.",
        "See what fills it: the program's own files, or too small a volume; for shared memory "
        "mount an emptyDir of medium Memory at /dev/shm.",
    ),
    _saying(
        r"\A(?>.*?DataLoader worker ).*?killed by signal: Killed|Cannot allocate memory"
        r"|std::bad_alloc|^MemoryError",
        "out_of_memory_host", "false",
        "The program ran out of host memory.",
        "Raise the memory limit or use fewer data loader workers.",
    ),
    _saying(
        r"collective operation timeout|Watchdog caught|ncclRemoteError|remote process exited"
        r"|ncclSystemError|DistBackendError|DistNetworkError|Connection closed by (?:remote )?peer"
        r"|\A(?>.*?NCCL error).*?unhandled system error|\A(?>.*?store->get\().*?timeout"
        r"|\A(?>.*?NCCL WARN ).*?(?:[Tt]ime(?:d )?out|Connection (?:refused|reset|closed))",
        "communication", "unknown",
        "A collective operation timed out or lost a peer: another rank, a link or the network.",
        "Find the rank that failed or fell silent first and look at its node and its GPUs; this "
        "one only waited for it.",
    ),
    _saying(
        r"illegal memory access|CUDA_ERROR_ILLEGAL|device-side assert|misaligned address"
        r"|illegal instruction was encountered|unspecified launch failure"
        r"|CUDA_ERROR_LAUNCH_FAILED|CUDA_ERROR_ASSERT|\A(?>.*?an illegal ).*? was encountered",
        "your_code", "false",
        "A kernel of the program did what it may not on the GPU.",
        "Run it with CUDA_LAUNCH_BLOCKING=1 or under compute-sanitizer to find the kernel.",
        rests_on_gpu=True,
    ),
    _saying(
        r"no kernel image is available|invalid device function|CUDA_ERROR_NO_BINARY_FOR_GPU",
        "your_code", "false",
        "The program has not been built for this kind of GPU.",
        "Build it (TORCH_CUDA_ARCH_LIST, -gencode) for the GPU's compute capability.",
    ),
    _saying(
        r"^\s*(?:[\w.]+\.)?(?:[A-Z]\w*(?:Error|Exception)|KeyboardInterrupt|panic|AssertionError)"
        r"(?::| |$)|Segmentation fault|^thread '.*' panicked|^panic: ",
        "your_code", "false",
        "The program ended with an error of its own.",
        "Read the log above that line: kubectl logs.",
        rests_on_gpu=True,
    ),
)  # fmt: skip
"""The most telling first: what comes later is often a consequence of it."""

_OF_ITS_OWN: Final = len(_SAYINGS) - 1


_CONSEQUENCE: Final = re.compile(
    r"ChildFailedError|CalledProcessError|BrokenPipeError|ConnectionResetError|EOFError"
    r"|KeyboardInterrupt|DataLoader worker|NCCL|communicator was aborted"
)
"""Errors that one program meets since another has failed before it."""

_CHAINED: Final = re.compile(
    r"During handling of the above exception|was the direct cause of the following exception"
)


def last_words(scene: Scene) -> Iterator[Cause]:
    """What log and termination message say; each line counts once, for the first that it fits.

    Lines before the error that the program ended with are hints: it went on after them.
    """
    told: dict[int, list[tuple[str, str]]] = {}
    latest: dict[int, int] = {}
    chained = last = -1
    for number, (source, line) in enumerate(_lines(scene)):
        if _CHAINED.search(line):
            chained = number
        for place, saying in enumerate(_SAYINGS):
            if saying.pattern.search(line):
                told.setdefault(place, []).append((source, line))
                latest[place] = number
                if place == _OF_ITS_OWN and not _CONSEQUENCE.search(line):
                    last = number
                break
    for place, lines in sorted(told.items()):
        saying = _SAYINGS[place]
        # An error raised while another was handled is no end of its own.
        passed = latest[place] < last and not latest[place] < chained < last
        # Of errors of its own the last one is what ended it; of the others the first.
        chosen = lines[-1:] if place == _OF_ITS_OWN else lines[:LINES_TOLD]
        yield Cause(
            Weight.HINT if passed and place != _OF_ITS_OWN else saying.weight,
            saying.category,
            saying.not_your_code,
            "medium",
            saying.says,
            saying.first_step + _by_owner(scene, saying),
            tuple(_fact(source, line) for source, line in chosen),
            rests_on_gpu=saying.rests_on_gpu,
        )


def _by_owner(scene: Scene, saying: _Saying) -> str:
    """Where other ranks are looked for, if that has not been done."""
    if saying.category != "communication" or not scene.owner_said:
        return ""
    if not scene.siblings:
        return f" Ask for {scene.owner_said} by its name."
    return f" Of {scene.owner_said} no pod has died before it: look for one that still runs."


def _lines(scene: Scene) -> Iterator[tuple[str, str]]:
    death = scene.death
    if death is None:
        return
    for line in _scanned(scene.log or ()):
        yield f"log of {death.container}", line
    for line in _scanned(death.message.splitlines()):
        yield f"termination message of {death.container}", line


def _scanned(lines: Sequence[str]) -> Iterable[str]:
    return dict.fromkeys(line[:LINE_SCANNED_CHARS] for line in lines)


def _fact(source: str, line: str) -> Fact:
    return Fact.of(source, quoted(without_secrets(line.strip()), LINE_CHARS))

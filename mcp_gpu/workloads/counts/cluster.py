"""What the cluster believes of a node against what its driver says: device plugin, label, slices.

Capacity counts devices, not GPUs: with time-slicing or MPS each GPU is several replicas, with MIG
each instance is one. Where no label says how many devices a GPU is made into, every number that
could be right is taken for right; where one does, a number that only another plugin's sharing could
make is told with low confidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mcp_gpu.gpu.health.model import Confidence
from mcp_gpu.workloads.counts.hardware import fallen
from mcp_gpu.workloads.counts.model import (
    COUNT_LABEL,
    GPU_RESOURCE,
    MIG_PREFIX,
    Advertised,
    Board,
    Counted,
    Disagreement,
    Driver,
)

__all__ = ["disagreements", "replicas"]

SHARED = f"{GPU_RESOURCE}.shared"
REPLICAS_LABEL = f"{GPU_RESOURCE}.replicas"
PRODUCT_LABEL = f"{GPU_RESOURCE}.product"
WORKLOAD_LABEL = f"{GPU_RESOURCE}.workload.config"
GKE_CLIENTS_LABEL = "cloud.google.com/gke-max-shared-clients-per-gpu"

MOST_GPUS = 16
"""Of one machine: more whole devices than that are made by sharing."""

_PERHAPS_SHARED = (
    " Or another plugin shares the GPUs otherwise than the labels say: then this is as it should "
    "be."
)

_RESTART = (
    "Restart the device plugin's pod on this node (kubectl delete pod, its DaemonSet makes it "
    "anew): it looks at GPUs when it starts."
)


def disagreements(counted: Counted) -> Iterator[Disagreement]:
    """What Kubernetes counts, beside the driver."""
    seen = counted.advertised
    if seen is not None:
        refused = list(_refused_layout(seen))
        yield from refused
        yield from _unhealthy(counted, seen)
        if not refused:
            yield from _absent(counted, seen)
            yield from _outdated(counted, seen)
        yield from _stale_label(counted, seen)
    yield from _slices(counted)


def replicas(labels: Mapping[str, str]) -> int | None:
    """How many devices each GPU is made into; None: not known."""
    for label in (REPLICAS_LABEL, GKE_CLIENTS_LABEL):
        if (number := _number(labels.get(label))) is not None:
            return max(number, 1)
    return 1 if COUNT_LABEL in labels else None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else None


def _whole(resources: Mapping[str, int]) -> int:
    return resources.get(GPU_RESOURCE, 0) + resources.get(SHARED, 0)


def _mig(resources: Mapping[str, int]) -> dict[str, int]:
    """Profile to devices."""
    return {
        name.removeprefix(MIG_PREFIX).removesuffix(".shared"): count
        for name, count in resources.items()
        if name.startswith(MIG_PREFIX) and count
    }


def _instances(boards: tuple[Board, ...]) -> dict[str, int]:
    """The device plugin's name of a profile to how many instances there are."""
    found: dict[str, int] = {}
    for board in boards:
        for profile, count in board.profiles.items():
            name = profile.replace("+", ".")
            found[name] = found.get(name, 0) + count
    return found


def _refused_layout(seen: Advertised) -> Iterator[Disagreement]:
    product = seen.labels.get(PRODUCT_LABEL, "")
    if not product.endswith("MIG-INVALID"):
        return
    yield Disagreement(
        code="mig_layout_refused",
        gpus=(),
        title="The device plugin does not take this node's MIG layout.",
        cause="Its strategy for MIG is `single`, which takes nothing but GPUs that are all cut "
        "into instances of one profile.",
        evidence=(f"label {PRODUCT_LABEL}={product}",),
        fix="Cut all GPUs alike (label nvidia.com/mig.config), or set the strategy to `mixed`.",
        confidence="high",
    )


def _unhealthy(counted: Counted, seen: Advertised) -> Iterator[Disagreement]:
    """Devices that the plugin calls unhealthy: it is the one thing that takes a device from what is
    allocatable. It listens to Xids, and never calls a device healthy again by itself."""
    # A kubelet that withholds all of a resource says 0; what is not told is not withheld.
    fewer = {
        name: (seen.allocatable[name], count)
        for name, count in seen.capacity.items()
        if seen.allocatable.get(name, count) < count
    }
    if not fewer:
        return
    told = ", ".join(f"{name}: {now} of {all_} allocatable" for name, (now, all_) in fewer.items())
    missing = sum(all_ - now for now, all_ in fewer.values())
    devices = f"{missing} device{'' if missing == 1 else 's'}"
    driver = counted.driver
    if driver is None or driver.count is None:
        why = counted.agent_why or (driver.why if driver is not None else "") or "NVML is silent"
        yield Disagreement(
            code="device_unhealthy",
            gpus=(),
            title=f"The device plugin has marked {devices} unhealthy.",
            cause=f"Which GPU, and whether it is still ill, is not known: {why}.",
            evidence=(told,),
            fix="Look at the GPUs first (get_gpu_health once the agent answers). If they are well, "
            f"the plugin has not noticed. {_RESTART}",
            confidence="medium",
        )
        return
    off = {board.index for board in fallen(counted)}
    ill = [board.index for board in driver.boards if board.index in off or board.sound is False]
    gone = max((driver.most or 0) - driver.count, 0)
    if ill or gone:
        which = f"GPU {', '.join(map(str, ill))}" if ill else f"{gone} GPU(s) that NVML lost"
        yield Disagreement(
            code="device_unhealthy",
            gpus=tuple(ill),
            title=f"The device plugin has marked {devices} unhealthy, as the agent sees it.",
            cause=f"The health of {which}: the plugin withholds what the driver calls broken.",
            evidence=(told, f"ill by the agent's verdict: {which}"),
            fix="Mend the GPU first (its finding says how). The plugin does not see that it is "
            f"well again. {_RESTART}",
            confidence="medium",
        )
        return
    if missing > 1 and not any(seen.allocatable.get(name) for name in seen.capacity):
        # A real kubelet does so when the plugin's socket closes: for five minutes, then it says 0.
        yield Disagreement(
            code="device_plugin_absent",
            gpus=(),
            title=f"All {devices} are withheld and NVML calls all GPUs well.",
            cause="The device plugin on this node has ended: the kubelet then calls all of its "
            "devices unhealthy at once. Or the plugin itself has marked every one of them.",
            evidence=(told, f"NVML counts {driver.count}, none lost and none failed"),
            fix="Look at the device plugin's pod on this node. If it runs, see what happened "
            f"(analyze_xid_errors). {_RESTART}",
            confidence="medium",
        )
        return
    unsure = [board.index for board in driver.boards if board.sound is None]
    yield Disagreement(
        code="device_never_recovered",
        gpus=(),
        title=f"The device plugin has marked {devices} unhealthy and NVML calls all GPUs well.",
        cause="The plugin marks a device at an Xid or an NVML error and never takes it back: the "
        "GPU recovered, or the error was a program's. Pods are not given it until the plugin "
        "starts again.",
        evidence=(
            told,
            f"NVML counts {driver.count}, none lost and none failed"
            + (f"; GPU {', '.join(map(str, unsure))} not judged" if unsure else ""),
        ),
        fix=f"See what happened (analyze_xid_errors). {_RESTART}",
        confidence="medium" if unsure else "high",
    )


def _absent(counted: Counted, seen: Advertised) -> Iterator[Disagreement]:
    """GPUs that nobody hands out."""
    driver = counted.driver
    there = driver.count if driver is not None else None
    if driver is not None and driver.for_machines:
        return
    registered = any(name.startswith(GPU_RESOURCE) for name in seen.capacity)
    if not there and not (there is None and registered):
        return
    if any(seen.capacity.values()) or seen.labels.get(WORKLOAD_LABEL, "container") != "container":
        return
    sliced = counted.sliced
    if sliced is not None and sliced.published:
        return
    evidence = [
        f"NVML counts {there}" if there else f"NVML: {counted.agent_why or 'not known'}",
        "capacity: " + ("nvidia.com/gpu 0" if registered else "no resource of NVIDIA's"),
    ]
    if sliced is None:
        evidence.append(f"ResourceSlices: not known ({counted.slices_why or 'not read'})")
    else:
        others = f"; drivers that publish here: {', '.join(sliced.drivers)}"
        evidence.append("no ResourceSlice has GPUs of it" + (others if sliced.drivers else ""))
    yield Disagreement(
        code="device_plugin_absent",
        gpus=(),
        title="The node has GPUs and nobody hands them to pods.",
        cause="The device plugin is not running on this node"
        + (", or no longer: the kubelet remembers its resource" if registered else "")
        + (
            ", unless Dynamic Resource Allocation hands them out, which could not be read."
            if sliced is None
            else ", nor is a driver of Dynamic Resource Allocation that publishes GPUs."
        ),
        evidence=tuple(evidence),
        fix="Look at the device plugin's pod on this node (its DaemonSet's node selector and "
        "tolerations, then its log: it needs NVIDIA's runtime).",
        confidence="medium" if sliced is None or there is None else "high",
    )


def _outdated(counted: Counted, seen: Advertised) -> Iterator[Disagreement]:
    """Devices that cannot be made of the GPUs that there are."""
    driver = counted.driver
    if driver is None or not driver.count or not driver.instances_known:
        return
    whole, cut = _whole_outdated(driver, seen), list(_mig_outdated(driver, seen))
    if whole is None and not cut:
        return
    confidence: Confidence = "medium" if whole is None or cut else whole[1]
    yield Disagreement(
        code="device_plugin_outdated",
        gpus=(),
        title="What the device plugin hands out is not what the driver has.",
        cause="The plugin looks at GPUs when it starts: one has come, gone or been cut anew since, "
        "or the plugin's container has only some of them."
        + (_PERHAPS_SHARED if confidence == "low" else ""),
        evidence=(*(() if whole is None else whole[:1]), *cut),
        fix=f"Mend what is wrong with the GPUs first, if anything is. {_RESTART}",
        confidence=confidence,
    )


def _bases(driver: Driver) -> set[int]:
    """How many whole devices the GPUs may be made into before they are shared."""
    count = driver.count or 0
    cut = [board for board in driver.boards if board.mig]
    instances = sum(_instances(driver.boards).values())
    lost = sum(board.lost for board in driver.boards)
    bases = {count, count - lost}
    if cut:
        bases |= {instances, count - len(cut), count - len(cut) + instances}
    return bases - {0}


def _whole_outdated(driver: Driver, seen: Advertised) -> tuple[str, Confidence] | None:
    """What contradicts what, and how surely."""
    whole = _whole(seen.capacity)
    if not whole or driver.count is None:
        return None
    bases, shares = _bases(driver), replicas(seen.labels)
    if whole in {base * (shares or 1) for base in bases}:
        return None
    confidence: Confidence = "medium"
    if any(whole % base == 0 for base in bases) and not _were_as_many(whole, shares, driver, seen):
        # Others share GPUs, too, and say so nowhere. Without a label any multiple may be theirs;
        # beside one those that are more than a machine could have had.
        if shares is None or whole > MOST_GPUS * shares:
            return None
        confidence = "low"
    each = f" at {shares} replicas each" if shares is not None and shares > 1 else ""
    return f"capacity: {whole} of {GPU_RESOURCE}{each}; NVML counts {driver.count}", confidence


def _were_as_many(whole: int, shares: int | None, driver: Driver, seen: Advertised) -> bool:
    """Whether somebody has counted the GPUs that the capacity is made of: the agent, before one was
    lost, or GPU feature discovery."""
    if shares is None:
        return False
    label = _number(seen.labels.get(COUNT_LABEL))
    return whole in {each * shares for each in (driver.most, label) if each}


def _mig_outdated(driver: Driver, seen: Advertised) -> Iterator[str]:
    handed, there = _mig(seen.capacity), _instances(driver.boards)
    if not handed or any(name.startswith(("unknown", "1c.", "2c.")) for name in there):
        return
    for name in sorted(handed.keys() | there.keys()):
        shares = _number(seen.labels.get(f"{MIG_PREFIX}{name}.replicas"))
        have, wanted = handed.get(name, 0), there.get(name, 0) * (shares or 1)
        if have != wanted and not (shares is None and wanted and have and have % wanted == 0):
            yield f"capacity: {have} of {MIG_PREFIX}{name}; the driver has {wanted}"


def _stale_label(counted: Counted, seen: Advertised) -> Iterator[Disagreement]:
    label = _number(seen.labels.get(COUNT_LABEL))
    driver = counted.driver
    if label is None or driver is None or driver.count is None or not driver.instances_known:
        return
    cut = any(board.mig for board in driver.boards)
    if label in _bases(driver) | {driver.count} or (cut and not label):
        return
    yield Disagreement(
        code="gfd_label_stale",
        gpus=(),
        title=f"Label {COUNT_LABEL} says {label} and NVML counts {driver.count}.",
        cause="GPU feature discovery wrote it when it last could, and has not since: a GPU has "
        "come or gone, or discovery is not running. Who selects nodes by it is misled.",
        evidence=(f"{COUNT_LABEL}={label}", f"NVML counts {driver.count}"),
        fix="Restart GPU feature discovery's pod on this node once the GPUs are as they should be; "
        "without it, remove the label.",
        confidence="high",
    )


def _slices(counted: Counted) -> Iterator[Disagreement]:
    sliced, driver = counted.sliced, counted.driver
    if sliced is None or not sliced.published:
        return
    if sliced.missing:
        yield Disagreement(
            code="resource_slices_incomplete",
            gpus=(),
            title="Some of the node's ResourceSlices are missing.",
            cause="The DRA driver is publishing anew, or has failed halfway; the scheduler gives "
            "out none of a pool that is not whole.",
            evidence=sliced.missing,
            fix="If it stays so: restart the DRA driver's kubelet plugin on this node.",
            confidence="medium",
        )
        return
    if driver is None or driver.count is None or not driver.instances_known:
        return
    off = {board.index for board in fallen(counted)}
    # A GPU in MIG mode without instances has nothing to publish.
    well = [
        board
        for board in driver.boards
        if board.uuid and board.index not in off and (not board.mig or board.profiles)
    ]
    # Not every device says which GPU it is.
    named = len(sliced.uuids) == sliced.gpus
    missing = [board for board in well if named and board.uuid not in sliced.uuids]
    nameless = sum(board.uuid is None for board in driver.boards)
    strange = sorted(sliced.uuids - {board.uuid for board in driver.boards})[nameless:]
    if not missing and not strange and len(well) <= sliced.gpus:
        return
    evidence = [f"ResourceSlices have {sliced.gpus} GPUs; NVML counts {driver.count}"]
    evidence += [f"not published: {_named(missing)}"] if missing else []
    evidence += [f"published and not NVML's: {', '.join(strange)}"] if strange else []
    yield Disagreement(
        code="resource_slices_stale",
        gpus=tuple(board.index for board in missing),
        title="The node's ResourceSlices and NVML do not name the same GPUs.",
        cause="The DRA driver published when it started, and a GPU has come, gone or recovered "
        "since; or it withholds one that it calls unhealthy.",
        evidence=tuple(evidence),
        fix="Mend what is wrong with the GPUs first, if anything is; then restart the DRA driver's "
        "kubelet plugin on this node.",
        confidence="medium",
    )


def _named(boards: list[Board]) -> str:
    return ", ".join(f"GPU {board.index} ({board.uuid or 'UUID unknown'})" for board in boards)

"""What an agent answers from: its settings put to work, and nothing started yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.health.model import GpuVerdict
from mcp_gpu.gpu.history import Past
from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.recorder.file import File
from mcp_gpu.gpu.recorder.recorder import Recorder
from mcp_gpu.node import syslog
from mcp_gpu.node.boot import Boot
from mcp_gpu.node.gpu_access import explain
from mcp_gpu.node.holdings import Attribution, Holding
from mcp_gpu.node.kmsg import opener
from mcp_gpu.node.occupants import Occupants
from mcp_gpu.node.pod_resources import PodResources
from mcp_gpu.node.process_pods import ProcessPods
from mcp_gpu.node.sight import Lookout
from mcp_gpu.node.simulated_processes import SimulatedProcesses
from mcp_gpu.node.watch import XidWatch
from mcp_gpu.settings.agent import KERNEL_LOG, AgentSettings
from mcp_gpu.settings.base import SettingError
from mcp_gpu.tools.agent import Sources

if TYPE_CHECKING:
    from mcp_gpu.gpu.simulator import Node

__all__ = ["make_sources"]


def make_sources(settings: AgentSettings) -> Sources:
    """What reads this node's GPUs and what surrounds them.

    Raises:
        SettingError: the fleet file of a simulated node is wrong, or has no such node.
    """
    library = None if settings.nvml_library is None else str(settings.nvml_library)
    simulated = _simulated(settings)
    watch = _watch(settings, library, simulated)
    recorder = _recorder(settings, watch, lambda: collector.past())
    collector = Collector(
        _nvml(settings, library),
        fast_seconds=settings.fast_seconds,
        slow_seconds=settings.slow_seconds,
        events=watch.events,
        told=recorder.feed,
    )
    # Nobody in this machine's /proc is on a simulated GPU.
    whose = ProcessPods() if simulated is None else SimulatedProcesses(simulated)
    return Sources(
        node=settings.node_name,
        collector=collector,
        recorder=recorder,
        watch=watch,
        lookout=Lookout(
            lambda: collector.snapshot, watch.sources, pod_resources=settings.pod_resources_socket
        ),
        occupants=Occupants(collector, whose),
        attribution=_holding(settings, collector, recorder, watch, simulated),
        simulated=simulated,
        expected_gpus=settings.expected_gpus,
    )


def _holding(
    settings: AgentSettings,
    collector: Collector,
    recorder: Recorder,
    watch: XidWatch,
    simulated: Node | None,
) -> Holding:
    if simulated is not None and "pod_resources_socket" not in settings.model_fields_set:
        # This machine's kubelet has given nobody a simulated node's GPUs. Whoever names one means
        # that one.
        from mcp_gpu.node.simulated_holdings import SimulatedHoldings

        return SimulatedHoldings(simulated, lambda: collector.snapshot)
    return Attribution(
        lambda: collector.snapshot,
        PodResources(settings.pod_resources_socket),
        settings.device_plugin_checkpoint,
        pod=settings.pod_name,
        told=recorder.held,
        alarms=lambda: (watch.log.added, collector.snapshot.state),
    )


def _nvml(settings: AgentSettings, library: str | None) -> Nvml:
    if settings.simulate is not None:
        # This machine's drivers and devices tell nothing of a simulated node's.
        return Nvml(library_path=library)
    look = partial(explain, access=settings.gpu_access, library=library)
    return Nvml(library_path=library, explain=look)


def _watch(settings: AgentSettings, library: str | None, simulated: Node | None) -> XidWatch:
    if simulated is None:
        return XidWatch(
            opener(settings.kernel_log),
            place=str(settings.kernel_log),
            # Whoever names another place means that one, not this machine's kernel.
            call=syslog.kernel if settings.kernel_log == KERNEL_LOG else None,
            journal_paths=map(Path, settings.journal_paths),
            library_path=library,
        )
    # A simulated node has a kernel log of its own. Whatever machine this is, its journal is not
    # that node's.
    log = simulated.kernel_log
    return XidWatch(log.open, place="the simulated log", boot=Boot(log.boot_id, log.started_at))


def _recorder(settings: AgentSettings, watch: XidWatch, past: Callable[[], Past]) -> Recorder:
    directory = settings.recorder_directory

    def judge(snapshot: Snapshot) -> Sequence[GpuVerdict]:
        """As get_gpu_health does, by the Xids of this boot."""
        from mcp_gpu.gpu.health.assess import assess  # on the recorder's thread, after the start

        bursts = watch.log.bursts(boot_id=watch.boot_id)
        return assess(snapshot, past(), bursts=bursts).gpus

    return Recorder(
        settings.node_name,
        simulated=settings.simulate is not None,
        hours=settings.recorder_hours,
        fast_seconds=settings.fast_seconds,
        file=None if directory is None else File(directory),
        judge=judge,
    )


def _simulated(settings: AgentSettings) -> Node | None:
    """The simulated node below the binding; None: there is none.

    Raises:
        SettingError: the fleet file is wrong, or has no such node.
    """
    if settings.simulate is None:
        return None
    from mcp_gpu.gpu import simulator  # 20 ms and 3 MiB that an agent on hardware need not pay

    try:
        fleet = (
            simulator.default_fleet()
            if settings.simulate == "demo"
            else simulator.load_fleet(Path(settings.simulate))
        )
        node = fleet.node(settings.node_name)
    except simulator.FleetError as error:
        raise SettingError(f"--simulate: {error}") from error
    simulator.install(node)
    return node

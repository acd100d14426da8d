"""What only a real GPU and driver can show."""

import ctypes
import json
from pathlib import Path

import pytest

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.model import READINGS
from mcp_gpu.gpu.nvml import LIBRARY_NAME
from mcp_gpu.gpu.record import record
from mcp_gpu.gpu.vitals import LINK_READINGS, VITALS_READINGS


def has_driver() -> bool:
    try:
        ctypes.CDLL(LIBRARY_NAME)
    except OSError:
        return False
    return True


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_driver(), reason=f"no {LIBRARY_NAME} here"),
]


async def collected() -> Collector:
    """One that has read this machine and has stopped."""
    simulator.uninstall()
    collector = Collector()
    collector.start()
    await collector.first(60)
    collector.stop()
    assert collector.join(60)
    return collector


async def test_a_real_gpu_has_an_identity_and_a_reason_for_every_null() -> None:
    snapshot = (await collected()).snapshot
    assert snapshot.state == "ok"
    assert not snapshot.simulated
    assert snapshot.gpus
    for gpu in snapshot.gpus:
        assert gpu.state == "ok"
        assert gpu.uuid is not None
        assert gpu.uuid.startswith("GPU-")
        assert {name for name in READINGS if getattr(gpu, name) is None} == set(gpu.unavailable)
        # Nothing that the binding does may surprise us on real hardware.
        assert "error(-1)" not in gpu.unavailable.values()


async def test_the_vitals_of_a_real_gpu_are_read_without_surprise() -> None:
    collector = await collected()
    snapshot = collector.snapshot
    assert collector.past().first == snapshot
    assert [vitals.index for vitals in snapshot.vitals] == [gpu.index for gpu in snapshot.gpus]
    for gpu, vitals in zip(snapshot.gpus, snapshot.vitals, strict=True):
        nulls = {name for name in VITALS_READINGS if getattr(vitals, name) is None}
        assert nulls == set(vitals.unavailable) - {"links"}
        reasons = list(vitals.unavailable.values())
        for link in vitals.links:
            assert {n for n in LINK_READINGS if getattr(link, n) is None} == set(link.unavailable)
            reasons += link.unavailable.values()
        assert "error(-1)" not in reasons
        assert "not_reported" not in reasons
        assert len(vitals.links) == (gpu.nvlink_count or 0)
        if vitals.temperature_margin_celsius is not None:
            # A limit that was read as unsigned would be four thousand million degrees.
            assert -50 < vitals.temperature_margin_celsius < 150
            assert vitals.margin_shutdown_celsius is None or vitals.margin_shutdown_celsius <= 0


def test_a_recording_of_a_real_machine_replays(tmp_path: Path) -> None:
    simulator.uninstall()
    path = tmp_path / "recorded.json"
    path.write_text(json.dumps(record()))
    snapshot = simulator.snapshot(simulator.Node("replayed", str(path)))
    assert snapshot.state == "ok"
    assert snapshot.simulated
    assert all(gpu.name for gpu in snapshot.gpus)

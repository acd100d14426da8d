"""The wire contract of a snapshot: nulls and reasons, freezing, peers of other versions."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.model import READINGS, Gpu, Snapshot, Waiting
from mcp_gpu.gpu.wire import NOT_REPORTED

REASONS = {
    "not_supported",
    "driver_too_old",
    "no_permission",
    "deprecated",
    "mig_active",
    "gpu_lost",
    "timeout",
    "first_sample",
}


def nodes() -> list[simulator.Node]:
    fleet = list(simulator.default_fleet().nodes.values())
    boards = [simulator.Node(name, name, load=0.5) for name in simulator.shipped_profiles()]
    old = [simulator.Node(f"{name}-old", name, driver="535.54.03") for name in ("h100", "gb200")]
    cut = [simulator.Node("cut", "a100-80", mig={0: ("1g.10gb", "2g.20gb")})]
    return fleet + boards + old + cut


@pytest.mark.parametrize("node", nodes(), ids=lambda node: node.name)
def test_a_null_always_has_a_reason_and_a_value_never_has(node: simulator.Node) -> None:
    for gpu in simulator.snapshot(node).gpus:
        nulls = {name for name in READINGS if getattr(gpu, name) is None}
        assert nulls == set(gpu.unavailable)
        for reason in gpu.unavailable.values():
            assert reason in REASONS or reason.startswith("error(")


@pytest.mark.parametrize("node", nodes(), ids=lambda node: node.name)
def test_a_snapshot_survives_its_journey_as_json(node: simulator.Node) -> None:
    snapshot = simulator.snapshot(node)
    assert Snapshot.model_validate_json(snapshot.model_dump_json()) == snapshot


def test_fields_of_a_newer_agent_are_ignored() -> None:
    document = json.loads(Snapshot(gpus=(Gpu(index=0, uuid="GPU-1"),)).model_dump_json())
    document["invented_later"] = 1
    document["gpus"][0]["invented_later"] = {"a": 1}
    document["gpus"][0]["unavailable"]["invented_later"] = "not_supported"
    assert Snapshot.model_validate(document).gpus[0].uuid == "GPU-1"


@given(st.sets(st.sampled_from(READINGS)))
def test_what_an_older_agent_leaves_out_is_null_with_a_reason(left_out: set[str]) -> None:
    whole = simulator.snapshot(simulator.Node("one", "gb200", gpus=1)).gpus[0]
    document = json.loads(whole.model_dump_json())
    for name in left_out:
        document.pop(name)
        document["unavailable"].pop(name, None)
    read = Gpu.model_validate(document)
    assert {n for n, reason in read.unavailable.items() if reason == NOT_REPORTED} == left_out


def test_gpus_do_not_share_their_reasons() -> None:
    assert Gpu(index=0).unavailable is not Gpu(index=1).unavailable


def test_a_snapshot_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Snapshot().state = "ok"  # type: ignore[misc]


def test_a_blocked_call_reads_as_one_sentence() -> None:
    waiting = Waiting(seconds=61.2, call="nvmlDeviceGetPowerUsage", gpu_index=3)
    expected = "NVML has not answered for 61 s (GPU 3, in nvmlDeviceGetPowerUsage)"
    assert waiting.message == expected

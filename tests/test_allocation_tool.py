"""`get_pod_gpu_allocation` of one node, through a real MCP client and a kubelet's real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp_types import CallToolResult

from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.model import Gpu, MigDevice, Snapshot
from mcp_gpu.gpu.recorder.recorder import Recorder
from mcp_gpu.gpu.recorder.tenants import Tenant
from mcp_gpu.gpu.simulator import Node, snapshot
from mcp_gpu.gpu.simulator.faults import Lost
from mcp_gpu.gpu.xid.log import XidLog
from mcp_gpu.gpu.xid.model import XidEvent
from mcp_gpu.node import holdings
from mcp_gpu.node.device_ids import Devices, profile_of
from mcp_gpu.node.holdings import CACHE_SECONDS, KEPT_SECONDS, NOT_YET, Attribution
from mcp_gpu.node.pod_resources import PodResources
from mcp_gpu.tools.allocation import Processes, SeenProcess, SeenProcesses, agent_tool
from support import served
from support.cluster import Running, clean_up
from support.kubelet import Kubelet, claim, plugin, pod, write_checkpoint
from support.ports import free_ports
from support.results import data, text

GPU = "nvidia.com/gpu"


class Clock:
    """Monotonic seconds that stand still."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Place:
    """A node with GPUs and a kubelet."""

    def __init__(self, folder: Path) -> None:
        self.kubelet = Kubelet(folder / "kubelet.sock")
        self.checkpoint = folder / "kubelet_internal_checkpoint"
        self.clock = Clock()
        self.node = Node("n", "h100", gpus=4)
        self.processes: Processes | None = None
        self.own_pod = ""
        self.recorder = Recorder("n")
        self.uuids = [gpu.uuid or "" for gpu in snapshot(self.node).gpus]

    def attribution(self, collector: Collector) -> Attribution:
        return Attribution(
            lambda: collector.snapshot,
            PodResources(self.kubelet.path, seconds=10),
            self.checkpoint,
            pod=self.own_pod,
            told=self.recorder.held,
            clock=self.clock,
        )

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        def make(collector: Collector) -> Any:
            attribution = self.attribution(collector)
            return agent_tool(
                "n", collector, attribution, processes=self.processes, recorder=self.recorder
            )

        async with served.agent(self.node, make) as client:
            yield client


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def ask(client: Client, **arguments: Any) -> CallToolResult:
    result = await client.call_tool("get_pod_gpu_allocation", arguments)
    assert isinstance(result, CallToolResult)
    assert not result.is_error, text(result)
    return result


def held(found: dict[str, Any]) -> dict[str, list[int | None]]:
    return {
        f"{pod['namespace']}/{pod['pod']}": [
            device["gpu_index"] for each in pod["containers"] for device in each["devices"]
        ]
        for pod in found["pods"]
    }


async def test_pods_are_told_with_what_their_gpus_do(place: Place) -> None:
    place.node = Node("n", "h100", gpus=4, load=0.9)
    one, two, three, *_ = place.uuids
    place.kubelet.holding(
        pod("train", "w0", plugin(GPU, one, two), plugin("example.com/nic", "mlx5_0")),
        pod("dev", "notebook", plugin(GPU, f"{three}::0"), container="jupyter"),
        pod("dev", "other", plugin(GPU, f"{three}::1")),
        pod("kube-system", "no-gpu"),
        could=[plugin(GPU, one), plugin(GPU, two), plugin("example.com/nic", "mlx5_0")],
    )
    async with place.kubelet.listening(), place.client() as client:
        answer = await ask(client)
    found = data(answer)
    assert held(found) == {"train/w0": [0, 1], "dev/notebook": [2], "dev/other": [2]}
    assert [gpu["holders"] for gpu in found["gpus"]] == [1, 1, 2, 0]
    assert [gpu["shared"] for gpu in found["gpus"]] == [False, False, True, False]
    assert [gpu["free"] for gpu in found["gpus"]] == [False, False, False, True]
    assert [gpu["idle"] for gpu in found["gpus"]] == [False] * 4
    assert found["allocatable"] == {GPU: 2}
    assert (found["source"], found["why"], found["simulated"]) == ("pod_resources", "", True)
    assert "processes cannot be seen" in found["unavailable"]["strays"]
    assert "n: 3 pods on 3 of 4 GPUs, 1 free (says the kubelet)" in text(answer)
    assert "train/w0 main: GPU 0 (NVIDIA H100 80GB HBM3, " in text(answer)
    assert "GPU 2 (share 1) (NVIDIA H100" in text(answer)
    assert "free: GPU 3" in text(answer)
    assert "SIMULATED" in text(answer)


async def test_a_gpu_that_is_held_and_does_nothing_is_idle(place: Place) -> None:
    quiet = Node("n", "t4", gpus=1)
    (gpu,) = snapshot(quiet).gpus
    assert gpu.uuid is not None
    place.node = quiet
    place.kubelet.holding(pod("dev", "forgotten", plugin(GPU, gpu.uuid)))
    async with place.kubelet.listening(), place.client() as client:
        answer = await ask(client)
    (told,) = data(answer)["gpus"]
    assert (told["quiet"], told["idle"], told["free"]) == (True, True, False)
    assert told["quiet_seconds"] is not None
    assert "IDLE" in text(answer)


async def test_one_pod_is_told_with_its_gpus_alone(place: Place) -> None:
    one, two, *_ = place.uuids
    place.kubelet.holding(
        pod("a", "p", plugin(GPU, one)), pod("b", "p", plugin(GPU, two)), pod("b", "q")
    )
    async with place.kubelet.listening(), place.client() as client:
        found = data(await ask(client, namespace="b"))
        assert held(found) == {"b/p": [1]}
        assert [gpu["index"] for gpu in found["gpus"]] == [1]
        assert list(held(data(await ask(client, pod="p")))) == ["a/p", "b/p"]
        none = data(await ask(client, pod="none"))
        assert (none["gpus"], none["totals"]["gpus"]) == ([], 4)
    assert place.kubelet.connections == 1, "asked again within a few seconds it is not bothered"


async def test_a_kubelet_that_is_not_there_is_unknown_and_nothing_is_free(place: Place) -> None:
    async with place.client() as client:
        answer = await ask(client)
    found = data(answer)
    assert (found["source"], found["pods"]) == ("none", [])
    assert "kubelet.sock: No such file" in found["why"]
    assert "kubelet_internal_checkpoint: No such file" in found["why"]
    for gpu in found["gpus"]:
        assert (gpu["holders"], gpu["free"], gpu["idle"]) == (None, None, None)
        assert gpu["unavailable"]["free"] == found["why"]
    assert "holders UNKNOWN of 4 GPUs" in text(answer)


async def test_who_held_a_gpu_is_remembered_when_the_kubelet_has_forgotten(place: Place) -> None:
    one, two, *_ = place.uuids
    place.kubelet.holding(
        pod("train", "w0", plugin(GPU, one)), pod("dev", "notebook", plugin(GPU, f"{two}::1"))
    )
    write_checkpoint(place.checkpoint, [("uid-w0", "main", GPU, {"0": [one]})])
    place.recorder.start()
    try:
        async with place.kubelet.listening(), place.client() as client:
            assert data(await ask(client, past=True))["past"] == [], "they hold them still"
            place.kubelet.holding(pod("dev", "notebook", plugin(GPU, f"{two}::1")))
            write_checkpoint(place.checkpoint, [])
            place.clock.now += CACHE_SECONDS
            with anyio.fail_after(20):
                while not (found := data(answer := await ask(client, past=True)))["past"]:
                    await anyio.lowlevel.checkpoint()
            assert held(found) == {"dev/notebook": [1]}
            (was,) = found["past"]
            assert (was["namespace"], was["pod"], was["pod_uid"]) == ("train", "w0", "uid-w0")
            assert (was["gpu_uuid"], was["gpu_index"], was["shared"]) == (one, 0, False)
            assert "before: train/w0 main: GPU 0, " in text(answer)
            assert data(await ask(client))["past"] == [], "it was not asked for"
            assert data(await ask(client, past=True, namespace="dev"))["past"] == []
    finally:
        place.recorder.stop()
        assert place.recorder.join(20)


async def test_an_error_of_a_gpu_has_it_asked_at_once_who_holds_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdings, "WATCH_SECONDS", 600)
    log = XidLog()
    tell, told = anyio.create_memory_object_stream[tuple[Tenant, ...]](10)

    attribution = Attribution(
        lambda: Snapshot(gpus=snapshot(place.node).gpus),
        PodResources(place.kubelet.path, seconds=10),
        place.checkpoint,
        told=tell.send_nowait,
        alarms=lambda: log.added,
    )
    one, *_ = place.uuids
    place.kubelet.holding(pod("train", "before", plugin(GPU, one)))
    with anyio.fail_after(60), tell, told:
        async with place.kubelet.listening(), anyio.create_task_group() as tasks:
            tasks.start_soon(attribution.follow)
            assert [each.pod for each in await told.receive()] == ["before"]
            place.kubelet.holding(pod("train", "short-lived", plugin(GPU, one)))
            log.add(XidEvent(79, 0.0, "kernel_log"))
            assert [each.pod for each in await told.receive()] == ["short-lived"]
            tasks.cancel_scope.cancel()


async def test_an_agent_asks_by_itself_so_that_it_can_remember(tmp_path: Path) -> None:
    kubelet = Kubelet(tmp_path / "kubelet.sock")
    kubelet.holding()
    (port,) = free_ports(1)
    arguments = ["agent", "--node-name", "h100-a", "--http-port", str(port)]
    arguments += ["--http-host", "127.0.0.1", "--socket", str(tmp_path / "run" / "agent.sock")]
    arguments += ["--pod-resources-socket", str(kubelet.path)]
    agent = Running(arguments, port, tmp_path / "agent.log")
    async with kubelet.listening():
        try:
            await agent.start()
            with anyio.fail_after(60):
                while not kubelet.calls:
                    await anyio.sleep(0.02)
        finally:
            await clean_up(agent)


async def test_the_checkpoint_is_the_last_resort_and_says_so(place: Place) -> None:
    one, two, *_ = place.uuids
    entries = [
        ("uid-1", "main", GPU, {"0": [one], "1": [f"{two}::3"]}),
        ("uid-2", "old", GPU, [two]),  # as before Kubernetes 1.20
        ("uid-3", "main", "example.com/nic", {"-1": ["mlx5_0"]}),
    ]
    write_checkpoint(place.checkpoint, entries, {GPU: place.uuids})
    async with place.client() as client:
        answer = await ask(client)
    found = data(answer)
    assert found["source"] == "checkpoint"
    assert "kubelet.sock" in found["why"]
    assert {pod["pod_uid"]: pod["pod"] for pod in found["pods"]} == {"uid-1": "", "uid-2": ""}
    assert [gpu["holders"] for gpu in found["gpus"]] == [1, 2, 0, 0]
    assert found["allocatable"] == {GPU: 4}
    assert "pod uid uid-1 main: GPU 0" in text(answer)
    assert "(says the kubelet's checkpoint)" in text(answer)


@pytest.mark.parametrize(
    "raw", ["", "[]", "{}", '{"Data": {"PodDeviceEntries": [{}], "RegisteredDevices": {}}}']
)
async def test_a_file_that_is_no_checkpoint_is_said(place: Place, raw: str) -> None:
    place.checkpoint.write_text(raw)
    async with place.client() as client:
        found = data(await ask(client))
    assert found["source"] == "none"
    assert "not a device plugins' checkpoint" in found["why"]


async def test_what_was_said_is_kept_while_the_kubelet_restarts(place: Place) -> None:
    place.kubelet.holding(pod("a", "p", plugin(GPU, place.uuids[0])))
    async with place.client() as client:
        async with place.kubelet.listening():
            assert data(await ask(client))["why"] == ""
        place.clock.now += CACHE_SECONDS
        found = data(await ask(client))
        assert held(found) == {"a/p": [0]}
        assert "is the kubelet running?" in found["why"]
        assert found["holders_age_seconds"] == CACHE_SECONDS
        async with place.kubelet.listening():
            place.kubelet.holding()
            place.clock.now += CACHE_SECONDS
            assert held(data(await ask(client))) == {}
        place.clock.now += KEPT_SECONDS + CACHE_SECONDS
        assert data(await ask(client))["source"] == "none"


@pytest.mark.parametrize("own_pod", ["agent-x", ""], ids=["in a pod", "outside"])
async def test_a_kubelet_that_does_not_know_its_pods_yet_frees_no_gpu(
    place: Place, own_pod: str
) -> None:
    """As a real one answers for a second after its start, and while it has no API server."""
    place.own_pod = own_pod
    write_checkpoint(place.checkpoint, [("uid-p", "main", GPU, {"0": [place.uuids[0]]})])
    everything = [pod("mcp-gpu", "agent-x"), pod("a", "p", plugin(GPU, place.uuids[0]))]
    static = [pod("kube-system", "kube-proxy")] if own_pod else []
    place.kubelet.holding(*everything)
    async with place.kubelet.listening(), place.client() as client:
        assert data(await ask(client))["why"] == ""
        place.kubelet.holding(*static)
        place.clock.now += CACHE_SECONDS
        found = data(await ask(client))
        assert (found["source"], found["why"], held(found)) == (
            "pod_resources",
            NOT_YET,
            {"a/p": [0]},
        )
        assert [gpu["free"] for gpu in found["gpus"]] == [False, True, True, True]
        place.clock.now += KEPT_SECONDS + 1
        late = data(await ask(client))
        assert (late["source"], late["why"], late["pods"][0]["pod_uid"]) == (
            "checkpoint",
            NOT_YET,
            "uid-p",
        )
        place.checkpoint.write_text("")
        place.kubelet.holding(*everything[:1])
        place.clock.now += CACHE_SECONDS
        assert data(await ask(client))["source"] == "pod_resources"


async def test_devices_are_told_in_one_order(place: Place) -> None:
    one, two, *_ = place.uuids
    for given in ([one, two], [two, one]):
        place.kubelet.holding(pod("a", "p", *(plugin(GPU, each) for each in given)))
        place.clock.now += CACHE_SECONDS
        async with place.kubelet.listening(), place.client() as client:
            assert held(data(await ask(client))) == {"a/p": [0, 1]}


async def test_many_who_ask_at_once_are_one_question(place: Place) -> None:
    place.kubelet.holding(pod("a", "p", plugin(GPU, place.uuids[0])))
    async with (
        place.kubelet.listening(),
        place.client() as client,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(10):
            tasks.start_soon(ask, client)
    assert place.kubelet.connections == 1


async def test_a_kubelet_that_is_silent_holds_nobody_up(place: Place) -> None:
    place.kubelet.silent = True
    held_by = Attribution(
        lambda: snapshot(place.node),
        PodResources(place.kubelet.path, seconds=0.1),
        place.checkpoint,
    )
    assert held_by.last.why == "the kubelet has not been asked yet"
    async with place.kubelet.listening():
        with anyio.move_on_after(0.02) as gave_up:
            await held_by.holdings()
        assert gave_up.cancelled_caught
        found = await held_by.holdings()
    assert (found.source, found.holders) == ("none", ())
    assert "the kubelet has not answered within 0.1 s" in found.why


async def test_ids_that_fit_nothing_stay_as_they_are(place: Place) -> None:
    place.kubelet.holding(
        pod("a", "gone", plugin(GPU, "GPU-00000000-1111-2222-3333-444444444444")),
        pod("a", "odd", plugin("nvidia.com/hostdev", "0000:3b:00.2")),
    )
    async with place.kubelet.listening(), place.client() as client:
        answer = await ask(client)
        found = data(answer)
        assert held(found) == {"a/gone": [None], "a/odd": [None]}
        assert [gpu["free"] for gpu in found["gpus"]] == [True] * 4
        place.kubelet.holding(pod("a", "odd", plugin(GPU, "what-is-this\x1b[31m")))
        place.clock.now += CACHE_SECONDS
        doubtful = data(await ask(client))
    (device,) = doubtful["pods"][0]["containers"][0]["devices"]
    assert (device["id"], device["why"]) == (
        "what-is-this?[31m",
        "the id has no form that is known",
    )
    assert [gpu["free"] for gpu in doubtful["gpus"]] == [None] * 4, "it may be any of them"


async def test_a_lost_gpu_is_not_free(place: Place) -> None:
    place.node = Node("n", "h100", gpus=2, faults=(Lost(kind="lost", gpu=1),))
    place.kubelet.holding()
    async with place.kubelet.listening(), place.client() as client:
        found = data(await ask(client))
    assert [gpu["free"] for gpu in found["gpus"]] == [True, False]


async def test_a_claim_may_be_any_gpu_until_its_slice_is_read(place: Place) -> None:
    claims = [claim("gpu-x", "dra", "gpu-0", "n"), claim("net", "dra", "nic-0", "n", "nic.example")]
    place.kubelet.holding(pod("dra", "p", claims=claims))
    async with place.kubelet.listening(), place.client() as client:
        answer = await ask(client)
    found = data(answer)
    (held_claim,) = found["pods"][0]["containers"][0]["claims"]
    assert (held_claim["name"], held_claim["pool"], held_claim["device"]) == ("gpu-x", "n", "gpu-0")
    assert held_claim["cdi_ids"] == ["k8s.gpu.nvidia.com/device=gpu-0"]
    assert [gpu["free"] for gpu in found["gpus"]] == [None] * 4
    assert "claim gpu-x: n/gpu-0 (which GPU it is stands in" in text(answer)


async def test_mig_instances_are_told_with_profile_and_parent(place: Place) -> None:
    place.node = Node("n", "a100-40", gpus=1, mig={0: ("1g.5gb", "1g.5gb", "2g.10gb")})
    (gpu,) = snapshot(place.node).gpus
    first, second, third = (mig.uuid or "" for mig in gpu.mig_devices)
    place.kubelet.holding(
        pod("a", "small", plugin("nvidia.com/mig-1g.5gb", first)),
        pod("a", "shared", plugin("nvidia.com/mig-2g.10gb.shared", f"{third}::1")),
    )
    async with place.kubelet.listening(), place.client() as client:
        answer = await ask(client)
    found = data(answer)
    devices = [pod["containers"][0]["devices"][0] for pod in found["pods"]]
    assert [device["mig_profile"] for device in devices] == ["2g.10gb", "1g.5gb"]
    assert {device["gpu_uuid"] for device in devices} == {gpu.uuid}
    (told,) = found["gpus"]
    assert {mig["uuid"]: mig["free"] for mig in told["mig"]} == {
        first: False,
        second: True,
        third: False,
    }
    assert (told["holders"], told["free"]) == (2, False)
    assert "a/small main: GPU 0 MIG 1g.5gb" in text(answer)
    assert "free on GPU 0: MIG 1g.5gb" in text(answer)


async def test_processes_outside_of_any_allocation_are_strays(place: Place) -> None:
    one, two, *_ = place.uuids
    place.kubelet.holding(pod("a", "p", plugin(GPU, one)), pod("a", "q", plugin(GPU, two)))
    write_checkpoint(place.checkpoint, [("uid-p", "main", GPU, {"0": [one]})])

    def process(pid: int, gpu: int, pod_uid: str | None) -> SeenProcess:
        return SeenProcess(pid, gpu, place.uuids[gpu], "python train.py", 2**30, pod_uid)

    async def processes() -> SeenProcesses:
        return SeenProcesses(
            (
                process(1, 0, "uid-p"),  # its holder
                process(2, 0, "uid-other"),  # somebody else
                process(3, 0, None),  # nobody's
                process(4, 1, "uid-q"),  # perhaps its holder, whose uid is not known
                process(5, 3, "uid-p"),  # a GPU that nobody holds
            )
        )

    place.processes = processes
    async with place.kubelet.listening(), place.client() as client:
        answer = await ask(client)
    found = data(answer)
    assert [pod["pod_uid"] for pod in found["pods"]] == ["uid-p", None]
    assert [stray["pid"] for stray in found["strays"]] == [2, 3, 5]
    assert "strays" not in found["unavailable"]
    assert 'STRAY on GPU 0: pid 3 "python train.py" of the node itself, 1.0 GiB' in text(answer)


async def test_a_node_full_of_pods_is_told_within_bounds(place: Place) -> None:
    place.kubelet.holding(
        *(pod("ns", f"pod-{n:04}", plugin(GPU, f"{place.uuids[0]}::{n}")) for n in range(1500))
    )
    async with place.kubelet.listening(), place.client() as client:
        answer = await ask(client)
    found = data(answer)
    assert len(found["pods"]) + found["pods_omitted"] == 1500
    assert found["gpus"][0]["holders"] == 1500
    assert len(text(answer)) <= 8_000
    assert len(answer.model_dump_json()) < 256 * 1024


ONE = Gpu(
    index=0,
    uuid="GPU-a",
    minor_number=5,
    mig_devices=(
        MigDevice(
            index=0, uuid="MIG-x", gpu_instance_id=7, compute_instance_id=0, profile="1g.10gb"
        ),
        MigDevice(
            index=1, uuid="MIG-y", gpu_instance_id=9, compute_instance_id=0, profile="2g.20gb"
        ),
    ),
)
TWO = Gpu(index=1, uuid="GPU-b", minor_number=0)


@pytest.mark.parametrize(
    ("device_id", "gpu", "mig", "replica", "fits"),
    [
        ("GPU-b", "GPU-b", None, None, True),
        ("GPU-b::12", "GPU-b", None, 12, True),
        ("MIG-y", "GPU-a", "MIG-y", None, True),
        ("MIG-y::0", "GPU-a", "MIG-y", 0, True),
        ("MIG-GPU-a/9/0", "GPU-a", "MIG-y", None, True),
        ("MIG-GPU-a/9/1", "GPU-a", "MIG-GPU-a/9/1", None, False),
        ("MIG-GPU-c/9/0", "GPU-c", "MIG-GPU-c/9/0", None, False),
        ("0", "GPU-a", None, None, True),
        ("1::3", "GPU-b", None, 3, True),
        ("0:1", "GPU-a", "MIG-y", None, True),
        ("0:2", "GPU-a", None, None, False),
        ("7", None, None, None, False),
        ("nvidia0", "GPU-b", None, None, True),
        ("nvidia5", "GPU-a", None, None, True),
        ("nvidia5/gi7", "GPU-a", "MIG-x", None, True),
        ("nvidia0/vgpu1", "GPU-b", None, 1, True),
        ("nvidia5/gi9/vgpu2", "GPU-a", "MIG-y", 2, True),
        ("nvidia5/gi8", "GPU-a", None, None, False),
        ("nvidia9", None, None, None, False),
        ("GPU-c", "GPU-c", None, None, False),
        ("MIG-z", None, "MIG-z", None, False),
        ("GPU-b::x", "GPU-b::x", None, None, False),
        ("", None, None, None, False),
        ("99999999999", None, None, None, False),
    ],
)
def test_ids_in_all_forms(
    device_id: str, gpu: str | None, mig: str | None, replica: int | None, fits: bool
) -> None:
    found = Devices((ONE, TWO)).find(device_id)
    assert (found.gpu_uuid, found.mig_uuid, found.replica) == (gpu, mig, replica)
    assert (found.why == "") == fits


@pytest.mark.parametrize(
    ("resource", "profile"),
    [
        ("nvidia.com/gpu", None),
        ("nvidia.com/mig-1g.10gb", "1g.10gb"),
        ("nvidia.com/mig-1g.10gb.shared", "1g.10gb"),
        ("nvidia.com/mig-1g.10gb.me", "1g.10gb+me"),
    ],
)
def test_a_resource_names_a_profile(resource: str, profile: str | None) -> None:
    assert profile_of(resource) == profile

"""`analyze_xid_errors` and `explain_xid` through a real MCP client: of one node, and of a fleet."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp_types import CallToolResult

from mcp_gpu.gpu.simulator import Node
from mcp_gpu.gpu.simulator.faults import Fault, Hang, RecoveryAction, Xid
from mcp_gpu.gpu.xid.log import BOUND_BYTES
from mcp_gpu.gpu.xid.model import XidEvent
from mcp_gpu.gpu.xid.present import Device
from mcp_gpu.node.boot import Boot
from mcp_gpu.node.watch import XidWatch
from mcp_gpu.tools.explain_xid import explain_tool
from mcp_gpu.tools.fleet_xids import gateway_tool
from mcp_gpu.tools.xids import agent_tool
from support import served
from support.fleet import Agent, Path
from support.results import data, text
from support.schemas import check
from support.xids import BUS, NOW, RESET, UNREAD, XidAgent, line
from transports.errors import Gone, Unreachable

gateway = partial(served.gateway, gateway_tool)


def watching(node: Node) -> XidWatch:
    """What a simulated node's agent watches."""
    log = node.kernel_log
    return XidWatch(log.open, place="the simulated log", boot=Boot(log.boot_id, log.started_at))


@asynccontextmanager
async def agent(node: Node, watch: XidWatch | None = None) -> AsyncIterator[Client]:
    """A client of an agent on this machine, whose log is being read."""
    watch = watch or watching(node)
    async with (
        served.agent(node, lambda collector: agent_tool(node.name, collector, watch)) as client,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(watch.run)
        yield client
        tasks.cancel_scope.cancel()


async def ask(client: Client, tool: str = "analyze_xid_errors", **arguments: Any) -> CallToolResult:
    result = await client.call_tool(tool, arguments)
    assert isinstance(result, CallToolResult)
    return result


async def ask_until(client: Client, xids: int, **arguments: Any) -> CallToolResult:
    """The answer once so many Xids are known."""
    with anyio.fail_after(30):
        while True:
            answer = await ask(client, **arguments)
            if data(answer)["xids"] >= xids:
                return answer
            await anyio.sleep(0.02)


def xid(code: int, gpu: int = 0, *, ago: float = 60.0, **changes: Any) -> Fault:
    return Xid(kind="xid", gpu=gpu, xid=code, seconds_ago=ago, **changes)


async def test_an_agent_tells_the_chain_and_what_to_do_first() -> None:
    faults = (
        xid(48, ago=60, text="DBE in the framebuffer"),
        xid(63, ago=59, text="Row Remapper: New row marked for remapping"),
        xid(45, ago=58, pid=41, process="python", text="Ch 00000001", count=12),
        xid(13, 3, ago=7200, pid=42, process="train", text="Graphics SM Warp Exception"),
        RecoveryAction(kind="recovery_action", gpu=0, action=4),
    )
    async with agent(Node("n", "h100", faults=faults)) as client:
        answer = await ask_until(client, 15)
    found = data(answer)
    first, second = found["devices"]
    assert (first["device"], first["action"], first["gpu_index"]) == ("GPU 0", "DRAIN_AND_RESET", 0)
    assert first["name"] == "NVIDIA H100 80GB HBM3"
    assert first["uuid"].startswith("GPU-")
    assert (second["device"], second["action"]) == ("GPU 3", "RESTART_APP")
    assert [group["code"] for group in found["groups"]] == [48, 13, 63, 45]
    assert found["groups"][3]["processes"] == ["python (41)"]
    assert found["groups"][0]["sources"] == ["kernel_log"]
    assert found["groups"][0]["samples"][0].startswith("NVRM: Xid (PCI:0000:53:00): 48, ")
    assert found["since"] == "boot"
    assert found["simulated"] is True
    assert text(answer).startswith("n: 15 Xids since this boot  driver ")
    assert "WARNING GPU 0 (0000:53:00, NVIDIA H100 80GB HBM3, GPU-" in text(answer)
    assert " -> 63 -> 45 x12" in text(answer)
    assert "SIMULATED" in text(answer)


async def test_since_bounds_the_time_and_codes_the_codes() -> None:
    faults = (xid(13, ago=7200), xid(31, 1, ago=600), xid(119, 2, ago=60))
    async with agent(Node("n", "h100", faults=faults)) as client:
        everything = await ask_until(client, 3)
        hour = data(await ask(client, since="1h"))
        five = data(await ask(client, since="5m"))
        some = await ask(client, codes=[13, 31])
        limited = data(await ask(client, limit=1))
        cut = data(everything)["groups"][1]["last"]
        exact = data(await ask(client, since=cut))
    assert {group["code"] for group in hour["groups"]} == {31, 119}
    assert [group["code"] for group in five["groups"]] == [119]
    assert {group["code"] for group in data(some)["groups"]} == {13, 31}
    assert text(some).startswith("n: 2 Xids of codes 13, 31 since this boot")
    assert (len(limited["groups"]), limited["groups_omitted"], limited["xids"]) == (1, 2, 3)
    assert [total["code"] for total in limited["totals"]] == [119, 13, 31]
    assert len(exact["groups"]) in (1, 2, 3)


@pytest.mark.parametrize(
    "since", ["yesterday", "2026-11-26T10:00:00", "3 h", "", "-1h", "h", "2h ", "99999999d"]
)
async def test_a_time_that_is_none_is_refused_with_what_one_looks_like(since: str) -> None:
    async with agent(Node("n", "t4")) as client:
        refused = await ask(client, since=since)
    assert refused.is_error
    assert '"boot", a duration such as "30m", "2h" or "3d"' in text(refused)
    assert "ISO 8601 time with its zone" in text(refused)


@pytest.mark.parametrize(
    "since", ["999999d", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "0s"]
)
async def test_any_time_with_a_zone_is_one(since: str) -> None:
    async with agent(Node("n", "t4")) as client:
        assert data(await ask(client, since=since))["xids"] == 0


async def test_codes_that_are_none_are_one_problem_each() -> None:
    async with agent(Node("n", "t4")) as client:
        wrong, none = await ask(client, codes=["79"]), await ask(client, codes=[])
    assert '"codes.0" should be a valid integer' in text(wrong)
    assert "at least 1 item" not in text(wrong)
    assert text(none) == (
        'Bad arguments for analyze_xid_errors: "codes" must not be empty. '
        "Allowed: since, codes, limit."
    )


async def test_what_could_not_be_seen_is_told_first() -> None:
    def refused() -> int:
        raise PermissionError(1, "Operation not permitted")

    node = Node("n", "t4")
    watch = XidWatch(refused, boot=Boot(NOW, 0.0))
    async with agent(node, watch) as client:
        answer = await ask(client)
    found = data(answer)
    assert found["blind"] is True
    assert "Xids UNKNOWN since this boot" in text(answer)
    assert "79, 119 and 120 may be absent" in text(answer)
    assert "CAP_SYSLOG" in text(answer)
    assert "/dev/kmsg" in text(answer)
    assert {source["source"]: source["live"] for source in found["sources"]} == {
        "nvml": False,
        "kernel_log": False,
        "journal": False,
    }


async def test_former_boots_are_missed_only_by_who_asks_for_them() -> None:
    async with agent(Node("n", "t4", faults=(xid(13),))) as client:
        boot = data(await ask_until(client, 1))
        since_boot = [data(await ask(client, since=since)) for since in ("0s", "2h", "29d")]
        days = data(await ask(client, since="31d"))
    for found in (boot, *since_boot):  # the node was booted 30 days ago
        assert not any("former boots" in told for told in found["missed"])
    assert any("Xids of former boots may be absent" in told for told in days["missed"])


async def test_what_the_driver_asks_for_now_leads() -> None:
    faults = (RecoveryAction(kind="recovery_action", gpu=1, action=2), xid(94, 1))
    async with agent(Node("n", "h100", driver="580.105.08", faults=faults)) as client:
        found = data(await ask_until(client, 1))
    assert found["devices"][0]["driver_action"] == "node_reboot"
    assert found["devices"][0]["action"] == "REBOOT_NODE"
    assert found["devices"][0]["note"] == "The driver itself asks for node_reboot now."


async def test_an_nvml_that_hangs_does_not_hold_up_the_answer() -> None:
    node = Node("n", "h100", faults=(xid(119),))
    async with agent(node) as client:
        await ask_until(client, 1)
        node.faults = (*node.faults, Hang(kind="hang", seconds=3600))
        with anyio.fail_after(30):  # an hour less than the call hangs
            found = data(await ask(client))
        node.faults = ()
    assert found["devices"][0]["action"] == "RESET_GPU"


FLOOD, RARE = (
    168_000,
    ((48, 0), (63, 0), (13, 1), (31, 1), (79, 2), (94, 3), (109, 4), (119, 5), (43, 6), (120, 7)),
)


async def test_ten_rare_xids_come_before_a_flood_within_bounds() -> None:
    """Memory: what the log keeps and the answer take less than the log's own bound, told by the
    interpreter's count of what is allocated."""
    node = Node("n", "h100")
    watch = watching(node)
    days, begin = 2 * 86_400.0, node.kernel_log._clock() - 2 * 86_400.0
    buses = [
        gpu.answer("nvmlDeviceGetPciInfo_v3")["busId"].lower()[4:].removesuffix(".0")
        for gpu in node.gpus
    ]

    def event(code: int, gpu: int, at: float, number: int) -> XidEvent:
        return XidEvent(
            code=code,
            at=at,
            source="kernel_log",
            bus_id=buses[gpu],
            boot_id=watch.boot_id,
            pid=number % 4_000_000,
            process="python",
            text=f"Ch {number:08x}",
            raw=f"NVRM: Xid (PCI:{buses[gpu]}): {code}, pid={number}, name=python, Ch {number:08x}",
        )

    async with agent(node, watch) as client:
        await ask(client)  # what is loaded and made once is not the log's
        tracemalloc.start()
        try:
            for number in range(FLOOD):
                watch.log.add(event(45, 7, begin + number * days / FLOOD, number))
            for number, (code, gpu) in enumerate(RARE):
                watch.log.add(event(code, gpu, begin + 3600.0 * (4 * number + 1), number))
            answer = await ask(client, limit=200)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    found = data(answer)
    assert found["xids"] == FLOOD + len(RARE)
    assert peak < BOUND_BYTES
    assert {group["code"] for group in found["groups"][:10]} == {code for code, _ in RARE}
    (flood,) = found["groups"][10:]
    assert (flood["code"], flood["count"]) == (45, FLOOD)
    assert [total["code"] for total in found["totals"]][-1] == 45
    assert found["devices"][0]["severity"] == "warning"  # hours old
    assert len(text(answer)) <= 8_000
    assert len(json.dumps(found)) < 60_000
    assert f", 45 x{FLOOD}" in text(answer)
    told = re.findall(r"^  (\d+)(?: x\d+)? at ", text(answer), re.MULTILINE)
    assert {int(code) for code in told[:10]} == {code for code, _ in RARE}
    assert told[10:] == ["45"]
    assert "Xid 45" not in text(answer)  # its lines are the first that find no room


async def ask_fleet(agents: dict[str, Agent], **arguments: Any) -> CallToolResult:
    async with gateway(agents) as client:
        return await ask(client, **arguments)


def down(gpu: int) -> tuple[tuple[str, str], ...]:
    """What a GPU says whose links a switch has lost."""
    lost = "NETIR_LINK_EVT Fatal XC0 i0 Link 03 (0x00400091 0x00000000 0x0 0x0 0x0 0x0 0x0)"
    return (
        ("10:02:11", line(149, gpu, text=lost)),
        ("10:02:12", line(154, gpu, text=RESET)),
        ("10:02:13", line(45, gpu)),
    )


async def test_one_event_of_a_rack_reads_as_one() -> None:
    rack = [f"rack-{number:02}" for number in range(18)]
    agents: dict[str, Agent] = {
        name: XidAgent(name, *(told for gpu in range(4) for told in down(gpu))) for name in rack
    }
    agents["other-1"] = XidAgent("other-1", ("09:00:00", line(13)))
    answer = await ask_fleet(agents)
    found = data(answer)
    first, second = found["patterns"]
    assert (first["code"], first["told"], first["action"]) == (149, "149 -> 154 -> 45", "RESET_GPU")
    assert (first["nodes"], first["devices"], first["together"]) == (18, 72, True)
    assert (first["where"], first["investigate"]) == (
        "rack-00-rack-17 GPU 0-3",
        "INVESTIGATE_LINK_SI",
    )
    assert (second["code"], second["where"], second["together"]) == (13, "other-1 GPU 0", False)
    assert text(answer).count("149 -> 154 -> 45") == 1
    assert "likely one event" in text(answer)
    assert len(text(answer)) < 2_500
    totals = {total["code"]: (total["count"], total["nodes"]) for total in found["totals"]}
    assert totals == {13: (1, 1), 45: (72, 18), 149: (72, 18), 154: (72, 18)}


async def test_a_driver_that_asks_without_an_xid_is_told_as_such() -> None:
    known = {BUS[2]: Device(2, "GPU-2", "H100", "gpu_reset")}
    answer = await ask_fleet({name: XidAgent(name, known=known) for name in ("a", "b")})
    (pattern,) = data(answer)["patterns"]
    assert (pattern["code"], pattern["action"], pattern["where"]) == (
        None,
        "RESET_GPU",
        "a, b GPU 2",
    )
    assert "CRITICAL no Xid: RESET_GPU: 2 GPUs on 2 nodes" in text(answer)
    assert "The driver itself asks for gpu_reset now. No Xid that is known here" in text(answer)


async def test_gpus_alike_are_told_once_in_a_nodes_text() -> None:
    faults = [xid(149, gpu, text="NETIR_LINK_EVT Fatal XC0 i0 Link 03") for gpu in range(8)]
    async with agent(Node("n", "h100", faults=faults)) as client:
        answer = await ask_until(client, 8)
    assert text(answer).count("GPU 0-7") == 2
    assert text(answer).count(" Xid 149 x8 ") == 1
    assert len(data(answer)["groups"]) == 8


async def test_the_same_on_other_days_is_no_one_event() -> None:
    agents: dict[str, Agent] = {
        name: XidAgent(name, (clock, line(48)))
        for name, clock in (("a", "01:00:00"), ("b", "09:00:00"))
    }
    (pattern,) = data(await ask_fleet(agents))["patterns"]
    assert (pattern["nodes"], pattern["together"]) == (2, False)


async def test_nodes_that_have_most_to_do_come_first_on_every_page() -> None:
    agents: dict[str, Agent] = {}
    for number in range(9):
        code = (13, 48, 79)[number % 3]
        agents[f"n{number}"] = XidAgent(f"n{number}", ("10:00:00", line(code)))
    agents["quiet"] = XidAgent("quiet")
    pages: list[list[str]] = []
    async with gateway(agents) as client:
        cursor: dict[str, str] = {}
        while True:
            page = data(await ask(client, limit=2, **cursor))
            pages.append([node["node"] for node in page["nodes"]])
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        refused = await ask(client, cursor="n3")
    assert [len(page) for page in pages] == [2, 2, 2, 2, 1]
    assert [name for page in pages for name in page] == [
        "n2",
        "n5",
        "n8",
        "n1",
        "n4",
        "n7",
        "n0",
        "n3",
        "n6",
    ]
    assert refused.is_error
    assert "next_cursor of a page before" in text(refused)


async def test_who_could_not_see_and_who_did_not_answer_are_named() -> None:
    agents: dict[str, Agent] = {name: XidAgent(name) for name in ("a", "b", "c", "d")}
    blind = ("No source of Xids can be read: that none are told means nothing.", UNREAD.message)
    for name in ("b", "c"):
        agents[name] = XidAgent(name, source=UNREAD, missed=blind)
    http = Path("http", agents)
    http.probe_errors["d"] = Unreachable
    async with gateway(agents, http) as client:
        answer = await ask(client)
    found = data(answer)
    assert (found["nodes_blind"], found["nodes_without_xids"], found["nodes_with_xids"]) == (
        2,
        1,
        0,
    )
    assert found["missed"][1] == {"what": UNREAD.message, "nodes": 2, "where": "b, c"}
    assert text(answer).startswith("3 of 4 nodes answered: no Xids on 1 node, UNKNOWN on 2 nodes")
    assert (
        "! b, c: kernel log not readable: 79, 119 and 120 may be absent: grant CAP_SYSLOG"
        in text(answer)
    )
    assert "d: unreachable: scripted Unreachable" in text(answer)


async def test_detail_full_has_the_lines_and_arguments_reach_the_agents() -> None:
    agents: dict[str, Agent] = {
        name: XidAgent(name, ("10:00:00", line(48)), ("10:00:01", line(45))) for name in ("a", "b")
    }
    summary = data(await ask_fleet(agents))
    full = await ask_fleet(agents, detail="full", nodes=["a"], codes=[48], since="2h")
    assert [node["groups"] for node in summary["nodes"]] == [[], []]
    (node,) = data(full)["nodes"]
    assert [group["code"] for group in node["groups"]] == [48]
    assert node["groups"][0]["samples"][0] in text(full)
    assert text(full).startswith("1 of 1 node answered: 1 Xid of code 48 on 1 node\n")
    assert ": 2 Xids with what followed, 1 GPU on 1 node, " in text(full)
    assert " Xid 48 x1 2026-11-26T10:00:00Z: Double Bit ECC Error (NVIDIA: WORKFLOW_XID_48)" in (
        text(full)
    )
    none = text(await ask_fleet(agents, codes=[79, 119]))
    assert none.startswith("2 of 2 nodes answered: no Xids of codes 79, 119 on 2 nodes")
    asked = agents["a"].calls[-2]
    assert (asked.since, asked.codes) == ("2h", (48,))  # type: ignore[attr-defined]


async def test_a_thousand_nodes_in_trouble_stay_within_bounds() -> None:
    agents: dict[str, Agent] = {}
    for number in range(1000):
        name = f"node-{number:04}"
        lines = [
            (f"{hour:02}:00:00", line(code, gpu, text="x" * 200))
            for gpu in range(4)
            for hour, code in enumerate(
                (13, 31, 48, 62, 64, 79, 94, 95, 109, 119, 300 + number % 50)
            )
        ]
        missed = (f"something that nobody else lacks {number} {'y' * 300}",)
        agents[name] = XidAgent(name, *lines, missed=missed)
    async with gateway(agents, deadlines_seconds=(50.0, 55.0)) as client:
        answer = await ask(client)
    found = data(answer)
    assert len(text(answer)) <= 8_000
    assert len(json.dumps(found)) < 60_000
    assert found["xids"] == 44_000
    assert found["nodes_omitted"] + len(found["nodes"]) == 1000
    assert found["next_cursor"] is not None


async def test_no_xids_anywhere_is_told_in_a_few_words() -> None:
    answer = await ask_fleet({name: XidAgent(name) for name in ("a", "b")})
    assert data(answer)["nodes"] == data(answer)["patterns"] == []
    assert text(answer).splitlines()[0] == "2 of 2 nodes answered: no Xids on 2 nodes"
    assert len(text(answer)) < 250
    named = await ask_fleet({name: XidAgent(name) for name in ("a", "b")}, nodes=["b"])
    assert [node["node"] for node in data(named)["nodes"]] == ["b"]


@asynccontextmanager
async def explaining() -> AsyncIterator[Client]:
    async with Client(served.registry(explain_tool()).server, mode="2026-07-28") as client:
        yield client


async def explain(**arguments: Any) -> CallToolResult:
    with anyio.fail_after(30):
        async with explaining() as client:
            return await ask(client, "explain_xid", **arguments)


async def test_a_code_is_explained_with_nvidias_bucket_and_whose_word_it_is() -> None:
    answer = await explain(code=48)
    (one,) = data(answer)["explained"]
    assert one["explanation"]["bucket"] == "WORKFLOW_XID_48"
    assert one["explanation"]["provenance"] in text(answer)
    assert text(answer).startswith("Xid 48: Double Bit ECC Error (ROBUST_CHANNEL_GPU_ECC_DBE)")
    assert "  NVIDIA: WORKFLOW_XID_48\n" in text(answer)
    assert "  severity: critical\n" in text(answer)
    assert (one["count"], one["line"]) == (0, "")


async def test_where_authorities_disagree_all_are_told() -> None:
    answer = await explain(code=63)
    (one,) = data(answer)["explained"]
    assert len(one["explanation"]["disagreements"]) > 1
    for told in one["explanation"]["disagreements"]:
        contradicted, who = told.split("; ")
        assert text(answer).count(contradicted) == 1
        assert who.removesuffix(".") in text(answer)
    assert "  NVIDIA: IGNORE\n" in text(answer)


async def test_a_code_outside_the_catalogue_is_said_to_be() -> None:
    answer = await explain(code=777)
    (one,) = data(answer)["explained"]
    assert (one["explanation"]["known"], one["action"]) == (False, "NONE")
    assert "catalogue of 2025-09-30 lacks it" in text(answer)
    switch = data(await explain(code=20034))
    assert switch["explained"][0]["explanation"]["kind"] == "sxid"


@pytest.mark.parametrize(
    ("said", "severity", "decoded"),
    [
        ("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
         "warning", "The switch's driver calls it fatal, on its link 30."),
        ("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 11004, Non-fatal, Link 28 RX Error",
         "info", "The switch's driver calls it not fatal, on its link 28."),
        (line(13), "warning", "It happened on GPC 1 TPC 2 SM 0."),
    ],
)  # fmt: skip
async def test_what_a_line_says_beyond_its_code_is_in_the_text(
    said: str, severity: str, decoded: str
) -> None:
    answer = await explain(line=said)
    assert f"\n  severity: {severity}\n" in text(answer)
    assert f"\n  reads: {decoded}\n" in text(answer)


@pytest.mark.parametrize(
    ("driver", "bucket"), [("570.86.15", "WORKFLOW_NVLINK5_ERR"), ("580.105.08", "RESET_GPU")]
)
async def test_a_line_is_decoded_by_the_drivers_branch(driver: str, bucket: str) -> None:
    _, (_, told), *_ = (("", ""), down(0)[0])
    answer = await explain(line=f"[ 4711.123] {told}", driver_version=driver)
    (one,) = data(answer)["explained"]
    assert one["explanation"]["bucket"] == bucket
    assert one["explanation"]["decoded"][0] in text(answer)


async def test_an_excerpt_is_explained_each_xid_once_and_as_it_hangs_together() -> None:
    lines = [
        "[  100.000001] nvidia-nvlink: Nvlink Core is being initialized",
        f"[ 4711.123000] {line(48)}",
        f"[ 4711.124000] {line(63)}",
        *(f"[ 4711.2000{n:02}] {line(45, ch=n)}" for n in range(12)),
        f"[ 9000.000000] {line(13, 1)}",
    ]
    answer = await explain(line="\n".join(lines))
    found = data(answer)
    assert (found["lines"], found["xids"], found["omitted"]) == (16, 15, 0)
    assert found["chains"] == [f"{BUS[0]}: 48 -> 63 -> 45 x12"]
    told = [
        (each["explanation"]["code"], each["count"], each["action"]) for each in found["explained"]
    ]
    assert told == [
        (48, 1, "DRAIN_AND_RESET"),
        (13, 1, "RESTART_APP"),
        (63, 1, "NONE"),
        (45, 12, "NONE"),
    ]
    assert text(answer).startswith(f"follows: {BUS[0]}: 48 -> 63 -> 45 x12")
    assert "here: With 63: the GPU is drained before it is reset." in text(answer)


@pytest.mark.parametrize(
    "stamp",
    [
        "",
        "{n},100{n},12345678{n},-;",
        "Nov 26 10:02:1{n} host kernel: ",
        "2026-11-26T10:02:1{n}+0100 host kernel: ",
        "[Thu Nov 26 10:02:1{n} 2026] ",
    ],
)
async def test_lines_belong_together_in_every_form_of_a_log(stamp: str) -> None:
    lines = [stamp.format(n=n) + line(code) for n, code in enumerate((48, 45))]
    found = data(await explain(line="\n".join(lines)))
    assert found["chains"] == [f"{BUS[0]}: 48 -> 45"]


async def test_lines_of_other_hours_do_not_belong_together() -> None:
    lines = [f"[ 4711.000000] {line(48)}", f"[ 9711.000000] {line(45)}"]
    found = data(await explain(line="\n".join(lines)))
    assert found["chains"] == []


async def test_a_single_cleanup_is_not_said_to_be_alone() -> None:
    (one,) = data(await explain(line=line(45)))["explained"]
    assert (one["note"], one["action"]) == ("", "NONE")


async def test_many_different_xids_are_bounded() -> None:
    lines = [line(code, text="x" * 250) for code in range(1, 110)]
    answer = await explain(line="\n".join(lines))
    found = data(answer)
    assert (len(found["explained"]), found["omitted"], found["xids"]) == (20, 89, 109)
    assert len(text(answer)) <= 8_000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "Give code or line"),
        ({"code": 48, "line": "x"}, "Give code or line"),
        ({"line": "nothing of the kind"}, "No Xid in 1 line: it looks like `NVRM: Xid (PCI:"),
        ({"line": "a\nb"}, "No Xid in 2 lines"),
        ({"line": ""}, '"line" must not be empty. Allowed: '),
        ({"code": 0}, '"code"'),
        ({"code": "48"}, '"code"'),
        (
            {"code": 48, "driver_version": "new"},
            '"driver_version" should be a driver\'s version such as 580.105.08, got "new"',
        ),
        ({"line": "x" * 40_000}, '"line"'),
    ],
)
async def test_what_cannot_be_explained_is_refused(arguments: dict[str, Any], told: str) -> None:
    refused = await explain(**arguments)
    assert refused.is_error
    assert told in text(refused)


async def test_answers_keep_to_their_schemas() -> None:
    fleet: dict[str, Agent] = {
        "a": XidAgent("a", ("10:00:00", line(48))), "b": XidAgent("b"), "c": XidAgent("c")
    }  # fmt: skip
    http = Path("http", fleet)
    http.probe_errors["c"] = Gone
    for role, connecting, calls in (
        ("agent", agent(Node("n", "t4", faults=(xid(48),))), [{}, {"since": "1h"}]),
        ("gateway", gateway(fleet, http), [{}, {"detail": "full"}]),
        ("agent", explaining(), [{"code": 48}, {"line": line(149, text=down(0)[0][1])}]),
    ):
        async with connecting as client:
            (tool,) = (await client.list_tools()).tools
            for argument in tool.input_schema["properties"].values():
                assert "description" in argument  # where clients look, not in one of its types
            for arguments in calls:
                check(role, tool, data(await ask(client, tool.name, **arguments)))

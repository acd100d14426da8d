"""`mcp-gpu xid` as a person runs it: over real agents and gateways, and on a log alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cluster import cluster
from support.terminal import WIDTH, Run, run, ways
from support.xids import BUS, line

FLEET = """
seed = 7
[[nodes]]
name = "a"
profile = "h100"
[[nodes.faults]]
kind = "xid"
gpu = 3
xid = 48
text = "DBE in the framebuffer"
seconds_ago = 60
[[nodes.faults]]
kind = "xid"
gpu = 3
xid = 63
text = "Row Remapper: New row marked for remapping"
seconds_ago = 60
[[nodes.faults]]
kind = "recovery_action"
gpu = 3
action = 4
[[nodes]]
name = "b"
profile = "t4"
"""


async def xid(*flags: str, stdin: str = "", terminal: bool = False) -> Run:
    return await run("xid", *flags, stdin=stdin, terminal=terminal)


async def test_a_gateway_and_the_agents_themselves_tell_the_same(tmp_path: Path) -> None:
    async with cluster(tmp_path, FLEET) as here:
        for way in ways(here):
            found = await xid(*way)
            assert (found.status, found.said) == (1, "")
            assert found.lines[0] == "2 of 2 nodes answered: 2 Xids on 1 node, none on 1 node"
            assert "WARNING  48 -> 63" in found.lines
            assert "   where  a GPU 3" in found.lines
            assert any(shown.startswith("   do     DRAIN_AND_RESET  ") for shown in found.lines)
            assert "By code: 48 x1 (1 node), 63 x1 (1 node)" in found.lines
            assert found.lines[-1].startswith("simulated: no real hardware")
            well = await xid(*way, "--nodes", "b")
            assert (well.status, well.lines[0]) == (0, "1 of 1 node answered: no Xids on 1 node")
        answer = (await xid(*ways(here)[0], "--json", "--codes", "63")).answer
        assert [total["code"] for total in answer["totals"]] == [63]
        assert answer["patterns"][0]["told"] == "48 -> 63"
        some = await xid(*ways(here)[0], "--codes", "63")
        assert some.lines[0].startswith("2 of 2 nodes answered: 1 Xid of code 63 on 1 node, none")
        past = await xid(*ways(here)[1], "--since", "30s", "--nodes", "a")
        assert past.lines[0] == "1 of 1 node answered: no Xids on 1 node"


async def test_a_node_that_does_not_answer_is_not_taken_for_well(tmp_path: Path) -> None:
    found = await xid("--agents", "a=127.0.0.1:9", "--transports", "http")
    assert found.status == 1
    assert found.lines[0] == "0 of 1 node answered: Xids UNKNOWN"
    assert "  ! a: unreachable: 127.0.0.1:9: connection refused" in found.lines


async def test_a_code_is_explained_without_a_fleet() -> None:
    found = await xid("--explain", "79")
    assert (found.status, found.said) == (0, "")
    assert found.lines[1].startswith("Xid 79: GPU has fallen off the bus")
    assert any(shown.startswith("   NVIDIA    RESTART_BM") for shown in found.lines)
    assert any(shown.endswith("and contact the vendor's support.") for shown in found.lines)
    assert " \n" not in found.shown
    at_a_terminal = await xid("--explain", "79", terminal=True)
    assert all(len(shown) <= WIDTH for shown in at_a_terminal.lines)
    assert len(at_a_terminal.lines) > len(found.lines)
    answer = (await xid("--explain", "79", "--json")).answer
    assert answer["explained"][0]["explanation"]["bucket"] == "RESTART_BM"


async def test_a_log_on_standard_input_is_explained() -> None:
    lines = [
        "[    0.000000] Linux version 6.8.0",
        f"[ 4711.100000] {line(48)}",
        f"[ 4711.200000] {line(63)}",
        *(f"[ 4711.3000{n:02}] {line(45, ch=n)}" for n in range(12)),
    ]
    found = await xid("--explain", "-", stdin="\n".join(lines) + "\n")
    assert (found.status, found.said) == (0, "")
    assert found.lines[0] == "14 Xids in 15 lines"
    assert f"follows: {BUS[0]}: 48 -> 63 -> 45 x12" in found.lines
    assert "   here      With 63: the GPU is drained before it is reset." in found.lines


async def test_no_number_of_different_errors_hides_another_code() -> None:
    """Of one code whose text decides there may be thousands of different ones."""
    registers = ", ".join(["0x0"] * 5)
    links = [
        line(74, text=f"pid=1, name=p, NVLink: fatal error detected on link {n % 18}"
             f"(0x{1 << n % 30:x}, 0x{n:x}, {registers})")
        for n in range(600)
    ]  # fmt: skip
    found = await xid("--explain", "-", stdin="\n".join([*links, line(79)]))
    assert any(each.startswith("Xid 79: ") for each in found.lines)


async def test_a_line_is_explained_by_the_drivers_branch() -> None:
    text = "NETIR_LINK_EVT Fatal XC0 i0 Link 03 (0x00400091 0x00000000 0x0 0x0 0x0 0x0 0x0)"
    found = await xid("--explain", line(149, text=text), "--driver-version", "580.105.08")
    assert any("RESET_GPU, then INVESTIGATE_LINK_SI" in shown for shown in found.lines)
    older = await xid("--explain", line(149, text=text), "--driver-version", "570.86.15")
    assert any("WORKFLOW_NVLINK5_ERR" in shown for shown in older.lines)


@pytest.mark.parametrize(
    ("asked", "stdin", "told"),
    [
        ("-", "nothing\nof the kind\n", "No Xid in 2 lines: it looks like `NVRM: Xid (PCI:"),
        ("-", "", "No Xid in 0 lines"),
        ("no Xid at all", "", "No Xid in 1 line"),
        ("777", "", "Xid 777"),
    ],
)
async def test_where_nothing_is_explained_the_exit_status_says_so(
    asked: str, stdin: str, told: str
) -> None:
    found = await xid("--explain", asked, stdin=stdin)
    assert (found.status, found.said) == (1, "")
    assert told in found.shown


async def test_the_help_says_what_the_exit_status_means() -> None:
    asks_for_a_reboot = await xid("--explain", "79")
    assert asks_for_a_reboot.status == 0
    told = " ".join((await xid("--help")).shown.split())
    assert "Exits 1 only if there is no Xid that is known in it" in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--since", "yesterday"], '--since: should be "boot", a duration'),
        (["--codes", "79,abc"], "--codes: 'abc' is no number"),
        (["--codes", "9" * 5000], "--codes: input should be less"),
        (["--codes", "x" * 5000], "--codes: 'xxxxxxxxxxxxxxxxxxxx' is no number"),
        (["--codes", "0"], "--codes: input should be greater"),
        (["--explain", "0"], "--explain: input should be greater"),
        (["--explain", "9" * 5000], "--explain: input should be less"),
        (["--explain", " "], "--explain: a code, a line of a log, or -"),
        (["--explain", "48", "--since", "2h"], "--since goes without --explain"),
        (["--explain", "48", "--nodes", "a"], "--nodes goes without --explain"),
        (
            ["--explain", "48", "--driver-version", "new"],
            "--driver-version: should be a driver's version",
        ),
        (["--driver-version", "580"], "--driver-version goes with --explain only"),
        (["--kubeconfig", "/nonexistent"], "--kubeconfig: no file"),
    ],
)
async def test_wrong_usage_is_told_in_one_line(flags: list[str], told: str) -> None:
    found = await xid(*flags)
    assert (found.status, found.shown) == (2, "")
    assert found.said.startswith(f"mcp-gpu xid: {told}")
    assert len(found.said.splitlines()) == 1

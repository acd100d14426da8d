"""Reading Xids from lines of the kernel log, whoever wrote the line and however it was cut."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcp_gpu.gpu.xid.line import TEXT_LIMIT, ParsedLine, bus_id, caused_by, parse


def xid(
    code: int,
    bus: str = "0000:53:00",
    pid: int | None = None,
    process: str | None = None,
    text: str = "",
    caused_by: int | None = None,
) -> ParsedLine:
    return ParsedLine("xid", code, bus, pid, process, text, caused_by)


MESSAGE = "NVRM: Xid (PCI:0000:53:00): 31, pid=1234, name=python3, Ch 00000010, MMU Fault"
SAID = xid(31, pid=1234, process="python3", text="Ch 00000010, MMU Fault")


@pytest.mark.parametrize(
    "line",
    [
        MESSAGE,
        f"6,1234,98765432,-;{MESSAGE}",
        f"6,1234,98765432,-;{MESSAGE}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:53:00.0\n",
        f"6,1234,98765432,c,caller=T42;{MESSAGE}",
        f"[ 1234.567890] {MESSAGE}",
        f"[Wed Aug  5 03:12:01 2026] {MESSAGE}",
        f"<4>[1234.567890] {MESSAGE}\r\n",
        f"\x1b[32m[ 1234.567890] \x1b[0m\x1b[33mNVRM: \x1b[0m{MESSAGE.removeprefix('NVRM: ')}",
        f"Nov 25 10:11:12 node-7 kernel: {MESSAGE}",
        f"2026-11-25T10:11:12.123456+00:00 node-7 kernel: [ 1234.567890] {MESSAGE}",
        f"about Xid (errors): {MESSAGE}",
    ],
)
def test_a_line_says_the_same_behind_any_prefix(line: str) -> None:
    assert parse(line) == SAID


LINES: Final = [
    ("NVRM: Xid (0000:01:00): 31, Ch 00000010", xid(31, "0000:01:00", text="Ch 00000010")),
    ("NVRM: Xid (PCI:0000:04:00): 79, GPU has fallen off the bus.",
     xid(79, "0000:04:00", text="GPU has fallen off the bus.")),
    ("NVRM: Xid (PCI:0000:05:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off",
     xid(79, "0000:05:00", text="GPU has fallen off")),
    ("NVRM: Xid (PCI:0000:05:00): 79, pid=<unknown>, name=<unknown>, GPU has fallen off",
     xid(79, "0000:05:00", text="GPU has fallen off")),
    ("NVRM: Xid (PCI:0000:05:00): 43, pid='77', name=a b, Ch 8",
     xid(43, "0000:05:00", 77, "a b", "Ch 8")),
    ("NVRM: Xid (PCI:0000:61:00): 119, pid=1346198, name=nvidia-smi, Timeout waiting for RPC",
     xid(119, "0000:61:00", 1346198, "nvidia-smi", "Timeout waiting for RPC")),
    ("NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x004505c6 0x0)",
     xid(149, "0018:01:00", text="NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x004505c6 0x0)")),
    ("NVRM: Xid (PCI:0000:AF:00 GPU-I:01 GPU-CI:00): 43, pid=12, name=x, Ch 8",
     xid(43, "0000:af:00", 12, "x", "Ch 8")),
    ("NVRM: Xid (PCI:0000:AF:00.0): 48", xid(48, "0000:af:00")),
    ("NVRM: Xid (PCI:00000000:af:00.0): 48", xid(48, "0000:af:00")),
    ("NVRM: Xid (PCI:10000:e1:00): 48", xid(48, "10000:e1:00")),
    ("NVRM: Xid (PCI:0000:53:00): 45, pid=9, name=x, Ch 00000001 caused by previous Xid 149",
     xid(45, pid=9, process="x", text="Ch 00000001 caused by previous Xid 149", caused_by=149)),
    ("NVRM: Xid (PCI:0000:53:00): 31, pid=1234, Ch 00000010",
     xid(31, pid=1234, text="Ch 00000010")),
    ("NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.",
     xid(79, "0000:18:00", text="GPU has fallen off the bus.")),
    ("NVRM: GPU at PCI:0000:18:00: GPU has fallen off the bus.",
     xid(79, "0000:18:00", text="GPU has fallen off the bus.")),
    ("NVRM: GPU at 0000:18:00.0 has fallen off the bus.",
     xid(79, "0000:18:00", text="has fallen off the bus.")),
    ("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
     ParsedLine("sxid", 20034, "0000:c1:00", None, None, "Fatal, Link 30 LTSSM Fault Up", None)),
    ("SXid (PCI:0000:c1:00.0): 12028, Non-fatal",
     ParsedLine("sxid", 12028, "0000:c1:00", None, None, "Non-fatal", None)),
]  # fmt: skip


@pytest.mark.parametrize(("line", "said"), LINES, ids=[line[:48] for line, _ in LINES])
def test_the_forms_that_drivers_write(line: str, said: ParsedLine) -> None:
    assert parse(line) == said


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\0",
        "usb 1-1: new high-speed USB device number 2 using xhci_hcd",
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.95.05",
        "NVRM: GPU at PCI:0000:53:00: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77",
        "NVRM: Xid",
        "NVRM: Xid (",
        "NVRM: Xid (PCI:0000:53:00",
        "NVRM: Xid (PCI:0000:53:00): ",
        "NVRM: Xid (PCI:0000:53:00): seventy-nine",
        "NVRM: Xid (PCI:0000:53:00): 0x4f, GPU",
        "NVRM: Xid (PCI:0000:53:00): 79th of many",
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): garbled, Fatal",
        "somebody has fallen off the bus",
        "monitor: no Xid (error) seen: 79",
    ],
)
def test_what_is_no_xid(line: str) -> None:
    assert parse(line) is None


WHOLE = "NVRM: Xid (PCI:0000:53:00): 149, pid=123456, name=python3, Ch 1 caused by previous Xid 48"


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_line_that_was_cut_names_no_other_process(length: int) -> None:
    said = parse(WHOLE[:length])
    if said is None:
        assert length <= WHOLE.index("149")
        return
    assert (said.kind, said.bus_id) == ("xid", "0000:53:00")
    assert said.code in (1, 14, 149)
    assert said.code == 149 or length < WHOLE.index(", pid")
    assert said.pid in (None, 123456)
    assert said.pid == 123456 or length <= WHOLE.index(", name")
    assert "python3".startswith(said.process or "")
    assert said.caused_by in (None, 4, 48)


@pytest.mark.parametrize(
    ("line", "pid"),
    [
        ("NVRM: Xid (PCI:0000:53:00): 43, pid=0, name=x, Ch", None),
        ("NVRM: Xid (PCI:0000:53:00): 43, pid=4194305, name=x, Ch", None),
        ("NVRM: Xid (PCI:0000:53:00): 43, pid=99999999999999999999, name=x, Ch", None),
        ("NVRM: Xid (PCI:0000:53:00): 43, pid=-4, name=x, Ch", None),
        ("NVRM: Xid (PCI:0000:53:00): 43, pid=4194304, name=x, Ch", 4194304),
    ],
)
def test_a_number_that_can_be_no_process_is_none(line: str, pid: int | None) -> None:
    assert parse(line) == xid(43, pid=pid, process="x", text="Ch")


@pytest.mark.parametrize(
    "line",
    [
        "A" * 1_000_000,
        "Xid (" * 200_000,
        "Xid (PCI:" + "0" * 1_000_000,
        "Xid (PCI:0000:53:00" + " " * 1_000_000,
        "NVRM: Xid (PCI:0000:53:00): " + "9" * 1_000_000,
        "NVRM: GPU " * 100_000 + "fallen off the bus",
        "fallen off the bus" * 50_000,
    ],
    ids=lambda line: line[:30],
)
def test_a_hostile_line_is_no_xid(line: str) -> None:
    assert parse(line) is None


@pytest.mark.parametrize(
    "rest",
    [
        ", pid=" + "'" * 1_000_000,
        ", pid=1, name=" + "x" * 1_000_000,
        ", pid=1, name=" + ", " * 500_000,
        ", " + "caused by previous Xid " * 50_000 + "9" * 1_000_000,
        ", " + "\x1b[31m\0\udcff" * 200_000,
    ],
    ids=lambda rest: repr(rest[:30]),
)
def test_what_is_kept_of_a_hostile_line_is_bounded_and_printable(rest: str) -> None:
    said = parse("NVRM: Xid (PCI:0000:53:00): 79" + rest)
    assert said is not None
    assert (said.code, said.bus_id) == (79, "0000:53:00")
    assert len(said.text) <= TEXT_LIMIT
    assert len(said.process or "") <= 64
    assert said.text.isprintable()


@given(st.text())
@example("Xid (): 1")
@example("Xid (PCI:): 000000000")
@example("Xid (PCI:0000:53:00): ٣, pid=٣, name=x")
def test_no_text_breaks_the_parser(text: str) -> None:
    for line in (text, f"NVRM: Xid (PCI:{text}", f"NVRM: Xid (PCI:0000:53:00): 31, pid={text}"):
        said = parse(line)
        assert said is None or (said.text.isprintable() and len(said.text) <= TEXT_LIMIT)


WORD = st.text(st.characters(codec="ascii", exclude_characters=",'", categories=["L", "N", "P"]),
               min_size=1, max_size=15)  # fmt: skip


@given(
    code=st.integers(0, 999_999_999),
    where=st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFF), st.integers(0, 0x1F)),
    pid=st.integers(1, 4_194_304),
    name=WORD.filter(lambda word: word != "<unknown>"),
    words=st.lists(WORD, max_size=8),
)
def test_what_the_driver_writes_comes_back(
    code: int, where: tuple[int, int, int], pid: int, name: str, words: list[str]
) -> None:
    bus = "{:04x}:{:02x}:{:02x}".format(*where)
    text = " ".join(words)
    said = parse(f"NVRM: Xid (PCI:{bus.upper()}): {code}, pid={pid}, name={name}, {text}")
    assert said == xid(code, bus, pid, name, text, caused_by(text))


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ("0000:53:00", "0000:53:00"),
        ("00000000:53:00.0", "0000:53:00"),
        ("PCI:0000:AF:1F", "0000:af:1f"),
        ("53:00.0", "0000:53:00"),
        ("53:00", "0000:53:00"),
        ("0000:53:00.8", ""),
        ("0053", ""),
        ("", ""),
        ("GPU-5d5ba0d6", ""),
    ],
)
def test_a_pci_address_is_spelled_in_one_way(told: str, known: str) -> None:
    assert bus_id(told) == known

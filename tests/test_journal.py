"""The journal, from files that systemd itself has written (tests/data/journal/make.py)."""

from __future__ import annotations

import lzma
import os
import random
import struct
import threading
from pathlib import Path

import pytest

from mcp_gpu.gpu.xid.coverage import missed
from mcp_gpu.gpu.xid.model import XidEvent
from mcp_gpu.node import journal as journal_module
from mcp_gpu.node import journal_file
from mcp_gpu.node.boot import Boot
from mcp_gpu.node.journal import PAST_SECONDS, Journal

DATA = Path(__file__).parent / "data" / "journal"
FIRST, SECOND = 1_790_000_000.0, 1_790_086_400.0
"""When the two boots in the files began; `make.py` has the entries."""

NOW = SECOND + 3600
MACHINE = "c" * 32
FALLEN = (79, FIRST + 500, "0000:53:00")
FAULTS = [(31, FIRST + 2, "0000:1b:00"), (31, SECOND + 120, "0000:1b:00")]
ALL = [FAULTS[0], FALLEN, FAULTS[1], (31, SECOND + 120.25, "0000:1b:00")]

MODES = ("regular", "compact")


def written(mode: str) -> bytes:
    return lzma.decompress((DATA / f"{mode}.journal.xz").read_bytes())


def put(root: Path, content: bytes, name: str = "system.journal", machine: str = MACHINE) -> Path:
    (root / machine).mkdir(exist_ok=True)
    path = root / machine / name
    path.write_bytes(content)
    return path


def followed(*paths: Path, **options: object) -> tuple[Journal, list[XidEvent]]:
    events: list[XidEvent] = []
    boot = Boot("b" * 32, SECOND)
    made = Journal(paths, boot=boot, deliver=events.append, clock=lambda: NOW, **options)  # type: ignore[arg-type]
    return made, events


def scan(journal: Journal) -> int:
    """Look once. Returns in how many slices."""
    return sum(1 for _ in journal.scan())


def told(events: list[XidEvent]) -> list[tuple[int, float, str]]:
    return [(event.code, event.at, event.bus_id) for event in events]


@pytest.mark.parametrize("mode", MODES)
def test_the_kernel_s_xids_of_all_boots_are_told(tmp_path: Path, mode: str) -> None:
    put(tmp_path, written(mode))
    journal, events = followed(tmp_path)
    scan(journal)
    assert told(events) == ALL
    assert [event.boot_id for event in events] == ["a" * 32] * 2 + ["b" * 32] * 2
    assert {event.source for event in events} == {"journal"}
    assert (events[0].pid, events[0].process) == (4242, "python3")
    state = journal.state
    assert state.live
    assert state.message == ""
    # When the first entry of all was taken; the long line is compressed with ZSTD.
    assert (state.covers_since, state.lost_records) == (FIRST + 9, 1)


def test_times_agree_with_the_kernel_log_where_that_is_read_too(tmp_path: Path) -> None:
    put(tmp_path, written("regular"))
    events: list[XidEvent] = []
    fast = Boot("b" * 32, SECOND - 40)
    journal = Journal(
        [tmp_path],
        boot=fast,
        deliver=events.append,
        kernel_log_read=lambda: True,
        clock=lambda: NOW,
    )
    scan(journal)
    assert [event.at for event in events if event.boot_id == "b" * 32] == [
        fast.at(120_000_000),
        fast.at(120_250_000),
    ]
    assert [event.at for event in events if event.boot_id == "a" * 32] == [FIRST + 2, FIRST + 500]


@pytest.mark.parametrize("mode", MODES)
def test_what_is_added_is_told_once_in_every_state_of_the_writing(
    tmp_path: Path, mode: str
) -> None:
    """The file as it was while it grew: the kernel's entries are counted up one by one."""
    content = bytearray(written(mode))
    total, place = kernel_entries(bytes(content))
    path = put(tmp_path, bytes(content))
    journal, events = followed(tmp_path)
    counts = []
    for number in range(total + 1):
        struct.pack_into("<Q", content, place, number)
        struct.pack_into("<Q", content, 160, number)  # tail_entry_seqnum
        path.write_bytes(content)
        scan(journal)
        counts.append(len(events))
    assert told(events) == ALL
    assert counts[:3] == [0, 1, 1]
    assert counts == sorted(counts)


def kernel_entries(content: bytes) -> tuple[int, int]:
    """How many entries the value `_TRANSPORT=kernel` has, and where that number stands."""
    payload = content.index(b"_TRANSPORT=kernel")
    start = payload - (72 if content[12] & 16 else 64)
    assert content[start] == 1
    (count,) = struct.unpack_from("<Q", content, start + 56)
    return count, start + 56


def test_a_rotated_file_is_known_by_its_id(tmp_path: Path) -> None:
    path = put(tmp_path, written("regular"))
    journal, events = followed(tmp_path)
    scan(journal)
    path.rename(path.with_name("system@0001-0002.journal"))
    put(tmp_path, written("compact"))
    scan(journal)
    scan(journal)
    assert told(events) == ALL * 2


@pytest.mark.parametrize("mode", MODES)
def test_an_entry_that_was_counted_before_it_could_be_found_is_told(
    tmp_path: Path, mode: str
) -> None:
    content = bytearray(written(mode))
    total, place = kernel_entries(bytes(content))
    struct.pack_into("<Q", content, place, total - 1)
    path = put(tmp_path, bytes(content))
    journal, events = followed(tmp_path)
    scan(journal)
    assert told(events) == ALL[:-1]
    path.write_bytes(written(mode))
    scan(journal)
    assert told(events) == ALL


def test_the_same_folder_mounted_twice_is_one(tmp_path: Path) -> None:
    path = put(tmp_path, written("regular"))
    other = tmp_path / "host"
    (other / MACHINE).mkdir(parents=True)
    os.link(path, other / MACHINE / "system.journal")
    journal, events = followed(tmp_path, other)
    scan(journal)
    assert told(events) == ALL


def test_what_an_unclean_end_has_left_is_read(tmp_path: Path) -> None:
    put(tmp_path, written("compact"), "system@0005.journal~")
    journal, events = followed(tmp_path)
    scan(journal)
    assert told(events) == ALL


def test_files_of_users_and_of_other_machines_are_not_read(tmp_path: Path) -> None:
    foreign = written("regular").replace(bytes.fromhex("b" * 32), b"\x01" * 16)
    put(tmp_path, foreign, machine="d" * 32)
    put(tmp_path, written("regular"), "user-1000.journal")
    put(tmp_path, written("compact"))
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "system.journal").write_bytes(written("regular"))
    journal, events = followed(tmp_path)
    scan(journal)
    assert told(events) == ALL


def test_nothing_older_than_a_week_is_told(tmp_path: Path) -> None:
    put(tmp_path, written("regular"))
    events: list[XidEvent] = []
    boot = Boot("b" * 32, SECOND)
    later = FIRST + 400 + PAST_SECONDS
    journal = Journal([tmp_path], boot=boot, deliver=events.append, clock=lambda: later)
    scan(journal)
    assert told(events) == ALL[1:]
    assert journal.state.covers_since == FIRST + 400


def test_the_first_look_takes_the_newest_of_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "PAST_MESSAGES", 3)
    put(tmp_path, written("regular"))
    journal, events = followed(tmp_path)
    scan(journal)
    assert told(events) == ALL[1:]
    # Of what came before it is only known that it was there.
    assert journal.state.covers_since == FIRST + 400


def test_it_is_read_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_SLICE", 10)
    put(tmp_path, written("compact"))
    journal, events = followed(tmp_path)
    assert scan(journal) == 7
    assert told(events) == ALL


# --- what no journal should be --------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_ends_anywhere_raises_nothing(tmp_path: Path, mode: str) -> None:
    content = written(mode)
    end = len(content.rstrip(b"\0"))
    for size in (*range(0, 300, 7), *range(300, end, end // 60)):
        path = put(tmp_path, content[:size])
        journal, events = followed(tmp_path)
        scan(journal)
        assert len(events) <= len(ALL)
        # And when the rest comes, all is told.
        path.write_bytes(content)
        scan(journal)
        assert told(events) == ALL, size


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_neither_raises_nor_loops(tmp_path: Path, mode: str, seed: int) -> None:
    random_ = random.Random(seed)
    content = bytearray(written(mode))
    end = len(content.rstrip(b"\0"))
    for _ in range(random_.choice((3, 30, 3000))):
        at = random_.randrange(8, end - 8)
        content[at : at + 8] = random_.choice(
            (
                random_.randbytes(8),
                struct.pack("<Q", random_.randrange(0, end) & ~7),
                b"\xff" * 8,
                bytes(8),
            )
        )
    put(tmp_path, bytes(content))
    journal, events = followed(tmp_path)
    assert scan(journal) < 1000
    assert scan(journal) < 1000
    assert len(events) < 1000


def test_a_chain_that_leads_back_ends(tmp_path: Path) -> None:
    content = bytearray(written("regular"))
    _, place = kernel_entries(bytes(content))
    (array,) = struct.unpack_from("<Q", content, place - 8)
    struct.pack_into("<Q", content, array + 16, array)
    put(tmp_path, bytes(content))
    journal, events = followed(tmp_path)
    scan(journal)
    assert told(events) == ALL[:1]
    assert not journal.state.live
    assert "leads back" in journal.state.message


def test_a_message_compressed_with_xz_is_unpacked(tmp_path: Path) -> None:
    """A value is put in another's place as older journals have it."""
    content = bytearray(written("regular"))
    message = b"MESSAGE=NVRM: Xid (PCI:0000:53:00): 79"
    payload = content.index(message)
    size = struct.unpack_from("<Q", content, payload - 56)[0] - 64
    text = b"MESSAGE=NVRM: Xid (PCI:0000:99:00): 48, DBE"
    packed = lzma.compress(text, check=lzma.CHECK_NONE, preset=0)
    assert len(packed) <= size
    content[payload : payload + len(packed)] = packed
    content[payload - 63] |= 1
    struct.pack_into("<Q", content, payload - 56, 64 + len(packed))
    put(tmp_path, bytes(content))
    journal, events = followed(tmp_path)
    scan(journal)
    assert (48, FIRST + 500, "0000:99:00") in told(events)


@pytest.mark.parametrize("content", [b"", b"not a journal" * 100, b"LPKSHHRH" + b"\xff" * 300])
def test_what_is_no_journal_is_said(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, content)
    journal, _ = followed(tmp_path)
    scan(journal)
    assert not journal.state.live
    assert "former boots are not seen" in journal.state.message


def test_without_a_journal_it_is_said_what_to_mount(tmp_path: Path) -> None:
    journal, _ = followed(tmp_path / "nowhere")
    scan(journal)
    assert "mount the node's /var/log/journal read-only" in journal.state.message
    assert journal.state.covers_since is None


def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / MACHINE).mkdir()
    loop = tmp_path / MACHINE / "system.journal"
    loop.symlink_to(loop)
    journal, _ = followed(tmp_path)
    scan(journal)
    assert "in the group systemd-journal" in journal.state.message


def test_files_that_cannot_be_read_beside_others_are_told(tmp_path: Path) -> None:
    newer = bytearray(written("regular"))
    struct.pack_into("<I", newer, 12, 1 << 6)
    put(tmp_path, bytes(newer), "system@0001.journal")
    put(tmp_path, written("regular")[:300], "system@0002.journal")
    path = put(tmp_path, written("compact"))
    journal, events = followed(tmp_path)
    scan(journal)
    assert told(events) == ALL
    state = journal.state
    assert state.live
    assert state.message.startswith("2 of 3 journal files cannot be read: ")
    assert "written by a newer systemd (flags 0x40)" in state.message
    assert str(tmp_path) not in state.message
    said = list(missed([state], since=FIRST, former_boots=True, dropped=False))
    assert state.message in said
    for name in ("system@0001.journal", "system@0002.journal"):
        path.with_name(name).unlink()
    scan(journal)
    assert journal.state.message == ""


def test_messages_that_cannot_be_unpacked_are_not_said_to_be_overwritten(tmp_path: Path) -> None:
    put(tmp_path, written("regular"))
    journal, _ = followed(tmp_path)
    scan(journal)
    assert journal.state.lost_records == 1
    said = list(missed([journal.state], since=NOW, former_boots=True, dropped=False))
    assert [each for each in said if "compressed or damaged" in each]
    assert not [each for each in said if "overwritten" in each]


def test_of_too_many_files_the_newest_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_FILES", 2)
    path = put(tmp_path, written("regular"))
    for number in range(20):
        old = put(tmp_path, b"LPKSHHRH", f"system@{number:04}.journal")
        os.utime(old, (FIRST, FIRST))
    journal, events = followed(tmp_path)
    scan(journal)
    assert told(events) == ALL
    for number in range(20):
        content = bytearray(written("regular"))
        content[24:40] = number.to_bytes(16, "little")  # file_id
        path.write_bytes(content)
        scan(journal)
    assert len(journal._known) <= 5


def test_a_field_without_end_is_looked_for_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_file, "_MAX_OBJECTS", 50)
    content = bytearray(written("regular")[:208] + bytes(16))
    struct.pack_into("<QQ", content, 120, 208, 16)  # one bucket
    struct.pack_into("<Q", content, 208, 224)
    for number in range(100):
        after = 224 + 48 * (number + 1)
        content += struct.pack("<BxxxxxxxQQQQ8s", 2, 48, 0, after, 0, b"_FIELD_X")
    content += struct.pack("<BxxxxxxxQQQQ16s", 2, 50, 0, 0, 0, b"_TRANSPORT")
    put(tmp_path, bytes(content))
    journal, _ = followed(tmp_path)
    scan(journal)
    assert "more fields than there can be" in journal.state.message


def test_it_has_a_thread_that_ends_when_it_is_told_to(tmp_path: Path) -> None:
    put(tmp_path, written("regular"))
    heard = threading.Event()
    journal = Journal(
        [tmp_path],
        boot=Boot("b" * 32, SECOND),
        deliver=lambda event: heard.set(),
        clock=lambda: NOW,
    )
    journal.start()
    assert heard.wait(20)
    journal.stop()
    journal._thread.join(20)
    assert not journal._thread.is_alive()

"""What a piece of a kernel log tells of Xids, wherever it was taken from: `read`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final

from pydantic import Field

from mcp_gpu.gpu.actions import heaviest, weight
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.gpu.xid.catalogue import entry
from mcp_gpu.gpu.xid.explain import Explanation, explain
from mcp_gpu.gpu.xid.incidents import TEXT_DECIDES, Incident, links, relate
from mcp_gpu.gpu.xid.line import ParsedLine, parse
from mcp_gpu.gpu.xid.log import XidLog
from mcp_gpu.gpu.xid.model import Kind, XidEvent
from mcp_gpu.gpu.xid.present import Present
from mcp_gpu.gpu.xid.report import shown
from mcp_gpu.gpu.xid.workflows import Ruling, rule

__all__ = ["EXPLAINED", "Excerpt", "Explained", "alone", "read"]

EXPLAINED: Final = 20
"""Different Xids explained; the rest are counted."""

CHAINS: Final = 10
"""Chains of cause and effect told."""

LINE_CHARS: Final = 400
"""Kept of a line."""

NOTES: Final = 2

_APART: Final = 16
"""Different Xids of one code told apart; what differs beyond that is counted with one that asks for
the same."""

_CODES: Final = 1024
"""Different codes told apart: more than there are."""

_KMSG: Final = re.compile(r"\d{1,10},\d{1,20},(\d{1,20}),")
_DMESG: Final = re.compile(r"\[ {0,10}(\d{1,10}\.\d{1,9})\]")
_ISO: Final = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)")
_MONTHS: Final = "JanFebMarAprMayJunJulAugSepOctNovDec"
_CLOCK: Final = re.compile(r"\b([A-Z][a-z]{2}) {1,2}(\d{1,2}) (\d\d):(\d\d):(\d\d)\b")
"""`Nov 26 10:02:11`, of syslog, journalctl and dmesg -T."""


class Explained(Wire):
    """One Xid and what it means here."""

    explanation: Explanation
    count: int = Field(description="Lines that tell of it; 0: only the code was asked for.")
    action: str = Field(description="NVIDIA's action in the company of the other lines.")
    note: str = Field(description="What their company makes of it; empty: nothing.")
    line: str = Field(description="The first that tells of it.")


class Excerpt(Wire):
    """The Xids of an excerpt, the grave ones first."""

    explained: tuple[Explained, ...]
    omitted: int = Field(description="Different Xids besides.")
    chains: tuple[str, ...] = Field(description="Cause and effect, such as 0000:53:00: 48 -> 45.")
    lines: int
    xids: int = Field(description="Lines that tell of an Xid.")


_Key = tuple[Kind, int, str, tuple[str, ...], int | None]
"""What makes an Xid a different one: kind, code, action, registers and named cause."""


def read(lines: Iterable[str], *, driver_branch: int | None) -> Excerpt:
    """Explain each different Xid once, and say what follows from what.

    Memory stays bounded, however long the log is. A line without a time is taken to be of one
    moment with the line before it.
    """
    log = XidLog()
    found: dict[tuple[Kind, int], dict[_Key, Explained]] = {}
    count = xids = 0
    at = 0.0
    for line in lines:
        count += 1
        parsed = parse(line)
        if parsed is None:
            continue
        xids += 1
        at = _time(line, at)
        log.add(_event(parsed, at))
        _count(found, parsed, line, driver_branch)
    scene = relate(log.bursts(), Present(driver_branch=driver_branch))
    company: defaultdict[tuple[Kind, int], list[Ruling]] = defaultdict(list)
    if xids > 1:  # of a single line nobody knows what came before it
        for incident in scene.incidents:
            company[incident.kind, incident.code].append(rule(incident, scene))
    explained = [
        _in_company(each, company[each.explanation.kind, each.explanation.code])
        for alike in found.values()
        for each in alike.values()
    ]
    explained.sort(key=lambda each: (-weight(each.action), each.count, each.explanation.code))
    return Excerpt(
        explained=tuple(explained[:EXPLAINED]),
        omitted=max(len(explained) - EXPLAINED, 0),
        chains=tuple(_chains(scene.incidents))[:CHAINS],
        lines=count,
        xids=xids,
    )


def alone(said: Explanation) -> str:
    """What it asks for by itself, which is nothing where NVIDIA's bucket is but the one of all
    codes that today's boards do not have."""
    known = entry(said.code) if said.kind == "xid" else None
    return "NONE" if known is not None and known.unused else said.action


def _time(line: str, last: float) -> float:
    """Seconds, from when on depends on the line; those of one log can be compared."""
    if (found := _KMSG.match(line)) is not None:
        return int(found[1]) / 1e6
    if (found := _ISO.search(line)) is not None:
        try:
            return datetime.fromisoformat(f"{found[1]}T{found[2]}Z").timestamp()
        except ValueError:
            return last
    if (found := _CLOCK.search(line)) is not None:
        month, day, hour, minute, second = found.groups()
        days = _MONTHS.find(month) // 3 * 31 + int(day)
        return days * 86_400.0 + int(hour) * 3600 + int(minute) * 60 + int(second)
    if (found := _DMESG.search(line)) is not None:
        return float(found[1])
    return last


def _event(parsed: ParsedLine, at: float) -> XidEvent:
    return XidEvent(
        code=parsed.code,
        at=at,
        source="kernel_log",
        kind=parsed.kind,
        bus_id=parsed.bus_id,
        pid=parsed.pid,
        process=parsed.process,
        text=parsed.text,
    )


def _count(
    found: dict[tuple[Kind, int], dict[_Key, Explained]],
    parsed: ParsedLine,
    line: str,
    driver_branch: int | None,
) -> None:
    decides = parsed.kind == "sxid" or parsed.code in TEXT_DECIDES or parsed.caused_by is not None
    text = parsed.text if decides else ""
    said = _explanation(parsed.code, text, parsed.kind, driver_branch)
    key = (said.kind, said.code, said.action, said.decoded, said.caused_by)
    of_code = (said.kind, said.code)
    if of_code not in found and len(found) >= _CODES:
        return
    alike = found.setdefault(of_code, {})
    if key not in alike and len(alike) >= _APART:
        key = next((each for each in alike if each[2] == said.action), key)
    known = alike.get(key)
    if known is None:
        # Where the text decides nothing, what the first line says stands for all.
        said = _explanation(parsed.code, parsed.text, parsed.kind, driver_branch)
        alike[key] = Explained(
            explanation=said, count=1, action=alone(said), note="", line=shown(line, LINE_CHARS)
        )
    else:
        alike[key] = known.model_copy(update={"count": known.count + 1})


@lru_cache(maxsize=256)
def _explanation(code: int, text: str, kind: Kind, driver_branch: int | None) -> Explanation:
    return explain(code, text=text, kind=kind, driver_branch=driver_branch)


def _in_company(one: Explained, rulings: Sequence[Ruling]) -> Explained:
    if not rulings:
        return one
    notes = filter(None, dict.fromkeys(ruling.note for ruling in rulings))
    action = heaviest(ruling.action for ruling in rulings)
    if one.explanation.code in TEXT_DECIDES:
        action = one.action  # by its own registers, which differ from line to line
    return one.model_copy(update={"action": action, "note": " ".join(list(notes)[:NOTES])})


def _chains(incidents: Sequence[Incident]) -> Iterator[str]:
    """Those in which something follows, heaviest cause first, alike ones once."""
    heads = [incident for incident in incidents if incident.followers]
    heads.sort(key=lambda head: -weight(head.explanation.action))
    told = (f"{head.bus_id or 'device not named'}: {_words(head)}" for head in heads)
    yield from dict.fromkeys(told)


def _words(head: Incident) -> str:
    """`48 -> 63 -> 45 x12`."""
    parts = []
    for first, count in links(head.chain):
        times = f" x{count}" if count > 1 else ""
        where = "" if first.bus_id == head.bus_id else f" on {first.bus_id}"
        parts.append(f"{first.code}{times}{where}")
    return " -> ".join(parts)

"""A connectivity report for a model's or a person's eye: the verdict first, and never long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcp_gpu.fleet.diagnosis.model import Cause
from mcp_gpu.tools.connectivity_report import FleetConnectivity, NodeConnectivity, PathTotals
from mcp_gpu.tools.spans import counted, spans

__all__ = ["Group", "groups", "headline", "healthy_line", "lines", "path_line"]

LINES = 40
"""The whole text, for a fleet of any size in any state."""

LINE_CHARS = 220
"""Length of one line. With commands, which are shown whole or not at all, the text stays under
10,000 characters."""

COMMAND_CHARS = 400
"""A longer command is left to the structured content."""

BLOCK_CHARS = 1500
"""As for a command of several lines."""

GROUPS = 4
"""Kinds of unhealthy nodes told; two lines each."""

PATTERNS = 3

NOTES = 2
"""Nodes without an agent and things not read that are told, of each."""

LEAST_CAUSE_LINES = 3
"""A cause, one piece of evidence, one fix."""


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that look alike over every path."""

    nodes: tuple[NodeConnectivity, ...]

    @property
    def names(self) -> str:
        return spans([node.node for node in self.nodes])

    @property
    def paths(self) -> str:
        """`http connect_timeout, exec ok (410-520 ms)`."""
        told = []
        for position, path in enumerate(self.nodes[0].paths):
            taken = [node.paths[position].ms for node in self.nodes]
            known = sorted(ms for ms in taken if ms is not None)
            words = f"{path.via} {path.outcome}"
            if path.outcome == "ok" and known:
                words += f" ({_milliseconds(known[0], known[-1])})"
            told.append(words)
        return ", ".join(told) or "no path applies"

    @property
    def use(self) -> str:
        """What calls do about it."""
        in_use = self.nodes[0].in_use
        if in_use is not None:
            return f"calls use {in_use}"
        if self.answers:
            return ""
        late = any(path.outcome == "not_tried" for path in self.nodes[0].paths)
        return "not looked at to the end" if late else "no path works"

    @property
    def answers(self) -> bool:
        return any(path.outcome == "ok" for path in self.nodes[0].paths)

    @property
    def example(self) -> str:
        """What one of them met on its best path that fails."""
        node = self.nodes[0]
        failed = (p for p in node.paths if p.message and p.outcome not in ("ok", "not_tried"))
        first = next(failed, None)
        said = f"{node.node} {first.via}: {first.message}" if first else ""
        return "; ".join(part for part in (said, node.explanation) if part)


def groups(nodes: Sequence[NodeConnectivity]) -> list[Group]:
    """Nodes drawn together by how their paths look: the unreachable first, then the many."""
    alike: dict[tuple[object, ...], list[NodeConnectivity]] = {}
    for node in nodes:
        look = (node.in_use, *((path.via, path.outcome) for path in node.paths))
        alike.setdefault(look, []).append(node)
    found = [Group(tuple(members)) for members in alike.values()]
    return sorted(found, key=lambda group: (group.answers, -len(group.nodes)))


def lines(told: FleetConnectivity, unwell: Sequence[NodeConnectivity]) -> list[str]:
    """The text, of at most `LINES` lines.

    Args:
        unwell: the nodes to speak of; more than are listed in `told`.
    """
    head = [f"{told.verdict.upper()}: {headline(told)}", healthy_line(told)]
    head += [f"Paths: {'; '.join(map(path_line, told.paths))}"] if told.paths else []
    if told.coverage.said_of_discovery:
        head.append(told.coverage.said_of_discovery)
    rest = [*_group_lines(groups(unwell)), *_notes(told)]
    causes = _cause_lines(told.causes, LINES - len(head) - len(rest))
    return [*map(_clipped, head), *causes, *map(_clipped, rest)]


def headline(told: FleetConnectivity) -> str:
    """Without the verdict that a diagnosis begins its own with."""
    return told.headline.removeprefix(f"{told.verdict}: ")


def healthy_line(told: FleetConnectivity) -> str:
    """All healthy nodes as one count."""
    by_path = ", ".join(f"{count} over {via}" for via, count in told.healthy_by_path.items())
    counts = f"{told.nodes_healthy} of {counted(told.coverage.nodes_asked)} healthy"
    return f"{counts}: {by_path}" if by_path else counts


def path_line(path: PathTotals) -> str:
    """`http 970 ok (median 3 ms), 30 connect_timeout`."""
    told = []
    for outcome, count in path.outcomes.items():
        words = f"{count} {outcome}"
        if outcome == "ok" and path.median_ms is not None:
            words += f" (median {path.median_ms:.0f} ms)"
        told.append(words)
    return f"{path.via} {', '.join(told)}"


def _cause_lines(causes: Sequence[Cause], room: int) -> list[str]:
    """Most room for the likeliest; a line at the end says that something was left out."""
    full = [_cause(number, cause) for number, cause in enumerate(causes, 1)]
    if sum(map(len, full)) <= room:
        return [line for block in full for line in block]
    room -= 1
    shown = causes[: max(room // LEAST_CAUSE_LINES, 1)]
    found: list[str] = []
    for position, cause in enumerate(shown):
        later = len(shown) - position - 1
        own = room - len(found) - LEAST_CAUSE_LINES * later
        found += _cause(position + 1, cause, most=max(own, LEAST_CAUSE_LINES))
    more = len(causes) - len(shown)
    others = f"{more} more {'cause' if more == 1 else 'causes'} and " if more else ""
    return [*found, f"({others}more evidence and fixes in the structured content)"]


def _cause(number: int, cause: Cause, most: int = LINES) -> list[str]:
    """The cause in at most so many lines, of which fixes get two thirds."""
    nodes = spans(cause.nodes, count=cause.node_count)
    concerned = f", {counted(cause.node_count)}: {nodes}" if nodes else ""
    certainty = f"{cause.code}, {cause.confidence} confidence{concerned}"
    blocks = [f"   fix: {each}".splitlines() for each in cause.fix]
    evidence = [_clipped(f"   seen: {each}") for each in cause.evidence]
    evidence = evidence[: max(most - 1 - sum(map(len, blocks)), (most - 1) // 3, 1)]
    fixes: list[str] = []
    for block in blocks:
        shown = _block(block, most - 1 - len(evidence) - len(fixes))
        if not shown:
            break
        fixes += shown
    return [_clipped(f"{number}. {cause.title} [{certainty}]"), *evidence, *fixes]


def _block(block: list[str], room: int) -> list[str]:
    """A command whole, or where it is: half of one is worse than none."""
    limit = COMMAND_CHARS if len(block) == 1 else BLOCK_CHARS
    if len(block) <= room and sum(map(len, block)) <= limit:
        return block
    what = "a command" if len(block) == 1 else f"a policy to apply, {len(block)} lines"
    return [f"   fix: {what}: in the structured content"][:room]


def _group_lines(found: Sequence[Group]) -> list[str]:
    told = []
    for group in found[:GROUPS]:
        size = (
            f"{counted(len(group.nodes))} ({group.names})" if len(group.nodes) > 1 else group.names
        )
        use = f"; {group.use}" if group.use else ""
        told.append(f"! {size}: {group.paths}{use}")
        if group.example:
            told.append(f"    {group.example}")
    left = sum(len(group.nodes) for group in found[GROUPS:])
    if left:
        told.append(f"! {counted(left, 'more node')} not healthy")
    return told


def _notes(told: FleetConnectivity) -> list[str]:
    notes = [f"Pattern: {each}" for each in told.patterns[:PATTERNS]]
    notes += [f"No agent: {each.node}: {each.why}" for each in told.absent[:NOTES]]
    left = len(told.absent) + told.absent_omitted - NOTES
    if left > 0:
        notes.append(f"No agent: {counted(left, 'more node')}")
    if told.ruled_out:
        notes.append(f"Ruled out: {'; '.join(told.ruled_out)}")
    for each in told.unread[:NOTES]:
        grant = f"; {each.grant}" if each.grant else ""
        notes.append(f"Not read: {each.what}: {each.why}{grant}")
    if len(told.unread) > NOTES:
        notes.append(f"Not read: {len(told.unread) - NOTES} more")
    if told.next_cursor is not None:
        notes.append(
            f"{told.nodes_omitted} more {'node' if told.nodes_omitted == 1 else 'nodes'} in "
            f'detail: call again with cursor "{told.next_cursor}".'
        )
    return notes


def _milliseconds(least: float, most: float) -> str:
    low, high = f"{least:.0f}", f"{most:.0f}"
    return f"{low} ms" if low == high else f"{low}-{high} ms"


def _clipped(line: str) -> str:
    return line if len(line) <= LINE_CHARS else line[: LINE_CHARS - 1] + "\u2026"

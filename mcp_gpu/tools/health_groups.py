"""The same finding on many GPUs and nodes, to be told once: `Group`."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mcp_gpu.gpu.errors import NOT_SUPPORTED
from mcp_gpu.gpu.health.codes import CODES
from mcp_gpu.gpu.health.model import SEVERITIES, Finding
from mcp_gpu.tools.fleet_health_model import FindingTotal, FleetNodeHealth, Gap
from mcp_gpu.tools.health import do_words, evidence_words
from mcp_gpu.tools.spans import counted, places

__all__ = ["Group", "Unexplained", "gaps", "groups", "unexplained"]

SPANS = 24
"""Ranges of node names or single ones told of one group; the rest are counted. So many sick
nodes fit an answer, each by name."""

EVIDENCE_MEMBERS = 2
"""Members of a group whose readings are told."""

EVIDENCE_TOLD = 2
"""Readings told of each of those, where there are several members."""


_IMPORTANCE: Final = {code: place for place, code in enumerate(CODES)}

_FIGURE: Final = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Group:
    """Findings of one kind that call for the same action."""

    members: tuple[tuple[str, Finding], ...]
    """Node and finding, by node."""
    is_told: bool = False
    """Whether a group before has the same advice."""
    is_shared: bool = False
    """Whether another group has it."""

    @property
    def finding(self) -> Finding:
        """The first of them."""
        return self.members[0][1]

    @property
    def title(self) -> str:
        """What they have in common; of several GPUs without the index and figures of one."""
        if len(self.members) == 1:
            return self.finding.title
        titles = [_of_any_gpu(finding) for _, finding in self.members]
        for alike in (titles, [_FIGURE.sub("N", title) for title in titles]):
            if len(set(alike)) == 1:
                return alike[0]
        return f"Such as: {titles[0]}"

    @property
    def do(self) -> str:
        """What to do: NVIDIA's name for it, and words unless those stand above already."""
        if self.is_told:
            return f"{self.finding.action}: as above"
        # A command for one GPU must not be taken for another's.
        own = not self.is_shared and len({f.gpu_index for _, f in self.members}) == 1
        return do_words(self.finding.action, self.finding.advice if own else self.advice)

    @property
    def advice(self) -> str:
        """The words, for a GPU of any index."""
        index = self.finding.gpu_index
        if index is None:
            return self.finding.advice
        words = self.finding.advice.replace(f"--id={index} ", "--id=INDEX ")
        return re.sub(rf"\bGPU {index}\b", "the GPU", words)

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(node for node, _ in self.members))

    @property
    def gpus(self) -> int:
        """How many GPUs have it; 0 where it is of the nodes as a whole."""
        return len({(node, f.gpu_index) for node, f in self.members if f.gpu_index is not None})

    @property
    def places(self) -> str:
        """`n0003 GPU 3; n0010-n0019 GPU 0-7`."""
        members = ((node, finding.gpu_index) for node, finding in self.members)
        return places(members, most=SPANS)

    @property
    def size(self) -> str:
        """`3 GPUs on 2 nodes`; empty for one GPU or one node."""
        if len(self.members) == 1:
            return ""
        nodes = counted(len(self.nodes))
        return f"{counted(self.gpus, 'GPU')} on {nodes}" if self.gpus else nodes

    @property
    def seen(self) -> Iterator[str]:
        """Readings behind it, of the first members."""
        if len(self.members) == 1:
            if self.finding.evidence:
                yield evidence_words(self.finding.evidence)
            return
        for node, finding in self.members[:EVIDENCE_MEMBERS]:
            if finding.evidence:
                gpu = "" if finding.gpu_index is None else f" GPU {finding.gpu_index}"
                yield f"{node}{gpu}: {evidence_words(finding.evidence, EVIDENCE_TOLD)}"

    @property
    def total(self) -> FindingTotal:
        first = self.finding
        return FindingTotal(
            code=first.code,
            severity=first.severity,
            action=first.action,
            nodes=len(self.nodes),
            gpus=self.gpus,
        )


def _of_any_gpu(finding: Finding) -> str:
    own = f"GPU {finding.gpu_index}"
    title = re.sub(rf"^{own}\b", "A GPU", finding.title)
    return re.sub(rf"\b{own}\b", "a GPU", title)


def groups(nodes: Sequence[FleetNodeHealth]) -> list[Group]:
    """All findings of these nodes, worst first."""
    alike: defaultdict[tuple[object, ...], list[tuple[str, Finding]]] = defaultdict(list)
    for node in sorted(nodes, key=lambda each: each.node):
        for finding in node.findings:
            key = (finding.severity, finding.code, finding.action, *_xids(finding))
            alike[key].append((node.node, finding))
    found = sorted((Group(tuple(members)) for members in alike.values()), key=_rank)
    sharing = Counter(group.advice for group in found if group.finding.action != "NONE")
    told: set[str] = set()
    for position, group in enumerate(found):
        if sharing[group.advice] > 1:
            found[position] = replace(group, is_told=group.advice in told, is_shared=True)
            told.add(group.advice)
    return found


def _xids(finding: Finding) -> Iterator[str]:
    """What tells findings of the code `xid` apart."""
    if finding.code == "xid":
        yield from (f"{each.value}" for each in finding.evidence if each.reading == "xid")


def _rank(group: Group) -> tuple[int, int, int]:
    """By severity, then what leads an agent's own findings, then those of most nodes."""
    finding = group.finding
    place = _IMPORTANCE.get(finding.code, len(_IMPORTANCE))
    return SEVERITIES.index(finding.severity), place, -len(group.nodes)


@dataclass(frozen=True, slots=True)
class Unexplained:
    """Nodes or GPUs that are unknown for the same reason, and of which no finding is told."""

    why: str
    nodes: tuple[str, ...]


def unexplained(nodes: Sequence[FleetNodeHealth]) -> list[Unexplained]:
    """Why nodes without a finding to tell are not healthy: the reason of most first."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for node in nodes:
        if node.verdict != "healthy" and not node.findings:
            alike[_why(node)].append(node.node)
    return sorted(
        (Unexplained(why, tuple(names)) for why, names in alike.items()),
        key=lambda each: -len(each.nodes),
    )


def _why(node: FleetNodeHealth) -> str:
    if node.message is not None:
        return node.message
    for gpu in node.gpus:
        for check, reason in gpu.not_checked.items():
            return f"GPU {gpu.gpu_index}: {check}: {reason}"
    for each in node.not_checked:
        return f"{each.check}: {each.reason}"
    return "only less severe findings" if node.findings_hidden else "no reason given"


def gaps(nodes: Sequence[FleetNodeHealth]) -> list[Gap]:
    """What was not checked or is not to be seen: the most frequent first, and last what boards
    do not have."""
    found: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for node in nodes:
        for each in node.not_checked:
            found[each.check, each.reason].add(node.node)
        for what, why in node.unseen.items():
            found[what, why].add(node.node)
    alike: defaultdict[tuple[str, frozenset[str]], list[str]] = defaultdict(list)
    for (what, why), names in found.items():
        alike[why, frozenset(names)].append(what)
    return sorted(
        (Gap(what=tuple(what), why=why, nodes=len(names)) for (why, names), what in alike.items()),
        key=lambda gap: (gap.why == NOT_SUPPORTED, -gap.nodes, gap.what),
    )

"""What is true of a fleet whose agents come and go, and whether an answer says that.

Each process of an agent has GPUs of its own, so that an answer's UUIDs tell whose it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Failure", "Judgement", "Life", "Register"]


@dataclass(slots=True)
class Life:
    """One process of an agent. Times are of the monotonic clock; None is not yet."""

    node: str
    uuids: tuple[str, ...]
    """Of its GPUs, by index."""
    begun: float
    ready: float | None = None
    ending: float | None = None
    """When it was asked to end, or killed."""
    ended: float | None = None
    heard: int = 0
    """Answers that came from it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A node that did not answer a call."""

    node: str
    reason: str
    message: str
    explained: bool
    """By a restart of its agent."""

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}: {self.message}"


@dataclass(slots=True)
class Judgement:
    """What became of one call."""

    wrong: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    ways: dict[str, str] = field(default_factory=dict)
    """Node to the path of its answer."""


@dataclass(slots=True)
class Register:
    """Who lived when, on each node.

    Args:
        paths: by which each node's agent may be reached.
        settle_seconds: how long after an agent is ready again its absence may still be told.
    """

    paths: Mapping[str, Sequence[str]]
    settle_seconds: float
    lives: list[Life] = field(default_factory=list)
    _by_uuids: dict[tuple[str, ...], Life] = field(default_factory=dict)
    _of_node: dict[str, list[Life]] = field(default_factory=dict)

    def begin(self, node: str, uuids: tuple[str, ...]) -> Life:
        """A process of the node's agent is about to start."""
        life = Life(node, uuids, time.monotonic())
        self.lives.append(life)
        self._by_uuids[uuids] = life
        self._of_node.setdefault(node, []).append(life)
        return life

    def unheard(self, since: float) -> list[Life]:
        """Those that were there for longer than a gateway needs to see it, and never answered.

        Args:
            since: when calls began.
        """
        now = time.monotonic()
        return [
            life
            for life in self.lives
            if life.ready is not None
            and not life.heard
            and (life.ending or now) - max(life.ready, since) > self.settle_seconds
        ]

    def explains(self, node: str, begun: float, ended: float) -> bool:
        """Whether the node's agent was away, or just back, at some time of a call."""
        lives = self._of_node[node]
        for number, life in enumerate(lives):
            if life.ending is None or life.ending > ended:
                continue
            back = lives[number + 1].ready if number + 1 < len(lives) else None
            if back is None or begun <= back + self.settle_seconds:
                return True
        return False

    def judge(
        self, told: Mapping[str, Any], asked: Sequence[str], begun: float, ended: float
    ) -> Judgement:
        """A gateway's inventory in full, against what was true between the call's begin and end.

        Args:
            asked: the nodes that the call was for.
        """
        found = Judgement()
        named = [node["node"] for node in told["nodes"]]
        failed = [failure["node"] for failure in told["failures"]]
        self._add_up(told, named, failed, asked, found.wrong)
        for failure in told["failures"]:
            if failure["node"] in asked:
                self._fail(found, failure, begun, ended)
        for node in told["nodes"]:
            if node["node"] not in asked:
                continue
            if not node["simulated"]:
                found.wrong.append(f"{node['node']} is not called simulated")
            if node["state"] == "ok":
                self._answer(found, node, begun, ended)
            else:
                reason = {"node": node["node"], "reason": f"NVML {node['state']}"}
                self._fail(found, reason | {"message": node["message"]}, begun, ended)
        return found

    def _add_up(
        self,
        told: Mapping[str, Any],
        named: Sequence[str],
        failed: Sequence[str],
        asked: Sequence[str],
        wrong: list[str],
    ) -> None:
        """Note every number that is not what the rest of the answer makes it."""
        coverage, ways = told["coverage"], [node["via"] for node in told["nodes"]]
        for what, is_told, is_true in (
            ("nodes", sorted([*named, *failed]), sorted(asked)),
            ("nodes_known", coverage["nodes_known"], len(self.paths)),
            ("nodes_asked", coverage["nodes_asked"], len(asked)),
            ("nodes_answered", coverage["nodes_answered"], len(named)),
            ("ways", told["ways"], {via: ways.count(via) for via in set(ways)}),
            ("failures_by_reason", sum(told["failures_by_reason"].values()), len(failed)),
            ("totals", told["totals"]["gpus"], sum(len(node["gpus"]) for node in told["nodes"])),
            ("simulated", told["simulated"], bool(named)),
            ("left out", (told["nodes_omitted"], told["failures_omitted"]), (0, 0)),
        ):
            if is_told != is_true:
                wrong.append(f"{what}: {is_told}, and not {is_true}")

    def _fail(
        self, found: Judgement, failure: Mapping[str, Any], begun: float, ended: float
    ) -> None:
        node = failure["node"]
        explained = self.explains(node, begun, ended)
        found.failures.append(Failure(node, failure["reason"], str(failure["message"]), explained))

    def _answer(
        self, found: Judgement, node: Mapping[str, Any], begun: float, ended: float
    ) -> None:
        name, via = node["node"], node["via"]
        found.ways[name] = via
        if via not in self.paths[name]:
            found.wrong.append(f"{name} is told to have answered over {via}, which is cut")
        life = self._by_uuids.get(tuple(gpu["uuid"] for gpu in node["gpus"]))
        if life is None:
            found.wrong.append(f"{name} has GPUs that no node has, or not all of its own")
        elif life.node != name:
            found.wrong.append(f"{name} has the GPUs of {life.node}")
        elif life.begun > ended or (life.ended is not None and life.ended < begun):
            found.wrong.append(f"{name} has the GPUs of an agent that was not there")
        else:
            life.heard += 1

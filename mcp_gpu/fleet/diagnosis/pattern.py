"""Who answers over HTTP, n of m, divided as a network might divide them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import get_args

from mcp_gpu.fleet.diagnosis.case import KEYS, Case, Relation

__all__ = ["patterns"]

VALUES = 6
"""The most values of one property that a line names."""

UNNAMED = "none named"


def patterns(case: Case) -> tuple[str, ...]:
    """One line per division; those by zone and the like only where they differ."""
    return tuple(_lines(case))


def _lines(case: Case) -> Iterator[str]:
    if not case.kubernetes:
        yield "agents outside Kubernetes: no cluster could be asked about its network"
    if not case.http_expected:
        yield "http: not expected to lead to pod addresses from outside the cluster"
        return
    tried = [agent for agent in case.agents if agent.http != "not_tried"]
    if not tried:
        return
    for relation in get_args(Relation):
        here = [agent for agent in tried if agent.relation == relation]
        if here:
            answering = sum(agent.http == "ok" for agent in here)
            where: str = relation
            if relation == "elsewhere":
                where = "all" if len(here) == len(tried) else "place not known"
            yield f"{where}: {answering} of {len(here)} over http"
    failing = sum(agent.http != "ok" for agent in tried)
    if not failing:
        return
    if case.at("same subnet") or case.at("other subnets"):
        yield f"subnets are from {case.subnets_from}"
    if len(tried) == failing:
        return
    for name, value_of in KEYS.items():
        totals, answers = Counter[str](), Counter[str]()
        for agent in tried:
            value = value_of(agent, case) or UNNAMED
            totals[value] += 1
            answers[value] += agent.http == "ok"
        if len(totals) < 2 or len({answers[v] / totals[v] for v in totals}) < 2:
            continue
        # The worst first: the rest is a number.
        ranked = sorted(totals, key=lambda value: (answers[value] / totals[value], value))
        shown = [f"{value}: {answers[value]} of {totals[value]}" for value in ranked[:VALUES]]
        more = [f"{len(ranked) - VALUES} more"] if len(ranked) > VALUES else []
        yield f"{name} " + ", ".join([*shown, *more])

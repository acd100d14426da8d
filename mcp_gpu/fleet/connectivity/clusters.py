"""Having a survey diagnosed: each cluster's part by what that cluster says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import anyio

from mcp_gpu.fleet.connectivity.model import Place, Survey
from mcp_gpu.fleet.diagnosis.diagnosis import RANK, diagnose
from mcp_gpu.fleet.diagnosis.evidence import Evidence, read_evidence
from mcp_gpu.fleet.diagnosis.model import Diagnosis, Verdict
from transports.kubernetes import KubernetesApi

__all__ = ["Diagnoses"]

WORST_FIRST: tuple[Verdict, ...] = ("broken", "unknown", "degraded", "healthy")


class Diagnoses:
    """Makes diagnoses of surveys.

    Args:
        apis: by the name of the cluster in `Target.cluster`, already entered by the caller. A
            single one is that of all agents; none: they are in no cluster that could be asked.
        selector: label selector of the agents' pods.
    """

    def __init__(self, apis: Mapping[str, KubernetesApi], *, selector: str) -> None:
        self._apis = dict(apis)
        self._selector = selector

    async def of(self, survey: Survey) -> Diagnosis:
        """Read what the clusters say and draw the conclusion. Raises nothing."""
        if not self._apis:
            return diagnose(survey, Evidence())
        if len(self._apis) == 1:
            (api,) = self._apis.values()
            return await self._one(api, survey)
        found: dict[str, Diagnosis] = {}

        async def note(name: str, api: KubernetesApi, part: Survey) -> None:
            found[name] = await self._one(api, part)

        async with anyio.create_task_group() as group:
            for name, api in self._apis.items():
                part = _part(survey, name)
                if part.nodes or part.absent:
                    group.start_soon(note, name, api, part)
        return _together({name: found[name] for name in self._apis if name in found})

    async def _one(self, api: KubernetesApi, survey: Survey) -> Diagnosis:
        return diagnose(survey, await read_evidence(api, survey, selector=self._selector))


def _part(survey: Survey, cluster: str) -> Survey:
    """What the survey says of one of several clusters, to all of which the gateway is a stranger
    as far as anybody knows."""
    return replace(
        survey,
        place=Place(),
        nodes=tuple(node for node in survey.nodes if node.target.cluster == cluster),
        absent=tuple(each for each in survey.absent if each[0].startswith(f"{cluster}/")),
    )


def _together(found: Mapping[str, Diagnosis]) -> Diagnosis:
    verdict = next(
        (v for v in WORST_FIRST if any(d.verdict == v for d in found.values())), "unknown"
    )
    said = "; ".join(f"{name} {diagnosis.headline}" for name, diagnosis in found.items())
    causes = [cause for diagnosis in found.values() for cause in diagnosis.causes]
    return Diagnosis(
        verdict=verdict,
        headline=f"{verdict}: {said or 'no path was tried'}",
        causes=tuple(sorted(causes, key=lambda cause: RANK[cause.confidence])),
        patterns=tuple(f"{name}: {each}" for name, d in found.items() for each in d.patterns),
        ruled_out=tuple(f"{name}: {each}" for name, d in found.items() for each in d.ruled_out),
        unread=tuple(
            each.model_copy(update={"what": f"{name}: {each.what}"})
            for name, d in found.items()
            for each in d.unread
        ),
    )

"""The simulated GPUs of a release's agents, and what goes wrong with them while they run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.process import wait
from cluster.release import Release, call

__all__ = ["Simulation", "gpus"]

DELIVERED_SECONDS = 90
"""Bound for a kubelet to deliver a ConfigMap that has changed: a second where the pod changes, too,
and else a minute."""

FILE = "etc/mcp-gpu/fleet/fleet.toml"


class Simulation:
    """A fleet file with one table for each node.

    Args:
        nodes: name to the lines of its table, but for the name; without commas, for helm's sake.
    """

    def __init__(self, nodes: Mapping[str, str]) -> None:
        self._nodes = nodes

    @property
    def value(self) -> str:
        """The chart's value, nothing being wrong."""
        return f"simulate.fleet={self._text({})}"

    @contextmanager
    def faults(self, release: Release, faults: Mapping[str, str]) -> Iterator[None]:
        """Within the block nodes have these faults, by name to lines as in docs/simulator.md.
        Agents have read the file when it begins."""
        self._deliver(release, self._text(faults))
        try:
            yield
        finally:
            self._deliver(release, self._text({}))

    def _text(self, faults: Mapping[str, str]) -> str:
        return "\n".join(
            f'[[nodes]]\nname = "{name}"\n{table}\n{faults.get(name, "")}'
            for name, table in self._nodes.items()
        )

    def _deliver(self, release: Release, text: str) -> None:
        change = json.dumps({"data": {"fleet.toml": text}})
        name = f"{release.fullname}-fleet"
        release.kubectl("patch", "configmap", name, "--type=merge", "-p", change)
        # A kubelet looks at the ConfigMaps of pods that have changed, and else each minute.
        poke = f"fleet={time.monotonic_ns()}"
        query = ["pod", "-l", release.selector("agent"), poke, "--overwrite"]
        release.kubectl("annotate", *query)
        files = [Path(f"/proc/{pod.process.pid}/root/{FILE}") for pod in release.agents()]
        wait(
            f"{name} at the agents",
            lambda: all(file.read_text() == text for file in files),
            DELIVERED_SECONDS,
        )


def gpus(release: Release) -> dict[str, list[dict[str, Any]]]:
    """Node to its GPUs, by the agents' inventory."""
    request = call("get_gpu_inventory", detail="full")
    answer = release.ask(request, token=release.token())["structuredContent"]
    return {node["node"]: node["gpus"] for node in answer["nodes"]}

"""A simulated fleet from one TOML file, whose faults may change while it runs.

    seed = 1
    [[nodes]]
    name = "h100-a"
    profile = "h100"
    [[nodes.faults]]
    kind = "lost"
    gpu = 3

docs/simulator.md has every key.
"""

from __future__ import annotations

import logging
import time
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from mcp_gpu.gpu.simulator.faults import Fault
from mcp_gpu.gpu.simulator.node import Node
from mcp_gpu.gpu.simulator.processes import Process
from mcp_gpu.gpu.simulator.profiles import ProfileError, load_profile

log = logging.getLogger(__name__)

CHECK_SECONDS = 0.1
"""How often, at most, a running node looks whether its file has changed."""

ANY = "*"
"""The group that stands for every node the file does not name."""


class FleetError(ValueError):
    """A fleet file that cannot be used: the file, the place in it, and what is wrong there."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class _Mig(_Table):
    gpu: NonNegativeInt
    profile: str
    count: PositiveInt = 1


class _NodeGroup(_Table):
    name: Annotated[str, Field(min_length=1)]
    profile: str
    count: PositiveInt = 1
    gpus: NonNegativeInt | None = None
    driver: Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")] | None = None
    load: Annotated[float, Field(ge=0, le=1)] = 0.5
    mig: tuple[_Mig, ...] = ()
    processes: tuple[Process, ...] = ()
    faults: tuple[Fault, ...] = ()

    def names(self) -> list[str]:
        """The group's nodes: its name, or for several its name and a number."""
        if self.count == 1:
            return [self.name]
        return [f"{self.name}-{number}" for number in range(1, self.count + 1)]


class _FleetFile(_Table):
    seed: int = 0
    nodes: tuple[_NodeGroup, ...]

    def groups(self) -> dict[str, _NodeGroup]:
        """Each node's group; `*` is that of all nodes without one."""
        return {name: group for group in self.nodes for name in group.names()}


class Fleet:
    """The nodes of one fleet file, by name.

    Raises:
        FleetError: when constructed. A file that becomes bad while it runs is reported once in
            the log, and what was read last stays in force.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mtime_ns = _mtime_ns(path)
        self._next_check = 0.0
        parsed = _parse(path)
        self._seed = parsed.seed
        self._groups = parsed.groups()
        self._nodes = {
            name: self._build(name, group) for name, group in self._groups.items() if name != ANY
        }

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The named ones, and those of the group `*` that were asked for."""
        return self._nodes

    def node(self, name: str) -> Node:
        """Raises: FleetError: the file has no such node."""
        if name not in self._nodes:
            if ANY not in self._groups:
                known = ", ".join(self._nodes)
                raise FleetError(
                    f"{self.path}: no node {name!r}, only {known}, and no {ANY!r} for all others"
                )
            self._nodes[name] = self._build(name, self._groups[ANY])
        return self._nodes[name]

    def reload(self) -> None:
        """Take over the faults of a file that has changed. Cheap: most calls only read a clock."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + CHECK_SECONDS
        mtime_ns = _mtime_ns(self.path)
        if mtime_ns in {0, self._mtime_ns}:
            return
        self._mtime_ns = mtime_ns
        try:
            parsed = _parse(self.path)
        except FleetError as error:
            log.warning("fleet file ignored: %s", error)
            return
        groups = parsed.groups()
        for name, node in self._nodes.items():
            if (group := groups.get(name) or groups.get(ANY)) is not None:
                node.faults = group.faults

    def _build(self, name: str, group: _NodeGroup) -> Node:
        mig: dict[int, tuple[str, ...]] = {}
        for entry in group.mig:
            mig[entry.gpu] = mig.get(entry.gpu, ()) + (entry.profile,) * entry.count
        node = Node(
            name, group.profile, gpus=group.gpus, driver=group.driver, load=group.load,
            seed=self._seed, mig=mig, processes=group.processes, faults=group.faults,
        )  # fmt: skip
        node.on_call = self.reload
        return node


def load_fleet(path: str | Path) -> Fleet:
    """Read a fleet file.

    Raises:
        FleetError: with the place, such as "fleet.toml: nodes[1].faults[0].gpu: ...".
    """
    return Fleet(Path(path))


def default_fleet() -> Fleet:
    """The demo's fleet: 8xH100 healthy, 8xH100 with one GPU lost, 4xGB200, 1xT4, 4xL40S with a
    program that failed."""
    return Fleet(Path(__file__).with_name("demo.toml"))


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0  # An editor is replacing it; the next look finds it again.


def _parse(path: Path) -> _FleetFile:
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FleetError(f"{path}: {error}") from error
    try:
        parsed = _FleetFile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise FleetError(f"{path}: {_place(first['loc'])}: {first['msg']}") from error
    _check(path, parsed)
    return parsed


def _check(path: Path, parsed: _FleetFile) -> None:
    """What holds between the entries of a file."""
    seen: set[str] = set()
    for position, group in enumerate(parsed.nodes):
        place = f"{path}: nodes[{position}]"
        try:
            profile = load_profile(group.profile)
        except ProfileError as error:
            raise FleetError(f"{place}.profile: {error}") from error
        described = len(profile["gpus"])
        gpus = described if group.gpus is None else group.gpus
        if gpus > described:
            raise FleetError(f"{place}.gpus: profile {group.profile!r} describes {described} GPUs")
        if group.name == ANY and group.count != 1:
            raise FleetError(f"{place}.count: {ANY!r} is every node without a group of its own")
        for number, fault in enumerate(group.faults):
            if fault.gpu is not None and fault.gpu >= gpus:
                raise FleetError(f"{place}.faults[{number}].gpu: {group.name} has {gpus} GPUs")
        for number, mig in enumerate(group.mig):
            if mig.gpu >= gpus or mig.profile not in profile.get("mig_profiles", {}):
                known = ", ".join(profile.get("mig_profiles", {})) or "none"
                raise FleetError(f"{place}.mig[{number}]: GPUs 0 to {gpus - 1}, profiles {known}")
        cut: Counter[int] = Counter()
        for mig in group.mig:
            cut[mig.gpu] += mig.count
        for number, process in enumerate(group.processes):
            if process.gpu >= gpus:
                raise FleetError(f"{place}.processes[{number}].gpu: {group.name} has {gpus} GPUs")
            if (process.mig is None) != (cut[process.gpu] == 0) or (
                process.mig is not None and process.mig >= cut[process.gpu]
            ):
                raise FleetError(
                    f"{place}.processes[{number}].mig: GPU {process.gpu} has "
                    f"{cut[process.gpu]} MIG devices"
                )
        if repeated := seen & set(group.names()):
            raise FleetError(f"{place}.name: {min(repeated)!r} is taken")
        seen.update(group.names())


def _place(location: tuple[int | str, ...]) -> str:
    """A validation error's place as one reads it: "nodes[1].faults[0].gpu"."""
    place = ""
    for position, part in enumerate(location):
        if isinstance(part, int):
            place += f"[{part}]"
        elif position < 2 or location[position - 2] != "faults":
            # After faults[N] pydantic puts the kind, which is not a key of the file.
            place += f".{part}" if place else part
    return place

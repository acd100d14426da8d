"""Packages whose own body runs when something of it is asked for, and not before.

An import of `mcp.server.lowlevel` first runs the bodies of `mcp` and of `mcp.server`. They import
the SDK's client, its server by decorators and a library of cryptography, none of which an agent
uses: 9 MiB, and a tenth of its start.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from types import ModuleType

__all__ = ["postpone"]


class _Postponed(ModuleType):
    """A package with a path to its modules, and nothing else as yet."""

    def __getattr__(self, name: str) -> object:
        self.__class__ = ModuleType  # type: ignore[assignment]  # first: its body asks it, too
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(self)
        return getattr(self, name)


def postpone(*packages: str) -> None:
    """Let packages wait, parents first. Not for threads that would ask one at the same time.

    Nothing but the time changes, whatever the packages hold: the first question for what is not
    there runs the body. One that is imported already, or found in no folder, stays as it is.
    """
    for package in packages:
        parent, _, name = package.rpartition(".")
        above = sys.modules.get(parent)
        if package in sys.modules or (parent and not isinstance(above, _Postponed)):
            continue
        spec = PathFinder.find_spec(package, above.__path__ if above else None)
        if spec is None or spec.loader is None or not spec.submodule_search_locations:
            continue
        module = module_from_spec(spec)
        module.__class__ = _Postponed
        sys.modules[package] = module
        if above:
            setattr(above, name, module)

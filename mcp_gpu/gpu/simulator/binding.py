"""Puts the simulated library below pynvml, and takes it away again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pynvml

from mcp_gpu.gpu.simulator import exports as exports  # fills the table of functions
from mcp_gpu.gpu.simulator.library import Library
from mcp_gpu.gpu.simulator.node import Node

_library = Library()


def install(node: Node) -> None:
    """Let the binding talk to `node` from the next call on, in every thread of the process."""
    _library.reset(node)
    _bind(_library)


def uninstall() -> None:
    """Let the binding look for a real library again."""
    _library.reset(None)
    _bind(None)


@contextmanager
def installed(node: Node) -> Iterator[Node]:
    """`node` is the machine inside the block."""
    install(node)
    try:
        yield node
    finally:
        uninstall()


def _bind(library: Library | None) -> None:
    # The binding caches symbols by name, and counts initialisations.
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml.nvmlLib = library
    pynvml._nvmlLib_refcount = 0

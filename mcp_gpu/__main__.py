"""The entry point: `attach` takes a path of its own that imports nothing heavy."""

from __future__ import annotations

import gc
import sys

NOT_FOR_AGENTS = ("mcp", "mcp.client", "mcp.server")
"""Bodies of the SDK's packages that import what only clients and other servers use."""


def kubectl() -> int:
    """Run as `kubectl mcp_gpu`, which finds this as a program of its own."""
    from mcp_gpu.plugin import arguments

    sys.argv[1:] = arguments(sys.argv[1:])
    return main()


def main() -> int:
    """Run the command line of this process; returns the exit status."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["attach"]:
        from mcp_gpu.attach import main as attach

        return attach(arguments[1:])
    # Half a second of imports that a relay must not pay. They make many objects and hardly any
    # garbage: looking for it takes a tenth of the start. The command line turns it on again.
    gc.disable()
    _build_models_late()
    if arguments[:1] == ["agent"]:
        from mcp_gpu.postponed import postpone

        postpone(*NOT_FOR_AGENTS)
    from mcp_gpu.cli import main as command_line

    return command_line(arguments)


def _build_models_late() -> None:
    """Let a model compile its validators at its first use: most of the SDK's have none.

    pydantic takes this from the base when a class is made, so it comes before all others.
    """
    from pydantic import BaseModel

    BaseModel.model_config["defer_build"] = True


if __name__ == "__main__":
    sys.exit(main())

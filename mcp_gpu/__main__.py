"""The entry point: `attach` takes a path of its own that imports nothing heavy."""

from __future__ import annotations

import gc
import sys


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
    from mcp_gpu.cli import main as command_line

    return command_line(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""What a host of the bundle runs: a gateway that talks over standard streams."""

from __future__ import annotations

import sys

from mcp_gpu.__main__ import main

if __name__ == "__main__":
    sys.argv[1:] = ["gateway", "--stdio", *sys.argv[1:]]
    sys.exit(main())

"""Which agents exist: a static list, the addresses behind a DNS name, or what a cluster says.

Discovery never says whether an agent can be reached. An agent that is known and
does not answer is still a known node, so that it shows as a failure instead of
vanishing from the answer.
"""

from mcp_gpu.fleet.discovery.table import (
    AbsentAgent,
    Discovery,
    DiscoveryError,
    Explanation,
    Table,
)

__all__ = ["AbsentAgent", "Discovery", "DiscoveryError", "Explanation", "Table"]

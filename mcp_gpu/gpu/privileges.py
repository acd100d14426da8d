"""What an agent may have to be granted, as every advice names it.

The rung in brackets is of the chart's `agent.privileges`; each includes those before it.
"""

from __future__ import annotations

from typing import Final

ROOT: Final = "uid 0 (chart: agent.privileges=root)"
KERNEL_LOG: Final = "CAP_SYSLOG (chart: agent.privileges=kernelLog)"
JOURNAL: Final = (
    "the node's /var/log/journal read-only, for root or the group systemd-journal "
    "(chart: agent.privileges=kernelLog)"
)
PROCESSES: Final = "hostPID: true (chart: agent.privileges=processes)"
ADMIN: Final = (
    "CAP_SYS_ADMIN and MIG's monitor below /dev/nvidia-caps (chart: agent.privileges=admin, with "
    "gpu.access=cdi unless the container toolkit is in legacy mode)"
)

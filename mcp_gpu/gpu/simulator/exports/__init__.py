"""The functions of the simulated library: prototypes of nvml.h, and answers written as C does.

Each implementation takes (library, name of the call, *C arguments), writes through the caller's
pointers and raises `Refused` for a return code. Importing this package fills `EXPORTS`.
"""

from mcp_gpu.gpu.simulator.exports import events, getters, gpm, lists, pairs, whole

__all__ = ["events", "getters", "gpm", "lists", "pairs", "whole"]

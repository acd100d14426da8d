"""mcp-gpu: ask an NVIDIA fleet what is wrong with its GPUs.

Kept free of imports: `mcp-gpu attach` loads this package and must start in milliseconds.
"""

__version__ = "0.1.0"

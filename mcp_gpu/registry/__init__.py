"""How tools, prompts and resources are declared, and how one MCP server is made of them.

What declares prompts and resources is imported from its own modules, by those who are asked for
them: a start has no use for it.
"""

from mcp_gpu.registry.arguments import Arguments
from mcp_gpu.registry.later import Later, Makers, UnknownTools, from_listing
from mcp_gpu.registry.registry import Registry
from mcp_gpu.registry.surface import Surface
from mcp_gpu.registry.tool import Answer, Call, Right, Tool, ToolError, UnknownResource

__all__ = [
    "Answer",
    "Arguments",
    "Call",
    "Later",
    "Makers",
    "Registry",
    "Right",
    "Surface",
    "Tool",
    "ToolError",
    "UnknownResource",
    "UnknownTools",
    "from_listing",
]

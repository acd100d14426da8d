"""How a tool is declared, and how one MCP server is made of the declarations."""

from mcp_gpu.registry.arguments import Arguments
from mcp_gpu.registry.later import Later, Makers, from_listing
from mcp_gpu.registry.registry import Registry
from mcp_gpu.registry.tool import Answer, Call, Tool, ToolError

__all__ = [
    "Answer",
    "Arguments",
    "Call",
    "Later",
    "Makers",
    "Registry",
    "Tool",
    "ToolError",
    "from_listing",
]

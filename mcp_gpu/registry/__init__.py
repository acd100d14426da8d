"""How tools, prompts and resources are declared, and how one MCP server is made of them."""

from mcp_gpu.registry.arguments import Arguments
from mcp_gpu.registry.completion import Completer
from mcp_gpu.registry.later import Later, Makers, from_listing
from mcp_gpu.registry.prompt import Prompt
from mcp_gpu.registry.registry import Registry
from mcp_gpu.registry.resource import Found, Resource, UnknownResource
from mcp_gpu.registry.surface import Surface
from mcp_gpu.registry.tool import Answer, Call, Tool, ToolError
from mcp_gpu.registry.updates import Watch

__all__ = [
    "Answer",
    "Arguments",
    "Call",
    "Completer",
    "Found",
    "Later",
    "Makers",
    "Prompt",
    "Registry",
    "Resource",
    "Surface",
    "Tool",
    "ToolError",
    "UnknownResource",
    "Watch",
    "from_listing",
]

"""How a tool is declared, and how one MCP server is made of the declarations."""

from mcp_gpu.registry.arguments import Arguments
from mcp_gpu.registry.registry import Answer, Call, Registry, Tool, ToolError

__all__ = ["Answer", "Arguments", "Call", "Registry", "Tool", "ToolError"]

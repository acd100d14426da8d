"""How to reach an MCP server in a pod: one contract, several ways. Knows nothing of GPUs."""

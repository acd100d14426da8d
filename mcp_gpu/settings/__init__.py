"""Every setting, once. Flags, `MCP_GPU_*` variables and their help come from these classes.

A flag wins over a variable, a variable over the default. Nothing else reads the environment,
but for `mcp_gpu.sockets`, which `mcp-gpu attach` needs without pydantic.

No name may be one that Kubernetes puts into a pod's environment for a Service called
`mcp-gpu` or `mcp-gpu-gateway` (`MCP_GPU_PORT`, `MCP_GPU_SERVICE_HOST`, ...): hence `http_port`.

A command imports its own module and no more: each class takes a millisecond of every start.
"""

"""One MCP server object on HTTP, stdio and a Unix socket, from start to a graceful end.

`server.serve` is the way in. Nothing is imported here: settings need `endpoint` and
`access.model` alone.
"""

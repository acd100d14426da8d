"""Who may call over HTTP: whose tokens are believed, and which tools their holders may call.

Streams need none of it: whoever reaches the Unix socket or starts the process was let in by the
system or by the Kubernetes API server.
"""

"""The gateway's view of many agents: who they are, how to reach them, and their merged answers."""

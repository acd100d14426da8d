"""The tools, one module each: its models, how an agent answers, how a gateway merges."""

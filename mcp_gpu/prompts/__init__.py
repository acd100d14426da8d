"""Ways to go about a question with this server's tools, for a model that is asked one."""

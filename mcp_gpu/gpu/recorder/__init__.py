"""What a node's GPUs have done lately: readings in rings of bounded size, and what changed."""

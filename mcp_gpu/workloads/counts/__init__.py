"""How many GPUs a node has, by everybody who counts them, and why they disagree."""

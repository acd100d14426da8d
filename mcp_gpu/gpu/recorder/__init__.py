"""What a node's GPUs have done lately: readings in rings of bounded size, and what changed.

Values here are named tuples: a start has no time for data classes, which take ten times as long to
make.
"""

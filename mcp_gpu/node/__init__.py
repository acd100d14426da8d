"""What surrounds the GPUs on their node: the kernel log, the journal, what an agent may see."""
